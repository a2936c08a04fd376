"""Training data as batches: sources from a recipe, sampling, light augmentation, and preparation ahead.

Feeds are read once and stay in memory as compressed pictures (about 4 KB each here); decoding, cropping and
cutting into patches happen in a second thread, one batch ahead of the step. Sampling is by source weight, so
a small clean catalogue is not drowned by a large coarse one, and no batch holds an item twice.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from moonshelf import sample
from moonshelf.errors import UserError
from moonshelf.feeds import read_feed
from moonshelf.model.engine import load_picture
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec
from moonshelf.training.sources.click_log import queries_of, read_click_log
from moonshelf.training.sources.pairs import Item, Query, items_of, join_photos, named, synthetic_query


class SourceSpec(BaseModel):
    """One source of items: a feed, with a feed of extra photos of its groups; `sample` is the package's."""

    model_config = ConfigDict(extra="forbid")

    feed: str
    photos: str | None = None
    click_log: str | None = None  # queries and what was chosen for them, see `click_log`
    negatives: str | None = None  # what `moonshelf mine` wrote for this feed
    weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        return renamed(values, {"behaviour": "click_log"})


def renamed(values: Any, names: Mapping[str, str]) -> Any:
    """Fields of a recipe under the `names` (old -> new) that they have now; says so, for one version."""
    if isinstance(values, dict):
        for old in names.keys() & values.keys():
            say(f"recipe: {old} is called {names[old]} now; the old name goes with the next version.")
        values = {names.get(key, key): value for key, value in values.items()}
    return values


def load_source(spec: SourceSpec, root: Path) -> list[Item]:
    """Items with at least one picture and something to say about it, a title or attributes."""
    name = spec.feed
    path = sample.PRODUCTS if name == "sample" else root / name
    if not path.exists():
        raise UserError(f"training feed {name!r} is not in {root}: give the folder with --data.")
    items = [i for p in read_feed(path) if isinstance(p, Product) for i in items_of(p, name)]
    if spec.photos:  # known things that people take pictures of: the name is what they are asked for
        items = [named(item) for item in items]
        photos = [p for p in read_feed(root / spec.photos) if isinstance(p, Product)]
        items += list(join_photos(items, photos))
    return [i for i in items if i.images and (i.rationale or i.title)]


# (source, item id) -> queries that shoppers asked, and their weights
RealQueries = Mapping[tuple[str, str], Sequence[tuple[Query, float]]]


@dataclass
class Source:
    """Items of one source, what shoppers asked for them, and their hard negatives, both by item id."""

    items: list[Item]
    weight: float = 1.0
    asked: dict[str, list[tuple[Query, float]]] = field(default_factory=dict)
    near: dict[str, tuple[Item, ...]] = field(default_factory=dict)


