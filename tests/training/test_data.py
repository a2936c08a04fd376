"""Sampling and batches: real queries, hard neighbours, chunks, and what shares a batch."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshelf import MoonModel, Product
from moonshelf.feeds import write_jsonl
from moonshelf.product import ImageRef
from moonshelf.training.data import (
    Sampler,
    Source,
    SourceSpec,
    duplicate_mask,
    open_source,
    positive_mask,
    prepare,
)
from moonshelf.training.sources.pairs import Item, Query
from research.synthetic.shop import iter_products


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_jsonl(iter_products(12, seed=8, photos=2, size=96), folder / "shop.jsonl")
    return folder


@pytest.fixture(scope="module")
def items(shop: Path) -> list[Item]:
    return open_source(SourceSpec(feed="shop.jsonl"), shop).items


def test_sources_are_drawn_by_weight_and_no_item_twice(items: list[Item]) -> None:
    sampler = Sampler([Source(items[:6], 3.0), Source([replace(i, source="b") for i in items[6:]], 1.0)])
    draws = [sampler.draw(4, random.Random(i)) for i in range(200)]
    assert all(len({item.id for item in draw}) == 4 for draw in draws)
    share = np.mean([item.source != "b" for draw in draws for item in draw])
    assert 0.6 < share < 0.85
    assert sampler.draw(4, random.Random(3)) == draws[3]
    assert len(sampler.draw(50, random.Random(0))) == 12  # all that there are


def test_hard_neighbours_come_along(items: list[Item]) -> None:
    near = {items[0].id: (items[5],), items[1].id: ()}
    sampler = Sampler([Source(items, near=near)])
    draws = [sampler.draw(6, random.Random(i)) for i in range(100)]
    with_anchor = [{i.id for i in draw} for draw in draws if items[0] in draw[:-1]]
    assert with_anchor and all(items[5].id in ids for ids in with_anchor)


def test_half_of_an_items_queries_are_the_shoppers_own(
    model: MoonModel, shop: Path, items: list[Item]
) -> None:
    log = shop / "log.csv"
    log.write_text(
        "query,product_id,clicks\n" + "".join(f"words for {i.product},{i.product},3\n" for i in items)
    )
    source = open_source(SourceSpec(feed="shop.jsonl", click_log="log.csv"), shop)
    sampler = Sampler([source])
    texts = [
        query.text
        for n in range(12)
        for query in prepare(model, source.items, "pair", str(n), asked=sampler.asked).queries
    ]
    share = np.mean([text.startswith("words for") for text in texts])
    assert 0.35 < share < 0.65
    direct = prepare(model, source.items, "direct", "k", asked=sampler.asked)
    assert not any(q.text.startswith("words for") for q in direct.queries)


def test_a_shoppers_picture_is_the_querys_and_a_broken_one_is_passed_over(
    model: MoonModel, items: list[Item]
) -> None:
    item = items[0]
    good = Query("", image=items[1].images[0], answers=frozenset({item.group}))
    bad = replace(good, image=ImageRef(data=b"not a picture"))
    for query, picture in ((good, True), (bad, None)):
        asked = {(item.source, item.id): [(query, 1.0)]}
        draws = [prepare(model, [item], "pair", str(n), asked=asked) for n in range(12)]
        real = [draw for draw in draws if draw.queries[0].answers]
        assert bool(real) == bool(picture)
        assert all(draw.queries[0].picture and len(draw.view[0]) == 1 for draw in real)
        assert all(len(draw.items) == 1 for draw in draws)


@pytest.mark.parametrize("kind", ["direct", "pair", "reasoned"])
def test_chunks_and_shares_are_parts_of_the_whole(model: MoonModel, items: list[Item], kind: str) -> None:
    whole = prepare(model, items[:6], kind, "key")
    rest = prepare(model, items[2:6], kind, "key", first=2)
    part = whole.part(2, 6)
    for name in ("titles", "shown", "synthetic", "queries", "own", "view", "supervised", "left"):
        assert getattr(part, name) == getattr(rest, name), name
    assert np.array_equal(part.pictures.grids, rest.pictures.grids)
    for mine, theirs in zip(part.pictures.patches, rest.pictures.patches, strict=True):
        assert np.array_equal(mine, theirs)


def test_hiding_takes_the_picture_and_half_as_often_the_title_too(
    model: MoonModel, items: list[Item]
) -> None:
    left = [
        pair
        for n in range(40)
        for pair in prepare(model, items[:6], "reasoned", str(n), modality_dropout=0.5).left
    ]
    assert set(left) == {(True, True), (True, False), (False, False)}
    assert 0.4 < np.mean([not pictures for _, pictures in left]) < 0.6
    assert 0.15 < np.mean([not title for title, _ in left]) < 0.35
    assert set(prepare(model, items[:6], "reasoned", "k", modality_dropout=0).left) == {(True, True)}


def test_variants_and_equal_titles_are_never_negatives(items: list[Item]) -> None:
    a, b, c = list({item.group: item for item in items}.values())[:3]
    twin, namesake = replace(a, id="twin", title="another"), replace(b, id="namesake", group="elsewhere")
    batch = [a, b, twin, namesake, c]
    assert duplicate_mask(batch, batch).tolist() == [
        [x.group == y.group or x.title == y.title for y in batch] for x in batch
    ]
    asked = positive_mask([Query("x", answers=frozenset({c.group}))], [a], batch)
    assert asked[0].tolist() == [True, False, True, False, True]


@given(st.data())
def test_masks_are_what_items_and_queries_say_of_each_other(data: st.DataObject) -> None:
    word = st.sampled_from("abc")
    things = [
        Item(str(n), data.draw(word), data.draw(st.sampled_from(["", "a b", "b c", "c"])), (), (), facts)
        for n, facts in enumerate(data.draw(st.lists(st.dictionaries(word, word, max_size=2), max_size=5)))
    ]
    query = st.builds(
        Query, facts=st.frozensets(st.tuples(word, word), max_size=2), words=st.frozensets(word, max_size=2),
        picture=st.booleans(), answers=st.frozensets(word, max_size=1),
    )  # fmt: skip
    queries = [data.draw(query) for _ in things]
    assert duplicate_mask(things, things[1:]).tolist() == [[a.same(b) for b in things[1:]] for a in things]
    assert positive_mask(queries, things, things).tolist() == [
        [q.holds(item) or owner.same(item) for item in things]
        for q, owner in zip(queries, things, strict=True)
    ]


def test_items_without_attributes_take_part_with_their_title(model: MoonModel, tmp_path: Path) -> None:
    picture = next(iter(iter_products(1, seed=1, photos=1, size=96))).images
    bare = [Product(id=str(n), title=f"thing number {n}", images=picture) for n in range(3)]
    nothing = Product(id="n", title="", images=picture)
    write_jsonl([*bare, nothing], tmp_path / "bare.jsonl")
    source = open_source(SourceSpec(feed="bare.jsonl"), tmp_path)
    assert [item.id for item in source.items] == ["0", "1", "2"]
    draw = prepare(model, source.items, "direct", "k")
    assert all(body == [] for _, _, body in draw.supervised) and all(query.text for query in draw.synthetic)
