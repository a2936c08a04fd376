"""CoT-SFT of a selector, and what both stages share: adapters, saving, validation.

    L = w_c CE(reasons) + w_a LogLoss(answer, posterior) + w_g Gap(orders)

Every pair is in the batch in both orders. Reasons are the annotated ones (for drawn pairs: those that follow
from the construction); a pair without any is taught by its answer alone, after reasons that the model wrote
itself. So are all pairs of some steps late in the run: an answer that has only ever followed perfect reasons
is too sure of itself after its own. Some steps answer at once, without reasons: the fast mode, and the
comparison that says what reasons are worth. The trainer is Hugging Face's; what is here is the loss.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainingArguments

from moonshelf.creatives.backends.model import (
    ADAPTER,
    CreativeConfig,
    CreativeModel,
    load_base,
    write_config,
)
from moonshelf.creatives.data import Example, Work, draw, load_examples, make_descriptions, make_work
from moonshelf.creatives.labels import stratum
from moonshelf.creatives.policy import (
    VerdictPolicy,
    answer_loss,
    comparisons,
    label_targets,
    order_gap,
    reasons_loss,
)
from moonshelf.creatives.prompt import INSTRUCTION, write_assessment, write_description
from moonshelf.creatives.recipe import SftRecipe
from moonshelf.creatives.selector import fit_temperature, judge, mean_probability
from moonshelf.errors import UserError
from moonshelf.model import files
from moonshelf.model.precision import resolve
from moonshelf.training.adapters import add_lora, freeze, lighten, merged_state, targets
from moonshelf.training.recipe import Lora
from moonshelf.training.tracking import Tracker, quiet_dependencies
from moonshelf.training.trainer import Budgeted, Clock, Tally, Watch, last_checkpoint, trainer_arguments

EXAMPLES_FOR_TOKENS = 2000
WORDS_ONLY = 2  # pairs compared by words alone for one that is looked at, at about the same cost


class SftTrainer(Budgeted, Trainer):
    """One process's share: `recipe.pairs` pairs a step, each in both orders."""

    def __init__(self, policy: VerdictPolicy, recipe: SftRecipe, examples: list[Example]) -> None:
        self.policy, self.recipe, self.examples = policy, recipe, examples
        self.clock, self.tally = Clock(), Tally()
        self._terms: dict[str, float] = {}
        arguments = TrainingArguments(
            **trainer_arguments(recipe),
            per_device_train_batch_size=recipe.pairs,
            train_sampling_strategy="sequential",
        )
        slots = Dataset.from_dict({"slot": range(recipe.steps * recipe.pairs * arguments.world_size)})
        super().__init__(model=policy, args=arguments, train_dataset=slots, data_collator=_slots)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        recipe, step = self.recipe, self.state.global_step
        first = int(inputs["slots"][0]) // recipe.pairs  # processes take slices of the schedule in turn
        examples = draw(self.examples, recipe.pairs, recipe.seed, first)
        every = recipe.describe_every
        if step < recipe.describe_steps or (every and step % every == 0):
            work = make_descriptions(
                self.policy.creative, examples, f"{recipe.seed}/{first}", recipe.no_overlays, recipe.asides
            )
            scored = model(work, range(len(work.bodies)), work.bodies)
            return self._loss(reasons=reasons_loss(scored.logps, [len(body) + 1 for body in work.bodies]))
        turn = step - step // every - 1 if every else step  # among the steps of pairs
        described = self.policy.creative.prompt.describe_first
        direct = not described and turn % recipe.direct_every == recipe.direct_every - 1
        own = self.share(step) >= recipe.own_from and turn % recipe.own_every == 0
        if described and not own:  # compared by words alone, where reasons are known
            more = draw(self.examples, WORDS_ONLY * recipe.pairs, recipe.seed, first)
            told = [example for example in more if example.pair.assessment is not None]
            own, examples = not told, told or examples
        work = make_work(
            self.policy.creative, examples, f"{recipe.seed}/{first}", recipe.no_interest,
            recipe.no_overlays, recipe.asides, taught=not (direct or own), shown=own or not described,
        )  # fmt: skip
        rows = range(len(work.asks))
        if direct:
            scored = model(work, rows, work.bodies)
            counts = [0] * len(rows)
        elif described:
            # Only what follows from words is taught here: evidence is learnt with its one image in sight.
            form, picked = comparisons(
                self.policy, work, [i for i, body in enumerate(work.bodies) if not body]
            )
            bodies, wanted = label_targets(form, picked, work.known)
            scored = model(replace(work, places=[()] * len(rows)), rows, bodies, wanted)
            counts = [len(one.tokens) for one in wanted]
        else:
            scored = model(work, rows, self._completed(work))
            counts = [len(body) + 1 if body else 0 for body in work.bodies]
        return self._loss(
            reasons=reasons_loss(scored.logps, counts),
            answer=answer_loss(scored.answers, work.targets),
            gap=order_gap(scored.answers),
        )

    def _completed(self, work: Work) -> list[list[int]]:
        """Bodies, those that are not taught written by the model itself."""
        bodies, untaught = list(work.bodies), [i for i, body in enumerate(work.bodies) if not body]
        if untaught:
            self.policy.eval()
            written = self.policy.write(_part(work, untaught))
            self.policy.train()
            for i, reasons in zip(untaught, written, strict=True):
                bodies[i] = reasons.ids
        return bodies

    def _loss(self, **terms: Tensor) -> Tensor:
        recipe = self.recipe
        weights = {"reasons": recipe.cot_weight, "answer": recipe.answer_weight, "gap": recipe.gap_weight}
        self._terms = {name: float(term.detach()) for name, term in terms.items()}
        return self._finite(torch.stack([weights[name] * term for name, term in terms.items()]).sum())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        # a step that teaches no reasons has a loss of minus zero
        super().log({**logs, **{k: round(v, 4) + 0.0 for k, v in self._terms.items()}}, *args, **kwargs)


