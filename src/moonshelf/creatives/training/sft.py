"""CoT-SFT of a selector, and what both stages share: adapters, saving, validation.

    L = w_c CE(reasons) + w_a LogLoss(answer, posterior) + w_g order consistency

A step teaches descriptions of single creatives, or comparisons of pairs by the words of their descriptions,
each pair in both orders. Reasons are the annotated ones (for drawn pairs: those that follow from the
construction); a pair without any is compared after what the model says of its images itself. So are all pairs
of some steps late in the run: an answer that has only ever followed perfect reasons is too sure of itself
after its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moonshelf.creatives.backends.model import (
    ADAPTER,
    CreativeConfig,
    CreativeModel,
    load_base,
    write_config,
)
from moonshelf.creatives.evaluation.explanations import question_figures
from moonshelf.creatives.labels import stratum
from moonshelf.creatives.prompt import INSTRUCTION, write_assessment, write_description
from moonshelf.creatives.selector import fit_temperature, judge, mean_probability
from moonshelf.creatives.training.data import (
    NO_INTEREST,
    Example,
    PairRow,
    draw,
    load_examples,
    make_descriptions,
    make_pair_rows,
)
from moonshelf.creatives.training.policy import (
    VerdictPolicy,
    answer_loss,
    comparisons,
    label_targets,
    order_gap,
    reasons_loss,
    wholly,
)
from moonshelf.creatives.training.recipe import SftRecipe
from moonshelf.errors import UserError
from moonshelf.model import files
from moonshelf.model.precision import resolve
from moonshelf.training import adapters, quiet_dependencies
from moonshelf.training.adapters import merged_state, targets
from moonshelf.training.data import say
from moonshelf.training.recipe import Lora
from moonshelf.training.trainer import StageTrainer, summary, this_process

EXAMPLES_FOR_TOKENS = 2000
WORDS_ONLY = 2  # pairs compared by words alone for one that is looked at, at about the same cost


class SelectorTrainer(StageTrainer):
    """What both stages share: validation, and the folder of the best selector."""

    creative: CreativeModel
    examples: list[Example]

    def measure(self) -> dict[str, Any]:
        figures, temperature = validate(self.creative, self.eval_dataset)
        # What is exported, if this is the best one so far, has its own temperature.
        self.creative.config = self.creative.config.model_copy(update={"temperature": round(temperature, 4)})
        return figures

    def export(self) -> None:
        export(self.creative, self.out / "checkpoint")

    def pair_rows(self, examples: Sequence[Example], turn: int, shown: bool = True) -> list[PairRow]:
        """Both orders of some pairs, as `make_pair_rows` draws them for a turn."""
        recipe = self.recipe
        return make_pair_rows(
            self.creative, examples, f"{recipe.seed}/{turn}", NO_INTEREST, recipe.no_overlays,
            recipe.distractors, shown=shown,
        )  # fmt: skip

    def descriptions(self, examples: Sequence[Example], turn: int) -> list[PairRow]:
        """Each creative of some pairs alone, as `make_descriptions` draws them for a turn."""
        recipe, key = self.recipe, f"{self.recipe.seed}/{turn}"
        return make_descriptions(self.creative, examples, key, recipe.no_overlays, recipe.distractors)

    def turn(self, step: int) -> int:
        """Processes take parts of the schedule in turn."""
        return step * self.accelerator.num_processes + self.accelerator.process_index


class SftTrainer(SelectorTrainer):
    """One process's share: `recipe.pairs` pairs a step, each in both orders."""

    def __init__(
        self, creative: CreativeModel, recipe: SftRecipe, examples: list[Example],
        validation: Sequence[Example] = (),
    ) -> None:  # fmt: skip
        self.creative, self.examples = creative, examples
        policy = VerdictPolicy(creative, resolve(recipe.precision, creative.moon.device))
        super().__init__(policy, recipe, validation)

    def draw(self, step: int, share: float) -> tuple[str, list[PairRow]]:
        """What the step teaches, and its rows."""
        recipe, first = self.recipe, self.turn(step)
        examples = draw(self.examples, recipe.pairs, recipe.seed, first)
        every = recipe.describe_every
        if step < recipe.describe_steps or (every and step % every == 0):
            return "describe", self.descriptions(examples, first)
        turn = step - step // every - 1 if every else step  # among the steps of pairs
        own = share >= recipe.self_generated_from and turn % recipe.self_generated_every == 0
        if not own:  # compared by words alone, where reasons are known
            more = draw(self.examples, WORDS_ONLY * recipe.pairs, recipe.seed, first)
            told = [example for example in more if example.pair.assessment is not None]
            own, examples = not told, told or examples
        return "compare", self.pair_rows(examples, first, shown=own)

    def losses(self, batch: tuple[str, list[PairRow]]) -> dict[str, Tensor]:
        recipe, (kind, rows) = self.recipe, batch
        if kind == "describe":
            taught = [wholly(row, self.creative.moon.prepare.end_think) for row in rows]
        else:
            # Only what follows from words is taught here: evidence is learnt with its one image in sight.
            own = [i for i, row in enumerate(rows) if row.pictures]
            forms, picked = comparisons(self.model, rows, own)
            taught = label_targets(rows, forms, picked, [row.known for row in rows])
        scored = self.module(taught)
        terms = {"reasons": reasons_loss(scored.logps, [len(one.tokens) for one in taught])}
        if kind == "compare":
            terms["answer"] = answer_loss(scored.answers, [row.target for row in rows])
            terms["gap"] = recipe.order_weight * order_gap(scored.answers)
        self.accelerator.backward(torch.stack(list(terms.values())).sum())
        return terms


