"""Training data as batches: sources from a recipe, sampling, light augmentation, and preparation ahead.

Feeds are read once and stay in memory as compressed pictures (about 4 KB each here); decoding, cropping and
cutting into patches happen in a second thread, one batch ahead of the step. Sampling is by source weight, so
a small clean catalogue is not drowned by a large coarse one, and no batch holds an item twice.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from moonshelf.errors import UserError
from moonshelf.feeds import read_feed
from moonshelf.model.engine import load_picture
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec, clean_text
from moonshelf.training.pairs import Item, items_of, join_photos, named, phrase


class SourceSpec(BaseModel):
    """One source of items: a feed (with a feed of extra photos of its groups), or `sampleshop`."""

    model_config = ConfigDict(extra="forbid")

    feed: str
    photos: str | None = None
    weight: float = 1.0
    products: int = 2000  # of the sample shop
    seed: int = 1000  # of the sample shop; the demo and the tests use others


def load_source(spec: SourceSpec, root: Path) -> list[Item]:
    """Items with at least one picture and something to say about it."""
    name = spec.feed
    if name == "sampleshop":
        from moonshelf.sampleshop import iter_products

        products: Iterator[Any] = iter(iter_products(spec.products, seed=spec.seed, photos=3, size=224))
    else:
        path = root / name
        if not path.exists():
            raise UserError(f"training feed {name!r} is not in {root}: give the folder with --data.")
        products = read_feed(path)
    items = [i for p in products if isinstance(p, Product) for i in items_of(p, name)]
    if spec.photos:  # known things that people take pictures of: the name is what they are asked for
        items = [named(item) for item in items]
        photos = [p for p in read_feed(root / spec.photos) if isinstance(p, Product)]
        items += list(join_photos(items, photos))
    return [i for i in items if i.images and i.rationale]


class Sampler:
    """Draws batches of distinct items; `pairs=True` draws only items that have several pictures."""

    def __init__(self, sources: Sequence[tuple[list[Item], float]], rng: random.Random) -> None:
        self.rng = rng
        self.pools = [(items, weight) for items, weight in sources if items]
        several = [([i for i in items if len(i.images) > 1], weight) for items, weight in sources]
        self.several = [(items, weight) for items, weight in several if len(items) > 1]

    def draw(self, n: int, pairs: bool = False) -> list[Item]:
        pools = self.several if pairs and self.several else self.pools
        chosen: dict[str, Item] = {}
        weights = [weight for _, weight in pools]
        for _ in range(50 * n):  # bounded: tiny sources may not hold n distinct items
            items = self.rng.choices(pools, weights)[0][0]
            item = self.rng.choice(items)
            chosen.setdefault(item.id, item)
            if len(chosen) == n:
                break
        return list(chosen.values())


def augment(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Random crop of at least 80% of each side, mirror, brightness ±15%; colours stay what they are."""
    width, height = picture.size
    w, h = (max(1, round(side * rng.uniform(0.8, 1.0))) for side in (width, height))
    left, top = rng.randint(0, width - w), rng.randint(0, height - h)
    picture = picture.crop((left, top, left + w, top + h))
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(picture).enhance(rng.uniform(0.85, 1.15))


@dataclass
class Draw:
    """One prepared batch of B items: pixels of all pictures, texts, and who must not be a negative."""

    items: list[Item]
    pixels: tuple[np.ndarray, np.ndarray]  # patches, grids
    owner: list[int]  # picture -> item, in order
    titles: list[list[int]]  # token ids
    phrases: list[list[int]]
    bodies: list[list[int]]  # rationale, token ids
    known: list[list[int]]  # rationale of what the title itself tells
    same: Tensor  # (B, B) bool: one group, or equal titles
    told: Tensor  # (B, B) bool: phrase i is true of item j
    kind: str


def prepare(model: MoonModel, items: list[Item], kind: str, rng: random.Random) -> Draw:
    """Decode, augment and tokenise. Items whose pictures are broken are dropped."""
    pictures: list[Image.Image] = []
    owner: list[int] = []
    kept: list[Item] = []
    for item in items:
        count = 2 if kind == "pair" else (1 if len(item.images) == 1 or rng.random() < 0.7 else 2)
        refs = rng.sample(item.images, min(count, len(item.images)))
        try:
            loaded = [load_picture(ref, model.prompt.max_pixels) for ref in refs]
        except Exception:  # a broken training picture is no reason to stop; feeds report it in `check`
            continue
        pictures += [augment(p, rng) for p in loaded]
        owner += [len(kept)] * len(loaded)
        kept.append(item)
    titles, phrases, stated = [], [], []
    for item in kept:
        title = model.prompt.text_of(Product(id="t", title=item.title))
        titles.append(title.lower() if rng.random() < 0.3 else title)
        keys = [*item.facts, "category"]
        size = rng.choice((1, 2, 2, 3))
        picked = rng.sample(keys, min(size, len(keys)))
        if rng.random() < 0.6 and "category" not in picked:
            picked[-1] = "category"
        # Upper levels too: a model that has only met leaf names cannot place `footwear`.
        upper = rng.randrange(len(item.category)) if item.category and rng.random() < 0.3 else None
        text, facts = phrase(item, sorted(picked, key=keys.index), upper)
        phrases.append(clean_text(text) or titles[-1])
        stated.append(facts)
    known = [_known(item, title) for item, title in zip(kept, titles, strict=True)]
    ids = model.prepare.text_ids
    n = len(kept)
    same = torch.tensor([[a.group == b.group or a.title == b.title for b in kept] for a in kept]).view(n, n)
    told = torch.tensor([[bool(f) and b.says(f) for b in kept] for f in stated]).view(n, n)
    return Draw(
        items=kept,
        pixels=model.prepare.pixels(pictures),
        owner=owner,
        titles=ids(titles),
        phrases=ids(phrases),
        bodies=ids([item.rationale for item in kept]),
        known=ids(known),
        same=same,
        told=told | same,
        kind=kind,
    )


def _known(item: Item, title: str) -> str:
    """The rationale that the title alone supports: the category, and facts whose value it contains."""
    text = title.lower()
    told = {key: value for key, value in item.facts.items() if value in text}
    return Item(item.id, item.group, "", (), item.category, told).rationale


def stream(
    model: MoonModel, sampler: Sampler, kinds: Iterator[str], batch: int, rng: random.Random
) -> Iterator[Draw]:
    """Prepared batches without end, one ahead of the caller in a second thread."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="moonshelf-data") as pool:

        def submit() -> Any:
            kind = next(kinds)
            size = batch // 2 if kind == "pair" else batch
            return pool.submit(prepare, model, sampler.draw(size, kind == "pair"), kind, rng)

        ahead = submit()
        while True:
            ready = ahead.result()
            ahead = submit()
            yield ready


def vocabulary_texts(items: Sequence[Item], prompt: PromptSpec) -> Iterator[str]:
    """Texts for the tokenizer: titles as the prompt shows them, and rationales twice (they are written)."""
    for item in items:
        yield prompt.text_of(Product(id="t", title=item.title))
        yield from (f"{item.rationale}; ",) * 2
    yield from ("user\nassistant\n",) * 2000  # the scaffold must be single tokens


def spread(items: Sequence[Item], n: int, seed: int = 0) -> list[Item]:
    """At most n items, one a group, drawn evenly: a validation sample."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    rng = random.Random(seed)
    chosen = sorted(groups)
    rng.shuffle(chosen)
    return [groups[g][0] for g in chosen[:n]]
