"""Rewards of Reason-to-Select: plain functions, as those of the joint stage.

Each is `reward(completions, **columns) -> list`, one number a completion. Creative4U names GRPO and none of
its rewards; all of these are ours:

- `format`: the nine questions, each once and in order, and the reasons closed.
- `verdict`: 1 − (p − q)², p the probability that the answer after these reasons gives to the first image and
  q the posterior of its being better. A proper score: it is highest at p = q, so that a toss-up is paid for
  one half and nothing is gained by being surer than the clicks are; an accuracy would pay for overconfidence.
- `consistency`: 1 − |p − p̄|, p̄ being the mean of the other order's rollouts, turned round. J1 (2505.10320)
  rewards both orders together; here each rollout is held against what the other order says on average.
- `claims`: minus the share of checkable claims that a check refutes (`evidence.check`). None where there are
  no facts to check against, or nothing checkable was claimed: silence is neither paid nor fined. It is paid
  question by question, to the words that made the claim (`grpo`).

Nothing is paid for length. A completion that breaks the format earns nothing but what it loses by `claims`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from moonshelf.training.rewards import Reward


def _each(pays: Callable[..., float]) -> Reward:
    """What `pays` gives for the columns of each completion; 0 for broken reasons."""

    def reward(
        completions: Sequence[str], *, valid: Sequence[bool], **columns: Sequence[Any]
    ) -> list[float | None]:
        rows = ({name: column[i] for name, column in columns.items()} for i in range(len(valid)))
        return [pays(**row) if kept else 0.0 for kept, row in zip(valid, rows, strict=True)]

    return reward


def claims(
    completions: Sequence[str], *, refuted: Sequence[int], claimed: Sequence[int], **_: Any
) -> list[float | None]:
    """Minus the share of checked claims that are refuted; None where none could be checked."""
    return [-wrong / n if n else None for wrong, n in zip(refuted, claimed, strict=True)]


# `other` is p̄, in terms of this order's first image.
REWARDS: dict[str, Reward] = {
    "format": _each(lambda **_: 1.0),
    "verdict": _each(lambda p, posterior, **_: 1 - (p - posterior) ** 2),
    "consistency": _each(lambda p, other, **_: 1 - abs(p - other)),
    "claims": claims,
}
