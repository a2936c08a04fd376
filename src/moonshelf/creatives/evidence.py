"""Claims in a selector's reasons, and whether what is known of the pictures bears them out.

A reason is a few words about one picture ("says waterproof", "faint words and badge", "cut off"). Those that
speak of something checkable become claims (a fact and its value) and are held against `Creative.facts`, which
a simulator knows by construction and a detector finds out otherwise (words by OCR, colour, size). A fact that
is not known refutes nothing. The vocabulary is ours, the reward and the evaluation share it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from moonshelf.creatives.protocol import Assessment

Claim = tuple[str, str]  # fact, value

_LEGIBLE = {"no words": "none", "clear words": "clear", "faint words": "faint"}
_FLAWS: dict[str, tuple[Claim, ...]] = {
    "words over product": (("covers", "yes"),),
    "covered cut off": (("covers", "yes"), ("crop", "cropped")),
    "cut off": (("crop", "cropped"),),
}
# What is there, what is looked for, and whether it is the same; the last is the reader's word, not a claim.
SOUGHT = re.compile(
    r"(?P<seen>(?:says|shows|shown) .+?)"
    r"(?: \(?(?P<who>wants|titled) (?P<sought>.+?):? (?P<met>yes|no)\)?)?(?= and | /|,|$)"
)
_PLACES = {"centred": "centre", "left": "left", "right": "right"}
_TRUTHS = {"off topic ": "irrelevant", "untrue ": "false"}
_PROPS = {"no props": "none", "few props": "few", "clutter": "clutter"}


def claims(question: str, reason: str) -> list[Claim]:
    """What a reason states of its picture, as far as it can be checked; [] for anything else."""
    reason = reason.strip().lower()
    if question in ("query", "title"):
        return [claim for part in reason.split(" and ") for claim in _answered(part)]
    if question == "text":
        return _words(reason)
    if question == "layout":
        flaw = next((flaw for flaw in _FLAWS if reason.startswith(flaw)), "")
        place = _PLACES.get(reason.removeprefix(flaw).strip())
        return [*_FLAWS.get(flaw, ()), *([("position", place)] if place else [])]
    if question == "props":
        return [("props", _PROPS[reason])] if reason in _PROPS else []
    fact = {"subject": "scale", "background": "background"}.get(question)
    return [(fact, reason)] if fact and reason else []


def readable(assessment: Assessment) -> Assessment:
    """The same with its evidence as people read it: "shows grey (wants red: no)"."""

    def shown(found: re.Match[str]) -> str:
        sought = f" ({found['who']} {found['sought']}: {found['met']})" if found["met"] else ""
        return found["seen"] + sought

    findings = [
        finding.model_copy(
            update={name: SOUGHT.sub(shown, getattr(finding, name)) for name in ("reason_a", "reason_b")}
        )
        for finding in assessment.findings
    ]
    return assessment.model_copy(update={"findings": tuple(findings)})


def _answered(part: str) -> list[Claim]:
    """Claims of what a picture is said to have to do with a query, or with the title."""
    found = SOUGHT.fullmatch(part)
    if found is None:
        return []
    word, _, rest = found["seen"].partition(" ")
    if word == "says" and rest == "nothing":
        return [("legible", "none")]
    fact = {"says": "claim", "shows": "colour", "shown": "scale"}[word]
    if rest.startswith("untrue "):
        return [("claim_truth", "false"), (fact, rest.removeprefix("untrue "))]
    return [(fact, "" if rest == "off topic" else rest)]


def _words(reason: str) -> list[Claim]:
    """Claims about the words on a picture: whether they are true, legible, what they say, and a badge."""
    badged, rest = reason.endswith(" and badge"), reason.removesuffix(" and badge")
    truth = next((start for start in _TRUTHS if rest.startswith(start)), "")
    rest = rest.removeprefix(truth)
    words = next((words for words in _LEGIBLE if rest.startswith(words)), None)
    if words is None:
        return []
    found: list[Claim] = [("legible", _LEGIBLE[words]), ("badge", "some" if badged else "none")]
    if truth:
        found.append(("claim_truth", _TRUTHS[truth]))
    said = rest.removeprefix(words).strip()
    return [*found, ("claim", said)] if said else found


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


def check_assessment(
    assessment: Assessment, a: Mapping[str, str], b: Mapping[str, str]
) -> dict[str, tuple[int, int]]:
    """(refuted, checked) claims by question, A's against the facts of A and B's against those of B."""
    found = {}
    for finding in assessment.findings:
        one = check(finding.question, finding.reason_a, a)
        other = check(finding.question, finding.reason_b, b)
        found[finding.question] = one[0] + other[0], one[1] + other[1]
    return found