def say(text: str) -> None:
    """Print, in the first process."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(text)


def open_source(spec: SourceSpec, root: Path, fingerprint: str | None = None) -> Source:
    """A source with its click log and mined negatives; says what the log held and who mined."""
    source = Source(load_source(spec, root), spec.weight)
    if spec.click_log:
        log = read_click_log(root / spec.click_log, {item.product for item in source.items})
        say(f"{spec.click_log}: {log.summary()}")
        source.asked = queries_of(source.items, log.interactions)
    if spec.negatives:
        from moonshelf.training.sources.negatives import load_negatives, negatives_of

        mined = load_negatives(root / spec.negatives, fingerprint)
        for note in mined.notes:
            say(note)
        source.near = negatives_of(source.items, mined.negatives)
    return source


def open_sources(recipe: Any, root: Path, fingerprint: str | None = None) -> list[Source]:
    """All sources of a recipe; says what each holds."""
    sources = [open_source(spec, root, fingerprint) for spec in recipe.sources]
    whole = sum(spec.weight for spec in recipe.sources) or 1.0
    told = 0
    for spec, source in zip(recipe.sources, sources, strict=True):
        described = sum(bool(item.rationale) for item in source.items)
        several = sum(len(item.images) > 1 for item in source.items)
        told += described
        say(
            f"{spec.feed}: {len(source.items):,} items, {described:,} with attributes, {several:,} with "
            f"several pictures, {spec.weight / whole:.0%} of what is drawn"
        )
    if not told:
        say("no item has attributes: no rationale is learnt, and synthetic queries are titles.")
    return sources


def held_out(recipe: Any, root: Path) -> list[Item]:
    """The items that a recipe keeps back to validate with, one a group; none where it names no feed."""
    if not recipe.validation:
        return []
    items = load_source(SourceSpec(feed=recipe.validation), root)
    chosen = spread(items, recipe.validation_items)
    say(f"validation: {len(chosen):,} of {len(items):,} items, one a group")
    return chosen


class Sampler:
    """Draws batches of distinct items by source weight; `several` asks for items with several pictures.

    An item with mined negatives brings one of them along: hard neighbours compete as all items of a batch
    do, in every direction and across processes.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.pools = [(source.items, source.weight) for source in sources if source.items]
        if not self.pools:
            raise UserError("the sources hold no product with a picture and a title or attributes.")
        several = [([i for i in source.items if len(i.images) > 1], source.weight) for source in sources]
        self.several = [(items, weight) for items, weight in several if len(items) > 1]
        named = [(items[0].source, source) for source in sources if (items := source.items)]
        self.near = {(name, key): near for name, source in named for key, near in source.near.items() if near}
        self.asked = {(name, key): queries for name, source in named for key, queries in source.asked.items()}

    def draw(self, n: int, rng: random.Random, several: bool = False) -> list[Item]:
        pools = self.several if several and self.several else self.pools
        chosen: dict[str, Item] = {}
        weights = [weight for _, weight in pools]
        for _ in range(50 * n):  # bounded: tiny sources may not hold n distinct items
            items = rng.choices(pools, weights)[0][0]
            item = rng.choice(items)
            chosen.setdefault(item.id, item)
            near = self.near.get((item.source, item.id))
            if near and len(chosen) < n:
                other = rng.choice(near)
                chosen.setdefault(other.id, other)
            if len(chosen) == n:
                break
        return list(chosen.values())


def augment(picture: Image.Image, rng: random.Random, least: float = 0.8) -> Image.Image:
    """Random crop of at least `least` of each side, mirror, brightness ±15%; colours stay what they are."""
    width, height = picture.size
    w, h = (max(1, round(side * rng.uniform(least, 1.0))) for side in (width, height))
    left, top = rng.randint(0, width - w), rng.randint(0, height - h)
    picture = picture.crop((left, top, left + w, top + h))
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(picture).enhance(rng.uniform(0.85, 1.15))


@dataclass
class Pictures:
    """n pictures of a draw: patches of each, none where a frozen tower's features are remembered."""

    patches: list[np.ndarray]  # (P_i, patch) float32 each
    grids: np.ndarray  # (n, 3) int64
    keys: list[str]  # under which features are remembered; "" is never remembered

    def chosen(self, places: Sequence[int]) -> Pictures:
        return Pictures([self.patches[p] for p in places], self.grids[places], [self.keys[p] for p in places])


Features = tuple[Tensor, list[Tensor]]  # merged tokens (t, d) and those of each DeepStack layer, float16


@dataclass
class Remembered:
    """What a frozen tower gave for pictures, each in `views` fixed crops: looked at once, not every epoch."""

    views: int
    grids: dict[str, np.ndarray] = field(default_factory=dict)
    features: dict[str, Features] = field(default_factory=dict)


Row = tuple[list[int], list[int], Sequence[int]]  # token ids of the text, places of pictures, tail


