"""Cold start: the likelihood of the rationale and contrastive learning together, in one set of weights.

    L = w_s SFT(rationale) + w_i InfoNCE(title <-> picture) + InfoNCE(phrase <-> product)
        + InfoNCE(query <-> product) + w_t InfoNCE(title <-> phrase) + w_x InfoNCE(direct <-> reasoned)

Batches come in three kinds (ours). `direct`: titles and phrases meet the picture alone (intra-product), and
teacher-forced rationales are read. `pair`: queries (image, text or both, MOON's mix) meet the full product,
direct. `reasoned`: the model writes the rationales of the batch itself, greedily, with the weights of that
step, and queries and phrases meet the reasoned vectors that follow, and the direct ones; a teacher's
rationale would leak the answer into the vector (RGE). From some of these vectors the picture, or picture and
title, are hidden (ours): one that sees the picture does not learn to read what was written about it. A
picture that queries is never the one that the product shows, and the product's title is often cut or missing,
so that words alone do not solve the batch. Items of past steps are further negatives. The schedule is a share
of the time or step budget, whichever is used up first, so a run on a busy machine still ends with a decayed
learning rate.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter, defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moonshelf.errors import UserError
from moonshelf.model.modeling import MoonModel
from moonshelf.model.precision import computing_in, resolve
from moonshelf.training.adapters import adapt, merged_state
from moonshelf.training.data import (
    Draw,
    Pictures,
    Remembered,
    Sampler,
    SourceSpec,
    load_source,
    open_source,
    spread,
    stream,
    vocabulary_texts,
)
from moonshelf.training.losses import CrossBatchMemory, Labels
from moonshelf.training.objective import (
    Asked,
    Objective,
    TaughtTexts,
    contrast,
    everywhere,
    taught_tokens,
    whole_batch,
)
from moonshelf.training.pairs import Item, leaf
from moonshelf.training.recipe import Recipe
from moonshelf.training.starter import build_starter, build_tokenizer
from moonshelf.training.tracking import Bar, Tracker
from moonshelf.training.validation import validate
from moonshelf.training.views import Views

KEY_WEIGHT = {"category": 8.0, "colour": 8.0}  # of the keys whose values are contrasted; ours
MOST_LABELS = 256
EARLY = ("direct", "direct", "pair", "direct")
LATE = ("direct", "reasoned", "pair", "direct", "reasoned", "direct")


class ColdStart:
    """One run: model, data, optimiser and the loop; resumes from `out` when a checkpoint is there."""

    def __init__(self, recipe: Recipe, data: Path) -> None:
        self.recipe, self.out = recipe, Path(recipe.out)
        self.out.mkdir(parents=True, exist_ok=True)
        # Not every batch uses every part: no rationale enters the fusion of a direct vector.
        self.accelerator = Accelerator(
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
        )
        torch.manual_seed(recipe.seed)
        sources = [open_source(spec, data) for spec in recipe.sources]
        self.sampler = Sampler(sources)
        self.items = [item for source in sources for item in source.items]
        self.validation: list[Item] = []
        if recipe.validation:
            held_out = load_source(SourceSpec(feed=recipe.validation), data)
            self.validation = spread(held_out, recipe.validation_items)
        self.values = values_of_keys(self.items) if recipe.label_weight else {}
        self.texts = read_texts(data / recipe.texts) if recipe.texts else None
        self.queue = CrossBatchMemory(recipe.queue)
        self.step, self.spent, self.best, self.stale = 0, 0.0, -1.0, 0
        self.written: dict[str, tuple[int, list[int]]] = {}  # what the model wrote for an item, and when
        self.model = self._new_model()
        self.model.to(self.accelerator.device)
        self.model.labels = sorted({leaf(item.category) for item in self.items if item.category})
        adapt(self.model, recipe)
        self.remembered = Remembered(recipe.views) if recipe.views else None
        objective = Objective(self.model, recipe, self.remembered)
        self.temperature = objective.temperature
        self.objective, self.optimiser = self.accelerator.prepare(objective, self._optimiser())
        if (self.out / "trainer.safetensors").exists():
            self._resume()

    def _new_model(self) -> MoonModel:
        r = self.recipe
        if r.model:
            return MoonModel.from_pretrained(r.model, download=r.download)
        if r.backbone:
            return MoonModel.from_backbone(
                r.backbone, r.prompt, download=r.download, fusion=r.fusion, fire=r.fire
            )
        tokenizer = build_tokenizer(vocabulary_texts(self.items, r.prompt), r.vocabulary)
        return build_starter(
            tokenizer, hidden=r.hidden, layers=r.layers, vision_hidden=r.vision_hidden,
            vision_depth=r.vision_depth, prompt=r.prompt, tower=Path(r.tower) if r.tower else None,
            seed=r.seed, fusion=r.fusion, fire=r.fire,
        )  # fmt: skip

    def _named(self) -> list[tuple[str, torch.nn.Parameter]]:
        named = [*self.model.named_parameters(), *self.temperature.named_parameters("temperature")]
        return [(name, parameter) for name, parameter in named if parameter.requires_grad]

    def _optimiser(self) -> torch.optim.AdamW:
        r = self.recipe
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self._named():
            head = name.startswith("head.") and r.head_lr is not None
            rate = r.vision_lr if ".visual." in name else (r.head_lr or r.lr) if head else r.lr
            plain = parameter.ndim < 2  # norms, biases, scales and the temperature do not decay
            groups.setdefault((rate, 0.0 if plain else r.weight_decay), []).append(parameter)
        return torch.optim.AdamW(
            [
                {"params": p, "base": rate, "weight_decay": decay}
                for (rate, decay), p in sorted(groups.items(), key=lambda g: g[0])
            ],
            lr=r.lr,
            betas=(0.9, 0.98),
            fused=True,
        )

    # ---- one step --------------------------------------------------------------------------------

    def losses(self, draw: Draw) -> dict[str, Tensor]:
        """Weighted loss terms of a batch, this process's share given; their gradients are accumulated."""
        r, size = self.recipe, self.recipe.chunk or len(draw.items)
        chunks = (
            [draw]
            if len(draw.items) <= size
            else [
                draw.part(start, min(start + size, len(draw.items)))
                for start in range(0, len(draw.items), size)
            ]
        )
        world = self.accelerator.num_processes
        dtype = resolve(r.precision, self.accelerator.device)
        texts = self._draw_texts()
        own = [self._own_rationales(chunk, dtype) for chunk in chunks]
        tokens = max(1, sum(everywhere(sum(taught_tokens(chunk) for chunk in chunks))))

        def read(i: int) -> Any:
            torch.manual_seed(
                (r.seed * 1_000_003 + self.step) * 4099 + i * world + self.accelerator.process_index
            )
            with computing_in(dtype, self.model.backbone):
                return self.objective(chunks[i], own[i], texts if i == 0 else None)

        if len(chunks) == 1:
            outputs = [read(0)]
        else:
            with torch.no_grad():
                outputs = [read(i) for i in range(len(chunks))]
        vectors = {name: torch.cat([o[0][name] for o in outputs]) for name in outputs[0][0]}
        asked = Asked.of(draw)
        leaves, everyone, starts = whole_batch(vectors, asked)
        scale = outputs[0][2].detach().requires_grad_()
        queue = self.queue if self.progress() >= r.queue_from else CrossBatchMemory(0)
        dims, labels = self.model.config.matryoshka, self._draw_labels(everyone.items)
        terms = contrast(draw.kind, leaves, everyone, scale, r, dims, queue, labels)
        torch.stack(list(terms.values())).sum().backward()
        start = starts[self.accelerator.process_index]
        likelihood = torch.zeros((), device=scale.device)
        for i in range(len(chunks)):
            last = i == len(chunks) - 1
            with self.accelerator.no_sync(self.objective) if not last else nullcontext():
                found, written, temperature, taught = outputs[0] if len(chunks) == 1 else read(i)
                # Processes' gradients are averaged; each has the whole batch's with respect to its vectors.
                chained = [
                    (found[name] * world * leaf_.grad[start : start + len(found[name])]).sum()
                    for name, leaf_ in leaves.items()
                    if leaf_.grad is not None
                ]
                total = torch.stack(chained).sum() + r.sft_weight * written * world / tokens
                if texts is not None and i == 0:
                    total = total + r.texts_weight * taught
                    terms["texts"] = r.texts_weight * taught.detach()
                if last and scale.grad is not None:
                    total = total + temperature * scale.grad
                self.accelerator.backward(total)
            likelihood = likelihood + written.detach()
            start += len(chunks[i].items)
        if taught_tokens(draw) and draw.kind != "reasoned":
            terms["sft"] = r.sft_weight * sum(everywhere(float(likelihood))) / torch.tensor(float(tokens))
        self.queue.push(leaves["direct"], everyone.items)
        return {name: term.detach() for name, term in terms.items()}

    def _draw_texts(self) -> TaughtTexts | None:
        """This step's and process's share of the taught texts."""
        if self.texts is None:
            return None
        key = f"{self.recipe.seed}/{self.step}/{self.accelerator.process_index}/texts"
        places = random.Random(key).sample(range(len(self.texts.texts)), self.recipe.texts_batch)
        return self.texts.chosen(places)

    @torch.no_grad()
    def _draw_labels(self, items: list[Item]) -> Labels | None:
        """All values of one key, drawn by how many products state it, with the vectors of their names."""
        if not self.values:
            return None
        rng = random.Random(f"{self.recipe.seed}/{self.step}/labels")
        keys = list(self.values)
        key = rng.choices(keys, [KEY_WEIGHT.get(key, 1.0) for key in keys])[0]
        own = [leaf(item.category) if key == "category" else item.facts.get(key, "") for item in items]
        names = self.values[key]
        if len(names) > MOST_LABELS:
            names = list(dict.fromkeys([*filter(None, own), *rng.sample(names, MOST_LABELS)]))[:MOST_LABELS]
        place = {name: n for n, name in enumerate(names)}
        emb, views = self.model.prepare.emb, Views(self.model, Pictures([], np.zeros((0, 3), int), []))
        with computing_in(resolve(self.recipe.precision, self.accelerator.device), self.model.backbone):
            vectors = views.vectors([(ids, [], [emb]) for ids in self.model.prepare.text_ids(names)])
        return Labels(vectors.float(), torch.tensor([place.get(name, -1) for name in own]))

    def _own_rationales(self, draw: Draw, dtype: torch.dtype) -> list[list[int]]:
        """What the model writes for the draw's products now, or wrote at most `refresh` steps ago."""
        if draw.kind != "reasoned":
            return []
        keys = [f"{item.id} {bool(text)}" for item, text in zip(draw.items, draw.shown, strict=True)]
        fresh = {
            k for k in keys if k in self.written and self.step - self.written[k][0] < self.recipe.refresh
        }
        missing = [i for i, key in enumerate(keys) if key not in fresh]
        if missing:
            self.model.eval()
            with torch.no_grad(), computing_in(dtype, self.model.backbone):
                views = Views(self.model, draw.pictures, self.remembered)
                bodies = views.own_rationales([(draw.shown[i], draw.own[i]) for i in missing])
            self.model.train()
            self.written |= {keys[i]: (self.step, body) for i, body in zip(missing, bodies, strict=True)}
        found = [self.written[key][1] for key in keys]
        if self.recipe.refresh == 1:
            self.written.clear()
        return found

    # ---- the loop --------------------------------------------------------------------------------

    def progress(self, step: int | None = None) -> float:
        """Share of the budget that is used up, 0 to 1."""
        share = (self.step if step is None else step) / self.recipe.steps
        if self.recipe.minutes:
            share = max(share, self.spent / (60 * self.recipe.minutes))
        return min(1.0, share)

    def _kind(self, step: int) -> str:
        kinds = LATE if self.progress(step) >= self.recipe.reasoned_from else EARLY
        return kinds[step % len(kinds)]

    def run(self, stop_at: int | None = None) -> MoonModel:
        """Train to the end of the budget, or to step `stop_at`; the best model is in `out/checkpoint`."""
        r, main = self.recipe, self.accelerator.is_main_process
        (self.out / "recipe.json").write_text(r.model_dump_json(indent=1))
        tracker = Tracker(
            self.out, r.report_to if main else (), r.model_dump(mode="json"), self.out.name, self.step
        )
        self._say()
        self.model.train()
        began = time.monotonic() - self.spent
        draws = stream(
            self.model, self.sampler, self._kind, r.batch, first=self.step, seed=r.seed, mix=r.query_mix,
            hide=r.hide, remembered=self.remembered,
            share=(self.accelerator.process_index, self.accelerator.num_processes),
        )  # fmt: skip
        with Bar("cold start", main) as bar:
            for draw in draws:
                share = self.progress()
                if share >= 1 or self.step == stop_at or (r.patience and self.stale >= r.patience):
                    break
                factor = share / r.warmup if share < r.warmup else 0.5 * (1 + math.cos(math.pi * share))
                for group in self.optimiser.param_groups:
                    group["lr"] = group["base"] * max(factor, 0.01)
                self.optimiser.zero_grad(set_to_none=True)
                terms = self.losses(draw)
                if not all(torch.isfinite(term) for term in terms.values()):
                    raise UserError(
                        f"the loss is not finite at step {self.step}: lower lr and start again; "
                        "the last checkpoint is kept."
                    )
                norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), r.clip)
                self.optimiser.step()
                self.step += 1
                self.spent = time.monotonic() - began
                bar.update(self.progress(), self.step, sum(float(term) for term in terms.values()))
                if main and (self.step % 10 == 0 or self.step < 5):
                    tracker.log(self._record(draw.kind, terms, float(norm), share), self.step)
                if self.step % r.validate_every == 0 and self.validation:
                    self._validate(tracker)
                if self.step % r.save_every == 0:
                    self.save()
        if self.step != stop_at:
            if self.validation and self.step % r.validate_every:
                self._validate(tracker)
            self.save()
        tracker.close()
        return self.model.eval()

    def _say(self) -> None:
        """What will be trained, and against how many negatives."""
        if not self.accelerator.is_main_process:
            return
        r, world = self.recipe, self.accelerator.num_processes
        size = sum(parameter.numel() for parameter in self.model.parameters())
        trained = sum(parameter.numel() for _, parameter in self._named())
        told = sum(bool(item.rationale) for item in self.items)
        chunk = f" in chunks of {r.chunk} with gradient caching" if r.chunk and r.chunk < r.batch else ""
        print(
            f"{len(self.items):,} items, {told:,} with attributes; {size / 1e6:.1f} M parameters, "
            f"{trained / 1e6:.1f} M trained in {resolve(r.precision, self.accelerator.device)}\n"
            f"batch of {r.batch}{chunk} over {world} process{'es' * (world > 1)}: "
            f"{r.batch - 1:,} negatives in the batch, {r.queue:,} in the queue"
            + (f"; going on from step {self.step:,}" if self.step else "")
        )
        if not told:
            print("no item has attributes: no rationale is learnt, and phrases are titles.")

    def _record(self, kind: str, terms: dict[str, Tensor], norm: float, share: float) -> dict[str, Any]:
        values = {name: round(float(term), 4) for name, term in terms.items()}
        return {
            "share": round(share, 4), "kind": kind, **values, "norm": round(norm, 3),
            "scale": round(float(self.temperature().detach()), 2), "lr": self.optimiser.param_groups[0]["lr"],
            "seconds": round(self.spent, 1), "rss_mib": round(psutil.Process().memory_info().rss / 2**20),
        }  # fmt: skip

    def _validate(self, tracker: Tracker) -> None:
        """Figures on held-out items; the best model so far is exported."""
        if self.accelerator.is_main_process:
            figures = validate(self.model, self.validation)
            tracker.log(figures, self.step)
            score = figures.get("score", 0.0)
            self.stale = 0 if score > self.best else self.stale + 1
            if score > self.best:
                self.best = score
                self.export()
        self.best, self.stale = everywhere((self.best, self.stale))[0]

    # ---- checkpoints ---------------------------------------------------------------------------------

    def export(self) -> None:
        """A Moonshelf folder of the model as it is, adapters merged, in `out/checkpoint`."""
        self.model.save_pretrained(self.out / "checkpoint", state=merged_state(self.model))

    def save(self) -> None:
        """All that a killed run needs to go on as if it had not been, in one file, replaced atomically."""
        if not self.accelerator.is_main_process:
            return
        if not self.validation:
            self.export()
        named = dict(self._named())
        tensors = {f"parameter {name}": p.detach().contiguous() for name, p in named.items()}
        for name, parameter in named.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"{key} {name}"] = value.contiguous()
        tensors["queue"] = self.queue.vectors
        counters = {"step": self.step, "spent": self.spent, "best": self.best, "stale": self.stale}
        state = {
            "counters": counters,
            "queue": [item.id for item in self.queue.items],
            "written": self.written,
        }
        temporary = self.out / "trainer.tmp"
        save_file(tensors, temporary, metadata={"state": json.dumps(state)})
        temporary.replace(self.out / "trainer.safetensors")

    def _resume(self) -> None:
        named = dict(self._named())
        try:
            with safe_open(self.out / "trainer.safetensors", "pt") as file, torch.no_grad():
                state = json.loads(file.metadata()["state"])
                for name, parameter in named.items():
                    parameter.copy_(file.get_tensor(f"parameter {name}"))
                    moments = ("step", "exp_avg", "exp_avg_sq")
                    if f"step {name}" in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                        found = {key: file.get_tensor(f"{key} {name}") for key in moments}
                        device = parameter.device
                        self.optimiser.state[parameter] = {
                            key: value.to(device) for key, value in found.items()
                        }
                vectors = file.get_tensor("queue")
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise UserError(
                f"{self.out}/trainer.safetensors does not fit this recipe ({error}): give another --out, or "
                "delete the folder to start anew."
            ) from None
        for name, value in state["counters"].items():
            setattr(self, name, value)
        self.written = {key: (step, body) for key, (step, body) in state["written"].items()}
        by_id = {item.id: item for item in self.items}
        kept = [i for i, name in enumerate(state["queue"]) if name in by_id]
        if kept:
            self.queue.push(
                vectors[kept].to(self.accelerator.device), [by_id[state["queue"][i]] for i in kept]
            )


def values_of_keys(items: list[Item]) -> dict[str, list[str]]:
    """The values of each key that enough products state, category names among them."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        for key, value in {**item.facts, "category": leaf(item.category)}.items():
            counts[key][value] += 1
    known = {key: sorted(v for v, n in found.items() if v and n >= 3) for key, found in counts.items()}
    return {key: names for key, names in known.items() if len(names) > 4}


def read_texts(path: Path) -> TaughtTexts:
    """Texts, vectors (kept as float16) and, where there is such a column, rationales of a Parquet file."""
    if not path.is_file():
        raise UserError(f"texts: {path} is not there: research/starter/teach_words.py writes such a file.")
    told = "rationale" in pq.read_schema(path).names
    table = pq.read_table(path, columns=["text", "vector", *["rationale"] * told])
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors = torch.from_numpy(np.array(flat, np.float16).reshape(len(table), -1))
    rationales = table["rationale"].to_pylist() if told else [""] * len(table)
    return TaughtTexts(table["text"].to_pylist(), vectors, rationales)


def train_cold_start(recipe: Recipe, data: Path) -> Path:
    """Run a cold start and return the folder of the trained model."""
    run = ColdStart(recipe, data)
    run.run()
    return run.out / "checkpoint"
