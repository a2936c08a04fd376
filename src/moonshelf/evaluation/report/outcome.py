"""What a run left in its folder, put in order for people: rows, marks against a baseline, and costs.

Everything comes from `result.json` and the predictions beside it; nothing is encoded again. A row is one
task in one view by one method and metric, with a result for each encoder. The first metric of a task is the
one that pages show first. A mark says that the paired 95 % interval of the difference to the baseline leaves
zero out; it is not corrected for the number of figures, and every page says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from moonshelf.errors import UserError
from moonshelf.evaluation import predictions, record
from moonshelf.evaluation.contract import Result, Versus
from moonshelf.evaluation.predictions import Predictions
from moonshelf.evaluation.statistics import scoring, significance

DIRECT, REASONED = " direct", " reasoned"  # how the names of our two modes end
MARKS = {"better": "▲", "worse": "▼", "same": "≈", "": ""}
Key = tuple[str, str, str, str, str]  # dataset, task, view, method, encoder


@dataclass(frozen=True)
class Row:
    """One task, view, method and metric, and what each encoder reached."""

    dataset: str
    task: str
    view: str
    method: str
    metric: str
    results: dict[str, Result]

    @property
    def any(self) -> Result:
        """A result that says n, corpus and chance: one with a value, if there is one."""
        found = list(self.results.values())
        return next((r for r in found if r.value is not None), found[0])

    @property
    def chance(self) -> float | None:
        return next((r.chance for r in self.results.values() if r.chance is not None), None)

    @property
    def measured(self) -> bool:
        return any(r.value is not None for r in self.results.values())

    @property
    def fitted(self) -> bool:
        """It learns from training labels, so it is not zero-shot."""
        return self.method.endswith("fitted")

    def value(self, encoder: str) -> float | None:
        found = self.results.get(encoder)
        return found.value if found else None


@dataclass(frozen=True)
class Tally:
    """How often one encoder is better or worse than the baseline, over the rows that both have."""

    encoder: str
    better: int
    worse: int
    same: int

    @property
    def compared(self) -> int:
        return self.better + self.worse + self.same


@dataclass(frozen=True)
class Change:
    """Direct against reasoned vectors of one model in one row."""

    row: Row
    direct: Result
    reasoned: Result
    versus: Versus

    @property
    def mark(self) -> str:
        return mark(self.versus)


@dataclass
class Outcome:
    """A run's folder, read."""

    out: Path
    results: list[Result]
    record: dict[str, Any]  # the rest of result.json
    baseline: str
    _drawn: dict[Key, scoring.Scored] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, out: Path, baseline: str | None = None) -> Outcome:
        """Read a folder; `baseline` is by default the run's own, or its first encoder.

        Raises UserError for a missing or broken file, or an unknown baseline.
        """
        report = record.load(out)
        names = list(dict.fromkeys(r.encoder for r in report.results))
        if not names:
            raise UserError(f"{record.RESULT} of {out} holds no figure: evaluate again with --out")
        record.check_baseline(baseline, names)
        rest = {name: value for name, value in vars(report).items() if name != "results"}
        chosen = baseline or _baseline_of(rest, report.results) or names[0]
        return cls(out, report.results, rest, chosen)

    # ---- rows ----------------------------------------------------------------------------------------

    @cached_property
    def encoders(self) -> list[str]:
        """Names, in the order of the run."""
        return list(dict.fromkeys(r.encoder for r in self.results))

    @cached_property
    def rows(self) -> list[Row]:
        """Every row in the order of the run; a task's first metric comes first."""
        found: dict[tuple[str, ...], Row] = {}
        for r in self.results:
            key = (r.dataset, r.task, r.view, r.method, r.metric)
            found.setdefault(key, Row(*key, results={})).results[r.encoder] = r
        return list(found.values())

    @cached_property
    def main_rows(self) -> list[Row]:
        """The first metric of every task, view and method that some encoder could do."""
        seen: set[tuple[str, ...]] = set()
        kept = []
        for row in self.rows:
            key = (row.dataset, row.task, row.view, row.method)
            if key not in seen and row.measured:
                kept.append(row)
            seen.add(key)
        return kept

    def dataset(self, name: str) -> dict[str, Any]:
        listed = [d for d in self.listed("datasets") if d.get("name") == name]
        return listed[0] if listed else {"name": name}

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(row.dataset for row in self.rows))

    def listed(self, name: str) -> list[dict[str, Any]]:
        """A list of records in result.json; whatever is no record is left out."""
        found = self.record.get(name)
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def cost(self, encoder: str) -> dict[str, Any]:
        return next((e for e in self.listed("encoders") if e.get("name") == encoder), {})

    def milliseconds(self, encoder: str) -> float | None:
        """Wall time of one product in this run; None where all vectors came from the cache."""
        cost = self.cost(encoder)
        encoded, seconds = cost.get("encoded"), cost.get("seconds")
        if (
            not isinstance(encoded, int)
            or not isinstance(seconds, int | float)
            or not encoded
            or seconds <= 0
        ):
            return None
        return 1000 * float(seconds) / encoded

    # ---- comparisons ---------------------------------------------------------------------------------

    def tallies(self) -> list[Tally]:
        """Each encoder against the baseline over the main rows; the baseline has none."""
        found = []
        for name in self.encoders:
            marks = [mark(row.results[name].versus) for row in self.main_rows if name in row.results]
            found.append(Tally(name, *(marks.count(kind) for kind in ("better", "worse", "same"))))
        return found

    def changes(self) -> list[Change]:
        """Main rows that a model did both directly and reasoned, with the paired difference."""
        found = []
        for direct in [name for name in self.encoders if name.endswith(DIRECT)]:
            reasoned = direct.removesuffix(DIRECT) + REASONED
            for row in self.main_rows:
                if row.value(direct) is None or row.value(reasoned) is None:
                    continue
                versus = self.compare(row, reasoned, direct)
                if versus is not None:
                    found.append(Change(row, row.results[direct], row.results[reasoned], versus))
        return found

    def compare(self, row: Row, encoder: str, baseline: str, draw: bool = True) -> Versus | None:
        """The paired difference of two encoders in a row; None where the predictions do not pair.

        Without `draw` it is None too for figures that are no mean over rows.
        """
        ours, theirs = self.kept(row, encoder), self.kept(row, baseline)
        if ours is None or theirs is None or ours.columns["id"] != theirs.columns["id"]:
            return None
        a, b = ours.values(row.metric), theirs.values(row.metric)
        if a and b:
            return versus(a, b, ours.columns["cluster"], baseline)
        if not draw:
            return None
        found = scoring.results(self._scored(row, encoder), self._scored(row, baseline))
        return next((r.versus for r in found if r.metric == row.metric), None)

    def against_baseline(self) -> Outcome:
        """Fill in what the run did not compare: all of it, if the baseline is another than the run's.

        Of figures that are no mean over rows (macro F1 …) only the main ones are drawn again, which takes
        long; `moonshelf evaluate --recompute` does all of them.
        """
        main = {id(row) for row in self.main_rows}
        for row in self.rows:
            for name, r in row.results.items():
                if name == self.baseline or r.value is None or row.value(self.baseline) is None:
                    row.results[name] = replace(r, versus=None)
                elif r.versus is None or r.versus.baseline != self.baseline:
                    found = self.compare(row, name, self.baseline, draw=id(row) in main)
                    row.results[name] = replace(r, versus=found)
        return self

    def _scored(self, row: Row, encoder: str) -> scoring.Scored:
        """What has no value of its own in each row (AP, macro F1) is drawn again from the predictions."""
        key = (row.dataset, row.task, row.view, row.method, encoder)
        if key not in self._drawn:
            whole = self.whole(row, encoder)
            assert whole is not None
            self._drawn[key] = scoring.scored(whole)
        return self._drawn[key]

    # ---- predictions ---------------------------------------------------------------------------------

    @cached_property
    def _files(self) -> dict[Key, Predictions]:
        """All predictions, without the lists of a ranking, which are read again where they are shown."""
        found: dict[Key, Predictions] = {}
        if not (self.out / predictions.FOLDER).is_dir():
            return found
        for one in predictions.read_all(self.out):
            keep = {"id", "cluster", "text", "truth", *one.head.metrics}
            one.columns = {name: values for name, values in one.columns.items() if name in keep}
            found[head_key(one.head)] = one
        return found

    @cached_property
    def texts(self) -> dict[tuple[str, str], str]:
        """Words of the products that are shown, by (dataset, id)."""
        return predictions.read_texts(self.out)

    def kept(self, row: Row, encoder: str) -> Predictions | None:
        return self._files.get((row.dataset, row.task, row.view, row.method, encoder))

    def kept_of(self, dataset: str) -> list[Predictions]:
        return [one for key, one in self._files.items() if key[0] == dataset]

    def whole(self, row: Row, encoder: str) -> Predictions | None:
        """The predictions of a row with every column."""
        one = self.kept(row, encoder)
        return (
            predictions.read(self.out / predictions.FOLDER / predictions.file_name(one.head)) if one else None
        )


def head_key(head: predictions.Head) -> Key:
    return head.dataset, head.task, head.view, head.method, head.encoder


def versus(
    values: Sequence[float], others: Sequence[float], clusters: Sequence[str], baseline: str
) -> Versus:
    """The paired test of two encoders' values of the same rows."""
    interval, p = significance.paired_means(values, others, clusters)
    known = p is not None
    test = significance.mcnemar(values, others) if interval.clusters == interval.n else None
    return Versus(
        baseline, interval.value, interval.low if known else None, interval.high if known else None, p, test
    )


def mark(found: Versus | None) -> str:
    """`better`, `worse` or `same` than the baseline; "" where the two were not compared."""
    if found is None or found.p is None:
        return ""
    if not found.significant:
        return "same"
    return "better" if found.difference > 0 else "worse"


def _baseline_of(rest: dict[str, Any], results: Sequence[Result]) -> str | None:
    """The baseline that the run was given, or compared with."""
    settings = rest.get("settings")
    given = settings.get("baseline") if isinstance(settings, dict) else None
    if isinstance(given, str) and given in {r.encoder for r in results}:
        return given
    return next((r.versus.baseline for r in results if r.versus is not None), None)
