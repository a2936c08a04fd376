"""Are a selector's reasons worth anything? Checked, not read: form, agreement, truth, cause.

Form: share of answers that keep the protocol. Agreement: do the reasons speak for the verdict that came with
them, and do they say the same when the pair is shown in the other order? Truth: answers against the
construction, and claims about a picture (its words, colours, background …) against what is known of it; the
same claims held against the *other* picture of the pair are the control, since a claim that fits both says
nothing. Cause: a factor that was named as a reason is edited on the side that it spoke for, and the
probability must fall by more than under an edit of a factor that was not named (after EDCT, 2510.00047).
Controls: one picture twice, a blank one, noise in place of both. Nothing here asks a model to grade another.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from moonshelf import images
from moonshelf.creatives.evaluation.metrics import Figure, mean_figure
from moonshelf.creatives.evaluation.record import Trial
from moonshelf.creatives.evidence import claims, holds
from moonshelf.creatives.schema import KEYS, QUESTIONS, Assessment, Creative, Judgement, Pair, Side
from moonshelf.product import ImageRef

COMPARED = tuple(question.key for question in QUESTIONS if question.compares)
CONTROLS = ("same image", "same image, re-encoded", "blank image", "noise for both")
NOISE_SIDE = 256  # pixels


def was_asked(judgement: Judgement) -> bool:
    """A backend saw the pair: it was not stopped for its images, nor left without an answer."""
    return (judgement.p_first, judgement.p_second) != (0.5, 0.5) or any(_orders(judgement))


def explains(judgements: Sequence[Judgement]) -> bool:
    """The backend gives reasons at all."""
    return any(any(_orders(one)) for one in judgements)


def _orders(judgement: Judgement) -> tuple[Assessment | None, Assessment | None]:
    """What was written with A shown first, and with A shown second, both in terms of A and B."""
    return judgement.assessment, judgement.mirrored


# ---- form and agreement ---------------------------------------------------------------------------------


def agreement_figures(pairs: Sequence[Pair], judgements: Sequence[Judgement]) -> list[Figure]:
    """Schema validity, rubric against verdict, written against read verdict, mirror under swap.

    [] where the backend gives no reasons. Rows are orders (two a pair), of the mirror test pairs.
    """
    if not explains(judgements):
        return []
    valid, untrue = _Rows(), _Rows()
    rubric, silent, written, mirror, whole = _Rows(), _Rows(), _Rows(), _Rows(), _Rows()
    for pair, judgement in zip(pairs, judgements, strict=True):
        if not was_asked(judgement):
            continue
        for found, p in zip(_orders(judgement), (judgement.p_first, judgement.p_second), strict=True):
            valid.add(found is not None, pair)
            if found is None:
                continue
            untrue.add(len(judgement.dropped), pair)
            score = found.rubric()
            silent.add(score == 0, pair)
            if score:
                rubric.add(_agrees(np.sign(score), p), pair)
            if found.verdict:
                written.add(_agrees(1 if found.verdict == "A" else -1, p), pair)
        first, second = _orders(judgement)
        if first is not None and second is not None:
            same = [first[key].answer == second[key].answer for key in KEYS if key in first and key in second]
            mirror.add(float(np.mean(same)), pair)
            whole.add(all(same), pair)
    return [
        valid.figure("schema valid"),
        rubric.figure("rubric agrees with the verdict", "orders whose reasons lean to one side"),
        silent.figure("rubric is even"),
        written.figure("written verdict agrees with the read one"),
        mirror.figure("same answers in the other order"),
        whole.figure("all answers the same in the other order"),
        untrue.figure("claims left out", "of what title and interest do not say, a pair"),
    ]


def _agrees(sign: float, p: float) -> float:
    return (float(np.sign(p - 0.5)) * sign + 1) / 2


class _Rows:
    """Values with the product of each."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.clusters: list[str] = []

    def add(self, value: float, pair: Pair) -> None:
        self.values.append(float(value))
        self.clusters.append(pair.product_id)

    def figure(self, name: str, note: str = "") -> Figure:
        return mean_figure(name, self.values, self.clusters, note=note)


