"""The words that tasks, encoders and results share: what is shown, what an encoder gives, what a figure is.

Everything else in this room imports it, and it imports none of them. `why_not` and `check_vectors` decide
who can be scored: an encoder that cannot do a task gets a result without a value and with the reason, never
a made-up number, and one whose vectors are broken stops the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from moonshelf.errors import Problem, UserError
from moonshelf.model.encoders.base import BOTH, IMAGE, TEXT, asking
from moonshelf.product import Product

__all__ = ["BOTH", "IMAGE", "TEXT", "asking"]  # of the contract too

Row = tuple[np.ndarray, str, bool, int]  # vector, rationale, kept its format, tokens or -1
_NOT_SAID: Any = None


@dataclass
class Vectors:
    """What an encoder gives for n products, in their order."""

    vectors: np.ndarray  # (n, dim) float32; a row that is not `ok` is zero
    ok: np.ndarray = _NOT_SAID  # (n,) bool: the product could be encoded; True unless said
    rationales: list[str] = field(default_factory=list)  # "" where none was written
    valid: np.ndarray = _NOT_SAID  # (n,) bool: the rationale kept its format; True unless said
    problems: list[Problem] = field(default_factory=list)
    tokens: np.ndarray = _NOT_SAID  # (n,) int: tokens written; -1 where that is not known

    def __post_init__(self) -> None:
        n = len(self.vectors)
        self.ok = np.ones(n, bool) if self.ok is _NOT_SAID else self.ok
        self.valid = np.ones(n, bool) if self.valid is _NOT_SAID else self.valid
        self.tokens = np.full(n, -1) if self.tokens is _NOT_SAID else self.tokens
        self.rationales = self.rationales or [""] * n

    def rows(self) -> Iterator[Row]:
        """One product after the other."""
        return zip(self.vectors, self.rationales, self.valid.tolist(), self.tokens.tolist(), strict=True)


class Encoder(Protocol):
    """A model or a baseline. `fingerprint` names weights and settings: equal ones give equal vectors.

    One that encodes what is searched for in another way than what is found has a `queries` encoder too.
    """

    name: str
    fingerprint: str
    reads: frozenset[str]  # of "text" and "image"
    one_space: bool  # a text vector and an image vector can be compared
    writes: bool  # gives rationales
    cheap: bool  # not worth a cache on disk

    def encode(self, products: Sequence[Product]) -> Vectors: ...


Encode = Callable[[Encoder, Sequence[Product]], Vectors]


@dataclass(frozen=True)
class Versus:
    """The paired difference to a baseline on the same rows."""

    baseline: str
    difference: float
    low: float | None  # bootstrap interval, 95 %; None with a single cluster
    high: float | None
    p: float | None  # two-sided, of the same bootstrap
    mcnemar: float | None = None  # exact; only for 0/1 values of independent rows

    @property
    def significant(self) -> bool:
        """The interval leaves zero out: p < 0.05, uncorrected for the number of figures."""
        return self.p is not None and self.p < 0.05


CLEAR = 0.1  # above chance; an interval that reaches as far cannot say that a figure is at chance


@dataclass(frozen=True)
class Result:
    """One figure with everything needed to judge it; `value` is None where the encoder cannot do it."""

    dataset: str
    task: str
    view: str  # what the query or the product shows: image, text, both …
    method: str  # ranking, zero-shot classification, rationale, 5 neighbours fitted …
    metric: str
    encoder: str
    value: float | None
    low: float | None = None  # bootstrap interval, 95 %
    high: float | None = None
    n: int = 0
    clusters: int = 0
    corpus: int = 0  # items or labels to choose from
    chance: float | None = None  # of a random order or a random label
    constant: float | None = None  # of always giving the commonest training label
    note: str = ""
    versus: Versus | None = None  # against the baseline of the run
    predictions: str = ""  # name of the file that the figure can be made from again

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def at_chance(self) -> bool:
        """The interval does not clear chance; only said of at least 30 values."""
        if self.value is None or self.low is None or self.chance is None or self.n < 30:
            return False
        return self.low <= self.chance + 1e-9

    @property
    def too_few(self) -> bool:
        """At chance for all that is known, but so few values that it may be far above it as well."""
        far = self.high is not None and self.chance is not None and self.high > self.chance + CLEAR
        return self.at_chance and far


def why_not(encoder: Encoder, query: frozenset[str], corpus: frozenset[str]) -> str | None:
    """Why an encoder cannot compare what the queries show with what the corpus shows; None if it can."""
    for shown in (query, corpus):
        if not encoder.reads & shown:
            return cannot_read(shown)
    if not encoder.one_space and not encoder.reads & query & corpus:
        return "it has no common space for text and pictures"
    return None


def cannot_read(shown: frozenset[str]) -> str:
    return f"it does not read {' or '.join(sorted(shown))}"


def check_vectors(encoder: Encoder, out: Vectors, *, allow_zero: bool = False) -> None:
    """Sanity gate before any score: raises UserError unless vectors are finite, unit length, not constant."""
    vectors = np.asarray(out.vectors, np.float64)[out.ok]
    if not len(vectors):
        raise UserError(f"{encoder.name} could encode none of the products: check the images and the titles")
    check_finite(encoder, out.vectors[out.ok])
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


def check_finite(encoder: Encoder, vectors: np.ndarray) -> None:
    """Raises UserError where a vector holds NaN or infinity; every computed row passes here."""
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise UserError(
            f"{encoder.name} gives vectors that are not finite ({int((~finite).sum())} of {len(finite)}): "
            "check its weights"
        )
