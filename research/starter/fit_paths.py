"""Give a model with words a picture path, and fit both paths' free numbers to titles and their photos.

    python -m research.starter.fit_paths --data DATA --model runs/words/model --out runs/paths [--tower FILE]

What enters the paths does not depend on what they say, so it is computed once; then thousands of pairs meet
in each step, where a cold start has time for a few dozen. Steps:

1. `--tower`: another vision tower takes the place of the model's. Its last linear map is joined with the one
   that brings its merged tokens nearest to the old tower's (least squares), since the decoder knows those;
2. photos (as they are, and cropped) and titles of the training splits are read by the model;
3. the picture path, and the free numbers that follow from a text's words, are trained by InfoNCE, both ways,
   at all Matryoshka sizes, and by telling a product's value from all values of its key; the numbers of a text
   that words are bound to take no gradient, and similarities of whole texts stay those of these numbers. What
   the catalogue states of a product, read as a text, tells its values too, or it would not name its category.
   A batch comes from one feed: pictures of shops that look different tell each other apart too easily;
4. `--texts`: texts of other kinds (`teach_words`) keep the neighbours that these numbers give them. Else the
   free numbers, which were fitted on fashion, put other shops' titles far from their categories' names.

A model whose decoder was taught since (`teach_writer`) is fitted again: then the picture path stays, which
the decoder reads, and what follows from words is fitted anew. What follows from what it writes is fitted last
(`fit_written`).

All choices are ours; docs/experiments.md tells what was tried. Validation splits are not read.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import pyarrow.parquet as pq
import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from moonshelf.memory import keep_freed
from moonshelf.model.engine import load_picture
from moonshelf.model.head import PICTURE, MoonHead, locked, semantic
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product
from moonshelf.prompts import END_THINK, THINK
from moonshelf.training.cold_start import KEY_WEIGHT, values_of_keys
from moonshelf.training.data import SourceSpec, augment, load_source
from moonshelf.training.losses import Labels, Temperature, info_nce, label_loss, similarity_loss
from moonshelf.training.sources.pairs import Item, leaf
from research.starter.reshape import reshaped
from research.starter.teach_tower import load

FEEDS = {  # and the share of the batches that each gives; tiny pictures made all others worse
    "fashion_products/train-clear": 0.80, "sampleshop": 0.07, "grocery/catalogue": 0.06,
    "flipkart/train": 0.04, "luma/products": 0.03,
}  # fmt: skip
PHOTOS = {"grocery/catalogue": "grocery/photos-train.parquet"}
TEMPERATURE, DROPOUT, BATCH = 0.05, 0.2, 64
LABEL_WEIGHT, MOST_VALUES = 0.5, 600
BOTH = 0.22  # gate of the picture path beside a title
LOUD = (1.5, 0.9)  # gates of the words of a text and of a rationale
INNER = 2048  # width of the words' MLP: with 512 titles of fashion and other texts stand in each other's way
TEXTS, TEXT_BATCH, NEAR = 30_000, 512, 0.1  # texts of other kinds, in a batch, and their temperature
SHARE = 0.3  # of the vector that comes from the language model, in what it was; its noise hides the paths


def with_pictures(model: MoonModel) -> MoonModel:
    """The model with paths that say nothing yet of what is fitted, whatever they said before.

    A picture path that the decoder has learnt to read by its glance stays as it is. How loud words are no
    longer follows from the state at <emb>, which changes with whatever the decoder learns.
    """
    layers = len(getattr(model.backbone.config.vision_config, "deepstack_visual_indexes", ()))
    fitted = ["words.free.", "words.linear.", "words.gate."] + ["pictures."] * (not model.config.glance)
    made = reshaped(model, fitted, pictures=PICTURE + layers, words_inner=INNER)
    head: MoonHead = made.head
    assert head.words is not None and head.pictures is not None
    head.words.gate.bias.data = torch.tensor(LOUD).log()
    head.pictures.beside.data.fill_(math.log(BOTH))
    return made


@torch.no_grad()
def with_tower(model: MoonModel, folder: Path, items: Sequence[Item]) -> None:
    """Put the tower of `folder` in place of the model's, its tokens mapped onto those of the old one."""
    tower = load(folder)
    backbone: Any = model.backbone
    old, backbone.model.visual = backbone.model.visual, tower
    pictures = [load_picture(item.images[0], model.prompt.max_pixels) for item in items]
    patches, grids = model.prepare.pixels(pictures)
    ends = grids.prod(-1).cumsum()
    tokens: tuple[list[list[Tensor]], list[list[Tensor]]] = ([], [])
    for start in range(0, len(grids), 64):
        rows = slice(ends[start - 1] if start else 0, ends[min(start + 64, len(grids)) - 1])
        for seen, look in zip(tokens, (tower, old), strict=True):
            found = look(
                torch.from_numpy(patches[rows]), grid_thw=torch.from_numpy(grids[start : start + 64])
            )
            for place, one in enumerate((found.pooler_output, *found.deepstack_features)):
                seen += [] if len(seen) > place else [[]]
                seen[place].append(one)
    mergers = (tower.merger, *tower.deepstack_merger_list)
    for new, known, merger in zip(*tokens, mergers, strict=True):
        x, y = torch.cat(new).double(), torch.cat(known).double()
        ones = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        gram = ones.T @ ones + 1e-3 * len(x) * torch.eye(ones.shape[1], dtype=x.dtype)
        solution = torch.linalg.solve(gram, ones.T @ y)
        left = ((ones @ solution - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
        typer.echo(f"tokens: {1 - left:.3f} of the old tower's variance is kept")
        last = merger.linear_fc2
        last.bias.data = (last.bias.double() @ solution[:-1] + solution[-1]).float()
        last.weight.data = (solution[:-1].T @ last.weight.double()).float()
    backbone.config.vision_config = tower.config


@dataclass
class Seen:
    """Of n rows what does not change while the paths are trained."""

    base: Tensor  # (n, dim) vectors without the paths
    words: Tensor  # (n, dim / 2) what the words of their texts mean
    told: Tensor  # (n, dim / 2) what the words of their rationales mean
    pictures: Tensor  # (n, summaries, d) float16

    def vectors(self, model: MoonModel, rows: Tensor) -> Tensor:
        """Vectors (len(rows), dim) with the paths."""
        head: MoonHead = model.head
        assert head.words is not None and head.pictures is not None
        words, told = self.words[rows], self.told[rows]
        pictured = head.pictures(self.pictures[rows].float(), words.any(-1))
        return self.base[rows] + head.words.of_text(words) + head.words.of_rationale(told) + pictured


@torch.no_grad()
def read(
    model: MoonModel, titles: Sequence[str], items: Sequence[Item] = (), crop: int | None = None,
    rationales: Sequence[str] = (),
) -> Seen:  # fmt: skip
    """Titles alone, or beside the first photos of `items`; `crop` is the seed of crops of these."""
    parts: list[tuple[Tensor, ...]] = []
    prepare, head = model.prepare, model.head
    assert head.words is not None and head.pictures is not None
    for start in range(0, len(titles), BATCH):
        texts = prepare.text_ids([
            model.prompt.text_of(Product(id="t", title=title)) for title in titles[start : start + BATCH]
        ])  # fmt: skip
        shown = [load_picture(i.images[0], model.prompt.max_pixels) for i in items[start : start + BATCH]]
        if crop is not None:
            shown = [augment(one, random.Random(f"{crop}/{start + n}"), 0.7) for n, one in enumerate(shown)]
        counts: list[list[int]] = [[] for _ in texts]
        if shown:
            patches, grids = prepare.pixels(shown)
            counts = [[n] for n in prepare.image_tokens(grids)]
        given = rationales[start : start + BATCH]
        bodies = prepare.text_ids([text.removeprefix(THINK).removesuffix(END_THINK) for text in given])
        thought = [[prepare.think, *body, prepare.end_think, prepare.emb] for body in bodies]
        batch = prepare.batch(texts, counts, thought or [[prepare.emb]] * len(texts))
        if shown:
            batch.pixel_values, batch.grid = torch.from_numpy(patches), torch.from_numpy(grids)
        with model.computing():
            vectors, _, reading = model(batch)
            e = reading.states[torch.arange(len(texts)), batch.emb]
            masks = {"text": batch.text_mask, "rationale": batch.rationale_mask}
            words = {name: (batch.input_ids, reading.states, mask) for name, mask in masks.items()}
            said, told = (meaning.float() for meaning in head.words.meanings(e, words))
            pictured = head.pictures(reading.seen, batch.text_mask.any(1)).float()
        base = vectors.float() - head.words.of_text(said) - head.words.of_rationale(told) - pictured
        parts.append((base, said, told, reading.seen.half()))
        if start // BATCH % 40 == 0:
            typer.echo(f"read {start + len(texts):,} of {len(titles):,}")
    return Seen(*map(torch.cat, zip(*parts, strict=True)))


@dataclass
class Key:
    """The values of a key, as rows of `names`, and each product's place among them (n,), -1 if unknown."""

    values: Tensor
    places: Tensor
    weight: float


def keys_of(items: Sequence[Item]) -> tuple[list[str], list[Key]]:
    """All names of values, and the keys that have at most `MOST_VALUES` of them."""
    values = {key: found for key, found in values_of_keys(list(items)).items() if len(found) <= MOST_VALUES}
    names = sorted({name for found in values.values() for name in found})
    row, keys = {name: n for n, name in enumerate(names)}, []
    for key, found in values.items():
        place = {name: n for n, name in enumerate(found)}
        own = [leaf(item.category) if key == "category" else item.facts.get(key, "") for item in items]
        places = torch.tensor([place.get(name, -1) for name in own])
        keys.append(Key(torch.tensor([row[name] for name in found]), places, KEY_WEIGHT.get(key, 1.0)))
    return names, keys


def fit(
    model: MoonModel, titles: Seen, photos: Sequence[Seen], names: Seen, keys: Sequence[Key],
    groups: Tensor, feeds: Sequence[tuple[Tensor, float]], steps: int, batch: int = 1024, rate: float = 1e-3,
    stated: Seen | None = None, others: Seen | None = None,
) -> None:  # fmt: skip
    """Train the paths in place. `groups` (n,) int: rows of one product are no negatives.

    `feeds` are the rows of each feed and how often it is drawn, `stated` what is known of each row as a text,
    `others` texts of other kinds.
    """
    words, pictures = model.head.words, model.head.pictures
    assert words is not None and pictures is not None
    fresh = not model.config.glance  # else the decoder reads the picture path as it is
    for place, norm in enumerate(pictures.norms if fresh else ()):  # numbers of pictures: mean 0, variance 1
        x = F.layer_norm(photos[0].pictures[:, place].float(), [model.config.hidden])
        std = x.std(0).clamp_min(1e-3)
        norm.weight.data, norm.bias.data = 1 / std, -x.mean(0) / std
    standardise(titles.words, words.linear, cast(torch.nn.Linear, words.free[0]))  # those of titles as well
    temperature, parts, layers = Temperature(TEMPERATURE), [words.linear, words.free], [words.free[2]]
    if fresh:
        torch.nn.init.normal_(pictures.linear.weight, std=1e-3)
        parts += [pictures.linear, pictures.mlp]
        layers += [pictures.linear, pictures.mlp[0], pictures.mlp[2]]
    trained = [parameter for part in parts for parameter in part.parameters()]
    optimiser = torch.optim.AdamW([*trained, *temperature.parameters()], lr=rate, weight_decay=0.02)
    dims = model.config.matryoshka
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.05)
    pools, shares = [rows for rows, _ in feeds], [share for _, share in feeds]
    handles = [layer.register_forward_pre_hook(dropped) for layer in layers]
    for step in range(steps):
        [pool] = random.choices(pools, shares)
        rows = pool[torch.randperm(len(pool))[:batch]]
        [key] = random.choices(keys, [key.weight for key in keys])
        said, called = titles.vectors(model, rows), names.vectors(model, key.values)
        seen, scale = photos[step % len(photos)].vectors(model, rows), temperature()
        found = info_nce(locked(said), seen, scale, groups[rows][:, None] == groups[rows], dims)
        labels = Labels(locked(called), key.places[rows])
        sides = [seen, locked(said), *([locked(stated.vectors(model, rows))] if stated is not None else [])]
        value = torch.stack([label_loss(side, labels, scale, dims) for side in sides]).mean()
        texts = torch.cat([said, called])
        kept = similarity_loss(texts, semantic(texts).detach())
        if others is not None:
            more = others.vectors(model, torch.randint(len(others.base), (TEXT_BATCH,)))
            kept = kept + neighbour_loss(locked(more), semantic(more).detach())
        optimiser.zero_grad()
        (found + LABEL_WEIGHT * value + kept).backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step + 1 == steps:
            typer.echo(
                f"paths: step {step} of {steps}, InfoNCE {found.item():.3f}, values {value.item():.3f}, "
                f"texts {kept.item():.3f}"
            )
    for handle in handles:
        handle.remove()


def neighbour_loss(vectors: Tensor, wanted: Tensor) -> Tensor:
    """KL divergence of who is near whom by `vectors` (n, d) from who is by `wanted` (n, k).

    As SEED distils similarities (Fang et al., 2021, arXiv 2101.04731), here within a batch.
    """
    itself = torch.eye(len(vectors), dtype=torch.bool)
    units = (F.normalize(x, dim=-1) for x in (vectors, wanted))
    found, target = (
        (x @ x.T / NEAR).masked_fill(itself, torch.finfo(x.dtype).min).log_softmax(-1) for x in units
    )
    return (target.exp() * (target - found)).masked_fill(itself, 0).sum(-1).mean()


def standardise(said: Tensor, linear: torch.nn.Linear, first: torch.nn.Linear) -> None:
    """Begin a map anew; its two layers make mean 0 and variance 1 of the meanings (n, d) that they meet."""
    x = F.normalize(said[said.any(-1)], dim=-1)
    mean, std = x.mean(0), x.std(0).clamp_min(1e-4)
    torch.nn.init.normal_(linear.weight, std=1e-3)
    torch.nn.init.zeros_(linear.bias)
    first.reset_parameters()
    for layer in (linear, first):
        layer.weight.data /= std
        layer.bias.data -= layer.weight @ mean


def dropped(_layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (F.dropout(inputs[0], DROPOUT),)


def stated_of(items: Sequence[Item]) -> list[str]:
    """What is known of products as texts: every second as a rationale has it, the others as bare values."""
    return [
        item.rationale if n % 2 else " ".join([*item.category, *item.facts.values()]).lower()
        for n, item in enumerate(items)
    ]


def some_of(texts: Path, seed: int) -> list[str]:
    """At most `TEXTS` of a file's texts."""
    found: list[str] = pq.read_table(texts, columns=["text"])["text"].to_pylist()
    return random.Random(seed).sample(found, min(TEXTS, len(found)))


def run(
    data: Annotated[Path, typer.Option(help="Folder of the training data.")],
    model: Annotated[str, typer.Option(help="Moonshelf folder with words.")] = "runs/words/model",
    out: Annotated[Path, typer.Option(help="Folder for the model.")] = Path("runs/paths"),
    tower: Annotated[Path | None, typer.Option(help="Folder of another vision tower.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches of 1,024 products.")] = 1600,
    crops: Annotated[int, typer.Option(min=0, help="Crops of each photo, beside the photo itself.")] = 1,
    share: Annotated[float, typer.Option(help="By how much the language model's part shrinks.")] = SHARE,
    seed: Annotated[int, typer.Option(help="Seed of the products and crops.")] = 0,
    texts: Annotated[Path | None, typer.Option(help="texts.parquet of `teach_words`.")] = None,
) -> None:
    """Fit the paths and save the model."""
    keep_freed()
    torch.manual_seed(seed)
    random.seed(seed)
    items: list[Item] = []
    feeds: list[tuple[Tensor, float]] = []
    for name, weight in FEEDS.items():
        found = load_source(SourceSpec(feed=f"{name}.parquet", photos=PHOTOS.get(name)), data)
        titled = [item for item in found if item.title]
        feeds.append((torch.arange(len(items), len(items) + len(titled)), weight))
        items += titled
    made = with_pictures(MoonModel.from_pretrained(model))
    made.precision = "auto"
    if not made.config.glance:
        made.head.project.weight.data *= share
    if tower:
        with_tower(made, tower, random.Random(seed).sample(items, min(1500, len(items))))
    said, unsaid = [item.title for item in items], [""] * len(items)
    titles, photos = read(made, said), [read(made, unsaid, items)]
    photos += [read(made, unsaid, items, crop=seed + n) for n in range(crops)]
    names, keys = keys_of(items)
    places = {group: place for place, group in enumerate(sorted({item.group for item in items}))}
    groups = torch.tensor([places[item.group] for item in items])
    others = read(made, some_of(texts, seed)) if texts else None
    stated = read(made, stated_of(items))
    fit(
        made, titles, photos, read(made, names), keys, groups, feeds, steps, stated=stated, others=others
    )  # fmt: skip
    made.save_pretrained(out)


if __name__ == "__main__":
    typer.run(run)