@dataclass
class ProductBatch:
    """One prepared batch of B items: pixels of all pictures, texts, and what each query asks for."""

    items: list[Item]
    kind: str
    pictures: Pictures
    own: list[list[int]]  # places of the pictures that the product shows
    view: list[list[int]]  # place of the query's own picture, another photo or another crop; empty: none
    titles: list[list[int]]  # token ids, as all that follow
    shown: list[list[int]]  # the title as the full product shows it: whole, in part, or not at all
    # Of title and pictures, what a reasoned vector may read beside the rationale.
    left: list[tuple[bool, bool]]
    # Text, pictures, and the rationale that is true of them.
    supervised: list[tuple[list[int], list[int], list[int]]]
    synthetic: list[Query]  # made from what the record states
    synthetic_ids: list[list[int]]
    queries: list[Query]
    query_ids: list[list[int]]

    def asked(self, emb: int) -> tuple[list[Row], list[Row]]:
        """Rows of each item's query, and of its synthetic one, up to the token `emb`."""
        seen = [view if query.picture else [] for query, view in zip(self.queries, self.view, strict=True)]
        mixed: list[Row] = [(ids, places, [emb]) for ids, places in zip(self.query_ids, seen, strict=True)]
        return mixed, [(ids, [], [emb]) for ids in self.synthetic_ids]

    def part(self, start: int, stop: int) -> ProductBatch:
        """The items `start` to `stop` with their own pixels: a chunk of a larger batch."""
        places = sorted({p for i in range(start, stop) for p in (*self.own[i], *self.view[i])})
        new = {place: n for n, place in enumerate(places)}
        rows = slice(start, stop)

        def moved(groups: list[list[int]]) -> list[list[int]]:
            return [[new[p] for p in group] for group in groups]

        return ProductBatch(
            self.items[rows], self.kind,
            self.pictures.chosen(places),
            moved(self.own[rows]), moved(self.view[rows]), self.titles[rows], self.shown[rows],
            self.left[rows],
            [(text, moved([pictures])[0], body) for text, pictures, body in self.supervised[rows]],
            self.synthetic[rows], self.synthetic_ids[rows], self.queries[rows], self.query_ids[rows],
        )  # fmt: skip


QUERY_MIX = (12.0, 3.0, 2.0)  # image : text : multimodal queries, as MOON draws them
MODALITY_DROPOUT = 0.4  # ours


