"""`enrich`: what is suggested and written in each dialect, what goes on, what bad input gets."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from test_taxonomy import shopify

from moonshelf.catalogue import feedback
from moonshelf.enrichment import run as room
from moonshelf.enrichment.categories import Categoriser
from moonshelf.enrichment.likelihood import log_likelihoods
from moonshelf.enrichment.readings import Reader, Reading
from moonshelf.enrichment.run import Options, enrich
from moonshelf.enrichment.suggestions import Calibration, Claim, claims, conflicts, reliability
from moonshelf.enrichment.taxonomy import Taxonomy
from moonshelf.errors import UserError
from moonshelf.feeds import read_feed
from moonshelf.product import ImageRef, Product
from tiny import picture

if TYPE_CHECKING:
    from moonshelf.model.modeling import MoonModel

TITLES = ("red cotton shirt", "blue lamp", "shirt for men", "green shoe")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model that can read would have written: the tiny one writes noise. Pictures are all blue."""

    def fill(self: Reader, fresh: list[Product], found: dict[str, Any]) -> None:
        for one in fresh:
            colour = next((c for c in ("red", "blue", "green") if c in one.title), "blue")
            for view, _ in self._views(one):
                found[one.id].views[view] = {"colour": ("blue" if view == "picture" else colour, 2.0)}
            if self.categoriser:
                found[one.id].candidates, found[one.id].evidence = (
                    ["aa-1-1", "hg"],
                    [[0.0, 1.0, 1.0], [-9.0, 0.0, 0.0]],
                )
        self.computed += len(fresh)

    monkeypatch.setattr(Reader, "_fill", fill)


def feed_of(folder: Path, dialect: str) -> Path:
    """Four products without pictures; the first states its colour, and none anything else."""
    folder.mkdir(exist_ok=True)
    if dialect == "jsonl":
        file = folder / "feed.jsonl"
        rows = [
            {"id": f"p{n}", "title": title, "attributes": {"color": "Maroon"} if n == 0 else {}}
            for n, title in enumerate(TITLES)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file
    header = {
        "merchant": "id title link image_link price availability color",
        "meta": "id title image_link availability price quantity_to_sell_on_facebook color",
        "shopify": "Handle|Title|Product Category|Variant SKU|Variant Price|"
        "Color (product.metafields.shopify.color-pattern)",
        "csv": "Artikel-Nr|name|Colour Name",
    }[dialect]  # fmt: skip
    columns = header.split("|" if "|" in header else " ")
    file = folder / f"feed.{'tsv' if dialect == 'merchant' else 'csv'}"
    with open(file, "w", newline="") as out:
        table = csv.writer(out, "excel-tab" if dialect == "merchant" else "excel")
        table.writerow(columns)
        for n, title in enumerate(TITLES):
            cells = dict.fromkeys(columns, "") | {
                columns[0]: f"p{n}",
                columns[1]: title,
                columns[-1]: "maroon" if n == 0 else "",
            }
            table.writerow([cells[name] for name in columns])
    return file


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines, dialect="excel-tab" if file.suffix == ".tsv" else "excel"))


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize(
    ("dialect", "name", "id", "colour"),
    [
        ("merchant", "supplemental.tsv", "id", "color"),
        ("meta", "supplemental.csv", "id", "color"),
        ("csv", "supplemental.csv", "Artikel-Nr", "Colour Name"),
        ("shopify", "supplemental.csv", "Handle", "Color (product.metafields.shopify.color-pattern)"),
    ],
)
def test_each_dialect_gets_its_own_supplement(
    tmp_path: Path, model: MoonModel, dialect: str, name: str, id: str, colour: str
) -> None:
    feed = feed_of(tmp_path / "in", dialect)
    before, known = feed.read_bytes(), Taxonomy.read(shopify(tmp_path / "t"))
    report = enrich(feed, tmp_path / "out", lambda: model, known, options=Options(accept_above=0.5))
    assert report["dialect"] == dialect and report["products"] == 4 and feed.read_bytes() == before
    rows = {row[id]: row for row in rows_of(tmp_path / "out" / name)}
    assert report["supplemental"] == name and report["supplemental_rows"] == len(rows)
    assert rows["p1"][colour] == "blue" and all(
        not row[colour] for key, row in rows.items() if key == "p0" and dialect != "shopify"
    )
    column, value = {
        "shopify": ("Product Category", "Apparel > Shirts > T-Shirts"),
        "csv": ("product_category", "Apparel > Shirts > T-Shirts"),
    }.get(dialect, ("google_product_category", "Clothing > Shirts & Tops"))
    assert rows["p1"][column] == value
    if dialect == "shopify":
        assert rows["p0"][colour] == "maroon" and rows["p3"][colour] == ""  # green is not in the list
        assert rows["p0"]["Title"] == TITLES[0]
    elif dialect != "csv":
        assert rows["p2"]["gender"] == "male" if "gender" in rows["p2"] else True
    filled = {one.id: one for one in read_feed(tmp_path / "out/filled.jsonl") if isinstance(one, Product)}
    assert "maroon" in filled["p0"].attributes.values() and filled["p1"].attributes["colour"] == "blue"


