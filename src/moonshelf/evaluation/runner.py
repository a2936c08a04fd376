"""One evaluation: data sets, encoders, the sanity gate, every task, and a record that a rerun can start from.

The gate comes first: vectors that are not finite, not of unit length, or all alike stop the run with
advice. A figure of our model whose interval does not clear chance is an error in the record and at the
end of the run, because a broken prompt or pooling position looks just like that, and must not pass for a
weak result. Figures read from rationales are exempt: a key that the model never learnt to write is no
broken vector. Classifiers are fitted for encoders that write nothing: thousands of training products would
have to be reasoned about for a figure that is not zero-shot.

With a folder for the results, the predictions of every query are kept there as each task ends, then the
record and the pictures of the worst answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from moonshelf.errors import UserError
from moonshelf.evaluation import record
from moonshelf.evaluation.contract import Encoder, Result, asking, check_vectors, why_not
from moonshelf.evaluation.data.dataset import Dataset
from moonshelf.evaluation.data.registry import select
from moonshelf.evaluation.encoders.baselines import ModelEncoder, TwoTowerBaseline, make_baselines
from moonshelf.evaluation.encoders.cache import EmbeddingCache, Timing
from moonshelf.evaluation.encoders.lexical import fit_words
from moonshelf.evaluation.record import Predictions, Report
from moonshelf.evaluation.report.details import wanted_pictures
from moonshelf.evaluation.report.outcome import Outcome
from moonshelf.evaluation.report.page import thumbnail
from moonshelf.evaluation.statistics.scoring import Scored, figures
from moonshelf.evaluation.tasks import Labelling, Matching, Retrieval, Task, shown_by
from moonshelf.evaluation.tasks.base import words

if TYPE_CHECKING:
    from moonshelf.model.encoders.base import Encoder as Model
    from moonshelf.model.encoders.base import Reason
    from moonshelf.product import Product

GATE_ROWS = 64
KINDS = ("retrieval", "category", "attributes", "matching")


def evaluate(
    model: Model | None,
    *,
    suite: str = "validation",
    tasks: Sequence[str] = (),
    data: Path | None = None,
    against: Sequence[str] = (),
    reason: Sequence[str] = ("off", "on"),
    baseline: str | None = None,
    limit: int | None = None,
    fit_rows: int = 2000,
    download: bool = False,
    cache: Path | EmbeddingCache | None = None,
    out: Path | None = None,
    reading: Mapping[str, Any] | None = None,
    batch_tokens: int = 8192,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Score `model` in each mode of `reason`, and the baselines `against`, on the tasks of `suite`.

    A suite may also be data sets or a feed (`registry.select`); with `download` what is missing of them is
    fetched, and pictures behind web addresses; `reading` are options of `read_feed` for a feed. `tasks` are
    kinds (`KINDS`), names, parts of names, or patterns with `*`; none takes all. `limit` caps the validation
    rows (for the sample shop, its products), `fit_rows` the training rows that fitted classifiers learn from
    (0: none). `baseline` is the name of the encoder that the others are tested against, the first by default.
    With `out` the record and the predictions are written there.
    Raises UserError for what the user must mend and where the sanity gate closes.
    """
    start = time.perf_counter()
    chosen = select(suite, reading)
    if model is None and not against:
        raise UserError("there is nothing to score: name a model, or baselines with --against")
    if odd := [mode for mode in reason if mode not in ("off", "on", "auto")]:
        raise UserError(f"--reason takes off, on or auto, not '{odd[0]}'")
    modes = cast("list[Reason]", list(dict.fromkeys(reason))) if model else []
    if model is not None and not model.writes:
        modes = ["off"]
    ours = [ModelEncoder(model, mode, batch_tokens) for mode in modes if model]
    encoders: list[Encoder] = [*ours, *make_baselines(against, model.prompt if model else None, download)]
    if baseline is None and len(encoders) > 1:
        baseline = encoders[0].name
    record.check_baseline(baseline, [encoder.name for encoder in encoders])
    store = cache if isinstance(cache, EmbeddingCache) else EmbeddingCache(cache)
    for encoder in encoders:
        if hasattr(encoder, "part_encode"):
            encoder.part_encode = store.encode
    settings = {
        "model": str(getattr(model, "source", "")) if model else None, "suite": suite, "tasks": list(tasks),
        "data": str(data) if data else None, "against": list(against), "reason": list(reason),
        "baseline": baseline, "limit": limit, "fit_rows": fit_rows, "download": download,
        "batch_tokens": batch_tokens, "gate_rows": GATE_ROWS,
    }  # fmt: skip
    run = _Run(encoders, store, baseline, out, say, record.begin(settings))

    def read(name: str) -> Dataset:
        say(f"{name}: reading")
        return chosen[name](data, limit, fit_rows, download)

    ready: dict[str, Dataset] = {}
    for learner in (encoder for encoder in encoders if isinstance(encoder, TwoTowerBaseline)):
        ready = {name: read(name) for name in chosen}  # all first: it learns once, from the whole suite
        say(f"{learner.name}: learning")
        learner.fit([product for one in ready.values() for product in one.training], suite)
    passed_over: list[str] = []
    for name in chosen:
        dataset = ready.pop(name) if ready else read(name)
        passed_over += [task.name for task in dataset.tasks]
        dataset.tasks = [task for task in dataset.tasks if wanted(task, tasks)]
        if dataset.tasks:
            run.score(dataset)
        run.store.release()
    if not run.report.datasets:
        names = ", ".join(dict.fromkeys(passed_over))
        raise UserError(
            f"no task is called {' or '.join(tasks)}: choose from {', '.join(KINDS)}, or of {names}"
        )
    return run.finish(ours, time.perf_counter() - start)


