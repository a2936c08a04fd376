"""The curves of a run: what is drawn, and that a picture comes out of any log."""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshelf.errors import UserError
from research.starter.plot import LINE, _spread, _ticks, plot

SVG = "{http://www.w3.org/2000/svg}"


def draw(folder: Path, records: list[dict[str, Any]]) -> ElementTree.Element:
    log = folder / "run" / "log.jsonl"  # the folder's name is in the picture, and a random one may say inf
    log.parent.mkdir(exist_ok=True)
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    return ElementTree.fromstring(plot(log).read_text())  # noqa: S314  (written by us a line ago)


def words(picture: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]


def test_each_kind_of_figure_has_its_panel_and_each_line_its_name_and_last_value(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"step": s, "title": 5 / s, "phrase": 4 / s, "sft": 8 / s, "norm": 10.0**s, "lr": 1e-4,
         "kind": "direct", "seconds": s, "rewards/format": 0.5}
        for s in (1, 2, 4)
    ]  # fmt: skip
    records.append({"step": 4, "direct title->photo R@10": 0.62, "written colour": 0.4, "example": "<think>"})
    found = words(draw(tmp_path, records))
    assert {"Contrastive loss", "Rationale, loss per token", "Held-out retrieval", "Rewards", "Learning rate",
            "Gradient norm", "Held-out rationales"} <= set(found)  # fmt: skip
    assert {"title 1.25", "phrase 1", "sft 2", "direct R@10 0.62", "written colour 0.4", "format 0.5",
            "lr 1e-4", "norm 10,000"} <= set(found)  # fmt: skip
    assert not any("seconds" in word or "example" in word for word in found)


def test_points_stand_where_their_values_are(tmp_path: Path) -> None:
    picture = draw(tmp_path, [{"step": s, "sft": v} for s, v in ((0, 4.0), (5, 2.0), (10, 0.0))])
    path = next(p.get("d", "") for p in picture.iter(f"{SVG}path") if p.get("stroke-width") == "2")
    numbers = [float(n) for n in re.findall(r"[\d.]+", path)]
    (x0, y0), (x1, y1), (x2, y2) = zip(numbers[::2], numbers[1::2], strict=True)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert x0 < x1 and y0 < y1  # larger values stand higher


def test_many_points_are_faint_under_their_mean(tmp_path: Path) -> None:
    picture = draw(tmp_path, [{"step": s, "sft": 1 + s % 2} for s in range(1, 101)])
    lines = [p for p in picture.iter(f"{SVG}path") if p.get("fill") == "none"]
    assert [line.get("opacity") for line in lines] == ["0.28", None]
    heights = [float(n) for n in re.findall(r" ([\d.]+)", lines[1].get("d", ""))][5:-5]
    raw = [float(n) for n in re.findall(r" ([\d.]+)", lines[0].get("d", ""))]
    assert max(heights) - min(heights) < (max(raw) - min(raw)) / 3


value = st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32) | st.just("text")
record = st.dictionaries(st.sampled_from(["title", "sft", "lr", "norm", "reward", "score"]), value)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), record), max_size=30))
def test_any_log_gives_a_picture_or_says_why_not(rows: list[tuple[int, dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            picture = draw(Path(folder), [{"step": step, **found} for step, found in rows])
        except UserError:
            assert not any(isinstance(v, float) for _, found in rows for v in found.values())
        else:
            assert not re.search(r"nan|inf", ElementTree.tostring(picture, encoding="unicode"))


@settings(deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.integers(3, 6))
def test_ticks_are_even_and_cover_the_values(low: float, span: float, about: int) -> None:
    ticks = _ticks(low, low + span, about)
    slack = 1e-6 * max(1, abs(low), span)
    assert ticks[0] <= low + slack and ticks[-1] >= low + span - slack and 2 <= len(ticks) <= about + 3


@settings(deadline=None)
@given(st.lists(st.floats(42, 206), min_size=1, max_size=9))
def test_labels_do_not_touch(places: list[float]) -> None:
    labels = _spread(sorted(places), 42, 206)
    assert all(b - a >= LINE - 1e-6 for a, b in itertools.pairwise(labels))
    assert labels[-1] <= 206


@pytest.mark.parametrize("text", (None, "not json\n", '{"step": 1, "kind": "direct"}\n', ""))
def test_a_log_without_figures_is_one_clear_sentence(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"log\.jsonl"):
        plot(tmp_path / "log.jsonl")