@pytest.mark.usefixtures("written")
def test_suggestions_gaps_conflicts_and_going_on(tmp_path: Path, model: MoonModel) -> None:
    feed, out = feed_of(tmp_path / "in", "jsonl"), tmp_path / "out"
    known = Taxonomy.read(shopify(tmp_path / "t"))
    report = enrich(feed, out, lambda: model, known, options=Options(accept_above=0.5))
    found = {(one["id"], one["name"]): one for one in lines_of(out / "suggestions.jsonl")}
    one = found["p1", "colour"]
    assert (one["value"], one["source"], one["allowed"], one["model"]) == (
        "blue",
        "title",
        "Blue",
        model.fingerprint,
    )
    assert one["accepted"] and 0.5 < one["confidence"] < 1 and ("p0", "colour") not in found
    assert found["p0", "material"]["value"] == "cotton"  # a word of the title that the list allows
    assert found["p1", "category"]["allowed_id"] == "aa-1-1"
    gap = report["gaps"]["Apparel > Shirts > T-Shirts"]["colour"]
    assert (gap["filled"], gap["missing"], gap["fillable"]) == (1, 3, 3)
    assert {type(n) for names in report["gaps"].values() for one in names.values() for n in one.values()} == {
        int
    }
    assert report["calibration"]["fitted_on"] == 0 and "own" in report["notes"][0]
    supplement = {one["id"]: one for one in lines_of(out / "supplemental.jsonl")}
    assert (
        supplement["p1"]["attributes"] == {"colour": "blue"}
        and "colour" not in supplement["p0"]["attributes"]
    )
    assert supplement["p1"]["product_category"] == "Apparel > Shirts > T-Shirts"
    # What was read is not read again, a line that was cut off is, and so is a product that changed.
    lines = (out / "readings.jsonl").read_text().splitlines()
    (out / "readings.jsonl").write_text("\n".join([*lines[:3], lines[3][:20]]) + "\n")
    feed.write_text(feed.read_text().replace("blue lamp", "red lamp"))
    again = enrich(feed, out, lambda: model, known, options=Options(only=("Color",), accept_above=0.99))
    assert again["read_now"] == 2 and again["accepted"] == 0 and again["supplemental_rows"] == 0
    assert {(one["id"], one["name"]) for one in lines_of(out / "suggestions.jsonl")} == {
        (f"p{n}", "colour") for n in (1, 2, 3)
    }


@pytest.mark.usefixtures("written")
def test_what_people_say_counts(tmp_path: Path, model: MoonModel) -> None:
    from moonshelf.catalogue.embed import embed_feed

    feed, shelf = feed_of(tmp_path / "in", "jsonl"), tmp_path / "shelf"
    embed_feed(feed, shelf, model, model_name="tiny")
    for id, verdict in (("p1", "navy"), ("p2", "red"), ("p2", "none")):
        feedback.add(shelf, "attribute", {"id": id, "name": "Color"}, verdict)
    enrich(feed, tmp_path / "out", lambda: model, options=Options(catalogue=shelf, accept_above=1.0))
    found = {one["id"]: one for one in lines_of(shelf / "suggestions.jsonl") if one["name"] == "colour"}
    assert found["p1"]["value"] == "navy" and found["p1"]["source"] == "person" and found["p1"]["accepted"]
    assert "p2" not in found and not found["p3"]["accepted"]


def test_bad_input_is_one_sentence_and_loses_nothing(tmp_path: Path, model: MoonModel) -> None:
    feed = feed_of(tmp_path, "csv")

    def never() -> MoonModel:
        raise AssertionError("the model is not loaded before the call is found to be right")

    with pytest.raises(UserError, match="name a folder with -o"):
        enrich(feed, feed, never)
    own = feed.rename(tmp_path / "filled.jsonl")
    with pytest.raises(UserError, match="is what `enrich` writes"):
        enrich(own, tmp_path, never)
    with pytest.raises(UserError, match="give --taxonomy"):
        enrich(own, tmp_path / "out", never, options=Options(only=("category",)))
    with pytest.raises(UserError, match="no file or folder"):
        enrich(tmp_path / "none.csv", tmp_path / "out", never)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("written")
