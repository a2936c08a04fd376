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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from moonshelf import images
from moonshelf.errors import Problem
from moonshelf.model.confidence import Confidence
from moonshelf.model.decode import Pick, decode, greedy, reserved_tokens
from moonshelf.model.encoders.base import EncodingError, Numbered, Reason, Run, Written
from moonshelf.model.encoders.stream import encode
from moonshelf.model.modeling import Reading, normalise
from moonshelf.model.repeats import Repeats
from moonshelf.product import Product
from moonshelf.prompts import END_THINK, THINK, read_rationale

if TYPE_CHECKING:
    from moonshelf.model.modeling import MoonModel
    from moonshelf.model.processing import Batch

AUTO_MARGIN = 0.05  # cosine; ours, see docs/experiments.md
# A direct pass on a CPU is quickest where a layer's activations stay in its cache (measured: 15% at the
# starter's size); writing wants wide batches everywhere, since each step reads all weights.
CPU_DIRECT_TOKENS = 2048


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


def best_batch_tokens(model: MoonModel, reason: Reason, tokens: int) -> int:
    """Tokens of one prefill, at most `tokens`, that are quickest for this model where it is."""
    return min(tokens, CPU_DIRECT_TOKENS) if reason == "off" and model.device.type == "cpu" else tokens


def runner(model: MoonModel, reason: Reason, batch_tokens: int) -> Run:
    """What computes rows that were read for `reason`: see `encode_rows`."""
    # Made when rows first ask for them; only the thread that computes calls this.
    labels = cache(lambda: label_vectors(model, batch_tokens))
    tokens = best_batch_tokens(model, reason, batch_tokens)

    def run(rows: list[Row]) -> list[Written]:
        seen = labels() if reason == "auto" else None
        return encode_rows(model, rows, tokens, partial(_encode_batch, model, reason, seen))

    return run


# ---- reading rows (second thread) ------------------------------------------------------------------


def read_rows(
    model: MoonModel, source: Sequence[Numbered], reason: Reason
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


def encode_rows(model: MoonModel, rows: Sequence[Row], batch_tokens: int, compute: Run) -> list[Written]:
    """Vectors and rationales of rows that are read, in their order, in batches of like length, each of which
    `compute` is given.

    A row that is `gone` by then gets zeros, and no more work than was done for it already. Raises
    `EncodingError` for a vector that is not finite or is zero.
    """
    nothing = Written(np.zeros(model.dim, np.float32), np.zeros(3, np.float32), valid=False, closed=False)
    results: dict[int, Written] = {}
    order = sorted(range(len(rows)), key=lambda i: rows[i].length)
    with model.inferring():
        for places in _batches([rows[i].length for i in order], batch_tokens):
            chunk = [order[place] for place in places if not rows[order[place]].gone]
            if not chunk:
                continue
            for i, result in zip(chunk, compute([rows[i] for i in chunk]), strict=True):
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


def _encode_batch(model: MoonModel, reason: Reason, labels: Tensor | None, rows: list[Row]) -> list[Written]:
    """`labels` are what `auto` measures its margin to: `label_vectors`."""
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
