"""Structured filters against a plain Python filter, over rows whose values look like SQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fake_model import FakeModel, product, table
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moonshelf.attributes import normalise_value
from moonshelf.catalogue import Catalogue
from moonshelf.catalogue.filters import ATTRIBUTES, FIELDS, to_sql
from moonshelf.errors import UserError

HOSTILE = [
    "it's", "''", "'", '"', "%", "_", "a%b", "a_b", "\\", "\\'", "a\\", "a\nb", "a\n", "x; --", "/* x */",
    "?", "$1", "a > b", "a >", "> b", "a", "a.b", "a|b", "(a", "[a]", "^a", "a$", "a b", "a\u2028b",
    "Straße", "STRASSE", "e\u0301", "é", "日本 > 靴", "🦊", "\\x{61}", "\\Q", "#", "&&", "~~", "{2}",
    "NULL", "' OR '1'='1", "\x01", "", "Navy", "navy blue", "Plain", "solid", "grey", "Gray",
    "multi-color", "i", "I", "ı",
]  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> tuple[Any, dict[str, dict[str, Any]]]:
    """A store of products whose fields are hostile values, each in several places, and its rows."""
    folder = tmp_path_factory.mktemp("filters")
    products = []
    for i, value in enumerate(HOSTILE):
        other = HOSTILE[(7 * i + 3) % len(HOSTILE)]
        products.append(
            product(
                i,
                brand=value if i % 5 else None,
                category=tuple(part for part in (value, other) if part)[: 1 + i % 3],
                attributes=dict(Color=value, fabric=other, pattern=value, gender=other, size=value),
                price=None if i % 7 == 0 else i / 3,
                availability=other,
                language=value,
            )
        )
    shelf = Catalogue.create(Path(folder) / "shelf", FakeModel(batch=32))
    assert shelf.embed(products).new == len(products)
    return shelf.store, table(shelf.folder)


def passes(row: dict[str, Any], filters: dict[str, list[str]], low: float | None, high: float | None) -> bool:
    for name, values in filters.items():
        stored = row[name]
        if values and stored is None:
            return False
        if name == "category":
            fits = any(stored == value or stored.startswith(value + " > ") for value in values)
        else:
            fits = stored in [normalise_value(name, v) if name in ATTRIBUTES else v for v in values]
        if values and not fits:
            return False
    price = row["price"]
    if low is not None and (price is None or price < low):
        return False
    return high is None or (price is not None and price <= high)


VALUES = st.lists(
    st.one_of(
        st.sampled_from(HOSTILE),
        st.tuples(st.sampled_from(HOSTILE), st.sampled_from(HOSTILE)).map(" > ".join),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    ),
    max_size=6,
)
PRICES = st.none() | st.floats(0, 20) | st.sampled_from([5e-324, 1e308, -0.0, 1 / 3])


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3), PRICES, PRICES)
@example({"category": ["a"]}, None, None)
@example({"category": HOSTILE, "brand": HOSTILE, "size": HOSTILE, "language": HOSTILE}, 0.0, 1e9)
def test_sql_and_python_agree(rows, filters, low, high):
    store, stored = rows
    where = to_sql(filters, low, high)
    expected = sorted(row["key"] for row in stored.values() if passes(row, filters, low, high))
    if where is None:
        assert not any(filters.values()) and low is None and high is None
        assert len(expected) == len(stored)
    else:
        assert sorted(store.keys_where(where).tolist()) == expected


def test_each_value_finds_its_own_row(rows):
    """What the property test does with luck: every hostile value alone, in the field and as a parent."""
    store, stored = rows
    for value in HOSTILE:
        for name in ("brand", "category"):
            expected = sorted(
                row["key"] for row in stored.values() if passes(row, {name: [value]}, None, None)
            )
            assert sorted(store.keys_where(to_sql({name: [value]}) or "").tolist()) == expected


def test_long_lists_are_taken_by_every_way_of_searching(rows):
    store, stored = rows
    values = [f"{'?;-🦊' * 120} {i}" for i in range(99)]
    filters = {name: [*values, "a"] for name in FIELDS}
    filters["size"].append("Navy")
    where = to_sql({"category": filters["category"], "brand": filters["brand"]}, 0.0, 1e6)
    assert where is not None
    expected = {row["key"] for row in stored.values() if row["brand"] == "a" and row["price"] is not None}
    expected &= {row["key"] for row in stored.values() if (row["category"] + " > ").startswith("a > ")}
    assert set(store.keys_where(where).tolist()) == expected
    vector = next(iter(stored.values()))["vector"]
    near = store.nearest(pa.array(vector, pa.float32()).to_numpy(), len(stored), where)
    assert {key for key, _ in near} == expected
    assert store.keys_where(to_sql(filters, 0.0, 1e6) or "").tolist() == []


def test_what_no_column_can_hold_is_said():
    for value in ("a\0b", "half a pair \ud800"):
        for name in FIELDS:
            with pytest.raises(UserError, match=name if name not in ATTRIBUTES else "filter"):
                to_sql({name: [value]})
    with pytest.raises(UserError, match="no filter 'id'"):
        to_sql({"id": ["x"]})
    with pytest.raises(UserError, match="finite"):
        to_sql({}, float("nan"))
    assert to_sql({"brand": []}) is None
