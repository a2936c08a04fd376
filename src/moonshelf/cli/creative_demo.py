"""The demo of creatives: drawn campaigns are ranked and explained, and a page shows it with pictures.

The campaigns are the package's sample, of the simulator's test split, so their true click rates are known and
no selector has seen their products. Everything goes to one folder: `campaigns/` (a copy of them),
`rankings.jsonl`, `report.html`, and `run.json`, by which a second run knows its own folder. All figures are
of a simulation, and say so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.text import Text

from moonshelf import sample
from moonshelf.catalogue.manifest import versions
from moonshelf.cli.console import RECORD, Steps, claim
from moonshelf.creatives.backends import names
from moonshelf.creatives.backends.base import PairwiseBackend
from moonshelf.creatives.evaluation.figures import normalised_regret, rates_of, score_ranking
from moonshelf.creatives.evaluation.pages import write_demo_report
from moonshelf.creatives.io.readers import FILE, read_creatives, write_campaigns
from moonshelf.creatives.known import pairs
from moonshelf.creatives.labels import p_greater, stratum
from moonshelf.creatives.ranking import Ranking, rank_many
from moonshelf.creatives.schema import CAVEAT, Campaign
from moonshelf.creatives.show import show_judgement, show_ranking
from moonshelf.files import write_json

SEED = 7  # of what the judge draws
PART = 8  # campaigns whose pairs are judged together; what a killed run keeps comes in such parts
RANKINGS = "rankings.jsonl"


def run_demo(
    out: Path,
    *,
    products: int,
    backend: str = "starter",
    command: str = "",
    started: float | None = None,
) -> None:
    """Run the demo into the folder `out`; time is counted from `started` (`time.perf_counter`).

    Raises UserError if the backend is missing, or if the folder holds somebody else's files.
    """
    started = time.perf_counter() if started is None else started
    console = Console()
    judge = names.make_backend(backend, seed=SEED)
    settings = {"products": products, "backend": backend}
    kept = _claim(out, settings | {"fingerprint": judge.fingerprint})
    stays = "" if backend.startswith("openai:") else "; nothing leaves this machine"
    plan = (
        f"The demo takes {products} drawn products with their creatives, lets {judge.name} compare these "
        "in pairs and give its reasons, ranks them, counts how often the pick is right, and writes a page. "
        f"Everything is simulated and goes to {out}/{stays}.\n"
    )
    console.print(Text(plan), soft_wrap=True)
    steps = Steps(console, total=4)

    with steps.step("campaigns") as said:
        campaigns = _campaigns(out / "campaigns", products)
        impressions = sum(one.impressions or 0 for c in campaigns for one in c.creatives)
        said.append(
            f"{len(campaigns)} campaigns, {sum(len(c.creatives) for c in campaigns)} creatives, "
            f"{impressions:,} simulated impressions"
        )
    with steps.step("rank") as said:
        rankings = _rankings(out / RANKINGS, campaigns, judge, kept)
        comparisons = sum(len(one.comparisons) for one in rankings)
        silent = sum(one.abstained for one in rankings)
        said.append(f"{comparisons} pairs compared in both orders, {silent} without a verdict")
    with steps.step("count") as said:
        figures = count(campaigns, rankings)
        said.append("simulated: " + ", ".join(f"{name} {_shown(v)}" for name, v in figures.items()))
    with steps.step("report") as said:
        facts = {
            "Command": command,
            "Judge": f"{judge.name}, trained on {judge.trained_on}" if judge.trained_on else judge.name,
            **{f"Simulated: {name}": _shown(value) for name, value in figures.items()},
            "Versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        }
        report = write_demo_report(out, campaigns, rankings, facts=facts)
        said.append(f"{report.name}, {report.stat().st_size / 1e6:.1f} MB")
    seconds = time.perf_counter() - started
    steps.finish(out, config=settings, simulated=True, figures=figures, seconds=round(seconds, 2))
    _say_end(console, campaigns, rankings, judge, figures, report, seconds)


def count(campaigns: Sequence[Campaign], rankings: Sequence[Ranking]) -> dict[str, float | None]:
    """What the rankings got right, against the true rates of drawn campaigns; shares from 0 to 1."""
    both = list(zip(campaigns, rankings, strict=True))
    scores = [score_ranking(ranking.strengths, rates_of(campaign)) for campaign, ranking in both]
    right = []  # of the verdicts on pairs whose clicks are decisive
    for campaign, ranking in both:
        counts = {one.id: (one.clicks or 0, one.impressions or 0) for one in campaign.creatives}
        for one in ranking.comparisons:
            p = p_greater(counts[one.a], counts[one.b])
            if stratum(p) == "decisive" and one.judgement.verdict is not None:
                right.append((one.judgement.verdict == "A") == (p > 0.5))
    regret = normalised_regret(scores)
    return {
        "verdicts on decisive pairs that are right": fmean(right) if right else None,
        "best creative picked": fmean(one.top1 for one in scores),
        "random pick": fmean(1 / len(one.creatives) for one in campaigns),
        "regret of the pick, of a random one's": None if math.isnan(regret) else regret,
    }


# ---- the folder --------------------------------------------------------------------------------------


def _claim(out: Path, settings: dict[str, Any]) -> bool:
    """Make the folder ours; True if it holds rankings of the same settings."""
    record = claim(out, "creative demo")
    same = record.get("claimed") == settings
    write_json(out / RECORD, {"command": "creative demo", "claimed": settings})
    return same


def _campaigns(folder: Path, products: int) -> list[Campaign]:
    """The first campaigns of the sample, written and read back from disk, as anybody's would be."""
    drawn = [row for row in read_creatives(sample.CAMPAIGNS) if isinstance(row, Campaign)]
    write_campaigns(folder, drawn[:products])
    return [row for row in read_creatives(folder / FILE) if isinstance(row, Campaign)]


