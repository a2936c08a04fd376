"""Feed to store: what is redone, what leaves, what is rejected, and what the folder says about it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from fake_model import DIM, FakeModel, picture, product, table
from PIL import Image

from moonshelf.catalogue import Catalogue
from moonshelf.catalogue.manifest import Manifest, preprocessing, writing
from moonshelf.catalogue.rows import key_of
from moonshelf.catalogue.store import Store
from moonshelf.errors import Problem, UserError
from moonshelf.images import decode, perceptual_hash
from moonshelf.product import ImageRef, Product
from moonshelf.prompts import PromptSpec


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def shelf(tmp_path: Path, model: FakeModel) -> Catalogue:
    return Catalogue.create(tmp_path / "shelf", model)


def counts(report) -> dict[str, int]:
    names = ("new", "changed", "metadata_only", "unchanged", "removed", "rejected")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def test_rows_hold_what_the_model_gave_and_what_the_feed_said(shelf, model):
    products = [product(i) for i in range(20)]
    report = shelf.embed(products, reason="on")
    assert counts(report) == {"new": 20}
    assert report.complete and report.rows == 20 and report.reasoning_valid_rate == 1.0
    rows = table(shelf.folder)
    assert set(rows) == {p.id for p in products}
    row = rows["p4"]
    expected = model.encode([products[4]]).vectors[0]
    np.testing.assert_allclose(row["vector"], expected, atol=1e-6)
    assert row["key"] == key_of("p4")
    assert (row["title"], row["price"], row["brand"]) == ("blue desk lamp 4", 4.0, "Acme")
    assert (row["category"], row["category_leaf"]) == ("things > lamp", "lamp")
    assert row["colour"] == "blue" and json.loads(row["attributes"]) == {"Color": "Blue"}
    assert row["rationale"] == "<think>category: 4; colour: red</think>" and row["rationale_valid"]
    assert json.loads(row["reasoned_attributes"]) == {"category": "4", "colour": "red"}
    assert (row["weight_image"], row["weight_text"], row["tokens"], row["pictures"]) == (0.5, 0.5, 9, 1)


def test_a_second_run_asks_the_model_nothing(shelf, model):
    products = [product(i) for i in range(30)]
    shelf.embed(products)
    before = table(shelf.folder)
    model.asked.clear()
    assert counts(shelf.embed(products)) == {"unchanged": 30}
    assert model.asked == [] and table(shelf.folder) == before


def test_each_change_costs_only_what_it_must(shelf, model):
    shelf.embed([product(i) for i in range(10)])
    before = table(shelf.folder)
    model.asked.clear()
    feed = [
        product(0, title="a new title"),
        product(1, price=99.0),
        product(2, images=(ImageRef(data=picture((1, 2, 3))),)),
        product(3, description="the model does not read this", availability="out_of_stock"),
        *[product(i) for i in range(4, 9)],  # 9 has gone
        product(10),
    ]
    report = shelf.embed(feed)
    assert counts(report) == {"new": 1, "changed": 2, "metadata_only": 2, "unchanged": 5, "removed": 1}
    assert sorted(model.asked) == ["p0", "p10", "p2"]
    rows = table(shelf.folder)
    assert "p9" not in rows and rows["p1"]["price"] == 99.0 and rows["p3"]["availability"] == "out_of_stock"
    assert (
        rows["p1"]["vector"] == before["p1"]["vector"]
        and rows["p1"]["thumbnail"] == before["p1"]["thumbnail"]
    )
    assert rows["p0"]["vector"] != before["p0"]["vector"] and rows["p2"]["vector"] != before["p2"]["vector"]
    assert "does not read this" in rows["p3"]["text"]  # full-text search reads it


def test_the_same_picture_from_another_place_is_the_same(shelf, model, tmp_path):
    data = picture()
    shelf.embed([product(0, images=(ImageRef(data=data),))])
    (tmp_path / "a.png").write_bytes(data)
    assert counts(shelf.embed([product(0, images=(ImageRef(path=str(tmp_path / "a.png")),))])) == {
        "unchanged": 1
    }


def test_another_reasoning_mode_redoes_the_rows(shelf, model):
    shelf.embed([product(0), product(1)])
    assert counts(shelf.embed([product(0), product(1)], reason="on")) == {"changed": 2}
    assert Manifest.read(shelf.folder).reason == "on"


def test_the_first_of_a_repeated_id_stays(shelf):
    report = shelf.embed([product(0), product(1), product(0, title="another")])
    assert counts(report) == {"new": 2, "rejected": 1}
    assert table(shelf.folder)["p0"]["title"] == "red running shoe 0"
    [reject] = [json.loads(line) for line in (shelf.folder / "rejects.jsonl").read_text().splitlines()]
    assert (reject["row"], reject["id"], reject["field"], reject["fatal"]) == (3, "p0", "id", True)


def test_broken_pictures_are_never_embedded_as_text_in_silence(shelf, model):
    broken = ImageRef(data=picture(form="JPEG")[:200])
    good = ImageRef(data=picture())
    feed = [product(0, images=(broken,)), product(1, images=(broken, good)), product(2, images=())]
    report = shelf.embed(feed)
    assert counts(report) == {"new": 2, "rejected": 1} and report.warnings == 1
    assert table(shelf.folder)["p1"]["pictures"] == 1 and set(table(shelf.folder)) == {"p1", "p2"}
    assert [p.id for p in report.problems if p.fatal] == ["p0"]
    report = shelf.embed(feed, allow_text_only=True)
    assert counts(report) == {"new": 1, "unchanged": 2}
    assert table(shelf.folder)["p0"]["thumbnail"] is None


def test_a_row_that_turns_bad_keeps_its_last_good_version(shelf, model):
    shelf.embed([product(0), product(1)])
    gone = product(0, images=(ImageRef(path="/nowhere/at/all.png"),))
    report = shelf.embed([gone, Problem(2, "price", "unreadable", "p1")])
    assert counts(report) == {"rejected": 2}
    assert "stays" in report.problems[0].reason
    assert set(table(shelf.folder)) == {"p0", "p1"}


def test_nothing_to_embed_and_bad_vectors_are_rejected(shelf, model):
    model.poison = {"p1"}
    report = shelf.embed([Product(id="empty"), product(1), product(2)])
    assert counts(report) == {"new": 1, "rejected": 2}
    assert {p.id: p.field for p in report.problems} == {"empty": "row", "p1": "vector"}
    stored = np.array([row["vector"] for row in table(shelf.folder).values()])
    assert np.isfinite(stored).all() and np.allclose(np.linalg.norm(stored, axis=1), 1)


def test_text_that_is_no_unicode_costs_one_row(shelf):
    assert counts(shelf.embed([product(0, title="half a pair \ud800"), product(1)])) == {
        "new": 1,
        "rejected": 1,
    }


def test_a_feed_that_breaks_off_removes_nothing(shelf):
    shelf.embed([product(i) for i in range(6)])

    def cut():
        yield product(0, title="changed")
        yield product(7)
        raise UserError("the disk went away")

    with pytest.raises(UserError, match="disk went away"):
        shelf.embed(cut())
    rows = table(shelf.folder)
    assert len(rows) == 7 and rows["p0"]["title"] == "changed"
    with pytest.raises(UserError, match="read only up to row 2"):
        shelf.embed([product(0), Problem(2, "file", "the rest of the table cannot be read")])
    assert len(table(shelf.folder)) == 7
    assert json.loads((shelf.folder / "run.json").read_text())["report"]["complete"] is False


def test_a_feed_without_products_removes_nothing(shelf):
    shelf.embed([product(0)])
    with pytest.raises(UserError, match="none of the 1 products"):
        shelf.embed([Problem(1, "row", "all is bad")])
    assert len(table(shelf.folder)) == 1


def test_what_was_finished_before_a_failure_is_kept(shelf, model):
    model.fail_after = 20
    with pytest.raises(RuntimeError, match="broke"):
        shelf.embed([product(i) for i in range(40)])
    kept = set(table(shelf.folder))
    assert len(kept) == 16  # two whole batches of the fake model
    model.fail_after = None
    model.asked.clear()
    shelf.embed([product(i) for i in range(40)])
    assert not kept & set(model.asked) and len(table(shelf.folder)) == 40


def test_a_folder_refuses_other_models(shelf):
    shelf.embed([product(0)])
    for other, words in (
        (FakeModel("fake-2"), "fake-1"),
        (FakeModel(dim=16), "32 dimensions"),
    ):
        with pytest.raises(UserError, match=words):
            Catalogue.create(shelf.folder, other).embed([product(0)])
        with pytest.raises(UserError, match="embed the feed again"):
            Catalogue.open(shelf.folder, other).search("red shoe")
    other = FakeModel()
    other.prompt = PromptSpec(text_fields=("title", "description"))
    with pytest.raises(UserError, match="preprocessing"):
        Catalogue.open(shelf.folder, other).search("red shoe")
    assert len(table(shelf.folder)) == 1


def test_a_prompt_that_is_as_it_was_fits_folders_of_before():
    """A field that PromptSpec is given, with a default, must not make every catalogue unfit."""
    assert preprocessing(PromptSpec()) == "fbe016add9cd70c9"
    assert preprocessing(PromptSpec(least_confidence=0.5)) != "fbe016add9cd70c9"


def test_a_folder_that_is_no_catalogue_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a catalogue"):
        Store.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Store.open(tmp_path)
    manifest = Manifest(model="fake", fingerprint="fake-1", dim=DIM, preprocessing="x")
    manifest.write(tmp_path, format=99)
    with pytest.raises(UserError, match="format 99"):
        Store.open(tmp_path)
    manifest.write(tmp_path)
    with pytest.raises(UserError, match="holds no products"):
        Store.open(tmp_path)


def test_products_without_a_manifest_are_not_trusted(shelf, model):
    shelf.embed([product(0)])
    (shelf.folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        Catalogue.create(shelf.folder, model).embed([product(0)])


def test_two_writers_do_not_meet(shelf):
    shelf.embed([product(0)])
    with writing(shelf.folder):
        with pytest.raises(UserError, match="another process"):
            shelf.embed([product(0)])
        with pytest.raises(UserError, match="another process"):
            shelf.index()
    shelf.embed([product(0)])  # the lock went with its holder


def test_thumbnails_are_small_and_carry_no_metadata(shelf):
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    big = io.BytesIO()
    Image.new("RGB", (900, 600), (9, 99, 9)).save(big, "JPEG", exif=exif, comment=b"secret comment")
    shelf.embed([product(0, images=(ImageRef(data=big.getvalue()),))])
    data = table(shelf.folder)["p0"]["thumbnail"]
    thumbnail = decode(data)
    assert max(thumbnail.size) == 192 and b"secret" not in data and b"at home" not in data


def test_perceptual_hash_survives_resizing_and_tells_pictures_apart():
    one, other = decode(picture(stripes=5)), decode(picture(stripes=3))
    again = one.resize((96, 128)).convert("L").convert("RGB")
    assert (perceptual_hash(one) ^ perceptual_hash(again)).bit_count() <= 4
    assert (perceptual_hash(one) ^ perceptual_hash(other)).bit_count() > 8
    assert perceptual_hash(decode(picture())) is None  # one flat colour


def test_many_small_updates_do_not_grow_the_folder(shelf):
    products = [product(i) for i in range(60)]
    shelf.embed(products)
    shelf.store.manifest.write(shelf.folder, keep_days=0.0)  # else the last versions stay
    shelf.index()

    def size() -> int:
        return sum(file.stat().st_size for file in shelf.folder.rglob("*") if file.is_file())

    first = size()
    for price in range(4):
        shelf.embed([product(i, price=float(price)) for i in range(60)], shard_rows=20)
    assert size() < 1.5 * first
    assert len(list((shelf.folder / "products.lance" / "_versions").glob("*.manifest"))) <= 2


def test_each_commit_is_announced_once_it_is_durable(shelf, model):
    seen: list[str] = []

    def check(ids: list[str]) -> None:
        assert set(ids) <= set(table(shelf.folder))
        seen.extend(ids)

    shelf.embed([product(i) for i in range(50)], shard_rows=10, on_commit=check)
    assert sorted(seen) == sorted(f"p{i}" for i in range(50))


def test_the_run_is_on_record(tmp_path, model):
    from moonshelf.feeds import write_jsonl

    write_jsonl([product(i) for i in range(5)], tmp_path / "feed.jsonl")
    shelf = Catalogue.create(tmp_path / "shelf", model)
    report = shelf.embed(tmp_path / "feed.jsonl", reason="on")
    assert report.new == 5
    run = json.loads((shelf.folder / "run.json").read_text())
    assert run["fingerprint"] == "fake-1" and run["config"]["reason"] == "on"
    assert len(run["data_sha256"]) == 64 and run["report"]["new"] == 5 and "lancedb" in run["versions"]


def test_mistakes_in_the_call_are_said_before_anything_is_written(tmp_path, model):
    shelf = Catalogue.create(tmp_path / "shelf", model)
    with pytest.raises(UserError, match="reason must be"):
        shelf.embed([product(0)], reason="maybe")
    with pytest.raises(UserError):
        shelf.embed(tmp_path / "missing.jsonl")
    assert not shelf.folder.exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        Catalogue.create(tmp_path / "file", model).embed([product(0)])


def test_a_link_does_not_lead_out_of_the_feeds_folder(shelf, model, tmp_path):
    feed, secret = tmp_path / "feed", tmp_path / "secret.png"
    feed.mkdir()
    secret.write_bytes(picture((200, 0, 0)))
    (feed / "inside.png").write_bytes(picture((0, 200, 0)))
    (feed / "link.png").symlink_to(secret)
    rows = [{"id": name, "title": "cup", "images": [{"path": f"{name}.png"}]} for name in ("inside", "link")]
    (feed / "products.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = shelf.embed(feed / "products.jsonl")
    assert counts(report) == {"new": 1, "rejected": 1}
    assert set(table(shelf.folder)) == {"inside"} and "outside" in report.problems[0].reason
