"""The selector: a backend's predictions in both orders become one judgement, or an abstention.

Every pair is asked in both orders under labels of their own. The probability is the mean of the two orders'
log-odds, divided by the temperature that validation gave; so judge(A, B) and judge(B, A) add up to one, to
the last bit, whatever the backend. A judgement abstains, and says why, when an image cannot be read, is
blank or noise, when both are one picture or one is a part of the other, when words on one are instructions,
when a title is nothing else (a product that never had one is judged by the rest), when the backend's answer
is unusable, when the orders disagree, or when the probability is near one half. Suspicious words in title or
interest, and words on an image that merely repeat a query, are taken out before the backend sees them. Where
words were suspicious a canary asks once more without any, and if the winner changes the judgement abstains.
What a reason claims of title or interest is held against them, and goes where they do not say it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moonshelf import images
from moonshelf.creatives.backends.base import PairInput, PairPrediction, PairwiseBackend
from moonshelf.creatives.evidence import ground
from moonshelf.creatives.safety.pictures import SIDE, is_blank, is_noise, one_is_a_copy
from moonshelf.creatives.safety.text import REPEATED, clean, quarantine, read_overlay, unrepeated
from moonshelf.creatives.schema import Assessment, Judgement, Pair
from moonshelf.product import ImageRef

NEAR_HALF = 0.05  # ours: nearer to one half than this there is no verdict
PART = 64  # pairs that are asked together; a bar moves, and memory stays flat


def judge(
    backend: PairwiseBackend,
    pairs: Sequence[Pair],
    *,
    seed: int = 0,
    temperature: float | None = None,
    near_half: float = NEAR_HALF,
    progress: Callable[[int], None] | None = None,
) -> list[Judgement]:
    """One judgement a pair, in order. `temperature` None is the backend's own, 1 if it has none.

    `progress` is called with the number of pairs that were done. Nothing is raised for a pair: whatever is
    wrong with one is its `abstained`.
    """
    temperature = backend.temperature or 1.0 if temperature is None else temperature
    seen: dict[ImageRef, _Seen] = {}
    results: list[Judgement] = []
    for start in range(0, len(pairs), PART):
        part = pairs[start : start + PART]
        refs = {creative.image for pair in part for creative in (pair.a, pair.b)}
        seen = {ref: seen[ref] if ref in seen else _look(ref) for ref in refs}
        cases = [_open(pair, seen[pair.a.image], seen[pair.b.image], backend) for pair in part]
        _ask(backend, [case for case in cases if not case.stop], seed)
        _ask(backend, [case for case in cases if case.flags and not case.stop], seed, bare=True)
        results += [_close(case, temperature, near_half) for case in cases]
        if progress is not None:
            progress(len(part))
    return results


@dataclass(frozen=True)
class _Seen:
    """What can be said of an image without a model."""

    digest: str = ""  # of its pixels at 128 px: bytes may differ where pixels do not
    problem: str = ""  # why it cannot be judged
    picture: Any = None  # small
    read: str = ""  # words on it, where OCR is installed


def _look(ref: ImageRef) -> _Seen:
    try:
        picture = images.load(ref, max_side=SIDE)
    except images.ImageError as error:
        return _Seen(problem=f"cannot be read: {error}")
    size = "x".join(map(str, picture.size))
    digest = hashlib.sha256(size.encode() + picture.tobytes()).hexdigest()
    problem = "is blank" if is_blank(picture) else "is noise" if is_noise(picture) else ""
    return _Seen(digest, problem, picture, "" if problem else read_overlay(ref))


@dataclass
class _Case:
    """A pair on its way: its words, what is known against it, and what the backend said."""

    pair: Pair
    digests: tuple[str, str]
    title: str
    interest: tuple[str, ...]
    overlays: tuple[str, str]
    flags: list[str]
    stop: str  # why there is no verdict, found before any model was asked
    # By (without any words, A shown second).
    answers: dict[tuple[bool, bool], PairPrediction] = field(default_factory=dict)

    def inputs(
        self, backend: PairwiseBackend, seed: int, bare: bool
    ) -> Iterator[tuple[str, bool, PairInput]]:
        """Both orders. The key is equal for judge(A, B) and judge(B, A): they ask the same, in one order."""
        title, interest = ("", ()) if bare else (self.title, self.interest)
        overlays = ("", "") if bare else self.overlays
        for second in (False, True):
            turn = -1 if second else 1
            one, other = (self.pair.a, self.pair.b)[::turn]
            content = (str(seed), *self.digests[::turn], title, *interest, "", *overlays[::turn])
            labels = backend.prompt.draw_labels(*content)
            asked = PairInput(self.pair.id, title, interest, one, other, labels, overlays[::turn])  # type: ignore[arg-type]
            yield "\0".join(content), second, asked


def _ask(backend: PairwiseBackend, cases: Sequence[_Case], seed: int, *, bare: bool = False) -> None:
    """Let the backend predict both orders of each case, each different input once, always in one order."""
    asked = [(case, *one) for case in cases for one in case.inputs(backend, seed, bare)]
    once = {key: one for _, key, _, one in sorted(asked, key=lambda row: row[1])}
    predictions = dict(zip(once, backend.predict(list(once.values())), strict=True)) if once else {}
    for case, key, second, _ in asked:
        case.answers[bare, second] = predictions[key]


def _open(pair: Pair, a: _Seen, b: _Seen, backend: PairwiseBackend) -> _Case:
    """Clean the words, and find what stands against a verdict before anything is asked.

    Words on an image are the feed's, else OCR's; a backend that is not shown them is not doubted for them.
    """
    stops = []
    said = []
    for side, creative, seen in (("A", pair.a, a), ("B", pair.b, b)):
        held = "" if seen.problem else quarantine((creative.text, seen.read))
        problem = seen.problem or (held and f"is held for review: {held}")
        stops.append(problem and f"image {side} {problem}")
        said.append((creative.text or seen.read) if backend.prompt.overlays else "")
    texts = [clean(text) for text in (*said, pair.title, *pair.interest)]
    flags = [flag for _, found in texts for flag in found]
    (one, other, title, *asked), suspicious = [text for text, _ in texts], texts[2][1]
    overlays = unrepeated(one, asked), unrepeated(other, asked)
    for side, before, after in zip("AB", (one, other), overlays, strict=True):
        if after != before:
            flags.append(f"{REPEATED} {side}")
    if not any(stops):
        stops.append(one_is_a_copy(a.picture, b.picture))
    if suspicious and not title:
        stops.append("the title is nothing but suspicious words")
    interest = tuple(text for text in asked if text)
    stop = next(filter(None, stops), "")
    return _Case(pair, (a.digest, b.digest), title, interest, overlays, list(dict.fromkeys(flags)), stop)


def _close(case: _Case, temperature: float, near_half: float) -> Judgement:
    """Both orders' predictions as one judgement."""
    said = Judgement(
        pair_id=case.pair.id, p=0.5, p_first=0.5, p_second=0.5, abstained=case.stop, flags=tuple(case.flags)
    )
    if case.stop:
        return said
    first, second = case.answers[False, False], case.answers[False, True]
    p = _mean(first, second, temperature)
    if p is None or first.p_first is None or second.p_first is None:
        found: dict[str, Any] = {"abstained": "the backend gave no usable answer"}
    else:
        found = {"p": p, "p_first": first.p_first, "p_second": 1 - second.p_first}
        if (first.p_first - 0.5) * (0.5 - second.p_first) < 0:
            found["abstained"] = "the winner changes with the order"
        elif abs(p - 0.5) < near_half:
            found["abstained"] = "too close to call"
        without = _mean(case.answers.get((True, False)), case.answers.get((True, True)), temperature)
        if without is not None and (without > 0.5) != (p > 0.5):
            found["flags"] = (*said.flags, "the words decide: without them the other image wins")
            if said.flags:
                found.setdefault("abstained", "suspicious words decide it")
    dropped = [*first.dropped, *second.dropped]
    reasons: list[Assessment | None] = [first.assessment, second.assessment]
    for place, one in enumerate(reasons):
        if one is not None:
            reasons[place], out = ground(one, case.title, case.interest)
            dropped += out
    found |= {
        "assessment": reasons[0],
        "mirrored": reasons[1].swapped() if reasons[1] is not None else None,
        "tokens": sum(prediction.tokens for prediction in case.answers.values()),
        "dropped": tuple(dict.fromkeys(dropped)),
    }
    return Judgement(**dict(said) | found)


