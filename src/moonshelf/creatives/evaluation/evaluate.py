"""Evaluate selectors of creatives: every backend over the same pairs, in both orders, by the same rules.

Baselines go through `selector.judge` like any model, so that averaging, abstention and safety are equal for
all. What was judged is written at once (`creative_record`), so an interrupted run goes on, and `recompute`
makes every figure again without a model. The temperature is fitted on validation pairs, whose products must
not be among those that are scored; without them it is the backend's own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moonshelf.creatives import selector
from moonshelf.creatives.backends.base import PairwiseBackend
from moonshelf.creatives.evaluation import explanations as reasons
from moonshelf.creatives.evaluation import record
from moonshelf.creatives.evaluation.figures import (
    Evidence,
    Interest,
    count,
    label_notes,
    rates_of,
    shuffled_interest,
    truth_of,
)
from moonshelf.creatives.evaluation.record import CreativeReport, Head, Kept, Trial
from moonshelf.creatives.labels import Prior, fit_prior
from moonshelf.creatives.ranking import Ranking, rank_many
from moonshelf.creatives.schema import Campaign, Judgement, Pair
from moonshelf.errors import UserError
from moonshelf.evaluation import record as common

INTERESTS: tuple[Interest, ...] = ("true", "shuffled", "none")
CHECKED = 48  # pairs of each control and edit; they cost as much as other pairs
Judge = Callable[[Sequence[Pair]], Sequence[Judgement]]


def evaluate(
    pairs: Sequence[Pair],
    backends: Sequence[PairwiseBackend],
    out: Path,
    *,
    interest: Sequence[Interest] = INTERESTS,
    campaigns: Sequence[Campaign] | None = None,
    validation: Sequence[Pair] | None = None,
    editor: reasons.Editor | None = None,
    explanations: bool = True,
    checked: int = CHECKED,
    seed: int = 0,
    progress: bool = False,
    command: str = "",
) -> CreativeReport:
    """Judge `pairs` by every backend, the first being the one that the others are compared with, and write
    `result.json`, `results.csv`, `report.md` and `report.html` into `out`.

    `interest` says under which interests: the pair's own (always), another campaign's, none. `campaigns` with
    more than two creatives are ranked. `explanations` adds controls and, with an `editor` that can test the
    reasons by editing what they name, edits, on the first `checked` pairs each. Pairs without
    counts and label are left out, with a note. Raises UserError for inputs that cannot be scored, and where
    `out` holds another run.
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
            "checked": checked if explanations else 0,
            "validation_pairs": len(validation or ()),
            **common.bootstrap_settings(),
        },
        versions=common.versions(),
        machine=common.machine(),
    )
    if command:
        report.settings["command"] = command
    report.notes = [f"Labels, {text}." for text in label_notes(scored, prior)]
    for left, what in ((len(pairs) - len(scored), "pairs"), (len(ranked) - len(rankable), "campaigns")):
        if left:
            report.notes.append(f"{left} {what} without counts were left out.")
    record.write_rows([record.without_pictures(pair) for pair in scored], out / record.PAIRS)
    record.write_rows([record.bare_campaign(one) for one in rankable], out / record.CAMPAIGNS)

    asked = {one: interest_pairs(scored, one, seed) for one in conditions}
    total = len(backends) * (sum(map(len, asked.values())) + len(validation or ()))
    trials: list[Trial] = []
    with _bar(total, progress) as step:
        for backend in backends:
            run = _Run(backend, out, seed, step)
            run.fit(validation or (), prior)
            for name, some in asked.items():
                run.judge(name, some)
            if explanations:
                run.controls(scored[:checked])
                trials += run.edits(scored, editor, checked)
            run.rankings(rankable)
            report.about.append(run.about)
    record.write_trials(trials, out)
    evidence = read_evidence(out, [one.name for one in backends], report.settings)
    count(evidence, report)
    report.seconds = round(time.perf_counter() - began, 1)
    record.save(report, out)
    _write_pages(out, report, evidence, scored)
    return report


def recompute(out: Path) -> CreativeReport:
    """Every figure of a folder again, from its judgements, and its pages; no model and no picture is read.

    Raises UserError for a missing or damaged file.
    """
    report = record.load(out)
    evidence = read_evidence(out, report.backends, report.settings)
    count(evidence, report)
    record.save(report, out)
    _write_pages(out, report, evidence, None)
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
        for name in backends:
            known = record.read_judged(out, condition, name)
            if lacking := [pair.id for pair in wanted if pair.id not in known]:
                raise UserError(
                    f"{len(lacking)} judgements of {name} are missing (interest: {condition}): run the "
                    "evaluation again with the same --out, it goes on where it stopped"
                )
            evidence.judged.setdefault(condition, {})[name] = known
    if settings.get("checked"):
        for control in reasons.CONTROLS:
            evidence.controls[control] = {
                name: record.read_judged(out, f"control {control}", name) for name in backends
            }
    evidence.trials = record.read_trials(out)
    evidence.campaigns = record.read_rows(out / record.CAMPAIGNS, Campaign)
    for name in backends:
        rankings = record.read_rows(out / record.RANKINGS / record.file_name(name, "rankings"), Ranking)
        if rankings:
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


