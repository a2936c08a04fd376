"""`moonshelf check`: counts, coverage, repeated ids, pictures, the file of problems, exit codes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import helpers as h
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from moonshelf.cli import app
from moonshelf.feeds.check import SeenIds, check_feed
from moonshelf.feeds.show import show


def picture() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A feed with one fault of each kind."""
    h.write(tmp_path / "good.jpg", picture())
    h.write(tmp_path / "cut.jpg", picture()[:-200])
    lines = [
        "id,title,image,price,ean,colour",
        "a,Red mug,good.jpg,5 EUR,4006381333931,red",
        "b,Blue mug,good.jpg|cut.jpg,6 EUR,4006381333932,blue",
        "c,Green mug,cut.jpg,7 EUR,,green",
        "d,Grey mug,gone.jpg,8 EUR,,",
        "e,Pink mug,https://e.example/1.jpg,9 EUR,,pink",
        "f,Black mug,good.jpg,-9 EUR,,black",
        "a,Red mug again,good.jpg,5 EUR,,red",
    ]
    return h.write(tmp_path / "shop.csv", "\n".join(lines))


def test_report_of_a_faulty_feed(shop: Path, tmp_path: Path) -> None:
    rejects = tmp_path / "rejects.jsonl"
    report = check_feed(shop, rejects=rejects)
    assert (report.dialect, report.rows, report.products, report.rejected) == ("csv", 7, 4, 3)
    assert report.images == {"good": 3, "missing": 1, "broken": 2, "remote": 1, "not_checked": 0}
    assert (report.duplicates, report.duplicate_examples) == (1, [{"id": "a", "rows": [1, 7]}])
    assert report.gtin_bad == 1
    assert report.filled["title"] == 4
    assert report.filled["gtin"] == 1
    assert report.attributes == {"colour": 4}
    assert report.exit_code == 3
    written = [json.loads(line) for line in rejects.read_text("utf-8").splitlines()]
    assert [(item["row"], item["id"], item["field"]) for item in written if item["fatal"]] == [
        (3, "c", "images"),
        (4, "d", "images"),
        (6, "f", "price"),
    ]
    assert len(written) == report.rejected + report.warnings
    assert all(set(item) == {"row", "id", "field", "reason", "fatal"} for item in written)
    assert sum(reason.count for reason in report.reasons) == len(written)


def test_without_decoding_pictures_are_only_counted(shop: Path) -> None:
    report = check_feed(shop, decode_images=False)
    assert report.images == {"good": 0, "missing": 0, "broken": 0, "remote": 1, "not_checked": 6}
    assert report.rejected == 1


def test_many_reasons_of_one_kind_are_one_line(tmp_path: Path) -> None:
    rows = "".join(f"{n},t{n},-{n}.00 EUR,no-{n}.jpg\n" for n in range(1, 500))
    report = check_feed(h.write(tmp_path / "f.csv", "id,title,price,image\n" + rows))
    (reason,) = report.reasons
    assert (reason.count, reason.field, len(reason.rows)) == (499, "price", 10)
    assert report.exit_code == 2  # not one product


def test_page_shows_the_findings_and_takes_no_markup(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.csv", "id,title\n[red]x,a\n[red]x,b\n[/]\x1b[31m,c\n")
    out = io.StringIO()
    show(check_feed(path), console=Console(file=out, width=100))
    text = out.getvalue()
    assert "3 rows" in text
    assert "[red]x: rows 1, 2" in text
    assert "\x1b" not in text


def test_command_line(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    result = runner.invoke(app, ["check", str(shop)])
    assert result.exit_code == 3
    assert "rejected" in result.output
    assert (tmp_path / "rejects.jsonl").exists()
    result = runner.invoke(app, ["check", str(shop), "--json", "--no-images", "--rejects", "other.jsonl"])
    report = json.loads(result.stdout)
    assert (report["rows"], report["products"], report["exit_code"]) == (7, 6, 3)
    good = h.write(tmp_path / "good.tsv", "id\ttitle\n1\ta\n")
    assert runner.invoke(app, ["check", str(good), "--dialect", "csv"]).exit_code == 0
    assert (tmp_path / "rejects.jsonl").read_text() == ""  # nothing of the former run is left


@given(st.lists(st.integers(0, 30).map(str), max_size=80), st.integers(1, 9))
def test_repeated_ids_are_found_in_any_chunking(ids: list[str], size: int) -> None:
    seen = SeenIds()
    found = []
    for row, id in enumerate(ids, 1):
        seen.add(id, row)
        if row % size == 0:
            found += seen.flush()
    found += seen.flush()
    first: dict[str, int] = {}
    expected = [(id, row, first[id]) for row, id in enumerate(ids, 1) if first.setdefault(id, row) != row]
    assert found == expected
