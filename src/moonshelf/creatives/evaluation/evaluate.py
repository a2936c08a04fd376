"""Evaluate selectors of creatives: every backend over the same pairs, in both orders, by the same rules.

Baselines go through `selector.judge` like any model, so that averaging, abstention and safety are equal for
all. What was judged is written at once (`record`), so an interrupted run goes on, and `recompute` makes every
figure again without a model. The temperature is fitted on validation pairs, whose products must not be among
those that are scored; without them it is the backend's own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moonshelf.creatives import selector
from moonshelf.creatives.backends.base import PairwiseBackend
from moonshelf.creatives.evaluation import record
from moonshelf.creatives.evaluation.figures import (
    Evidence,
    Interest,
    count,
    rates_of,
    shuffled_interest,
)
from moonshelf.creatives.evaluation.pages import keep_pictures, write_pages
from moonshelf.creatives.evaluation.record import CreativeReport, Head, Kept
from moonshelf.creatives.labels import Prior, fit_prior, truth_of
from moonshelf.creatives.ranking import Ranking, rank_many
from moonshelf.creatives.schema import Campaign, Judgement, Pair
from moonshelf.errors import UserError
from moonshelf.evaluation import record as common
from moonshelf.feeds.show import counting

INTERESTS: tuple[Interest, ...] = ("true", "shuffled", "none")


def evaluate(
    pairs: Sequence[Pair],
    backends: Sequence[PairwiseBackend],
    out: Path,
    *,
    interest: Sequence[Interest] = INTERESTS,
    campaigns: Sequence[Campaign] | None = None,
    validation: Sequence[Pair] | None = None,
    explanations: bool = True,
    seed: int = 0,
    command: str = "",
) -> CreativeReport:
    """Judge `pairs` by every backend, the first being the one that the others are compared with, and write
    `result.json`, `results.csv`, `report.md` and `report.html` into `out`.

    `interest` says under which interests: the pair's own (always), another campaign's, none. `campaigns` with
    more than two creatives are ranked. `explanations` adds figures of the reasons. Pairs without counts and
    label are left out, with a note. Raises UserError for inputs that cannot be scored, and where `out` holds
    another run.
    """
    began = time.perf_counter()
    creatives = [one for pair in pairs for one in (pair.a, pair.b)]
    prior = fit_prior({one.id: one for one in creatives}.values())
    scored = [pair for pair in pairs if truth_of(pair, prior) is not None]
    ranked = [one for one in campaigns or () if len(one.creatives) > 2]
    rankable = [one for one in ranked if len(rates_of(one)) == len(one.creatives)]
    _check(scored, backends, validation or ())
    conditions: list[Interest] = ["true", *(one for one in interest if one != "true")]
    report = CreativeReport(
        settings={
            "seed": seed,
            "interest": list(conditions),
            "prior": [prior.alpha, prior.beta],
            "explanations": explanations,
            "validation_pairs": len(validation or ()),
            **common.bootstrap_settings(),
        },
        versions=common.versions(),
        machine=common.machine(),
    )
    if command:
        report.settings["command"] = command
    for left, what in ((len(pairs) - len(scored), "pairs"), (len(ranked) - len(rankable), "campaigns")):
        if left:
            report.notes.append(f"{left} {what} without counts were left out.")
    record.write_rows(map(record.without_pictures, scored), out / record.PAIRS)
    record.write_rows(map(record.without_pictures, rankable), out / record.CAMPAIGNS)

    asked = {str(one): interest_pairs(scored, one, seed) for one in conditions}
    known = [(pair, q) for pair in validation or () if (q := truth_of(pair, prior)) is not None]
    total, done = len(backends) * (sum(map(len, asked.values())) + len(known)), 0
    with counting("pairs judged") as bar:

        def step(judged: int) -> None:
            nonlocal done
            done += judged
            bar(done, min(done / total, 1.0))

        for backend in backends:
            report.about.append(_judge(backend, asked, rankable, known, out, seed, step))
    evidence = read_evidence(out, [one.name for one in backends], report.settings)
    count(evidence, report)
    report.seconds = round(time.perf_counter() - began, 1)
    common.write_result(report.as_dict(), out)
    keep_pictures(out, evidence, scored)
    write_pages(out, report, evidence)
    return report


def recompute(out: Path) -> CreativeReport:
    """Every figure of a folder again, from its judgements, and its pages; no model and no picture is read.

    Raises UserError for a missing or damaged file.
    """
    report = record.load(out)
    evidence = read_evidence(out, report.backends, report.settings)
    count(evidence, report)
    common.write_result(report.as_dict(), out)
    write_pages(out, report, evidence)
    return report


def read_evidence(out: Path, backends: Sequence[str], settings: dict[str, Any]) -> Evidence:
    """What a folder keeps. Raises UserError where judgements are missing: the run was not finished."""
    pairs = record.read_rows(out / record.PAIRS, Pair)
    alpha, beta = settings.get("prior", (0.5, 0.5))
    truth = [truth_of(pair, Prior(alpha, beta)) for pair in pairs]
    if not pairs or any(one is None for one in truth):
        raise UserError(f"{record.PAIRS} of {out} holds no pairs with counts: evaluate again")
    evidence = Evidence(pairs, [float(one) for one in truth if one is not None], list(backends), {})
    for condition in settings.get("interest", ["true"]):
        wanted = interest_pairs(pairs, condition, settings.get("seed", 0))
        evidence.judged[condition] = {name: record.read_judged(out, condition, name) for name in backends}
        for name, known in evidence.judged[condition].items():
            if lacking := [pair.id for pair in wanted if pair.id not in known]:
                raise UserError(
                    f"{len(lacking)} judgements of {name} are missing (interest: {condition}): run the "
                    "evaluation again with the same --out, it goes on where it stopped"
                )
    evidence.campaigns = record.read_rows(out / record.CAMPAIGNS, Campaign)
    for name in backends:
        if rankings := record.read_rows(_rankings(out, name), Ranking):
            evidence.rankings[name] = rankings
    return evidence


def interest_pairs(pairs: Sequence[Pair], interest: Interest, seed: int) -> list[Pair]:
    """The pairs as they are asked under an interest; without one of its own a pair is asked only as it is."""
    if interest == "true":
        return list(pairs)
    if interest == "none":
        return [pair.model_copy(update={"interest": ()}) for pair in pairs if pair.interest]
    if interest == "shuffled":
        others = shuffled_interest(pairs, seed)
        return [pair.model_copy(update={"interest": others[pair.id]}) for pair in pairs if pair.id in others]
    raise UserError(f"there is no interest {interest!r}; there are {', '.join(INTERESTS)}")


def _judge(
    backend: PairwiseBackend,
    asked: Mapping[str, Sequence[Pair]],
    campaigns: Sequence[Campaign],
    validation: Sequence[tuple[Pair, float]],
    out: Path,
    seed: int,
    step: Callable[[int], None],
) -> dict[str, Any]:
    """All that one backend is asked, kept as it comes; what is said of the backend in the record."""
    temperature: float | None = None

    def keep(part: str, rows: Sequence[Pair | Campaign]) -> Kept:
        pairs = record.fingerprint(rows)
        return Kept(out, part, Head(backend.name, backend.fingerprint, pairs, seed, temperature))

    def judge(pairs: Sequence[Pair], near_half: float = selector.NEAR_HALF) -> list[Judgement]:
        found = selector.judge(backend, pairs, seed=seed, temperature=temperature, near_half=near_half)
        step(len(pairs))
        return found

    own = backend.temperature
    about: dict[str, Any] = {
        "name": backend.name,
        "temperature": own,
        "temperature_from": "the backend" if own is not None else "none fitted",
    }
    if validation:
        temperature, chosen = 1.0, [pair for pair, _ in validation]
        judged = keep("validation", chosen)(chosen, judge)
        try:
            temperature, loss = selector.fit_temperature(judged, [q for _, q in validation])
            about |= {
                "temperature": temperature,
                "temperature_from": f"{len(validation)} validation pairs",
                "validation_log_loss": loss,
            }
        except ValueError:  # it never leaves one half: nothing can be fitted
            temperature = None
    for part, pairs in asked.items():
        kept, began = keep(part, pairs), time.perf_counter()
        resumed = kept.resumed
        found = kept(pairs, judge)
        if part == "true":
            seconds = time.perf_counter() - began
            about |= {
                "pairs": len(pairs),
                # of a run that was resumed nobody knows how long it took
                "seconds_per_pair": None if resumed else round(seconds / len(pairs), 5),
                "tokens_per_pair": round(sum(one.tokens for one in found) / len(pairs), 1),
            }
    if campaigns:
        kept = keep("ranking", campaigns)
        # For an order, being unsure of a pair is told by its probability, not by an abstention.
        orders = rank_many(
            campaigns, lambda some: kept(some, lambda few: judge(few, near_half=0.0)), seed=seed
        )
        rows = [one.model_copy(update={"judge": backend.name}) for one in orders]
        record.write_rows(rows, _rankings(out, backend.name))
    return about


def _rankings(out: Path, backend: str) -> Path:
    return out / record.RANKINGS / record.file_name(backend, "rankings")


def _check(pairs: Sequence[Pair], backends: Sequence[PairwiseBackend], validation: Sequence[Pair]) -> None:
    if not pairs:
        raise UserError(
            "no pair has impressions and clicks of both creatives, or a label: there is nothing to score"
        )
    if not backends:
        raise UserError("there is no backend to evaluate: name at least one")
    for what, names in (("pair", [p.id for p in pairs]), ("backend", [b.name for b in backends])):
        name, times = Counter(names).most_common(1)[0]
        if times > 1:
            raise UserError(f"{times} {what}s are called {name}: give each a name of its own")
    shared = {pair.product_id for pair in pairs} & {pair.product_id for pair in validation}
    if shared:
        raise UserError(
            f"{len(shared)} products are in the validation pairs and in those that are scored, "
            f"{sorted(shared)[0]} for one: a temperature may only be fitted on other products"
        )