def prepare(
    model: MoonModel,
    items: Sequence[Item],
    kind: str,
    key: str,
    first: int = 0,
    asked: RealQueries | None = None,
    modality_dropout: float = MODALITY_DROPOUT,
    remembered: Remembered | None = None,
) -> ProductBatch:
    """Decode, augment and tokenise. Items whose pictures are broken are dropped.

    For `direct` batches a product shows one picture or two; for the others it shows one and its query has
    another: a second photo where there is one, or else a narrower crop of the same. What is drawn for an
    item depends on `key` and on its place in the whole batch, which starts with `first` here: processes
    and chunks see what one process would. Where shoppers `asked` for an item, half of its queries are theirs.

    Of the share `modality_dropout` of items the pictures, and of half of these the title too, are hidden
    after the rationale was written: a vector that sees all that the rationale was read from never learns to
    read it.
    """
    pictures: list[tuple[str, Image.Image | None]] = []
    kept: list[tuple[Item, random.Random, list[int], list[int], Query | None]] = []
    for place, item in enumerate(items, first):
        rng = random.Random(f"{key}/{place}")
        wanted = 2 if kind != "direct" or rng.random() < 0.3 else 1
        refs = rng.sample(range(len(item.images)), min(wanted, len(item.images)))
        try:
            if remembered:
                views = _remembered(model, item, refs, rng, remembered, 2 if kind != "direct" else 1)
            else:
                loaded = [load_picture(item.images[ref], model.prompt.max_pixels) for ref in refs]
        except Exception:  # a broken training picture is no reason to stop; feeds report it in `check`
            continue
        real = _real_query((asked or {}).get((item.source, item.id)), rng) if kind != "direct" else None
        if real and real.image and remembered:
            real = None  # a shopper's own photo has no fixed crop
        if real and real.image:
            try:
                loaded = [loaded[0], load_picture(real.image, model.prompt.max_pixels)]
            except Exception:  # as above
                real = None
        if not remembered:
            if kind != "direct" and len(loaded) == 1:
                cropped = [augment(loaded[0], rng), augment(loaded[0], rng, least=0.6)]
            else:
                cropped = [augment(picture, rng) for picture in loaded]
            views = [("", picture) for picture in cropped]
        places = list(range(len(pictures), len(pictures) + len(views)))
        own, view = (places, []) if kind == "direct" else (places[:1], places[1:])
        pictures += views
        kept.append((item, rng, own, view, real))
    titles, shown, left, supervised, synthetic, queries = [], [], [], [], [], []
    for item, rng, own, _, real in kept:
        title = model.prompt.text_of(Product(id="t", title=item.title))
        titles.append(title.lower() if rng.random() < 0.3 else title)
        shown.append(rng.choice((titles[-1], titles[-1], _part(title, rng), "")))
        synthetic.append(_synthetic(item, rng) or Query(titles[-1], words=item.words))
        queries.append(real or _query(item, title, rng))
        supervised.append(_supervised(item, titles[-1], own, rng.random()))
        drawn = rng.random()
        left.append((drawn >= modality_dropout / 2, drawn >= modality_dropout))
    ids = model.prepare.text_ids
    bodies = [body[: model.prompt.max_rationale_tokens] for body in ids([body for _, _, body in supervised])]
    texts = ids([text for text, _, _ in supervised])
    return ProductBatch(
        items=[item for item, *_ in kept],
        kind=kind,
        pictures=_cut(model, pictures, remembered),
        own=[own for _, _, own, *_ in kept],
        view=[view for *_, view, _ in kept],
        titles=ids(titles),
        shown=ids(shown),
        left=left,
        supervised=[
            (text, own, body) for text, (_, own, _), body in zip(texts, supervised, bodies, strict=True)
        ],
        synthetic=synthetic,
        synthetic_ids=ids([query.text for query in synthetic]),
        queries=queries,
        query_ids=ids([query.text for query in queries]),
    )


def _remembered(
    model: MoonModel, item: Item, refs: Sequence[int], rng: random.Random, memory: Remembered, wanted: int
) -> list[tuple[str, Image.Image | None]]:
    """Keys of fixed crops of the pictures `refs`, each with the crop itself where no features are known."""
    chosen = [(ref, rng.randrange(memory.views)) for ref in refs]
    if len(chosen) < wanted:  # another crop of the only picture
        chosen.append((chosen[0][0], (chosen[0][1] + 1) % memory.views))
    views: list[tuple[str, Image.Image | None]] = []
    for ref, view in chosen:
        key = f"{item.source}/{item.id}/{ref}/{view}"
        if key in memory.grids:
            views.append((key, None))
        else:
            picture = load_picture(item.images[ref], model.prompt.max_pixels)
            views.append((key, augment(picture, random.Random(key), least=0.7)))
    return views


def _cut(
    model: MoonModel, views: Sequence[tuple[str, Image.Image | None]], memory: Remembered | None
) -> Pictures:
    """Patches of the pictures that are there, and the grids of all."""
    patches, grids = model.prepare.pixels([picture for _, picture in views if picture])
    parts = iter(np.split(patches, grids.prod(-1).cumsum()[:-1]) if len(grids) else [])
    sizes = iter(grids)
    known = memory.grids if memory else {}
    return Pictures(
        [next(parts) if picture else patches[:0] for _, picture in views],
        np.stack([next(sizes) if picture else known[key] for key, picture in views]),
        [key for key, _ in views],
    )


def _supervised(item: Item, title: str, own: list[int], drawn: float) -> tuple[str, list[int], str]:
    """What is shown, and the rationale that it supports: picture alone, title alone, or both."""
    if drawn < 0.4:
        return "", own, item.rationale
    if drawn > 0.85 and title:
        return title, [], _known(item, title)
    return title, own, item.rationale


