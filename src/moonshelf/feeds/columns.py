"""The column mapper: which column of a table fills what.

Names are compared without regard to case, spaces, hyphens and marks (`*Title`, `SKU [Non Editable]`).
`one_each` gives each role of a small table its most telling column. `plan_columns` is for products: several
columns may stand for one field, they are tried in the order of the vocabulary, and the first cell that is not
blank fills the field. So an id that is blank in some rows is taken from the SKU there, and no row is lost.
Prices and languages are the exceptions, because mixing them would be wrong in silence: one currency and one
language are chosen, and the reader says which. Whatever fills nothing is kept in `extra`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from moonshelf.attributes import canonical_key, fold
from moonshelf.errors import UserError
from moonshelf.feeds.values import currency
from moonshelf.feeds.vocabulary import WORDS, by_word
from moonshelf.product import Product


def ranked(names: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, int]]:
    """Name -> (what it fills, its rank), of what is filled -> its names, the most telling first."""
    return {name: (role, rank) for role, known in names.items() for rank, name in enumerate(known)}


def one_each(
    columns: Iterable[str], known: Mapping[str, tuple[str, int]], forced: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Role -> column: the most telling of the columns by `known` (see `ranked`), or the one that `forced`
    (column -> role) names.

    >>> one_each(["Search term", "SKU"], ranked({"query": ["query", "search term"], "id": ["id", "sku"]}))
    {'query': 'Search term', 'id': 'SKU'}
    """
    plan: dict[str, tuple[int, str]] = {}
    for column in columns:
        role, rank = (forced[column], -1) if forced and column in forced else known.get(fold(column), ("", 0))
        if role and (role not in plan or rank < plan[role][0]):
            plan[role] = rank, column
    return {role: column for role, (_, column) in plan.items()}


FIELD_OF = ranked(WORDS["fields"])
_RULES = WORDS["columns"]


def fields_of(names: Iterable[str]) -> set[str]:
    """Fields of a product, and `additional`, `attributes` and `extra`, that names as they stand fill."""
    return {FIELD_OF[folded][0] for name in names if (folded := fold(name)) in FIELD_OF}


_ATTRIBUTES, _PARTS = frozenset(_RULES["attributes"]), frozenset(_RULES["named_attributes"])
_KINDS = by_word(_RULES["kinds"])
_NUMBERED_IMAGE = re.compile(
    r"((product|item|main|other|additional|extra|gallery|variant) )*(image|img|photo|picture|pic)s?"
    r"( (file|link|url|src|path))*[ #]?\d{1,2}( (link|url|src|path))?"
)
_IMAGE_PATH = re.compile(r"image\[(\d{1,3})\]\.url", re.IGNORECASE)  # Meta's
_PRICES = {name: int(rank) for name, rank in by_word(_RULES["prices"]).items()}
_TAXES = {word: int(rank) for word, rank in by_word(_RULES["taxes"]).items()}
LEAST = 9  # rank of the lowest price of a range
_PRICED = re.compile("|".join(sorted({name.split()[-1] for name in _PRICES} | {"price", "prix"})))
_LOCALE = re.compile(r"(?P<base>.+?) \(?(?P<language>[a-z]{2})(?: (?P<region>[a-z]{2}))?\)?(?: .+)?")
_PART = re.compile(r"(?P<base>[a-z ]+?) ?(?P<n>\d{1,2})(?: (?P<kind>[a-z()]+))?")


