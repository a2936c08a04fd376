"""How likely each of some given texts is as what the model writes: constrained decoding, done exactly.

    p(text | product, it is one of the list) = p(text | product) / sum over the list

Each text is read where it would be written, on the cache of one prefill of the product: nothing outside of
the list can come out, and no search over prefixes is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from moonshelf.model import engine
from moonshelf.model.confidence import Confidence
from moonshelf.model.decode import banned_tokens, repeat_rows
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product

_LOGITS = 2**26  # of one pass: 256 MiB


def log_likelihoods(
    model: MoonModel, products: Sequence[Product], texts: Sequence[Sequence[str]], key: str = "category"
) -> list[np.ndarray]:
    """For each product log p, (n,) float64, natural, of each of its texts as the value of `key`.

    The key is the first that is written, and the text's end counts. A product that cannot be read (no text, a
    broken picture) gets an empty array.
    """
    found = [np.zeros(0)] * len(products)
    rows, _ = engine.read_rows(model, [(i, (product, "")) for i, product in enumerate(products)], "on")
    for row in rows:
        tails = model.prepare.text_ids([f"{key}: {text};" for text in texts[row.index]])
        step = max(1, _LOGITS // (max(map(len, tails)) * model.vocabulary))
        parts = [_score(model, row, tails[at : at + step]) for at in range(0, len(tails), step)]
        found[row.index] = np.concatenate(parts)
    return found


def _score(model: MoonModel, row: engine.Row, tails: list[list[int]]) -> np.ndarray:
    prepare, device, width = model.prepare, model.device, max(map(len, tails))
    with model.inferring():
        batch = engine.make_batch(model, [row], [prepare.think])
        batch, reading = repeat_rows(batch, model.read(batch, use_cache=True), len(tails))
        tokens = torch.tensor([ids + [prepare.pad] * (width - len(ids)) for ids in tails], device=device)
        lengths = torch.tensor([[len(ids)] for ids in tails], device=device)
        attention, places = batch.attention.long(), torch.arange(width, device=device)
        start = attention.sum(1, keepdim=True) + reading.deltas
        states = model.backbone.model(
            input_ids=tokens,
            attention_mask=torch.cat([attention, (places < lengths).long()], 1),
            position_ids=(start + places)[None].expand(3, -1, -1),
            use_cache=True,
            **{model.cache_name: reading.cache},
        ).last_hidden_state
        likely = (model.logits(states).float() + banned_tokens(model)).log_softmax(-1)
    scores, reader = [], Confidence(model.processor.tokenizer)
    for line, ids in zip(likely, tails, strict=True):
        last = len(ids) - 1  # a semicolon, in whose place the whole may end too
        value = sum(float(line[at - 1, ids[at]]) for at in range(reader.spans(ids)[0].value, last))
        scores.append(
            value + float(torch.logaddexp(line[last - 1, ids[last]], line[last - 1, prepare.end_think]))
        )
    return np.array(scores)
