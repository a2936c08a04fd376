"""Figures from predictions, and from nothing else: so a run and its recomputation are the same code.

`Scored` fills in what each row is worth; `figures` turns that into results with intervals, beside a baseline
of the same rows where there is one. A label that
was read from a rationale and is none of the task's counts as no answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from moonshelf.errors import UserError
from moonshelf.evaluation import record
from moonshelf.evaluation.contract import Result, Versus
from moonshelf.evaluation.record import Predictions, Report, file_name
from moonshelf.evaluation.statistics import metrics, significance
from moonshelf.evaluation.statistics.metrics import MACRO, Floats, Ranking, Ranks, at_threshold, macro
from moonshelf.evaluation.statistics.significance import Interval

LABEL_METRICS = ("accuracy", "exact", *MACRO)  # `exact` only where a rationale is read
SET_METRICS = ("F1", "precision", "recall")
JUDGED = "judged@10"  # share of the first 10 with a judgement; told by who ranks
PAIR_METRICS = ("AP", "ROC-AUC", "F1", "accuracy")  # the last two at a threshold chosen on the other half


Drawn = Callable[
    [], tuple[list[Interval], Floats]
]  # figures that are drawn together, when they are asked for


class Scored:
    """Predictions with what they are worth: values of rows are in the columns, intervals drawn when asked."""

    def __init__(self, kept: Predictions) -> None:
        if not len(kept):
            raise UserError(
                f"the predictions of {kept.head.dataset} {kept.head.task} hold no row: evaluate again"
            )
        self.predictions, self.note = kept, ""
        self.joint: dict[str, tuple[Drawn, int]] = {}  # metric -> what it is drawn with, its place in that
        {"ranking": _rank, "labels": _label, "sets": _sets, "pairs": _pairs}[kept.head.kind](self)

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Of every metric of the file that is defined for it."""
        kept, found = self.predictions, {}
        for metric in kept.head.metrics:
            values = kept.values(metric)
            if values is not None:
                found[metric] = significance.bootstrap(values, kept.columns["cluster"])
            elif metric in self.joint:
                drawn, place = self.joint[metric]
                found[metric] = drawn()[0][place]
        return found

    def draw(
        self, names: Sequence[str], statistic: significance.Statistic, clusters: Sequence[str] | None = None
    ) -> None:
        """Let the named figures be drawn with a statistic that gives them in this order."""
        names_of = self.predictions.columns["cluster"] if clusters is None else clusters
        drawn = cache(lambda: significance.resample(statistic, len(names_of), names_of))
        self.joint |= {
            name: (drawn, place) for place, name in enumerate(names) if name in self.predictions.head.metrics
        }


def figures(kept: Iterable[Predictions | Scored | Result], baseline: str | None = None) -> list[Result]:
    """The figures of one task, of one or several encoders; results that say why not stay.

    Each is tested against the encoder `baseline`, where that did the task by the same method.
    """
    scored = [Scored(one) if isinstance(one, Predictions) else one for one in kept]
    others = {
        one.predictions.head.method: one
        for one in scored
        if isinstance(one, Scored) and one.predictions.head.encoder == baseline
    }
    found: list[Result] = []
    for one in scored:
        if isinstance(one, Result):
            found.append(one)
        else:
            head = one.predictions.head
            other = others.get(head.method) if head.encoder != baseline else None
            found += [_figure(one, metric, other) for metric in head.metrics]
    return found


def _figure(done: Scored, metric: str, baseline: Scored | None) -> Result:
    head, known = done.predictions.head, done.intervals.get(metric)
    told: dict[str, Any] = {"value": None, "n": len(done.predictions)}
    if known is not None:
        ends = {"low": _finite(known.low), "high": _finite(known.high)}
        told = {"value": known.value, **ends, "n": known.n, "clusters": known.clusters}
    return Result(
        head.dataset, head.task, head.view, head.method, metric, head.encoder, **told,
        corpus=head.corpus, chance=head.chance.get(metric),
        constant=head.constant if metric == "accuracy" else None,
        note="; ".join(part for part in (head.note, done.note) if part),
        versus=versus(done, baseline, metric) if known is not None and baseline is not None else None,
        predictions=file_name(head),
    )  # fmt: skip


def versus(done: Scored, baseline: Scored, metric: str) -> Versus | None:
    """The paired difference of two encoders in a metric; None where it is not defined for either.

    Raises UserError where the two are not of the same rows.
    """
    ours, theirs = done.predictions, baseline.predictions
    for column in ("id", "cluster"):
        if ours.columns[column] != theirs.columns[column]:
            raise UserError(
                f"{file_name(ours.head)} and {file_name(theirs.head)} are not of the same rows: "
                "evaluate both in one run"
            )
    name = theirs.head.encoder
    values, others = ours.values(metric), theirs.values(metric)
    if values is not None and others is not None:
        interval, p = significance.paired_means(values, others, ours.columns["cluster"])
        independent = interval.clusters == interval.n
        test = significance.mcnemar(values, others) if independent else None
        return Versus(name, interval.value, _finite(interval.low), _finite(interval.high), p, test)
    if metric not in done.joint or metric not in baseline.joint:
        return None
    (left, draws), (right, other_draws) = (
        (drawn()[0][place], drawn()[1][:, place])
        for drawn, place in (done.joint[metric], baseline.joint[metric])
    )
    draws = draws - other_draws
    interval = significance.interval(left.value - right.value, draws, left.n, left.clusters)
    p = significance.two_sided(draws)
    return Versus(name, interval.value, _finite(interval.low), _finite(interval.high), p)