# ---- truth ----------------------------------------------------------------------------------------------


def question_figures(
    pairs: Sequence[Pair], judgements: Sequence[Judgement]
) -> list[tuple[Figure, float | None]]:
    """Accuracy of the answer to each question against `Pair.assessment`, each with what the commonest answer
    would reach (over both orders, so A and B are equally common), and all compared aspects together first.

    Rows are valid answers, two a pair. [] where there is no truth or no answer.
    """
    right = {key: _Rows() for key in KEYS}
    answers: dict[str, Counter[str]] = {key: Counter() for key in KEYS}
    for pair, judgement in zip(pairs, judgements, strict=True):
        for found in _orders(judgement):
            if pair.assessment is None or found is None:
                continue
            for key in KEYS:
                if key not in found or key not in pair.assessment:
                    continue
                truth = pair.assessment[key].answer
                right[key].add(found[key].answer == truth, pair)
                answers[key].update((truth, pair.assessment[key].swapped().answer))
    if not right[KEYS[0]].values:
        return []
    constant = {key: max(found.values()) / found.total() for key, found in answers.items() if found}
    together = _Rows()
    for key in COMPARED:
        together.values += right[key].values
        together.clusters += right[key].clusters
    mean = float(np.mean([constant[key] for key in COMPARED if key in constant]))
    return [
        (together.figure("all aspects"), mean),
        *((right[key].figure(key), constant[key]) for key in KEYS if key in constant),
    ]


def claim_figures(pairs: Sequence[Pair], judgements: Sequence[Judgement]) -> list[Figure]:
    """Share of checkable claims that the facts of their picture bear out, and, as a control, the other's.

    Rows are claims (`creatives.evidence`), of valid answers in both orders. Claims that hold of both pictures
    are easy; those of a fact in which the two differ are counted apart. [] where nothing could be checked.
    """
    borne, other, apart, often = _Rows(), _Rows(), _Rows(), _Rows()
    for pair, judgement in zip(pairs, judgements, strict=True):
        for found in _orders(judgement):
            if found is None or not (pair.a.facts or pair.b.facts):
                continue
            checked = 0
            for finding in found.findings:
                sides = ((finding.reason_a, pair.a, pair.b), (finding.reason_b, pair.b, pair.a))
                for reason, mine, theirs in sides:
                    for claim in claims(finding.question, reason):
                        held, there = holds(claim, mine.facts), holds(claim, theirs.facts)
                        if held is None or there is None:
                            continue
                        checked += 1
                        borne.add(held, pair)
                        other.add(there, pair)
                        if mine.facts[claim[0]] != theirs.facts[claim[0]]:
                            apart.add(held, pair)
            often.add(checked, pair)
    if not borne.values:
        return []
    return [
        borne.figure("claims borne out"),
        other.figure("claims of the one held against the other"),
        apart.figure("claims borne out where the two differ"),
        often.figure("checkable claims an answer"),
    ]


# ---- controls -------------------------------------------------------------------------------------------