def _rankings(path: Path, campaigns: Sequence[Campaign], judge: PairwiseBackend, kept: bool) -> list[Ranking]:
    """Rankings in the order of the campaigns; those that a run with the same settings left are kept."""
    known: dict[str, Ranking] = {}
    if kept and path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                one = Ranking.model_validate_json(line)
            except ValueError:  # the line at which a run was stopped
                continue
            known[one.campaign_id] = one
    missing = [one for one in campaigns if one.id not in known]
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(known[one.id].model_dump_json() + "\n" for one in campaigns if one.id in known)
        for start in range(0, len(missing), PART):
            for one in rank_many(missing[start : start + PART], judge, seed=SEED):
                known[one.campaign_id] = one
                file.write(one.model_dump_json() + "\n")
            file.flush()
    return [known[one.id] for one in campaigns]


# ---- words -------------------------------------------------------------------------------------------


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _say_end(
    console: Console,
    campaigns: Sequence[Campaign],
    rankings: Sequence[Ranking],
    judge: PairwiseBackend,
    figures: dict[str, float | None],
    report: Path,
    seconds: float,
) -> None:
    """One campaign in full: its order, and why the first beats the second."""
    campaign, ranking = campaigns[0], rankings[0]
    console.print()
    show_ranking(campaign, ranking, console)
    first_two = set(ranking.order[:2])
    duel = next((one for one in ranking.comparisons if {one.a, one.b} == first_two), None)
    if duel is not None:
        pair = next(p for p in pairs(campaign) if {p.a.id, p.b.id} == first_two)
        pair = pair if pair.a.id == duel.a else pair.swapped()
        show_judgement(pair, duel.judgement, judge.name, console)
    console.print(Text(f"\nDone in {seconds:.0f} s, all of it simulated:"), soft_wrap=True)
    for name, value in figures.items():
        console.print(Text(f"  {_shown(value):>6}  {name}"))
    console.print(Text(CAVEAT, "dim"), soft_wrap=True)
    console.print(Text(f"\nReport     {report}   open it in a browser"), soft_wrap=True)
    folder = report.parent / "campaigns"
    console.print(Text(f"Campaigns  {folder}\n\nNext: moonshelf creative rank {folder}"), soft_wrap=True)
