"""Cold start: the likelihood of the rationale and contrastive learning together, in one set of weights.

    L = w_s SFT(rationale) + w_i InfoNCE(title <-> picture) + InfoNCE(synthetic query <-> product)
        + InfoNCE(query <-> product) + w_t InfoNCE(title <-> synthetic query)
        + w_x InfoNCE(direct <-> reasoned) [+ w_l labels] [+ w_e a sentence encoder's texts]

Batches come in three kinds (ours). `direct`: titles and synthetic queries meet the picture alone
(intra-product), and teacher-forced rationales are read. `pair`: queries (image, text or both, MOON's mix)
meet the full product, direct. `reasoned`: the model writes the rationales of the batch itself, greedily, with
the weights of that step, and queries meet the reasoned vectors that follow, and the direct ones; a teacher's
rationale would leak the answer into the vector (RGE). From some of these vectors the picture, or picture and
title, are hidden (modality dropout, ours): one that sees the picture does not learn to read what was written
about it. A picture that queries is never the one that the product shows, and the product's title is often cut
or missing, so that words alone do not solve the batch. Items of past steps are further negatives.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from accelerate.utils import gather_object
from torch import Tensor

from moonshelf.errors import UserError
from moonshelf.model.modeling import MoonModel
from moonshelf.model.precision import computing_in, resolve
from moonshelf.training.adapters import adapt, merged_state
from moonshelf.training.data import (
    Pictures,
    ProductBatch,
    Remembered,
    Sampler,
    held_out,
    open_sources,
    prepare,
    vocabulary_texts,
)
from moonshelf.training.losses import CrossBatchMemory, Labels
from moonshelf.training.objective import (
    BatchQueries,
    Objective,
    TaughtTexts,
    contrast,
    supervised_tokens,
    whole_batch,
)
from moonshelf.training.recipe import Recipe
from moonshelf.training.sources.pairs import Item, leaf
from moonshelf.training.starter import build_starter, build_tokenizer
from moonshelf.training.trainer import StageTrainer, summary, this_process
from moonshelf.training.validation import validate
from moonshelf.training.views import SharedVisionBatch

KEY_WEIGHT = {"category": 8.0, "colour": 8.0}  # of the keys whose values are contrasted; ours
MOST_LABELS = 256
EARLY = ("direct", "direct", "pair", "direct")
NO_MEMORY = CrossBatchMemory(0)
LATE = ("direct", "reasoned", "pair", "direct", "reasoned", "direct")


class ColdStart(StageTrainer):
    """One run. A batch may be read in chunks (gradient caching), and shared by several processes."""

    betas = (0.9, 0.98)

    def __init__(
        self, moon: MoonModel, recipe: Recipe, sampler: Sampler, validation: Sequence[Item] = (),
        texts: TaughtTexts | None = None,
    ) -> None:  # fmt: skip
        self.moon, self.sampler, self.texts = moon, sampler, texts
        items = [item for pool, _ in sampler.pools for item in pool]
        self.by_id = {item.id: item for item in items}
        self.values = values_of_keys(items) if recipe.label_weight else {}
        self.memory = {name: CrossBatchMemory(recipe.memory) for name in ("products", "titles")}
        self.dtype = resolve(recipe.precision, moon.device)
        self.remembered = Remembered(recipe.views) if recipe.views else None
        super().__init__(Objective(moon, recipe, self.remembered), recipe, validation)

    def draw(self, step: int, share: float) -> ProductBatch:
        """This process's part of a step's batch; what is drawn follows from seed and step alone."""
        kinds = LATE if share >= self.recipe.self_generated_from else EARLY
        kind, key = kinds[step % len(kinds)], f"{self.recipe.seed}/{step}"
        size = max(1, 3 * self.recipe.batch // 4) if kind == "pair" else self.recipe.batch
        items = self.sampler.draw(size, random.Random(key), kind == "pair")
        world, process = self.accelerator.num_processes, self.accelerator.process_index
        start, stop = (len(items) * (process + n) // world for n in (0, 1))
        return prepare(
            self.moon, items[start:stop], kind, key, start, self.sampler.asked, remembered=self.remembered
        )

    def measure(self) -> dict[str, Any]:
        return validate(self.moon, self.eval_dataset)

    def export(self) -> None:
        self.moon.save_pretrained(self.out / "checkpoint", state=merged_state(self.moon))

    # ---- one step --------------------------------------------------------------------------------

    def losses(self, batch: ProductBatch) -> dict[str, Tensor]:
        """Weighted loss terms of a batch, this process's part given; their gradients are accumulated.

        Chunks are read once without a graph, contrasted as one batch of all processes, and read again, each
        with its share of the gradient with respect to the vectors (gradient caching, Gao et al. 2021). One
        chunk is read once.
        """
        r, step, module = self.recipe, self.state.global_step, self.module
        size = r.chunk or len(batch.items)
        starts = range(0, len(batch.items), size)
        chunks = [batch]
        if len(starts) > 1:
            chunks = [batch.part(s, min(s + size, len(batch.items))) for s in starts]
        world, process = self.accelerator.num_processes, self.accelerator.process_index
        texts = self._draw_texts()
        own = [self._write_rationales(chunk) for chunk in chunks]
        tokens = max(1, sum(gather_object([sum(supervised_tokens(chunk) for chunk in chunks)])))

        def read(i: int) -> Any:
            torch.manual_seed((r.seed * 1_000_003 + step) * 4099 + i * world + process)
            with computing_in(self.dtype, self.moon.backbone):
                return module(chunks[i], own[i], texts if i == 0 else None)

        with torch.no_grad() if len(chunks) > 1 else nullcontext():
            outputs = [read(i) for i in range(len(chunks))]
        vectors = {name: torch.cat([o[0][name] for o in outputs]) for name in outputs[0][0]}
        leaves, everyone, firsts = whole_batch(vectors, BatchQueries.of(batch))
        scale = outputs[0][2].detach().requires_grad_()
        memory = self.memory if self.share(step) >= r.memory_from else dict.fromkeys(self.memory, NO_MEMORY)
        labels = self._draw_labels(everyone.items)
        dims = self.moon.config.matryoshka
        terms = contrast(batch.kind, leaves, everyone, scale, r, dims, **memory, labels=labels)
        torch.stack(list(terms.values())).sum().backward()
        start, likelihood = firsts[process], torch.zeros((), device=scale.device)
        for i in range(len(chunks)):
            last = i == len(chunks) - 1
            with nullcontext() if last else self.accelerator.no_sync(module):
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
        if supervised_tokens(batch) and batch.kind != "reasoned":
            whole = torch.tensor(sum(gather_object([float(likelihood)])))
            terms["sft"] = r.sft_weight * whole / tokens
        self.memory["products"].push(leaves["direct"], everyone.items)
        if titled := [i for i, item in enumerate(everyone.items) if item.title and "titles" in leaves]:
            self.memory["titles"].push(leaves["titles"][titled], [everyone.items[i] for i in titled])
        self.figures |= {"kind": batch.kind, "scale": round(float(scale.detach()), 2)}
        return {name: term.detach() for name, term in terms.items()}

    def _draw_texts(self) -> TaughtTexts | None:
        """This step's and process's share of the taught texts."""
        if self.texts is None:
            return None
        key = f"{self.recipe.seed}/{self.state.global_step}/{self.accelerator.process_index}/texts"
        places = random.Random(key).sample(range(len(self.texts.texts)), self.recipe.texts_batch)
        return self.texts.chosen(places)

    @torch.no_grad()
    def _draw_labels(self, items: list[Item]) -> Labels | None:
        """All values of one key, drawn by how many products state it, with the vectors of their names."""
        if not self.values:
            return None
        rng = random.Random(f"{self.recipe.seed}/{self.state.global_step}/labels")
        keys = list(self.values)
        key = rng.choices(keys, [KEY_WEIGHT.get(key, 1.0) for key in keys])[0]
        own = [leaf(item.category) if key == "category" else item.facts.get(key, "") for item in items]
        names = self.values[key]
        if len(names) > MOST_LABELS:
            names = list(dict.fromkeys([*filter(None, own), *rng.sample(names, MOST_LABELS)]))[:MOST_LABELS]
        place = {name: n for n, name in enumerate(names)}
        emb, views = (
            self.moon.prepare.emb,
            SharedVisionBatch(self.moon, Pictures([], np.zeros((0, 3), int), [])),
        )
        with computing_in(self.dtype, self.moon.backbone):
            vectors = views.vectors([(ids, [], [emb]) for ids in self.moon.prepare.text_ids(names)])
        return Labels(vectors.float(), torch.tensor([place.get(name, -1) for name in own]))

    def _write_rationales(self, draw: ProductBatch) -> list[list[int]]:
        """Bodies that the model writes for the draw's products now, greedily."""
        if draw.kind != "reasoned":
            return []
        self.moon.eval()
        with torch.no_grad(), computing_in(self.dtype, self.moon.backbone):
            rows = list(zip(draw.shown, draw.own, strict=True))
            bodies = SharedVisionBatch(self.moon, draw.pictures, self.remembered).write_rationales(rows)
        self.moon.train()
        return bodies

    # ---- checkpoints -----------------------------------------------------------------------------

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"memory.{name}": memory.vectors for name, memory in self.memory.items()}
        return tensors, {f"memory.{n}": [item.id for item in m.items] for n, m in self.memory.items()}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        for name, memory in self.memory.items():
            ids = values.get(f"memory.{name}", [])
            kept = [i for i, item in enumerate(ids) if item in self.by_id]
            if kept:
                vectors = tensors[f"memory.{name}"][kept].to(self.moon.device)
                memory.push(vectors, [self.by_id[ids[i]] for i in kept])


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