def kind_of(task: Task) -> str:
    """Of `KINDS`."""
    if isinstance(task, Retrieval | Matching):
        return "retrieval" if isinstance(task, Retrieval) else "matching"
    return "category" if isinstance(task, Labelling) and task.key == "category" else "attributes"


def wanted(task: Task, names: Sequence[str]) -> bool:
    """Whether a filter takes a task: by its kind, a part of its name, or a pattern; no names take all."""
    called, *patterns = (x.casefold().replace("→", "->").strip() for x in (task.name, *names))
    return not names or any(
        kind_of(task) == one if one in KINDS else fnmatchcase(called, one if "*" in one else f"*{one}*")
        for one in patterns
    )


def advice(report: Report) -> list[str]:
    """Errors that figures of our model are, where they are no better than chance."""
    ours = {encoder["name"] for encoder in report.encoders if encoder.get("ours")}
    return [
        f"{r.encoder} is at chance on {r.dataset}, {r.task} ({r.view}, {r.metric} {r.value:.3f} against "
        f"{r.chance:.3f}): check that the weights, the prompt and the pixel budget are those of the training "
        "(moonshelf doctor), and that this kind of input was trained at all"
        for r in report.results
        if r.encoder in ours
        and r.method != "rationale"
        and r.view != "text, hidden"  # a control: nothing that would tell is left in the words
        and r.at_chance
        and not r.too_few
    ]


