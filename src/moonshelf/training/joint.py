"""Joint stage: GRPO over rollouts of the rationale and InfoNCE over the same rollouts, in one step.

    L = w_g GRPO(rollouts) + w_c InfoNCE(query <-> vectors of rollouts, and direct ones)       (LREM's form)

`JointTrainer` is TRL's GRPOTrainer with four things replaced. Rollouts are written by our engine, which
reads each product once for all of its G rollouts and gives their vectors from the same cache. The retrieval
reward ranks a rollout, for its product's own queries, among the other products' rollouts and a queue of past
ones. One forward pass scores the tokens of all rollouts and gives their vectors (see `policy`). And InfoNCE
is added to TRL's loss before its one backward pass. TRL keeps the loss, the KL, the logging, checkpoints, and
Accelerate. A process holds whole groups: the G rollouts of a product are never split.

Choices (ours): a truncated rationale is closed by force, and the closing token takes no gradient; a rollout's
rank is the geometric mean of the ranks of its two queries, a phrase and one of the recipe's mix; other
processes' rollouts are negatives without gradient.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from moonshelf.errors import UserError
from moonshelf.model.engine import Written, repeat_rows, sampling, write
from moonshelf.model.modeling import MoonModel, normalise
from moonshelf.prompts import read_rationale
from moonshelf.training.adapters import add_lora, freeze, merged_state, without_lora
from moonshelf.training.contrastive import Queue, info_nce
from moonshelf.training.data import (
    Draw,
    Sampler,
    SourceSpec,
    answered,
    load_source,
    open_source,
    prepare,
    spread,
)
from moonshelf.training.grpo import advantages, total
from moonshelf.training.pairs import Item
from moonshelf.training.plot import plot
from moonshelf.training.policy import Policy, Rollouts, Scored, query_rows
from moonshelf.training.precision import computing_in, resolve
from moonshelf.training.recipe import JointRecipe
from moonshelf.training.rewards import REWARDS, margins, ranks
from moonshelf.training.tracking import Tracker, quiet_dependencies
from moonshelf.training.validation import validate
from moonshelf.training.views import Views

COLLAPSED_AFTER = 25  # steps in a row without a signal


class JointTrainer(GRPOTrainer):
    """One process's share: `recipe.products` products with `recipe.rollouts` rationales each a step."""

    def __init__(
        self, moon: MoonModel, recipe: JointRecipe, sampler: Sampler, args: GRPOConfig, callbacks: list[Any]
    ) -> None:
        unknown = sorted(set(recipe.rewards) - set(REWARDS))
        if unknown or not recipe.rewards:
            raise UserError(f"rewards: {unknown or 'none'} given; there are {', '.join(REWARDS)}.")
        self.recipe, self.sampler = recipe, sampler
        self.queue = Queue(recipe.queue)
        self.rollouts: Rollouts  # of the step, and one pass over a slice of them
        self._scored: Scored
        self._silent = 0  # steps in a row in which no group told its rollouts apart
        self._done: tuple[Tensor, list[Item]] | None = None  # of the last step, for the queue
        self.policy = Policy(moon, resolve(recipe.precision, moon.device), recipe.sampling_temperature)
        super().__init__(
            model=self.policy,
            reward_funcs=[REWARDS[name] for name in recipe.rewards],
            args=args,
            train_dataset=_schedule(recipe, args),
            processing_class=moon.processor,
            callbacks=callbacks,
        )
        # TRL replaces the forward of the model that it is given by one that returns only log-probabilities.
        self.policy.__dict__.pop("forward", None)
        self.reward_func_names = list(recipe.rewards)
        self.beta = recipe.beta
        self._reference: Policy | None = None
        if recipe.beta and not recipe.lora:
            self._reference = copy.deepcopy(self.policy).eval().requires_grad_(False)

    # ---- rollouts and rewards ----------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Draw products, write G rationales each, reward them: TRL's batch, whose rows are rollouts."""
        recipe, moon = self.recipe, self.policy.moon
        per = self.recipe.rollouts
        slots = [row["slot"] for row in inputs[::per]]
        started = time.perf_counter()
        draw, shown = self._draw(slots)
        torch.manual_seed((recipe.seed * 1_000_003 + self.state.global_step) * 4099 + slots[0])
        moon.eval()
        written, queries = self._write(draw, shown, per)
        moon.train()
        self.rollouts = Rollouts(draw, shown, [w.ids for w in written], [w.closed for w in written], per)
        rewards = self._rewards(draw, shown, written, queries)
        mode = "train" if self.policy.training else "eval"
        gained = advantages(rewards, per)
        tokens = self._tensors(written)
        tokens |= {"advantages": gained, "row": torch.arange(len(written), device=gained.device)}
        if self.beta:
            tokens["ref_per_token_logps"] = self._reference_logps(tokens["completion_ids"].shape[1])
        counts = [w.tokens for w in written]
        spent = time.perf_counter() - started
        metrics = {
            "rationale/length": sum(counts) / len(counts),
            "rationale/closed": sum(w.closed for w in written) / len(written),
            "rationale/diversity": _diversity([w.rationale for w in written], per),
            "rollouts/tokens_per_second": sum(counts) / max(spent, 1e-9),
        }
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        return tokens

    def _draw(self, slots: list[int]) -> tuple[Draw, list[tuple[list[int], list[int]]]]:
        """The products of some slots of the schedule, and what each of them shows."""
        recipe, moon = self.recipe, self.policy.moon
        step, places = slots[0] // self._products, [slot % self._products for slot in slots]
        key = f"{recipe.seed}/{step}"
        drawn = self.sampler.draw(self._products, random.Random(key))
        items = [drawn[place % len(drawn)] for place in places]
        draw = prepare(moon, items, "joint", key, recipe.query_mix, places[0], self.sampler.asked)
        rng = random.Random(f"{key}/{places[0]}")
        if len(draw.items) != len(items):
            raise UserError("a training picture is broken: find it with `moonshelf check` and take it out.")
        shown = []
        for text, own in zip(draw.shown, draw.own, strict=True):
            if text and rng.random() < recipe.leave_one_out:
                text, own = rng.choice((([], own), (text, [])))
            shown.append((text, own))
        return draw, shown

    @property
    def _products(self) -> int:
        return self.recipe.products * self.accelerator.num_processes

    @torch.no_grad()
    def _write(
        self, draw: Draw, shown: list[tuple[list[int], list[int]]], per: int
    ) -> tuple[list[Written], Tensor]:
        """Rollouts on one prefill a product, and unit vectors (2, P, dim) of the products' queries."""
        moon, prepare = self.policy.moon, self.policy.moon.prepare
        with computing_in(self.policy.compute_dtype, moon.backbone):
            views = Views(moon, draw.pixels)
            batch, visual = views.batch([(*row, [prepare.think]) for row in shown])
            reading = moon.read(batch, visual, use_cache=True)
            batch, reading = repeat_rows(batch, reading, per)
            written = write(moon, batch, reading, pick=sampling(self.recipe.sampling_temperature))
            asked = [views.vectors(rows) for rows in query_rows(draw, prepare.emb)]
        return written, torch.stack([normalise(vectors) for vectors in asked])

    def _rewards(
        self, draw: Draw, shown: list[tuple[list[int], list[int]]], written: list[Written], queries: Tensor
    ) -> Tensor:
        """(R,) weighted sum of the rewards; TRL calls the functions and logs each."""
        per, items = self.recipe.rollouts, draw.items
        if self._done:  # only now: a step's own rollouts are in its batch already
            self.queue.push(*self._done)
        rollouts = torch.stack([torch.from_numpy(w.vector) for w in written]).to(queries)
        pool, owners = rollouts, [items[r // per] for r in range(len(written))]
        if self.queue.items:
            pool = torch.cat([pool, normalise(self.queue.vectors).to(pool)])
            owners = [*owners, *self.queue.items]
        found, beside = [], []
        for vectors, asked in zip(queries, (draw.queries, draw.phrases), strict=True):
            rivals = ~answered(asked, items, owners).to(pool.device).repeat_interleave(per, 0)
            scores = (vectors @ pool.T).repeat_interleave(per, 0)
            own = torch.eye(len(written), len(owners), dtype=torch.bool, device=pool.device)
            rank, candidates = ranks(scores, own, ~rivals & ~own)
            found.append((rank.float().log() / candidates.clamp(min=2).float().log()).nan_to_num(1.0))
            beside.append(answered(asked, items, items).T.to(pool.device).repeat_interleave(per, 0))
        # One query's N is not another's: the mean of log rank / log N, as a rank among 100.
        rank = 100 ** torch.stack(found).mean(0)
        # The other way round: the rollout's own two queries among those of all products.
        mine = (
            torch.eye(len(items), dtype=torch.bool, device=pool.device).repeat_interleave(per, 0).repeat(1, 2)
        )
        spread = margins(rollouts @ torch.cat(list(queries)).T, mine, torch.cat(beside, 1) & ~mine)
        texts = self.policy.moon.processor.tokenizer.batch_decode([text for text, _ in shown])
        rows = [
            {
                "prompt": "", "rank": float(rank[r]), "candidates": 100,
                "similarities": float(spread[r]), "truth": _truth(items[r // per]), "title": texts[r // per],
                "tokens": w.tokens,
            }
            for r, w in enumerate(written)
        ]  # fmt: skip
        completions = [w.rationale.removeprefix("<think>") for w in written]
        completions = [
            c if w.closed else c.removesuffix("</think>") for c, w in zip(completions, written, strict=True)
        ]
        earned = self._calculate_rewards(rows, [""] * len(rows), completions, [w.ids for w in written])
        here = slice(
            self.accelerator.process_index * len(rows), (self.accelerator.process_index + 1) * len(rows)
        )
        earned = earned[here]
        weights = torch.tensor(list(self.recipe.rewards.values()), device=earned.device)
        gained = total(earned, weights)
        self._log_rewards(earned, gained.view(-1, per))
        self._done = rollouts[::per], items
        return gained

    def _log_rewards(self, found: Tensor, grouped: Tensor) -> None:
        """Every reward, groups without spread, answers that earn for their form alone; and the alarm."""
        metrics = self._metrics["train" if self.policy.training else "eval"]
        for i, name in enumerate(self.recipe.rewards):
            metrics[f"rewards/{name}"].append(found[:, i].nanmean().item())
        metrics["reward"].append(grouped.mean().item())
        flat = (grouped.std(1) < 1e-6).float().mean().item()
        metrics["zero_spread_groups"].append(flat)
        names = list(self.recipe.rewards)
        formed = 1.0
        if "format" in names:
            valid = found[:, names.index("format")] > 0
            formed = valid.float().mean().item()
            if "attributes" in names:
                nothing = found[:, names.index("attributes")] <= 0
                metrics["format_only"].append((valid & nothing).float().mean().item())
        why = ""
        if formed < 0.02:
            why = "no rationale keeps its format"
        elif flat > 0.98:
            why = "all rollouts of a product earn the same"
        self._silent = self._silent + 1 if why else 0
        if self._silent >= COLLAPSED_AFTER:
            raise UserError(
                f"the rewards have collapsed: for {COLLAPSED_AFTER} steps {why}. Go back to a checkpoint and "
                "lower lr, raise beta or sampling_temperature, or train the cold start longer."
            )

    def _tensors(self, written: list[Written]) -> dict[str, Any]:
        """Completions as TRL pads them; a closing token that was forced is external to the policy."""
        prepare, device = self.policy.moon.prepare, self.accelerator.device
        bodies = [torch.tensor([*w.ids, prepare.end_think]) for w in written]
        ids = torch.nn.utils.rnn.pad_sequence(bodies, batch_first=True, padding_value=prepare.pad)
        lengths = torch.tensor([len(body) for body in bodies])
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        own = mask.clone()
        for r, w in enumerate(written):
            if not w.closed:
                own[r, lengths[r] - 1] = 0
        start = torch.full((len(written), 1), prepare.think)
        return {
            "prompt_ids": start.to(device), "prompt_mask": torch.ones_like(start).to(device),
            "completion_ids": ids.to(device), "completion_mask": mask.to(device), "tool_mask": own.to(device),
            "num_items_in_batch": self.accelerator.gather(own.sum().to(device)).sum(),
        }  # fmt: skip

    @torch.no_grad()
    def _reference_logps(self, width: int) -> Tensor:
        """Log-probabilities of the rollouts under the cold start."""
        reference = self._reference or self.policy
        everything = list(range(len(self.rollouts.ids)))
        with without_lora(self.policy) if self._reference is None else nullcontext():
            return reference(self.rollouts, everything, width, queries=False).logps

    # ---- loss ----------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self, model: Any, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, None]:
        return self._scored.logps, self._scored.entropies, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss plus InfoNCE, from one forward pass over this slice of the rollouts."""
        recipe, chosen = self.recipe, inputs["row"].tolist()
        self._scored = scored = model(self.rollouts, chosen, inputs["completion_ids"].shape[1])
        policy = super()._compute_loss(model, inputs)
        contrast = self._contrast(scored, chosen) / self.current_gradient_accumulation_steps
        self._log_conflict(policy, contrast)
        weights = [recipe.grpo_weight, recipe.contrastive_weight]
        if recipe.mode == "alternate":
            weights[(self.state.global_step + 1) % 2] = 0.0
        loss = weights[0] * policy + weights[1] * contrast
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is not finite at step {self.state.global_step}: lower lr and resume from the last "
                "checkpoint."
            )
        return loss

    def _contrast(self, scored: Scored, chosen: list[int]) -> Tensor:
        """InfoNCE of each rollout, and of the direct vectors, with its product's two queries.

        Rollouts of one product never compete. Without the direct vectors the two would drift apart.
        """
        draw, per = self.rollouts.draw, self.rollouts.per_product
        owner = [r // per for r in chosen]
        beyond, past = self._beyond(scored.vectors, [draw.items[i] for i in owner])
        scale = torch.tensor(1 / self.recipe.temperature, device=scored.vectors.device)
        dims, terms = self.policy.moon.config.matryoshka, []
        everything = list(range(len(draw.items)))
        for vectors, kinds in ((scored.queries, draw.queries), (scored.phrases, draw.phrases)):
            for products, found in ((owner, scored.vectors), (everything, scored.direct)):
                items, asked = [draw.items[i] for i in products], [kinds[i] for i in products]
                spared, past_spared = (answered(asked, items, others) for others in (items, past))
                terms.append(
                    info_nce(
                        vectors[products], found, scale, spared, dims, beyond=beyond, beyond_same=past_spared
                    )
                )
        loss = torch.stack(terms).mean()
        self._metrics["train" if self.policy.training else "eval"]["loss/contrastive"].append(loss.item())
        return loss

    def _beyond(self, vectors: Tensor, items: list[Item]) -> tuple[Tensor, list[Item]]:
        """Negatives without gradient: the queue, and the rollouts of the other processes."""
        beyond, past = self.queue.vectors.to(vectors).view(-1, vectors.shape[1]), list(self.queue.items)
        if self.accelerator.num_processes > 1:
            everyone: list[Any] = [None] * self.accelerator.num_processes
            light = [dataclasses.replace(item, images=()) for item in items]
            torch.distributed.all_gather_object(everyone, (vectors.detach().cpu(), light))
            for process, (theirs, their_items) in enumerate(everyone):
                if process != self.accelerator.process_index:
                    beyond, past = torch.cat([beyond, theirs.to(beyond)]), [*past, *their_items]
        return beyond, past

    def _log_conflict(self, policy: Tensor, contrast: Tensor) -> None:
        """Gradient norms of both losses on the last decoder layer, and their cosine (Embed-RL's warning)."""
        if not (self.policy.training and policy.requires_grad and contrast.requires_grad):
            return
        layer = [p for p in self.policy.moon.decoder.layers[-1].parameters() if p.requires_grad]
        flat = []
        for loss in (policy, contrast):
            grads = torch.autograd.grad(loss, layer, retain_graph=True, allow_unused=True)
            flat.append(
                torch.cat(
                    [
                        g.flatten().float() if g is not None else p.new_zeros(p.numel())
                        for g, p in zip(grads, layer, strict=True)
                    ]
                )
            )
        metrics = self._metrics["train"]
        metrics["gradient/grpo"].append(flat[0].norm().item())
        metrics["gradient/contrastive"].append(flat[1].norm().item())
        metrics["gradient/cosine"].append(F.cosine_similarity(flat[0], flat[1], dim=0, eps=1e-12).item())

    # ---- checkpoints ---------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """What is trained, for resuming; a Moonshelf folder is exported by `export`."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained = {n: p.detach().contiguous() for n, p in self.policy.named_parameters() if p.requires_grad}
        save_file(trained, folder / "trained.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        trained = load_file(Path(resume_from_checkpoint) / "trained.safetensors")
        parameters = dict(self.policy.named_parameters())
        with torch.no_grad():
            for name, value in trained.items():
                parameters[name].copy_(value)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: a Moonshelf folder has its own."""


class Watch(TrainerCallback):
    """Validates, exports the best and the last model, keeps to the time budget, and writes the log."""

    def __init__(
        self, moon: MoonModel, recipe: JointRecipe, validation: list[Item], tracker: Tracker
    ) -> None:
        self.moon, self.recipe, self.validation, self.tracker = moon, recipe, validation, tracker
        self.out, self.best, self.stale = Path(recipe.out), -1.0, 0
        self.started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            memory = psutil.Process().memory_info().rss / 2**20
            self.tracker.log({**logs, "rss_mib": round(memory)}, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        recipe = self.recipe
        if recipe.minutes and time.monotonic() - self.started > 60 * recipe.minutes:
            control.should_training_stop = True
        last = control.should_training_stop or state.global_step >= state.max_steps
        if self.validation and (state.global_step % recipe.validate_every == 0 or last):
            figures = validate(self.moon, self.validation)
            self.moon.train()
            if state.is_world_process_zero:
                self.tracker.log(figures, state.global_step)
            if figures.get("score", 0.0) > self.best:
                self.best, self.stale = figures.get("score", 0.0), 0
                if state.is_world_process_zero:
                    export(self.moon, self.out / "checkpoint")
            else:
                self.stale += 1
            if recipe.patience and self.stale >= recipe.patience:
                control.should_training_stop = True
        return control


def export(moon: MoonModel, folder: Path) -> None:
    """A Moonshelf folder of the model as it is, adapters merged."""
    moon.save_pretrained(folder, state=merged_state(moon))


def train_joint(recipe: JointRecipe, data: Path) -> Path:
    """Run the joint stage on a cold-started model; returns the folder of the best checkpoint."""
    quiet_dependencies()
    moon = MoonModel.from_pretrained(recipe.model)
    sources = [open_source(spec, data, moon.fingerprint) for spec in recipe.sources]
    validation: list[Item] = []
    if recipe.validation:
        validation = spread(load_source(SourceSpec(feed=recipe.validation), data), recipe.validation_items)
    freeze(moon, recipe.freeze)
    if recipe.lora:
        add_lora(moon, recipe.lora)
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(recipe.model_dump_json(indent=1))
    last = get_last_checkpoint(out / "trainer") if (out / "trainer").is_dir() else None
    resumed = int(last.rsplit("-", 1)[1]) if last else 0
    tracker = Tracker(out, recipe.report_to, recipe.model_dump(mode="json"), out.name, resumed_step=resumed)
    trainer = JointTrainer(
        moon, recipe, Sampler(sources), arguments(recipe), [Watch(moon, recipe, validation, tracker)]
    )
    moon.train()
    trainer.train(resume_from_checkpoint=last)
    if trainer.accelerator.is_main_process and not validation:
        export(moon.eval(), out / "checkpoint")
    tracker.close()
    if trainer.accelerator.is_main_process:
        plot(out / "log.jsonl")
    return out / "checkpoint"


def arguments(recipe: JointRecipe) -> GRPOConfig:
    """The recipe as TRL's arguments; precision and reporting are ours, telemetry is off."""
    rows = recipe.products * recipe.rollouts
    if rows % recipe.accumulate:
        raise UserError(f"accumulate ({recipe.accumulate}) must divide products x rollouts ({rows}).")
    return GRPOConfig(
        output_dir=str(Path(recipe.out) / "trainer"),
        per_device_train_batch_size=rows // recipe.accumulate,
        gradient_accumulation_steps=recipe.accumulate,
        steps_per_generation=recipe.accumulate,
        num_generations=recipe.rollouts,
        use_bias_correction_kl=False,  # GRPO's own KL
        max_completion_length=256,  # of no effect: the engine keeps to the prompt's limit
        temperature=recipe.sampling_temperature,
        loss_type=recipe.loss_type,
        beta=0.0,  # the trainer sets it afterwards: TRL would load a reference by name
        max_steps=recipe.steps,
        learning_rate=recipe.lr,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        seed=recipe.seed,
        save_steps=recipe.save_every,
        save_total_limit=1,
        logging_steps=1,
        report_to="none",
        bf16=False,
        gradient_checkpointing=recipe.checkpointing,
        remove_unused_columns=False,
        shuffle_dataset=False,
        disable_dropout=False,
        disable_tqdm=not sys.stderr.isatty(),
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        multi_objective_aggregation="sum_then_normalize",
    )


def _schedule(recipe: JointRecipe, args: GRPOConfig) -> Dataset:
    """One row a product and step; what it stands for is drawn from seed and step when it is due."""
    slots = recipe.steps * recipe.products * args.world_size
    return Dataset.from_dict({"prompt": [""] * slots, "slot": range(slots)})


def _truth(item: Item) -> dict[str, str]:
    """What the catalogue says, in the rationale's own words."""
    return read_rationale(item.rationale) or {}


def _diversity(rationales: list[str], per: int) -> float:
    """Mean share of distinct rationales in a group."""
    groups = [rationales[i : i + per] for i in range(0, len(rationales), per)]
    return sum(len(set(group)) / len(group) for group in groups) / len(groups)