def open_pairs(recipe: Any, data: Path) -> tuple[list[Example], list[Example]]:
    """Pairs to train on, and those kept back to validate with; says what each source holds."""
    examples = []
    for source in recipe.sources:
        found = load_examples(source, data)
        kinds = [stratum(example.target) for example in found]
        shares = ", ".join(f"{kinds.count(k) / len(kinds):.0%} {k}" for k in ("decisive", "weak", "toss-up"))
        told = sum(example.pair.assessment is not None for example in found)
        say(f"{source.feed}: {len(found):,} pairs, {shares}; {told / len(found):.0%} with reasons")
        examples += found
    held_out = load_examples(recipe.validation, data)[: recipe.validation_pairs] if recipe.validation else []
    say(f"validation: {len(held_out):,} pairs")
    return examples, held_out


def train_sft(recipe: SftRecipe, data: Path, dry_run: bool = False) -> Path:
    """Run CoT-SFT; returns the folder of the best selector."""
    quiet_dependencies()
    examples, held_out = open_pairs(recipe, data)
    creative = start(recipe, examples)
    summary(recipe, creative.moon, f"{recipe.pairs} pairs in both orders")
    if not dry_run:
        SftTrainer(creative, recipe, examples, held_out).train()
    return Path(recipe.out) / "checkpoint"


def start(recipe: SftRecipe, examples: Sequence[Example] = ()) -> CreativeModel:
    """The model that CoT-SFT begins with: a backbone with fresh adapters, or a selector to go on from.

    Tokens that the reasons of `examples` use get trained rows of the embedding: the starter has never written
    some of them, and with a frozen embedding it would hardly learn to (docs/experiments.md).
    """
    if recipe.selector:
        return resume_from(recipe, recipe.selector)
    moon = load_base(recipe.base, recipe.download, recipe.precision)
    prompt = recipe.prompt
    if moon.source is None and not prompt.instruction:  # a stock backbone has to be told what to do
        prompt = prompt.model_copy(update={"instruction": INSTRUCTION})
    config = CreativeConfig(
        base=recipe.base if recipe.lora else None,
        base_fingerprint=moon.fingerprint if recipe.lora and moon.source else "",
        prompt=prompt,
        trained_on=recipe.trained_on,
    )
    creative = CreativeModel(moon.to(this_process().device), config)
    return adapt(creative, recipe, tokens=reason_tokens(creative, examples))


def reason_tokens(creative: CreativeModel, examples: Sequence[Example]) -> list[int]:
    """Ids that reasons and answers are made of: of some examples, the labels, and the tags."""
    labels = creative.prompt.labels
    told = [one for e in examples[:EXAMPLES_FOR_TOKENS] if (one := e.pair.assessment) is not None]
    bodies = [write_assessment(one, pair) for one in told for pair in pairwise(labels)]
    bodies += [write_description(one) for one in told]  # whose first word has no space before it
    prepare = creative.moon.prepare
    ids = {token for body in prepare.text_ids(bodies) for token in body}
    return sorted(ids | {*creative.label_ids.values(), *creative.after, prepare.think, prepare.end_think})


