"""Our tasks as mteb tasks, so that any model that mteb knows can be run on them with mteb's own evaluators.

    offered = offer(dataset)
    mteb.evaluate(mteb.get_model("intfloat/multilingual-e5-small"), offered.tasks)

A retrieval task becomes mteb retrieval in its direction (text → image is `t2i` …); zero-shot classification
its own, with the first template for each label where ours averages several; training
products, where a task has them, become mteb classification (its logistic regression on few samples). What
cannot be offered without changing the figure is left out with a reason: a shown picture that is missing,
gains that are no whole numbers, labels that only the validation split has. R@k here is `hit_rate_at_k` of
mteb, nDCG@k is `ndcg_at_k`; mteb breaks ties by id where ours take the expectation, and knows no least gain
of a hit. Tables are made when mteb loads a task, with pictures decoded by `moonshelf.images` and handed on
without loss. The revision is a hash of what is shown and of the truth, so that mteb's cache never mixes two
data sets.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import datasets
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification

from moonshelf import images
from moonshelf.errors import UserError
from moonshelf.evaluation.contract import BOTH, TEXT
from moonshelf.evaluation.data.views import Dataset
from moonshelf.evaluation.tasks.labelling import Labelling
from moonshelf.evaluation.tasks.retrieval import Retrieval
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec

SPLIT = "test"
MAX_SIDE = 1024  # pixels; larger pictures are reduced, as every encoder would
_WORDS = {"→": "To", "+": "And", "&": "And", "%": "Percent"}


@dataclass
class Offered:
    """Tasks for mteb, and what was left out with the reason."""

    tasks: list[AbsTask] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def offer(dataset: Dataset, prompt: PromptSpec | None = None) -> Offered:
    """Every task of a data set that mteb can run. Texts are those that `prompt` gives our model."""
    offered, read = Offered(), (prompt or PromptSpec()).text_of
    for task in dataset.tasks:
        makers: list[Callable[[], AbsTask]] = []
        if isinstance(task, Retrieval):
            makers.append(lambda task=task: _retrieval(task, dataset, read))  # type: ignore[misc]
        elif isinstance(task, Labelling):
            if "zero-shot classification" in task.methods:
                makers.append(lambda task=task: _zero_shot(task, dataset, read))  # type: ignore[misc]
            if task.fit is not None:
                makers.append(lambda task=task: _classification(task, dataset, read))  # type: ignore[misc]
        else:
            offered.left_out[f"{task.name}, {task.view}"] = "mteb has no such task"
        for make in makers:
            try:
                offered.tasks.append(make())
            except (UserError, images.ImageError) as error:
                offered.left_out[f"{task.name}, {task.view}"] = str(error)
    return offered


def register(suite: str, data: Path | None = None, **options: Any) -> list[str]:
    """Make `mteb.get_tasks` and `mteb run -t` know the tasks of data sets; the names that they have there."""
    from mteb.get_tasks import _TASKS_REGISTRY

    from moonshelf.evaluation.data.registry import select

    names = []
    for adapter in select(suite).values():
        for task in offer(adapter(data, **{"limit": None, "fit_rows": 2000, **options})).tasks:
            _TASKS_REGISTRY[task.metadata.name] = type(task)
            names.append(task.metadata.name)
    return names


def task_name(*parts: str) -> str:
    """`Moonshelf` and the words of the parts in capitals, as mteb names its tasks."""
    text = " ".join(parts)
    for sign, word in _WORDS.items():
        text = text.replace(sign, f" {word} ")
    return "Moonshelf" + "".join(word[:1].upper() + word[1:] for word in re.findall(r"[^\W_]+", text))


def main_score(metric: str) -> str:
    """What mteb calls one of our ranking metrics."""
    kind, _, k = metric.partition("@")
    names = {"R": "hit_rate_at", "nDCG": "ndcg_at", "MRR": "mrr_at", "mAP": "map_at"}
    if kind not in names:
        raise UserError(f"mteb has no {metric}")
    return f"{names[kind]}_{k or AbsTaskRetrieval.k_values[-1]}"


# ---- one kind each ---------------------------------------------------------------------------------


def _retrieval(task: Retrieval, dataset: Dataset, read: Callable[[Product], str]) -> AbsTask:
    by_key: dict[str, list[str]] = {}
    for product, key in zip(task.corpus, task.corpus_keys, strict=True):
        by_key.setdefault(key, []).append(product.id)
    truth: dict[str, dict[str, int]] = {}
    for query, grades in zip(task.queries, task.relevant, strict=True):
        if any(gain != int(gain) for gain in grades.values()):
            raise UserError("its gains are no whole numbers, which mteb takes alone")
        truth[query.id] = {i: int(gain) for key, gain in grades.items() if gain for i in by_key.get(key, [])}
    corpus = _Table(task.corpus, task.corpus_reads, read)
    queries = _Table(task.queries, task.query_reads, read)

    def load_data(self: Any, *_: Any, **__: Any) -> None:
        split = {"corpus": corpus.load(), "queries": queries.load(), "relevant_docs": truth}
        self.dataset, self.data_loaded = {"default": {SPLIT: {**split, "top_ranked": None}}}, True

    shown = task.query_reads | task.corpus_reads
    note = f"; here a hit is an item of gain {task.hit_gain:g} or more, in mteb one of any gain"
    return _task(
        AbsTaskRetrieval, load_data, task_name(task.dataset, task.name), dataset,
        f"{task.name}, {len(task.corpus)} items{note if task.hit_gain > 1 else ''}",
        _revision(truth, queries, corpus), shown,
        kind_name="Retrieval" if shown == TEXT else "Any2AnyRetrieval",
        category=f"{_letters(task.query_reads)}2{_letters(task.corpus_reads)}",
        main_score=main_score(task.metrics[0]),
    )  # fmt: skip


def _zero_shot(task: Labelling, dataset: Dataset, read: Callable[[Product], str]) -> AbsTask:
    labels = list(task.labels)
    unknown = set(task.truth) - set(labels)
    if unknown:
        raise UserError(f"{len(unknown)} labels are only in the validation split, which mteb refuses")
    table = _Table(task.products, task.reads, read, [labels.index(truth) for truth in task.truth])
    candidates = [task.templates[0].format(label) for label in labels]

    def load_data(self: Any, *_: Any, **__: Any) -> None:
        self.dataset, self.data_loaded = {"default": datasets.DatasetDict({SPLIT: table.load()})}, True

    return _task(
        AbsTaskZeroShotClassification, load_data, task_name(task.dataset, task.name, task.view), dataset,
        f"{task.name} of {task.view}, {len(labels)} labels", _revision(candidates, table), task.reads | TEXT,
        kind_name="ZeroShotClassification", category=f"{_letters(task.reads)}2c", main_score="accuracy",
        input_column_name=_columns(task.reads), get_candidate_labels=lambda self: candidates,
    )  # fmt: skip


def _classification(task: Labelling, dataset: Dataset, read: Callable[[Product], str]) -> AbsTask:
    assert task.fit is not None
    labels = sorted(set(task.fit.truth))
    unknown = set(task.truth) - set(labels)
    if unknown:
        raise UserError(f"{len(unknown)} labels are only in the validation split, which mteb refuses")
    pairs = {SPLIT: (task.products, task.truth), "train": (task.fit.products, task.fit.truth)}
    parts = {
        name: _Table(products, task.reads, read, [labels.index(truth) for truth in truths])
        for name, (products, truths) in pairs.items()
    }

    def load_data(self: Any, *_: Any, **__: Any) -> None:
        tables = datasets.DatasetDict({name: table.load() for name, table in parts.items()})
        self.dataset, self.data_loaded = {"default": tables}, True

    image = "image" in task.reads
    return _task(
        AbsTaskClassification, load_data, task_name(task.dataset, task.name, task.view, "fitted"), dataset,
        f"{task.name} of {task.view}, {len(labels)} labels, fitted", _revision(labels, *parts.values()),
        task.reads, kind_name="ImageClassification" if image else "Classification",
        category=f"{_letters(task.reads)}2c", main_score="accuracy", input_column_name=_columns(task.reads),
    )  # fmt: skip


def _task(
    kind: type[AbsTask],
    load_data: Callable[..., None],
    name: str,
    dataset: Dataset,
    description: str,
    revision: str,
    shown: frozenset[str],
    *,
    kind_name: Any,
    category: Any,
    main_score: str,
    **attributes: Any,
) -> AbsTask:
    """An instance of a class of its own: mteb keeps metadata on classes."""
    metadata = TaskMetadata(
        name=name, description=f"{description}. Licence of the data: {dataset.licence}. {dataset.note}",
        dataset={"path": f"moonshelf/{dataset.name}", "revision": revision}, type=kind_name,
        category=category, modalities=cast(Any, sorted(shown)), eval_splits=[SPLIT],
        eval_langs=["eng-Latn"], main_score=main_score, domains=["E-commerce"], is_public=False,
    )  # fmt: skip
    body = {"metadata": metadata, "load_data": load_data, "dataset_transform": _nothing, **attributes}
    return type(name, (kind,), body)()


def _nothing(self: AbsTask, *_: Any, **__: Any) -> None:
    """The data are as they are meant to be."""


# ---- products as columns ---------------------------------------------------------------------------


class _Table:
    """Columns `id`, `text` and `image` where they are shown, and `label`; made by `load`.

    Raises `UserError` at once where a text or a picture that is to be shown is missing.
    """

    def __init__(
        self,
        products: Sequence[Product],
        shown: frozenset[str],
        read: Callable[[Product], str],
        labels: Sequence[int] | None = None,
    ) -> None:
        self.products, self.shown, self.labels = products, shown, labels
        self.texts = [read(product) for product in products] if "text" in shown else []
        if shown == TEXT and not all(self.texts):
            raise UserError(f"{self.texts.count('')} of {len(products)} products have no text to show")
        bare = sum(not product.images for product in products) if "image" in shown else 0
        if bare:
            raise UserError(f"{bare} of {len(products)} products have no picture to show")

    def load(self) -> datasets.Dataset:
        columns: dict[str, Any] = {"id": [product.id for product in self.products]}
        features: dict[str, Any] = {"id": datasets.Value("string")}
        if "text" in self.shown:
            columns["text"], features["text"] = self.texts, datasets.Value("string")
        if "image" in self.shown:
            columns["image"] = [{"bytes": _png(product), "path": None} for product in self.products]
            features["image"] = datasets.Image()
        if self.labels is not None:
            columns["label"], features["label"] = list(self.labels), datasets.Value("int64")
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    def hash(self) -> str:
        """SHA-256 (hex) of all that `load` shows, without decoding a picture."""
        digest = hashlib.sha256(json.dumps([self.texts, self.labels], ensure_ascii=False).encode())
        for product in self.products:
            digest.update(product.id.encode())
            if "image" in self.shown:
                digest.update(hashlib.sha256(images.read_bytes(product.images[0])).digest())
        return digest.hexdigest()


def _png(product: Product) -> bytes:
    try:
        picture = images.load(product.images[0], max_side=MAX_SIDE)
    except images.ImageError as error:
        raise UserError(f"the picture of {product.id} cannot be handed to mteb: {error}") from error
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _letters(shown: frozenset[str]) -> str:
    return "".join(name[0] for name in sorted(shown))


def _columns(shown: frozenset[str]) -> Any:
    return sorted(shown) if shown == BOTH else next(iter(shown))


def _revision(truth: Mapping[str, Any] | Sequence[str], *tables: _Table) -> str:
    record = json.dumps([truth, [table.hash() for table in tables]], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(record.encode()).hexdigest()
