"""Exports: sample sizes that hold, plans, platforms' limits, and cells that are no formulas."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from moonshelf.creatives import export
from moonshelf.creatives.export import (
    Plan,
    experiment_plan,
    google_display_lint,
    meta_asset_feed,
    plan_markdown,
    ranking_csv,
    sample_size,
    write_csv,
)
from moonshelf.creatives.pair import Campaign, Creative
from moonshelf.creatives.protocol import Judgement
from moonshelf.creatives.ranked import exported
from moonshelf.creatives.ranking import Ranking, rank
from moonshelf.errors import UserError
from moonshelf.product import ImageRef

NAMES = ("a", "b", "c", "d")


def campaign(names: tuple[str, ...] = NAMES, clicks: bool = True, web: bool = False) -> Campaign:
    counts = {"impressions": 1000, "clicks": 20} if clicks else {}
    return Campaign(
        id="=c",
        product_id="p",
        title="Running shoe",
        creatives=tuple(
            Creative(
                id=name,
                image=ImageRef(url=f"https://shop.test/{name}.jpg") if web else ImageRef(data=name.encode()),
                **counts,
            )
            for name in names
        ),
    )


def ranked(of: Campaign) -> Ranking:
    """The first creative given is the best."""
    worth = {creative.id: -2.0 * place for place, creative in enumerate(of.creatives)}

    def judge(pairs: list) -> list[Judgement]:
        p = [float(1 / (1 + np.exp(worth[x.b.id] - worth[x.a.id]))) for x in pairs]
        return [Judgement(pair_id=x.id, p=q, p_first=q, p_second=q) for x, q in zip(pairs, p, strict=True)]

    return rank(of, judge)


@pytest.mark.parametrize(
    ("base", "lift", "power", "alpha", "ratio"),
    [
        (0.02, 0.1, 0.8, 0.05, 1.0),
        (0.02, -0.2, 0.9, 0.01, 1.0),
        (0.3, 0.25, 0.8, 0.05, 1.0),
        (0.05, 0.5, 0.8, 0.05, 2.0),
    ],
)
def test_a_test_of_the_planned_size_has_the_planned_power(
    base: float, lift: float, power: float, alpha: float, ratio: float
) -> None:
    n = sample_size(base, lift, power=power, alpha=alpha, ratio=ratio)
    m = int(np.ceil(n * ratio))
    rng = np.random.default_rng(5)
    draws = 20_000

    def rejected(rate: float) -> float:
        one, other = rng.binomial(n, rate, draws) / n, rng.binomial(m, base, draws) / m
        pooled = (one * n + other * m) / (n + m)
        z = (one - other) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
        return float((np.abs(z) > stats.norm.ppf(1 - alpha / 2)).mean())

    assert rejected(base * (1 + lift)) == pytest.approx(power, abs=0.015)
    assert rejected(base) == pytest.approx(alpha, abs=0.008)


def test_sample_size_against_statsmodels() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for base, lift in ((0.02, 0.1), (0.2, 0.05)):
        theirs = proportion.samplesize_proportions_2indep_onetail(base * lift, base, 0.8, ratio=1, alpha=0.05)
        assert sample_size(base, lift) == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize(
    ("base", "lift", "settings"),
    [(0, 0.1, {}), (1.2, 0.1, {}), (0.02, 0, {}), (0.6, 0.8, {}), (0.02, float("nan"), {}),
     (0.02, 0.1, {"power": 1.0}), (0.02, 0.1, {"alpha": 0}), (0.02, 0.1, {"power": 0.04}),
     (0.02, 0.1, {"ratio": 0})],
)  # fmt: skip
def test_impossible_tests_are_refused(base: float, lift: float, settings: dict[str, float]) -> None:
    with pytest.raises(UserError):
        sample_size(base, lift, **settings)


def test_a_plan_tests_the_best_against_what_runs_today() -> None:
    of = campaign(("d", "a", "b", "c"))
    ranking = ranked(campaign(("a", "b", "c", "d")))
    plan = experiment_plan(ranking, of, arms=3, daily=50_000)
    assert [(arm.id, arm.role, arm.rank) for arm in plan.arms] == [
        ("d", "control", 4), ("a", "challenger", 1), ("b", "challenger", 2),
    ]  # fmt: skip
    size = sample_size(0.02, 0.1, alpha=0.025)
    assert {arm.impressions for arm in plan.arms} == {size}
    assert plan.impressions == 3 * size
    assert plan.days == -(-3 * size // 50_000)
    assert sum(arm.share for arm in plan.arms) == pytest.approx(1)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    page = plan_markdown(plan)
    assert f"{plan.impressions:,}" in page and "| d | " in page and "Fix the sample size" in page


def test_a_plan_says_what_is_weak_about_it() -> None:
    of = campaign(clicks=False)
    ranking = ranked(of)
    with pytest.raises(UserError, match="base rate"):
        experiment_plan(ranking, of)
    plan = experiment_plan(ranking, of, base_rate=0.01, arms=9, control="c", allocation="control", daily=1000)
    assert len(plan.arms) == 4
    assert plan.arms[0].impressions == pytest.approx(plan.arms[1].impressions * 3**0.5, abs=1)
    assert any("fewer arms" in text for text in plan.warnings)
    assert any("too long" in text for text in plan.warnings)
    for wrong in ({"control": "x"}, {"arms": 1}, {"daily": 0}):
        with pytest.raises(UserError):
            experiment_plan(ranking, of, base_rate=0.01, **wrong)


def test_identical_images_are_one_arm_and_one_asset() -> None:
    same = ImageRef(data=b"x")
    of = Campaign(
        id="c", product_id="p", title="Shoe",
        creatives=(
            Creative(id="a", image=same),
            Creative(id="b", image=same),
            Creative(id="c", image=ImageRef(data=b"y")),
        ),
    )  # fmt: skip
    ranking = ranked(of)
    assert [arm.id for arm in experiment_plan(ranking, of, base_rate=0.02, arms=3).arms] == ["a", "c"]
    feed, _ = meta_asset_feed(ranking, of, link="https://shop.test")
    assert len(feed["asset_feed_spec"]["images"]) == 2
    alone = Campaign(id="c", product_id="p", creatives=of.creatives[:2])
    with pytest.raises(UserError, match="nothing to test"):
        experiment_plan(ranked(alone), alone, base_rate=0.02)


def test_no_cell_of_the_csv_is_a_formula(tmp_path: Path) -> None:
    of = campaign(("=1+1", "+a", "-b", "@c", "plain"))
    ranking = ranked(of)
    write_csv(tmp_path / "order.csv", [(of, ranking)], top=4)
    text = (tmp_path / "order.csv").read_text(encoding="utf-8")
    assert text == ranking_csv([(of, ranking)], top=4)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["creative"] for row in rows] == ["'=1+1", "'+a", "'-b", "'@c"]
    assert {row["campaign"] for row in rows} == {"'=c"}
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[0]["strength"]) == ranking.strengths["=1+1"]
    assert rows[0]["rate"] == "0.02"
    with pytest.raises(UserError, match="cannot be written"):
        write_csv(tmp_path / "no" / "order.csv", [(of, ranking)])


def test_a_ranking_of_other_creatives_is_refused() -> None:
    ranking = ranked(campaign())
    with pytest.raises(UserError, match="rank them again"):
        ranking_csv([(campaign(("a", "b", "c")), ranking)])


def test_an_asset_feed_keeps_metas_limits() -> None:
    of = campaign(tuple("abcdefghijkl"), web=True)
    ranking = ranked(of)
    feed, problems = meta_asset_feed(
        ranking, of, link="https://shop.test/p", bodies=["Light."], hashes={"a": "h1"}
    )
    spec = feed["asset_feed_spec"]
    assert not problems
    assert len(spec["images"]) == 10
    assert spec["images"][0] == {"hash": "h1"}
    assert spec["images"][1] == {"url": "https://shop.test/b.jpg"}
    assert spec["titles"] == [{"text": "Running shoe"}]
    assert spec["ad_formats"] == ["SINGLE_IMAGE"]
    assert "asset_customization_rules" not in spec and "descriptions" not in spec
    for wrong in (
        {"link": "shop"}, {"titles": ["x"] * 6}, {"titles": ["x" * 256]}, {"bodies": ["x" * 1025]},
        {"actions": []}, {"top": 11},
        {**dict.fromkeys(("titles", "bodies", "descriptions"), ["x"] * 5), "actions": ["A"] * 5},
    ):  # fmt: skip
        with pytest.raises(UserError):
            meta_asset_feed(ranking, of, **{"link": "https://shop.test", **wrong})


def test_local_images_are_listed_for_upload() -> None:
    of = campaign()
    feed, problems = meta_asset_feed(ranked(of), of, link="https://shop.test", top=2)
    assert [image["hash"] for image in feed["asset_feed_spec"]["images"]] == ["UPLOAD a", "UPLOAD b"]
    assert [(problem.id, problem.fatal) for problem in problems] == [("a", False), ("b", False)]


def creative(name: str, size: tuple[int, int], kind: str = "JPEG") -> Creative:
    file = io.BytesIO()
    Image.new("RGB", size, (90, 120, 30)).save(file, kind)
    return Creative(id=name, image=ImageRef(data=file.getvalue()))


def test_googles_checklist() -> None:
    texts = {
        "headlines": ["Short"],
        "long_headline": "A longer one",
        "descriptions": ["Light"],
        "business": "Shop",
    }
    good = [creative("wide", (1200, 628)), creative("square", (300, 300), "PNG")]
    assert google_display_lint(good, **texts) == []
    found = google_display_lint(
        [creative("odd", (640, 480)), creative("small", (191, 100)), creative("webp", (300, 300), "WEBP"),
         Creative(id="bad", image=ImageRef(data=b"no image"))],
        **{**texts, "headlines": ["x" * 31], "business": ""},
    )  # fmt: skip
    about = [(problem.row, problem.field) for problem in found]
    assert about == [
        ("odd", "image"), ("small", "image"), ("webp", "image"), ("bad", "image"), ("ad", "images"),
        ("ad", "headlines"), ("ad", "business name"),
    ]  # fmt: skip
    assert all(problem.fatal for problem in found)
    remote = google_display_lint([Creative(id="r", image=ImageRef(url="https://x.test/a.jpg"))], **texts)
    assert remote and not any(problem.fatal for problem in remote)
    many = google_display_lint([good[0]] * 16 + [good[1]], **texts)
    assert [problem.field for problem in many] == ["images"]
    assert len(export.GUARDRAILS) >= 4


def test_googles_assets_are_the_best_images_with_what_they_break() -> None:
    pictures = (creative("wide", (1200, 628)), creative("odd", (640, 480)), creative("square", (400, 400)))
    of = Campaign(
        id="c", product_id="p", title="A shoe for running on all kinds of roads", creatives=pictures
    )
    text, problems = exported([(of, ranked(of))], "google", top=2)
    (assets,) = json.loads(text)
    assert [one["creative"] for one in assets["images"]] == ["wide", "odd"]
    assert assets["headlines"] == []  # the title has more than 30 characters
    assert assets["long_headline"] == of.title
    assert [one["field"] for one in assets["problems"]] == [one.field for one in problems]
    about = {(one.row, one.field) for one in problems}
    assert {("c", "headlines"), ("c", "descriptions"), ("c", "business name")} <= about
    assert ("c", "long headline") not in about
    assert [one.row for one in problems if one.field == "image"] == ["odd"]