def _mean(first: PairPrediction | None, other: PairPrediction | None, temperature: float) -> float | None:
    if first is None or other is None or first.p_first is None or other.p_first is None:
        return None
    return mean_probability(first.p_first, other.p_first, temperature)


def mean_probability(p_first: float, p_other: float, temperature: float = 1.0) -> float:
    """That A is better, from p(first) with A first and p(first) with B first: the mean log-odds.

    A multiple of 2^-40, so that it and its complement add up to exactly one.
    """
    odds = (_logit(p_first) - _logit(p_other)) / 2
    return 0.5 + round(math.tanh(odds / (2 * temperature)) * 2**39) / 2**40


def _logit(p: float) -> float:
    p = min(max(p, 1e-12), 1 - 1e-12)
    return math.log(p) - math.log1p(-p)


def fit_temperature(judgements: Sequence[Judgement], posteriors: Sequence[float]) -> tuple[float, float]:
    """Temperature with the lowest log loss against the posteriors, and that loss; for validation pairs only.

    `judgements` must have been made at temperature 1. Pairs that were never asked (p = 0.5 in both orders)
    carry no information and are left out. Raises `ValueError` where none is left.
    """
    rows = [
        (_logit(j.p), q)
        for j, q in zip(judgements, posteriors, strict=True)
        if (j.p_first, j.p_second) != (0.5, 0.5)
    ]
    if not rows:
        raise ValueError("no judgement to fit a temperature on")
    odds, q = np.array(rows).T
    temperatures = np.geomspace(0.1, 20, 400)
    scaled = odds[None] / temperatures[:, None]
    losses = (np.logaddexp(0, -scaled) * q + np.logaddexp(0, scaled) * (1 - q)).mean(1)
    best = int(losses.argmin())
    return float(temperatures[best]), float(losses[best])
