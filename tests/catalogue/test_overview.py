"""The dashboard's numbers against counts made row by row, and what counts as a conflict."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from fake_model import FakeModel, product, table
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moonshelf.catalogue import Catalogue, overview
from moonshelf.catalogue.commits import Writer
from moonshelf.catalogue.filters import to_condition
from moonshelf.catalogue.matching import families
from moonshelf.catalogue.rows import build_row, prepare_row, to_json
from moonshelf.product import Product


def put(shelf: Catalogue, one: Product, said: str | None, valid: bool = True) -> None:
    """Store a product with the rationale `said`."""
    model = FakeModel()
    found = prepare_row(one, model.prompt, "on", shelf.store.hashes([one.id]).get(one.id))
    rationale = f"<think>{said}</think>" if said else ""
    vector = model.encode([found.product]).vectors[0]
    Writer(shelf.store).commit([build_row(found, vector, (0.5, 0.25, 0.25), rationale, valid, 5)])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Catalogue:
    catalogue = Catalogue.create(tmp_path_factory.mktemp("overview") / "shelf", FakeModel(batch=64))
    catalogue.embed(
        [product(i, category=("things", "home", ("mug", "bag", "lamp")[i % 3])) for i in range(30)]
    )
    put(catalogue, product(30, attributes={"Color": "Red"}, images=()), "category: mug; colour: green")
    put(catalogue, product(31, attributes={"Color": "Navy"}), "colour: blue")
    put(catalogue, product(32, attributes={}, title="striped yellow bag"), "colour: purple; pattern: solid")
    put(catalogue, product(33, attributes={"Color": "Red"}), "colour: green", valid=False)
    put(catalogue, product(34, price=None, brand="", category=(), title="", attributes={}), 'note: a "quote"')
    return catalogue


def test_facets_count_every_row_that_passes(shelf):
    rows = table(shelf.folder).values()
    found = overview.facets(shelf.store)
    assert found.total == 35 and (found.price_min, found.price_max) == (0.0, 33.0)
    assert dict(found.fields["brand"]) == {
        brand: sum(row["brand"] == brand for row in rows) for brand in ("Acme", "Bolt")
    }
    assert found.fields["category"][0] == ("things", 34)
    assert dict(found.fields["category"])["things > home"] == 30
    assert dict(found.fields["category"])["things > home > mug"] == 10
    where = to_condition({"category": ["things > home > mug"], "colour": ["red"], "price_max": 20})
    assert where is not None
    some = overview.facets(shelf.store, where)
    assert some.total == len(shelf.store.keys_where(where)) == 7
    assert dict(some.fields["colour"]) == {"red": 7} and some.price_max == 18.0
    none = overview.facets(shelf.store, to_condition({"price_min": 1e9}))
    assert (none.total, none.price_min, none.fields["brand"]) == (0, None, [])


def test_the_dashboard_agrees_with_a_count_of_the_rows(shelf):
    rows = list(table(shelf.folder).values())
    found = overview.dashboard(shelf.store)
    assert found.products == 35 and found.with_picture == sum(row["pictures"] > 0 for row in rows) == 34
    assert found.reasoned == 5 and found.rationales_valid == 4
    for name, count in found.coverage:
        if name != "picture":
            assert count == sum(row[name] not in (None, "") for row in rows), name
    assert [count for _, count in found.coverage[1:]] == sorted(
        (c for _, c in found.coverage[1:]), reverse=True
    )
    assert found.weights == pytest.approx(
        [sum(row[f"weight_{n}"] for row in rows) / 35 for n in ("image", "text", "rationale")]
    )
    assert (found.fingerprint, found.index, found.store_version) == ("fake-1", None, shelf.store.version)
    assert found.conflicts_total == 4
    assert [(c.id, c.field, c.feed, c.model) for c in found.conflicts] == [
        ("p30", "category", "things > shoe", "mug"),
        ("p30", "colour", "red", "green"),
        ("p32", "colour", "yellow", "purple"),
        ("p32", "pattern", "striped", "solid"),
    ]


def test_an_empty_catalogue_has_an_overview(tmp_path):
    catalogue = Catalogue.create(tmp_path / "shelf", FakeModel())
    catalogue.embed([Product(id="nothing")])
    found = overview.dashboard(catalogue.store)
    assert (found.products, found.weights, found.categories, found.conflicts) == (0, None, [], [])
    assert found.broken_total == 1 and found.broken[0].id == "nothing"
    assert overview.facets(catalogue.store).total == 0


def test_rejects_are_read_with_suspicion(tmp_path):
    assert overview.rejects(tmp_path) == (0, [])
    good = {"row": 3, "field": "images", "reason": "broken", "id": "a", "fatal": False}
    lines = [
        json.dumps(good),
        json.dumps({**good, "field": "price"}),  # a remark that cost neither row nor picture
        json.dumps({**good, "field": "row", "fatal": True, "id": None}),
        "not JSON",
        json.dumps({**good, "id": 7}),
        json.dumps([1]),
        "[" * 100_000,
        json.dumps(good)[:-3],
    ]
    (tmp_path / "rejects.jsonl").write_bytes("\n".join(lines).encode() + b"\xff\n")
    total, found = overview.rejects(tmp_path)
    assert total == 2 and [(p.field, p.fatal) for p in found] == [("images", False), ("row", True)]
    assert overview.rejects(tmp_path, most=1)[0] == 2


@pytest.mark.parametrize(
    ("field", "record", "said"),
    [
        ("colour", "red", "green"),
        ("colour", "Black", "yellow"),
        ("colour", "dark blue", "red"),
        ("colour", "red/white", "green"),
        ("material", "leather", "cotton"),
        ("material", "solid wood", "ceramic"),
        ("pattern", "solid", "floral"),
    ],
)
def test_values_that_conflict(field, record, said):
    assert families.differ(field, record, said) and families.differ(field, said, record)


@pytest.mark.parametrize(
    ("field", "record", "said"),
    [
        ("colour", "navy", "blue"),
        ("colour", "Grey", "gray"),
        ("colour", "light blue", "blue"),
        ("colour", "navy blue", "black"),  # which of the two, a photograph seldom tells
        ("colour", "red and white", "white"),
        ("colour", "multi", "red"),
        ("colour", "galaxy dust", "red"),  # unknown words are no evidence
        ("colour", "rot", "green"),
        ("colour", "", "green"),
        ("material", "faux leather", "leather"),
        ("material", "polyester", "cotton"),
        ("material", "60% cotton, 40% viscose", "wool"),
        ("pattern", "plain", "solid"),
        ("pattern", "printed", "striped"),
    ],
)
def test_near_values_do_not_conflict(field, record, said):
    assert not families.differ(field, record, said) and not families.differ(field, said, record)


def test_categories_conflict_only_within_the_catalogues_own_tree():
    leaves = {overview.leaf_form(leaf) for leaf in ("T-shirts", "Tops", "Sandals", "Crop tops")}
    assert overview.categories_differ("Apparel > T-shirts", "shoes > sandals", leaves)
    for record, said in (
        ("Apparel > T-shirts", "apparel > tshirt"),
        ("Apparel > T-shirts", "footwear > clogs"),  # no leaf here: another taxonomy, not another product
        ("Apparel > Tops > T-shirts", "apparel > tops"),
        ("Apparel > Tops", "apparel > crop tops"),
        ("", "shoes > sandals"),
    ):
        assert not overview.categories_differ(record, said, leaves)


KEYS = st.sampled_from(["colour", "material", "category", 'x "colour', "my colour"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, st.text(max_size=12), max_size=4))
@example({"colour": '"', "material": "\\"})
@example({"category": '{"colour": "red"}, "colour": "blue"', "material": "x"})
def test_reading_json_by_column_reads_what_json_does(pairs):
    column = pa.chunked_array([[to_json(pairs), "{}", to_json({"colour": "red"})]], pa.string())
    for field in ("colour", "material", "category"):
        expected = [pairs.get(field), None, "red" if field == "colour" else None]
        assert overview.reasoned(column, field).to_pylist() == expected


def test_only_the_first_conflicts_are_listed(tmp_path: Path):
    n = 500
    rows = pa.table(
        {
            "id": [f"p{i:04}" for i in range(n)],
            "title": ["a thing"] * n,
            "category": ["things > mug"] * n,
            "reasoned_attributes": [to_json({"colour": "red" if i % 2 else "green"}) for i in range(n)],
            "rationale_valid": [True] * n,
            "colour": ["red"] * n,
            "material": pa.nulls(n, pa.string()),
            "pattern": pa.nulls(n, pa.string()),
        }
    )
    total, some = overview.find_conflicts(rows, 3)
    assert total == n // 2 and [c.id for c in some] == ["p0000", "p0002", "p0004"]
