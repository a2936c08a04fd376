"""Duplicates: identifiers and variant attributes outrank looks; groups are complete-link."""

from __future__ import annotations

import io
from itertools import combinations

import pytest
from fake_model import FakeModel, picture, product
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from moonshelf.catalogue import Catalogue
from moonshelf.catalogue.matching.duplicates import Pair, complete_link
from moonshelf.catalogue.tables import show_duplicates
from moonshelf.product import ImageRef, Product

GTIN_A, GTIN_B, GTIN_BAD = "4006381333931", "0012345678905", "4006381333932"
LONG = "Acme soft warm cotton work shirt for men"
PHOTO = (ImageRef(data=picture((200, 30, 30), stripes=5)),)
OTHER = (ImageRef(data=picture((10, 200, 200), stripes=3)),)


def shirt(id: str, **changes) -> Product:
    fields = {"title": "Acme cotton shirt", "images": PHOTO, "brand": "Acme", **changes}
    return Product(id=id, **fields)


@pytest.fixture
def find(tmp_path):
    def run(*products: Product, **options):
        shelf = Catalogue.create(tmp_path / "shelf", FakeModel())
        shelf.embed(products, allow_removals=True)
        return shelf.duplicates(**options)

    return run


def pairs(report) -> dict[tuple[str, str], str]:
    return {(p.a, p.b) if p.a < p.b else (p.b, p.a): p.kind for g in report.groups for p in g.pairs}


@pytest.mark.parametrize(
    ("one", "two", "kind"),
    [
        # identifiers that agree, looks that do not
        ({"gtin": GTIN_A}, {"gtin": GTIN_A, "title": "blue mug", "images": OTHER}, "duplicate"),
        ({"gtin": "12345678905"}, {"gtin": GTIN_B}, "similar"),  # not a GTIN: a digit is missing
        ({"gtin": "012345678905"}, {"gtin": GTIN_B, "images": OTHER}, "duplicate"),  # UPC, EAN
        ({"mpn": "AC-1"}, {"mpn": "ac 1", "title": "a mug", "images": OTHER}, "duplicate"),
        # a part number without its brand, or of another brand, is nothing
        ({"mpn": "1"}, {"mpn": "1", "brand": "Bolt", "title": "blue mug", "images": OTHER}, None),
        # GTINs that differ, looks that agree
        ({"gtin": GTIN_A}, {"gtin": GTIN_B}, "variant"),
        ({"gtin": GTIN_A}, {"gtin": GTIN_B, "brand": "Bolt"}, None),
        ({"gtin": GTIN_A, "mpn": "1"}, {"gtin": GTIN_B, "mpn": "1"}, "variant"),
        # a GTIN with a wrong check digit is no evidence in either direction
        ({"gtin": GTIN_BAD}, {"gtin": GTIN_BAD, "title": "blue mug", "images": OTHER}, None),
        ({"gtin": GTIN_A}, {"gtin": GTIN_BAD}, "similar"),
        # variants of one group, one part number, one title
        (
            {"group_id": "g", "attributes": {"color": "Red"}},
            {"group_id": "g", "attributes": {"colour": "blue"}},
            "variant",
        ),
        ({"mpn": "1", "attributes": {"size": "S"}}, {"mpn": "1", "attributes": {"size": "M"}}, "variant"),
        ({"attributes": {"color": "Red"}}, {"attributes": {"color": "Blue"}}, "variant"),
        ({"group_id": "g", "attributes": {"x": "a"}}, {"group_id": "g", "attributes": {"x": "b"}}, "similar"),
        # looks
        ({}, {}, "similar"),
        ({}, {"title": "Acme cotton shirt", "images": OTHER}, None),  # the vectors are apart
        ({}, {"brand": "Bolt", "title": "Acme cotton shirt"}, "similar"),  # both witnesses
        ({}, {"brand": "Bolt", "title": "blue mug"}, None),
        ({"title": f"{LONG} 10"}, {"title": f"{LONG} 20"}, "similar"),  # one photo
        ({"title": "Acme shirt L10"}, {"title": "Acme shirt L20", "images": OTHER}, None),  # another model
    ],
)  # fmt: skip
def test_what_two_products_are(find, one, two, kind):
    assert pairs(find(shirt("a", **one), shirt("b", **two))) == ({("a", "b"): kind} if kind else {})


