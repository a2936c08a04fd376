"""The engine: products in, unit vectors and rationales out, nothing encoded twice.

One prefill reads a batch; the key-value cache stays. With `reason="on"` the rationale is decoded for the
whole batch on that cache, a row that closes its rationale is fed `<emb>` and leaves, and the head reads
states of the same pass. Pictures of the next batches are decoded and cut into patches in a second thread
while this one computes. Batches are filled by token budget from a window of rows sorted by length, so
there is little padding, and results come back in input order in memory that does not grow with the feed.

`reason="auto"` (ours): the direct vector is computed first; a product whose vector is not clearly nearest
to one category label (margin between the two best below `AUTO_MARGIN`) goes on, on the same cache with
`<emb>` masked out, to write a rationale. The others keep their direct vector.

Rationales can also be given: they are read in the prefill and nothing is written, which gives the vector that
the model would have with that text for its own. Ablations and tests ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from moonshelf import images
from moonshelf.errors import Problem
from moonshelf.model.confidence import Confidence
from moonshelf.model.decode import Pick, decode, greedy, reserved_tokens
from moonshelf.model.modeling import Reading, normalise
from moonshelf.model.repeats import Repeats
from moonshelf.product import Product
from moonshelf.prompts import END_THINK, THINK, read_rationale

if TYPE_CHECKING:
    from moonshelf.model.modeling import MoonModel
    from moonshelf.model.processing import Batch

Reason = Literal["off", "on", "auto"]
AUTO_MARGIN = 0.05  # cosine; ours, see docs/experiments.md
WINDOW_BATCHES = 4  # batches whose rows are sorted together: less padding against more memory
DEFAULT_BATCH_TOKENS = 8192
# A direct pass on a CPU is quickest where a layer's activations stay in its cache (measured: 15% at the
# starter's size); writing wants wide batches everywhere, since each step reads all weights.
CPU_DIRECT_TOKENS = 2048


class EncodingError(ValueError):
    """A product could not be encoded; the message names its id and the reason."""


@dataclass
class Encoded:
    """Result of n products, in input order; rows that were set aside are only in `problems`."""

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
class Row:
    """One product, ready for the model; its pictures stay uint8 until their batch is computed."""

    index: int
    id: str
    text: list[int]
    patches: np.ndarray | None
    grid: np.ndarray | None
    image_tokens: list[int]
    length: int
    given: list[int] | None = None  # a rationale to be read instead of written, from `<think>` to `<emb>`
    gone: bool = False  # nobody waits for it any more; any thread may say so, even while it is computed


def encode_iter(
    model: MoonModel,
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
    labels = label_vectors(model, batch_tokens) if reason == "auto" else None
    batch_tokens = best_batch_tokens(model, reason, batch_tokens)
    if rationales is None:
        source = enumerate(zip(products, repeat(""), strict=False))
    elif reason == "off":
        source = enumerate(zip(products, rationales, strict=True))
    else:
        raise ValueError("rationales are given: nothing is written, so reason must be off")
    # The first windows are small: nothing is computed while the first one is read.
    windows = chain((batch_tokens, 2 * batch_tokens), repeat(WINDOW_BATCHES * batch_tokens))
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="moonshelf-images") as pool:
        ahead: Future[tuple[list[Row], list[Problem]]] = pool.submit(
            _read_window, model, source, next(windows), reason
        )
        while True:
            rows, problems = ahead.result()
            if not rows and not problems:
                return
            if problems and on_error == "raise":
                first = problems[0]
                raise EncodingError(f"product {first.id!r}: {first.reason}")
            ahead = pool.submit(_read_window, model, source, next(windows), reason)
            yield _encode_window(model, rows, problems, reason, batch_tokens, labels)


def best_batch_tokens(model: MoonModel, reason: Reason, tokens: int) -> int:
    """Tokens of one prefill, at most `tokens`, that are quickest for this model where it is."""
    return min(tokens, CPU_DIRECT_TOKENS) if reason == "off" and model.device.type == "cpu" else tokens


def encode(
    model: MoonModel,
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
    return _join(parts, model.dim)


def _join(parts: list[Encoded], dim: int) -> Encoded:
    if not parts:
        return _gather([], [], dim)
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


# ---- reading rows (second thread) ------------------------------------------------------------------


def _read_window(
    model: MoonModel, source: Iterator[tuple[int, tuple[Product, str]]], tokens: int, reason: Reason
) -> tuple[list[Row], list[Problem]]:
    """Rows that fill about `tokens`, with their pictures decoded; empty at the end of the source."""
    rows: list[Row] = []
    problems: list[Problem] = []
    while sum(row.length for row in rows) < tokens:
        chunk = list(islice(source, 32))
        if not chunk:
            break
        found, refused = read_rows(model, chunk, reason)
        rows += found
        problems += refused
    return rows, problems


def read_rows(
    model: MoonModel, source: Sequence[tuple[int, tuple[Product, str]]], reason: Reason
) -> tuple[list[Row], list[Problem]]:
    """Numbered products, each with a given rationale or "", as rows with tokens and decoded pictures.

    This is all that can be done for a product before the model is free; any thread may do it.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    room = 1 if reason == "off" else model.prompt.max_rationale_tokens + 3  # tags and `<emb>`
    texts = model.prepare.text_ids([model.prompt.text_of(product) for _, (product, _) in source])
    tails = _tails(model, [rationale for _, (_, rationale) in source])
    for (index, (product, _)), text, tail in zip(source, texts, tails, strict=True):
        try:
            row = read_row(model, index, product, text, len(tail) if tail else room)
        except images.ImageError as error:
            problems.append(Problem(index + 1, "images", str(error), product.id))
            continue
        if row is None:
            reason_why = "it has no text and no picture: nothing to encode"
            problems.append(Problem(index + 1, "title", reason_why, product.id))
            continue
        row.given = tail
        rows.append(row)
    return rows, problems


