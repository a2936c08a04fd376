"""Readers of creatives: what is written is read back, and no row can stop the others."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from creative_files import png, write_pictures
from moonshelf.creatives.io.readers import FILE, read_creatives, write_campaigns
from moonshelf.creatives.io.records import MAX_COUNT, RowRejected, count
from moonshelf.creatives.schema import QUESTIONS, AspectAnswer, Assessment, Campaign, Creative, Pair
from moonshelf.errors import Problem, UserError
from moonshelf.feeds.base import MAX_TITLE
from moonshelf.product import ImageRef


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with four pictures, a web page that calls itself one, and a secret outside of it."""
    root = write_pictures(tmp_path)
    (root / "page.jpg").write_text("<html>not a picture</html>")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    return root


def split(path: Path, **options: Any) -> tuple[list[Campaign | Pair], list[Problem]]:
    rows = list(read_creatives(path, **options))
    return [r for r in rows if not isinstance(r, Problem)], [r for r in rows if isinstance(r, Problem)]


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8"
    )
    return path


def good(name: str = "c1", **more: Any) -> dict[str, Any]:
    creatives = [
        {"id": "a", "image": "0.png", "impressions": 2000, "clicks": 60},
        {"id": "b", "image": {"path": "1.png"}, "impressions": 2000, "clicks": 20},
    ]
    return {"id": name, "product_id": "p1", "title": "Red shoe", "creatives": creatives} | more


# ---------------------------------------------------------------------------------------- our own form

text = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=12).map(str.strip)
name = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=8)
counts = st.none() | st.integers(0, 10**9).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@st.composite
def creatives(draw: st.DrawFn, id: str) -> Creative:
    data, seen = png(draw(st.integers(0, 5))), draw(counts)
    return Creative(
        id=id,
        image=ImageRef(data=data),
        clicks=seen[0] if seen else None,
        impressions=seen[1] if seen else None,
        text=draw(text),
        facts=draw(st.dictionaries(name, name, max_size=2)),
    )


@st.composite
def rows(draw: st.DrawFn) -> Campaign | Pair:
    shown: dict[str, Any] = {
        "product_id": draw(name),
        "title": draw(text),
        "category": tuple(draw(st.lists(name, max_size=2))),
        "interest": tuple(dict.fromkeys(draw(st.lists(name, max_size=3)))),
        "exposure": draw(st.dictionaries(name, name, max_size=2)),
        "source": draw(text),
    }
    rates = st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1))
    if draw(st.booleans()):
        both = (draw(creatives("a")), draw(creatives("b")))
        return Campaign(id="x", creatives=both, true_rates=draw(rates), **shown)
    findings = tuple(
        AspectAnswer(
            question=q.key,
            answer=draw(st.sampled_from(["A>B", "A=B", "A<B"] if q.compares else ["yes", "no"])),
        )
        for q in QUESTIONS
    )
    return Pair(
        id="x",
        a=draw(creatives("left")),
        b=draw(creatives("right")),
        label=draw(st.sampled_from([None, "A", "B", "tie"])),
        assessment=draw(st.none() | st.just(Assessment(findings=findings, verdict="A"))),
        rationale=draw(text),
        true_rates=draw(rates),
        **shown,
    )


def content(row: Campaign | Pair) -> Any:
    """A row with its images by their bytes, and without the hashes that a reader adds."""
    record = row.model_dump(exclude={"creatives", "a", "b"})
    both = row.creatives if isinstance(row, Campaign) else (row.a, row.b)
    loaded = [
        (
            one.model_dump(exclude={"image", "sha256"}),
            one.image.data or Path(one.image.path or "").read_bytes(),
        )
        for one in both
    ]
    return type(row), record, loaded


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=st.lists(rows(), min_size=1, max_size=4))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[Campaign | Pair]
) -> None:
    written = [row.model_copy(update={"id": f"row {i}"}) for i, row in enumerate(drawn)]
    place = tmp_path_factory.mktemp("written")
    assert write_campaigns(place, written) == len(written)
    read, problems = split(place)
    assert not problems
    assert [content(row) for row in read] == [content(row) for row in written]
    again = tmp_path_factory.mktemp("again")
    write_campaigns(again, read)
    second = split(again)[0]
    assert [content(row) for row in second] == [content(row) for row in written]


def test_paths_are_relative_and_the_hash_is_of_the_bytes(shop: Path, tmp_path: Path) -> None:
    (row,), _ = split(write(shop / "some.jsonl", good()))
    assert isinstance(row, Campaign)
    write_campaigns(tmp_path / "out", [row])
    record = json.loads((tmp_path / "out" / FILE).read_text("utf-8"))
    image = record["creatives"][0]["image"]["path"]
    assert image.startswith("images/") and (tmp_path / "out" / image).read_bytes() == png(0)
    (tmp_path / "out").rename(tmp_path / "moved")
    (moved,), problems = split(tmp_path / "moved")
    assert not problems and moved.creatives[0].sha256 == row.creatives[0].sha256 != ""  # type: ignore[union-attr]


