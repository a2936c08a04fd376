"""How near frozen features bring photos and titles of one product, before any decoder reads them.

    python -m research.studies.readouts --data DATA [--tower FOLDER …] [--products 4000] [--epochs 30]

Photos are features of EfficientNet-Lite0 and of towers that `research.starter.teach_tower` saved (mean and
maximum of merged tokens, mean of DeepStack's), titles those of all-MiniLM-L6-v2. A linear map each, or one
with an MLP beside it (`head.PicturePath` without its gate), is trained on the training split by InfoNCE and
asked on the validation split: what a model makes of the same tokens can be held against it.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from moonshelf import images
from moonshelf.training.data import SourceSpec, load_source, spread
from moonshelf.training.losses import info_nce
from research.starter.teach_tower import load
from research.starter.teach_words import Encoder
from research.starter.teachers import EfficientNetLite0
from research.starter.tower_data import CELL, Eye

FEED = "fashion_products/{split}-clear.parquet"
BATCH, RATE, TEMPERATURE, DROPOUT = 512, 1e-3, 0.05, 0.2


class Map(nn.Module):
    """Standardised features (n, k) -> unit vectors (n, 256)."""

    def __init__(self, features: Tensor, inner: int) -> None:
        super().__init__()
        self.mean, self.std = features.mean(0), features.std(0) + 1e-6
        self.linear = nn.Linear(features.shape[1], 256, bias=False)
        self.mlp = None
        if inner:
            last = nn.Linear(inner, 256)
            nn.init.zeros_(last.weight)
            self.mlp = nn.Sequential(
                nn.Dropout(DROPOUT), nn.Linear(features.shape[1], inner), nn.GELU(), nn.Dropout(DROPOUT), last
            )

    def forward(self, features: Tensor) -> Tensor:
        x = (features - self.mean) / self.std
        return F.normalize(self.linear(x) + (self.mlp(x) if self.mlp is not None else 0), dim=-1)


@torch.no_grad()
def tower_features(folder: Path, pictures: list[Image.Image], eye: Eye) -> Tensor:
    """(n, 3 d): mean and maximum of merged tokens, mean of DeepStack's first layer, of unit length."""
    tower, found = load(folder), []
    for start in range(0, len(pictures), 64):
        patches, grid = eye.patches(pictures[start : start + 64])
        seen, counts = tower(patches, grid_thw=grid), (grid.prod(-1) // 4).tolist()
        deep = seen.deepstack_features[0].split(counts)
        for x, y in zip(seen.pooler_output.split(counts), deep, strict=True):
            found.append(torch.cat([F.normalize(part, dim=0) for part in (x.mean(0), x.amax(0), y.mean(0))]))
    return torch.stack(found)


@torch.no_grad()
def network_features(pictures: list[Image.Image], eye: Eye) -> Tensor:
    """(n, 1280) pooled EfficientNet-Lite0, of pictures half as large again as towers see them."""
    network, sizes = EfficientNetLite0(), defaultdict[tuple[int, int], list[int]](list)
    for place, picture in enumerate(pictures):
        sizes[eye.cells(picture)].append(place)
    found = torch.empty(len(pictures), 1280)
    for (rows, columns), places in sizes.items():
        side = round(1.5 * columns) * CELL, round(1.5 * rows) * CELL
        for start in range(0, len(places), 16):
            part = places[start : start + 16]
            views = [np.asarray(pictures[p].resize(side, Image.Resampling.BICUBIC)) for p in part]
            found[part] = F.normalize(network(np.stack(views)).mean((1, 2)), dim=-1)
    return found


def fit(photos: Tensor, titles: Tensor, groups: Tensor, inner: int, epochs: int) -> tuple[Map, Map]:
    """Maps of photos and titles (n, k) of one product a row; rows of one group are no negatives."""
    torch.manual_seed(0)
    maps = Map(photos, inner), Map(titles, inner)
    optimiser = torch.optim.AdamW([p for m in maps for p in m.parameters()], lr=RATE, weight_decay=0.01)
    steps = epochs * max(1, len(groups) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randperm(len(groups))[:BATCH]
        same = groups[rows][:, None] == groups[rows]
        loss = info_nce(
            maps[0](photos[rows]), maps[1](titles[rows]), torch.tensor(1 / TEMPERATURE), same, (256,)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return maps[0].eval(), maps[1].eval()


def recalls(queries: Tensor, corpus: Tensor, groups: Tensor) -> list[float]:
    """R@1 and R@10 by group."""
    found = groups[(queries @ corpus.T).topk(10).indices] == groups[:, None]
    return [100 * found[:, :k].any(1).float().mean().item() for k in (1, 10)]


def run(
    data: Annotated[Path, typer.Option(help="Folder of the training data.")],
    tower: Annotated[list[Path] | None, typer.Option(help="Folder of a tower; may be repeated.")] = None,
    products: Annotated[int, typer.Option(help="Training products, one a group.")] = 4000,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 30,
) -> None:
    """Print recalls on validation for each kind of features, linear and with an MLP."""
    eye, encoder = Eye(), Encoder()
    pictures, titles, groups = [], [], []
    for split in ("train", "validation"):
        items = [i for i in load_source(SourceSpec(feed=FEED.format(split=split)), data) if i.title]
        items = spread(items, products) if split == "train" else items
        pictures.append([images.load(item.images[0], max_side=256) for item in items])
        titles.append(torch.from_numpy(encoder([item.title for item in items])))
        names = {group: n for n, group in enumerate(sorted({item.group for item in items}))}
        groups.append(torch.tensor([names[item.group] for item in items]))
    kinds = {"EfficientNet-Lite0": [network_features(part, eye) for part in pictures]}
    kinds |= {folder.name: [tower_features(folder, part, eye) for part in pictures] for folder in tower or ()}
    typer.echo(f"{len(titles[0]):,} training, {len(titles[1]):,} validation products")
    typer.echo(f"{'':31}  title -> photo  photo -> title, R@1 and R@10")
    for name, (seen, asked) in kinds.items():
        for inner in (0, 512):
            photo, title = fit(seen, titles[0], groups[0], inner, epochs)
            with torch.no_grad():
                a, b = title(titles[1]), photo(asked)
            found = [*recalls(a, b, groups[1]), *recalls(b, a, groups[1])]
            figures = "".join(f"{figure:8.1f}" for figure in found)
            typer.echo(f"{name:20} {'with MLP' if inner else 'linear':10}{figures}")


if __name__ == "__main__":
    typer.run(run)