def _tails(model: MoonModel, rationales: Sequence[str]) -> list[list[int] | None]:
    """Token ids of given rationales, from `<think>` to `<emb>`; None where there is none."""
    if not any(rationales):
        return [None] * len(rationales)
    prepare, reserved = model.prepare, reserved_tokens(model)
    bodies = prepare.text_ids([text.removeprefix(THINK).removesuffix(END_THINK) for text in rationales])
    limit = model.prompt.max_rationale_tokens
    kept = [[token for token in body if token not in reserved][:limit] for body in bodies]
    return [
        [prepare.think, *body, prepare.end_think, prepare.emb] if text else None
        for text, body in zip(rationales, kept, strict=True)
    ]


def read_row(model: MoonModel, index: int, product: Product, text: list[int], room: int = 1) -> Row | None:
    """A product with its text's token ids and its pictures decoded; None if it has neither.

    `room` is how many tokens may follow the prompt. Raises `ImageError` for a picture that is unusable.
    """
    refs = product.images[: model.prompt.max_images]
    if not refs and not text:
        return None
    patches = grid = None
    counts: list[int] = []
    if refs:
        pictures = [load_picture(ref, model.prompt.max_pixels) for ref in refs]
        patches, grid = model.prepare.cut(pictures)
        counts = model.prepare.image_tokens(grid)
    length = len(model.prepare.row(text, counts, ())[0]) + room
    return Row(index, product.id, text, patches, grid, counts, length)