def _slots(rows: list[dict[str, int]]) -> dict[str, Any]:
    return {"slots": torch.tensor([row["slot"] for row in rows])}


def _part(work: Work, rows: list[int]) -> Work:
    return replace(work, asks=[work.asks[i] for i in rows], places=[work.places[i] for i in rows])


def train_sft(recipe: SftRecipe, data: Path) -> Path:
    """Run CoT-SFT; returns the folder of the best selector."""
    quiet_dependencies()
    examples = [example for source in recipe.sources for example in load_examples(source, data)]
    creative = start(recipe, examples)
    policy = VerdictPolicy(creative, resolve(recipe.precision, creative.moon.device))
    trainer = SftTrainer(policy, recipe, examples)
    return run(trainer, recipe, creative, data, "CoT-SFT")


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
    creative = CreativeModel(moon.to(PartialState().device), config)
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
    creative.moon.to(PartialState().device)
    return adapt(creative, recipe, creative.folder)


def adapt(
    creative: CreativeModel, recipe: Any, adapter: Path | None = None, tokens: Sequence[int] = ()
) -> CreativeModel:
    """Adapters as the recipe asks for, or those of `adapter`, to be trained on; frozen parts; light weights.

    The embedding head is not part of a selector and is not trained.
    """
    moon, lora = creative.moon, recipe.lora
    freeze(moon, recipe.freeze)
    if adapter is not None and (adapter / ADAPTER).exists():
        settings = files.read_json(adapter / "adapter_config.json")
        try:
            lora, tokens = Lora(**settings["moonshelf"]), settings.get("trainable_token_indices") or ()
        except (KeyError, TypeError, ValueError):
            raise UserError(f"the adapter in {adapter.name!r} was not trained by this version.") from None
    if lora is not None:
        add_lora(moon, lora, tokens)
        creative.lora, creative.tokens = lora, list(tokens)
        if adapter is not None:
            load_adapter(moon.backbone, adapter)
    moon.head.requires_grad_(False)
    if recipe.checkpointing:
        moon.backbone.gradient_checkpointing_enable()
    if recipe.precision != "float32":
        lighten(moon)
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


