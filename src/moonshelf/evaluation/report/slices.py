"""One figure taken apart: by category, by each attribute, and by how much the title says.

A slice is the rows of a task whose product has one value of an attribute; the values are those of the
labelling tasks of the same data set, found by product id. Only the values with most products are shown and
the others taken together, so nothing is picked by its score. Title lengths are fixed bins of words, so that
runs can be compared.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from moonshelf.evaluation.report.outcome import Outcome, Row
from moonshelf.evaluation.statistics.significance import Interval, bootstrap

SHOWN = 8  # values of an attribute
FEW = 30  # rows; below, an interval says little and the page says so
BINS = (
    (0, "no words"),
    (3, "1 to 3 words"),
    (6, "4 to 6 words"),
    (10, "7 to 10 words"),
    (None, "11 words or more"),
)
LENGTH, OTHERS = "words shown", "all others"
METHODS = ("ranking", "zero-shot classification", "rationale")  # one row of each is taken apart


class Slice(NamedTuple):
    """Rows with one value, and the mean of each encoder over them."""

    value: str
    n: int
    means: Mapping[str, Interval]


class Sliced(NamedTuple):
    """A row taken apart: the name of an attribute, and its slices."""

    row: Row
    parts: Mapping[str, list[Slice]]


def sliced(outcome: Outcome) -> list[Sliced]:
    """For each data set the first ranking, the first labelling by similarity and the first by reading."""
    found = []
    for dataset in outcome.datasets:
        known = _values(outcome, dataset)
        for method in METHODS:
            if row := outcome.widest(dataset, method):
                parts = {name: _slices(outcome, row, values) for name, values in known.items()}
                if kept := {name: part for name, part in parts.items() if len(part) > 1}:
                    found.append(Sliced(row, kept))
    return found


def _values(outcome: Outcome, dataset: str) -> dict[str, dict[str, str]]:
    """Attribute -> product id -> value, the number of words first; then in the order of the tasks."""
    words: dict[str, int] = {}
    truth: dict[str, dict[str, str]] = defaultdict(dict)
    order = {task: i for i, task in enumerate(dict.fromkeys(row.task for row in outcome.rows))}
    for one in sorted(outcome.kept_of(dataset), key=lambda one: order.get(one.head.task, len(order))):
        if one.head.kind == "pairs":
            continue
        for id, text in zip(one.columns["id"], one.columns["text"], strict=True):
            words[id] = max(words.get(id, 0), len(text.split()))
        if one.head.kind == "labels":
            truth[one.head.task].update(zip(one.columns["id"], one.columns["truth"], strict=True))
    bins = {id: next(name for most, name in BINS if most is None or n <= most) for id, n in words.items()}
    return {LENGTH: bins, **truth}


def _slices(outcome: Outcome, row: Row, values: Mapping[str, str]) -> list[Slice]:
    kept = {name: one for name in row.results if (one := outcome.kept(row, name)) and one.values(row.metric)}
    if not kept:
        return []
    counts = Counter(values[id] for id in next(iter(kept.values())).columns["id"] if id in values)
    place = {name: i for i, (_, name) in enumerate(BINS)}  # bins keep their order, others go by their number
    ranked = sorted(counts, key=lambda value: (place.get(value, -1), -counts[value], value))
    label = {id: value if value in ranked[:SHOWN] else OTHERS for id, value in values.items()}
    found = []
    for value in [*ranked[:SHOWN], OTHERS]:
        means: dict[str, Interval] = {}
        for name, one in kept.items():
            rows = zip(one.columns["id"], one.values(row.metric) or [], one.columns["cluster"], strict=True)
            if mine := [(figure, cluster) for id, figure, cluster in rows if label.get(id) == value]:
                figures, clusters = zip(*mine, strict=True)
                means[name] = bootstrap(figures, clusters)
        if means:
            found.append(Slice(value, max(one.n for one in means.values()), means))
    return found
