"""Products in, unit vectors and rationales out, in input order, in memory that does not grow with the feed.

The same for every `Encoder`: products of the next window are read in a second thread (pictures decoded, text
cut into tokens) while this one computes. Rows are sorted by length within a window, so there is little
padding, and computed by the encoder's own `runner`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice, repeat
from typing import Any, Literal

import numpy as np

from moonshelf.errors import Problem
from moonshelf.model.encoders.base import Encoded, Encoder, EncodingError, Numbered, Reason, Written
from moonshelf.product import Product

WINDOW_BATCHES = 4  # batches whose rows are sorted together: less padding against more memory
DEFAULT_BATCH_TOKENS = 8192


def encode_iter(
    model: Encoder,
    products: Iterable[Product],
    reason: Reason = "off",
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_error: Literal["raise", "report"] = "report",
    rationales: Iterable[str] | None = None,
) -> Iterator[Encoded]:
    """Encode a stream of products, part by part in input order.

    `batch_tokens` bounds the tokens of one prefill, padding and the room for a rationale included. A product
    without text and pictures, or with a broken picture, becomes a `Problem` (`on_error="report"`) or raises
    `EncodingError`. A vector that is not finite or zero always raises it: that is a broken model.

    `rationales`, one a product, are read in place of what the model would write: `<think>…</think>` or the
    body alone, cut to the prompt's limit and without reserved tokens; "" gives the direct vector. So the
    `rationales` of a result give its vectors again. Raises `ValueError` if there are fewer or more.
    """
    if reason not in ("off", "on", "auto"):
        raise ValueError(f"reason must be off, on or auto, not {reason!r}")
    run = model.runner(reason, batch_tokens)
    batch_tokens = model.budget(reason, batch_tokens)
    if rationales is None:
        source = enumerate(zip(products, repeat(""), strict=False))
    elif reason == "off":
        source = enumerate(zip(products, rationales, strict=True))
    else:
        raise ValueError("rationales are given: nothing is written, so reason must be off")
    # The first windows are small: nothing is computed while the first one is read.
    windows = chain((batch_tokens, 2 * batch_tokens), repeat(WINDOW_BATCHES * batch_tokens))
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="moonshelf-images") as pool:
        ahead: Future[tuple[list[Any], list[Problem]]] = pool.submit(
            model.read_window, source, next(windows), reason
        )
        while True:
            rows, problems = ahead.result()
            if not rows and not problems:
                return
            if problems and on_error == "raise":
                first = problems[0]
                raise EncodingError(f"product {first.id!r}: {first.reason}")
            ahead = pool.submit(model.read_window, source, next(windows), reason)
            rows = sorted(rows, key=lambda row: row.index)
            yield gather(rows, run(rows), model.dim, problems)


def encode(
    model: Encoder,
    products: Sequence[Product],
    reason: Reason = "off",
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_error: Literal["raise", "report"] = "raise",
    rationales: Sequence[str] | None = None,
    progress: bool = False,
) -> Encoded:
    """Encode a list of products at once; `progress` shows a bar on stderr. See `encode_iter`."""
    parts: list[Encoded] = []
    stream = encode_iter(
        model, products, reason, batch_tokens=batch_tokens, on_error=on_error, rationales=rationales
    )
    if progress:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("encode", total=len(products))
            for part in stream:
                parts.append(part)
                bar.advance(task, len(part.ids) + len(part.problems))
    else:
        parts.extend(stream)
    return join(parts, model.dim)


class Streamed:
    """`encode` and `encode_iter` of an `Encoder`, which gives the rest."""

    def encode(self: Encoder, products: Sequence[Product], reason: Reason = "off", **options: Any) -> Encoded:
        """Unit vectors (n, dim) float32 with rationales and modality weights; see `stream.encode`."""
        return encode(self, products, reason, **options)

    def encode_iter(
        self: Encoder, products: Iterable[Product], reason: Reason = "off", **options: Any
    ) -> Iterator[Encoded]:
        """The same as a stream over any iterable, in input order and flat memory: `stream.encode_iter`."""
        return encode_iter(self, products, reason, **options)

    def read_window(
        self: Encoder, source: Iterator[Numbered], tokens: int, reason: Reason
    ) -> tuple[list[Any], list[Problem]]:
        """Rows that fill about `tokens`, with their pictures decoded; empty at the end of the source."""
        rows: list[Any] = []
        problems: list[Problem] = []
        while sum(row.length for row in rows) < tokens:
            chunk = list(islice(source, 32))
            if not chunk:
                break
            found, refused = self.read_rows(chunk, reason)
            rows += found
            problems += refused
        return rows, problems


def join(parts: Sequence[Encoded], dim: int) -> Encoded:
    """Parts of a stream as one result."""
    if not parts:
        return gather([], [], dim)
    arrays = {
        name: np.concatenate([getattr(p, name) for p in parts])
        for name in ("vectors", "valid", "weights", "tokens", "row_index")
    }
    return Encoded(
        ids=[i for p in parts for i in p.ids],
        rationales=[r for p in parts for r in p.rationales],
        problems=[x for p in parts for x in p.problems],
        confidence=[c for p in parts for c in p.confidence],
        **arrays,
    )


def gather(
    rows: Sequence[Any], results: Sequence[Written], dim: int, problems: Sequence[Problem] = ()
) -> Encoded:
    """What was computed for rows that were read, and what is wrong with the others."""
    return Encoded(
        ids=[row.id for row in rows],
        vectors=np.array([r.vector for r in results], dtype=np.float32).reshape(-1, dim),
        rationales=[r.rationale for r in results],
        valid=np.array([r.valid for r in results], dtype=bool),
        weights=np.array([r.weights for r in results], dtype=np.float32).reshape(-1, 3),
        tokens=np.array([r.tokens for r in results], dtype=np.int32),
        row_index=np.array([row.index for row in rows], dtype=np.int64),
        confidence=[r.confidence for r in results],
        problems=list(problems),
    )
