"""Filters, structured and written, against plain Python over rows whose values look like SQL."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel, product, table
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from moonshelf.attributes import canonical_key, names_of, normalise_value
from moonshelf.catalogue import Catalogue
from moonshelf.catalogue.filters import (
    ATTRIBUTES,
    COLUMNS,
    EXACT,
    FIELDS,
    MAX_COMPARISONS,
    MAX_LOOKUPS,
    PAIRS,
    Condition,
    to_condition,
)
from moonshelf.catalogue.rows import WRITTEN
from moonshelf.catalogue.where import parse
from moonshelf.errors import UserError

HOSTILE = [
    "it's", "''", "'", '"', "%", "_", "a%b", "a_b", "\\", "\\'", "a\\", "a\nb", "a\n", "x; --", "/* x */",
    "?", "$1", "a > b", "a >", "> b", "a", "a.b", "a|b", "(a", "[a]", "^a", "a$", "a b", "a\u2028b",
    "Straße", "STRASSE", "e\u0301", "é", "日本 > 靴", "🦊", "\\x{61}", "\\Q", "#", "&&", "~~", "{2}",
    "NULL", "' OR '1'='1", "\x01", "", "Navy", "navy blue", "Plain", "solid", "grey", "Gray",
    "multi-color", "i", "I", "ı", 'x", "care label": "y', '"}', "ΟΔΟΣ",
]  # fmt: skip
KEYS = ["Sole type", "soleType", "care_label", 'q"uote', "neck", "collar", "a'b", "back\\", "absent"]
Row = dict[str, Any]
Test = Callable[[Row], bool | None]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> tuple[Any, dict[str, Row]]:
    """A store of products whose fields are hostile values, each in several places, and its rows."""
    products = []
    for i, value in enumerate(HOSTILE):
        other = HOSTILE[(7 * i + 3) % len(HOSTILE)]
        attributes = dict(Color=value, fabric=other, pattern=value, gender=other, size=value)
        attributes |= {KEYS[i % 8]: value, KEYS[(i + 3) % 8]: other} if i % 3 else {}
        products.append(
            product(
                i,
                brand=value if i % 5 else None,
                category=tuple(part for part in (value, other) if part)[: 1 + i % 3],
                attributes=attributes,
                price=None if i % 7 == 0 else i / 3,
                availability=other,
                language=value,
                mpn=other if i % 2 else None,
            )
        )
    shelf = Catalogue.create(tmp_path_factory.mktemp("filters") / "shelf", FakeModel(batch=32))
    assert shelf.embed(products, reason="on").new == len(products)
    shelf.index()
    return shelf.store, table(shelf.folder)


# ------------------------------------------------------------------------------------ reference


def one_form(text: str) -> str:
    return "".join(c for c in text.lower() if c not in "_/-" and not (c.isspace() and c > "\x1f"))


def own_column(column: str, name: str) -> str | None:
    """The column that an attribute has beside the JSON."""
    if column == "attributes":
        return name if name in ATTRIBUTES else None
    return f"written_{name}" if name in WRITTEN else None


def value_of(row: Row, column: str, key: str | None = None) -> Any:
    if key is None:
        return row[column]
    name = canonical_key(key)
    if own := own_column(column, name):
        return row[own]
    names = {one_form(one) for one in names_of(name)}
    for written, value in sorted(json.loads(row[column]).items()):
        if one_form(written) in names:
            return one_form(value)
    return None


def given_form(column: str, key: str | None, value: Any) -> Any:
    name = column.removeprefix("written_") if key is None else canonical_key(key)
    if isinstance(value, str) and (key is not None or name in ATTRIBUTES or name != column):
        value = normalise_value(name, value)
        return value if key is None or own_column(column, name) else one_form(value)
    return value


def passes(row: Row, filters: dict[str, Any]) -> bool:
    return all(_passes(row, name, given) for name, given in filters.items() if given not in (None, [], {}))


def _passes(row: Row, name: str, given: Any) -> bool:
    if name == "category":
        return any(row[name] == value or row[name].startswith(value + " > ") for value in given)
    if name in PAIRS:
        return all(
            value_of(row, name, key) in [given_form(name, key, value) for value in values]
            for key, values in given.items()
        )
    if name in ("price_min", "price_max"):
        price = row["price"]
        return price is not None and (price >= given if name == "price_min" else price <= given)
    if name == "missing":
        return all(row[column] in (None, "") for column in given)
    if name == "present":
        return not any(row[column] in (None, "") for column in given)
    if name == "rationale_valid":
        return row[name] == given
    if name in ("any_of", "none_of"):
        return any(passes(row, one) for one in given) == (name == "any_of")
    return row[name] in [given_form(name, None, value) for value in given]


def few_lookups(make: Callable[[Any], Condition | None], given: Any) -> Any:
    try:
        return make(given)
    except UserError as error:
        assert "attributes by key" in str(error)
        reject()


def agree(rows: tuple[Any, dict[str, Row]], where: Condition, test: Test) -> None:
    store, stored = rows
    expected = sorted(row["key"] for row in stored.values() if test(row))
    assert sorted(store.keys_where(where).tolist()) == expected, where.sql


# ------------------------------------------------------------------------------------ structured

PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
VALUE = st.sampled_from(HOSTILE) | PLAIN
VALUES = st.lists(
    VALUE | st.tuples(st.sampled_from(HOSTILE), st.sampled_from(HOSTILE)).map(" > ".join), max_size=6
)
PRICES = st.floats(0, 20) | st.sampled_from([5e-324, 1e308, -0.0, 1 / 3])
SOME = st.lists(VALUE, min_size=1, max_size=4)
COLUMN = st.sampled_from(COLUMNS)
TERMS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys((*FIELDS, *EXACT), VALUES),
        "price_min": PRICES,
        "price_max": PRICES,
        **dict.fromkeys(PAIRS, st.dictionaries(st.sampled_from([*KEYS, "Color"]), SOME, max_size=1)),
        "rationale_valid": st.booleans(),
        "missing": st.lists(COLUMN, max_size=2),
        "present": st.lists(COLUMN, max_size=2),
    },
).map(lambda terms: dict(list(terms.items())[:3]))
NAMED = TERMS.filter(lambda terms: any(given not in ([], {}) for given in terms.values()))
FILTERS = st.builds(
    lambda terms, any_of, none_of: {**terms, "any_of": any_of, "none_of": none_of},
    TERMS, st.lists(NAMED, max_size=3), st.lists(NAMED, max_size=3),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(FILTERS)
@example({"category": ["a"]})
@example({"category": HOSTILE, "brand": HOSTILE, "size": HOSTILE, "language": HOSTILE, "price_min": 0.0})
@example({"none_of": [{"brand": HOSTILE}]})
@example({"attributes": {"sole-type": HOSTILE}, "price_max": 9.0})
def test_structured_filters_and_python_agree(rows, filters):
    where = few_lookups(to_condition, filters)
    if where is None:
        assert not any(given not in (None, [], {}) for given in filters.values())
    else:
        agree(rows, where, lambda row: passes(row, filters))


def test_each_value_finds_its_own_row(rows):
    """What the property test does with luck: every hostile value alone, in the field and as a parent."""
    for value in HOSTILE:
        for filters in ({"brand": [value]}, {"category": [value]}, {"attributes": {"soletype": [value]}}):
            agree(rows, to_condition(filters), lambda row, filters=filters: passes(row, filters))


def test_long_lists_are_taken_by_every_way_of_searching(rows):
    store, stored = rows
    values = [f"{'?;-🦊' * 120} {i}" for i in range(99)]
    filters = {name: [*values, "a"] for name in FIELDS} | {"price_min": 0.0, "price_max": 1e6}
    filters["size"].append("Navy")
    some = {name: filters[name] for name in ("category", "brand", "price_min", "price_max")}
    some["attributes"] = {"neck": [*values, *HOSTILE], "sole type": values}
    some = {"any_of": [some, {"brand": [*values, *HOSTILE], "price_min": 0.0}]}
    where = to_condition(some)
    assert where is not None
    expected = {row["key"] for row in stored.values() if passes(row, some)}
    assert expected and set(store.keys_where(where).tolist()) == expected
    vector = np.array(next(iter(stored.values()))["vector"], np.float32)
    assert {key for key, _ in store.nearest(vector, len(stored), where)} == expected
    assert {key for key, _ in store.full_text("product shoe boot mug a", len(stored), where)} <= expected
    assert store.keys_where(to_condition(filters)).tolist() == []


def test_what_no_column_can_hold_is_said():
    for value in ("a\0b", "half a pair \ud800"):
        for name in FIELDS:
            with pytest.raises(UserError, match=f"filter '?{name}"):
                to_condition({name: [value]})
    with pytest.raises(UserError, match="not valid Unicode"):
        to_condition({"attributes": {"\ud800": ["x"]}})
    for filters, message in (
        ({"title": ["x"]}, "no filter 'title'"),
        ({"price_min": float("nan")}, "finite"),
        ({"missing": ["vector"]}, "no column vector"),
        ({"any_of": [{}]}, "any_of.0 of the filters names nothing"),
        ({"none_of": [{"brand": ["x"], "colour": ["y"]}] * 51}, f"at most {MAX_COMPARISONS} comparisons"),
        ({"any_of": [{"attributes": {"sole": ["x"]}}] * (MAX_LOOKUPS + 1)}, "attributes by key"),
        ({"brand": ["x" * 500 + str(i) for i in range(1000)], "mpn": ["y" * 999] * 600}, None),
        ({name: [f"{i}" + "x" * 1999 for i in range(100)] for name in (*FIELDS, *EXACT)}, "characters"),
    ):
        if message is None:
            assert to_condition(filters)
        else:
            with pytest.raises(UserError, match=message):
                to_condition(filters)
    assert to_condition({"brand": [], "any_of": [], "price_min": None}) is None


# --------------------------------------------------------------------------------------- written

SIGNS = {"=": operator.eq, "!=": operator.ne, "<>": operator.ne, "<": operator.lt, "<=": operator.le,
         ">": operator.gt, ">=": operator.ge}  # fmt: skip
PIECES = ["%", "_", "a", "'", "x;", " ", '"', "Ο"]  # of a pattern
TEXTS = [name for name in COLUMNS if name not in ("price", "rationale_valid", "rationale", "description")]


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def matches(pattern: str) -> re.Pattern[str]:
    return re.compile("".join({"%": ".*", "_": "."}.get(c, re.escape(c)) for c in pattern), re.DOTALL)


@st.composite
def comparisons(draw) -> tuple[str, Test]:
    """A comparison as text, and what it says of a row: True, False, or None as SQL has it for nulls."""
    key = None
    if draw(st.integers(0, 3)) == 0:
        column, key = draw(st.sampled_from(PAIRS)), draw(st.sampled_from([*KEYS, "Colour"]))
        name = f"{column}[{quoted(key)}]"
    else:
        column = draw(st.sampled_from(["price", "brand", "mpn", *TEXTS]))
        name = draw(st.sampled_from([column, column.upper()]))
    number = column == "price"
    value = PRICES if number else VALUE
    text = repr if number else quoted

    def about(test: Callable[[Any], bool]) -> Test:
        return lambda row: None if (held := value_of(row, column, key)) is None else test(held)

    def form(given: Any) -> Any:
        return given_form(column, key, given)

    looked_up = key is not None and not own_column(column, canonical_key(key))
    kind = draw(st.sampled_from(["sign", "in", "null", "like", *([] if looked_up else ["between"])]))
    no = draw(st.booleans())
    word = draw(st.sampled_from([" NOT ", " not  "])) if no else " "
    if kind == "sign":
        sign = draw(st.sampled_from(["=", "!=", "<>"] if looked_up else sorted(SIGNS)))
        one = draw(value)
        return f"{name}{sign}{text(one)}", about(lambda held: SIGNS[sign](held, form(one)))
    if kind == "in":
        some = draw(st.lists(value, min_size=1, max_size=4))
        listed = ", ".join(map(text, some))
        return f"{name}{word}IN ({listed})", about(lambda held: (held in map(form, some)) != no)
    if kind == "between":
        low, high = draw(value), draw(value)
        return (
            f"{name}{word}between {text(low)} and {text(high)}",
            about(lambda held: (form(low) <= held <= form(high)) != no),
        )
    if kind == "null" or number:
        return f"{name} is{word}null", lambda row: (value_of(row, column, key) is None) != no
    pieces = [piece for piece in PIECES if piece != "_" or not looked_up]
    pattern = "".join(draw(st.lists(st.sampled_from(pieces), max_size=4)))
    fits = matches(one_form(pattern) if looked_up else pattern).fullmatch
    return f"{name}{word}LIKE {quoted(pattern)}", about(lambda held: bool(fits(held)) != no)


def either(tests: list[Test]) -> Test:
    def test(row: Row) -> bool | None:
        found = [one(row) for one in tests]
        return True if True in found else None if None in found else False

    return test


def turned(test: Test) -> Test:
    return lambda row: None if (found := test(row)) is None else not found


CONDITIONS: st.SearchStrategy[tuple[str, Test]] = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        inner.map(lambda one: (f"NOT ({one[0]})", turned(one[1]))),
        st.lists(inner, min_size=2, max_size=4).map(
            lambda some: (
                " or ".join(f"({text})" for text, _ in some),
                either([test for _, test in some]),
            )
        ),
        st.lists(inner, min_size=2, max_size=4).map(
            lambda some: (
                " AND\n".join(f"( {text})" for text, _ in some),
                turned(either([turned(test) for _, test in some])),
            )
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=120, deadline=None)
@given(CONDITIONS)
def test_written_conditions_and_python_agree(rows, condition):
    text, test = condition
    if any(c in text for c in "\\"):
        return  # LIKE's escapes are below
    agree(rows, few_lookups(parse, text), test)


def test_and_binds_closer_than_or_and_not_closest(rows):
    agree(
        rows,
        parse("price < 3 OR NOT price < 10 AND brand = 'a' or attributes.colour = 'NAVY'"),
        lambda row: (
            (row["price"] is not None and row["price"] < 3)
            or (row["price"] is not None and row["price"] >= 10 and row["brand"] == "a")
            or row["colour"] == "navy blue"
        ),
    )
    for pattern, held in ((r"a\%b", "a%b"), (r"a\_b", "a_b"), (r"a\\", "a\\")):
        agree(rows, parse(f"mpn LIKE '{pattern}'"), lambda row, held=held: row["mpn"] == held)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("true) OR (true", ") at character 5 is not expected"),
        ("array_length(range(0, 1000000000)) > 0", "( at character 13"),
        ("lpad('a', 2000000000, 'b') = title", "( at character 5"),
        ("title = upper('x')", "upper at character 9"),
        ("price < price", "price at character 9"),
        ("price + 1 > 2", "+ at character 7"),
        ("price < 5; DROP TABLE products", "; at character 10"),
        ("title = 'a' -- b", "- at character 13"),
        ("title = /* x */ 'a'", "/ at character 9"),
        ("price < $1", "$ at character 9"),
        ("price <", "breaks off"),
        ("(price < 1", "breaks off"),
        ("title = 'x", "quote at character 9 is not closed"),
        ("key = 5", "no column key"),
        ("vector IS NULL", "no column vector"),
        ("title.x = 'a'", "title has no parts"),
        ("price < 'abc'", "price is a number"),
        ("attributes.weight < '9'", "an attribute by key is compared by ="),
        ("gtin = 4006381333931", "gtin is text"),
        ("price LIKE '1%'", "price is no text"),
        ("attributes.neck LIKE 'a_'", "takes % only"),
        ("rationale_valid = 'x'", "true or false"),
        ("price < 1e999", "finite"),
        ("title", "compare title"),
        ("", "it is empty"),
        ("price > 1" + " OR price > 1" * 1_000, "at most 100 comparisons"),
        ("NOT " * 2_000 + "price > 1", "levels of nesting"),
        ("(" * 30_000, "characters, at most"),
        ("title IN (" + "'a'," * 2_000 + "'b')", "1 to 1,000 values"),
        (f"title LIKE '{'%a' * 400}'", "at most 500 characters"),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_said_in_one_sentence(text, reason):
    with pytest.raises(UserError) as error:
        parse(text)
    said = str(error.value)
    assert reason in said and "Columns: id, title" in said and "\n" not in said and len(said) < 1000


SQL = """price title 'red' < > = ( ) AND OR NOT 1 LIKE '% -- ; * IN NULL CASE WHEN CAST vector [0] :: / e9
BETWEEN " ` regexp_like , attributes . ['x'] true key IS"""
TOKENS = st.lists(st.sampled_from(SQL.split()), max_size=12).map(" ".join)
STRING = re.compile(r"'(?:[^']|'')*'")
OURS = re.compile(
    r"[(), ]|AND|OR|NOT|IN|I?LIKE|IS|NULL|TRUE|true|false|[<>!]?=|[<>]|-?[\d.]+(?:e[+-]?\d+)?|"
    + "|".join(sorted(COLUMNS, key=len, reverse=True))
    + "|nullif|regexp_replace|lower"
)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | TOKENS | CONDITIONS.map(lambda one: one[0]))
def test_nothing_of_a_text_but_its_values_reaches_the_store(text):
    try:
        sql = parse(text).sql
    except UserError as error:
        assert "Columns:" in str(error)
    else:
        assert OURS.sub("", STRING.sub("", sql)) == ""


@pytest.mark.parametrize("way", ["keys_where", "count", "scan", "nearest", "full_text"])
def test_the_store_takes_no_text_as_a_condition(rows, way):
    calls = {
        "keys_where": lambda s: s.keys_where("true"), "count": lambda s: s.count("true"),
        "scan": lambda s: s.scan(["id"], "true"), "full_text": lambda s: s.full_text("a", 3, "true"),
        "nearest": lambda s: s.nearest(np.zeros(s.manifest.dim, np.float32), 3, "true"),
    }  # fmt: skip
    with pytest.raises(AttributeError):
        calls[way](rows[0])
