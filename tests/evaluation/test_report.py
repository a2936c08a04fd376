"""The page: well-formed, one file, harmless whatever the catalogue says, and true to what it was given."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest

from html_reader import Reader
from moonshelf.evaluation.contract import Result
from moonshelf.evaluation.report.demo_page import (
    Card,
    Chip,
    Hit,
    Page,
    Search,
    Tile,
    chips,
    render,
)
from moonshelf.evaluation.report.page import data_uri
from research.synthetic.shop import iter_truth

XSS = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7 * 7 }}"
JPEG = data_uri(b"\xff\xd8\xff\xd9")


def figure(encoder="moonshelf reasoned", **changes) -> Result:
    known = Result(
        "sampleshop", "text → product", "text", "ranking", "R@1", encoder,
        0.4321, 0.31, 0.56, 40, 40, 160, 0.0212,
    )  # fmt: skip
    return replace(known, **changes)


@pytest.fixture
def page() -> Page:
    hits = [Hit(XSS, JPEG, 3, "vector 1, text 2"), Hit("blue mug", "", 0)]
    card = Card(
        "p1", XSS, JPEG,
        [
            Chip("category", "mugs", "right", "mugs"), Chip("colour", "red", "wrong", "maroon", False),
            Chip("use", XSS, "unjudged"), Chip("handle", "", "missing", "round"),
        ],
        (0.612, 0.25, 0.138),
    )  # fmt: skip
    return Page(
        "A shop, read by a model",
        "What a reader sees first.",
        tiles=[Tile(figure(), "Words", "40 queries")],
        cards=[card, Card("p2", "cup", "", [], (1.0, 0.0, 0.0), False, f"<think>{XSS}")],
        searches=[Search("Photo and words", XSS, JPEG, hits), Search("Photo", "", JPEG, [])],
        families={"variant": [(hits, [f"p1 and p2: {XSS}"])]},
        family_counts={"duplicate": 0, "variant": 17},
        notes=["Drawn products."],
        steps=[("embed", "12 new", 3.25)],
        facts={"Command": "moonshelf demo", "Model": XSS},
        next_command=f'moonshelf search demo/catalogue "{XSS}"',
    )


def test_it_is_whole_and_needs_nothing_else(page):
    html = render(page)
    reader = Reader(html)
    assert html.lstrip().lower().startswith("<!doctype html>")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in reader.found}
    assert all(not name.startswith("on") for _, attrs in reader.found for name in attrs)
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in reader.all("img"))
    assert all(a["href"].startswith("#") for a in reader.all("a"))
    policy = [m["content"] for m in reader.all("meta") if m.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_catalogue_text_stays_text(page):
    html, reader = render(page), Reader(render(page))
    assert "<script" not in html and "onerror=alert" not in re.sub(r"&lt;.*?&gt;", "", html)
    assert "{{ 7 * 7 }}" in reader.text and "<script>alert(1)</script>" in reader.text
    hidden = {tag for tag, _ in reader.found} & {"script", "svg", "template"}
    assert not hidden and len(reader.all("img")) == html.count('<img src="data:')


def test_control_and_bidi_characters_do_not_reach_the_page(page):
    page.cards[0] = replace(page.cards[0], title="left\u202eright\x00\u2066end")
    html = render(page)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08]", html)


def test_it_can_be_read_without_seeing_it(page):
    reader = Reader(render(page))
    assert reader.all("html") == [{"lang": "en"}]
    assert all(image.get("alt") for image in reader.all("img"))
    assert all(th.get("scope") in ("row", "col") for th in reader.all("th"))
    levels = [int(tag[1]) for tag, _ in reader.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attrs["id"] for _, attrs in reader.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = [attrs["aria-labelledby"] for _, attrs in reader.found if "aria-labelledby" in attrs]
    linked = [a["href"][1:] for a in reader.all("a")]
    assert set(named) <= set(ids) and set(linked) <= set(ids)


def test_it_says_the_figures_that_it_was_given(page):
    text = Reader(render(page)).text
    for said in (
        "43.2 %",
        "31.0 to 56.0 %",
        "2.1 %",
        "61.2 %",
        "17 groups",
        "3.2 s",
    ):
        assert said in text, said
    assert "wrong, in truth maroon" in text and "Not written: handle" in text
    assert "This rationale broke its format" in text and "exactly what was asked" in text
    assert "vector 1, text 2" in text and "evaluation/report.html" in text
    widths = [
        a["style"] for _, a in Reader(render(page)).found if str(a.get("style", "")).startswith("width")
    ]
    assert "width:43.21%" in widths and "width:61.20%" in widths


def test_an_empty_page_says_that_there_is_nothing():
    assert Reader(render(Page("nothing", ""))).text.count("None found.") == 3


def test_pairs_are_held_against_the_truth():
    truth = next(t for t in iter_truth(40, 3) if t.category[-1] == "Mugs")
    colour, handle = truth.attributes["colour"], truth.attributes["handle"]
    path = " > ".join(truth.category).lower()
    written = f"<think>category: {path}; color: {colour.upper()}; handle: wrong; use: daily</think>"
    found = {chip.key: chip for chip in chips(written, truth)}
    assert found["category"] == Chip("category", "mugs", "right", "mugs")
    assert found["colour"].mark == "right" and found["colour"].in_title is ("colour" not in truth.omitted)
    assert (found["handle"].mark, found["handle"].truth) == ("wrong", handle)
    assert found["use"].mark == "unjudged"
    left = set(truth.attributes) - {"colour", "handle"}
    assert {key for key, chip in found.items() if chip.mark == "missing"} == left
    assert {chip.mark for chip in chips("<think>no pairs", truth)} == {"missing"}
