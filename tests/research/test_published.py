"""Layouts of published sets of creatives: read as they are described, and written in our own form."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from creative_files import png, write_pictures
from moonshelf.creatives.io.readers import read_creatives
from moonshelf.creatives.schema import KEYS, Campaign, Pair
from moonshelf.errors import Problem, UserError
from moonshelf.images import decode, load
from research.studies.published import main, read_published


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with four pictures, and a secret outside of it."""
    return write_pictures(tmp_path)


def write(path: Path, *rows: Any) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def split(path: Path) -> tuple[list[Campaign | Pair], list[Problem]]:
    rows = list(read_published(path))
    return [r for r in rows if not isinstance(r, Problem)], [r for r in rows if isinstance(r, Problem)]


def test_creative_pair_layout(shop: Path) -> None:
    answers = {f"Q{i}": "no" if i < 3 else "A>B" for i in range(1, 10)}
    base = {"image_a": "0.png", "image_b": "1.png", "product_title": "Red shoe", "query": ["red", "shoe"]}
    path = write(
        shop / "pairs.json",
        [
            base | {"label": "A", "rationale": "A is sharper.", "questions": answers | {"Q10": "A"}},
            base | {"image_b": "2.png", "label": "image_b", "query": "red; shoe"} | answers,
            base | {"image_b": "3.png", "label": "tie", "questions": {"Q3": "A>B"}},
            base | {"label": "maybe"},
            base | {"image_a": "../secret.png", "label": "A"},
            base | {"image_b": "2.png", "label": "B", "id": "own"},
        ],
    )  # fmt: skip
    read, problems = split(path)
    assert [getattr(row, "label", None) for row in read] == ["A", "B", "tie", "B"]
    one = read[0]
    assert isinstance(one, Pair) and one.assessment is not None and one.rationale == "A is sharper."
    assert one.assessment.verdict == "A" and one.assessment["background"].answer == "A>B"
    assert tuple(f.question for f in one.assessment.findings) == KEYS
    assert {row.interest for row in read} == {("red", "shoe")}
    assert len({row.product_id for row in read}) == 1, "rows of one title are one product"
    assert [p.row for p in problems if p.fatal] == [4, 5] and [p.field for p in problems if not p.fatal] == [
        "questions"
    ]
    assert one.swapped().rationale == "" and one.swapped().label == "B"


def test_creative_ranking_layout(shop: Path) -> None:
    (shop / "images").mkdir()
    for i in range(3):
        (shop / "images" / f"{i}.jpg").write_bytes(png(i))
    path = write(
        shop / "train_data_list.txt",
        "77\t0.jpg\t20200701\t900\t30",
        "78\t1.jpg\t20200701\t10\t1",
        "77\t1.jpg\t20200701\t800\t10",
        "77\t0.jpg\t20200702\t100\t3",
        "77\t2.jpg\t20200702\t100\t300",
        "77\t2.jpg",
        "78\t2.jpg\t20200702\t0\t0",
    )
    read, problems = split(path)
    first, second = read
    assert isinstance(first, Campaign) and isinstance(second, Campaign)
    assert [(c.id, c.impressions, c.clicks) for c in first.creatives] == [("0", 1000, 33), ("1", 800, 10)]
    assert (first.id, first.exposure, first.source) == ("77", {"days": "2"}, "CreativeRanking")
    assert second.creatives[1].rate is None
    assert [p.row for p in problems] == [5, 6]


def test_caig_layouts(shop: Path) -> None:
    def row(name: str, shown: int, clicks: int) -> dict[str, Any]:
        return {"creative_image_hash": name, "exp_impression_cnt": shown, "exp_click_cnt": clicks}

    groups = {
        "1": [row("0.png", 2000, 40), row("1.png", 2000, 36)],
        "2": [row("2.png", 5, 9), row("3.png", 5, 1)],
    }
    for text_ in (json.dumps(groups), json.dumps(groups, indent=2)):
        read, problems = split(write(shop / "groups.json", text_))
        assert [(row.id, len(row.creatives)) for row in read] == [("1", 2)]  # type: ignore[union-attr]
        assert [p.fatal for p in problems] == [False, True]
    (shop / "both.png").write_bytes(png(4, (20, 10)))
    sides = [
        {"id": "9_0", "image": "both.png", "target": "right", "left_ctr": 0.01, "right_ctr": 0.02,
         "conversations": [{"from": "human", "value": "Which part is better for the product 'Red shoe' ?"}]},
        {"id": "9_1", "image": "no.png", "target": "left"},
    ]  # fmt: skip
    (pair,), problems = split(write(shop / "sides.json", sides))
    assert isinstance(pair, Pair)
    assert (pair.label, pair.title, pair.product_id) == ("B", "Red shoe", "9")
    whole = decode(png(4, (20, 10)))
    assert load(pair.a.image).tobytes() == whole.crop((0, 0, 10, 10)).tobytes()
    assert load(pair.b.image).tobytes() == whole.crop((10, 0, 20, 10)).tobytes()
    assert [p.row for p in problems] == [2]


@pytest.mark.parametrize("kind", ["list", "sides"])
@pytest.mark.parametrize("start", ["inside", "beside", "below"])
def test_a_relative_path_reads_what_the_absolute_one_does(
    shop: Path, kind: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop / "both.png").write_bytes(png(4, (20, 10)))
    (shop / "other").mkdir()
    made = {
        "list": lambda: write(shop / "l.txt", "7\t0.png\t1\t900\t30", "7\t1.png\t1\t900\t10"),
        "sides": lambda: write(shop / "s.json", [{"id": "9", "image": "both.png", "target": "left"}]),
    }[kind]()
    absolute = split(made)
    assert absolute[0]
    monkeypatch.chdir({"inside": shop, "beside": shop.parent, "below": shop / "other"}[start])
    assert split(Path(os.path.relpath(made))) == absolute


def test_what_was_made_of_it_is_read_by_the_package(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(shop / "l.txt", "7\t0.png\t1\t900\t30", "7\t1.png\t1\t900\t10", "7\tlost.png\t1\tx\t1")
    main(path, tmp_path / "out")
    said = capsys.readouterr()
    assert "1 campaigns and pairs written" in said.out and "1 rows rejected" in said.err
    (row,) = read_creatives(tmp_path / "out")
    assert isinstance(row, Campaign) and [one.clicks for one in row.creatives] == [30, 10]
    with pytest.raises(UserError, match="none of the published layouts"):
        list(read_published(write(shop / "t.csv", "product_id,image")))
