"""Pairs from campaigns: every pair kept or counted; splits share neither product nor picture."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moonshelf.creatives.labels import PRESETS, build_pairs, gap, pair_id, posterior
from moonshelf.creatives.schema import Campaign, Creative
from moonshelf.product import ImageRef


def picture(seed: int, size: int = 48) -> bytes:
    """A PNG of coarse noise, so that perceptual hashes of two seeds differ."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def creative(name: str, clicks: int | None, shown: int | None, data: bytes | None = None) -> Creative:
    image = ImageRef(data=data) if data else ImageRef(url=f"https://x.example/{name}.png")
    return Creative(id=name, image=image, clicks=clicks, impressions=shown)


def campaign(name: str, *creatives: Creative, product: str = "", **more: object) -> Campaign:
    return Campaign(id=name, product_id=product or name, creatives=creatives, **more)  # type: ignore[arg-type]


@pytest.fixture
def few() -> Campaign:
    return campaign(
        "c",
        creative("plain", 20, 2000),
        creative("badge", 40, 2000),
        creative("words", 22, 2000),
        creative("new", 9, 300),
        creative("never", 0, 0),
        creative("unknown", None, None),
        title="Red shoe",
        interest=("red shoe",),
        source="test",
    )


def test_the_defaults_are_the_papers(few: Campaign) -> None:
    pairs, dropped = build_pairs([few])
    assert {frozenset((p.a.id, p.b.id)) for p in pairs} == {
        frozenset(("plain", "badge")), frozenset(("words", "badge"))
    }  # fmt: skip
    assert dropped == {"rates at most 60% apart": 1, "at most 1,000 impressions": 3, "no impressions": 9}
    assert all(
        (p.title, p.interest, p.source, p.label) == ("Red shoe", ("red shoe",), "test", None) for p in pairs
    )


def test_the_preset_of_caig_keeps_small_differences_only(few: Campaign) -> None:
    pairs, dropped = build_pairs([few], **PRESETS["caig"])
    assert [{p.a.id, p.b.id} for p in pairs] == [{"plain", "words"}]
    assert dropped["rates more than 20% apart"] == 2


counts = st.one_of(
    st.none(), st.integers(0, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(counts, max_size=6), max_size=5),
    st.sampled_from(["creative4u", "caig", "all"]),
)
def test_every_pair_is_kept_or_counted(rows: list[list[tuple[int, int] | None]], preset: str) -> None:
    campaigns = [
        campaign(
            f"c{i}",
            *(creative(f"k{i}-{j}", *(one or (None, None))) for j, one in enumerate(row)),
            product="x",
        )
        for i, row in enumerate(rows)
    ]
    pairs, dropped = build_pairs(campaigns, **PRESETS[preset])  # type: ignore[arg-type]
    there_were = sum(len(row) * (len(row) - 1) // 2 for row in rows)
    assert len(pairs) + sum(dropped.values()) == there_were
    assert len({p.id for p in pairs}) == len(pairs)
    for pair in pairs:
        apart = gap(pair.a, pair.b)
        assert apart is not None and posterior(pair) is not None
        if preset == "creative4u":
            assert apart > 0.6 and min(pair.a.impressions, pair.b.impressions) > 1000  # type: ignore[type-var]


def test_the_winner_is_not_always_first() -> None:
    many = [campaign(f"c{i}", creative("good", 60, 2000), creative("bad", 20, 2000)) for i in range(200)]
    first = Counter(pair.a.id for pair in build_pairs(many)[0])
    assert 70 < first["good"] < 130
    assert build_pairs(many) == build_pairs(many)
    assert build_pairs(many, seed=1) != build_pairs(many)


def test_true_rates_follow_their_creatives() -> None:
    drawn = [
        campaign(f"c{i}", creative("a", 60, 2000), creative("b", 20, 2000), true_rates=(0.03, 0.01))
        for i in range(20)
    ]
    pairs, _ = build_pairs(drawn)
    assert {(p.a.id, p.true_rates) for p in pairs} == {("a", (0.03, 0.01)), ("b", (0.01, 0.03))}


def test_identical_images_become_ties() -> None:
    data = picture(1)
    same = campaign("c", creative("a", 60, 2000, data), creative("b", 20, 2000, data))
    pairs, dropped = build_pairs([same])
    assert [p.label for p in pairs] == ["tie"] and not dropped


def test_long_ids_still_make_an_id() -> None:
    long = "x" * 256
    assert pair_id(long, long, long) != pair_id(long, long, "y" * 256)
    assert len(pair_id(long, long, long)) <= 120
    assert pair_id("c", "a", "b") == "c:a:b"
