"""Teach a Qwen3-VL vision tower the features of a small pretrained image encoder.

A tower of a few million parameters learns little from scratch out of a few thousand product photos. Here
it first reproduces an encoder that has seen many: the teacher's map of features, place by place, from the
merged tokens and from the DeepStack tokens, and its pooled feature from the mean of the merged ones. A
third target are the colours that each token looks at, because a classifier's features say little about
colour. A fourth, with `--titles`, is the product's own title among thousands, as a frozen sentence encoder
sees them (LiT, arXiv 2111.07991): what a shop says of its pictures is not what ImageNet's classes are. The
heads that map tokens to targets are thrown away; the weights of the terms are ours.

    python -m research.starter.teach_tower --data FEED --teacher efficientnet-lite0 --out DIR --minutes 15
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3VLVisionConfig, Qwen3VLVisionModel

from moonshelf.errors import EXIT_USAGE, UserError
from moonshelf.files import replace_durably, write_atomic
from moonshelf.model.precision import Precision, computing_in, resolve
from research.starter.teach_words import Encoder
from research.starter.teachers import TEACHERS, ask
from research.starter.tower_data import Batch, Eye, Pictures, Targets, batches

COLOUR_CELLS = 12  # colours a token is asked for: RGB of its 2 x 2 patches
TITLES, TITLE_SCALE = 4096, 20.0  # titles that each picture's own is told from, and the inverse temperature


def default_config(hidden: int = 192, depth: int = 6, out: int = 256) -> Qwen3VLVisionConfig:
    """The starter's tower (`training.starter.build_starter` with the same numbers)."""
    return Qwen3VLVisionConfig(
        depth=depth, hidden_size=hidden, num_heads=max(1, hidden // 64), intermediate_size=hidden * 4,
        patch_size=16, temporal_patch_size=2, spatial_merge_size=2, out_hidden_size=out,
        num_position_embeddings=256, deepstack_visual_indexes=[depth // 2],
    )  # fmt: skip


def grown(weights: Mapping[str, Tensor], depth: int) -> Qwen3VLVisionModel:
    """A tower of `depth` layers that says what one of fewer said: the new layers start as identities.

    They stand evenly between the old ones, and the layer that DeepStack reads moves along.
    """
    old = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    if depth < old:
        raise UserError(f"the tower to start from has {old} layers: give a depth of at least {old}.")
    places = [int((i + 0.5) * depth / old) for i in range(old)]
    config = default_config(depth=depth)
    config.deepstack_visual_indexes = [places[old // 2]]
    tower = Qwen3VLVisionModel(config)
    moved = {}
    for name, value in weights.items():
        head, _, rest = name.partition(".")
        layer, _, tail = rest.partition(".")
        moved[f"blocks.{places[int(layer)]}.{tail}" if head == "blocks" else name] = value
    tower.load_state_dict(moved, strict=False)
    for place in set(range(depth)) - set(places):
        block: Any = tower.blocks[place]
        for projection in (block.attn.proj, block.mlp.linear_fc2):
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)
    return tower


def linear_patches(tower: Qwen3VLVisionModel) -> None:
    """Let the patch embedding run as a matrix product: the same numbers, in a fifth less time on a CPU."""
    embed: Any = tower.patch_embed

    def forward(patches: Tensor) -> Tensor:
        return F.linear(patches.flatten(1), embed.proj.weight.flatten(1), embed.proj.bias)

    embed.forward = forward


def look(tower: Qwen3VLVisionModel, patches: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merged tokens (T, d), DeepStack tokens (T, d) and the mean of each picture's merged tokens (n, d)."""
    out = tower(patches, grid_thw=grid)
    counts = (grid.prod(-1) // tower.spatial_merge_size**2).tolist()
    pooled = torch.stack([tokens.mean(0) for tokens in out.pooler_output.split(counts)])
    return out.pooler_output, out.deepstack_features[0], pooled


@torch.no_grad()
def embed(tower: Qwen3VLVisionModel, data: Pictures, eye: Eye, batch: int = 64) -> Tensor:
    """Mean of the merged tokens of each picture, (n, d) float32."""
    parts = [data.pictures[s : s + batch] for s in range(0, len(data.pictures), batch)]
    return torch.cat([look(tower, *eye.patches(part))[2] for part in parts])


def neighbours(
    reference: Tensor, labels: Sequence[str], vectors: Tensor, truth: Sequence[str], k: int = 10
) -> float:
    """Accuracy of the weighted vote of the k nearest by cosine (centred); unknown labels are left out."""
    known, asked = [i for i, x in enumerate(labels) if x], [i for i, x in enumerate(truth) if x]
    if not known or not asked:
        return math.nan
    names = {name: n for n, name in enumerate(sorted({labels[i] for i in known}))}
    mean = reference.mean(0)
    near, far = F.normalize(vectors[asked] - mean, dim=-1), F.normalize(reference[known] - mean, dim=-1)
    score, index = (near @ far.T).topk(min(k, len(known)), dim=-1)
    votes = torch.zeros(len(asked), len(names))
    votes.scatter_add_(1, torch.tensor([names[labels[i]] for i in known])[index], (score / 0.07).softmax(-1))
    right = [names.get(truth[i], -1) for i in asked]
    return (votes.argmax(-1) == torch.tensor(right)).float().mean().item()


@dataclass
class Progress:
    """Where training is. Losses are means since the last report: merged, DeepStack, pooled, colour, title."""

    step: int
    minutes: float
    losses: list[float]


def teach(
    tower: Qwen3VLVisionModel,
    data: Pictures,
    targets: Targets,
    *,
    titles: Tensor | None = None,
    title_weight: float = 0.3,
    steps: int | None = None,
    minutes: float | None = None,
    batch: int = 24,
    rate: float = 1.2e-3,
    seed: int = 0,
    eye: Eye | None = None,
    every: int = 50,
    precision: Precision = "auto",
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[Progress]:
    """Train `tower` in place until `steps` or `minutes` are over; a `Progress` for every `every` steps.

    `titles` (n, k) are unit vectors of the pictures' titles, zero where there is none.
    The learning rate rises over 150 steps (a tenth of `steps`, if that is less) and falls along a cosine;
    what `report` takes is not counted. Raises UserError if neither limit is given.
    """
    if steps is None and minutes is None:
        raise UserError("say how long to teach: give steps or minutes.")
    torch.manual_seed(seed)
    rng, eye = np.random.default_rng(seed), eye or Eye()
    width, dims = tower.config.out_hidden_size, targets.pooled.shape[1]
    heads = nn.ModuleList([nn.Linear(width, n) for n in (dims, dims, dims, COLOUR_CELLS)])
    if titles is not None:
        heads.append(nn.Linear(2 * width, titles.shape[1], bias=False))
    parameters = [*tower.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02, betas=(0.9, 0.98))
    warm = min(150, max(1, steps // 10)) if steps else 150
    linear_patches(tower)
    dtype = resolve(precision, next(tower.parameters()).device)
    tower.train()
    history: list[Progress] = []
    losses: list[list[float]] = []
    start, step = time.monotonic(), 0
    stream = batches(data, targets, eye, min(batch, len(data.pictures)), rng)
    while True:
        elapsed = (time.monotonic() - start) / 60
        done = max(step / steps if steps else 0.0, elapsed / minutes if minutes else 0.0)
        if losses and (step % every == 0 or done >= 1):
            history.append(Progress(step, elapsed, np.mean(losses, 0).tolist()))
            losses = []
            paused = time.monotonic()
            report(history[-1])
            start += time.monotonic() - paused
        if done >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / warm) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        now = next(stream)
        with computing_in(dtype, tower):
            merged, deep, pooled = look(tower, now.patches, now.grid)
            said = [head(x).float() for head, x in zip(heads, (merged, deep, pooled, merged), strict=False)]
        parts = torch.stack(
            [
                _distance(said[0], now.local),
                _distance(said[1], now.local),
                _distance(said[2], now.pooled),
                F.smooth_l1_loss(said[3], _colours(now.patches), beta=0.2),
                _titled(heads[4], merged, now, titles, rng) if titles is not None else torch.zeros(()),
            ]
        )
        optimiser.zero_grad(set_to_none=True)
        (parts @ torch.tensor([1.0, 0.5, 1.0, 1.0, title_weight])).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(parts.tolist())
        step += 1
    stream.close()
    del tower.patch_embed.forward  # back to the class's own
    tower.eval()
    return history


def _distance(said: Tensor, wanted: Tensor) -> Tensor:
    """Smooth L1 for the lengths, cosine for the directions."""
    return F.smooth_l1_loss(said, wanted) + 1 - F.cosine_similarity(said, wanted, dim=-1).mean()


def _titled(head: nn.Module, merged: Tensor, now: Batch, titles: Tensor, rng: np.random.Generator) -> Tensor:
    """Cross-entropy of each picture's own title among the batch's and others, equal ones aside.

    A picture is the mean and the maximum of its merged tokens: details are in few of them.
    """
    has = [n for n, place in enumerate(now.chosen) if bool(titles[place].any())]
    if not has:
        return merged.new_zeros((), dtype=torch.float32)
    counts = (now.grid.prod(-1) // 4).tolist()
    seen = torch.stack([torch.cat([t.mean(0), t.amax(0)]) for t in merged.split(counts)])[has]
    own = titles[[now.chosen[n] for n in has]]
    others = titles[rng.integers(len(titles), size=TITLES)]
    near = F.normalize(head(seen.float()), dim=-1) @ torch.cat([own, others]).T * TITLE_SCALE
    equal = own @ torch.cat([own, others]).T > 0.999
    equal[:, : len(own)].fill_diagonal_(False)
    return F.cross_entropy(near.masked_fill(equal, -torch.inf), torch.arange(len(own)))


def _colours(patches: Tensor) -> Tensor:
    """Mean RGB of the four patches of each token, (P / 4, 12), in twice the processor's range."""
    return 2 * patches.view(len(patches) // 4, 4, 3, -1).mean(-1).flatten(1)


def title_vectors(titles: Sequence[str]) -> Tensor:
    """A sentence encoder's vectors of titles, centred, unit length, (n, k); zero where there is none."""
    distinct = sorted({title for title in titles if title})
    vectors = torch.from_numpy(Encoder()(distinct))
    vectors = F.normalize(vectors - vectors.mean(0), dim=-1)
    places = {title: place for place, title in enumerate(distinct)}
    chosen = torch.tensor([places.get(title, len(distinct)) for title in titles])
    return torch.cat([vectors, torch.zeros_like(vectors[:1])])[chosen]


def save(tower: Qwen3VLVisionModel, out: Path, notes: dict[str, Any]) -> None:
    """`model.safetensors`, `config.json` and `teacher.json` in `out`, each replaced in one step."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in tower.state_dict().items()}
    save_file(weights, out / "model.part", metadata={"format": "pt"})
    replace_durably(out / "model.part", out / "model.safetensors")
    for name, text in (
        ("config.json", tower.config.to_json_string()),
        ("teacher.json", json.dumps(notes, indent=1)),
    ):
        write_atomic(out / name, text.encode())


def load(folder: Path) -> Qwen3VLVisionModel:
    """A tower that `save` wrote, in evaluation mode."""
    tower = Qwen3VLVisionModel(Qwen3VLVisionConfig.from_json_file(folder / "config.json"))
    tower.load_state_dict(load_file(folder / "model.safetensors"))
    return tower.eval()


def feeds_in(path: Path) -> list[Path]:
    """A feed itself, or a folder's Parquet files, at any depth, except those named after validation."""
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("*.parquet") if "validation" not in p.name)
    if not found:
        raise UserError(f"{path.name} is neither a feed nor a folder with Parquet feeds.")
    return found


def run(
    data: Annotated[list[Path], typer.Option(help="Feed, or folder of Parquet feeds; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder for the tower.")],
    teacher: Annotated[str, typer.Option(help=f"One of: {', '.join(TEACHERS)}.")] = "efficientnet-lite0",
    start: Annotated[Path | None, typer.Option(help="Weights of a tower to go on from.")] = None,
    depth: Annotated[int, typer.Option(help="Layers of the tower.")] = 6,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1.2e-3,
    titles: Annotated[float, typer.Option(help="Weight of the products' own titles.")] = 0.0,
    minutes: Annotated[float, typer.Option(help="Time to train, without the teacher's pass.")] = 15.0,
    steps: Annotated[int | None, typer.Option(help="Stop after this many steps, if that is sooner.")] = None,
    probe: Annotated[
        list[Path] | None, typer.Option(help="Two labelled feeds, reference then questions, to measure on.")
    ] = None,
    save_every: Annotated[int, typer.Option(help="Steps between saves and measurements.")] = 200,
) -> None:
    """Teach a new tower and save it; with --probe, report its nearest-neighbour accuracy as it learns."""
    if teacher not in TEACHERS:
        raise UserError(f"there is no teacher '{teacher}': choose one of {', '.join(TEACHERS)}.")
    if probe and len(probe) != 2:
        raise UserError("--probe wants two feeds: one to compare with, then one to ask about.")
    eye, model = Eye(), TEACHERS[teacher]()
    pictures = Pictures.read(feed for path in data for feed in feeds_in(path))
    asked = [Pictures.read([path]) for path in probe or ()]
    torch.manual_seed(0)
    tower = grown(load_file(start), depth) if start else Qwen3VLVisionModel(default_config(depth=depth))
    notes: dict[str, Any] = {"teacher": model.name, "terms": model.terms, "pictures": len(pictures.pictures)}
    notes["history"] = []

    def report(progress: Progress) -> None:
        line: dict[str, Any] = {
            "step": progress.step, "minutes": round(progress.minutes, 2),
            "losses": [round(x, 4) for x in progress.losses],
        }  # fmt: skip
        if progress.step % save_every == 0 or not progress.losses:
            line |= measure()
            notes["history"].append(line)
            save(tower, out, notes)
        typer.echo(json.dumps(line))

    def measure() -> dict[str, float]:
        if not asked:
            return {}
        reference, vectors = (embed(tower, part, eye) for part in asked)
        pairs = [list(zip(*part.labels, strict=True)) for part in asked]
        found = {
            name: neighbours(reference, pairs[0][i], vectors, pairs[1][i])
            for i, name in enumerate(("category", "colour"))
        }
        return {name: round(value, 4) for name, value in found.items() if not math.isnan(value)}

    report(Progress(0, 0.0, []))
    targets = ask(model, pictures.pictures, eye)
    budget: dict[str, Any] = {"minutes": minutes, "steps": steps, "rate": rate}
    if titles:
        budget |= {"titles": title_vectors(pictures.titles), "title_weight": titles}
    last = teach(tower, pictures, targets, eye=eye, report=report, **budget)[-1]
    notes["history"].append({"step": last.step, "minutes": round(last.minutes, 2), **measure()})
    save(tower, out, notes)
    typer.echo(json.dumps(notes["history"][-1]))


if __name__ == "__main__":
    try:
        typer.run(run)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(EXIT_USAGE) from None
