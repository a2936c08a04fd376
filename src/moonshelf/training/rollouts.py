"""GRPO on rollouts that our own engine writes, with a stage's other losses in the same backward pass.

    L = w_g GRPO(rollouts) + what the stage adds

The engine reads each prompt once for all G rollouts of its group. One forward pass then scores the rollouts'
tokens and gives whatever else the stage wants of them. `accumulate` slices are scored one after the other
where memory is short. A process holds whole groups. There is one update for each set of rollouts, so the
policy that wrote them is the one that is trained, and nothing is ever clipped.

A truncated rationale is closed by force; the closing token is then not the policy's, and takes no gradient
(ours).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from moonshelf.errors import UserError
from moonshelf.model.decode import banned_tokens
from moonshelf.model.modeling import MoonModel
from moonshelf.training.adapters import without_lora
from moonshelf.training.grpo import divergence, grpo_loss
from moonshelf.training.rewards import Reward
from moonshelf.training.trainer import Stage, StageTrainer

COLLAPSED_AFTER = 25  # steps in a row without a signal


class Body(Protocol):
    """A rollout: what the model wrote between its tags, and whether it closed it itself."""

    ids: list[int]
    closed: bool


@dataclass
class Scored:
    """One pass over R rollouts: log-probabilities and entropies of their tokens, and what else it gave."""

    logps: Tensor  # (R, T) float32: of body and `</think>`, zero beyond
    entropies: Tensor  # (R, T) float32, no gradient
    rest: Any = None


def score_tokens(
    moon: MoonModel, states: Tensor, tokens: Tensor, counts: Tensor, width: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies (R, width) float32, zero beyond, of `tokens` (N,) at their `states`.

    `states` (N, hidden) are those that speak of the tokens, row by row; row r has `counts[r]` of the N.
    """
    logits = (moon.logits(states).float() + banned_tokens(moon)) / temperature
    every = logits.log_softmax(-1)
    with torch.no_grad():  # a figure, not a loss
        entropy = -(every.exp() * every.clamp(min=-1e4)).sum(-1)
    place = torch.arange(width, device=states.device)[None] < counts[:, None]
    zeros = every.new_zeros(place.shape)
    logps = zeros.masked_scatter(place, every.gather(1, tokens[:, None]))
    return logps, zeros.masked_scatter(place, entropy)


