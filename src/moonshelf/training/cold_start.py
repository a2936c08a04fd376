"""Cold start: the likelihood of the rationale and contrastive learning together, in one set of weights.

    L = w_s SFT(rationale) + InfoNCE(title <-> picture) + InfoNCE(phrase <-> product)
        + InfoNCE(query <-> product) + w_t InfoNCE(title <-> phrase) + w_x InfoNCE(direct <-> reasoned)

Batches come in three kinds (ours). `direct`: titles and phrases meet the picture alone (intra-product), and
teacher-forced rationales are read. `pair`: queries (image, text or both, MOON's mix) meet the full product,
direct. `reasoned`: the model writes the rationales of the batch itself, greedily, with the weights of that
step, and queries and phrases meet the reasoned vectors that follow, and the direct ones; a teacher's
rationale would leak the answer into the vector (RGE). A picture that queries is never the one that the
product shows, and the product's title is often cut or missing, so that words alone do not solve the batch.
Items of past steps are further negatives. The schedule is a share of the time or step budget, whichever is
used up first, so a run on a busy machine still ends with a decayed learning rate.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from moonshelf.errors import UserError
from moonshelf.model.engine import encode
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product
from moonshelf.prompts import read_rationale
from moonshelf.training.contrastive import Queue, Temperature, info_nce
from moonshelf.training.data import (
    Draw,
    Sampler,
    SourceSpec,
    answered,
    load_source,
    same,
    spread,
    stream,
    vocabulary_texts,
)
from moonshelf.training.pairs import Item, leaf
from moonshelf.training.precision import computing_in, resolve
from moonshelf.training.recipe import Recipe
from moonshelf.training.starter import build_starter, build_tokenizer
from moonshelf.training.views import View, Views

EARLY = ("direct", "direct", "pair", "direct")
LATE = ("direct", "reasoned", "pair", "direct", "reasoned", "direct")


class ColdStart:
    """One run: model, data, optimiser and the loop; resumes from `out` when a checkpoint is there."""

    def __init__(self, recipe: Recipe, data: Path) -> None:
        self.recipe, self.out = recipe, Path(recipe.out)
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(recipe.seed)
        sources = [(load_source(spec, data), spec.weight) for spec in recipe.sources]
        self.items = [item for items, _ in sources for item in items]
        self.validation: list[Item] = []
        if recipe.validation:
            held_out = load_source(SourceSpec(feed=recipe.validation), data)
            self.validation = spread(held_out, recipe.validation_items)
        self.sampler = Sampler(sources)
        self.temperature, self.queue = Temperature(), Queue(recipe.queue)
        self.step, self.spent = 0, 0.0
        self.stop_at: int | None = None  # stop here as if killed after a save: tests of resuming
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
            fused=True,
        )

    # ---- losses ----------------------------------------------------------------------------------

    def losses(self, draw: Draw, rng: random.Random) -> dict[str, Tensor]:
        """Weighted loss terms of one batch; the product side joins the queue."""
        r, model, items = self.recipe, self.model, draw.items
        views, emb = Views(model, draw.pixels), model.prepare.emb
        scale, dims = self.temperature(), model.config.matryoshka
        twins, told = same(items, items), answered(draw.phrases, items, items)
        past = self.queue.items if self.progress() >= r.queue_from else []
        past_twins, past_told = same(items, past), answered(draw.phrases, items, past)

        def nce(a: Tensor, b: Tensor, mask: Tensor, past_mask: Tensor | None = None) -> Tensor:
            beyond = self.queue.vectors if past and past_mask is not None else None
            return info_nce(a, b, scale, mask, dims, beyond=beyond, beyond_same=past_mask)

        phrases = views.vectors([(ids, [], [emb]) for ids in draw.phrase_ids])
        if draw.kind == "direct":
            titles = views.vectors([(ids, [], [emb]) for ids in draw.titles])
            direct = views.vectors([([], own[:1], [emb]) for own in draw.own])
            terms = {
                "title": nce(titles, direct, twins, past_twins),
                "phrase": nce(phrases, direct, told, past_told),
                "text": r.text_weight * nce(phrases, titles, told),
                "sft": r.sft_weight * views.likelihood(self._taught(draw, rng)),
            }
            self.queue.push(direct, items)
            return terms
        shown = list(zip(draw.shown, draw.own, strict=True))
        direct = views.vectors([(*row, [emb]) for row in shown])
        seen = [view if query.picture else [] for query, view in zip(draw.queries, draw.view, strict=True)]
        queries = views.vectors([(t, p, [emb]) for t, p in zip(draw.query_ids, seen, strict=True)])
        asked, past_asked = (answered(draw.queries, items, others) for others in (items, past))
        terms = {
            "query": nce(queries, direct, asked, past_asked),
            "phrase": nce(phrases, direct, told, past_told),
        }
        if draw.kind == "reasoned":
            think, end = model.prepare.think, model.prepare.end_think
            own = views.own_rationales(shown)
            reasoned = views.vectors(
                [(*row, [think, *body, end, emb]) for row, body in zip(shown, own, strict=True)]
            )
            terms["query"] = (terms["query"] + nce(queries, reasoned, asked, past_asked)) / 2
            terms["phrase"] = (terms["phrase"] + nce(phrases, reasoned, told, past_told)) / 2
            terms["cross"] = r.cross_weight * nce(direct, reasoned, twins)
        else:
            terms["sft"] = r.sft_weight * views.likelihood(self._taught(draw, rng))
        self.queue.push(direct, items)
        return terms

    def _taught(self, draw: Draw, rng: random.Random) -> list[View]:
        """Rows with a teacher's rationale, over a mix of what the model is shown."""
        prepare = self.model.prepare
        rows: list[View] = []
        for i, body in enumerate(draw.bodies):
            text, pictures, drawn = draw.titles[i], draw.own[i], rng.random()
            if drawn < 0.4:
                text = []
            elif drawn > 0.85 and text:
                pictures, body = [], draw.known[i]
            body = body[: self.model.prompt.max_rationale_tokens]
            rows.append((text, pictures, [prepare.think, *body, prepare.end_think, prepare.emb]))
        return rows

    def progress(self) -> float:
        """Share of the budget that is used up, 0 to 1."""
        share = self.step / self.recipe.steps
        if self.recipe.minutes:
            share = max(share, self.spent / (60 * self.recipe.minutes))
        return min(1.0, share)

    def _kind(self, step: int) -> str:
        late = self.progress() >= self.recipe.reasoned_from
        kinds = LATE if late else EARLY
        return kinds[step % len(kinds)]

    def run(self) -> MoonModel:
        """Train to the end of the budget; returns the model, saved in `out/checkpoint`."""
        r = self.recipe
        (self.out / "recipe.json").write_text(r.model_dump_json(indent=1))
        size = sum(p.numel() for p in self.model.parameters())
        print(f"{len(self.items)} items, {size / 1e6:.1f} M parameters")
        self.model.train()
        began = time.monotonic() - self.spent
        dtype = resolve(r.precision, self.model.device)
        draws = stream(
            self.model, self.sampler, self._kind, r.batch, first=self.step, seed=r.seed, mix=r.query_mix
        )
        for draw in draws:
            share = self.progress()
            if share >= 1:
                break
            factor = share / r.warmup if share < r.warmup else 0.5 * (1 + math.cos(math.pi * share))
            for group in self.optimiser.param_groups:
                group["lr"] = group["base"] * max(factor, 0.01)
            torch.manual_seed(r.seed * 1_000_003 + self.step)  # a resumed run drops out what it would have
            with computing_in(dtype, self.model.backbone):
                terms = self.losses(draw, random.Random(f"{r.seed}/{self.step}/losses"))
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
            if self.step == self.stop_at:
                return self.model.eval()
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


def _ranks(scores: Tensor) -> Tensor:
    """How many wrong columns score at least as high as the diagonal: pessimistic ties, (n,) int64."""
    own = scores.diagonal()[:, None]
    return (scores >= own).sum(1) - 1


def train(recipe: Recipe, data: Path) -> Path:
    """Run a cold start and return the folder of the trained model."""
    run = ColdStart(recipe, data)
    run.run()
    return run.out / "checkpoint"
