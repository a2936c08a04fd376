"""What leaves with a ranking: a test plan, a CSV, the priors of a bandit, and the file that holds rankings.

Nothing here decides anything: a ranking is triage, and the test decides. Sample sizes are the textbook ones
for two proportions (pooled variance under no difference, separate ones under the difference looked for), two
sided, with the level shared out over the comparisons with the control (Bonferroni).

Of a bandit each creative gets a Beta(alpha, beta). Its mean follows the Bradley–Terry strength, base ·
exp(slope · strength), scaled so that the creatives' mean is the base rate; alpha + beta is a number of
pseudo-impressions, the same for all. Slope and weight are ours. Slope 0 is a flat prior, and a small weight
is soon overruled by clicks. A prior says where to begin; it is no forecast of a click-through rate.

In the file that `moonshelf creative rank --json` prints images stand by their names (a path or an address)
and hashes, so it says what was ranked without holding it.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from moonshelf.creatives.ranking import Floats, Ranking
from moonshelf.creatives.schema import Campaign, Creative
from moonshelf.errors import UserError
from moonshelf.feeds.base import MAX_DOCUMENT
from moonshelf.plaintext import csv_field, escaped, shown, table

LEVEL = 0.05  # of a whole test, two sided
MAX_DAYS = 56  # a test that takes longer is warned about: prices, seasons and audiences change
# What a unit of log odds is worth on the log rate, and a prior in impressions; ours, and cautious.
SLOPE, WEIGHT = 0.1, 500.0
HIGHEST = 0.95  # a prior's rate; keeps every Beta proper where strengths are extreme
FIELDS = (
    "campaign", "product", "rank", "creative", "image", "strength", "low", "high", "p_best", "clear",
    "impressions", "clicks", "rate", "judge", "source",
)  # fmt: skip
EXPORTS = ("plan", "csv", "bandit")
GUARDRAILS = (
    "Fix the sample size before the start and read the result once it is reached: looking earlier and "
    "stopping at a good moment finds differences that are not there.",
    "Give creatives out at random, in the same slots and days; compare the impressions of the arms with the "
    "allocation before anything else (chi-square; p < 0.001 means that the split is broken).",
    "Run whole weeks, and change nothing else meanwhile: price, title, audience, bid.",
    "Stop an arm early only for harm, and only by a rule that was written down before the start.",
    "The order comes from a judge of pictures. It chooses what to test and how a bandit begins; it says "
    "nothing of how large a difference is.",
)


def sample_size(base_rate: float, lift: float, *, power: float = 0.8, alpha: float = LEVEL) -> int:
    """Impressions that each of two arms needs to find base · (1 + lift) against base, two sided.

    Raises UserError for rates that cannot be.
    """
    if not 0 < base_rate < 1:
        raise UserError(f"the base rate is {base_rate}: give a click-through rate between 0 and 1, as 0.02")
    other = base_rate * (1 + lift)
    if not math.isfinite(lift) or lift == 0 or not 0 < other < 1:
        raise UserError(f"a lift of {lift} on a rate of {base_rate} is no other rate: give one such as 0.1")
    if not 0 < alpha < 1 or not 0 < power < 1:
        raise UserError("level and power lie between 0 and 1, as 0.05 and 0.8")
    if power <= alpha:
        raise UserError(f"a power of {power} is no more than the level, {alpha}: a test needs more, as 0.8")
    pooled = (base_rate + other) / 2
    none, some = 2 * pooled * (1 - pooled), other * (1 - other) + base_rate * (1 - base_rate)
    reach = stats.norm.ppf(1 - alpha / 2) * math.sqrt(none) + stats.norm.ppf(power) * math.sqrt(some)
    return math.ceil((reach / (other - base_rate)) ** 2)


def experiment_plan(
    ranking: Ranking,
    campaign: Campaign,
    *,
    base_rate: float | None = None,
    lift: float = 0.1,
    power: float = 0.8,
    arms: int = 2,
    control: str | None = None,
    daily: int | None = None,
) -> dict[str, Any]:
    """Test the best-ranked creatives against a control, `arms` in all; identical images are one arm.

    The control is the campaign's first creative if not named, as what runs today. Without `base_rate` it is
    the campaign's pooled rate. `daily` is the traffic of the whole test, impressions a day. Raises UserError.
    The level is that of the whole test, `alpha_each` of each comparison with the control.
    """
    creatives = _same(ranking, campaign)
    held = control if control is not None else campaign.creatives[0].id
    if held not in creatives:
        raise UserError(f"there is no creative {shown(held)} to be the control of {campaign.id}")
    if arms < 2:
        raise UserError("a test needs two arms or more")
    if daily is not None and daily < 1:
        raise UserError("traffic is at least one impression a day")
    tested, taken = [held], set(ranking.alike(held))
    for name in ranking.order:
        if name not in taken and len(tested) < arms:
            tested.append(name)
            taken.update(ranking.alike(name))
    if len(tested) == 1:
        raise UserError(f"campaign {campaign.id} has no image other than the control's: nothing to test")
    base = pooled_rate(campaign) if base_rate is None else base_rate
    each = LEVEL / (len(tested) - 1)
    size = sample_size(base, lift, power=power, alpha=each)
    total = size * len(tested)
    days = None if daily is None else math.ceil(total / daily)
    warnings = []
    if len(tested) < arms:
        warnings.append(f"Only {len(tested)} different images: fewer arms than the {arms} asked for.")
    if days is not None and days > MAX_DAYS:
        warnings.append(f"{days} days are too long: look for a larger lift, test fewer arms, or buy traffic.")
    if days is not None and days < 7:
        warnings.append("The sample is reached in under a week: run seven days all the same.")
    if not ranking.clear:
        warnings.append("The ranking has no clear best creative.")
    if named := [name for name in tested if name in ranking.unjudged]:
        warnings.append(f"The judge had no verdict on {', '.join(shown(name) for name in named)}.")
    tested_arms = [
        {
            "id": name,
            "image": creatives[name].image.name,
            "role": "control" if name == held else "challenger",
            "rank": ranking.order.index(name) + 1,
            "p_best": ranking.p_best[name],
            "share": 1 / len(tested),  # of the traffic
            "impressions": size,
        }
        for name in tested
    ]
    return {
        **_head(ranking, base),
        "lift": lift, "power": power, "alpha": LEVEL, "alpha_each": each, "arms": tested_arms,
        "impressions": total, "daily": daily, "days": days, "warnings": warnings, "guardrails": GUARDRAILS,
    }  # fmt: skip


def _head(ranking: Ranking, base_rate: float) -> dict[str, Any]:
    about = {"campaign_id": ranking.campaign_id, "source": ranking.source, "judge": ranking.judge}
    return about | {"base_rate": base_rate}


def plan_markdown(plan: Mapping[str, Any]) -> str:
    """The plan for people."""
    rows = [
        [
            escaped(arm["id"]), escaped(Path(arm["image"]).name), arm["role"], str(arm["rank"]),
            f"{arm['p_best']:.2f}", f"{arm['share']:.1%}", f"{arm['impressions']:,}",
        ]
        for arm in plan["arms"]
    ]  # fmt: skip
    head = ["arm", "image", "role", "rank", "best with", "share", "impressions"]
    length = f" At {plan['daily']:,} a day that takes {plan['days']:,} days." if plan["daily"] else ""
    source = f" on {escaped(plan['source'])}" if plan["source"] else ""
    parts = [
        f"# Test plan: {escaped(plan['campaign_id'])}",
        f"Finds a relative difference of {plan['lift']:+.0%} on a rate of {plan['base_rate']:.2%} with a "
        f"power of {plan['power']:.0%}, at a level of {plan['alpha']:.3g} over all comparisons with the "
        f"control (two sided, {plan['alpha_each']:.3g} each). Needs {plan['impressions']:,} impressions."
        f"{length}",
        table(head, rows, left=3),
        f"Order by {escaped(plan['judge'])}{source}.",
    ]
    if plan["warnings"]:
        parts += ["## Warnings", "\n".join(f"- {escaped(text, 1000)}" for text in plan["warnings"])]
    parts += ["## Rules of the test", "\n".join(f"- {text}" for text in GUARDRAILS)]
    return "\n\n".join(parts) + "\n"


def ranking_csv(both: Sequence[tuple[Campaign, Ranking]], top: int | None = None) -> str:
    """A line a creative, best first; no cell starts a formula."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(FIELDS)
    for campaign, ranking in both:
        creatives = _same(ranking, campaign)
        for place, name in enumerate(ranking.order[:top], 1):
            creative = creatives[name]
            low, high = ranking.intervals[name]
            row = (
                campaign.id, campaign.product_id, place, name, creative.image.name, ranking.strengths[name],
                low, high, ranking.p_best[name], ranking.clear, creative.impressions, creative.clicks,
                creative.rate, ranking.judge, ranking.source,
            )  # fmt: skip
            writer.writerow([csv_field(value) for value in row])
    return file.getvalue()


