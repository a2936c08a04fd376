"""What a training step of ours costs beside the step that a user would otherwise run.

    python benchmarks/training.py [--model starter] [--repeats 7] [--only joint,cold-start,…]

joint       one learning step of the joint stage (GRPO and InfoNCE, one forward, one backward) against the
            step of TRL's own GRPOTrainer on the same backbone, prompts, pictures and rollouts: log-
            probabilities, loss, backward. Writing the rollouts is in neither.
contrast    steps of the cold start's direct batches without rationales (title, phrase and photo against each
            other) against SentenceTransformerTrainer on title and photo, MultipleNegativesRankingLoss; the
            same model, pictures from files, batch and optimiser steps, decoding included.
cold-start  the same with everything that the cold start's first quarter does: rationales and queries too.

Ratios are theirs to ours; the joint step's aim is the other way round, and so given too. How: `paired`.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import torch
from paired import CLOCKS, paired, save
from rich.console import Console
from rich.table import Table

from moonshelf.training import quiet_dependencies

quiet_dependencies()

from datasets import Dataset  # noqa: E402  (after its telemetry is off)
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from moonshelf.feeds import write_jsonl  # noqa: E402
from moonshelf.model.modeling import MoonModel  # noqa: E402
from moonshelf.model.precision import computing_in, resolve  # noqa: E402
from moonshelf.product import ImageRef, Product  # noqa: E402
from moonshelf.training.cold_start import ColdStart, set_up  # noqa: E402
from moonshelf.training.data import Sampler, SourceSpec, open_source, prepare  # noqa: E402
from moonshelf.training.joint import JointTrainer  # noqa: E402
from moonshelf.training.recipe import JointRecipe, Recipe  # noqa: E402
from research.synthetic.shop import iter_products  # noqa: E402

Side = Callable[[], Any]


def shop(folder: Path, products: int) -> list[Product]:
    """Sample products with one photo each in a file, and the feed that lists them."""
    found = []
    for product in iter_products(products, seed=11, photos=1, size=224):
        path = folder / f"{len(found)}.jpg"
        path.write_bytes(product.images[0].data or b"")
        found.append(product.model_copy(update={"images": (ImageRef(path=str(path)),)}))
    write_jsonl(found, folder / "shop.jsonl")
    return found


# ---- the joint step --------------------------------------------------------------------------------


def joint_sides(options: argparse.Namespace, folder: Path) -> tuple[Side, Side, dict[str, Any]]:
    recipe = JointRecipe(
        model=options.model, sources=[SourceSpec(feed="shop.jsonl")], out=str(folder / "joint"),
        products=options.products, rollouts=options.rollouts, precision=options.precision, memory=512,
    )  # fmt: skip
    moon = MoonModel.from_pretrained(options.model)
    theirs = copy.deepcopy(moon.backbone).train()
    sampler = Sampler([open_source(spec, folder) for spec in recipe.sources])
    trainer = JointTrainer(moon, recipe, sampler)
    for step in range(3):  # fills the memory
        trainer.state.global_step = step
        draw = trainer.draw(step, 0.0)
        moon.eval()
        written, gained = trainer.roll(draw)
    trainer.roll = lambda batch: (written, gained)  # type: ignore[method-assign]

    def our_step() -> None:
        trainer.model.zero_grad(set_to_none=True)
        trainer.losses(draw)

    plain = GRPOTrainer(
        model=theirs,
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        args=GRPOConfig(
            output_dir=str(folder / "trl"), use_cpu=True, bf16=False, report_to=[],
            per_device_train_batch_size=len(written), num_generations=recipe.rollouts, loss_type="grpo",
            temperature=recipe.sampling_temperature, beta=0.0, gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": [""] * len(written)}),
        processing_class=moon.processor,
    )  # fmt: skip
    plain.current_gradient_accumulation_steps = 1
    same, dtype = as_trl(trainer, gained), resolve(recipe.precision, moon.device)

    def their_step() -> None:
        theirs.zero_grad(set_to_none=True)
        with computing_in(dtype, theirs):
            loss = plain._compute_loss(theirs, same)
        loss.backward()

    rows = {"rollouts": len(written), "tokens": int(same["completion_mask"].sum())}
    return our_step, their_step, rows | {"aim": "≤ 1.15 (ours to theirs)"}


def as_trl(trainer: JointTrainer, gained: torch.Tensor) -> dict[str, Any]:
    """The rollouts of a step as TRL's own batches have them: prompts padded on the left, a picture a row."""
    rollouts, per = trainer.rollouts, trainer.recipe.rollouts
    moon = trainer.moon
    prepare, patches, grids = moon.prepare, rollouts.draw.pictures.patches, rollouts.draw.pictures.grids
    counts = prepare.image_tokens(grids)
    batch = prepare.batch(
        [text for text, _ in rollouts.shown],
        [[counts[place] for place in places] for _, places in rollouts.shown],
        [[prepare.think]] * len(rollouts.shown),
    )
    shift = batch.input_ids.shape[1] - batch.attention.sum(1)
    ids, kept, kinds = (
        torch.stack([row.roll(int(by)) for row, by in zip(tensor, shift, strict=True)]).repeat_interleave(
            per, 0
        )
        for tensor in (batch.input_ids, batch.attention.long(), batch.image_mask.long())
    )
    places = [place for _, shown in rollouts.shown for _ in range(per) for place in shown]
    pixels = torch.cat([torch.from_numpy(patches[p]) for p in places])
    bodies = [torch.tensor([*body, prepare.end_think]) for body in rollouts.ids]
    written = torch.nn.utils.rnn.pad_sequence(bodies, batch_first=True, padding_value=prepare.pad)
    longest = written.shape[1]
    mask = (torch.arange(longest) < torch.tensor([len(body) for body in bodies])[:, None]).long()
    return {
        "prompt_ids": ids, "prompt_mask": kept, "completion_ids": written,
        "completion_mask": mask, "advantages": gained, "num_items_in_batch": mask.sum(),
        "num_images": [len(shown) for _, shown in rollouts.shown for _ in range(per)],
        "mm_token_type_ids": torch.cat([kinds, kinds.new_zeros(len(kinds), longest)], 1),
        "pixel_values": pixels, "image_grid_thw": torch.from_numpy(grids[places]),
    }  # fmt: skip


