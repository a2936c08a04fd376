"""The shop as others use it: the same from the same seed, true in words, graded by rule, a readable feed."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from moonshelf.attributes import canonical_key, normalise_value
from moonshelf.images import decode
from moonshelf.sample import Query, Shop, write_shop
from research.synthetic.shop import DrawnTruth, contact_sheet, iter_products, iter_truth, make_shop
from research.synthetic.shop.queries import grade
from research.synthetic.shop.spec import COLOURS, KINDS, Spec
from research.synthetic.shop.words import said


@pytest.fixture(scope="module")
def shop() -> Shop:
    return make_shop(46, seed=3, photos=2, size=64, n_queries=40)


_PRINT = """
import hashlib
from research.synthetic.shop import make_shop
shop = make_shop(6, seed=9, photos=2, size=64, n_queries=8)
digest = hashlib.sha256()
for product in shop.products:
    digest.update(product.content_hash().encode())
for query in shop.queries:
    digest.update(query.id.encode() + query.text.encode() + (query.image.data if query.image else b""))
    digest.update(repr(sorted(query.relevance.items())).encode())
print(digest.hexdigest())
"""


def test_another_process_makes_the_same_bytes() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", _PRINT],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": s},
        )
        for s in ("1", "2")
    ]
    assert len(runs[0].stdout.strip()) == 64
    assert runs[0].stdout == runs[1].stdout


def test_a_shop_is_the_beginning_of_a_larger_one_and_seeds_differ() -> None:
    few, more = (list(iter_products(n, seed=4, photos=1, size=32)) for n in (5, 9))
    assert [p.content_hash() for p in few] == [p.content_hash() for p in more[:5]]
    other = list(iter_products(5, seed=5, photos=1, size=32))
    assert {p.content_hash() for p in few}.isdisjoint(p.content_hash() for p in other)


def test_truth_agrees_with_the_products(shop: Shop) -> None:
    assert len(shop.products) == 46 == len(shop.truth)
    for product in shop.products:
        truth = shop.truth[product.id]
        assert (product.category, product.attributes, product.group_id) == (
            truth.category,
            truth.attributes,
            truth.group,
        )
        for key, value in product.attributes.items():
            assert canonical_key(key) == key and normalise_value(key, value) == value
        assert product.images[0].role == "main"
        assert all(decode(ref.data).size == (64, 64) for ref in product.images if ref.data)
        assert product.price and product.description and product.title and product.brand


def test_every_category_is_in_a_shop_of_the_usual_size() -> None:
    assert {t.category for t in iter_truth(120, 0)} == {kind.category for kind in KINDS.values()}


def test_variants_share_the_design_and_differ_in_colour(shop: Shop) -> None:
    groups = defaultdict(list)
    for truth in shop.truth.values():
        groups[truth.group].append(truth)
    assert any(len(members) > 1 for members in groups.values())
    for members in groups.values():
        assert len({t.attributes["colour"] for t in members}) == len(members)
        rest = [{k: v for k, v in t.attributes.items() if "colour" not in k} for t in members]
        assert all(r == rest[0] for r in rest) and len({t.spec.style for t in members}) == 1


def test_titles_never_contradict_the_truth_and_say_what_they_do_not_omit() -> None:
    products = iter_products(400, seed=11, photos=0)
    omitting = 0
    for product, truth in zip(products, iter_truth(400, seed=11), strict=True):
        title = f" {re.sub(r'[^a-z&-]+', ' ', product.title.lower())} "
        rest = title  # "white sole" says nothing of the product's own colour
        for key, value in truth.attributes.items():
            rest = rest.replace(f" {said(value)} ", "  ") if "colour" not in key else rest
        own = {value for key, value in truth.attributes.items() if "colour" in key}
        for colour in COLOURS:
            if f" {colour} " in rest:
                assert colour in own or any(colour in mine.split() for mine in own), (product.title, own)
        for key, values in KINDS[truth.spec.kind].details.items():
            for value in values:
                words = said(value)
                if words and value != truth.attributes[key] and f" {words} " in title:
                    assert any(f" {words} " in f" {said(v)} " for v in truth.attributes.values()), (
                        product.title
                    )
        for key, value in truth.attributes.items():
            if key not in truth.omitted:
                assert said(value).lower() in product.title.lower(), (key, value, product.title)
        omitting += bool(truth.omitted)
    assert omitting > 300  # most titles leave something to the picture


def _truth(attributes: dict[str, str], kind: str = "mug") -> DrawnTruth:
    spec = Spec(kind, attributes)
    return DrawnTruth("x", spec.category, attributes, "g", (), spec)


def test_grades_follow_the_stated_rule() -> None:
    mug, shelf = KINDS["mug"].category, {"colour": "red", "material": "glass", "shape": "straight"}
    assert grade(_truth(shelf), mug, {"colour": "red", "material": "glass"}) == 3
    assert grade(_truth(shelf), mug, {"colour": "red", "material": "ceramic"}) == 2
    assert grade(_truth(shelf), mug, {"colour": "blue"}) == 1  # one facet met only: the category
    assert grade(_truth(shelf), mug, {"colour": "blue", "material": "ceramic"}) == 1
    assert grade(_truth(shelf, "bottle"), mug, {"colour": "red"}) == 1  # a sibling with all that was asked
    assert grade(_truth(shelf, "bottle"), mug, {"colour": "blue"}) == 0
    assert grade(_truth(shelf, "vase"), mug, {"colour": "red"}) == 0
    assert grade(_truth(shelf), None, {"colour": "red", "material": "glass"}) == 3
    assert grade(_truth(shelf), None, {"colour": "red", "material": "glass", "shape": "tapered"}) == 2
    assert grade(_truth(shelf), None, {"colour": "red", "material": "wood"}) == 0


def test_queries_of_all_three_kinds_have_an_answer(shop: Shop) -> None:
    by_kind: dict[str, list[Query]] = defaultdict(list)
    for query in shop.queries:
        by_kind[query.modality].append(query)
        assert max(query.relevance.values()) == 3
        assert set(query.relevance) <= set(shop.truth) and set(query.relevance.values()) <= {1, 2, 3}
    assert {kind: len(queries) >= 5 for kind, queries in by_kind.items()} == dict.fromkeys(
        ("text", "image", "composed"), True
    )
    assert len({q.id for q in shop.queries}) == len(shop.queries)
    catalogue = {ref.data for product in shop.products for ref in product.images}
    assert all(q.image.data not in catalogue for q in shop.queries if q.image)
    for query in by_kind["composed"]:
        best = [k for k, v in query.relevance.items() if v == 3]
        assert len(best) == 1 and shop.truth[best[0]].attributes["colour"] in query.text


def test_write_shop_makes_a_feed_that_reads_back(shop: Shop, tmp_path: Path) -> None:
    feed = write_shop(shop, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "queries.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [q.id for q in shop.queries]
    assert all((tmp_path / line["image"]).is_file() for line in lines if "image" in line)
    truth = [json.loads(line) for line in (tmp_path / "truth.jsonl").read_text().splitlines()]
    assert {row["id"] for row in truth} == set(shop.truth)
    feeds = pytest.importorskip("moonshelf.feeds")
    if not hasattr(feeds, "read_feed"):
        pytest.skip("the feed readers are not there yet")
    read = list(feeds.read_feed(feed))
    assert [p.id for p in read] == [p.id for p in shop.products]
    for back, product in zip(read, shop.products, strict=True):
        assert back.model_copy(update={"images": ()}) == product.model_copy(update={"images": ()})
        sent = [hashlib.sha256(ref.data or b"").digest() for ref in product.images]
        assert [hashlib.sha256(Path(ref.path).read_bytes()).digest() for ref in back.images] == sent


def test_contact_sheet_shows_every_product(shop: Shop, tmp_path: Path) -> None:
    contact_sheet(shop, tmp_path / "sheet.png", columns=8, size=32)
    sheet = decode((tmp_path / "sheet.png").read_bytes())
    assert sheet.size == (8 * 32, 6 * 32)
    assert sheet.crop((0, 0, 32, 32)).getextrema() != sheet.crop((32, 0, 64, 32)).getextrema()
