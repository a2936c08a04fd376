"""Labels: a category at one level of the tree, or one attribute, of each product; and sets of attributes.

Three ways to label: by similarity to the text of each label, by reading the rationale, or by a classifier
fitted on training products (which is not zero-shot). Choices: labels come from the training split, so a
label that only the validation split has counts as an error; a tie at the top counts with its expectation. A
rationale is read twice: `accuracy` compares normalised values (`navy` is `navy blue`), `exact` the letters
as written, case aside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan

import numpy as np

from moonshelf import attributes
from moonshelf.errors import UserError
from moonshelf.evaluation.contract import TEXT, Encode, Encoder, Vectors, asking, cannot_read, why_not
from moonshelf.evaluation.record import Predictions
from moonshelf.evaluation.statistics import metrics
from moonshelf.evaluation.statistics.scoring import LABEL_METRICS, SET_METRICS
from moonshelf.evaluation.tasks.base import BaseTask, Kept, common
from moonshelf.product import Product
from moonshelf.prompts import CATEGORY_SEPARATOR, read_rationale, write_rationale

BLOCK = 512  # products scored at once
SIMILARITY, RATIONALE = "zero-shot classification", "rationale"
NEIGHBOURS, CENTROID = "5-NN, fitted", "nearest centroid, fitted"
Score = Callable[[np.ndarray], np.ndarray]  # vectors (q, dim) -> scores (q, labels)


@dataclass(frozen=True)
class Fit:
    """Labelled training products, in the same view, for a neighbour or centroid classifier."""

    products: Sequence[Product]
    truth: Sequence[str]


@dataclass(frozen=True)
class Labelling(BaseTask):
    """Give each product one of `labels`: by similarity to their text, by the rationale, or fitted.

    `key` is "colour", "material" … or "category"; for a category `level` counts from the root, -1 is the
    leaf. `truth` and `labels` are names at that level, or values normalised by `moonshelf.attributes`.
    """

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
    methods: tuple[str, ...] = (SIMILARITY, RATIONALE, NEIGHBOURS, CENTROID)
    metrics: tuple[str, ...] = LABEL_METRICS

    def __post_init__(self) -> None:
        task = f"the task {self.dataset} {self.name}"
        if len(set(self.labels)) < 2:
            raise UserError(f"{task} has {len(set(self.labels))} label: nothing to choose")
        if len(set(self.labels)) < len(self.labels):
            raise UserError(f"{task} names a label twice")
        self.check("products", self.products, "has no labelled product")

    def predict(self, encoder: Encoder, encode: Encode) -> Kept:
        """What is kept by each method; where the encoder cannot use it, results that say why."""
        found: Kept = []
        for method in self.methods:
            if method in (NEIGHBOURS, CENTROID) and self.fit is None:
                continue
            if method == RATIONALE:
                reason = cannot_write(encoder, self.reads)
            else:
                reason = why_not(encoder, self.reads, TEXT if method == SIMILARITY else self.reads)
            if reason:
                sizes = len(self.products), len(self.labels)
                found += self.unable(method, ["accuracy"], encoder, reason, *sizes)
            elif method == RATIONALE:
                found.append(self._by_reading(encoder, encode))
            else:
                found.append(self._by_score(encoder, encode, method))
        return found

    def label_vectors(self, encoder: Encoder, encode: Encode) -> np.ndarray:
        """(labels, dim) float64: the mean over the templates, as unit vectors."""
        reader = getattr(encoder, "names", None) or encoder
        total: np.ndarray | float = 0.0
        for template in self.templates:
            texts = [Product(id=f"label-{i}", title=template.format(x)) for i, x in enumerate(self.labels)]
            total = total + encode(reader, texts).vectors.astype(np.float64)
        norm = np.linalg.norm(total, axis=1, keepdims=True)
        return total / np.where(norm > 0, norm, 1.0)

    def _scorer(self, encoder: Encoder, encode: Encode, method: str) -> tuple[Score, str]:
        """The scores of all labels, and a note on where they come from."""
        if method == SIMILARITY or self.fit is None:
            return partial(metrics.similarity, corpus=self.label_vectors(encoder, encode)), ""
        index = {label: i for i, label in enumerate(self.labels)}
        fitted = encode(encoder, self.fit.products)
        known = fitted.ok & np.array([truth in index for truth in self.fit.truth])
        labels = np.array([index.get(truth, -1) for truth in self.fit.truth])[known]
        vote = metrics.centroid_scores if method == CENTROID else metrics.knn_scores
        taught = {"fitted": fitted.vectors[known], "labels": labels, "n_labels": len(self.labels)}
        return partial(vote, **taught), f"fitted on {int(known.sum())} training products"

    def _by_score(self, encoder: Encoder, encode: Encode, method: str) -> Predictions:
        """The labels that tie for the highest score of each product, and that score."""
        scores_of, note = self._scorer(encoder, encode, method)
        products = encode(asking(encoder), self.products)
        best: list[list[str]] = []
        score: list[float] = []
        for start in range(0, len(products.vectors), BLOCK):
            part = slice(start, start + BLOCK)
            for row, ok in zip(scores_of(products.vectors[part]), products.ok[part], strict=True):
                best.append([self.labels[i] for i in np.flatnonzero(row == row.max()).tolist()] if ok else [])
                score.append(float(row.max()) if ok else nan)
        return self._kept(encoder, method, products, best, score, note)

    def _by_reading(self, encoder: Encoder, encode: Encode) -> Predictions:
        out = encode(encoder, self.products)
        best: list[list[str]] = []
        exact: list[float] = []
        for text, valid, truth in zip(out.rationales, out.valid.tolist(), self.truth, strict=True):
            written, letters = _written(text, self.key, self.level) if valid else ("", "")
            right = bool(valid) and says(text, self.key, truth, self.level)
            best.append([truth] if right else [written] if written else [])
            same = letters == truth.lower() or (self.key == "category" and right)
            exact.append(float(bool(valid) and bool(letters) and same))
        note = (
            f"{np.mean([bool(one) for one in best]):.1%} of the rationales name it; "
            f"{np.mean(out.valid):.1%} keep their format"
        )
        return self._kept(encoder, RATIONALE, out, best, [nan] * len(best), note, exact)

    def _kept(
        self,
        encoder: Encoder,
        method: str,
        out: Vectors,
        best: list[list[str]],
        score: list[float],
        note: str,
        exact: list[float] | None = None,
    ) -> Predictions:
        constant = None
        if self.commonest is not None:
            constant = float(np.mean([truth == self.commonest for truth in self.truth]))
        named = [metric for metric in self.metrics if exact or metric != "exact"]
        more = {"labels": tuple(self.labels), "constant": constant, "note": note}
        n = len(self.products)
        return Predictions(self.head(method, "labels", encoder, named, len(self.labels), **more), {
            **common(self.products, self.clusters, out), "truth": list(self.truth),
            "predicted": [tied[0] if tied else "" for tied in best], "best": best, "score": score,
            "correct": [0.0] * n, "exact": exact or [nan] * n, "rationale": list(out.rationales),
            "valid": out.valid.tolist(),
        })  # fmt: skip


@dataclass(frozen=True)
class AttributeSets(BaseTask):
    """Read all attributes of each product from its rationale: precision, recall and F1 of the pairs.

    `truth[i]` maps canonical keys to values, not empty. What a rationale says of a key that the record does
    not state is not counted: a catalogue's silence is no denial.
    """

    products: Sequence[Product]
    truth: Sequence[Mapping[str, str]]
    clusters: Sequence[str]
    reads: frozenset[str]
    metrics: tuple[str, ...] = SET_METRICS

    def __post_init__(self) -> None:
        self.check("products", self.products, "has no product with attributes")
        for product, truth in zip(self.products, self.truth, strict=True):
            if not truth:
                task = f"{self.dataset} {self.name}"
                raise UserError(f"the product {product.id} of {task} states no attribute: leave it out")

    def predict(self, encoder: Encoder, encode: Encode) -> Kept:
        if why := cannot_write(encoder, self.reads):
            return [*self.unable(RATIONALE, self.metrics, encoder, why, len(self.products))]
        out = encode(encoder, self.products)
        stated, found = [], []
        for text, valid, truth in zip(out.rationales, out.valid.tolist(), self.truth, strict=True):
            stated.append([f"{key}: {value}" for key, value in truth.items()])
            written = {key: _written(text, key, -1)[0] for key in truth} if valid else {}
            named = {
                key: truth[key] if says(text, key, truth[key]) else value for key, value in written.items()
            }
            found.append([f"{key}: {value}" for key, value in named.items() if value])
        note = f"{np.mean(out.valid):.1%} of the rationales keep their format"
        return [Predictions(self.head(RATIONALE, "sets", encoder, self.metrics, note=note), {
            **common(self.products, self.clusters, out), "truth": stated, "predicted": found,
            "rationale": list(out.rationales), "valid": out.valid.tolist(),
        })]  # fmt: skip


def cannot_write(encoder: Encoder, reads: frozenset[str]) -> str | None:
    """Why an encoder gives no rationale of products that show `reads`; None if it does."""
    if not encoder.writes:
        return "it writes no rationale"
    return None if encoder.reads & reads else cannot_read(reads)


def says(rationale: str, key: str, truth: str, level: int = -1) -> bool:
    """Whether a rationale names `truth` for `key`, exactly after normalisation.

    For a category, the leaf must be the last name of the written path, and a higher level any name in it:
    a rationale that starts the path below the root is not wrong about the leaf.
    """
    written = attributes.canonical(read_rationale(rationale) or {}).get(key, "")
    if not written:
        return False
    if key != "category":
        return attributes.normalise_value(key, written) == attributes.normalise_value(key, truth)
    path = [attributes.fold(name) for name in written.split(CATEGORY_SEPARATOR.strip())]
    as_written = (read_rationale(write_rationale((truth,), {})) or {}).get("category", "")
    wanted = attributes.fold(as_written)
    return path[-1] == wanted if level == -1 else wanted in path


def _written(rationale: str, key: str, level: int) -> tuple[str, str]:
    """What a rationale writes for `key`: normalised, and letter for letter; empty if nothing.

    Of a category it is the name at `level` of the written path, or its last where the path is shorter.
    """
    raw = next(
        (v for k, v in (read_rationale(rationale) or {}).items() if attributes.canonical_key(k) == key), ""
    )
    if key != "category":
        return attributes.normalise_value(key, raw), raw.strip().lower()
    path = [name.strip() for name in raw.split(CATEGORY_SEPARATOR.strip()) if name.strip()]
    name = path[min(level, len(path) - 1)].lower() if path else ""
    return name, name