class _Run:
    """One backend: everything it is asked, kept as it comes."""

    def __init__(self, backend: PairwiseBackend, out: Path, seed: int, step: Callable[[int], None]) -> None:
        self.backend, self.out, self.seed, self.step = backend, out, seed, step
        self.temperature: float | None = None
        self.true: list[Judgement] = []
        self.about: dict[str, Any] = {"name": backend.name}

    def _kept(self, part: str, pairs: Sequence[Pair], temperature: float | None) -> Kept:
        version = self.backend.fingerprint
        head = Head(self.backend.name, version, record.fingerprint(pairs), self.seed, temperature)
        return Kept(self.out, part, head)

    def _judge(self, pairs: Sequence[Pair], temperature: float | None) -> list[Judgement]:
        found = selector.judge(self.backend, pairs, seed=self.seed, temperature=temperature)
        self.step(len(pairs))
        return found

    def fit(self, validation: Sequence[Pair], prior: Prior) -> None:
        """The temperature, on validation pairs; without them the backend keeps its own."""
        own = self.backend.temperature
        self.about |= {
            "temperature": own,
            "temperature_from": "the backend" if own is not None else "none fitted",
        }
        known = [(pair, q) for pair in validation if (q := truth_of(pair, prior)) is not None]
        if not known:
            return
        chosen = [pair for pair, _ in known]
        kept = self._kept("validation", chosen, 1.0)(chosen, lambda some: self._judge(some, 1.0))
        try:
            self.temperature, loss = selector.fit_temperature(kept, [q for _, q in known])
        except ValueError:  # it never leaves one half: nothing can be fitted
            return
        self.about |= {
            "temperature": self.temperature,
            "temperature_from": f"{len(known)} validation pairs",
            "validation_log_loss": loss,
        }

    def judge(self, interest: Interest, pairs: Sequence[Pair]) -> None:
        kept, began = self._kept(interest, pairs, self.temperature), time.perf_counter()
        resumed = kept.resumed
        found = kept(pairs, lambda some: self._judge(some, self.temperature))
        if interest == "true":
            self.true = found
            seconds = time.perf_counter() - began
            self.about |= {
                "pairs": len(pairs),
                # of a run that was resumed nobody knows how long it took
                "seconds_per_pair": None if resumed else round(seconds / len(pairs), 5),
                "tokens_per_pair": round(sum(one.tokens for one in found) / len(pairs), 1),
            }

    def controls(self, pairs: Sequence[Pair]) -> None:
        for control in reasons.CONTROLS:
            some = reasons.control_pairs(pairs, control)
            self._kept(f"control {control}", some, self.temperature)(some, self._quietly)

    def edits(self, pairs: Sequence[Pair], editor: reasons.Editor | None, most: int) -> list[Trial]:
        if editor is None or not reasons.explains(self.true):
            return []
        found = reasons.edited_pairs(pairs, self.true, editor, most=most, seed=self.seed)
        before = {one.pair_id: one.p for one in self.true}
        after = []
        for part, place in (("edits", 3), ("placebos", 4)):
            some: list[Pair] = [row[place] for row in found]  # type: ignore[misc]
            after.append(self._kept(part, some, self.temperature)(some, self._quietly))
        trials = []
        for (pair, side, question, _, _), edit, placebo in zip(found, *after, strict=True):
            p = (before[pair.id], edit.p, placebo.p)
            mine = p if side == "A" else tuple(1 - one for one in p)
            trials.append(Trial(self.backend.name, pair.id, pair.product_id, question, *mine))
        return trials

    def rankings(self, campaigns: Sequence[Campaign]) -> None:
        if not campaigns:
            return
        every = [
            Pair(
                id=one.id, product_id=one.product_id, title=one.title, interest=one.interest,
                a=one.creatives[0], b=one.creatives[-1],
            )
            for one in campaigns
        ]  # fmt: skip
        kept = self._kept("ranking", every, self.temperature)
        rankings = rank_many(campaigns, lambda some: kept(some, self._decided), seed=self.seed)
        found = [one.model_copy(update={"judge": self.backend.name}) for one in rankings]
        name = record.file_name(self.backend.name, "rankings")
        record.write_rows(found, self.out / record.RANKINGS / name)

    def _decided(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """For an order: being unsure of a pair is told by its probability, not by an abstention."""
        return selector.judge(
            self.backend, pairs, seed=self.seed, temperature=self.temperature, near_half=0.0
        )

    def _quietly(self, pairs: Sequence[Pair]) -> list[Judgement]:
        return selector.judge(self.backend, pairs, seed=self.seed, temperature=self.temperature)


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


def _write_pages(out: Path, report: CreativeReport, evidence: Evidence, pairs: Sequence[Pair] | None) -> None:
    from moonshelf.creatives.evaluation.pages import keep_pictures, write_pages

    if pairs is not None:
        keep_pictures(out, report, evidence, pairs)
    write_pages(out, report, evidence)


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, or nothing."""
    if not shown:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("judging pairs", total=total)
        yield lambda done: bar.advance(task, done)
