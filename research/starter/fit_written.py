"""Fit what follows from a rationale, on what the model itself writes; no direct vector changes.

    python -m research.starter.fit_written --data DATA --model runs/starter --out runs/written

The model writes of training products, by photo, by title and by both. Then a linear map and an MLP of what
the written words mean (`MoonConfig.written`) are trained on these vectors alone: reasoned photos are found by
titles and the reverse, and every attribute and level of the category is told from all values of its key, by
names that are read directly, as `search` reads queries, and now and then by names that were reasoned about.
All else stays as it was computed. All choices are ours; docs/experiments.md tells what was tried. Validation
splits are not read.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from torch import Tensor, nn

from moonshelf.memory import keep_freed
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product
from moonshelf.training.data import SourceSpec, load_source
from moonshelf.training.losses import Labels, Temperature, info_nce, label_loss
from moonshelf.training.sources.pairs import Item, leaf
from research.starter.fit_paths import (
    MOST_VALUES,
    PHOTOS,
    TEMPERATURE,
    Key,
    Seen,
    dropped,
    read,
    standardise,
)
from research.starter.reshape import reshaped

FEEDS = {  # and the share of the products and of the batches
    "fashion_products/train-clear": 0.86, "grocery/catalogue": 0.05,
    "flipkart/train": 0.05, "luma/products": 0.04,
}  # fmt: skip
KEYS = {  # how often each is asked for, where others are once
    "category": 10.0, "colour": 10.0, "level 0": 3.0, "level 1": 6.0, "use": 6.0, "gender": 2.0,
}  # fmt: skip
FOUND, REASONED_NAMES = 1.5, 0.2  # weight of retrieval, share of steps in which names were reasoned about
KEPT = 0.5  # of what was fitted, as WiSE-FT interpolates (Wortsman et al., 2021): whole, it costs retrieval
VIEWS = ("photo", "both", "title")


def facts_of(item: Item) -> dict[str, str]:
    """What a vector is asked for: attributes, and the category by all of its levels."""
    upper = {f"level {depth}": name for depth, name in enumerate(item.category[:-1])}
    return {**item.facts, **upper, "category": leaf(item.category)}


def keys_of(facts: Sequence[Mapping[str, str]]) -> tuple[list[str], list[Key]]:
    """All names of values, and the keys with 3 to `MOST_VALUES` values that enough products state."""
    names: dict[str, int] = {}
    keys = []
    for key in sorted({key for one in facts for key in one}):
        counts = Counter(one[key] for one in facts if one.get(key))
        values = sorted(value for value, n in counts.items() if n >= 3)
        if 3 <= len(values) <= MOST_VALUES:
            place = {value: n for n, value in enumerate(values)}
            rows = [names.setdefault(value, len(names)) for value in values]
            places = [place.get(one.get(key, ""), -1) for one in facts]
            keys.append(Key(torch.tensor(rows), torch.tensor(places), KEYS.get(key, 1.0)))
    return list(names), keys


def reasoned(model: MoonModel, titles: Sequence[str], items: Sequence[Item] = ()) -> Seen:
    """As `fit_paths.read`, with what the model writes of each."""
    shown = [item.images[:1] for item in items] or [()] * len(titles)
    products = [Product(id="t", title=text, images=one) for text, one in zip(titles, shown, strict=True)]
    return read(model, titles, items, rationales=model.encode(products, reason="on").rationales)


class Kept:
    """Reasoned vectors without the map, and what the map reads; `vectors` puts them together."""

    def __init__(self, model: MoonModel, seen: Seen) -> None:
        with torch.no_grad():
            self.rest, self.told = seen.vectors(model, torch.arange(len(seen.base))), seen.told

    def vectors(self, written: nn.Module, rows: Tensor) -> Tensor:
        found: Tensor = self.rest[rows] + written(self.told[rows])
        return found


def fit(
    written: nn.Module, views: Mapping[str, Kept], direct: Mapping[str, Tensor], names: Tensor, told: Kept,
    keys: Sequence[Key], groups: Tensor, feeds: Sequence[tuple[Tensor, float]], steps: int,
    batch: int = 512, rate: float = 1e-3,
) -> None:  # fmt: skip
    """Train `written`, a new `head.WrittenMap`, in place.

    `views` are reasoned vectors by `VIEWS`, `direct` those of photos and titles (n, dim), `names` the direct
    vectors of names and `told` their reasoned ones. `groups` and `feeds` are as in `fit_paths.fit`.
    """
    standardise(
        torch.cat([view.told for view in views.values()]),
        cast(nn.Linear, written.linear), cast(nn.Linear, cast(nn.Sequential, written.mlp)[0]),
    )  # fmt: skip
    layers = [cast(nn.Linear, written.linear), cast(nn.Linear, cast(nn.Sequential, written.mlp)[2])]
    handles = [layer.register_forward_pre_hook(dropped) for layer in layers]
    temperature, dims = Temperature(TEMPERATURE), (256, 128, 64)
    optimiser = torch.optim.AdamW(
        [*written.parameters(), *temperature.parameters()], lr=rate, weight_decay=0.02
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.05)
    pools, shares = [rows for rows, _ in feeds], [share for _, share in feeds]
    for step in range(steps):
        [pool] = random.choices(pools, shares)
        rows = pool[torch.randperm(len(pool))[:batch]]
        [key] = random.choices(keys, [key.weight for key in keys])
        photo, both, title = (views[name].vectors(written, rows) for name in VIEWS)
        scale, same = temperature(), groups[rows][:, None] == groups[rows]
        pairs = (direct["title"][rows], photo), (title, photo), (title, direct["photo"][rows])
        found = torch.stack([info_nce(a, b, scale, same, dims) for a, b in pairs]).mean()
        by_name = told.vectors(written, key.values) if random.random() < REASONED_NAMES else names[key.values]
        labels = Labels(by_name, key.places[rows])
        value = torch.stack([label_loss(x, labels, scale, dims) for x in (photo, both, title)]).mean()
        optimiser.zero_grad()
        (FOUND * found + value).backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step + 1 == steps:
            typer.echo(
                f"written: step {step} of {steps}, InfoNCE {found.item():.3f}, values {value.item():.3f}"
            )
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(KEPT)
            layer.bias.mul_(KEPT)


def run(
    data: Annotated[Path, typer.Option(help="Folder of the training data.")],
    model: Annotated[str, typer.Option(help="Moonshelf folder with words, pictures and a writer.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    products: Annotated[int, typer.Option(help="Training products that the model writes of.")] = 4000,
    steps: Annotated[int, typer.Option(min=1, help="Batches of 512 products.")] = 1500,
    seed: Annotated[int, typer.Option(help="Seed of products and batches.")] = 0,
) -> None:
    """Fit and save the model."""
    keep_freed()
    torch.manual_seed(seed)
    random.seed(seed)
    items: list[Item] = []
    feeds: list[tuple[Tensor, float]] = []
    for name, share in FEEDS.items():
        source = SourceSpec(feed=f"{name}.parquet", photos=PHOTOS.get(name))
        titled = [item for item in load_source(source, data) if item.title]
        chosen = random.Random(seed).sample(titled, min(len(titled), round(share * products)))
        feeds.append((torch.arange(len(items), len(items) + len(chosen)), share))
        items += chosen
    made = reshaped(MoonModel.from_pretrained(model), ["words.written."], written=True)
    made.precision = "auto"
    titles, nothing, everyone = [item.title for item in items], [""] * len(items), torch.arange(len(items))
    names, keys = keys_of([facts_of(item) for item in items])
    views = {
        name: Kept(
            made, reasoned(made, titles if name != "photo" else nothing, items if name != "title" else ())
        )
        for name in VIEWS
    }
    with torch.no_grad():
        direct = {
            "title": read(made, titles).vectors(made, everyone),
            "photo": read(made, nothing, items).vectors(made, everyone),
        }
        named = read(made, names).vectors(made, torch.arange(len(names)))
    places = {group: place for place, group in enumerate(sorted({item.group for item in items}))}
    groups = torch.tensor([places[item.group] for item in items])
    assert made.head.words is not None and made.head.words.written is not None
    told = Kept(made, reasoned(made, names))
    fit(made.head.words.written, views, direct, named, told, keys, groups, feeds, steps)
    made.save_pretrained(out)


if __name__ == "__main__":
    typer.run(run)
