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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moonshelf import images
from moonshelf.creatives.backends.base import PairInput, PairPrediction, PairwiseBackend
from moonshelf.creatives.evidence import ground
from moonshelf.creatives.safety.pictures import SIDE, is_blank, is_noise, one_is_a_copy
from moonshelf.creatives.safety.text import REPEATED, clean, quarantine, read_overlay, unrepeated
from moonshelf.creatives.schema import Assessment, Judgement, Pair
from moonshelf.product import ImageRef

NEAR_HALF = 0.05  # ours: nearer to one half than this there is no verdict
PART = 64  # pairs that are asked together; a bar moves, and memory stays flat
Canary = Literal["flagged", "all", "off"]


@dataclass(frozen=True)
class _Seen:
    """What can be said of an image without a model."""

    digest: str = ""  # of its pixels at 128 px: bytes may differ where pixels do not
    problem: str = ""  # why it cannot be judged
    picture: Any = None  # small
    read: str = ""  # words on it, where OCR is installed


def judge(
    backend: PairwiseBackend,
    pairs: Sequence[Pair],
    *,
    seed: int = 0,
    temperature: float | None = None,
    near_half: float = NEAR_HALF,
    canary: Canary = "flagged",
    progress: Callable[[int], None] | None = None,
) -> list[Judgement]:
    """One judgement a pair, in order. `temperature` None is the backend's own, 1 if it has none.

    `progress` is called with the number of pairs that were done. Nothing is raised for a pair: whatever is
    wrong with one is its `abstained`.
    """
    if temperature is None:
        temperature = backend.temperature or 1.0
    seen: dict[ImageRef, _Seen] = {}
    results: list[Judgement] = []
    for start in range(0, len(pairs), PART):
        part = pairs[start : start + PART]
        for pair in part:
            for creative in (pair.a, pair.b):
                if creative.image not in seen:
                    seen[creative.image] = _look(creative.image)
        results += _judge_part(backend, part, seen, seed, temperature, near_half, canary)
        seen = {ref: seen[ref] for pair in part for ref in (pair.a.image, pair.b.image)}
        if progress is not None:
            progress(len(part))
    return results


def _look(ref: ImageRef) -> _Seen:
    try:
        picture = images.load(ref, max_side=SIDE)
    except images.ImageError as error:
        return _Seen(problem=f"cannot be read: {error}")
    size = "x".join(map(str, picture.size))
    digest = hashlib.sha256(size.encode() + picture.tobytes()).hexdigest()
    if is_blank(picture):
        return _Seen(digest, "is blank", picture)
    if is_noise(picture):
        return _Seen(digest, "is noise", picture)
    return _Seen(digest, "", picture, read_overlay(ref))


@dataclass
class _Case:
    """A pair on its way: its words, what is known against it, and what the backend said."""

    pair: Pair
    title: str
    interest: tuple[str, ...]
    overlays: tuple[str, str]
    flags: list[str]
    stop: str  # why there is no verdict, found before any model was asked
    answers: dict[tuple[str, bool], PairPrediction]  # by (canary or "", A shown second)

    def asks(self, seed: int, seen: dict[ImageRef, _Seen], labels: _Labels, bare: bool) -> list[_Asked]:
        title, interest, overlays = self.title, self.interest, self.overlays
        if bare:
            title, interest, overlays = "", (), ("", "")
        found = []
        for second in (False, True):
            one, two = (self.pair.b, self.pair.a) if second else (self.pair.a, self.pair.b)
            said = overlays[::-1] if second else overlays
            content = (str(seed), seen[one.image].digest, seen[two.image].digest, title, *interest, "", *said)
            ask = PairInput(self.pair.id, title, interest, one, two, labels(*content), said)
            found.append(_Asked("\0".join(content), ask, self, ("bare" if bare else "", second)))
        return found


_Labels = Callable[..., tuple[str, str]]


@dataclass
class _Asked:
    content: str  # equal for judge(A, B) and judge(B, A): they ask the same, in the same order
    ask: PairInput
    case: _Case
    place: tuple[str, bool]


def _judge_part(
    backend: PairwiseBackend,
    pairs: Sequence[Pair],
    seen: dict[ImageRef, _Seen],
    seed: int,
    temperature: float,
    near_half: float,
    canary: Canary,
) -> list[Judgement]:
    cases = [_open(pair, seen, backend.prompt.overlays) for pair in pairs]
    labels = backend.prompt.draw_labels
    for bare in (False, True):
        asked = []
        for case in cases:
            wanted = not bare or canary == "all" or (canary == "flagged" and case.flags)
            if wanted and not case.stop:
                asked += case.asks(seed, seen, labels, bare)
        asked.sort(key=lambda one: one.content)
        once = {one.content: one.ask for one in asked}
        predictions = dict(zip(once, backend.predict(list(once.values())), strict=True)) if once else {}
        for one in asked:
            one.case.answers[one.place] = predictions[one.content]
    return [_close(case, temperature, near_half) for case in cases]