# ---- the cold start --------------------------------------------------------------------------------


def cold_start(
    options: argparse.Namespace, folder: Path, everything: bool, **changes: Any
) -> tuple[Side, torch.device]:
    """`options.steps` steps of a cold start; with `everything` rationales and queries too."""
    recipe = Recipe(
        model=options.model, sources=[SourceSpec(feed="shop.jsonl")], out=str(folder / "cold"),
        batch=options.batch, steps=10**6, lr=1e-5, vision_lr=1e-5, precision=options.precision, memory=0,
        report_to=(), **({} if everything else {"sft_weight": 0.0}), **changes,
    )  # fmt: skip
    run = ColdStart(*set_up(recipe, folder))
    kinds = ("direct", "direct", "pair", "direct") if everything else ("direct",)
    optimiser = run.create_optimizer()

    def draw(step: int, share: float) -> Any:
        items = run.sampler.draw(options.batch, random.Random(step))
        return prepare(run.moon, items, kinds[step % len(kinds)], f"0/{step}")

    run.draw = draw  # type: ignore[method-assign]

    def steps() -> None:
        for _, inputs in zip(range(options.steps), run.get_train_dataloader(), strict=False):
            optimiser.zero_grad(set_to_none=True)
            run.training_step(run.model, inputs)
            run.accelerator.clip_grad_norm_(run.model.parameters(), recipe.clip)
            optimiser.step()

    return steps, run.moon.device


def cold_sides(
    options: argparse.Namespace, folder: Path, products: list[Product], everything: bool
) -> tuple[Side, Side, dict[str, Any]]:
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from moonshelf.model.sentence_transformer import MoonModule

    steps, batch = options.steps, options.batch
    ours, device = cold_start(options, folder, everything)
    bf16 = resolve(options.precision, device) == torch.bfloat16
    pairs = Dataset.from_dict(
        {"anchor": [p.title for p in products], "positive": [p.images[0].path for p in products]}
    )
    peer = SentenceTransformer(modules=[MoonModule(MoonModel.from_pretrained(options.model))], device="cpu")

    def theirs() -> None:
        SentenceTransformerTrainer(
            model=peer,
            args=SentenceTransformerTrainingArguments(
                output_dir=str(folder / "st"), max_steps=steps, per_device_train_batch_size=batch,
                learning_rate=1e-5, use_cpu=True, bf16=bf16, report_to=[], save_strategy="no",
                logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
            ),
            train_dataset=pairs,
            loss=MultipleNegativesRankingLoss(peer),
        ).train()  # fmt: skip

    return ours, theirs, {"batch": batch, "steps": steps, "products": batch * steps, "aim": "≥ 1"}


# ---- report ----------------------------------------------------------------------------------------


def show(results: dict[str, Any], console: Console) -> None:
    table = Table("part", "ours", "theirs", "theirs / ours", "95%", "ours / theirs", "aim", "remark")
    for name, r in results.items():
        low, high = r["interval"]
        if name == "joint":
            sides = [f"{r[side]:.2f} s a step" for side in ("ours_s", "theirs_s")]
            remark = f"{r['rollouts']} rollouts, {r['tokens']} tokens"
        else:
            sides = [f"{r['products'] / r[side]:.1f} products/s" for side in ("ours_s", "theirs_s")]
            remark = f"{r['steps']} steps of {r['batch']}"
        table.add_row(
            name, *sides, f"{r['ratio']:.2f}", f"{low:.2f}–{high:.2f}",
            f"{1 / r['ratio']:.2f} ({1 / high:.2f}–{1 / low:.2f})", r["aim"], remark,
        )  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="joint,contrast,cold-start", help="parts, with commas between them")
    parser.add_argument("--products", type=int, default=16, help="of a joint step")
    parser.add_argument("--rollouts", type=int, default=4, help="of a product")
    parser.add_argument("--batch", type=int, default=32, help="of the cold start")
    parser.add_argument("--steps", type=int, default=4, help="of the cold start, a repeat")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "auto"), default="float32")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu where others are busy")
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    console, results = Console(width=150), dict[str, Any]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        products = shop(folder, max(256, 2 * options.batch))
        for part in options.only.split(","):
            with console.status(part), redirect_stdout(None):
                if part == "joint":
                    ours, theirs, facts = joint_sides(options, folder)
                else:
                    ours, theirs, facts = cold_sides(options, folder, products, part == "cold-start")
                results[part] = paired(ours, theirs, options.repeats, CLOCKS[options.clock]) | facts
    console.print(
        f"{options.model}; {options.precision}; {torch.get_num_threads()} threads; {options.clock} clock; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    show(results, console)
    save(options.json, options, results)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
