"""Claims in a selector's reasons, and whether what is known of the pictures bears them out.

A reason is a few words about one picture ("says waterproof", "faint words and badge", "cut off"). Those that
speak of something checkable become claims (a fact and its value) and are held against `Creative.facts`, which
a simulator knows by construction and a detector finds out otherwise (words by OCR, colour, size). A fact that
is not known refutes nothing. The vocabulary is ours, the reward and the evaluation share it.
"""

from __future__ import annotations

from collections.abc import Mapping

from moonshelf.creatives.protocol import Assessment

Claim = tuple[str, str]  # fact, value

_LEGIBLE = {"no words": "none", "clear words": "clear", "faint words": "faint"}
_LAYOUT: dict[str, Claim] = {
    "words over product": ("covers", "yes"),
    "cut off": ("crop", "cropped"),
    "centred": ("position", "centre"),
    "left": ("position", "left"),
    "right": ("position", "right"),
}
_PROPS = {"no props": "none", "few props": "few", "clutter": "clutter"}


def claims(question: str, reason: str) -> list[Claim]:
    """What a reason states of its picture, as far as it can be checked; [] for anything else."""
    reason = reason.strip().lower()
    word, _, rest = reason.partition(" ")
    if question == "query":
        if word == "says" and rest:
            return (
                [("legible", "none")]
                if rest == "nothing"
                else [("claim", "" if rest == "off topic" else rest)]
            )
        return {"shows": [("colour", rest)], "shown": [("scale", rest)]}.get(word, []) if rest else []
    if question == "title":
        if word == "claims" and rest:
            return [("claim", rest), ("claim_truth", "false")]
        colour, apart, _ = reason.partition(" not ")
        return [("colour", colour)] if apart else []
    if question == "text":
        found: list[Claim] = [("legible", value) for words, value in _LEGIBLE.items() if words in reason]
        if reason.startswith("off topic"):
            found.append(("claim_truth", "irrelevant"))
        if found:
            found.append(("badge", "some" if reason.endswith("and badge") else "none"))
        return found
    if question == "layout":
        return [_LAYOUT[reason]] if reason in _LAYOUT else []
    if question == "props":
        return [("props", _PROPS[reason])] if reason in _PROPS else []
    fact = {"subject": "scale", "background": "background"}.get(question)
    return [(fact, reason)] if fact and reason else []


def holds(claim: Claim, facts: Mapping[str, str]) -> bool | None:
    """Whether the facts bear a claim out; None where they do not speak of it."""
    fact, value = claim
    if fact not in facts:
        return None
    if fact == "badge":
        return (facts[fact] != "none") == (value == "some")
    return facts[fact] == value


def check(question: str, reason: str, facts: Mapping[str, str]) -> tuple[int, int]:
    """(refuted, checked) claims of one reason."""
    found = [held for claim in claims(question, reason) if (held := holds(claim, facts)) is not None]
    return found.count(False), len(found)


def check_assessment(assessment: Assessment, a: Mapping[str, str], b: Mapping[str, str]) -> tuple[int, int]:
    """(refuted, checked) claims of all reasons, A's against the facts of A and B's against those of B."""
    found = [
        check(finding.question, reason, facts)
        for finding in assessment.findings
        for reason, facts in ((finding.reason_a, a), (finding.reason_b, b))
    ]
    return sum(refuted for refuted, _ in found), sum(checked for _, checked in found)