def duplicate_mask(left: Sequence[Item], right: Sequence[Item]) -> Tensor:
    """(L, R) bool: pairs that must not be negatives of each other, as `Item.same` says."""
    codes: dict[tuple[str, str], int] = {}

    def coded(items: Sequence[Item], key: str, missing: int) -> Tensor:
        values = [getattr(item, key) for item in items]
        return torch.tensor([codes.setdefault((key, v), len(codes)) if v else missing for v in values])

    found = torch.zeros(len(left), len(right), dtype=torch.bool)
    for key in ("group", "title"):
        found |= coded(left, key, -1)[:, None] == coded(right, key, -2)[None]
    return found


def positive_mask(queries: Sequence[Query], owners: Sequence[Item], items: Sequence[Item]) -> Tensor:
    """(Q, N) bool: items that must not be negatives of a query made from its owner, as `Query.holds` says.

    Whether all that a query asks for is true of an item is one matrix product: with a memory, a batch of
    1,024 makes two million pairs.
    """
    asked = [() if query.picture else (*query.facts, *query.words) for query in queries]
    columns = {thing: column for column, thing in enumerate(dict.fromkeys(itertools.chain(*asked)))}
    wanted, true = torch.zeros(len(queries), len(columns)), torch.zeros(len(items), len(columns))
    for row, things in enumerate(asked):
        wanted[row, [columns[thing] for thing in things]] = 1
    groups: dict[str, list[int]] = defaultdict(list)
    for row, item in enumerate(items):
        groups[item.group].append(row)
        true[row, [columns[thing] for thing in (*item.stated, *item.words) if thing in columns]] = 1
    number = wanted.sum(1, keepdim=True)
    found = (wanted @ true.T == number) & (number > 0)
    for row, query in enumerate(queries):
        for group in query.answers:
            found[row, groups.get(group, [])] = True
    return found | duplicate_mask(owners, items)


def _synthetic(item: Item, rng: random.Random) -> Query | None:
    keys = [*item.facts, "category"]
    size = rng.choice((1, 2, 2, 3))
    picked = rng.sample(keys, min(size, len(keys)))
    if rng.random() < 0.6 and "category" not in picked:
        picked[-1] = "category"
    # Upper levels too: a model that has only met leaf names cannot place `footwear`.
    upper = rng.randrange(len(item.category)) if item.category and rng.random() < 0.3 else None
    query = synthetic_query(item, sorted(picked, key=keys.index), upper)
    return query if query.text else None


def _query(item: Item, title: str, rng: random.Random) -> Query:
    """An image, text or multimodal query; words are a phrase or part of the title."""
    kind = rng.choices(("image", "text", "multimodal"), QUERY_MIX)[0]
    if kind == "image":
        return Query(picture=True)
    words = _part(title, rng)
    query = (_synthetic(item, rng) if rng.random() < 0.5 else None) or Query(
        words, words=frozenset(words.lower().split())
    )
    return query if kind == "text" else Query(query.text, picture=True)


def _real_query(queries: Sequence[tuple[Query, float]] | None, rng: random.Random) -> Query | None:
    """In half of the draws one of the shoppers' own queries, by log weight: bestsellers must not win."""
    if not queries or rng.random() < 0.5:
        return None
    query = rng.choices([q for q, _ in queries], [math.log1p(weight) for _, weight in queries])[0]
    return replace(query, picture=query.image is not None)


def _part(title: str, rng: random.Random) -> str:
    """A title with each word kept two times in three, at least one."""
    words = title.split()
    return " ".join([w for w in words if rng.random() < 2 / 3] or words[:1])


def _known(item: Item, title: str) -> str:
    """The rationale that the title alone supports: the category, and facts whose value it contains."""
    text = title.lower()
    told = {key: value for key, value in item.facts.items() if value in text}
    return Item(item.id, item.group, "", (), item.category, told).rationale


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
