"""Do reasons cause the verdict? A factor that a selector named is edited, and the probability must fall.

The factor is made worse on the side that it spoke for, and the fall is held against that under an edit of a
factor that was not named (after EDCT, 2510.00047). Drawn pairs only: their pictures can be drawn again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from moonshelf.creatives.backends.base import PairwiseBackend
from moonshelf.creatives.evaluation.metrics import Figure, mean_figure
from moonshelf.creatives.schema import ASPECTS, Judgement, Pair, Side
from moonshelf.creatives.selector import judge

# The pair with what a question asks about made worse on one side, and the pair with something changed there
# that the question does not ask about; None where that cannot be done.
Editor = Callable[[Pair, Side, str], tuple[Pair, Pair] | None]


def named_factor(judgement: Judgement, seed: int = 0) -> tuple[Side, str] | None:
    """The favoured side and one aspect that both orders name in its favour, drawn; None without."""
    first, second = judgement.assessment, judgement.mirrored
    if judgement.verdict is None or first is None or second is None:
        return None
    wanted = "A>B" if judgement.verdict == "A" else "A<B"
    both = [key for key in ASPECTS if key in first and key in second]
    named = [key for key in both if first[key].answer == second[key].answer == wanted]
    if not named:
        return None
    digest = hashlib.sha256(f"{seed} {judgement.pair_id}".encode()).digest()
    return judgement.verdict, named[digest[0] % len(named)]


def edited_pairs(
    pairs: Sequence[Pair], judgements: Sequence[Judgement], editor: Editor, *, most: int, seed: int = 0
) -> list[tuple[Pair, Side, Pair, Pair]]:
    """(pair, favoured side, edited, placebo) of the first `most` pairs that allow both."""
    found: list[tuple[Pair, Side, Pair, Pair]] = []
    for pair, judgement in zip(pairs, judgements, strict=True):
        named = named_factor(judgement, seed)
        if named is not None and (changed := editor(pair, *named)) is not None:
            found.append((pair, named[0], *changed))
        if len(found) == most:
            break
    return found


def intervene(
    backend: PairwiseBackend,
    pairs: Sequence[Pair],
    judgements: Sequence[Judgement],
    editor: Editor,
    *,
    most: int = 48,
    seed: int = 0,
    temperature: float | None = None,
) -> list[Figure]:
    """Edit what `judgements` name and judge again; [] where no pair allows it."""
    rows = edited_pairs(pairs, judgements, editor, most=most, seed=seed)
    before = {one.pair_id: one.p for one in judgements}
    after = [judge(backend, [row[i] for row in rows], seed=seed, temperature=temperature) for i in (2, 3)]  # type: ignore[misc]
    trials = []
    for (pair, side, _, _), edit, placebo in zip(rows, *after, strict=True):
        p = (before[pair.id], edit.p, placebo.p)
        trials.append(p if side == "A" else tuple(1 - one for one in p))
    return edit_figures(trials, [pair.product_id for pair, *_ in rows])


def edit_figures(trials: Sequence[tuple[float, ...]], products: Sequence[str]) -> list[Figure]:
    """How far the favoured side falls when the named factor is edited, beside the placebo, and how often
    it falls by more. A trial is its probability before, after the edit, after the placebo; [] without any."""
    if not trials:
        return []
    before, edited, placebo = np.array(trials).T
    more = (np.sign(placebo - edited) + 1) / 2
    return [
        mean_figure("fall after editing the named factor", before - edited, products),
        mean_figure("fall after a placebo edit", before - placebo, products),
        mean_figure("named factor minus placebo", placebo - edited, products),
        mean_figure("falls more than under the placebo", more, products),
        mean_figure("verdict turns after editing", edited < 0.5, products),
        mean_figure("verdict turns after the placebo", placebo < 0.5, products),
    ]
