"""Hard negatives: against a brute-force search, what is never one, and what the file says about itself."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import moonshelf
from moonshelf import cli, images
from moonshelf.errors import EXIT_PARTIAL, Problem, UserError
from moonshelf.feeds import write_jsonl
from moonshelf.product import ImageRef, Product
from moonshelf.prompts import PromptSpec
from moonshelf.training.sources.negatives import (
    MineReport,
    MiningSettings,
    load_negatives,
    mine,
    negatives_of,
)
from moonshelf.training.sources.pairs import facts_of, items_of

DIM = 48
NO_MARGIN = {"relative_margin": None}


class WordModel:
    """A picture of this model is a file of words; a vector is the sum of its words, or mean colours."""

    def __init__(self, fingerprint: str = "word-1") -> None:
        self.fingerprint, self.dim, self.prompt = fingerprint, DIM, PromptSpec(max_images=2)
        self.asked = 0
        self.poison: set[str] = set()
        self.fail_after: int | None = None

    def vector(self, product: Product) -> np.ndarray:
        vector = np.full(DIM, 0.01, np.float32)
        for word in self.prompt.text_of(product).lower().split():
            vector += _random(word)
        for ref in product.images:
            data = ref.data or b""
            if data.startswith(b"\xff\xd8"):
                vector[:3] += np.asarray(images.load(ref), np.float32).mean((0, 1)) / 64
            else:
                for word in data.decode().split():
                    vector += _random(word)
        return vector / np.linalg.norm(vector)

    def encode_iter(self, products: Iterable[Product], reason: str = "off", **_: Any) -> Iterator[Any]:
        part = SimpleNamespace(vectors=[], row_index=[], problems=[])
        for place, product in enumerate(products):
            if self.fail_after is not None and place >= self.fail_after:
                raise RuntimeError("the model broke")
            self.asked += 1
            if any(ref.data == b"broken" for ref in product.images):
                part.problems.append(Problem(place + 1, "images", "the picture is broken", product.id))
                continue
            lost = product.id in self.poison
            part.vectors.append(np.full(DIM, np.nan, np.float32) if lost else self.vector(product))
            part.row_index.append(place)
            if len(part.row_index) == 5:
                yield part
                part = SimpleNamespace(vectors=[], row_index=[], problems=[])
        yield part


def _random(word: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(DIM).astype(np.float32)


def product(id: str, title: str = "", picture: str = "", category: str = "", **more: Any) -> Product:
    refs = (ImageRef(data=picture.encode()),) if picture else ()
    path = tuple(category.split("/")) if category else ()
    return Product(id=id, title=title, images=refs, category=path, **more)


def run(
    folder: Path, feed: Any, model: Any = None, **settings: Any
) -> tuple[dict[str, list[dict[str, Any]]], MineReport]:
    """Rows by id, and the report."""
    report = mine(feed, folder / "out.parquet", model or WordModel(), MiningSettings(**settings))
    found: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(folder / "out.parquet").to_pylist():
        found.setdefault(row.pop("id"), []).append(row)
    return found, report


# ---- against brute force ---------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from(("red", "blue", "green", "shoe", "boot", "mug")), max_size=3).map(" ".join)
SHOP = st.lists(
    st.tuples(
        WORDS,
        WORDS,
        st.sampled_from(("", "home", "home/mugs", "wear", "wear/shoes", "wear/shoes/boots", "wear/hats")),
        st.sampled_from(("", "", "", "g1", "g2", "g3")),
        st.sampled_from((None, None, None, "4006381333931", "04006381333931", "73513537")),
        st.sampled_from(({}, {"colour": "Red"}, {"Color": "red"}, {"colour": "blue", "size": "9"})),
    ),
    min_size=2,
    max_size=24,
)


def same(a: Product, b: Product) -> bool:
    """What may never be a negative, written down naively."""
    code_a, code_b = ((p.gtin or "").zfill(14) for p in (a, b))
    pictures = {ref.data for ref in a.images} & {ref.data for ref in b.images}
    facts = facts_of(a)
    return bool(
        (a.group_id or a.id) == (b.group_id or b.id)
        or (a.title and a.title == b.title)
        or (code_a.strip("0") and code_a == code_b)
        or pictures
        or (facts and facts == facts_of(b) and a.category == b.category)
    )


def shared(a: Product, b: Product) -> int:
    level = 0
    while level < min(len(a.category), len(b.category)) and a.category[level] == b.category[level]:
        level += 1
    return level


def brute(feed: list[Product], s: MiningSettings) -> dict[str, list[tuple[int, float]]]:
    """(level, score) of the negatives that the definition gives."""
    model = WordModel()
    whole = {p.id: model.vector(p) for p in feed}
    pictures = {p.id: model.vector(Product(id=p.id, images=p.images)) for p in feed if p.images}
    titles = {p.id: model.vector(Product(id=p.id, title=p.title)) for p in feed if p.title}
    result: dict[str, list[tuple[int, float]]] = {}
    for a in feed:
        others = [(shared(a, b), float(whole[a.id] @ whole[b.id]), b) for b in feed if not same(a, b)]
        others = [x for x in others if x[0] >= s.min_level]
        others.sort(key=lambda x: (-x[0], -x[1]))
        taken = []
        for level, score, b in others[s.range_min : s.range_max]:
            if s.max_score is not None and score > s.max_score:
                continue
            if s.own_pair and a.id in pictures and a.id in titles:
                own = float(pictures[a.id] @ titles[a.id])
                crossed = []
                if b.id in titles:
                    crossed.append(float(pictures[a.id] @ titles[b.id]))
                if b.id in pictures:
                    crossed.append(float(titles[a.id] @ pictures[b.id]))
                limits = [own - s.absolute_margin] if s.absolute_margin is not None else []
                limits += [own - abs(own) * s.relative_margin] if s.relative_margin is not None else []
                if np.mean(crossed) > min(limits):
                    continue
            taken.append((level, score))
        if taken:
            result[a.id] = taken[: s.num_negatives]
    return result


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=SHOP,
    k=st.integers(1, 4),
    range_min=st.sampled_from((0, 0, 2)),
    range_max=st.sampled_from((None, 8)),
    max_score=st.sampled_from((None, 0.9)),
    margins=st.sampled_from(((None, None), (None, 0.05), (0.1, None), (0.02, 0.3))),
    min_level=st.sampled_from((0, 0, 1)),
)
def test_negatives_are_those_of_the_definition(
    tmp_path: Path, rows: list, k: int, range_min: int, range_max: int | None, max_score: float | None,
    margins: tuple[float | None, float | None], min_level: int,
) -> None:  # fmt: skip
    feed = [
        product(f"p{i}", title, picture and f"{picture} seen", path, group_id=group or None, gtin=gtin,
                attributes=facts)
        for i, (title, picture, path, group, gtin, facts) in enumerate(rows)
        if title or picture
    ]  # fmt: skip
    if not feed:
        return
    options = {
        "num_negatives": k, "range_min": range_min, "range_max": range_max, "max_score": max_score,
        "absolute_margin": margins[0], "relative_margin": margins[1], "min_level": min_level,
    }  # fmt: skip
    found, report = run(tmp_path, feed, **options)
    expected = brute(feed, MiningSettings(**options))
    assert found.keys() == expected.keys()
    by_id = {p.id: p for p in feed}
    for id, mined in found.items():
        assert [row["category_level"] for row in mined] == [level for level, _ in expected[id]]
        assert [row["score"] for row in mined] == pytest.approx([s for _, s in expected[id]], abs=1e-5)
        assert len({row["negative_id"] for row in mined}) == len(mined)
        for row in mined:
            other = by_id[row["negative_id"]]
            assert not same(by_id[id], other) and shared(by_id[id], other) == row["category_level"]
            if row["positive_score"] is not None and margins != (None, None):
                limit = row["positive_score"] - (margins[0] or 0)
                assert row["cross_score"] <= limit + 1e-5
                limit = row["positive_score"] - abs(row["positive_score"]) * (margins[1] or 0)
                assert row["cross_score"] <= limit + 1e-5
    assert report.pairs == sum(map(len, expected.values())) and report.mined == len(expected)
    assert report.products == len(feed) and sum(report.levels.values()) == report.pairs


def test_a_crowd_of_variants_is_passed(tmp_path: Path) -> None:
    crowd = [product(f"a{i}", f"red shoe n{i}", category="shoes", group_id="A") for i in range(150)]
    others = [product(f"b{i}", f"blue shoe n{i}", category="shoes") for i in range(60)]
    exact, report = run(tmp_path, crowd + others, **NO_MARGIN)
    assert all(row["negative_id"].startswith("b") for i in range(150) for row in exact[f"a{i}"])
    assert report.short == 0 and report.excluded["group"] > 150 * 100


# ---- what is never a negative ----------------------------------------------------------------------


def test_each_reason_why_a_neighbour_is_passed_over_is_counted(tmp_path: Path) -> None:
    base = {"category": "shoes", "brand": "Acme"}
    feed = [
        product("a", "red shoe", "one", group_id="g", gtin="4006381333931", mpn="X-1",
                attributes={"colour": "red"}, **base),
        product("group", "red shoe wide", "two", group_id="g", **base),
        product("title", "Red  SHOE", "three", **base),
        product("gtin", "red shoes", "four", gtin="4006381333931", **base),
        product("mpn", "red shoe b", "five", mpn="x-1", **base),
        product("picture", "red shoe c", "one", **base),
        product("attributes", "red shoe d", "six", attributes={"Color": "Red"}, **base),
        product("else", "red shoe e", "seven", attributes={"Color": "Blue"}, **base),
    ]  # fmt: skip
    found, report = run(tmp_path, feed, **NO_MARGIN)
    assert [row["negative_id"] for row in found["a"]] == ["else"]
    names = ("group", "title", "gtin", "mpn", "picture", "attributes")
    assert all(report.excluded[name] == 2 for name in names)  # seen from both sides
    found, _ = run(tmp_path, feed, identical_attributes=True, **NO_MARGIN)
    assert {row["negative_id"] for row in found["a"]} == {"else", "attributes"}


def test_titles_that_differ_in_a_size_are_one_thing_and_model_codes_are_not(tmp_path: Path) -> None:
    titles = (
        "Yoga strap 6 foot",
        "Yoga strap 8 foot",
        "Yoga Strap 10ft",
        "Watch A158",
        "Watch F91",
        "1",
        "2",
    )
    found, _ = run(tmp_path, [product(str(i), title) for i, title in enumerate(titles)], num_negatives=6)
    others = {int(id): {int(row["negative_id"]) for row in rows} for id, rows in found.items()}
    assert others[0] == others[1] == {2, 3, 4, 5, 6} and others[3] == {0, 1, 2, 4, 5, 6} and 6 in others[5]


def test_a_neighbour_that_fits_as_well_as_the_own_pair_is_left_out_by_the_margin(tmp_path: Path) -> None:
    feed = [
        product("a", "red cotton shirt", "red cotton shirt front", "shirts"),
        product("twin", "red cotton shirt sale", "red cotton shirt back", "shirts"),
        product("other", "red silk shirt", "red silk shirt worn", "shirts"),
    ]
    found, report = run(tmp_path, feed, relative_margin=0.1)
    assert [row["negative_id"] for row in found["a"]] == ["other"] and report.excluded["margin"] == 2
    row = found["a"][0]
    assert row["cross_score"] <= 0.9 * row["positive_score"] < row["positive_score"]
    model = WordModel()
    found, report = run(tmp_path, feed, model, **NO_MARGIN)
    assert {row["negative_id"] for row in found["a"]} == {"twin", "other"} and model.asked == 3
    assert found["a"][0]["cross_score"] is None and report.mean_positive_score is None


def test_the_sample_shop_gives_other_products_of_the_same_leaf(tmp_path: Path) -> None:
    from research.synthetic.shop import iter_products

    feed = list(iter_products(100, seed=3, photos=1, size=48))
    found, report = run(tmp_path, feed, num_negatives=3, **NO_MARGIN)
    groups, paths = {p.id: p.group_id for p in feed}, {p.id: p.category for p in feed}
    rows = [(id, row) for id, mined in found.items() for row in mined]
    assert not any(groups[id] == groups[row["negative_id"]] for id, row in rows)
    assert all(paths[id][: row["category_level"]] == paths[row["negative_id"]][: row["category_level"]]
               for id, row in rows)  # fmt: skip
    assert len(found) == 100 and report.short == 0
    assert sum(paths[id] == paths[row["negative_id"]] for id, row in rows) > 0.5 * len(rows)


def test_leaves_that_are_too_small_are_filled_from_the_level_above(tmp_path: Path) -> None:
    paths = ["wear/shoes", "wear/shoes", "wear/hats", "wear/hats", "wear/hats", "home/mugs"]
    feed = [product(f"p{i}", f"thing n{i}", category=path) for i, path in enumerate(paths)]
    found, report = run(tmp_path, feed, num_negatives=2, **NO_MARGIN)
    levels = {id: [row["category_level"] for row in rows] for id, rows in found.items()}
    assert levels == {"p0": [2, 1], "p1": [2, 1], "p2": [2, 2], "p3": [2, 2], "p4": [2, 2], "p5": [0, 0]}
    assert report.levels == {2: 8, 1: 2, 0: 2}
    found, report = run(tmp_path, feed, num_negatives=2, min_level=1, **NO_MARGIN)
    assert "p5" not in found and "1 products have fewer than 2 negatives, 1 of them none." in report.notes


# ---- feeds as they come ----------------------------------------------------------------------------


def test_feeds_without_categories_and_with_one_product_are_said(tmp_path: Path) -> None:
    feed = [product(f"p{i}", f"thing n{i}") for i in range(5)]
    found, report = run(tmp_path, feed)
    assert len(found) == 5 and {row["category_level"] for rows in found.values() for row in rows} == {0}
    assert report.notes[0].startswith("The feed has no categories")
    assert report.notes[1] == "5 products lack a picture or text, so no margin applies to them."
    found, report = run(tmp_path, feed[:1])
    assert not found and report.notes[0].startswith("The feed holds one usable product")
    assert load_negatives(tmp_path / "out.parquet").negatives == {}
    with pytest.raises(UserError, match="no product of the feed can be embedded; the first: the picture is"):
        run(tmp_path, [product("x", "thing", "broken")])


def test_bad_rows_are_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    model = WordModel()
    model.poison = {"nan"}
    feed: list[Any] = [
        Problem(1, "price", "negative price"), product("a", "red mug", "a"), product("a", "red mug again"),
        product("b", "blue mug", "broken"),
        product("nan", "green mug", "c"), product("c", "grey mug", "d"), product("d", "mug"),
        Product(id="web", title="web mug", images=(ImageRef(url="https://shop.example/a.jpg"),)),
    ]  # fmt: skip
    found, report = run(tmp_path, feed, model, **NO_MARGIN)
    assert found.keys() == {"a", "c", "d"} and report.products == 3
    assert {(p.row, p.field) for p in report.problems} == {
        (1, "price"), (3, "id"), (4, "images"), (5, "vector"), (8, "images"),
    }  # fmt: skip
    assert report.rejected == 5 and any("5 rows rejected" in line for line in report.lines())


def test_a_model_that_fails_leaves_the_former_file(tmp_path: Path) -> None:
    feed = [product(f"p{i}", f"thing n{i}") for i in range(9)]
    run(tmp_path, feed)
    before = (tmp_path / "out.parquet").read_bytes()
    model = WordModel()
    model.fail_after = 7
    with pytest.raises(RuntimeError):
        run(tmp_path, feed, model)
    assert (tmp_path / "out.parquet").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize(
    "wrong", [{"num_negatives": 0}, {"range_min": -1}, {"range_max": 3}, {"reason": "maybe"}]
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        MiningSettings(**wrong)


# ---- the file --------------------------------------------------------------------------------------


def test_the_file_tells_the_model_the_feed_and_the_settings(tmp_path: Path) -> None:
    write_jsonl([product(f"p{i}", f"thing n{i}") for i in range(6)], tmp_path / "feed.jsonl")
    run(tmp_path, tmp_path / "feed.jsonl", WordModel("word-7"), num_negatives=2)
    mined = load_negatives(tmp_path / "out.parquet", "word-7")
    assert mined.notes == [] and len(mined.negatives) == 6 and len(mined.negatives["p0"]) == 2
    assert mined.info["fingerprint"] == "word-7" and mined.info["settings"]["num_negatives"] == 2
    first = mined.info["feed_sha256"]
    write_jsonl([product(f"p{i}", f"thing n{i}") for i in range(7)], tmp_path / "feed.jsonl")
    run(tmp_path, tmp_path / "feed.jsonl")
    assert load_negatives(tmp_path / "out.parquet").info["feed_sha256"] != first


def test_another_model_is_a_note(tmp_path: Path) -> None:
    run(tmp_path, [product(f"p{i}", f"thing n{i}") for i in range(4)], WordModel("old"))
    mined = load_negatives(tmp_path / "out.parquet", "new")
    assert len(mined.notes) == 1 and "model old, not with new" in mined.notes[0]


def test_files_that_mine_did_not_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make it with `moonshelf mine"):
        load_negatives(tmp_path / "gone.parquet")
    (tmp_path / "noise.parquet").write_bytes(b"PAR1 noise")
    with pytest.raises(UserError, match="not a readable file"):
        load_negatives(tmp_path / "noise.parquet")
    pq.write_table(pa.table({"id": ["a"], "negative_id": ["b"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="was not written by"):
        load_negatives(tmp_path / "other.parquet")


def test_negatives_become_items_all_looks_of_a_record_and_never_the_same_thing() -> None:
    def looks(id: str, *colours: str, group: str | None = None) -> list:
        variants = [{"colour": c, "image_paths": [f"{c}.jpg"]} for c in colours]
        extra = {"variants": json.dumps(variants), "image_names": json.dumps([f"{c}.jpg" for c in colours])}
        refs = tuple(ImageRef(data=f"{id} {c}".encode()) for c in colours)
        return list(items_of(Product(id=id, title=f"hoodie {id}", images=refs, extra=extra, group_id=group)))

    items = [
        *looks("a", "red", "blue"),
        *looks("b", "red"),
        *looks("c", "red", "green"),
        *looks("d", "red", group="a"),
    ]
    found = negatives_of(items, {"a": ("d", "c", "gone", "b"), "b": ("b",)})
    assert {id: [item.id for item in others] for id, others in found.items()} == {
        "a#red": ["c#red", "c#green", "b#red"], "a#blue": ["c#red", "c#green", "b#red"],
    }  # fmt: skip


# ---- the command -----------------------------------------------------------------------------------


def test_the_command_mines_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moonshelf.MoonModel, "from_pretrained", lambda name: WordModel(name))
    write_jsonl(
        [product(f"p{i}", f"thing n{i}", category="things") for i in range(6)], tmp_path / "feed.jsonl"
    )
    out = tmp_path / "made" / "negatives.parquet"
    options = ["mine", str(tmp_path / "feed.jsonl"), "-o", str(out), "--model", "fake", "-k", "2"]
    done = CliRunner().invoke(cli.app, [*options, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["pairs"], report["products"], report["levels"]) == (12, 6, {"1": 12})
    assert load_negatives(out, "fake").info["model"] == "fake"
    with open(tmp_path / "feed.jsonl", "a", encoding="utf-8") as file:
        file.write("not json\n")
    done = CliRunner().invoke(cli.app, [*options, "--no-own-pair"])
    assert done.exit_code == EXIT_PARTIAL and "12 negatives for 6 of 6 products." in done.stdout
    assert "1 rows rejected" in done.stdout
    assert load_negatives(out).info["settings"]["relative_margin"] is None
