"""Teach the decoder to write, and to read what the picture path says; nothing else of the model changes.

    python -m research.starter.teach_writer --recipe RECIPE --data DATA --model runs/paths --out runs/writer

A cold start reads each batch several times over for its contrasts, and a rationale once in that time. Here a
step is one pass over rationales, with the batch's products shown by photo, by title, or by both, so that a
writer meets several times as many of them in a minute. The model is given a `glance` (`model.head`), which
begins at zero. Texts of the recipe keep the place that a sentence encoder gave them.
What the head makes of the changed states is fitted afterwards (`fit_paths`). All choices are ours.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from moonshelf.memory import keep_freed
from moonshelf.model.head import semantic
from moonshelf.model.modeling import MoonModel
from moonshelf.model.precision import computing_in, resolve
from moonshelf.training.cold_start import read_texts
from moonshelf.training.data import Remembered, Sampler, held_out, open_sources, prepare
from moonshelf.training.losses import text_loss
from moonshelf.training.objective import supervised_tokens
from moonshelf.training.recipe import load_recipe
from moonshelf.training.sources.pairs import Item
from moonshelf.training.validation import validate
from moonshelf.training.views import SharedVisionBatch
from research.starter.reshape import reshaped

GLANCE_RATE = 5.0  # times the decoder's, since it begins at zero


def with_glance(model: MoonModel) -> MoonModel:
    """The same model with a glance that says nothing yet, if it has none."""
    return model if model.config.glance else reshaped(model, glance=True)


def written(model: MoonModel, items: Sequence[Item]) -> dict[str, Any]:
    """What of `validate` tells of writing."""
    return {k: v for k, v in validate(model, items).items() if k.startswith("written")} if items else {}


def run(
    recipe: Annotated[Path, typer.Option(help="Recipe: its sources, texts, validation and seed are used.")],
    data: Annotated[Path, typer.Option(help="Folder of the training data.")],
    model: Annotated[str, typer.Option(help="Moonshelf folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    minutes: Annotated[float, typer.Option(help="How long to teach.")] = 40.0,
    batch: Annotated[int, typer.Option(help="Products a step.")] = 96,
    texts_batch: Annotated[int, typer.Option(help="Texts a step that keep their place.")] = 48,
    rate: Annotated[float, typer.Option(help="Learning rate of the decoder.")] = 4e-4,
    save_minutes: Annotated[float, typer.Option(help="Validate and save as often.")] = 10.0,
) -> None:
    """Teach, validate now and then, save."""
    keep_freed()
    r = load_recipe(recipe)
    torch.manual_seed(r.seed)
    moon = with_glance(MoonModel.from_pretrained(model)).train()
    moon.prompt = moon.prompt.model_copy(update={"least_confidence": 0.0})  # is measured again afterwards
    moon.precision = "auto"
    sampler, validation = Sampler(open_sources(r, data)), held_out(r, data)
    texts = read_texts(data / r.texts) if r.texts else None
    remembered, dtype = Remembered(max(1, r.views)), resolve("auto", moon.device)
    moon.requires_grad_(False)
    assert moon.head.glance is not None
    slow, fast = [*moon.decoder.parameters()], [*moon.head.glance.parameters()]
    for parameter in (*slow, *fast):
        parameter.requires_grad_()
    optimiser = torch.optim.AdamW(
        [{"params": slow, "share": 1.0}, {"params": fast, "share": GLANCE_RATE}],
        lr=rate, betas=(0.9, 0.98), weight_decay=0.01,
    )  # fmt: skip
    begin, saved, step, seen, losses = time.monotonic(), 0.0, 0, 0, list[float]()
    while (done := (time.monotonic() - begin) / 60 / minutes) < 1:
        for group in optimiser.param_groups:
            falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
            group["lr"] = rate * group["share"] * min(1.0, (step + 1) / 50) * falling
        key = f"{r.seed}/writer/{step}"
        items = sampler.draw(batch, random.Random(key))
        drawn = prepare(moon, items, "direct", key, remembered=remembered)
        views, end = SharedVisionBatch(moon, drawn.pictures, remembered), moon.prepare
        rows = [(t, p, [end.think, *b, end.end_think, end.emb]) for t, p, b in drawn.supervised if b]
        with computing_in(dtype, moon.backbone):
            loss = views.likelihood(rows) / supervised_tokens(drawn)
            loss.backward()
            if texts is not None:
                places = random.Random(f"{key}/texts").sample(range(len(texts.texts)), texts_batch)
                taught = texts.chosen(places)
                said = views.vectors([(ids, [], [end.emb]) for ids in end.text_ids(taught.texts)])
                kept: Tensor = r.texts_weight * text_loss(semantic(said.float()), taught.vectors)
                kept.backward()
        torch.nn.utils.clip_grad_norm_([*slow, *fast], 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses, step, seen = [*losses[-99:], loss.item()], step + 1, seen + len(rows)
        spent = (time.monotonic() - begin) / 60
        figures: dict[str, Any] = {}
        if spent - saved >= save_minutes:
            saved = spent
            figures = written(moon, validation)
            moon.save_pretrained(out)
        if step % 20 == 0 or figures:
            mean = sum(losses) / len(losses)
            typer.echo(f"step {step}, {spent:.1f} min, {seen:,} rationales, loss {mean:.4f} {figures or ''}")
    typer.echo(f"{step} steps, {seen:,} rationales: {written(moon, validation)}")
    moon.save_pretrained(out)


if __name__ == "__main__":
    typer.run(run)