def test_categories_that_are_numbers_are_told(tmp_path: Path, model: MoonModel) -> None:
    feed = tmp_path / "feed.csv"
    feed.write_text("id,title,google_product_category\n1,red shirt,166\n2,blue lamp,1\n1,again,1\n")
    (tmp_path / "g.txt").write_text("1 - Animals\n")
    monkey = {"aa-1-1": ("A",), "hg": ("B",)}
    report = enrich(
        feed,
        tmp_path / "out",
        lambda: model,
        Taxonomy("g.txt", {**Taxonomy.read(tmp_path / "g.txt").paths, **monkey}),
    )
    assert "1 categories are numbers that g.txt does not have, such as 166" in report["notes"][-1]
    assert report["rejected"] == 1 and "earlier row" in (tmp_path / "out/rejects.jsonl").read_text()
    found = lines_of(tmp_path / "out/suggestions.jsonl")
    assert not [one for one in found if one["name"] == "category"]  # the feed has something there


def test_the_model_reads_three_views_and_categories(tmp_path: Path, model: MoonModel) -> None:
    known = Taxonomy.read(shopify(tmp_path / "t"))
    reader = Reader(model, tmp_path / "readings.jsonl", Categoriser(model, known, k=3, cache=tmp_path))
    both = Product(id="1", title="red shirt", images=(ImageRef(data=picture(1)),))
    broken = Product(id="2", images=(ImageRef(data=b"no picture"),))
    first, second, third = reader.read([both, broken, Product(id="3", title="lamp")])
    assert (
        isinstance(first, Reading)
        and first.shown == "both"
        and set(first.views) == {"both", "title", "picture"}
    )
    assert len(first.candidates) == 3 == len(first.evidence) and first.evidence[0][0] < 0
    assert not isinstance(second, Reading) and "picture" in second.reason
    assert isinstance(third, Reading) and set(third.views) == {"title"} and reader.computed == 2
    again = Reader(model, tmp_path / "readings.jsonl", Categoriser(model, known, k=3, cache=tmp_path))
    once = next(iter(again.read([both])))
    assert isinstance(once, Reading) and once.views.keys() == first.views.keys() and again.computed == 0


def test_likelihood_is_that_of_writing(model: MoonModel) -> None:
    """Against a pass over prompt and text as one, without a cache."""
    from moonshelf.model import engine
    from moonshelf.model.decode import banned_tokens

    product, texts = Product(id="1", title="red shoe"), ["shoes", "shoes > heels", "leather"]
    (found,) = log_likelihoods(model, [product], [texts])
    prepare = model.prepare
    (row,), _ = engine.read_rows(model, [(0, (product, ""))], "on")
    for text, likely in zip(texts, found, strict=True):
        (tail,) = prepare.text_ids([f"category: {text};"])
        value = len(prepare.text_ids(["category:"])[0])
        with torch.no_grad():
            batch = engine.make_batch(model, [row], [prepare.think, *tail])
            logits = model.logits(model.read(batch).states)[0].float() + banned_tokens(model)
        places = batch.attention[0].nonzero()[-len(tail) :, 0]
        steps = [logits[at - 1].log_softmax(-1) for at in places.tolist()]
        want = sum(float(steps[n][tail[n]]) for n in range(value, len(tail) - 1))
        want += float(torch.logaddexp(steps[-1][tail[-1]], steps[-1][prepare.end_think]))
        assert math.isclose(want, float(likely), abs_tol=1e-3)
    assert log_likelihoods(model, [Product(id="x")], [texts])[0].shape == (0,)


def test_a_doubt_gives_the_category_above_or_nothing(tmp_path: Path, model: MoonModel) -> None:
    chooser = Categoriser(model, Taxonomy.read(shopify(tmp_path / "t")), k=4)
    sure, torn = np.array([[9.0, 0, 0], [0, 0, 0]]), np.zeros((2, 3))
    chooser.weights = np.ones(3)
    assert chooser.decide(["aa-1-1", "hg"], sure).id == "aa-1-1"  # type: ignore[union-attr]
    assert chooser.decide(["aa-1-1", "aa-1"], torn, 0.9).id == "aa-1"  # type: ignore[union-attr]
    assert chooser.decide(["aa-1", "aa-1-1"], np.array([[2.0, 0, 0], [0, 0, 0]]), 0.0).id == "aa-1"  # type: ignore[union-attr]
    assert chooser.decide(["aa-1-1", "hg"], torn, 0.6) is None and chooser.decide([], torn[:0]) is None


