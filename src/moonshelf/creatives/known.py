"""What is known of drawn creatives, and what follows from it for a pair of them.

Of a drawn creative it is known, question by question, what it shows (in words) and how much that adds to the
logarithm of its click-through rate. The true answers about a pair follow from both sides, and so does the
best that eyes can do. Only a simulation knows such things (`research/synthetic` draws them); whatever is
measured by them says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import NormalDist

import numpy as np

from moonshelf.creatives.schema import (
    ASPECTS,
    KEYS,
    Answer,
    AspectAnswer,
    Assessment,
    Campaign,
    Creative,
    Judgement,
    Known,
    Pair,
)

TIE = 0.03  # a question is even where the two sides differ by no more (log rate)
UNSEEN = 0.087  # standard deviation of a log rate that no picture shows, as measured on alimama_aes
ORACLE = "all that can be seen"  # the judge that knows it
NOTHING_ASKED = Known(reason="nothing asked")  # of the question about the query, without one


def is_known(*creatives: Creative) -> bool:
    """Whether the truth of them all is known, for every question that compares."""
    return all(set(ASPECTS) <= set(one.known) for one in creatives)


def visible_rate(creative: Creative) -> float:
    """Click-through rate by all that can be seen of a creative whose truth is known."""
    return min(0.5, math.exp(sum(one.worth for one in creative.known.values())))


def gap(pair: Pair) -> float:
    """Difference of the log rates of A and B as far as it can be seen."""
    a, b = (sum(known.worth for known in one.known.values()) for one in (pair.a, pair.b))
    return a - b


def assess(pair: Pair) -> Assessment:
    """True answers, evidence and verdict of a pair whose truth is known.

    `verdict` is None where nothing that can be seen speaks for a side.
    """
    a, b = pair.a.known, pair.b.known
    identical = bool(pair.a.sha256) and pair.a.sha256 == pair.b.sha256
    alike = identical or all(a[key].reason == b[key].reason for key in ASPECTS)
    answers: dict[str, Answer] = {
        "same": "yes" if identical else "no",
        "similar": "yes" if alike else "no",
        **{key: _compared(a[key].worth - b[key].worth) for key in ASPECTS},
    }
    seen = {key: {"reason_a": a[key].reason, "reason_b": b[key].reason} for key in ASPECTS}
    findings = tuple(AspectAnswer(question=key, answer=answers[key], **seen.get(key, {})) for key in KEYS)
    # The higher rate; where rates are even the rubric, then the query, then whatever difference there is.
    assessment, lean = Assessment(findings=findings), gap(pair)
    if abs(lean) <= TIE:
        lean = assessment.rubric() or {"A>B": 1.0, "A<B": -1.0}.get(answers["query"], lean)
    verdict = None if abs(lean) < 1e-9 else "A" if lean > 0 else "B"
    return assessment.model_copy(update={"verdict": verdict})


def _compared(difference: float) -> Answer:
    return "A=B" if abs(difference) <= TIE + 1e-9 else "A>B" if difference > 0 else "A<B"


def pairs(campaign: Campaign) -> Iterator[Pair]:
    """All pairs of a campaign whose truth is known, with assessment and true rates."""
    for i, j in combinations(range(len(campaign.creatives)), 2):
        pair = campaign.pair(i, j, f"{campaign.id}-{i}-{j}")
        yield pair.model_copy(update={"assessment": assess(pair)})


def without_interest(pair: Pair) -> Pair:
    """The same pair shown to shoppers who ask for nothing, with the reasons that hold then, where known."""
    bare = pair.model_copy(update={"interest": ()})
    if not is_known(pair.a, pair.b):
        return bare.model_copy(update={"assessment": None})
    return _asked(bare, NOTHING_ASKED, NOTHING_ASKED)


def asked_anew(pair: Pair, rng: np.random.Generator) -> Pair:
    """The same pictures shown to shoppers who ask for other things, with the reasons that hold then.

    The outcome belongs to other shoppers and is taken out. A pair of which no other interest is known stays
    as it is.
    """
    count, sides = len(pair.other_interests), (pair.a, pair.b)
    if not (count and is_known(*sides) and all(len(one.known_otherwise) == count for one in sides)):
        return pair
    i = int(rng.integers(count))
    made = pair.model_copy(
        update={
            "interest": pair.other_interests[i],
            "a": pair.a.model_copy(update={"impressions": None, "clicks": None}),
            "b": pair.b.model_copy(update={"impressions": None, "clicks": None}),
            "true_rates": None,
        }
    )
    return _asked(made, pair.a.known_otherwise[i], pair.b.known_otherwise[i])


def _asked(pair: Pair, a: Known, b: Known) -> Pair:
    """The pair with another truth about the query."""
    sides = {
        name: one.model_copy(update={"known": one.known | {"query": query}})
        for name, one, query in (("a", pair.a, a), ("b", pair.b, b))
    }
    pair = pair.model_copy(update=sides)
    return pair.model_copy(update={"assessment": assess(pair)})


# ---- in an evaluation --------------------------------------------------------------------------------


def drawn(pair: Pair) -> bool:
    """The pair is drawn, and its truth is known."""
    return pair.source.startswith("simulated") and is_known(pair.a, pair.b)


def oracle(pairs: Sequence[Pair]) -> list[Judgement]:
    """A judgement a pair by the visible rates: the ceiling for a judge of pictures.

    It knows the click model and all that can be seen of both creatives, but neither the idiosyncratic part of
    their rates nor the draw of the clicks, so it stays below the label ceiling, which knows the true rates.

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