def load_picture(ref: Any, max_pixels: int) -> Any:
    """Decode one picture for the model: no larger than it can use, never thinner than it can take.

    The longer side is reduced to twice that of a square of `max_pixels` while decoding, which for JPEG skips
    most of the work; the image processor then resizes to its grid.
    """
    picture = images.load(ref, max_side=2 * int(max_pixels**0.5))
    return images.pad_to_aspect(picture)


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Places of ascending lengths, cut where the padded batch would pass the budget; one row always fits."""
    batch: list[int] = []
    for place, length in enumerate(lengths):
        if batch and length * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


# ---- computing -------------------------------------------------------------------------------------


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


def _encode_window(
    model: MoonModel,
    rows: list[Row],
    problems: list[Problem],
    reason: Reason,
    batch_tokens: int,
    labels: Tensor | None,
) -> Encoded:
    rows = sorted(rows, key=lambda r: r.index)
    gathered = _gather(rows, encode_rows(model, rows, reason, batch_tokens, labels), model.dim)
    gathered.problems = problems
    return gathered


def encode_rows(
    model: MoonModel, rows: Sequence[Row], reason: Reason, batch_tokens: int, labels: Tensor | None = None
) -> list[Written]:
    """Vectors and rationales of rows that are read, in their order, computed in batches of like length.

    `labels` are what `auto` measures its margin to: `label_vectors`. A row that is `gone` by then gets
    zeros, and no more work than was done for it already. Raises `EncodingError` for a vector that is
    not finite or is zero.
    """
    nothing = Written(np.zeros(model.dim, np.float32), np.zeros(3, np.float32), valid=False, closed=False)
    results: dict[int, Written] = {}
    order = sorted(range(len(rows)), key=lambda i: rows[i].length)
    with model.inferring():
        for places in _batches([rows[i].length for i in order], batch_tokens):
            chunk = [order[place] for place in places if not rows[order[place]].gone]
            if not chunk:
                continue
            for i, result in zip(
                chunk, _encode_batch(model, [rows[i] for i in chunk], reason, labels), strict=True
            ):
                if rows[i].gone:
                    continue
                norm = float(np.linalg.norm(result.vector))
                if not np.isfinite(norm) or norm < 0.5:
                    raise EncodingError(
                        f"product {rows[i].id!r}: the model gave a vector that is not finite or is zero; "
                        "check the model with `moonshelf doctor`."
                    )
                results[i] = result
    return [results.get(i, nothing) for i in range(len(rows))]


def _gather(rows: list[Row], results: list[Written], dim: int) -> Encoded:
    return Encoded(
        ids=[row.id for row in rows],
        vectors=np.array([r.vector for r in results], dtype=np.float32).reshape(-1, dim),
        rationales=[r.rationale for r in results],
        valid=np.array([r.valid for r in results], dtype=bool),
        weights=np.array([r.weights for r in results], dtype=np.float32).reshape(-1, 3),
        tokens=np.array([r.tokens for r in results], dtype=np.int32),
        row_index=np.array([row.index for row in rows], dtype=np.int64),
        confidence=[r.confidence for r in results],
    )


def make_batch(model: MoonModel, rows: Sequence[Row], tail: Sequence[int]) -> Batch:
    """Batch of rows on the model's device, all with the same tail but those that were given a rationale."""
    patches = [r.patches for r in rows if r.patches is not None]
    pixels = None
    if patches:
        grids = np.concatenate([r.grid for r in rows if r.grid is not None])
        pixels = model.prepare.scale(np.concatenate(patches)), grids
    return model.prepare.batch(
        [r.text for r in rows], [r.image_tokens for r in rows], [r.given or tail for r in rows], pixels
    ).to(model.device)


def _encode_batch(model: MoonModel, rows: list[Row], reason: Reason, labels: Tensor | None) -> list[Written]:
    prepare = model.prepare
    batch = make_batch(model, rows, [prepare.think if reason == "on" else prepare.emb])
    reading = model.read(batch, use_cache=reason != "off")
    if reason == "on":
        return write(model, batch, reading, gone=lambda i: rows[i].gone)
    e = reading.states[torch.arange(len(rows)), batch.emb]
    read = batch.input_ids, reading.states, batch.rationale_mask
    if not any(row.given for row in rows):
        read = (
            batch.input_ids[:, :1],
            reading.states[:, :1],
            torch.zeros(len(rows), 1, dtype=torch.bool, device=model.device),
        )
    vectors, weights = model.head(e, reading, batch, read)
    vectors = normalise(vectors)
    results = [
        Written(v, w) for v, w in zip(vectors.cpu().numpy(), weights.float().cpu().numpy(), strict=True)
    ]
    for row, result in zip(rows, results, strict=True):
        if row.given:
            result.ids = row.given[1:-2]
            result.rationale = f"{THINK}{model.processor.tokenizer.decode(result.ids)}{END_THINK}"
            result.valid = read_rationale(result.rationale) is not None
    if reason == "auto":
        unsure = torch.arange(len(rows), device=model.device)
        if labels is not None:
            best = (vectors @ labels.T).topk(2, dim=1).values
            unsure = unsure[best[:, 0] - best[:, 1] < AUTO_MARGIN]
        if len(unsure):
            part, part_reading = _select(batch, reading, unsure)
            places = unsure.tolist()
            again = write(model, part, part_reading, fed=False, gone=lambda i: rows[places[i]].gone)
            for place, result in zip(places, again, strict=True):
                results[place] = result
    return results