def _rank(done: Scored) -> None:
    kept = done.predictions
    head, c = kept.head, kept.columns
    ok, sizes = np.array(c["ok"], bool), [len(gains) for gains in c["gains"]]
    # a query that could not be encoded has no places: it stands anywhere here, and is a miss below
    above = [row if there else [0] * n for row, there, n in zip(c["above"], ok, sizes, strict=True)]
    tied = [row if there else [head.corpus] * n for row, there, n in zip(c["tied"], ok, sizes, strict=True)]
    if not all(sizes) or any([len(row) for row in rows] != sizes for rows in (above, tied)):
        raise UserError(f"{file_name(head)} has a query without truth or places: evaluate again")
    gain, higher, equal = (np.array([x for row in rows for x in row]) for rows in (c["gains"], above, tied))
    ranks = Ranks(np.repeat(np.arange(len(kept)), sizes), gain.astype(float), higher, equal, head.corpus)
    chance: dict[str, float] = {}
    for metric in head.metrics:
        if metric != JUDGED:
            value = metrics.ranking_metric(metric, _counted(metric, ranks, head.hit_gain))
            kept.columns[metric] = np.where(ok, value, 0.0).tolist()
            by_luck = metrics.ranking_metric(metric, _counted(metric, ranks.shuffled(), head.hit_gain))
            chance[metric] = float(by_luck.mean())
    kept.head = replace(head, chance=chance)


def _counted(metric: str, ranks: Ranks, hit_gain: float) -> Ranks:
    return ranks if metric.startswith("nDCG") else ranks.at_least(hit_gain)


def _label(done: Scored) -> None:
    kept = done.predictions
    truth, best = kept.columns["truth"], kept.columns["best"]
    shares = zip(truth, best, strict=True)
    kept.columns["correct"] = [1.0 / len(tied) if right in tied else 0.0 for right, tied in shares]
    kept.head = replace(kept.head, chance={"accuracy": 1 / len(kept.head.labels)})
    for metric, column in (("accuracy", "correct"), ("exact", "exact")):
        if metric in kept.head.metrics:
            kept.columns[metric] = list(kept.columns[column])
    if set(MACRO) & set(kept.head.metrics):
        known = {*kept.head.labels, *truth}
        done.draw(MACRO, macro(truth, [[label for label in tied if label in known] for tied in best]))


def _sets(done: Scored) -> None:
    kept = done.predictions
    rows = zip(kept.columns["truth"], kept.columns["predicted"], strict=True)
    shared = [(len({*truth} & {*found}), len({*truth}), len({*found})) for truth, found in rows]
    values = {
        "precision": [both / found if found else 0.0 for both, _, found in shared],
        "recall": [both / truth if truth else 0.0 for both, truth, _ in shared],
        "F1": [2 * both / (truth + found) if truth + found else 0.0 for both, truth, found in shared],
    }
    kept.columns.update({name: values[name] for name in kept.head.metrics})


def _pairs(done: Scored) -> None:
    kept = done.predictions
    score = np.array(kept.columns["score"], float)
    same, held_out = np.array(kept.columns["same"], bool), np.array(kept.columns["held_out"], bool)
    try:
        ranking = Ranking(score, same)
    except ValueError as error:
        raise UserError(
            f"the pairs of {kept.head.dataset} {kept.head.task} cannot be scored: {error}"
        ) from None

    def threshold_free(weights: Floats | None) -> Floats:
        return np.array([ranking.average_precision(weights), ranking.roc_auc(weights)])

    done.draw(("AP", "ROC-AUC"), threshold_free)
    kept.head = replace(kept.head, chance={"AP": float(same.mean()), "ROC-AUC": 0.5})
    try:
        chosen = Ranking(score[~held_out], same[~held_out])
        Ranking(score[held_out], same[held_out])
    except ValueError:
        done.note = "no threshold: a half of the clusters holds pairs of one class only"
        return
    thresholds = [chosen.best_threshold(metric)[0] for metric in ("F1", "accuracy")]
    done.note = f"thresholds chosen on the other half: F1 {thresholds[0]:.4g}, accuracy {thresholds[1]:.4g}"
    clusters = [c for c, out in zip(kept.columns["cluster"], held_out.tolist(), strict=True) if out]

    def at_thresholds(weights: Floats | None) -> Floats:
        both = [at_threshold(score[held_out], same[held_out], t, weights) for t in thresholds]
        return np.array([both[0][0], both[1][1]])

    done.draw(("F1", "accuracy"), at_thresholds, clusters)


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


# ---- again --------------------------------------------------------------------------------------------


def recompute(out: Path, baseline: str | None = None) -> Report:
    """Every figure of a run from its predictions, without a model; `baseline` in place of the run's own.

    Writes nothing. Raises UserError for a missing or damaged file, and for an unknown baseline.
    """
    report = record.load(out)
    record.check_baseline(baseline, list(dict.fromkeys(r.encoder for r in report.results)))
    report.settings = {**report.settings, "baseline": baseline or report.baseline}
    results: list[Result] = []
    for _, task in groupby(report.results, lambda r: (r.dataset, r.task, r.view)):
        kept: dict[object, Predictions | Result] = {}  # a file holds all metrics of its method
        for r in task:
            kept.setdefault(r.predictions or r, _read(out, r.predictions) if r.predictions else r)
        results += figures(kept.values(), report.baseline)
    report.results = results
    return report


def _read(out: Path, name: str) -> Predictions:
    if Path(name).name != name:
        raise UserError(f"{record.RESULT} names a predictions file outside its folder: {name}")
    return record.read_predictions(out / record.FOLDER / name)