def test_data_and_addresses_are_images_too(shop: Path) -> None:
    record = good()
    record["creatives"][0]["image"] = {"data": base64.b64encode(png(5)).decode()}
    record["creatives"][1]["image"] = "https://shop.example/b.png"
    (row,), problems = split(write(shop / "some.jsonl", record))
    assert isinstance(row, Campaign) and not problems
    assert row.creatives[0].image.data == png(5)
    assert row.creatives[1].image.url == "https://shop.example/b.png" and row.creatives[1].sha256 == ""


def test_an_image_that_changed_is_told(shop: Path) -> None:
    record = good()
    record["creatives"][0]["sha256"] = "0" * 64
    read, problems = split(write(shop / "some.jsonl", record))
    assert len(read) == 1 and problems[0].field == "sha256" and not problems[0].fatal


def test_an_image_that_cannot_be_read_is_not_written(tmp_path: Path) -> None:
    lost = Creative(id="lost", image=ImageRef(path=str(tmp_path / "no.png")))
    both = (lost, lost.model_copy(update={"id": "b"}))
    with pytest.raises(UserError, match="creative lost"):
        write_campaigns(tmp_path / "out", [Campaign(id="c", product_id="p", creatives=both)])


# ------------------------------------------------------------------------------------------ poisoned rows


def broken(**change: Any) -> dict[str, Any]:
    """A campaign of three creatives the first of which has something wrong."""
    record = good("bad")
    record["creatives"].append({"id": "c", "image": "2.png"})
    record["creatives"][0] |= change
    return record


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"clicks": float("nan")}, "not a whole number"),
        ({"clicks": 2001}, "more than 2000 impressions"),
        ({"clicks": -1}, "negative"),
        ({"clicks": 1.5}, "not a whole number"),
        ({"clicks": True}, "not a whole number"),
        ({"impressions": 10**15}, "mistake"),
        ({"image": "no.png"}, "there is no file"),
        ({"image": "page.jpg"}, "not a picture"),
        ({"image": "../secret.png"}, "outside"),
        ({"image": "/etc/passwd"}, "outside"),
        ({"image": "link.png"}, "outside"),
        ({"image": "file:///etc/passwd"}, "scheme"),
        ({"image": {"data": "!!"}}, "base64"),
        ({"image": ["0.png"]}, "no image"),
        ({"image": None}, "no image"),
        ({"id": "b\x00"}, "control"),
        ({"id": "x" * 300}, "characters"),
        ({"id": "c"}, "has that id"),
    ],
)
def test_a_bad_creative_costs_only_itself(shop: Path, change: dict[str, Any], reason: str) -> None:
    read, problems = split(write(shop / "some.jsonl", broken(**change), good()))
    assert [row.id for row in read] == ["bad", "c1"]
    assert len(read[0].creatives) == 2  # type: ignore[union-attr]
    assert len(problems) == 1 and reason in problems[0].reason and not problems[0].fatal
    assert problems[0].row == 1 and problems[0].id == "bad"


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ("not json", "row"),
        ('{"id": "x", "creatives": [', "row"),
        ("[1, 2]", "row"),
        ("[" * 5000, "row"),
        ('{"id": 1' + "0" * 5000 + "}", "row"),
        ({"id": "x"}, "row"),
        ({"id": "x", "creatives": 3}, "creatives"),
        ({"id": "x", "creatives": []}, "creatives"),
        ({"id": "x", "creatives": [None, 1, "a"]}, "creatives"),
        (good("x\x07"), "id"),
        (good(""), "id"),
        (good("c1"), "id"),
        ({"id": "x", "a": {"image": "0.png"}, "b": {"image": "../secret.png"}}, "b.image"),
        ({"id": "x", "a": 1, "b": 2}, "a.image"),
        ({"id": "x", "a": {"image": "0.png"}, "b": {"image": "1.png"}, "label": "C"}, "label"),
    ],
)
def test_a_bad_row_costs_only_itself(shop: Path, row: Any, field: str) -> None:
    if isinstance(row, dict) and row.get("id") == "":
        row["product_id"] = ""
    read, problems = split(write(shop / "some.jsonl", good(), row, good("c3")))
    assert [one.id for one in read] == ["c1", "c3"]
    fatal = [problem for problem in problems if problem.fatal]
    assert len(fatal) == 1 and fatal[0].row == 2 and fatal[0].field == field