def write_text(path: Path, text: str) -> None:
    """Raises UserError where the file cannot be written."""
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or 'I/O error'}.") from None


def _same(ranking: Ranking, campaign: Campaign) -> dict[str, Creative]:
    """Creatives by id. Raises UserError if the ranking is of another campaign."""
    creatives = {creative.id: creative for creative in campaign.creatives}
    if ranking.campaign_id != campaign.id or set(creatives) != set(ranking.order):
        raise UserError(
            f"the ranking of {shown(ranking.campaign_id)} is not of the creatives of {shown(campaign.id)}: "
            "rank them again"
        )
    return creatives


def pooled_rate(campaign: Campaign) -> float:
    """Clicks over impressions of all its creatives. Raises UserError where there are none."""
    shown_ = sum(creative.impressions or 0 for creative in campaign.creatives)
    clicks = sum(creative.clicks or 0 for creative in campaign.creatives)
    if not shown_ or not 0 < clicks < shown_:
        raise UserError(f"campaign {campaign.id} has no clicks to take a base rate from: give one, as 0.02")
    return clicks / shown_


# ---- a bandit's priors -------------------------------------------------------------------------------


def prior_means(strengths: Floats, base_rate: float, slope: float) -> Floats:
    """(n,) mean rates: base · exp(slope · strength), scaled to a mean of `base_rate`, at most `HIGHEST`."""
    raised = np.exp(slope * (strengths - strengths.max()))
    return np.minimum(base_rate * raised / raised.mean(), HIGHEST)


