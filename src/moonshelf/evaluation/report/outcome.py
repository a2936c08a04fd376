"""The figures of a run put in order for people: rows, marks against a baseline, and costs.

Everything comes from the record and the predictions beside it; nothing is encoded again. A row is one task in
one view by one method and metric, with a result for each encoder. The first metric of a task is the one that
pages show first. A mark says that the paired 95 % interval of the difference to the baseline leaves zero out;
it is not corrected for the number of figures, and every page says so.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from moonshelf.errors import UserError
from moonshelf.evaluation import record
from moonshelf.evaluation.contract import Result, Versus
from moonshelf.evaluation.record import Predictions, Report
from moonshelf.evaluation.statistics import scoring

DIRECT, REASONED = " direct", " reasoned"  # how the names of our two modes end
MARKS = {"better": "▲", "worse": "▼", "same": "≈", "": ""}


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
    def measured(self) -> list[Result]:
        """The results that have a value."""
        return [r for r in self.results.values() if r.value is not None]

    @property
    def any(self) -> Result:
        """A result that says n, corpus and chance: one with a value, if there is one."""
        return next(iter(self.measured or self.results.values()))

    @property
    def chance(self) -> float | None:
        return next((r.chance for r in self.results.values() if r.chance is not None), None)

    @property
    def by(self) -> str:
        """What was measured and how."""
        return self.metric if self.method == "ranking" else f"{self.method}, {self.metric}"

    def value(self, encoder: str) -> float | None:
        found = self.results.get(encoder)
        return found.value if found else None


class Change(NamedTuple):
    """Direct against reasoned vectors of one model in one row."""

    row: Row
    direct: Result
    reasoned: Result
    versus: Versus


class Outcome:
    """A report in order. Without `out` there are no predictions, hence no changes and no slices."""

    def __init__(self, report: Report, out: Path | None = None) -> None:
        self.report, self.out = report, out
        self.encoders = list(dict.fromkeys(r.encoder for r in report.results))  # in the order of the run
        self.datasets = list(dict.fromkeys(r.dataset for r in report.results))
        compared = (r.versus.baseline for r in report.results if r.versus is not None)
        given = report.baseline if report.baseline in self.encoders else None
        self.baseline = given or next(compared, None) or next(iter(self.encoders), "")

    @classmethod
    def load(cls, out: Path, baseline: str | None = None) -> Outcome:
        """Read a folder; for another `baseline` than the run's own every figure is counted again.

        Raises UserError for a missing or broken file, or an unknown baseline.
        """
        found = cls(record.load(out), out)
        if not found.encoders:
            raise UserError(f"{record.RESULT} of {out} holds no figure: evaluate again with --out")
        if baseline in (None, found.baseline):
            return found
        return cls(scoring.recompute(out, baseline=baseline), out)

    @property
    def searched(self) -> bool:
        """Ways to search were scored by judgements: one task, of which every metric is shown."""
        return bool(self.report.settings.get("judgements"))

    # ---- rows ----------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> list[Row]:
        """Every row in the order of the run; a task's first metric comes first."""
        found: dict[tuple[str, ...], Row] = {}
        for r in self.report.results:
            key = (r.dataset, r.task, r.view, r.method, r.metric)
            found.setdefault(key, Row(*key, results={})).results[r.encoder] = r
        return list(found.values())

    @cached_property
    def main_rows(self) -> list[Row]:
        """The first metric of every task, view and method that some encoder could do."""
        return [row for name in self.datasets for row in self.first(name)]

    def first(self, dataset: str, rankings: int = 1) -> list[Row]:
        """Of every ranking the first metrics, of anything else one, where some encoder could do it."""
        seen: Counter[tuple[str, ...]] = Counter()
        kept = []
        for row in (row for row in self.rows if row.dataset == dataset):
            key = (row.task, row.view, row.method)
            seen[key] += 1
            if row.measured and seen[key] <= (rankings if row.method == "ranking" else 1):
                kept.append(row)
        return kept

    def of(self, dataset: str, rankings: int = 1) -> list[Row]:
        """What is shown of a data set."""
        if self.searched:
            return [row for row in self.rows if row.dataset == dataset]
        return self.first(dataset, rankings)

    def widest(self, dataset: str, method: str) -> Row | None:
        """The first main row by a method among those that most encoders could do."""
        rows = [row for row in self.of(dataset) if row.method == method]
        return max(rows, key=lambda row: len(row.measured), default=None)

    def dataset(self, name: str) -> dict[str, Any]:
        return next((d for d in self.report.datasets if d.get("name") == name), {"name": name})

    def milliseconds(self, encoder: str) -> float | None:
        """Wall time of one product in this run; None where all vectors came from the cache."""
        cost = next((one for one in self.report.encoders if one.get("name") == encoder), {})
        encoded, seconds = cost.get("encoded"), cost.get("seconds")
        return 1000 * seconds / encoded if encoded and seconds else None

    # ---- comparisons ---------------------------------------------------------------------------------

    def tallies(self) -> dict[str, Counter[str]]:
        """How often each encoder is `better`, `worse` or `same` over the main rows."""
        compared = {
            name: [row.results[name].versus for row in self.main_rows if name in row.results]
            for name in self.encoders
        }
        return {name: Counter(filter(None, map(mark, found))) for name, found in compared.items()}

    def changes(self) -> list[Change]:
        """Main rows that a model did both directly and reasoned, with the paired difference."""
        found = []
        for direct in [name for name in self.encoders if name.endswith(DIRECT)]:
            reasoned = direct.removesuffix(DIRECT) + REASONED
            for row in self.main_rows:
                ours, theirs = self.whole(row, reasoned), self.whole(row, direct)
                if ours is None or theirs is None:
                    continue
                if versus := scoring.versus(scoring.Scored(ours), scoring.Scored(theirs), row.metric):
                    found.append(Change(row, row.results[direct], row.results[reasoned], versus))
        return found

    # ---- predictions ---------------------------------------------------------------------------------

    @cached_property
    def _files(self) -> dict[str, Predictions]:
        """By the names of files; lists of a ranking are left out, and read again where they are shown."""
        found: dict[str, Predictions] = {}
        if self.out is None or not (self.out / record.FOLDER).is_dir():
            return found
        for one in record.all_predictions(self.out):
            keep = {"id", "cluster", "text", "truth", *one.head.metrics}
            one.columns = {name: values for name, values in one.columns.items() if name in keep}
            found[record.file_name(one.head)] = one
        return found

    @cached_property
    def shown(self) -> dict[tuple[str, str], tuple[str, bytes]]:
        """Words and picture of the products that are shown, by (dataset, id)."""
        return record.read_shown(self.out) if self.out else {}

    @cached_property
    def texts(self) -> dict[tuple[str, str], str]:
        """Words of products: those kept with the pictures, else from whatever task showed most of them."""
        found: dict[tuple[str, str], str] = {}
        for one in self._files.values():
            for id, text in zip(one.columns["id"], one.columns["text"], strict=True):
                key = one.head.dataset, id
                found[key] = max(found.get(key, ""), text, key=len)
        return found | {key: text for key, (text, _) in self.shown.items() if text}

    def kept(self, row: Row, encoder: str) -> Predictions | None:
        return self._files.get(row.results[encoder].predictions) if encoder in row.results else None

    def kept_of(self, dataset: str) -> list[Predictions]:
        return [one for one in self._files.values() if one.head.dataset == dataset]

    def whole(self, row: Row, encoder: str) -> Predictions | None:
        """The predictions of a row with every column."""
        one = self.kept(row, encoder)
        if one is None or self.out is None:
            return None
        return record.read_predictions(self.out / record.FOLDER / record.file_name(one.head))


def mark(found: Versus | None) -> str:
    """`better`, `worse` or `same` than the baseline; "" where the two were not compared."""
    if found is None or found.p is None:
        return ""
    return "same" if not found.significant else "better" if found.difference > 0 else "worse"
