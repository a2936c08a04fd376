"""How sure the model is of each pair that it writes, and which pairs are better left unwritten.

    c = sigmoid(a logit(p) + b),   p = product over the value's tokens of p(token | all before)

A model that is out of its depth spreads that probability, so a threshold (`least_confidence` of the prompt)
makes it silent instead of wrong. a and b are fitted where the truth is known and the domain is another
(`research/starter/confidence.py`; Platt, 1999). That the likelihood of a short answer tells right from wrong
is an old observation (Kadavath et al., 2022); the product over the value alone is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class Span(NamedTuple):
    """Places of one pair in the tokens of a body: all of it with its semicolon, and its value."""

    start: int
    value: int
    stop: int  # of the value
    end: int


def log_odds(likely: float) -> float:
    """log(p / (1 - p)) of a log-probability, within ±30."""
    p = math.exp(min(likely, 0.0))
    return min(max(math.log(p / (1 - p)), -30.0), 30.0) if 0 < p < 1 else math.copysign(30.0, p - 0.5)


class Confidence:
    """Reads pairs off the tokens of one model's rationales."""

    def __init__(
        self, tokenizer: Any, least: float = 0.0, calibration: tuple[float, float] = (1.0, 0.0)
    ) -> None:
        self.tokenizer, self.least, self.calibration = tokenizer, least, calibration
        self._pieces: dict[int, str] = {}

    def of(self, ids: Sequence[int], likelihoods: Sequence[float]) -> list[float]:
        """The confidence of each pair, 0 to 1, from the log-probabilities of a body's tokens."""
        slope, offset = self.calibration
        likely = (math.fsum(likelihoods[s.value : s.stop]) for s in self.spans(ids))
        return [1 / (1 + math.exp(-min(max(slope * log_odds(x) + offset, -30.0), 30.0))) for x in likely]

    def doubtful(self, ids: list[int], likelihoods: list[float]) -> list[int]:
        """Places of the tokens of all pairs whose confidence is below the least, in order."""
        spans = self.spans(ids)
        sure = [c >= self.least for c in self.of(ids, likelihoods)]
        left_out = [p for s, kept in zip(spans, sure, strict=True) if not kept for p in range(s.start, s.end)]
        kept = [s for s, stays in zip(spans, sure, strict=True) if stays]
        if kept and kept[-1].end < len(ids):  # the last pair that stays has no semicolon after it
            left_out = sorted({*left_out, *range(kept[-1].stop, kept[-1].end)})
        return left_out

    def spans(self, ids: Sequence[int]) -> list[Span]:
        """Pairs of a body, each with the semicolon that closes it."""
        found, start, value = [], 0, None
        for place, token in enumerate(ids):
            piece = self._piece(token)
            if ";" in piece:
                found.append(Span(start, start if value is None else value, place, place + 1))
                start, value = place + 1, None
            elif value is None and ":" in piece:
                value = place + 1
        if start < len(ids):
            found.append(Span(start, start if value is None else value, len(ids), len(ids)))
        return found

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self.tokenizer.decode([token])
        return self._pieces[token]
