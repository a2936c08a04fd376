"""Are a selector's reasons worth anything? Checked, not read: form, agreement, truth.

Form: share of answers that keep the protocol. Agreement: do the reasons speak for the verdict that came with
them, and do they say the same when the pair is shown in the other order? Truth: answers against the
construction, and claims about a picture (its words, colours, background …) against what is known of it; the
same claims held against the *other* picture of the pair are the control, since a claim that fits both says
nothing. Nothing here asks a model to grade another. Cause, by editing what a reason names, is
`research/studies/reason_edits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from moonshelf.creatives.evaluation.metrics import Figure, Rows
from moonshelf.creatives.evidence import claims, holds
from moonshelf.creatives.schema import ASPECTS, KEYS, Assessment, Judgement, Pair


def _written(
    pairs: Sequence[Pair], judgements: Sequence[Judgement]
) -> Iterator[tuple[Pair, Judgement, Assessment]]:
    """Every valid answer: at most two a pair, by the order that was shown, in terms of A and B."""
    for pair, judgement in zip(pairs, judgements, strict=True):
        for found in (judgement.assessment, judgement.mirrored):
            if found is not None:
                yield pair, judgement, found


def agreement_figures(pairs: Sequence[Pair], judgements: Sequence[Judgement]) -> list[Figure]:
    """Schema validity, rubric against verdict, written against read verdict, mirror under swap.

    [] where the backend gives no reasons. Rows are orders (two a pair), of the mirror test pairs.
    """
    rows = Rows()
    if not any(one.assessment or one.mirrored for one in judgements):
        return []
    for pair, judgement in zip(pairs, judgements, strict=True):
        first, second = judgement.assessment, judgement.mirrored
        if (judgement.p_first, judgement.p_second) == (0.5, 0.5) and not (first or second):
            continue  # it was stopped for its images, or left without an answer
        for found, p in ((first, judgement.p_first), (second, judgement.p_second)):
            rows.add("schema valid", found is not None, pair.product_id)
            if found is None:
                continue
            rows.add("claims left out", len(judgement.dropped), pair.product_id)
            score = found.rubric()
            rows.add("rubric is even", score == 0, pair.product_id)
            if score:
                rows.add("rubric agrees with the verdict", _agrees(np.sign(score), p), pair.product_id)
            if found.verdict:
                agrees = _agrees(1 if found.verdict == "A" else -1, p)
                rows.add("written verdict agrees with the read one", agrees, pair.product_id)
        if first is not None and second is not None:
            same = [first[key].answer == second[key].answer for key in KEYS if key in first and key in second]
            rows.add("same answers in the other order", float(np.mean(same)), pair.product_id)
            rows.add("all answers the same in the other order", all(same), pair.product_id)
    return [
        rows.figure("schema valid"),
        rows.figure("rubric agrees with the verdict", "orders whose reasons lean to one side"),
        rows.figure("rubric is even"),
        rows.figure("written verdict agrees with the read one"),
        rows.figure("same answers in the other order"),
        rows.figure("all answers the same in the other order"),
        rows.figure("claims left out", "of what title and interest do not say, a pair"),
    ]


def _agrees(sign: float, p: float) -> float:
    return (float(np.sign(p - 0.5)) * sign + 1) / 2


def question_figures(
    pairs: Sequence[Pair], judgements: Sequence[Judgement]
) -> list[tuple[Figure, float | None]]:
    """Accuracy of the answer to each question against `Pair.assessment`, each with what the commonest answer
    would reach (over both orders, so A and B are equally common), and all compared aspects together first.

    Rows are valid answers, two a pair. [] where there is no truth or no answer.
    """
    rows, answers = Rows(), {key: Counter[str]() for key in KEYS}
    for pair, _, found in _written(pairs, judgements):
        for key in KEYS:
            if pair.assessment is None or key not in found or key not in pair.assessment:
                continue
            truth = pair.assessment[key].answer
            for name in (key, "all aspects") if key in ASPECTS else (key,):
                rows.add(name, found[key].answer == truth, pair.product_id)
            answers[key].update((truth, pair.assessment[key].swapped().answer))
    constant = {key: max(found.values()) / found.total() for key, found in answers.items() if found}
    if not constant:
        return []
    mean = float(np.mean([constant[key] for key in ASPECTS if key in constant]))
    return [(rows.figure(key), chance) for key, chance in ({"all aspects": mean} | constant).items()]


def claim_figures(pairs: Sequence[Pair], judgements: Sequence[Judgement]) -> list[Figure]:
    """Share of checkable claims that the facts of their picture bear out, and, as a control, the other's.

    Rows are claims (`creatives.evidence`), of valid answers in both orders. Claims that hold of both pictures
    are easy; those of a fact in which the two differ are counted apart. [] where nothing could be checked.
    """
    names = (
        "claims borne out", "claims of the one held against the other",
        "claims borne out where the two differ", "checkable claims an answer",
    )  # fmt: skip
    rows = Rows()
    for pair, _, found in _written(pairs, judgements):
        if not (pair.a.facts or pair.b.facts):
            continue
        checked = 0
        for finding, left in product(found.findings, (True, False)):
            mine, theirs = (pair.a, pair.b) if left else (pair.b, pair.a)
            for claim in claims(finding.question, finding.reason_a if left else finding.reason_b):
                held, there = holds(claim, mine.facts), holds(claim, theirs.facts)
                if held is None or there is None:
                    continue
                checked += 1
                rows.add(names[0], held, pair.product_id)
                rows.add(names[1], there, pair.product_id)
                if mine.facts[claim[0]] != theirs.facts[claim[0]]:
                    rows.add(names[2], held, pair.product_id)
        rows.add(names[3], checked, pair.product_id)
    return [rows.figure(name) for name in names] if rows.found[names[0]] else []