def _open(pair: Pair, seen: dict[ImageRef, _Seen], overlays: bool) -> _Case:
    """Clean the words, and find what stands against a verdict before anything is asked.

    Words on an image are the feed's, else OCR's; a backend that is not shown them (`overlays`) is not
    doubted for them.
    """
    flags: list[str] = []
    words = []
    stop = ""
    said = []
    for side, creative in (("A", pair.a), ("B", pair.b)):
        look = seen[creative.image]
        problem = look.problem or _held(creative.text, look.read)
        if problem and not stop:
            stop = f"image {side} {problem}"
        said.append((creative.text or look.read) if overlays else "")
    for text in (*said, pair.title, *pair.interest):
        cleaned, found = clean(text)
        words.append(cleaned)
        flags += found
    if not stop:
        stop = one_is_a_copy(seen[pair.a.image].picture, seen[pair.b.image].picture)
    one, two, title, *asked = words
    for side, words_on in (("A", one), ("B", two)):
        if unrepeated(words_on, asked) != words_on:
            flags.append(f"{REPEATED} {side}")
    one, two = unrepeated(one, asked), unrepeated(two, asked)
    if not stop and not title and clean(pair.title)[1]:
        stop = "the title is nothing but suspicious words"
    interest = tuple(text for text in asked if text)
    return _Case(pair, title, interest, (one, two), list(dict.fromkeys(flags)), stop, {})


def _held(*overlay: str) -> str:
    why = quarantine(overlay)
    return f"is held for review: {why}" if why else ""


def _close(case: _Case, temperature: float, near_half: float) -> Judgement:
    """Both orders' predictions as one judgement."""
    first, second = case.answers.get(("", False)), case.answers.get(("", True))
    if case.stop or first is None or second is None:
        return Judgement(
            pair_id=case.pair.id,
            p=0.5,
            p_first=0.5,
            p_second=0.5,
            abstained=case.stop,
            flags=tuple(case.flags),
        )
    why = ""
    if first.p_first is None or second.p_first is None:
        why = "the backend gave no usable answer"
        p_first = p_second = p = 0.5
    else:
        p_first, p_second = first.p_first, 1 - second.p_first
        p = mean_probability(first.p_first, second.p_first, temperature)
        if (p_first - 0.5) * (p_second - 0.5) < 0:
            why = "the winner changes with the order"
        elif abs(p - 0.5) < near_half:
            why = "too close to call"
        bare = [case.answers.get(("bare", second)) for second in (False, True)]
        alone = [o.p_first for o in bare if o is not None and o.p_first is not None]
        if len(alone) == 2:
            without = mean_probability(alone[0], alone[1], temperature)
            if (without > 0.5) != (p > 0.5):
                case.flags.append("the words decide: without them the other image wins")
                if not why and len(case.flags) > 1:
                    why = "suspicious words decide it"
    dropped = [*first.dropped, *second.dropped]
    reasons: list[Assessment | None] = [first.assessment, second.assessment]
    for place, said in enumerate(reasons):
        if said is not None:
            reasons[place], out = ground(said, case.title, case.interest)
            dropped += out
    return Judgement(
        pair_id=case.pair.id, p=p, p_first=p_first, p_second=p_second, abstained=why, flags=tuple(case.flags),
        assessment=reasons[0], mirrored=reasons[1].swapped() if reasons[1] is not None else None,
        tokens=sum(opinion.tokens for opinion in case.answers.values()),
        dropped=tuple(dict.fromkeys(dropped)),
    )  # fmt: skip


def mean_probability(p_first: float, p_other: float, temperature: float = 1.0) -> float:
    """That A is better, from p(first) with A first and p(first) with B first: the mean log-odds.

    A multiple of 2^-40, so that it and its complement add up to exactly one.
    """
    odds = (_logit(p_first) - _logit(p_other)) / 2
    return 0.5 + round(math.tanh(odds / (2 * temperature)) * 2**39) / 2**40


def _logit(p: float) -> float:
    p = min(max(p, 1e-12), 1 - 1e-12)
    return math.log(p) - math.log1p(-p)


def fit_temperature(
    judgements: Sequence[Judgement], posteriors: Sequence[float], grid: int = 400
) -> tuple[float, float]:
    """Temperature with the lowest log loss against the posteriors, and that loss; for validation pairs only.

    `judgements` must have been made at temperature 1. Pairs that were never asked (p = 0.5 in both orders)
    carry no information and are left out. Raises `ValueError` where none is left.
    """
    import numpy as np

    rows = [
        (_logit(j.p), q)
        for j, q in zip(judgements, posteriors, strict=True)
        if (j.p_first, j.p_second) != (0.5, 0.5)
    ]
    if not rows:
        raise ValueError("no judgement to fit a temperature on")
    odds, q = np.array(rows).T
    temperatures = np.geomspace(0.1, 20, grid)
    scaled = odds[None] / temperatures[:, None]
    losses = (np.logaddexp(0, -scaled) * q + np.logaddexp(0, scaled) * (1 - q)).mean(1)
    best = int(losses.argmin())
    return float(temperatures[best]), float(losses[best])
