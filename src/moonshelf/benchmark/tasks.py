"""What is measured: retrieval and labelling tasks, and one function that scores any encoder on each.

A task holds products as an encoder may see them (its *view*: a data set strips whatever would give the
answer away) and the truth beside them. An encoder that cannot do a task gets a result without a value
and with the reason, never a made-up number. Choices: a product that could not be encoded stays in the
gallery unreachable and counts as a miss where it is the query; labels come from the training split, so
a label that only the validation split has counts as an error; intervals resample whole clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from moonshelf import attributes
from moonshelf.benchmark import metrics
from moonshelf.errors import Problem, UserError
from moonshelf.product import Product
from moonshelf.prompts import CATEGORY_SEPARATOR, read_rationale, write_rationale

TEXT, IMAGE = frozenset({"text"}), frozenset({"image"})
BOTH = TEXT | IMAGE
BLOCK = 512  # queries scored at once: bounds the memory of a large evaluation


@dataclass
class Vectors:
    """What an encoder gives for n products, in their order."""

    vectors: np.ndarray  # (n, dim) float32; a row that is not `ok` is zero
    ok: np.ndarray  # (n,) bool: the product could be encoded
    rationales: list[str]  # "" where none was written
    valid: np.ndarray  # (n,) bool: the rationale kept its format
    problems: list[Problem] = field(default_factory=list)


class Encoder(Protocol):
    """A model or a peer. `fingerprint` names weights and settings: equal ones give equal vectors."""

    name: str
    fingerprint: str
    reads: frozenset[str]  # of "text" and "image"
    one_space: bool  # a text vector and an image vector can be compared
    writes: bool  # gives rationales
    cheap: bool  # not worth a cache on disk

    def encode(self, products: Sequence[Product]) -> Vectors: ...


Encode = Callable[[Encoder, Sequence[Product]], Vectors]


@dataclass(frozen=True)
class Result:
    """One figure with everything needed to judge it; `value` is None where the encoder cannot do it."""

    dataset: str
    task: str
    view: str  # what the query or the product shows: image, text, both …
    method: str  # ranking, label similarity, rationale, 5 neighbours fitted …
    metric: str
    encoder: str
    value: float | None
    low: float | None = None  # bootstrap interval, 95 %
    high: float | None = None
    n: int = 0
    clusters: int = 0
    gallery: int = 0  # items or labels to choose from
    chance: float | None = None  # of a random order or a random label
    constant: float | None = None  # of always giving the commonest training label
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def at_chance(self) -> bool:
        """The interval does not clear chance; only said of at least 30 values."""
        if self.value is None or self.low is None or self.chance is None or self.n < 30:
            return False
        return self.low <= self.chance + 1e-9


@dataclass(frozen=True)
class Retrieval:
    """Rank the gallery for each query. `relevant[i]` maps keys of the gallery to gains for query i."""

    dataset: str
    name: str
    view: str
    queries: Sequence[Product]
    gallery: Sequence[Product]
    gallery_keys: Sequence[str]
    relevant: Sequence[Mapping[str, float]]
    clusters: Sequence[str]
    query_reads: frozenset[str]
    gallery_reads: frozenset[str]
    metrics: tuple[str, ...] = ("R@1", "R@10")
    hit_gain: float = 0.0  # R@k and MRR count items of at least this gain, 0 for every relevant one

    def __post_init__(self) -> None:
        for what, items in (("no query", self.queries), ("an empty gallery", self.gallery)):
            if not items:
                raise UserError(f"the task {self.dataset} {self.name} has {what}: there is nothing to rank")

    def run(self, encoder: Encoder, encode: Encode) -> list[Result]:
        def result(metric: str, **fields: Any) -> Result:
            head = (self.dataset, self.name, self.view, "ranking", metric, encoder.name)
            return Result(*head, **{"gallery": len(self.gallery), "n": len(self.queries), **fields})

        reason = why_not(encoder, self.query_reads, self.gallery_reads)
        if reason:
            return [result(metric, value=None, note=reason) for metric in self.metrics]
        queries, gallery = encode(encoder, self.queries), encode(encoder, self.gallery)
        values: dict[str, list[np.ndarray]] = {metric: [] for metric in self.metrics}
        chances: dict[str, list[np.ndarray]] = {metric: [] for metric in self.metrics}
        for start in range(0, len(self.queries), BLOCK):
            part = slice(start, start + BLOCK)
            scores = metrics.similarity(queries.vectors[part], gallery.vectors)
            scores[:, ~gallery.ok] = -np.inf
            gains = self._gains(part)
            for metric in self.metrics:
                counted = gains if metric.startswith("nDCG") else np.where(gains >= self.hit_gain, gains, 0.0)
                value = _metric(metric, scores, counted)
                values[metric].append(np.where(queries.ok[part], value, 0.0))
                chances[metric].append(_metric(metric, np.zeros_like(scores), counted))
        return [
            result(
                metric,
                chance=float(np.concatenate(chances[metric]).mean()),
                **_interval(np.concatenate(values[metric]), self.clusters),
            )
            for metric in self.metrics
        ]

    def _gains(self, part: slice) -> np.ndarray:
        where: dict[str, list[int]] = {}
        for column, key in enumerate(self.gallery_keys):
            where.setdefault(key, []).append(column)
        wanted = self.relevant[part]
        gains = np.zeros((len(wanted), len(self.gallery)))
        for row, grades in enumerate(wanted):
            for key, gain in grades.items():
                gains[row, where.get(key, [])] = gain
            if not gains[row].max(initial=0.0) >= max(self.hit_gain, 1e-12):
                query = self.queries[part][row]
                raise UserError(
                    f"the query {query.id} of {self.dataset} {self.name} has no relevant item: "
                    "drop it or complete the truth"
                )
        return gains


@dataclass(frozen=True)
class Fit:
    """Labelled training products, in the same view, for a neighbour or centroid classifier."""

    products: Sequence[Product]
    truth: Sequence[str]


@dataclass(frozen=True)
class Labelling:
    """Give each product one of `labels`: by similarity to their text, by the rationale, or fitted.

    `key` is "colour", "material" … or "category"; for a category `level` counts from the root, -1 is the
    leaf. `truth` and `labels` are names at that level, or values normalised by `moonshelf.attributes`.
    """

    dataset: str
    name: str
    view: str
    products: Sequence[Product]
    truth: Sequence[str]
    labels: Sequence[str]
    clusters: Sequence[str]
    reads: frozenset[str]
    key: str
    level: int = -1
    templates: tuple[str, ...] = ("{}",)  # titles of the text-only products that stand for a label
    commonest: str | None = None  # of the training split
    fit: Fit | None = None
    methods: tuple[str, ...] = ("label similarity", "rationale", "5 neighbours, fitted", "centroid, fitted")

    def __post_init__(self) -> None:
        if len(set(self.labels)) < 2:
            raise UserError(
                f"the task {self.dataset} {self.name} has {len(set(self.labels))} label: nothing to choose"
            )
        if not self.products:
            raise UserError(f"the task {self.dataset} {self.name} has no labelled product")

    def run(self, encoder: Encoder, encode: Encode) -> list[Result]:
        results = []
        for method in self.methods:
            if method == "label similarity":
                results.append(self._by_similarity(encoder, encode))
            elif method == "rationale":
                results.extend(self._by_reading(encoder, encode))
            elif self.fit is not None:
                results.append(self._fitted(encoder, encode, method))
        return results

    def label_vectors(self, encoder: Encoder, encode: Encode) -> np.ndarray:
        """(labels, dim) float64: the mean over the templates, as unit vectors."""
        total: np.ndarray | float = 0.0
        for template in self.templates:
            texts = [Product(id=f"label-{i}", title=template.format(x)) for i, x in enumerate(self.labels)]
            total = total + encode(encoder, texts).vectors.astype(np.float64)
        norm = np.linalg.norm(total, axis=1, keepdims=True)
        return total / np.where(norm > 0, norm, 1.0)

    def _result(self, encoder: Encoder, method: str, **fields: Any) -> Result:
        constant = None
        if self.commonest is not None:
            constant = float(np.mean([truth == self.commonest for truth in self.truth]))
        shared = {"n": len(self.products), "gallery": len(self.labels), "constant": constant}
        head = (self.dataset, self.name, self.view, method, "accuracy", encoder.name)
        return Result(*head, **{**shared, "chance": 1 / len(self.labels), **fields})

    def _by_similarity(self, encoder: Encoder, encode: Encode) -> Result:
        reason = why_not(encoder, self.reads, TEXT)
        if reason:
            return self._result(encoder, "label similarity", value=None, note=reason)
        products = encode(encoder, self.products)
        scores = metrics.similarity(products.vectors, self.label_vectors(encoder, encode))
        return self._result(encoder, "label similarity", **self._score(scores, products.ok))

    def _fitted(self, encoder: Encoder, encode: Encode, method: str) -> Result:
        assert self.fit is not None
        reason = why_not(encoder, self.reads, self.reads)
        if reason:
            return self._result(encoder, method, value=None, note=reason)
        index = {label: i for i, label in enumerate(self.labels)}
        products, fitted = encode(encoder, self.products), encode(encoder, self.fit.products)
        known = fitted.ok & np.array([truth in index for truth in self.fit.truth])
        labels = np.array([index.get(truth, -1) for truth in self.fit.truth])[known]
        score = metrics.centroid_scores if method.startswith("centroid") else metrics.knn_scores
        scores = score(products.vectors, fitted.vectors[known], labels, len(self.labels))
        note = f"fitted on {int(known.sum())} training products"
        return self._result(encoder, method, note=note, **self._score(scores, products.ok))

    def _score(self, scores: np.ndarray, ok: np.ndarray) -> dict[str, Any]:
        index = {label: i for i, label in enumerate(self.labels)}
        values = np.zeros(len(self.truth))  # a truth that is no label stays 0: an error
        known = np.array([truth in index for truth in self.truth]) & ok
        if known.any():
            gains = np.zeros((int(known.sum()), len(self.labels)))
            columns = [index[t] for t, keep in zip(self.truth, known, strict=True) if keep]
            gains[np.arange(len(columns)), columns] = 1.0
            values[known] = metrics.hit_at_k(scores[known], gains, 1)
        return _interval(values, self.clusters)

    def _by_reading(self, encoder: Encoder, encode: Encode) -> list[Result]:
        if not encoder.writes:
            note = "it writes no rationale"
            return [self._result(encoder, "rationale", value=None, note=note)]
        if not encoder.reads & self.reads:
            return [self._result(encoder, "rationale", value=None, note=_cannot_read(self.reads))]
        out = encode(encoder, self.products)
        rows = list(zip(out.rationales, out.valid, self.truth, strict=True))
        right = [bool(valid) and says(text, self.key, truth, self.level) for text, valid, truth in rows]
        written = [bool(valid) and self.key in _read(text) for text, valid, _ in rows]
        note = f"{np.mean(written):.1%} of the rationales name it; {np.mean(out.valid):.1%} keep their format"
        return [self._result(encoder, "rationale", note=note, **_interval(right, self.clusters))]


Task = Retrieval | Labelling


def why_not(encoder: Encoder, query: frozenset[str], gallery: frozenset[str]) -> str | None:
    """Why an encoder cannot compare what the queries show with what the gallery shows; None if it can."""
    for shown in (query, gallery):
        if not encoder.reads & shown:
            return _cannot_read(shown)
    if not encoder.one_space and not encoder.reads & query & gallery:
        return "it has no common space for text and pictures"
    return None


def says(rationale: str, key: str, truth: str, level: int = -1) -> bool:
    """Whether a rationale names `truth` for `key`, exactly after normalisation.

    For a category, the leaf must be the last name of the written path, and a higher level any name in it:
    a rationale that starts the path below the root is not wrong about the leaf.
    """
    written = _read(rationale).get(key, "")
    if not written:
        return False
    if key != "category":
        return attributes.normalise_value(key, written) == attributes.normalise_value(key, truth)
    path = [attributes.fold(name) for name in written.split(CATEGORY_SEPARATOR.strip())]
    as_written = (read_rationale(write_rationale((truth,), {})) or {}).get("category", "")
    wanted = attributes.fold(as_written)
    return path[-1] == wanted if level == -1 else wanted in path


def check_vectors(encoder: Encoder, out: Vectors, *, allow_zero: bool = False) -> None:
    """Sanity gate before any score: raises UserError unless vectors are finite, unit length, not constant."""
    vectors = np.asarray(out.vectors, np.float64)[out.ok]
    if not len(vectors):
        raise UserError(f"{encoder.name} could encode none of the products: check the images and the titles")
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors).all(axis=1)).sum())
        raise UserError(
            f"{encoder.name} gives vectors that are not finite ({bad} of {len(vectors)}): check its weights"
        )
    norms = np.linalg.norm(vectors, axis=1)
    unit = np.abs(norms - 1) < 1e-3
    if allow_zero:
        unit |= norms == 0
    if not unit.all():
        raise UserError(
            f"{encoder.name} gives vectors of length {norms[~unit][0]:.4g} instead of 1: normalise them"
        )
    if len(vectors) > 1 and np.ptp(vectors, axis=0).max() < 1e-6:
        raise UserError(
            f"{encoder.name} gives one vector for {len(vectors)} products: "
            "check that the prompt, the pictures and the weights reach the model"
        )


def _metric(name: str, scores: np.ndarray, gains: np.ndarray) -> np.ndarray:
    kind, _, k = name.partition("@")
    if kind == "R":
        return metrics.hit_at_k(scores, gains, int(k))
    if kind == "nDCG":
        return metrics.ndcg_at_k(scores, gains, int(k))
    if kind == "MRR":
        return metrics.reciprocal_rank(scores, gains)
    raise ValueError(f"unknown metric {name}")


def _interval(values: Any, clusters: Sequence[str]) -> dict[str, Any]:
    interval = metrics.bootstrap(np.asarray(values, np.float64), clusters)
    spread = interval.clusters > 1
    return {
        "value": interval.value,
        "low": interval.low if spread else None,
        "high": interval.high if spread else None,
        "n": interval.n,
        "clusters": interval.clusters,
    }


def _read(rationale: str) -> dict[str, str]:
    return attributes.canonical(read_rationale(rationale) or {})


def _cannot_read(shown: frozenset[str]) -> str:
    return f"it does not read {' or '.join(sorted(shown))}"
