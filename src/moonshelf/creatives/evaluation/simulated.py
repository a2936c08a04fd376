"""What only drawn campaigns allow: the best that eyes can do, and whether the interest speaks.

The oracle knows the click model and all that can be seen of both creatives, but neither the idiosyncratic
part of their rates nor the draw of the clicks: what it reaches is the ceiling for a judge of pictures, below
the label ceiling, which also knows the true rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from moonshelf.creatives.known import TIE, UNSEEN, gap, is_known, visible_rate
from moonshelf.creatives.schema import Judgement, Pair

ORACLE = "all that can be seen"


def drawn(pair: Pair) -> bool:
    """The pair is drawn, and its truth is known."""
    return pair.source.startswith("simulated") and is_known(pair.a, pair.b)


def oracle(pairs: Sequence[Pair]) -> list[Judgement]:
    """A judgement a pair by the visible rates.

    Its probability is the posterior that the clicks will leave on average, since that is what it is scored
    against: Φ(gap / √(2σ² + 2s²)), σ the idiosyncratic deviation of a log rate and s² = 1/clicks A +
    1/clicks B, clicks as the visible rates let expect them (a normal approximation, ours).
    """
    found = []
    for pair in pairs:
        seen = [one.impressions * visible_rate(one) for one in (pair.a, pair.b) if one.impressions]
        spread = math.sqrt(2 * UNSEEN**2 + 2 * sum(1 / clicked for clicked in seen))
        same = bool(pair.a.sha256) and pair.a.sha256 == pair.b.sha256
        p = 0.5 if same else NormalDist().cdf(gap(pair) / spread)
        found.append(Judgement(pair_id=pair.id, p=p, p_first=p, p_second=p))
    return found


def interest_speaks(pair: Pair) -> bool:
    """One of the two answers the interest better: with it the visible gap is another than without."""
    return abs(pair.a.known["query"].worth - pair.b.known["query"].worth) > TIE
