"""Claims in a selector's reasons, and whether what is known of the pictures bears them out.

A reason is a few words about one picture ("says waterproof", "faint words and badge", "cut off"). Those that
speak of something checkable become claims (a fact and its value) and are held against `Creative.facts`, which
a simulator knows by construction and a detector finds out otherwise (words by OCR, colour, size). A fact that
is not known refutes nothing. The vocabulary is ours, the reward and the evaluation share it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from moonshelf.creatives.schema import Assessment, unasked
from moonshelf.creatives.words import read

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
_NOTHING = {"title": "", "query": "nothing asked"}
_SYNONYMS: dict[str, str] = read("synonyms")
_VALUES: dict[str, set[str]] = {}  # phrase -> what it stands for, the longest phrase first
for _value, _others in _SYNONYMS.items():
    for _said in (_value, *_others.split(", ")):
        _VALUES.setdefault(_said, set()).add(_value)
_VALUES = dict(sorted(_VALUES.items(), key=lambda entry: -len(entry[0])))
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


def grounded(
    side: Mapping[str, str], title: str, interest: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Reasons of one picture by question, as far as title and interest bear them out; and what was left out.

    "shows grey titled red no" needs a red in the title: without one "shows grey" remains, which is true or
    false of the picture alone. "says nothing wants large no" needs a large in some query, and goes whole.
    """
    kept, dropped = dict(side), list[str]()
    for question, given in (("title", (title,)), ("query", tuple(interest))):
        parts = []
        for part in side[question].split(" and ") if side.get(question) else ():
            found = SOUGHT.fullmatch(part)
            if found is None or not found["met"] or _mentioned(found["sought"], given):
                parts.append(part)
                continue
            if any(given):
                dropped.append(
                    f"the {'title' if question == 'title' else 'interest'} names no {found['sought']}"
                )
            if question == "title" and found["seen"].startswith("shows "):
                parts.append(found["seen"])
        if question in side:
            kept[question] = " and ".join(parts) or _NOTHING[question]
    return kept, dropped


def ground(assessment: Assessment, title: str, interest: Sequence[str]) -> tuple[Assessment, list[str]]:
    """The same for both sides of an assessment, without the questions about what was not given."""
    assessment = assessment.without(unasked(title, interest))
    findings, dropped = [], list[str]()
    for finding in assessment.findings:
        reasons = {}
        for name in ("reason_a", "reason_b"):
            kept, out = grounded({finding.question: getattr(finding, name)}, title, interest)
            dropped += out
            reasons[name] = kept[finding.question] if out else getattr(finding, name)
        findings.append(finding.model_copy(update=reasons))
    return assessment.model_copy(update={"findings": tuple(findings)}), dropped


def _mentioned(value: str, texts: Sequence[str]) -> bool:
    """Whether one of the texts names a colour, a material or a quality, in its word or a known synonym."""
    if value in _SYNONYMS:
        return any(value in named(text) for text in texts)
    return any(_phrase(value).search(text) for text in texts)


def named(text: str) -> set[str]:
    """Values that a text names, each phrase once: "navy blue" is no blue, and "off white" no second white."""
    found = set[str]()
    for phrase, values in _VALUES.items():  # the longest first
        text, hits = _phrase(phrase).subn(" | ", text)
        if hits:
            found |= values
    return found


@lru_cache(maxsize=1024)
def _phrase(words: str) -> re.Pattern[str]:
    """A phrase as whole words in either number, written in one, with a hyphen or with a space."""
    joined = r"[\s-]?".join(map(re.escape, words.split()))
    return re.compile(rf"(?<!\w){joined}(?:e?s)?(?!\w)", re.IGNORECASE)


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