def test_long_and_dirty_texts_are_mended(shop: Path) -> None:
    dirty = good(title="x" * 2**20, interest=["red\x00 shoe", "red\x00 shoe", 7, ""], category="A > B")
    (row,), problems = split(write(shop / "some.jsonl", dirty))
    assert len(row.title) == MAX_TITLE and row.interest == ("red  shoe", "7") and row.category == ("A", "B")
    assert {problem.field for problem in problems} == {"title", "interest"}
    assert not any(problem.fatal for problem in problems)


def test_mixed_encodings(shop: Path) -> None:
    lines = [
        json.dumps(good("é1", title="Café"), ensure_ascii=False).encode(code) for code in ("utf-8", "cp1252")
    ]
    (shop / "some.jsonl").write_bytes(
        b"\xef\xbb\xbf" + lines[0] + b"\r\n" + lines[1].replace(b'1"', b'2"', 1) + b"\n"
    )
    read, problems = split(shop / "some.jsonl")
    assert [(row.id, row.title) for row in read] == [("é1", "Café"), ("é2", "Café")]
    assert all("Windows-1252" in problem.reason for problem in problems)
    for codec in ("utf-16", "utf-16-le"):
        (shop / "some.jsonl").write_bytes("\n".join(json.dumps(good(n)) for n in "ab").encode(codec))
        assert [row.id for row in split(shop / "some.jsonl")[0]] == ["a", "b"]
    (shop / "some.jsonl.gz").write_bytes(gzip.compress(json.dumps(good()).encode()))
    assert len(split(shop / "some.jsonl.gz")[0]) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["0.png", "1.png", "../secret.png", "\udc80", "A", "left", "\x00", "a/../../x"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from([
            "id", "a", "b", "image", "path", "data", "image_a", "image_b", "label", "clicks", "impressions",
            "creatives", "target", "facts", "Q1", "questions", "true_rates", "title",
        ]),
        inner, max_size=6,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.lists(json_values, max_size=4), noise=st.binary(max_size=60))
def test_nothing_in_json_lines_stops_the_rest(shop: Path, junk: list[Any], noise: bytes) -> None:
    dumped = b"\n".join(json.dumps(value).encode() for value in junk)
    first, last = (json.dumps(good(f"good {n}")).encode() for n in (1, 2))
    (shop / "some.jsonl").write_bytes(b"\n".join((first, dumped, noise.replace(b"\0", b""), last)))
    read, problems = split(shop / "some.jsonl")
    assert {"good 1", "good 2"} <= {row.id for row in read}
    assert all(isinstance(problem.reason, str) and problem.reason for problem in problems)
    for row in read:
        both = row.creatives if isinstance(row, Campaign) else (row.a, row.b)
        assert all(one.image.path is None or str(shop) in one.image.path for one in both)
        row.model_dump_json(exclude={"creatives": {"__all__": {"image"}}, "a": {"image"}, "b": {"image"}})


def test_count() -> None:
    assert [count(x, "n") for x in (None, "", " ", 3, 3.0, "3", "3.0", "1,234,567", MAX_COUNT)] == [
        None, None, None, 3, 3, 3, 3, 1_234_567, MAX_COUNT,
    ]  # fmt: skip
    for bad in ("1.234", "1e5", "abc", "12,34", "٣", -1, "-1", float("inf"), [1], "9" * 5000, 10**13):
        with pytest.raises(RowRejected):
            count(bad, "n")


# ------------------------------------------------------------------------------------------ tables


def table(path: Path, *rows_: list[Any], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows_)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize(
    "header",
    [
        ["product_id", "title", "interest", "image", "impressions", "clicks"],
        ["Item ID", "Product Title", "Search terms", "Image Path", "Impr.", "Clicks"],
        ["SKU", "Name", "Keywords", "filename", "Views", "clk"],
    ],
)
def test_a_table_by_several_names(shop: Path, header: list[str], encoding: str) -> None:
    path = table(
        shop / "t.csv",
        header,
        ["p1", "Café chair", "chair|garden chair", "0.png", "2,000", "60"],
        ["p2", "Lamp", "", "2.png", "", ""],
        ["p1", "Café chair", "chair|garden chair", "1.png", "2000", "20"],
        ["p2", "Lamp", "", "3.png", "", ""],
        delimiter=";",
        encoding=encoding,
    )
    read, problems = split(path)
    assert not [problem for problem in problems if problem.fatal]
    chair, lamp = read
    assert isinstance(chair, Campaign) and isinstance(lamp, Campaign)
    assert (chair.product_id, chair.title, chair.interest) == ("p1", "Café chair", ("chair", "garden chair"))
    assert [(c.id, c.impressions, c.clicks) for c in chair.creatives] == [("0", 2000, 60), ("1", 2000, 20)]
    assert lamp.interest == () and lamp.creatives[0].rate is None


