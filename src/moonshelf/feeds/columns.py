"""The column mapper: which column of a feed fills which field of a `Product`.

Names are compared without regard to case, spaces, hyphens and marks (`*Title`, `SKU [Non Editable]`). Several
columns may stand for one field: they are tried in the order of `NAMES`, and the first cell that is not blank
fills the field. So an id that is blank in some rows is taken from the SKU there, and no row is lost. Prices
and languages are the exceptions, because mixing them would be wrong in silence: one currency and one language
are chosen, and the reader says which. Whatever fills nothing is kept in `extra`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moonshelf.attributes import canonical_key, fold
from moonshelf.errors import UserError
from moonshelf.feeds import values
from moonshelf.product import Product

if TYPE_CHECKING:
    from moonshelf.feeds.shops import Shop

# Product field -> names of columns, folded by `attributes.fold`, the most telling first.
NAMES: dict[str, tuple[str, ...]] = {
    "id": (
        "id", "product id", "item id", "offer id", "article id", "listing id", "uniq id", "handle id", "sku",
        "item sku", "seller sku", "product sku", "variant sku", "product code", "product code sku",
        "item code", "article number", "item number", "artikelnummer", "artikel nr", "artnr", "référence",
        "reference", "reference #", "referencia", "riferimento", "artikelnr", "артикул", "custom label",
        "asin", "uid", "code", "url handle",
    ),
    "title": (
        "title", "name", "product name", "product title", "item name", "item title", "product display name",
        "post title", "titel", "produktname", "artikelname", "artikelbezeichnung", "bezeichnung", "titre",
        "nom", "nom du produit", "désignation", "título", "titulo", "nombre", "titolo", "nome", "naam",
        "productnaam", "nazwa", "namn", "navn", "название", "наименование", "text", "caption", "headline",
    ),
    "description": (
        "description", "product description", "long description", "item description", "full description",
        "plain description", "desc", "body", "body html", "details", "beschreibung", "produktbeschreibung",
        "descripción", "descripcion", "descrizione", "descrição", "omschrijving", "opis", "beskrivning",
        "описание", "short description", "summary", "rich text description", "about product",
    ),
    "images": (
        "images", "image", "image link", "image links", "image url", "image urls", "image path",
        "image paths", "img", "img url", "img link", "image src", "photo", "photos", "picture", "pictures",
        "main image", "main image url", "base image", "product image", "product image url", "product images",
        "hosted image urls", "item photo url", "photo url", "photo urls", "picture url", "picture urls",
        "pic url", "media", "bild", "bilder", "bild url", "bildlink", "foto", "imagen", "imagem", "immagine",
        "afbeelding", "image file", "image filename", "filename", "file name", "file", "path", "thumbnail",
    ),
    "category": (
        "category path", "category", "categories", "product category", "product categories",
        "product category tree", "product type", "google product category", "category name", "breadcrumbs",
        "breadcrumb", "taxonomy", "collection", "collections", "kategorie", "kategorien", "warengruppe",
        "catégorie", "categorie", "categoría", "categoria", "kategoria", "категория", "e bay category 1 name",
        "department", "fb product category", "type", "label",
    ),
    "brand": (
        "brand", "brand name", "vendor", "manufacturer", "brand from title", "c:brand", "marke", "hersteller",
        "marque", "fabricant", "marca", "merk", "producent", "бренд",
    ),
    "currency": ("currency", "currency code", "price currency", "währung", "devise", "moneda", "valuta"),
    "language": ("language", "lang", "locale", "content language"),
    "group_id": (
        "group id", "group", "item group id", "product group id", "parent id", "parent sku", "parent asin",
    ),
    "gtin": (
        "gtin", "gtin13", "gtin14", "gtin12", "gtin8", "ean", "ean13", "ean 13", "ean code", "upc", "upc ean",
        "product upc ean", "gtin, upc, ean, or isbn", "p:ean", "p:upc", "barcode", "isbn", "p:isbn",
    ),
    "mpn": ("mpn", "manufacturer part number", "part number", "p:mpn", "c:mpn", "herstellernummer"),
    "link": (
        "link", "url", "product url", "product link", "page url", "permalink", "deeplink", "deep link",
        "lien",
    ),
    "availability": ("availability", "stock status", "in stock", "in stock?"),
    "attributes": ("attributes", "product attributes", "product specifications", "specifications", "specs"),
    "additional": (
        "additional image link", "additional image links", "additional images", "additional image urls",
        "additional image", "gallery", "gallery images", "other images", "extra images",
    ),
    "extra": ("extra",),
}  # fmt: skip
FIELD_OF = {name: (field, rank) for field, names in NAMES.items() for rank, name in enumerate(names)}
ATTRIBUTES = frozenset((
    "colour", "pattern", "material", "gender", "use", "season", "style", "neckline", "sleeve", "heel",
    "handle", "shape", "size", "age group",
))  # fmt: skip
_NUMBERED_IMAGE = re.compile(
    r"((product|item|main|other|additional|extra|gallery|variant) )*(image|img|photo|picture|pic)s?"
    r"( (file|link|url|src|path))*[ #]?\d{1,2}( (link|url|src|path))?"
)
# What may stand in the name of a price column, with how likely it is what a shopper pays now.
_PRICES = {
    "price": 0, "current price": 1, "price amount": 1, "amount": 1, "our price": 1, "price new": 1,
    "new price": 1, "selling price": 1, "preis": 1, "prix": 1, "precio": 1, "prezzo": 1, "prijs": 1,
    "preço": 1, "cena": 1, "pris": 1, "цена": 1, "verkaufspreis": 1, "prix de vente": 1, "final price": 1,
    "discounted price": 2, "sale price": 2, "sales price": 2, "special price": 2, "offer price": 2,
    "regular price": 4, "standard price": 4, "start price": 4, "base price": 4, "list price": 5,
    "retail price": 6, "mrp": 6,
}  # fmt: skip
LEAST = 9  # rank of the lowest price of a range
_LEAST = frozenset(
    ("price min", "min price", "minimum price", "price from", "from price", "lowest price", "low price")
)
_PRICED = re.compile("|".join(sorted({name.split()[-1] for name in _PRICES} | {"price", "prix"})))
_TAXES = {"incl": 0, "included": 0, "including": 0, "gross": 0, "ttc": 0, "brutto": 0,
          "excl": 3, "excluded": 3, "excluding": 3, "net": 3, "ht": 3, "netto": 3}  # fmt: skip
_NO_MATTER = frozenset(("in", "tax", "taxes", "vat", "mwst", "tva", "iva", "value"))
# Codes that are English words: `price_all` is no price in Albanian lek unless it is written in capitals.
_WORDS = frozenset(("ALL", "TOP", "CUP", "PEN", "MOP", "GEL"))
_LANGUAGES = frozenset(
    (
        "ar",
        "bg",
        "cs",
        "da",
        "de",
        "el",
        "en",
        "es",
        "et",
        "fi",
        "fr",
        "he",
        "hr",
        "hu",
        "it",
        "ja",
        "ko",
        "lt",
        "lv",
        "nb",
        "nl",
        "no",
        "pl",
        "pt",
        "ro",
        "ru",
        "sk",
        "sl",
        "sr",
        "sv",
        "tr",
        "uk",
        "zh",
    )
)  # fmt: skip; without Indonesian: `category id` is no category in it
_LOCALISED = frozenset(("title", "description", "category", "link"))
_LOCALE = re.compile(r"(?P<base>.+?) \(?(?P<language>[a-z]{2})(?: (?P<region>[a-z]{2}))?\)?(?: .+)?")
_PART = re.compile(r"(?P<base>[a-z ]+?) ?(?P<n>\d{1,2})(?: (?P<kind>[a-z()]+))?")
_PARTS = frozenset((
    "attribute", "variation", "option", "product option", "additional info", "feature", "property",
    "specification", "spec", "custom field", "product attribute",
))  # fmt: skip
_KINDS = {
    "name": "name", "title": "name", "value": "value", "values": "value", "value(s)": "value",
    "description": "value", "choices": "value",
}  # fmt: skip
# Fields by the names that people give them on the command line.
_ALIASES = {
    "image": "images",
    "sku": "id",
    "name": "title",
    "group": "group_id",
    "ean": "gtin",
    "url": "link",
}


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

    def first(self, field: str) -> Column | None:
        return next((column for column in self.columns if column.field == field), None)


def kept(names: list[str]) -> str:
    """What to say about columns that fill nothing."""
    shown = ", ".join(repr(name[:40]) for name in names[:20])
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"kept in `extra`: {shown}{more}; --map FIELD=COLUMN says what a column is"


def plan_columns(
    names: Iterable[str],
    fields: Mapping[str, str] | None = None,
    *,
    currency: str | None = None,
    shop: Shop | None = None,
) -> Plan:
    """Which column fills what.

    `fields` forces columns (name -> Product field), `currency` says which of several prices is taken, `shop`
    adds the names of a shop's export. Raises UserError if `fields` names what is not there.
    """
    names = list(names)
    forced = forced_fields(names, fields or {})
    found = [
        Column(name, forced[name], -1, forced=True) if name in forced else _column(name, shop)
        for name in names
    ]
    found = _named(found)
    taken = {column.field for column in found if column.forced and column.field != "additional"}
    found = [
        Column(c.name, "extra") if c.field in taken and c.field != "id" and not c.forced else c for c in found
    ]
    found, notes = _one_currency(found, currency)
    found, said = _one_language(found)
    found.sort(key=lambda c: (c.field != "language", c.rank))  # texts in several languages ask for it
    return Plan(tuple(found), tuple(notes + said))


def forced_fields(names: list[str], fields: Mapping[str, str]) -> dict[str, str]:
    """Column -> field of `Product`, as the caller says. Raises UserError for what does not exist."""
    forced = {}
    for wanted, target in fields.items():
        field = _ALIASES.get(target.lower(), target)
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
    """The folded name without marks of exports: `*Title`, `g:title`, `SKU [Non Editable]`."""
    name = re.sub(r"\[[^\]]*\]|#\d+\.value$|^g:|^[*\s]+|[*:\s]+$", " ", name)
    return fold(name)


def is_known(name: str) -> bool:
    """Whether a cell is the name of a column that means something here."""
    return bool(name) and _column(name, None).field != "extra"


def _column(name: str, shop: Shop | None) -> Column:
    folded = simple(name)
    bare = fold(re.sub(r"\([^)]*\)", " ", folded))
    for text in dict.fromkeys((folded, bare)):
        if shop is not None and text in shop.columns:
            return Column(name, shop.columns[text], 0)
        if _NUMBERED_IMAGE.fullmatch(text):
            return Column(name, "additional")
        if text in FIELD_OF:
            field, rank = FIELD_OF[text]
            return Column(name, field, rank)
    if priced := price_column(name):
        return Column(name, "price", priced[0], priced[1])
    match = _LOCALE.fullmatch(folded)
    if match and match["language"] in _LANGUAGES and FIELD_OF.get(match["base"], ("",))[0] in _LOCALISED:
        field, rank = FIELD_OF[match["base"]]
        region = match["region"]
        return Column(name, field, rank, None, match["language"] + (f"-{region.upper()}" if region else ""))
    return Column(name, "attribute" if canonical_key(bare) in ATTRIBUTES else "extra")


def price_column(name: str) -> tuple[int, str | None] | None:
    """(rank, currency) if a column holds a price that a shopper pays; the lowest rank is the likeliest."""
    if not _PRICED.search(name.lower()):
        return None
    code, rank, words = None, 0, []
    name = re.sub(r" \(\d+\)'*$", "", name.removeprefix("g:"))  # a second column of one name
    for word in re.findall(r"[^\s_\-/().:,*\[\]]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)):
        found = values.currency(word) if not word.isalpha() or len(word) == 3 else None
        if found and code is None and not (found in _WORDS and word.islower()):
            code = found
        elif (lower := word.lower()) in _TAXES:
            rank += _TAXES[lower]
        elif lower not in _NO_MATTER:
            words.append(lower)
    text = " ".join(words)
    if text in _LEAST:
        return LEAST + rank, code
    return (_PRICES[text] + rank, code) if text in _PRICES else None


def _named(found: list[Column]) -> list[Column]:
    """Attributes whose names stand in columns of their own: `Attribute 1 name`, `Attribute 1 value(s)`."""
    parts: dict[tuple[str, str], dict[str, str]] = {}
    for column in found:
        if not column.forced and (match := _PART.fullmatch(simple(column.name))):
            *base, kind = f"{match['base']} {match['kind'] or ''}".split()
            if " ".join(base) in _PARTS and kind in _KINDS:
                parts.setdefault((" ".join(base), match["n"]), {})[_KINDS[kind]] = column.name
    pairs = {pair["value"]: pair["name"] for pair in parts.values() if len(pair) == 2}
    names = set(pairs.values())
    return [
        Column(c.name, "attribute", named_by=pairs[c.name]) if c.name in pairs
        else Column(c.name, "name") if c.name in names else c
        for c in found
    ]  # fmt: skip


def _one_currency(found: list[Column], wanted: str | None) -> tuple[list[Column], list[str]]:
    """Price columns of one currency stay; those in others fill nothing."""
    prices = [column for column in found if column.field == "price"]
    if not prices:
        return found, []
    codes = list(dict.fromkeys(c.currency for c in prices))
    likeliest = min(prices, key=lambda c: (c.rank, c.currency is not None))
    code = wanted if wanted is not None and wanted in codes else likeliest.currency
    notes = []
    named = [c for c in codes if c]
    if len(codes) > 1:
        taken = f"{code} is taken" if code else "the column without a currency is taken"
        notes.append(f"there are prices in {', '.join(named)}: {taken}; --currency names another")
    chosen = [c for c in prices if c.currency == code]
    if all(c.rank >= LEAST for c in chosen):
        notes.append(f"the price is the lowest of a range ('{chosen[0].name}')")
    others = {c.name: c.currency for c in prices if c.currency != code}
    return [Column(c.name, "extra", currency=others[c.name]) if c.name in others else c for c in found], notes


def _one_language(found: list[Column]) -> tuple[list[Column], list[str]]:
    """Columns of one language stay, and those without; those in others fill nothing."""
    languages = list(dict.fromkeys(c.language for c in found if c.language and c.field == "title"))
    languages += [c.language for c in found if c.language and c.language not in languages]
    if not languages:
        return found, []
    notes = []
    if len(languages) > 1:
        title = next(c for c in found if c.language == languages[0])
        shown = ", ".join(str(language) for language in languages)
        notes.append(
            f"there are texts in {shown}: {languages[0]} is taken; --map {title.field}=COLUMN names another"
        )
    return [Column(c.name, "extra") if c.language and c.language != languages[0] else c for c in found], notes
