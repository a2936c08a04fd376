"""The evaluation protocol: ten questions about two creatives of one product, and the answers to them.

The questions are Creative4U's (what each asks about is theirs, the wording is ours). Two decide whether
there is anything to compare, seven compare one aspect each, the last is the verdict. An `Assessment` speaks
of A and B; a judge that saw the pair in the other order is read through `swapped`, so that everything that
is kept, averaged or shown is in one order. Schema and order of the questions are fixed: what a model writes
either keeps them or is invalid, and an invalid assessment abstains.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Answer = Literal["yes", "no", "A>B", "A=B", "A<B"]
Side = Literal["A", "B"]
MIRROR: dict[str, Answer] = {"yes": "yes", "no": "no", "A>B": "A<B", "A=B": "A=B", "A<B": "A>B"}
SIGN: dict[str, int] = {"A>B": 1, "A=B": 0, "A<B": -1, "yes": 0, "no": 0}


@dataclass(frozen=True)
class Question:
    """One line of the protocol; `compares` tells the seven aspects from the two gates."""

    key: str
    asks: str
    compares: bool = True


QUESTIONS: tuple[Question, ...] = (
    Question("same", "Are both creatives one and the same image?", compares=False),
    Question("similar", "Are they too much alike for a shopper to tell apart?", compares=False),
    Question("query", "Which answers better what the shopper looks for?"),
    Question("title", "Which is truer to what the title says the product is?"),
    Question("text", "Whose words on the image help more: legible, relevant, not too many?"),
    Question("props", "Whose people and props support the product better, without clutter?"),
    Question("layout", "Which is laid out better: position, balance, nothing covered?"),
    Question("subject", "In which is the product itself clearer: size, sharpness, wholeness?"),
    Question("background", "Whose background sets the product off better?"),
)
KEYS: tuple[str, ...] = tuple(question.key for question in QUESTIONS)
NEEDS = ("title", "query")  # questions that are asked only where there is a title, or an interest
VERDICT = "Which one would this shopper rather click?"  # the tenth: the answer, not a line of the reasons


def unasked(title: str, interest: Sequence[str]) -> frozenset[str]:
    """Keys of the questions about what was not given."""
    return frozenset(key for key, given in (("title", title), ("query", interest)) if not given)


class Finding(BaseModel):
    """The answer to one question, with what it rests on (shown to people, checked where it can be)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    answer: Answer
    reason_a: str = ""  # what creative A shows in this respect
    reason_b: str = ""

    @model_validator(mode="after")
    def _fits(self) -> Finding:
        if self.question not in KEYS:
            raise ValueError(f"there is no question {self.question!r}; there are {', '.join(KEYS)}")
        compares = QUESTIONS[KEYS.index(self.question)].compares
        if compares != (self.answer not in ("yes", "no")):
            raise ValueError(f"{self.answer!r} does not answer the question {self.question!r}")
        return self

    def swapped(self) -> Finding:
        return Finding(
            question=self.question,
            answer=MIRROR[self.answer],
            reason_a=self.reason_b,
            reason_b=self.reason_a,
        )


class Assessment(BaseModel):
    """Answers to the questions that were asked, in their order, and the verdict written after them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    findings: tuple[Finding, ...]
    verdict: Side | None = None

    @model_validator(mode="after")
    def _complete(self) -> Assessment:
        told = tuple(finding.question for finding in self.findings)
        if told != tuple(key for key in KEYS if key in told or key not in NEEDS):
            raise ValueError(
                f"an assessment answers {', '.join(KEYS)}, each once and in this order; "
                f"only {' and '.join(NEEDS)} may be missing"
            )
        return self

    def __getitem__(self, key: str) -> Finding:
        """Raises KeyError for a question that was not asked."""
        for finding in self.findings:
            if finding.question == key:
                return finding
        raise KeyError(key)

    def __contains__(self, key: str) -> bool:
        return any(finding.question == key for finding in self.findings)

    def without(self, keys: Collection[str]) -> Assessment:
        """The same without the answers to some questions of `NEEDS`."""
        return self.model_copy(update={"findings": tuple(f for f in self.findings if f.question not in keys)})

    def swapped(self) -> Assessment:
        """The same assessment with the names A and B exchanged; twice gives the assessment back."""
        other: dict[Side, Side] = {"A": "B", "B": "A"}
        return Assessment(
            findings=tuple(finding.swapped() for finding in self.findings),
            verdict=other[self.verdict] if self.verdict else None,
        )

    def rubric(self) -> int:
        """Aspects that speak for A minus those that speak for B: -7 … 7."""
        return sum(SIGN[finding.answer] for finding in self.findings)


class Judgement(BaseModel):
    """What a selector says of one pair after seeing it in both orders."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pair_id: str
    p: float = Field(ge=0, le=1)  # that A is the better one: mean over the orders, calibrated
    p_first: float = Field(ge=0, le=1)  # the same with A shown first, as the backend gave it
    p_second: float = Field(ge=0, le=1)  # with A shown second
    abstained: str = ""  # why there is no verdict: same image, blank image, orders disagree, too close …
    flags: tuple[str, ...] = ()  # what a person should look at: hostile text, canary …
    assessment: Assessment | None = None  # A shown first
    mirrored: Assessment | None = None  # A shown second, in terms of A and B all the same
    tokens: int = 0  # written, both orders
    dropped: tuple[str, ...] = ()  # claims about title or interest that these do not bear out: no reasons

    @property
    def verdict(self) -> Side | None:
        """A or B; None where the selector abstains."""
        return None if self.abstained else "A" if self.p > 0.5 else "B"

    @property
    def flipped(self) -> bool:
        """The orders contradict each other: the winner changes with the place."""
        return (self.p_first - 0.5) * (self.p_second - 0.5) < 0