class RolloutTrainer(StageTrainer):
    """One process's share of a GRPO run.

    A subclass writes the rollouts of a step and their advantages (`roll`), scores some of them (`score`), and
    turns what else that gave into further weighted losses (`beside`).
    """

    rewards: Mapping[str, Reward]

    def __init__(
        self, policy: Stage, recipe: Any, moon: MoonModel, rows: int, validation: Sequence[Any]
    ) -> None:
        unknown = sorted(set(recipe.rewards) - set(self.rewards))
        if unknown or not recipe.rewards:
            raise UserError(f"rewards: {unknown or 'none'} given; there are {', '.join(self.rewards)}.")
        if rows % recipe.accumulate:
            raise UserError(f"accumulate ({recipe.accumulate}) must divide the {rows} rollouts of a step.")
        self.moon, self.silent = moon, 0  # steps in a row in which no group told its rollouts apart
        super().__init__(policy, recipe, validation)
        self.reference: Any = None
        if recipe.beta and not recipe.lora:
            self.reference = copy.deepcopy(policy).eval().requires_grad_(False)

    # ---- what a stage says ------------------------------------------------------------------------

    def roll(self, batch: Any) -> tuple[Sequence[Body], Tensor]:
        """Rollouts of the step, groups side by side, and their advantages (R,) or (R, T)."""
        raise NotImplementedError

    def score(self, policy: Any, rows: list[int], width: int, whole: bool = True) -> Scored:
        """One forward pass of `policy` over some rollouts; without `whole` their tokens alone."""
        raise NotImplementedError

    def beside(self, scored: Scored, rows: list[int]) -> dict[str, Tensor]:
        """The stage's other weighted losses, of the same pass."""
        raise NotImplementedError

    def slices(self, count: int) -> list[list[int]]:
        """Rows of the slices that are scored one after the other."""
        size = count // self.recipe.accumulate
        return [list(range(start, start + size)) for start in range(0, count, size)]

    def weight(self) -> float:
        """Of the GRPO loss, in this step."""
        return float(self.recipe.grpo_weight)

    def compare(self, policy: Tensor) -> None:
        """A look at the GRPO loss of a slice before the backward pass."""

    # ---- one step ---------------------------------------------------------------------------------

    def losses(self, batch: Any) -> dict[str, Tensor]:
        self.model.eval()
        written, gained = self.roll(batch)
        mask = self.own_tokens(written)
        rows, width = list(range(len(written))), mask.shape[1]
        reference = self._reference_logps(rows, width) if self.recipe.beta else None
        self.model.train()
        slices, terms = self.slices(len(rows)), dict[str, Tensor]()
        for i, chosen in enumerate(slices):
            last = i == len(slices) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                scored = self.score(self.module, chosen, width)
                policy = grpo_loss(
                    scored.logps, gained[chosen].to(scored.logps), mask[chosen], beta=self.recipe.beta,
                    reference=None if reference is None else reference[chosen],
                )  # fmt: skip
                others = self.beside(scored, chosen)
                added = torch.stack(list(others.values())).sum() if others else torch.zeros_like(policy)
                self.compare(policy)
                self.accelerator.backward((self.weight() * policy + added) / len(slices))
            self._note(scored, mask[chosen], None if reference is None else reference[chosen], len(slices))
            for name, term in {"policy": self.weight() * policy, **others}.items():
                terms[name] = terms.get(name, 0.0) + term.detach() / len(slices)
        return terms

    def own_tokens(self, written: Sequence[Body]) -> Tensor:
        """(R, T) 1 for each token that the policy wrote: the body, and `</think>` if it was not forced."""
        lengths = torch.tensor([len(one.ids) + one.closed for one in written])
        width = max(len(one.ids) for one in written) + 1
        return (torch.arange(width)[None] < lengths[:, None]).long().to(self.args.device)

    @torch.no_grad()
    def _reference_logps(self, rows: list[int], width: int) -> Tensor:
        """Log-probabilities of the rollouts under the policy as it was before this stage."""
        if self.reference is not None:
            return self.score(self.reference, rows, width, whole=False).logps
        with without_lora(self.model):
            return self.score(self.model, rows, width, whole=False).logps

    @torch.no_grad()
    def _note(self, scored: Scored, mask: Tensor, reference: Tensor | None, slices: int) -> None:
        figures = {"entropy": scored.entropies}
        if reference is not None:
            figures["kl"] = divergence(scored.logps, reference)
        for name, values in figures.items():
            mean = float((values * mask).sum() / mask.sum().clamp(min=1))
            self.figures[name] = self.figures.get(name, 0.0) + mean / slices

    def earned(self, columns: Mapping[str, Sequence[Any]]) -> tuple[Tensor, Tensor]:
        """Rewards (R, K) of the rollouts by the recipe's functions, and the weights (K,) of these."""
        found = [self.rewards[name](**columns) for name in self.recipe.rewards]
        paid = torch.tensor([[torch.nan if r is None else r for r in one] for one in found])
        return paid.T.contiguous(), torch.tensor(list(self.recipe.rewards.values()))

    def note_rewards(self, found: Tensor, total: Tensor) -> None:
        """Log rewards (R, K) and their sum (R,); stop when they have told nothing apart for long."""
        names, grouped = list(self.recipe.rewards), total.view(-1, self.recipe.rollouts)
        flat = (grouped.std(1) < 1e-6).float().mean().item()
        for i, name in enumerate(names):
            self.figures[f"rewards/{name}"] = found[:, i].nanmean().item()
        self.figures |= {"reward": grouped.mean().item(), "zero_spread_groups": flat}
        formed = 1.0
        if "format" in names:
            valid = found[:, names.index("format")] > 0
            formed = valid.float().mean().item()
            if "attributes" in names:
                nothing = found[:, names.index("attributes")] <= 0
                self.figures["format_only"] = (valid & nothing).float().mean().item()
        why = "no rationale keeps its format" if formed < 0.02 else ""
        why = why or ("all rollouts of a product earn the same" if flat > 0.98 else "")
        self.silent = self.silent + 1 if why else 0
        if self.silent >= COLLAPSED_AFTER:
            raise UserError(
                f"the rewards have collapsed: for {COLLAPSED_AFTER} steps {why}. Go back to a checkpoint and "
                "lower lr, raise beta or sampling_temperature, or train the cold start longer."
            )