@dataclass
class _Run:
    """What the tasks of one evaluation share."""

    encoders: Sequence[Encoder]
    store: EmbeddingCache
    baseline: str | None
    out: Path | None
    say: Callable[[str], None]
    report: Report
    seen: dict[tuple[str, str], Product] = field(default_factory=dict)  # nothing of it is decoded before

    def score(self, dataset: Dataset) -> None:
        """Every task of a data set by every encoder."""
        report = self.report
        for encoder in self.encoders:
            fit_words(encoder, dataset)
            self._gate(encoder, dataset.tasks)
        for task in dataset.tasks:
            self._task(task)
            self._remember(task)
        report.datasets.append(
            {
                "name": dataset.name, "licence": dataset.licence, "note": dataset.note,
                "files": dataset.files, "rejected": len(dataset.problems), "not_run": dataset.not_run,
                "templates": {t.name: t.templates for t in dataset.tasks if isinstance(t, Labelling)},
            }
        )  # fmt: skip
        report.problems += [
            {"encoder": None, "dataset": dataset.name, **p.as_dict()} for p in dataset.problems
        ]

    def finish(self, ours: Sequence[ModelEncoder], seconds: float) -> Report:
        """Fill in costs, problems and errors, and write the record."""
        report, store = self.report, self.store
        names = {encoder.name for encoder in ours}
        for encoder in self.encoders:
            timing = store.timings.get(encoder.name, Timing())
            report.encoders.append(
                {
                    "name": encoder.name, "fingerprint": encoder.fingerprint, "ours": encoder.name in names,
                    "reads": sorted(encoder.reads), "writes": encoder.writes, "one_space": encoder.one_space,
                    **asdict(timing), "items_per_second": timing.items_per_second,
                }
            )  # fmt: skip
        report.machine["peak MiB"] = record.peak_mib()
        report.problems += [{"encoder": key[0], **p.as_dict()} for key, p in store.problems.items()]
        report.problems += [
            {"encoder": None, "reason": f"the cache part {name} is damaged: its rows were computed again"}
            for name in store.unreadable
        ]
        report.errors += advice(report)
        report.seconds = seconds
        if self.out is not None:
            record.save(report, self.out)
            self._illustrate(self.out)
        return report

    def _gate(self, encoder: Encoder, tasks: Sequence[Task]) -> None:
        for task in tasks:
            reads = shown_by(task)
            if why_not(encoder, reads, reads) is None:
                asker = asking(encoder) if isinstance(task, Retrieval) else encoder
                shown = self.store.encode(asker, task.products[:GATE_ROWS])
                check_vectors(asker, shown, allow_zero=encoder.cheap)
                return

    def _task(self, task: Task) -> None:
        """Predictions of all encoders, then figures, so that any of them can be the baseline."""
        found: list[Scored | Result] = []
        for encoder in self.encoders:
            self.say(f"{task.dataset}: {task.name}, {task.view} - {encoder.name}")
            mine = replace(task, fit=None) if isinstance(task, Labelling) and encoder.writes else task
            timing = self.store.timings.setdefault(encoder.name, Timing())
            before, start = replace(timing), time.perf_counter()
            kept = mine.predict(encoder, self.store.encode)
            done = [Scored(one) if isinstance(one, Predictions) else one for one in kept]
            self.report.costs.append(
                {
                    "dataset": task.dataset, "task": task.name, "view": task.view, "encoder": encoder.name,
                    "seconds": time.perf_counter() - start, **timing.since(before),
                }
            )  # fmt: skip
            for one in done:
                if isinstance(one, Scored) and self.out is not None:
                    record.write_predictions(one.predictions, self.out)
            found += done
        self.report.results += figures(found, self.baseline)

    def _remember(self, task: Task) -> None:
        """Keep references to what a task showed; of two views of one, that with a picture, or with words."""
        shown = [*task.queries, *task.corpus] if isinstance(task, Retrieval) else task.products
        for product in shown:
            known = self.seen.setdefault((task.dataset, product.id), product)
            given = {name: getattr(product, name) for name in ("images", "title") if not getattr(known, name)}
            if any(given.values()):
                self.seen[task.dataset, product.id] = known.model_copy(update=given)

    def _illustrate(self, out: Path) -> None:
        """Keep words and a small picture of the few products that the report wants."""
        keys = [key for key in wanted_pictures(Outcome(self.report, out)) if key in self.seen]
        rows = {}
        for key, product in ((key, self.seen[key]) for key in keys):
            first = product.images[0] if product.images else None
            rows[key] = words(product), thumbnail(first, record.PICTURE_SIDE)
        record.write_shown(rows, out)