@dataclass(frozen=True, slots=True)
class Column:
    """What one column fills: a field of `Product`, `additional` (pictures), `attribute`, or `extra`."""

    name: str
    field: str
    rank: float = 0  # of several columns for one field, the lowest is tried first
    currency: str | None = None
    language: str | None = None
    named_by: str | None = None  # the column that holds the attribute's name
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The columns in the order in which they fill a product, and what a reader should say about them."""

    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    @property
    def fields(self) -> set[str]:
        return {column.field for column in self.columns}

    @property
    def unused(self) -> list[str]:
        return [column.name for column in self.columns if column.field == "extra" and column.name != "extra"]


def kept(names: list[str]) -> str:
    """What to say about columns that fill nothing."""
    shown = ", ".join(repr(name[:40]) for name in names[:20])
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"kept in `extra`: {shown}{more}; --map FIELD=COLUMN says what a column is"


def plan_columns(
    names: Iterable[str],
    fields: Mapping[str, str] | None = None,
    fills: Mapping[str, str] | None = None,
    *,
    currency: str | None = None,
) -> Plan:
    """Which column fills what.

    `fields` forces columns (name -> Product field), `fills` are the names of a shop's export, `currency` says
    which of several prices is taken. Raises UserError if `fields` names what is not there.
    """
    names = list(names)
    forced = forced_fields(names, fields or {})
    found = [
        Column(name, forced[name], -1, forced=True) if name in forced else _column(name, fills or {})
        for name in names
    ]
    found = _named(found)
    taken = set(forced.values()) - {"additional", "id"}
    found = [Column(c.name, "extra") if c.field in taken and not c.forced else c for c in found]
    found, notes = _one_currency(found, currency)
    found, said = _one_language(found)
    found.sort(key=lambda c: (c.field != "language", c.rank))  # texts in several languages ask for it
    return Plan(tuple(found), tuple(notes + said))


def forced_fields(names: list[str], fields: Mapping[str, str]) -> dict[str, str]:
    """Column -> field of `Product`, as the caller says. Raises UserError for what does not exist."""
    forced = {}
    for wanted, target in fields.items():
        field = _RULES["aliases"].get(target.lower(), target)
        if field not in Product.model_fields:
            known = ", ".join(Product.model_fields)
            raise UserError(f"a product has no field '{target}': use one of {known}.")
        same = [name for name in names if name == wanted] or [n for n in names if fold(n) == fold(wanted)]
        if not same:
            shown = ", ".join(name[:40] for name in names[:40])
            raise UserError(f"the feed has no column '{wanted}': its columns are {shown}.")
        forced[same[0]] = field
    return forced


def simple(name: str) -> str:
    """The folded name without marks of exports: `*Title`, `g:title`, `SKU [Non Editable]`, `sku#1.value`."""
    return fold(re.sub(r"\[[^\]]*\]|#\d+\.value$|#\d+\.|^g:|^[*\s]+|[*:\s]+$", " ", name))


def is_known(name: str) -> bool:
    """Whether a cell is the name of a column that means something here."""
    return bool(name) and _column(name, {}).field != "extra"


def _column(name: str, fills: Mapping[str, str]) -> Column:
    if path := _IMAGE_PATH.fullmatch(name.strip()):
        return Column(name, "additional", int(path[1]) - 1_000)
    folded = simple(name)
    bare = fold(re.sub(r"\([^)]*\)", " ", folded))
    for text in (folded, bare):
        if text in fills:
            return Column(name, fills[text])
        if _NUMBERED_IMAGE.fullmatch(text):
            return Column(name, "additional")
        if text in FIELD_OF:
            return Column(name, *FIELD_OF[text])
    if priced := price_column(name):
        return Column(name, "price", *priced)
    match = _LOCALE.fullmatch(folded)
    if match and match["language"] in WORDS["languages"]["columns"]:
        field, rank = FIELD_OF.get(match["base"], ("", 0))
        if field in _RULES["localised"]:
            region = f"-{match['region'].upper()}" if match["region"] else ""
            return Column(name, field, rank, language=match["language"] + region)
    return Column(name, "attribute" if canonical_key(bare) in _ATTRIBUTES else "extra")


def price_column(name: str) -> tuple[int, str | None] | None:
    """(rank, currency) if a column holds a price that a shopper pays; the lowest rank is the likeliest."""
    if not _PRICED.search(name.lower()):
        return None
    code, rank, words = None, 0, []
    name = re.sub(r" \(\d+\)'*$", "", name.removeprefix("g:"))  # a second column of one name
    for word in re.findall(r"[^\s_\-/().:,*\[\]]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)):
        found = currency(word) if not word.isalpha() or len(word) == 3 else None
        # `price_all` is no price in Albanian lek unless it is written in capitals.
        if found and code is None and not (found in _RULES["currencies_that_are_words"] and word.islower()):
            code = found
        elif (lower := word.lower()) in _TAXES:
            rank += _TAXES[lower]
        elif lower not in _RULES["no_matter_in_prices"]:
            words.append(lower)
    text = " ".join(words)
    if text in _RULES["lowest_prices"]:
        return LEAST + rank, code
    return (_PRICES[text] + rank, code) if text in _PRICES else None


def _named(found: list[Column]) -> list[Column]:
    """Attributes whose names stand in columns of their own: `Attribute 1 name`, `Attribute 1 value(s)`."""
    parts: dict[tuple[str, str], dict[str, Column]] = {}
    for column in found:
        if not column.forced and (match := _PART.fullmatch(simple(column.name))):
            *base, kind = f"{match['base']} {match['kind'] or ''}".split()
            if " ".join(base) in _PARTS and kind in _KINDS:
                parts.setdefault((" ".join(base), match["n"]), {})[_KINDS[kind]] = column
    read = {}
    for pair in parts.values():
        if len(pair) == 2:
            value, name = pair["value"].name, pair["name"].name
            read[value], read[name] = Column(value, "attribute", named_by=name), Column(name, "name")
    return [read.get(column.name, column) for column in found]


def _one_currency(found: list[Column], wanted: str | None) -> tuple[list[Column], list[str]]:
    """Price columns of one currency stay; those in others fill nothing."""
    prices = [column for column in found if column.field == "price"]
    if not prices:
        return found, []
    codes = list(dict.fromkeys(c.currency for c in prices))
    likeliest = min(prices, key=lambda c: (c.rank, c.currency is not None))
    code = wanted if wanted is not None and wanted in codes else likeliest.currency
    notes = []
    if len(codes) > 1:
        taken = f"{code} is taken" if code else "the column without a currency is taken"
        named = ", ".join(c for c in codes if c)
        notes.append(f"there are prices in {named}: {taken}; --currency names another")
    chosen = [c for c in prices if c.currency == code]
    if all(c.rank >= LEAST for c in chosen):
        notes.append(f"the price is the lowest of a range ('{chosen[0].name}')")
    return [
        replace(c, field="extra", rank=0, forced=False) if c.field == "price" and c.currency != code else c
        for c in found
    ], notes


def _one_language(found: list[Column]) -> tuple[list[Column], list[str]]:
    """Columns of one language stay, and those without; those in others fill nothing."""
    spoken = [c for c in found if c.language]
    languages = list(dict.fromkeys(c.language for c in sorted(spoken, key=lambda c: c.field != "title")))
    notes = []
    if len(languages) > 1:
        field = next(c.field for c in spoken if c.language == languages[0])
        shown = ", ".join(map(str, languages))
        notes.append(
            f"there are texts in {shown}: {languages[0]} is taken; --map {field}=COLUMN names another"
        )
    return [Column(c.name, "extra") if c.language not in (None, *languages[:1]) else c for c in found], notes