def run(trainer: Any, recipe: Any, creative: CreativeModel, data: Path, name: str) -> Path:
    """Train to the end of the budget, with validation, log and checkpoints; returns the best one's folder."""
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(recipe.model_dump_json(indent=1))
    held_out: list[Example] = []
    if recipe.validation:
        held_out = load_examples(recipe.validation, data)[: recipe.validation_pairs]
    _, resumed = last_checkpoint(out / "trainer")
    tracker = Tracker(out, recipe.report_to, recipe.model_dump(mode="json"), out.name, resumed_step=resumed)

    def measure() -> dict[str, Any]:
        trainer.policy.eval()
        figures, temperature = validate(creative, held_out)
        trainer.policy.train()
        # What is exported, if this is the best one so far, has its own temperature.
        creative.config = creative.config.model_copy(update={"temperature": round(temperature, 4)})
        return figures

    watch = Watch(
        trainer, tracker, name, measure if held_out else None, lambda: export(creative, out / "checkpoint")
    )
    count = sum(p.numel() for p in trainer.policy.parameters() if p.requires_grad)
    print(
        f"{len(trainer.examples):,} pairs, {len(held_out):,} to validate; {count / 1e6:.1f} M weights trained"
    )
    trainer.policy.train()
    watch.train(out / "trainer")
    return out / "checkpoint"


def calibrate(folder: Path, examples: Sequence[Example]) -> float:
    """Fit the temperature of a saved selector on validation pairs and write it into its `creative.json`."""
    creative = CreativeModel.from_pretrained(folder)
    judged = judge(creative, [example.pair for example in examples], temperature=1.0, near_half=0.0)
    temperature, _ = fit_temperature(judged, [example.target for example in examples])
    config = creative.config.model_copy(update={"temperature": round(temperature, 4)})
    write_config(folder, config)
    return temperature


def validate(creative: CreativeModel, examples: list[Example]) -> tuple[dict[str, Any], float]:
    """Figures on held-out pairs, for choosing a checkpoint only, and the temperature that suits these pairs.

    `score` is one minus the log loss at that temperature, as the chosen checkpoint will have it: at
    temperature 1 an early, timid checkpoint beats a later one that knows more.
    Abstentions count as they would have been decided: a checkpoint must not gain by saying nothing.
    """
    judged = judge(creative, [example.pair for example in examples], temperature=1.0, near_half=0.0)
    asked = [
        (j, e.target) for j, e in zip(judged, examples, strict=True) if (j.p_first, j.p_second) != (0.5, 0.5)
    ]
    if not asked:
        return {"score": 0.0, "answered": 0.0}, 1.0
    p = torch.tensor([mean_probability(j.p_first, 1 - j.p_second) for j, _ in asked])
    q = torch.tensor([target for _, target in asked])
    temperature, loss = fit_temperature(judged, [example.target for example in examples])
    sure = torch.tensor([stratum(float(target)) == "decisive" for target in q])
    right = ((p > 0.5) == (q > 0.5)).float()
    valid = [j.assessment is not None and j.mirrored is not None for j, _ in asked]
    figures = {
        "validation": len(examples),
        "score": round(1 - loss, 4),
        "accuracy, decisive": round(float(right[sure].mean()), 4) if sure.any() else None,
        "decisive": int(sure.sum()),
        "flipped": round(sum(j.flipped for j, _ in asked) / len(asked), 4),
        "valid": round(sum(valid) / len(valid), 4),
        **_questions(judged, examples),
    }
    return figures, temperature


def _questions(judged: Any, examples: list[Example]) -> dict[str, float]:
    """Share of answers to each question that agree with the annotation."""
    right: dict[str, list[bool]] = {}
    for judgement, example in zip(judged, examples, strict=True):
        if judgement.assessment is not None and example.pair.assessment is not None:
            truth = example.pair.assessment
            for finding in judgement.assessment.findings:
                right.setdefault(finding.question, []).append(
                    finding.answer == truth[finding.question].answer
                )
    return {f"right {key}": round(sum(found) / len(found), 3) for key, found in right.items()}