def start(recipe: Recipe, items: Sequence[Item]) -> MoonModel:
    """The model to go on from: a finished one, a stock backbone, or a new starter for these items."""
    r = recipe
    torch.manual_seed(r.seed)
    if r.model:
        return MoonModel.from_pretrained(r.model, download=r.download)
    if r.backbone:
        # Set, so that an embedding model, which wrote none so far, gets room for rationales.
        room = {"max_rationale_tokens": r.prompt.max_rationale_tokens}
        return MoonModel.from_backbone(
            r.backbone, r.prompt.model_copy(update=room), download=r.download, fusion=r.fusion, fire=r.fire
        )
    tokenizer = build_tokenizer(vocabulary_texts(items, r.prompt), r.vocabulary)
    return build_starter(
        tokenizer, hidden=r.hidden, layers=r.layers, vision_hidden=r.vision_hidden,
        vision_depth=r.vision_depth, prompt=r.prompt, tower=Path(r.tower) if r.tower else None,
        seed=r.seed, fusion=r.fusion, fire=r.fire,
    )  # fmt: skip


def set_up(recipe: Recipe, data: Path) -> tuple[MoonModel, Recipe, Sampler, list[Item], TaughtTexts | None]:
    """What `ColdStart` takes; says what is trained, and on what."""
    sources = open_sources(recipe, data)
    sampler, validation = Sampler(sources), held_out(recipe, data)
    texts = read_texts(data / recipe.texts) if recipe.texts else None
    items = [item for source in sources for item in source.items]
    moon = start(recipe, items).to(this_process().device)
    moon.labels = sorted({leaf(item.category) for item in items if item.category})
    adapt(moon, recipe)
    chunked = recipe.chunk is not None and recipe.chunk < recipe.batch
    chunks = f" in chunks of {recipe.chunk} with gradient caching" if chunked else ""
    world = this_process().num_processes
    summary(
        recipe, moon,
        f"{recipe.batch} products{chunks} over {world} process{'es' * (world > 1)}: {recipe.batch - 1:,} "
        f"negatives in the batch, {recipe.memory:,} in the memory",
    )  # fmt: skip
    return moon, recipe, sampler, validation, texts


def train_cold_start(recipe: Recipe, data: Path, dry_run: bool = False) -> Path:
    """Run a cold start; returns the folder of the best checkpoint."""
    parts = set_up(recipe, data)
    if not dry_run:
        ColdStart(*parts).train()
    return Path(recipe.out) / "checkpoint"
