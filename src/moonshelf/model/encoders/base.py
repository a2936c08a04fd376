"""What a catalogue needs of a model, and what it gets for each product: nothing here imports torch.

Who encodes products is an `Encoder`: `MoonModel`, any SentenceTransformer (`stock`), or a pair of a writer
and an encoder. It reads products in any thread (`read_rows`) and computes what was read in one (`runner`); a
stream of a whole feed (`stream`) and a service that batches products of many callers are made of these two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from moonshelf.errors import Problem, UserError
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec

Reason = Literal["off", "on", "auto"]
TEXT, IMAGE = frozenset({"text"}), frozenset({"image"})
BOTH = TEXT | IMAGE

Numbered = tuple[int, tuple[Product, str]]  # place in the input; a product, and its given rationale or ""


class EncodingError(ValueError):
    """A product could not be encoded; the message names its id and the reason."""


@dataclass
class Encoded:
    """Result of n products, in input order; rows that were rejected are only in `problems`."""

    ids: list[str]
    vectors: np.ndarray  # (n, dim) float32, unit length
    rationales: list[str]  # "<think>…</think>", or "" where none was asked
    valid: np.ndarray  # (n,) bool: the rationale kept its format; True where none was asked
    weights: np.ndarray  # (n, 3) float32: share of image, text, rationale
    tokens: np.ndarray  # (n,) int32: tokens written, or read where a rationale was given
    row_index: np.ndarray  # (n,) int64: position in the input
    problems: list[Problem] = field(default_factory=list)
    # Of each pair of a rationale that was written, 0 to 1: see `confidence`.
    confidence: list[list[float]] = field(default_factory=list)

    @property
    def reasoning_valid_rate(self) -> float:
        """Share of written rationales that kept their format; NaN if none was written."""
        written = np.array([bool(r) for r in self.rationales], dtype=bool)
        return float(self.valid[written].mean()) if written.any() else float("nan")


@dataclass
class Written:
    """What the model made of one row."""

    vector: np.ndarray  # (dim,) float32, unit length
    weights: np.ndarray  # (3,) float32
    rationale: str = ""  # with its tags
    valid: bool = True  # it kept its format
    ids: list[int] = field(default_factory=list)  # tokens of the body
    closed: bool = True  # the model wrote `</think>` itself, before the limit
    confidence: list[float] = field(default_factory=list)  # of each pair

    @property
    def tokens(self) -> int:
        return len(self.ids)


class ReadRow(Protocol):
    """One product, ready for the model that read it."""

    index: int
    id: str
    length: int  # tokens, or what costs as much
    gone: bool  # nobody waits for it any more; any thread may say so, even while it is computed


Run = Callable[[list[Any]], list[Written]]


class Encoder(Protocol):
    """A model as the catalogue, the evaluation and the service use it.

    Equal `fingerprint`s give comparable vectors; a catalogue refuses another one. `queries` is the same model
    as it encodes what is searched *for*, None where both sides are encoded alike. For `encode` and
    `encode_iter` see `stream`.
    """

    prompt: PromptSpec  # which text of a product it reads
    reads: frozenset[str]  # of "text" and "image"
    queries: Any

    @property
    def writes(self) -> bool:
        """Rationales too."""
        ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def encode(self, products: Sequence[Product], reason: Reason = "off", **options: Any) -> Encoded: ...

    def encode_iter(
        self, products: Iterable[Product], reason: Reason = "off", **options: Any
    ) -> Iterator[Encoded]: ...

    def read_rows(self, numbered: Sequence[Numbered], reason: Reason) -> tuple[list[Any], list[Problem]]:
        """All that can be done for products before the model is free, as `ReadRow`s; any thread may do it."""
        ...

    def read_window(
        self, source: Iterator[Numbered], tokens: int, reason: Reason
    ) -> tuple[list[Any], list[Problem]]:
        """The next rows of a stream, about so many tokens of them."""
        ...

    def runner(self, reason: Reason, batch_tokens: int) -> Run:
        """What computes rows that are read, in their order; called by one thread at a time."""
        ...

    def budget(self, reason: Reason, tokens: int) -> int:
        """Tokens of one batch, at most `tokens`, that are quickest for this model where it is."""
        ...


def asking(encoder: Any) -> Any:
    """The encoder of what is searched for: itself, unless it encodes queries in another way."""
    return getattr(encoder, "queries", None) or encoder


def check_mode(encoder: Encoder, name: str, reason: Reason) -> None:
    """Raise `UserError` where rationales are asked of an encoder that writes none."""
    if reason != "off" and not encoder.writes:
        raise UserError(
            f"{name} writes no rationales: leave --reason off, or say what writes them (--writer)."
        )