def resume_from(recipe: Any, selector: str) -> CreativeModel:
    """A selector with its adapters apart, to be trained on."""
    creative = CreativeModel.from_pretrained(selector, precision=recipe.precision, merge=False)
    creative.moon.to(this_process().device)
    return adapt(creative, recipe, creative.folder)


def adapt(
    creative: CreativeModel, recipe: Any, adapter: Path | None = None, tokens: Sequence[int] = ()
) -> CreativeModel:
    """Adapters as the recipe asks for, or those of `adapter`, to be trained on; frozen parts; light weights.

    The embedding head is not part of a selector and is not trained.
    """
    lora, saved = recipe.lora, adapter is not None and (adapter / ADAPTER).exists()
    if adapter is not None and saved:
        settings = files.read_json(adapter / "adapter_config.json")
        try:
            lora, tokens = Lora(**settings["moonshelf"]), settings.get("trainable_token_indices") or ()
        except (KeyError, TypeError, ValueError):
            raise UserError(f"the adapter in {adapter.name!r} was not trained by this version.") from None
    adapters.adapt(creative.moon, recipe.model_copy(update={"lora": lora}), tokens)
    if lora is not None:
        creative.lora, creative.tokens = lora, list(tokens)
    if adapter is not None and saved:
        load_adapter(creative.moon.backbone, adapter)
    creative.moon.head.requires_grad_(False)
    return creative


@torch.no_grad()
def load_adapter(backbone: torch.nn.Module, folder: Path) -> None:
    """Weights of a saved adapter into the adapters that stand in the backbone."""
    tensors = load_file(folder / ADAPTER)
    for name, parameter in backbone.named_parameters():
        if _adapts(name):
            parameter.copy_(tensors[_file_name(name)])


def _adapts(name: str) -> bool:
    return ".lora_" in name or ".trainable_tokens_delta." in name


def _file_name(name: str) -> str:
    """PEFT's name for a parameter in a file: without the adapter's own name, below `base_model.model`."""
    return "base_model.model." + name.replace(".default.", ".").removesuffix(".default")


def export(creative: CreativeModel, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a selector's folder: the adapter in PEFT's layout, or the whole model, and `creative.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = creative.config
    if creative.lora is not None and config.base is not None:
        tensors = {
            _file_name(name): p.detach().to(dtype).contiguous().cpu()
            for name, p in creative.moon.backbone.named_parameters()
            if _adapts(name)
        }
        save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
        lora = creative.lora
        settings = {
            "peft_type": "LORA", "task_type": None, "base_model_name_or_path": config.base, "r": lora.r,
            "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "bias": "none", "inference_mode": True,
            "target_modules": targets(lora), "moonshelf": lora.model_dump(),
            "trainable_token_indices": creative.tokens or None,
        }  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    else:
        creative.moon.save_pretrained(folder, state=merged_state(creative.moon))
        config = config.model_copy(update={"base": None, "base_fingerprint": ""})
    write_config(folder, config)


def validate(creative: CreativeModel, examples: list[Example]) -> tuple[dict[str, Any], float]:
    """Figures on held-out pairs, for choosing a checkpoint only, and the temperature that suits these pairs.

    `score` is one minus the log loss at that temperature, as the chosen checkpoint will have it: at
    temperature 1 an early, timid checkpoint beats a later one that knows more.
    Abstentions count as they would have been decided: a checkpoint must not gain by saying nothing.
    """
    judged = judge(creative, [example.pair for example in examples], temperature=1.0, near_half=0.0)
    both = [(j, e) for j, e in zip(judged, examples, strict=True) if (j.p_first, j.p_second) != (0.5, 0.5)]
    if not both:
        return {"score": 0.0, "answered": 0.0}, 1.0
    temperature, loss = fit_temperature(judged, [example.target for example in examples])
    right = [
        (mean_probability(j.p_first, 1 - j.p_second) > 0.5) == (e.target > 0.5)
        for j, e in both
        if stratum(e.target) == "decisive"
    ]
    figures = {
        "validation": len(examples),
        "score": round(1 - loss, 4),
        "accuracy, decisive": round(fmean(right), 4) if right else None,
        "decisive": len(right),
        "flipped": round(fmean(j.flipped for j, _ in both), 4),
        "valid": round(fmean(j.assessment is not None and j.mirrored is not None for j, _ in both), 4),
    }
    answers = question_figures([example.pair for example in examples], judged)
    return figures | {f"right {one.name}": round(one.value or 0.0, 3) for one, _ in answers}, temperature