def test_confidence_is_calibrated_on_one_half_and_told_of_the_other() -> None:
    rng, known = np.random.default_rng(0), []
    for n in range(2000):
        odds = float(rng.normal())
        claim = Claim("colour", "red", "title", (odds, 0.0, 0.0, 0.0, 1.0))
        known.append((str(n), claim, bool(rng.random() < 1 / (1 + math.exp(-(2 * odds - 1))))))
    one = Calibration((1.0, 0.0))
    one.fit(known)
    assert one.fitted > 900 and abs(one.weights[0] - 2) < 0.4 and one.error is not None and one.error < 0.05
    assert sum(bin["count"] for bin in one.table) == 2000 - one.fitted
    assert reliability([]) == [] and reliability([(1.0, 1.0)])[0]["to"] == 1.0
    few = Calibration((1.0, 0.5))
    few.fit(known[:20])
    assert few.fitted == 0 and few.of("x", (0.0, 0, 0, 0, 1.0)) == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_sources_and_conflicts() -> None:
    product = Product(id="1", title="Crimson Shirt", attributes={"pattern": "solid"})
    views = {
        "both": {
            "colour": ("red", 1.0),
            "material": ("cotton", 0.0),
            "gender": ("men", 0.0),
            "pattern": ("solid", 2.0),
        },
        "title": {"colour": ("red", 1.0), "material": ("wool", 0.0)},
        "picture": {"colour": ("red", 1.0), "gender": ("men", 0.0), "pattern": ("striped", 0.0)},
    }
    reading = Reading("1", "", views)
    sources = {one.name: one.source for one in claims(product, reading, None, None)}
    assert sources == {"colour": "both", "material": "both", "gender": "picture", "pattern": "both"}
    assert [(one["name"], one["feed"], one["picture"]) for one in conflicts(product, reading)] == [
        ("pattern", "solid", "striped")
    ]
    assert Options().accept_above == room.ACCEPT_ABOVE


def test_what_a_thing_is_made_of_is_no_candidate(tmp_path: Path, model: MoonModel) -> None:
    place = shopify(tmp_path / "t")
    with (place / "categories.en.txt").open("a") as file:
        for id, name in enumerate(("Cotton", "Water", "Water Bottles", "Bottles")):
            file.write(f"gid://shopify/TaxonomyCategory/x{id} : {name}\n")
    chooser = Categoriser(model, Taxonomy.read(place))
    for title, out in (
        ("Blue cotton shirt", {"x0"}), ("Shirt, cotton", set()), ("Cotton by the yard", set()),
        ("Shirts blue cotton", {"x0"}), ("Steel water bottle for men", {"x1"}),
        ("Bottle of water", set()), ("Water bottle with water", set()), ("Shirt bottle", {"aa-1"}),
    ):  # fmt: skip
        [(ids, _)] = chooser.evidence([Product(id="1", title=title)])
        assert set(chooser.ids) - set(ids) == out, title


def test_of_equal_names_the_plainest(tmp_path: Path, model: MoonModel) -> None:
    (tmp_path / "list").write_text("1\tClothing > Baby Tops > Shirts\n2\tClothing > Tops > Shirts\n")
    chooser = Categoriser(model, Taxonomy.read(tmp_path / "list"))
    for title, best in (("Blue shirt", "2"), ("Shirts, tops", "2"), ("Baby shirt", "")):
        [(ids, seen)] = chooser.evidence([Product(id="1", title=title)])
        of = dict(zip(ids, seen[:, 1], strict=True))
        assert {id for id in of if of[id] == max(of.values())} == ({best} if best else {"1", "2"}), title


def test_another_language_is_found_by_its_words(tmp_path: Path, model: MoonModel) -> None:
    english, german = (Taxonomy.read(shopify(tmp_path / "t")), Taxonomy.read(tmp_path / "t", "de"))
    chooser = Categoriser(model, english, also=[german], k=4)
    for title, id in (("Neue Lampen", "hg"), ("Hemden", "aa-1")):
        best = chooser.suggest([Product(id="1", title=title)], 0.0)[0]
        assert best and best.candidates[0][0] == id, title


@pytest.mark.usefixtures("written")
def test_the_filled_feed_finds_its_pictures(tmp_path: Path, model: MoonModel) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(picture(1))
    (tmp_path / "in/feed.csv").write_text("id,title,image\n1,red shirt,a.png\n")
    enrich(tmp_path / "in/feed.csv", tmp_path / "out", lambda: model)
    (product,) = read_feed(tmp_path / "out/filled.jsonl", images_root=tmp_path / "in")
    assert isinstance(product, Product) and product.images[0].path == str(tmp_path / "in/a.png")
