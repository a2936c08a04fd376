"""What a run did, product by product: one figure taken apart, and the worst answers as they were.

A slice is the rows of a task whose product has one value of an attribute; the values are those of the
labelling tasks of the same data set, found by product id. Only the values with most products are shown and
the others taken together, so nothing is picked by its score. Title lengths are fixed bins of words, so that
runs can be compared.

Answers are of one encoder, the first that writes rationales, else the first of the run. Of every task the
queries with the lowest figure come first, and among equals those whose relevant item came last; of every
labelling the wrong labels, the surest first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from moonshelf.evaluation.contract import Result
from moonshelf.evaluation.record import Predictions
from moonshelf.evaluation.report.outcome import Outcome, Row
from moonshelf.evaluation.statistics.significance import Interval, bootstrap

SHOWN = 8  # values of an attribute
FEW = 30  # rows; below, an interval says little and the page says so
BINS = {0: "no words", 3: "1 to 3 words", 6: "4 to 6 words", 10: "7 to 10 words", 10**6: "11 words or more"}
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
    bins = {id: next(name for most, name in BINS.items() if n <= most) for id, n in words.items()}
    return {LENGTH: bins, **truth}


def _slices(outcome: Outcome, row: Row, values: Mapping[str, str]) -> list[Slice]:
    kept = {name: one for name in row.results if (one := outcome.kept(row, name)) and one.values(row.metric)}
    if not kept:
        return []
    counts = Counter(values[id] for id in next(iter(kept.values())).columns["id"] if id in values)
    place = {name: most for most, name in BINS.items()}  # bins keep their order, others go by their number
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


# ---- answers ------------------------------------------------------------------------------------------

QUERIES, FOUND = 3, 5  # of each ranking: queries, and what they found first
MOVED = 10  # queries that gained, and that lost
LABELS, LABELS_IN_ALL = 2, 24  # of each labelling, and in all
Picture = tuple[str, str]  # dataset, id


@dataclass(frozen=True)
class Shown:
    """A product on the page, by what was kept of it."""

    key: Picture
    text: str = ""
    score: float | None = None
    gain: float = 0.0  # above 0 where it is relevant

    @property
    def id(self) -> str:
        return self.key[1]


@dataclass(frozen=True, kw_only=True)
class WorstQuery(Shown):
    """A query that went wrong; `place` is the expected place of the best relevant item, from 1."""

    row: Row
    value: float
    ok: bool
    rationale: str
    wanted: Shown | None
    place: float | None
    found: Sequence[Shown]

    @property
    def pictured(self) -> bool:
        """The query had a picture; one of words alone is shown without, whatever its product looks like."""
        return not self.row.view.startswith("text")


@dataclass(frozen=True, kw_only=True)
class WrongLabel(Shown):
    """A product whose label was wrong, or was not written."""

    row: Row
    truth: str
    predicted: str
    rationale: str
    valid: bool


class Moved(NamedTuple):
    """A way to search against the baseline: how many queries gained and lost, and those that did most.

    Each query is told twice, as the baseline answered it and as `encoder` did.
    """

    encoder: str
    result: Result
    gained: int
    lost: int
    queries: Sequence[tuple[WorstQuery, WorstQuery]]


def moved(outcome: Outcome, each: int = MOVED) -> list[Moved]:
    """Of ways to search: for each but the baseline the `each` queries that gained and lost most."""
    found: list[Moved] = []
    rows = outcome.main_rows if outcome.searched else []
    for row, encoder in [(one, name) for one in rows for name in one.results if name != outcome.baseline]:
        before, after = outcome.whole(row, outcome.baseline), outcome.whole(row, encoder)
        if before is None or after is None:
            continue
        pairs = zip(before.values(row.metric) or [], after.values(row.metric) or [], strict=True)
        change = [new - old for old, new in pairs]
        order = sorted(range(len(change)), key=lambda i: -change[i])
        shown = [i for i in order[:each] if change[i] > 0] + [i for i in order[::-1][:each] if change[i] < 0]
        told = [(_query(outcome, row, before, i), _query(outcome, row, after, i)) for i in shown]
        up, down = sum(one > 0 for one in change), sum(one < 0 for one in change)
        found.append(Moved(encoder, row.results[encoder], up, down, told))
    return found


def shown_encoder(outcome: Outcome) -> str:
    """Whose mistakes are shown."""
    written = {r.encoder for row in outcome.rows if row.method == "rationale" for r in row.measured}
    return next((name for name in outcome.encoders if name in written), outcome.encoders[0])


def worst_queries(outcome: Outcome, each: int = QUERIES) -> list[WorstQuery]:
    """Of each ranking the `each` worst queries that are not perfect."""
    encoder, found = shown_encoder(outcome), []
    for row in outcome.main_rows:
        whole = outcome.whole(row, encoder) if row.method == "ranking" else None
        if whole is not None:
            found += [_query(outcome, row, whole, i) for i in worst_rows(whole, row.metric)[:each]]
    return found


def wrong_labels(outcome: Outcome, each: int = LABELS, most: int = LABELS_IN_ALL) -> list[WrongLabel]:
    """Of each labelling the `each` first mistakes, tasks in turn, and never one product twice."""
    encoder, used = shown_encoder(outcome), set[Picture]()
    found: list[WrongLabel] = []
    for row in outcome.main_rows:
        if row.method not in ("rationale", "zero-shot classification") or "hidden" in row.view:
            continue
        whole = outcome.whole(row, encoder)
        if whole is None or whole.head.kind != "labels":
            continue
        c = whole.columns
        score = [None if one != one else one for one in c["score"]]  # NaN where a rationale was read
        wrong = [i for i in range(len(whole)) if c["correct"][i] < 0.5 and c["ok"][i]]
        wrong = [i for i in wrong if (row.dataset, c["id"][i]) not in used]
        wrong.sort(key=lambda i: (not c["valid"][i], not c["predicted"][i], -(score[i] or 0.0)))
        for i in wrong[:each]:
            used.add((row.dataset, c["id"][i]))
            told = {name: c[name][i] for name in ("text", "truth", "predicted", "rationale", "valid")}
            found.append(WrongLabel(key=(row.dataset, c["id"][i]), score=score[i], row=row, **told))
    return found[:most]


def wanted_pictures(outcome: Outcome) -> list[Picture]:
    """`(dataset, id)` of every picture that the page would show, each once."""
    keys: list[Picture] = []
    for query in worst_queries(outcome):
        keys += [query.key] if query.pictured else []
        keys += [query.wanted.key] if query.wanted else []
        keys += [item.key for item in query.found]
    pairs = [query for one in moved(outcome) for pair in one.queries for query in pair]
    keys += [item.key for query in pairs for item in query.found]
    return list(dict.fromkeys(keys + [one.key for one in wrong_labels(outcome)]))


def worst_rows(whole: Predictions, metric: str) -> list[int]:
    """Rows of a ranking that are below 1, the worst first; among equals those found last."""
    values = whole.values(metric) or []
    places = [wanted(whole, i)[1] or float("inf") for i in range(len(whole))]
    below = [i for i, value in enumerate(values) if value < 1]
    return sorted(below, key=lambda i: (values[i], -places[i], i))


def _query(outcome: Outcome, row: Row, whole: Predictions, i: int) -> WorstQuery:
    c = {name: values[i] for name, values in whole.columns.items()}
    best, place = wanted(whole, i)
    right = dict(zip(c["relevant"], c["gains"], strict=True))

    def item(id: str, score: float | None) -> Shown:
        finite = score if score is not None and abs(score) < float("inf") else None
        key = row.dataset, id
        return Shown(key, outcome.texts.get(key, ""), finite, right.get(id, 0.0))

    scores = c["relevant_scores"] or [None] * len(c["relevant"])
    return WorstQuery(
        key=(row.dataset, c["id"]), text=c["text"], row=row, value=c[row.metric], ok=c["ok"], place=place,
        rationale=c["rationale"],
        wanted=None if best is None else item(c["relevant"][best], scores[best]),
        found=[item(*one) for one in zip(c["top"][:FOUND], c["top_scores"][:FOUND], strict=True)],
    )  # fmt: skip


def wanted(whole: Predictions, i: int) -> tuple[int | None, float | None]:
    """Which relevant item is shown, the first found of the most relevant ones; and its expected place."""
    gains, above, tied = (whole.columns[name][i] for name in ("gains", "above", "tied"))
    if not gains:
        return None, None
    if not above:  # the query could not be encoded
        return max(range(len(gains)), key=lambda j: gains[j]), None
    best = min(range(len(gains)), key=lambda j: (-gains[j], above[j]))
    return best, above[best] + (tied[best] + 1) / 2