def control_pairs(pairs: Sequence[Pair], control: str) -> list[Pair]:
    """Pairs on which a sound selector has no verdict; without those whose first picture cannot be read."""
    found = []
    for pair in pairs:
        try:
            picture = images.load(pair.a.image, max_side=1024)
        except images.ImageError:
            continue
        if control == "same image":
            a, b = pair.a.image, pair.a.image
        elif control == "same image, re-encoded":
            smaller = picture.resize((max(1, picture.width * 95 // 100), max(1, picture.height * 95 // 100)))
            a, b = pair.a.image, ImageRef(data=_jpeg(smaller))
        elif control == "blank image":
            a, b = pair.a.image, ImageRef(data=_jpeg(_flat(picture.size)))
        elif control == "noise for both":
            a, b = (ImageRef(data=_jpeg(_noise(f"{pair.id} {side}"))) for side in "ab")
        else:
            raise ValueError(f"there is no control {control!r}")
        sides = {
            "a": Creative(id=f"{pair.a.id} a", image=a),
            "b": Creative(id=f"{pair.a.id} b", image=b),
            "label": None,
            "assessment": None,
            "true_rates": None,
        }
        found.append(pair.model_copy(update=sides))
    return found


def control_figures(control: str, pairs: Sequence[Pair], judgements: Sequence[Judgement]) -> list[Figure]:
    """Share of a control's pairs without a verdict, and how far the probability is from one half."""
    quiet, far = _Rows(), _Rows()
    for pair, judgement in zip(pairs, judgements, strict=True):
        quiet.add(bool(judgement.abstained), pair)
        far.add(abs(judgement.p - 0.5), pair)
    return [quiet.figure(f"{control}: abstains"), far.figure(f"{control}: distance from one half")]


def _jpeg(picture: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=87, subsampling=0)  # type: ignore[attr-defined]
    return file.getvalue()


def _flat(size: tuple[int, int]) -> object:
    from PIL import Image

    return Image.new("RGB", size, (255, 255, 255))


def _noise(name: str) -> object:
    from PIL import Image

    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    coarse = np.random.default_rng(seed).integers(0, 256, (NOISE_SIDE // 8, NOISE_SIDE // 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((NOISE_SIDE, NOISE_SIDE), Image.Resampling.NEAREST)


# ---- cause ----------------------------------------------------------------------------------------------


# The pair with what a question asks about made worse on one side, and the pair with something changed there
# that the question does not ask about; None where that cannot be done.
Editor = Callable[[Pair, Side, str], tuple[Pair, Pair] | None]


def named_factor(judgement: Judgement, seed: int = 0) -> tuple[Side, str] | None:
    """The favoured side and one aspect that both orders name in its favour, drawn; None without."""
    first, second = _orders(judgement)
    if judgement.verdict is None or first is None or second is None:
        return None
    wanted = "A>B" if judgement.verdict == "A" else "A<B"
    both = [key for key in COMPARED if key in first and key in second]
    named = [key for key in both if first[key].answer == second[key].answer == wanted]
    if not named:
        return None
    digest = hashlib.sha256(f"{seed} {judgement.pair_id}".encode()).digest()
    return judgement.verdict, named[digest[0] % len(named)]


def edited_pairs(
    pairs: Sequence[Pair], judgements: Sequence[Judgement], editor: Editor, *, most: int, seed: int = 0
) -> list[tuple[Pair, Side, str, Pair, Pair]]:
    """(pair, favoured side, named factor, edited, placebo) of the first `most` pairs that allow both."""
    found: list[tuple[Pair, Side, str, Pair, Pair]] = []
    for pair, judgement in zip(pairs, judgements, strict=True):
        named = named_factor(judgement, seed)
        if named is None:
            continue
        if (changed := editor(pair, *named)) is not None:
            found.append((pair, *named, *changed))
        if len(found) == most:
            break
    return found


def edit_figures(trials: Sequence[Trial]) -> list[Figure]:
    """How far the favoured side falls when the named factor is edited, beside the placebo, and how often
    it falls by more. [] without trials."""
    if not trials:
        return []
    clusters = [one.cluster for one in trials]
    edit = np.array([one.before - one.edited for one in trials])
    placebo = np.array([one.before - one.placebo for one in trials])
    more = (np.sign(edit - placebo) + 1) / 2
    return [
        mean_figure("fall after editing the named factor", edit, clusters),
        mean_figure("fall after a placebo edit", placebo, clusters),
        mean_figure("named factor minus placebo", edit - placebo, clusters),
        mean_figure("falls more than under the placebo", more, clusters),
        mean_figure("verdict turns after editing", [one.edited < 0.5 for one in trials], clusters),
        mean_figure("verdict turns after the placebo", [one.placebo < 0.5 for one in trials], clusters),
    ]