def _select(batch: Batch, reading: Reading, keep: Tensor) -> tuple[Batch, Reading]:
    """Some rows of a batch whose `<emb>` was read: it is masked out, so that writing starts before it."""
    reading.cache.batch_select_indices(keep)
    part = batch.rows(lambda tensor: tensor[keep])
    part.attention[torch.arange(len(keep)), part.emb] = False
    # one token fewer counts towards the position of the next
    return part, reading.rows(lambda tensor: tensor[keep])


def label_vectors(model: MoonModel, batch_tokens: int) -> Tensor | None:
    """Direct vectors (labels, dim) of the model's category names; None if it has fewer than two."""
    if len(model.labels) < 2:
        return None
    names = [Product(id=f"label {i}", title=name) for i, name in enumerate(model.labels)]
    return torch.from_numpy(encode(model, names, "off", batch_tokens=batch_tokens).vectors).to(model.device)


def write(
    model: MoonModel,
    batch: Batch,
    reading: Reading,
    fed: bool = True,
    pick: Pick = greedy,
    gone: Callable[[int], bool] | None = None,
) -> list[Written]:
    """Decode the rationales of a batch on its cache and compute the reasoned vectors.

    `fed`: the last token of each row is `<think>` and was read in the prefill; else it is fed first. At the
    limit `</think>` is forced and the rationale counts as invalid. A greedy rationale does not repeat itself
    (`repeats`) and leaves out what the model is less sure of than its prompt asks for (`confidence`); one of
    which nothing is left is empty. `gone`: see `decode`.
    """
    repeats = Repeats(model.processor.tokenizer, model.prepare.end_think) if pick is greedy else None
    asked = model.prompt.least_confidence, model.prompt.calibration
    confidence = Confidence(model.processor.tokenizer, *asked)
    doubt = confidence.doubtful if confidence.least and pick is greedy else None
    decoded = decode(
        model, batch, reading, [model.prepare.emb], fed=fed, pick=pick, gone=gone, repeats=repeats,
        doubt=doubt,
    )  # fmt: skip
    states = [d.states for d in decoded]
    rationale = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
    counts = torch.tensor([len(s) for s in states], device=model.device)
    mask = torch.arange(rationale.shape[1], device=model.device)[None] < counts[:, None]
    think, end = model.prepare.think, model.prepare.end_think
    bodies = [torch.tensor([think, *d.ids, end], device=model.device) for d in decoded]
    ids = torch.nn.utils.rnn.pad_sequence(bodies, batch_first=True)
    e = torch.stack([d.final for d in decoded])
    vectors, weights = model.head(e, reading, batch, (ids, rationale, mask))
    numbers = normalise(vectors).cpu().numpy(), weights.float().cpu().numpy()
    texts = model.processor.tokenizer.batch_decode([d.ids for d in decoded])
    results = []
    for i, (body, d) in enumerate(zip(texts, decoded, strict=True)):
        text = f"{THINK}{body.strip()}{END_THINK}"
        valid = d.closed and read_rationale(text) is not None
        if d.emptied:
            text, valid = "", d.closed
        sure = confidence.of(d.ids, d.likelihoods)
        results.append(Written(numbers[0][i], numbers[1][i], text, valid, d.ids, d.closed, sure))
    return results
