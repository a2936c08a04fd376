"""Cold start: the likelihood of the rationale and contrastive learning together, in one set of weights.

    L = w_s SFT(rationale) + InfoNCE(title <-> picture) + InfoNCE(phrase <-> picture)
        + w_t InfoNCE(title <-> phrase) + w_x InfoNCE(direct <-> reasoned)

Batches come in three kinds (ours). `direct`: direct vectors of picture and text, and teacher-forced
rationales. `reasoned`: the model writes the rationales of the batch itself, greedily, with the weights of
that step, and the reasoned vectors that follow meet the texts and the direct vectors; a teacher's rationale
would leak the answer into the vector (RGE). `pair`: two pictures of one product meet. The visual features
of a batch are computed once and shared by all its views. The schedule is a share of the time or step
budget, whichever is used up first, so a run on a busy machine still ends with a decayed learning rate.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from moonshelf.errors import UserError
from moonshelf.model.engine import encode, write
from moonshelf.model.modeling import MoonModel
from moonshelf.model.processing import Batch
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec, read_rationale
from moonshelf.training.contrastive import Temperature, info_nce
from moonshelf.training.data import Draw, Sampler, SourceSpec, load_source, spread, stream, vocabulary_texts
from moonshelf.training.pairs import Item, leaf
from moonshelf.training.starter import build_starter, build_tokenizer

View = tuple[list[int], list[int], Sequence[int]]  # token ids of the text, places of pictures, tail


class Recipe(BaseModel):
    """A cold-start run. Every field is also a flag of `moonshelf train`."""

    model_config = ConfigDict(extra="forbid")

    stage: str = "cold-start"
    backbone: str | None = None  # folder or hub id of a Qwen-VL; None builds a starter
    tower: str | None = None  # weights for a new starter's vision tower
    sources: list[SourceSpec]
    validation: str | None = None
    out: str = "runs/starter"
    seed: int = 0
    steps: int = Field(default=3000, ge=1)
    minutes: float | None = None  # wall-clock budget; the schedule follows whichever ends first
    batch: int = Field(default=64, ge=2)
    lr: float = 1e-3
    vision_lr: float = 5e-4
    weight_decay: float = 0.05
    warmup: float = 0.03  # share of the budget
    clip: float = 1.0
    sft_weight: float = 1.0  # LREM uses 0.1 on a pretrained model; a starter has yet to learn to write
    text_weight: float = 0.3
    cross_weight: float = 0.5
    reasoned_from: float = 0.25  # share of the budget after which the model's own rationales are used
    vocabulary: int = 6144
    hidden: int = 256
    layers: int = 4
    vision_hidden: int = 192
    vision_depth: int = 6
    fusion: bool = True
    fire: bool = True
    save_every: int = 200
    validate_every: int = 400
    validation_items: int = 400
    prompt: PromptSpec = PromptSpec()


def load_recipe(path: Path, **overrides: Any) -> Recipe:
    """A recipe from YAML with flags on top; a wrong field is one clear `UserError`."""
    try:
        values = yaml.safe_load(path.read_text())
        return Recipe.model_validate({**values, **{k: v for k, v in overrides.items() if v is not None}})
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"recipe {path} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"recipe {path}: field {field!r}: {first['msg']}.") from None


def flags(arguments: Sequence[str]) -> dict[str, Any]:
    """`--field value` pairs of the command line as recipe fields; values are read as YAML."""
    names, values = arguments[::2], arguments[1::2]
    wrong = [name for name in names if not name.startswith("--")]
    if wrong or len(names) != len(values):
        raise UserError(f"{(wrong or names)[-1]!r}: fields of a recipe are given as --field value.")
    return {
        name[2:].replace("-", "_"): yaml.safe_load(value) for name, value in zip(names, values, strict=True)
    }


class ColdStart:
    """One run: model, data, optimiser and the loop; resumes from `out` when a checkpoint is there."""

    def __init__(self, recipe: Recipe, data: Path) -> None:
        self.recipe, self.out = recipe, Path(recipe.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.rng = random.Random(recipe.seed)
        torch.manual_seed(recipe.seed)
        sources = [(load_source(spec, data), spec.weight) for spec in recipe.sources]
        self.items = [item for items, _ in sources for item in items]
        self.validation: list[Item] = []
        if recipe.validation:
            held_out = load_source(SourceSpec(feed=recipe.validation), data)
            self.validation = spread(held_out, recipe.validation_items)
        self.sampler = Sampler(sources, self.rng)
        self.temperature = Temperature()
        self.step, self.spent = 0, 0.0
        checkpoint = self.out / "checkpoint"
        if (checkpoint / "manifest.json").exists():
            self.model = MoonModel.from_pretrained(checkpoint)
        else:
            self.model = self._new_model()
        self.model.labels = sorted({leaf(item.category) for item in self.items if item.category})
        self.optimiser = self._optimiser()
        if (self.out / "trainer.safetensors").exists():
            self._load_trainer()

    def _new_model(self) -> MoonModel:
        r = self.recipe
        if r.backbone:
            return MoonModel.from_backbone(r.backbone, r.prompt, fusion=r.fusion, fire=r.fire)
        tokenizer = build_tokenizer(vocabulary_texts(self.items, r.prompt), r.vocabulary)
        return build_starter(
            tokenizer, hidden=r.hidden, layers=r.layers, vision_hidden=r.vision_hidden,
            vision_depth=r.vision_depth, prompt=r.prompt, tower=Path(r.tower) if r.tower else None,
            seed=r.seed, fusion=r.fusion, fire=r.fire,
        )  # fmt: skip

    def _optimiser(self) -> torch.optim.AdamW:
        r = self.recipe
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        named = itertools.chain(self.model.named_parameters(), self.temperature.named_parameters())
        for name, parameter in named:
            plain = parameter.ndim < 2  # norms, biases, scales and the temperature do not decay
            groups.setdefault((".visual." in name, plain), []).append(parameter)
        return torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "base": r.vision_lr if vision else r.lr,
                    "weight_decay": 0.0 if plain else r.weight_decay,
                }
                for (vision, plain), parameters in sorted(groups.items())
            ],
            lr=r.lr,
            betas=(0.9, 0.98),
        )

    # ---- views -----------------------------------------------------------------------------------

    def _batch(self, rows: Sequence[View], draw: Draw) -> tuple[Batch, list[int]]:
        """Rows of (text ids, places of pictures in the draw, tail); also the pictures in order."""
        prepare = self.model.prepare
        counts = prepare.image_tokens(draw.pixels[1])
        places = [p for _, pictures, _ in rows for p in pictures]
        batch = prepare.batch(
            [text for text, _, _ in rows],
            [[counts[p] for p in pictures] for _, pictures, _ in rows],
            [tail for _, _, tail in rows],
        )
        if places:
            batch.grid = torch.from_numpy(draw.pixels[1][places])
        return batch, places

    def _vectors(self, rows: Sequence[View], draw: Draw, visual: Any) -> tuple[Tensor, Batch, Tensor]:
        """Vectors (B, dim), the batch, and last-layer states, with the visual features computed before."""
        batch, places = self._batch(rows, draw)
        vectors, _, reading = self.model(batch, _pick(visual, places) if places else None)
        return vectors, batch, reading.states

    def _sft(self, draw: Draw, visual: Any, first: list[list[int]]) -> Tensor:
        """Cross-entropy of teacher rationales, over a mix of what the model is shown."""
        prepare = self.model.prepare
        rows = []
        for i in range(len(draw.items)):
            body, shown = draw.bodies[i], self.rng.random()
            text, pictures = draw.titles[i], first[i]
            if shown < 0.4:
                text = []
            elif shown > 0.85 and text:
                pictures, body = [], draw.known[i]
            tail = [
                prepare.think,
                *body[: self.model.prompt.max_rationale_tokens],
                prepare.end_think,
                prepare.emb,
            ]
            rows.append((text, pictures, tail))
        batch, places = self._batch(rows, draw)
        states = self.model.read(batch, _pick(visual, places)).states
        written = batch.rationale_mask[:, 1:] & (batch.input_ids[:, 1:] != prepare.think)
        logits = self.model.logits(states[:, :-1][written])
        return F.cross_entropy(logits, batch.input_ids[:, 1:][written])

    @torch.no_grad()
    def _own_rationales(
        self, rows: Sequence[tuple[list[int], list[int]]], draw: Draw, visual: Any
    ) -> list[list[int]]:
        """Token ids that the model writes for each row now, greedily."""
        think = [self.model.prepare.think]
        batch, places = self._batch([(*row, think) for row in rows], draw)
        reading = self.model.read(batch, _pick(visual, places), use_cache=True)
        bodies = [r.rationale for r in write(self.model, batch, reading)]
        return self.model.prepare.text_ids(
            [b.removeprefix("<think>").removesuffix("</think>") for b in bodies]
        )

    # ---- steps -----------------------------------------------------------------------------------

    def losses(self, draw: Draw) -> dict[str, Tensor]:
        """Weighted loss terms of one batch."""
        r, model, emb = self.recipe, self.model, self.model.prepare.emb
        pixels, grid = (torch.from_numpy(x) for x in draw.pixels)
        visual = model.backbone.model.get_image_features(pixels, grid, return_dict=True)
        pictures: list[list[int]] = [[] for _ in draw.items]
        for place, item in enumerate(draw.owner):
            pictures[item].append(place)
        first = [p[:1] for p in pictures]
        text: list[tuple[list[int], list[int], list[int]]] = [
            ([*ids], [], [emb]) for ids in (*draw.titles, *draw.phrases)
        ]
        texts = self._vectors(text, draw, None)[0]
        titles, phrases = texts[: len(draw.items)], texts[len(draw.items) :]
        scale, dims = self.temperature(), model.config.matryoshka

        def nce(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
            return info_nce(a, b, scale, mask, dims)

        terms = {"text": r.text_weight * nce(phrases, titles, draw.told)}
        if draw.kind == "reasoned":
            both = self.rng.random() < 0.5
            shown = [(draw.titles[i] if both else [], pictures[i]) for i in range(len(draw.items))]
            own = self._own_rationales(shown, draw, visual)
            prepare = model.prepare
            direct = self._vectors([(t, p, [emb]) for t, p in shown], draw, visual)[0]
            reasoned = self._vectors(
                [
                    (t, p, [prepare.think, *body, prepare.end_think, emb])
                    for (t, p), body in zip(shown, own, strict=True)
                ],
                draw,
                visual,
            )[0]
            terms["title"] = 0.5 * (nce(titles, reasoned, draw.same) + nce(titles, direct, draw.same))
            terms["phrase"] = 0.5 * (nce(phrases, reasoned, draw.told) + nce(phrases, direct, draw.told))
            terms["cross"] = r.cross_weight * nce(direct, reasoned, draw.same)
            return terms
        seen = self._vectors([([], p, [emb]) for p in first], draw, visual)[0]
        terms["title"] = nce(titles, seen, draw.same)
        terms["phrase"] = nce(phrases, seen, draw.told)
        if draw.kind == "pair":
            second = self._vectors([([], p[1:] or p, [emb]) for p in pictures], draw, visual)[0]
            terms["pair"] = nce(seen, second, draw.same)
        terms["sft"] = r.sft_weight * self._sft(draw, visual, pictures)
        return terms

    def progress(self) -> float:
        """Share of the budget that is used up, 0 to 1."""
        share = self.step / self.recipe.steps
        if self.recipe.minutes:
            share = max(share, self.spent / (60 * self.recipe.minutes))
        return min(1.0, share)

    def _kinds(self) -> Iterator[str]:
        early = itertools.cycle(("direct", "direct", "direct", "pair"))
        late = itertools.cycle(("direct", "reasoned", "direct", "pair", "direct", "reasoned"))
        while True:
            yield next(early if self.progress() < self.recipe.reasoned_from else late)

    def run(self) -> MoonModel:
        """Train to the end of the budget; returns the model, saved in `out/checkpoint`."""
        r = self.recipe
        (self.out / "recipe.json").write_text(r.model_dump_json(indent=1))
        size = sum(p.numel() for p in self.model.parameters())
        print(f"{len(self.items)} items, {size / 1e6:.1f} M parameters")
        self.model.train()
        began = time.monotonic() - self.spent
        for draw in stream(self.model, self.sampler, self._kinds(), r.batch, self.rng):
            share = self.progress()
            if share >= 1:
                break
            factor = share / r.warmup if share < r.warmup else 0.5 * (1 + math.cos(math.pi * share))
            for group in self.optimiser.param_groups:
                group["lr"] = group["base"] * max(factor, 0.01)
            terms = self.losses(draw)
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                raise UserError(
                    f"the loss is not finite at step {self.step}: lower the learning rate and resume."
                )
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), r.clip)
            self.optimiser.step()
            self.step += 1
            self.spent = time.monotonic() - began
            self._log(draw.kind, terms, float(norm), share)
            if self.step % r.validate_every == 0 and self.validation:
                self._write_log(self.validate())
            if self.step % r.save_every == 0:
                self.save()
        if self.validation:
            self._write_log(self.validate())
        self.save()
        return self.model.eval()

    def _log(self, kind: str, terms: dict[str, Tensor], norm: float, share: float) -> None:
        if self.step % 10 == 0 or self.step < 5:
            values = {name: round(float(term.detach()), 4) for name, term in terms.items()}
            self._write_log(
                {"step": self.step, "share": round(share, 4), "kind": kind, **values, "norm": round(norm, 3),
                 "scale": round(float(self.temperature().detach()), 2), "seconds": round(self.spent, 1)}
            )  # fmt: skip

    def _write_log(self, record: dict[str, Any]) -> None:
        line = json.dumps(record)
        print(line, flush=True)
        with (self.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    @torch.inference_mode()
    def validate(self) -> dict[str, Any]:
        """Title <-> picture retrieval and rationale accuracy from the picture alone, on held-out items."""
        self.model.eval()
        pictures = [Product(id=i.id, images=i.images[:1]) for i in self.validation]
        titles = [Product(id=i.id, title=i.title) for i in self.validation]
        direct, reasoned = (encode(self.model, pictures, mode) for mode in ("off", "on"))
        texts = encode(self.model, titles, "off").vectors
        result: dict[str, Any] = {"step": self.step, "validation": len(pictures)}
        for name, seen in (("direct", direct), ("reasoned", reasoned)):
            ranks = _ranks(torch.from_numpy(texts @ seen.vectors.T))
            result[f"{name} title->photo R@1"] = round(float((ranks < 1).float().mean()), 4)
            result[f"{name} title->photo R@10"] = round(float((ranks < 10).float().mean()), 4)
        read = [read_rationale(text) or {} for text in reasoned.rationales]
        truth = [read_rationale(item.rationale) or {} for item in self.validation]
        for key in ("category", "colour"):
            asked = [(a.get(key), b[key]) for a, b in zip(read, truth, strict=True) if key in b]
            if asked:
                result[f"written {key}"] = round(sum(a == b for a, b in asked) / len(asked), 4)
        result["valid"] = round(reasoned.reasoning_valid_rate, 4)
        result["example"] = reasoned.rationales[0]
        self.model.train()
        return result

    # ---- checkpoints ---------------------------------------------------------------------------------

    def save(self) -> None:
        """Model, optimiser and counters; the trainer's file is replaced last, and atomically."""
        self.model.save_pretrained(self.out / "checkpoint")
        tensors: dict[str, Tensor] = {"log_scale": self.temperature.log_scale.detach().clone()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"{index}.{name}": value.contiguous() for name, value in state.items()}
        temporary = self.out / "trainer.tmp"
        save_file(tensors, temporary, metadata={"step": str(self.step), "spent": str(self.spent)})
        temporary.replace(self.out / "trainer.safetensors")

    def _load_trainer(self) -> None:
        with safe_open(self.out / "trainer.safetensors", "pt") as file:
            self.step, self.spent = int(file.metadata()["step"]), float(file.metadata()["spent"])
            self.temperature.log_scale.data.copy_(file.get_tensor("log_scale"))
            state: dict[int, dict[str, Tensor]] = {}
            for key in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                if key != "log_scale":
                    index, name = key.split(".", 1)
                    state.setdefault(int(index), {})[name] = file.get_tensor(key)
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})


def _pick(visual: Any, places: list[int]) -> Any:
    """Visual features of some pictures of a batch, in the order of `places`; None for none."""
    if not places:
        return None
    chosen = SimpleNamespace(pooler_output=[visual.pooler_output[p] for p in places])
    if hasattr(visual, "deepstack_features"):
        chosen.deepstack_features = [[layer[p] for p in places] for layer in visual.deepstack_features]
    return chosen


def _ranks(scores: Tensor) -> Tensor:
    """How many wrong columns score at least as high as the diagonal: pessimistic ties, (n,) int64."""
    own = scores.diagonal()[:, None]
    return (scores >= own).sum(1) - 1


def train(recipe: Recipe, data: Path) -> Path:
    """Run a cold start and return the folder of the trained model."""
    run = ColdStart(recipe, data)
    run.run()
    return run.out / "checkpoint"