def test_days_add_up_and_contexts_stay_apart(shop: Path) -> None:
    path = table(
        shop / "t.csv",
        ["product_id", "creative_id", "image", "impressions", "clicks", "device"],
        ["p", "a", "0.png", 100, 5, "phone"],
        ["p", "b", "1.png", 100, 4, "phone"],
        ["p", "a", "0.png", 50, 1, "phone"],
        ["p", "a", "0.png", 10, 1, "desk"],
        ["p", "b", "1.png", 10, 2, "desk"],
    )
    (phone, desk), problems = split(path)
    assert not problems
    assert isinstance(phone, Campaign) and isinstance(desk, Campaign)
    assert (phone.creatives[0].impressions, phone.creatives[0].clicks) == (150, 6)
    assert (desk.id, desk.exposure, desk.creatives[1].clicks) == ("p#2", {"device": "desk"}, 2)


def test_bad_rows_of_a_table(shop: Path) -> None:
    path = table(
        shop / "t.csv",
        ["product_id", "creative_id", "image", "impressions", "clicks"],
        ["p", "a", "0.png", 100, 5],
        ["p", "b", "1.png", 100, "NaN"],
        ["p", "c", "2.png", 100, 101],
        ["p", "a", "3.png", 100, 5],
        ["p", "d", "../secret.png", 100, 5],
        ["p", "e", "", 100, 5],
        ["p", "f", "3.png", 100, 5, "too", "many"],
        ["p", "g", "no.png", 100, 5],
        ["p", "h", "1.png", 100, 9],
        ["q", "lonely", "1.png", 100, 9],
    )
    read, problems = split(path)
    assert len(read) == 1 and [c.id for c in read[0].creatives] == ["a", "h"]  # type: ignore[union-attr]
    assert [p.row for p in problems if p.fatal] == [2, 3, 4, 5, 6, 7, 10]
    assert [p.row for p in problems if not p.fatal] == [1]  # the picture that is missing


cell = st.text(st.characters(exclude_characters='"\r\n', codec="utf-8"), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.lists(st.lists(cell, max_size=7), max_size=5))
def test_nothing_in_a_table_stops_the_rest(shop: Path, junk: list[list[str]]) -> None:
    header = ["product_id", "creative_id", "image", "impressions", "clicks"]
    fine = [["good", "a", "0.png", 100, 5], ["good", "b", "1.png", 100, 5]]
    path = table(shop / "t.csv", header, fine[0], *junk, fine[1])
    read, _ = split(path)
    assert "good" in {row.product_id for row in read}


@pytest.mark.parametrize("kind", ["rows", "table", "folder"])
@pytest.mark.parametrize("start", ["inside", "beside", "below"])
def test_a_relative_path_reads_what_the_absolute_one_does(
    shop: Path, kind: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop / "other").mkdir()
    made = {
        "rows": lambda: write(shop / "rows.jsonl", good()),
        "table": lambda: write(shop / "t.csv", "product_id,image", "p,0.png", "p,1.png"),
        "folder": lambda: shop,
    }[kind]()  # fmt: skip
    absolute = split(made)
    assert absolute[0]
    monkeypatch.chdir({"inside": shop, "beside": shop.parent, "below": shop / "other"}[start])
    assert split(Path(os.path.relpath(made))) == absolute


# ------------------------------------------------------------------------------------------ pictures


def test_a_folder_is_a_product_and_subfolders_are_others(shop: Path) -> None:
    (shop / "other").mkdir()
    for i in (7, 8):
        (shop / "other" / f"{i}.png").write_bytes(png(i))
    read, problems = split(shop)
    assert {row.product_id: [c.id for c in row.creatives] for row in read} == {  # type: ignore[union-attr]
        "data": ["0", "1", "2", "3"], "other": ["7", "8"],
    }  # fmt: skip
    assert {p.reason.split(" was left out")[0] for p in problems} == {"creative link", "creative page"}


def test_what_cannot_be_read_at_all_says_so(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.csv").write_text("")
    write(tmp_path / "other.csv", "name,price")
    write(tmp_path / "array.json", "[{]")
    for path, why in (
        (tmp_path / "empty", "no pictures"),
        (tmp_path / "empty.csv", "empty"),
        (tmp_path / "other.csv", "no column of images"),
        (tmp_path / "array.json", "not valid JSON"),
        (tmp_path / "none.csv", "no file or folder"),
        (shop / "0.png", "is an image"),
    ):
        with pytest.raises(UserError, match=why):
            read_creatives(path)