def test_evidence_says_what_agrees_and_what_does_not(find):
    report = find(
        shirt("a", gtin=GTIN_A, attributes={"color": "Red", "fit": "slim"}),
        shirt("b", gtin=GTIN_A, attributes={"colour": "blue", "fit": "slim"}, group_id="g"),
    )
    [group] = report.of("duplicate")
    [pair] = group.pairs
    assert pair.evidence["identifiers"] == {"gtin": "same", "brand": "same"}
    assert pair.evidence["attributes_agree"] == ["fit"]
    assert pair.evidence["attributes_differ"] == {"colour": ["red", "blue"]}
    assert pair.evidence["conflicts"] == ["one GTIN, but colour is red and blue"]
    assert pair.evidence["title_overlap"] == 1.0 and pair.evidence["picture_bits"] == 0


def test_nothing_is_merged(find, tmp_path):
    find(shirt("a", gtin=GTIN_A), shirt("b", gtin=GTIN_A))
    assert len(Catalogue.open(tmp_path / "shelf", FakeModel())) == 2


def test_a_chain_does_not_bridge(find):
    """a and b share a GTIN, b and c a part number; a and c share nothing that makes them one."""
    report = find(
        shirt("a", gtin=GTIN_A),
        shirt("b", gtin=GTIN_A, mpn="7", title="cup", images=()),
        shirt("c", mpn="7", title="blue mug", images=OTHER),
    )
    assert sorted(g.ids for g in report.of("duplicate")) == [["a", "b"], ["b", "c"]]


def test_an_identifier_that_everything_shares_is_no_evidence(find):
    products = [product(i, group_id="the shop", mpn="n/a", brand="Acme", images=()) for i in range(101)]
    report = find(*products, min_score=0.999)
    assert report.of("duplicate") == report.of("variant") == []
    assert len(report.notes) == 2 and "101 products share" in report.notes[0]


@pytest.mark.parametrize("value", ["Does not apply", "none", "N/A", "-", "000000", "unbekannt"])
def test_a_placeholder_is_no_evidence(find, value):
    """Also where it reached the catalogue without a reader."""
    fields = {"mpn": value, "group_id": value, "gtin": value}
    names = ("Red ceramic mug", "Leather office chair", "Wool socks")
    report = find(
        *(product(i, title=name, brand="Acme", images=(), **fields) for i, name in enumerate(names))
    )
    assert report.groups == []
    assert len(report.notes) == 3 and all(
        f"share the {n} '{value}'" in " ".join(report.notes) for n in fields
    )
    two = find(
        *(shirt(id, title=t, brand="Unbranded", mpn="7", images=()) for id, t in (("a", "mug"), ("b", "hat")))
    )
    assert two.groups == []  # no maker, so the part number is nobody's


def test_one_gtin_on_many_articles_is_questioned(find):
    """Titles that have nothing in common are not one article; the same article often over is pointed out."""
    names = ("Red ceramic mug", "Leather office chair", "Wool socks", "Garden hose")
    unlike = find(*(product(i, title=t, gtin=GTIN_A, images=()) for i, t in enumerate(names)))
    assert unlike.of("duplicate") == [] and "nothing in common" in unlike.notes[0]
    alike = find(*(product(i, title=f"Red ceramic mug {i}", gtin=GTIN_A, images=()) for i in range(5)))
    assert len(alike.of("duplicate")[0].ids) == 5 and "is it one article?" in alike.notes[0]


def test_min_score_decides_what_looks_alike(find):
    assert find(shirt("a"), shirt("b", title="Acme cotton shirt new"), min_score=0.9999).groups == []


def test_the_printed_list_shows_names_as_they_are(find):
    report = find(shirt("[red]a[/red]", gtin=GTIN_A, title="[bold]x\x1b[31m"), shirt("b", gtin=GTIN_A))
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    show_duplicates(report, console)
    text = console.file.getvalue()
    assert "[red]a[/red]" in text and "[bold]x" in text and "\x1b" not in text
    assert "same gtin" in text and "Nothing is merged" in text


NAMES = "abcdefg"


@given(st.dictionaries(st.sampled_from(list(combinations(NAMES, 2))), st.floats(0, 1)))
def test_groups_are_cliques_and_lose_no_pair(edges):
    listed = [Pair(a, b, "similar", score, {"identifiers": {}}) for (a, b), score in edges.items()]
    groups = complete_link("similar", listed, {name: name for name in NAMES})
    covered = set()
    for group in groups:
        within = set(combinations(group.ids, 2))
        assert within <= set(edges) and {(p.a, p.b) for p in group.pairs} == within
        covered |= within
    assert covered == set(edges)