def bandit_prior(
    ranking: Ranking, *, base_rate: float, slope: float = SLOPE, weight: float = WEIGHT
) -> dict[str, Any]:
    """Beta priors of the ranked creatives; `base_rate` is the usual rate of the slot. Raises UserError."""
    if not 0 < base_rate < 1:
        raise UserError(f"the base rate is {base_rate}: give a click-through rate between 0 and 1, as 0.02")
    means = prior_means(np.array([ranking.strengths[name] for name in ranking.order]), base_rate, slope)
    arms = [
        {"id": name, "alpha": float(mean * weight), "beta": float((1 - mean) * weight)}
        for name, mean in zip(ranking.order, means, strict=True)
    ]
    scale = {"slope": slope, "weight": weight, "calibrated_on": ""}
    note = "A starting point for allocation; not a forecast of click-through rates."
    return {**_head(ranking, base_rate), "scale": scale, "arms": arms, "note": note}


# ---- rankings in a file ------------------------------------------------------------------------------


def to_records(both: Sequence[tuple[Campaign, Ranking]]) -> list[dict[str, Any]]:
    """One JSON object a campaign, its ranking under `ranking`."""
    found = []
    for campaign, ranking in both:
        record = campaign.model_dump(mode="json", exclude={"creatives"})
        record["creatives"] = [
            one.model_dump(mode="json", exclude={"image", "facts"}) | {"image": one.image.name}
            for one in campaign.creatives
        ]
        found.append(record | {"ranking": ranking.model_dump(mode="json")})
    return found


def is_ranked(path: Path) -> bool:
    """Whether a file is one of these, by its first bytes."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(200).lstrip()
    return head.startswith(b"{") and head[1:].lstrip().startswith(b'"campaigns"')


def read_ranked(path: Path) -> list[tuple[Campaign, Ranking]]:
    """The campaigns and rankings of such a file. Raises UserError that says what is wrong with it."""
    try:
        if path.stat().st_size > MAX_DOCUMENT:
            raise UserError(f"{path.name} is larger than {MAX_DOCUMENT // 2**20} MiB: rank fewer campaigns.")
        rows = json.loads(path.read_text(encoding="utf-8"))["campaigns"]
        return [_both(row) for row in rows]
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror or 'I/O error'}.") from None
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        raise UserError(f"{path.name} is not what `moonshelf creative rank --json` prints.") from None


def _both(row: dict[str, Any]) -> tuple[Campaign, Ranking]:
    ranking = Ranking.model_validate_json(json.dumps(row.pop("ranking")))
    for creative in row["creatives"]:
        name = creative["image"]
        kind = "url" if name.startswith(("https://", "http://")) else "path"
        creative["image"] = {kind: name}
    return Campaign.model_validate_json(json.dumps(row)), ranking


def exported(
    both: Sequence[tuple[Campaign, Ranking]],
    to: str,
    *,
    base_rate: float | None = None,
    top: int = 10,
    plan: Mapping[str, Any] | None = None,
    as_json: bool = False,
) -> str:
    """The text of one of `EXPORTS`. `plan` goes to `experiment_plan`, `top` to the CSV.

    A plan is Markdown unless `as_json`; priors are a JSON list. Raises UserError.
    """
    if to == "csv":
        return ranking_csv(both, top)
    records: list[dict[str, Any]] = []
    for one, ranking in both:
        if to == "plan":
            records.append(experiment_plan(ranking, one, base_rate=base_rate, **plan or {}))
        else:
            rate = pooled_rate(one) if base_rate is None else base_rate
            records.append(bandit_prior(ranking, base_rate=rate))
    if to == "plan" and not as_json:
        return "\n\n".join(plan_markdown(one).strip() for one in records) + "\n"
    return json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
