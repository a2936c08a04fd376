"""Search by words: the record before what the model wrote, identifiers however they are typed, filters."""

from __future__ import annotations

import json
import shutil

import pytest
from fake_model import FakeModel, table
from hypothesis import given
from hypothesis import strategies as st
from lancedb.index import FTS

from moonshelf.catalogue import Catalogue
from moonshelf.catalogue.manifest import Manifest
from moonshelf.catalogue.rows import code, codes_in, metadata_of
from moonshelf.catalogue.store import Store
from moonshelf.product import Product

SAID = {
    "cushion": "category: kitchen > coffee mugs > mugs; colour: Navy; material: ceramic; style: mug",
    "mug": "category: home > lamps; colour: tan",
}


class Writing(FakeModel):
    """Writes what it is told for an id."""

    def _part(self, chunk, start, reason):
        part = super()._part(chunk, start, reason)
        if reason == "on":
            part.rationales = [f"<think>{SAID.get(id, 'colour: red')}</think>" for id in part.ids]
        return part


PRODUCTS = [
    Product(id="cushion", title="Printed cushions cover"),
    Product(id="mug", title="Ceramic coffee mug", gtin="04006381333931", mpn="AB-12/34"),
    Product(id="mat", title="Cotton bath mat", mpn="Does not apply", extra={"SKU": "00-MAT 7"}),
    Product(id="2", title="Door curtain", attributes={"Item Code": "c.900"}),
    Product(id="bag-007", title="Canvas bag", extra={"variants": '[{"sku": "BAG-RED-1", "price": "3"}]'}),
]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Catalogue:
    ours = Catalogue.create(tmp_path_factory.mktemp("words") / "shelf", Writing())
    ours.embed(PRODUCTS, reason="on")
    ours.index()
    return ours


def found(shelf: Catalogue, words: str, **options) -> list[str]:
    return [hit.id for hit in shelf.search(words, mode="text", **options).hits]


def test_the_record_comes_before_what_the_model_wrote(shelf):
    assert found(shelf, "mug") == ["mug", "cushion"]
    assert found(shelf, "coffee mugs ceramic") == ["mug", "cushion"]
    assert found(shelf, "mug", written=0.0) == ["mug"]
    assert found(shelf, "lamps") == ["mug"] and found(shelf, "lamps", written=0.0) == []
    assert found(shelf, "category") == [], "the names of what was written are no words of the product"


@pytest.mark.parametrize(
    ("words", "id"),
    [
        ("04006381333931", "mug"), ("4006381333931", "mug"), ("4 006381 333931", "mug"),
        ("gtin 4006381333931", "mug"), ("AB-12/34", "mug"), ("ab1234", "mug"), ("mpn ab 12 34 mug", "mug"),
        ("mat7", "mat"), ("00-MAT 7", "mat"), ("sku MAT-7", "mat"), ("C900", "2"), ("2", "2"), ("02", "2"),
        ("BAG 007", "bag-007"), ("bag007", "bag-007"), ("bag-red-1", "bag-007"), ("cushion", "cushion"),
    ],
)  # fmt: skip
def test_identifiers_are_found_however_they_are_typed(shelf, words, id):
    assert found(shelf, words)[0] == id
    best = shelf.search(words).hits[0]
    assert best.id == id and best.why["code_rank"] == 1, "beside the nearest vectors too"


def test_numbers_among_other_words_are_no_identifiers(shelf):
    assert found(shelf, "2 seater cotton mat") == ["mat"]
    assert found(shelf, "cushions size 7 2024")[0] == "cushion"
    assert shelf.search("does not apply 2").hits[0].why.get("code_rank") is None
    assert "2" not in found(shelf, "2 mugs", where="id <> 'mug'")


CODES = st.text(st.sampled_from("0123456789abcXYZ-_./ "), min_size=1, max_size=20).filter(
    lambda text: any(c.isalnum() for c in text)
)


@given(CODES, st.sampled_from(["", "-", " ", "."]), st.integers(0, 3))
def test_a_code_is_one_however_it_is_written(text, separator, zeros):
    bare = code(text)
    assert bare and code(bare) == bare
    assert code("0" * zeros + separator.join(text.upper())) == bare
    assert codes_in(text)[0] == bare
    assert bare in metadata_of(Product(id=text))["codes"].split()


def test_what_was_written_can_be_filtered(shelf):
    assert found(shelf, "cushion mug", where="written_colour = 'navy blue'") == ["cushion"]
    assert found(shelf, "mug", where="written_category LIKE '%lamps'") == ["mug"]
    assert found(shelf, "mug", where="colour = 'tan'") == [], "the record's own is another column"


def test_a_catalogue_of_an_earlier_version_is_brought_up_to_date(shelf, tmp_path):
    """Its rows lack columns and have the rationale among the record's words."""
    folder = tmp_path / "shelf"
    shutil.copytree(shelf.folder, folder)
    old = Store.open(folder)
    old._table.drop_columns([name for name in old.columns if name == "codes" or name.startswith("written")])
    old._table.update(values_sql={"text": "concat(title, ' ', rationale)"})
    old._table.create_index("text", config=FTS(base_tokenizer="icu"), replace=True)
    record = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**record, "keep_days": 0.0}))
    earlier = Catalogue.open(folder, Writing())
    assert set(found(earlier, "mug")) == {"mug", "cushion"}, "still read"
    earlier.index()
    before = table(folder)
    assert found(Catalogue.open(folder, Writing()), "mug") == ["mug", "cushion"]
    assert found(Catalogue.open(folder, Writing()), "ab1234") == ["mug"]
    assert Manifest.read(folder).keep_days is None
    model = Writing()
    report = Catalogue.create(folder, model).embed(PRODUCTS)
    assert report.metadata_only == 5 and model.asked == []
    after = table(folder)
    assert found(Catalogue.open(folder, model), "mat7") == ["mat"], "what only the feed has"
    assert {id: row["rationale"] for id, row in after.items()} == {
        id: row["rationale"] for id, row in before.items()
    }
    assert Catalogue.create(folder, model).embed(PRODUCTS).unchanged == 5
