"""Exports: sample sizes that hold, plans, and cells that are no formulas."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from moonshelf.creatives.export import (
    experiment_plan,
    plan_markdown,
    ranking_csv,
    sample_size,
    write_text,
)
from moonshelf.creatives.ranking import Ranking, rank
from moonshelf.creatives.schema import Campaign, Creative, Judgement
from moonshelf.errors import UserError
from moonshelf.product import ImageRef

NAMES = ("a", "b", "c", "d")


def campaign(names: tuple[str, ...] = NAMES, clicks: bool = True) -> Campaign:
    counts = {"impressions": 1000, "clicks": 20} if clicks else {}
    return Campaign(
        id="=c",
        product_id="p",
        title="Running shoe",
        creatives=tuple(
            Creative(
                id=name,
                image=ImageRef(data=name.encode()),
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
    ("base", "lift", "power", "alpha"),
    [(0.02, 0.1, 0.8, 0.05), (0.02, -0.2, 0.9, 0.01), (0.3, 0.25, 0.8, 0.05)],
)
def test_a_test_of_the_planned_size_has_the_planned_power(
    base: float, lift: float, power: float, alpha: float
) -> None:
    n = sample_size(base, lift, power=power, alpha=alpha)
    rng = np.random.default_rng(5)
    draws = 20_000

    def rejected(rate: float) -> float:
        one, other = rng.binomial(n, rate, draws) / n, rng.binomial(n, base, draws) / n
        pooled = (one + other) / 2
        z = (one - other) / np.sqrt(pooled * (1 - pooled) * 2 / n)
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
     (0.02, 0.1, {"power": 1.0}), (0.02, 0.1, {"alpha": 0}), (0.02, 0.1, {"power": 0.04})],
)  # fmt: skip
def test_impossible_tests_are_refused(base: float, lift: float, settings: dict[str, float]) -> None:
    with pytest.raises(UserError):
        sample_size(base, lift, **settings)


def test_a_plan_tests_the_best_against_what_runs_today() -> None:
    of = campaign(("d", "a", "b", "c"))
    ranking = ranked(campaign(("a", "b", "c", "d")))
    plan = experiment_plan(ranking, of, arms=3, daily=50_000)
    assert [(arm["id"], arm["role"], arm["rank"]) for arm in plan["arms"]] == [
        ("d", "control", 4), ("a", "challenger", 1), ("b", "challenger", 2),
    ]  # fmt: skip
    size = sample_size(0.02, 0.1, alpha=0.025)
    assert {arm["impressions"] for arm in plan["arms"]} == {size}
    assert plan["impressions"] == 3 * size
    assert plan["days"] == -(-3 * size // 50_000)
    assert sum(arm["share"] for arm in plan["arms"]) == pytest.approx(1)
    page = plan_markdown(plan)
    assert f"{plan['impressions']:,}" in page and "| d | " in page and "Fix the sample size" in page


def test_a_plan_says_what_is_weak_about_it() -> None:
    of = campaign(clicks=False)
    ranking = ranked(of)
    with pytest.raises(UserError, match="base rate"):
        experiment_plan(ranking, of)
    plan = experiment_plan(ranking, of, base_rate=0.01, arms=9, control="c", daily=1000)
    assert len(plan["arms"]) == 4
    assert any("fewer arms" in text for text in plan["warnings"])
    assert any("too long" in text for text in plan["warnings"])
    for wrong in ({"control": "x"}, {"arms": 1}, {"daily": 0}):
        with pytest.raises(UserError):
            experiment_plan(ranking, of, base_rate=0.01, **wrong)


def test_identical_images_are_one_arm() -> None:
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
    assert [arm["id"] for arm in experiment_plan(ranking, of, base_rate=0.02, arms=3)["arms"]] == ["a", "c"]
    alone = Campaign(id="c", product_id="p", creatives=of.creatives[:2])
    with pytest.raises(UserError, match="nothing to test"):
        experiment_plan(ranked(alone), alone, base_rate=0.02)


def test_no_cell_of_the_csv_is_a_formula(tmp_path: Path) -> None:
    of = campaign(("=1+1", "+a", "-b", "@c", "plain"))
    ranking = ranked(of)
    text = ranking_csv([(of, ranking)], top=4)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["creative"] for row in rows] == ["'=1+1", "'+a", "'-b", "'@c"]
    assert {row["campaign"] for row in rows} == {"'=c"}
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[0]["strength"]) == ranking.strengths["=1+1"]
    assert rows[0]["rate"] == "0.02"
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "no" / "order.csv", text)


def test_a_ranking_of_other_creatives_is_refused() -> None:
    ranking = ranked(campaign())
    with pytest.raises(UserError, match="rank them again"):
        ranking_csv([(campaign(("a", "b", "c")), ranking)])
