"""Creatives of a product, pairs of them, the questions that a pair is judged by, and the judgements.

Labels are impressions and clicks, never a bare "A is better": what they say is the posterior probability that
one rate is higher, and everything that is measured goes against that. `Campaign` holds all creatives of one
product in one context, `Pair` two of them. Pictures are references, as in `Product`.

The questions are Creative4U's (what each asks about is theirs, the wording is ours). Two decide whether there
is anything to compare, seven compare one aspect each, the last is the verdict. An `Assessment` speaks of A
and B; a judge that saw the pair in the other order is read through `swapped`, so that everything that is
kept, averaged or shown is in one order. The questions and their order are fixed: what a model writes either
keeps them or is invalid, and an invalid assessment abstains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from moonshelf import images
from moonshelf.product import ImageRef, clean_id

Answer = Literal["yes", "no", "A>B", "A=B", "A<B"]
Side = Literal["A", "B"]
Label = Literal["A", "B", "tie"]
Identifier = Annotated[str, AfterValidator(clean_id)]
Stratum = Literal["decisive", "weak", "toss-up"]
MIRROR: dict[str, Answer] = {"yes": "yes", "no": "no", "A>B": "A<B", "A=B": "A=B", "A<B": "A>B"}
SIGN: dict[str, int] = {"A>B": 1, "A=B": 0, "A<B": -1, "yes": 0, "no": 0}
OTHER: dict[str | None, Label | None] = {"A": "B", "B": "A", "tie": "tie", None: None}
# What a verdict is, and is not, in one line under every result.
CAVEAT = "A preference of the judge, for triage and as a prior of a test; it foretells no click-through rate."


class Record(BaseModel):
    """A value of this room: never changed, and of no other fields than its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# ---- questions and answers ---------------------------------------------------------------------------


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
ASPECTS: tuple[str, ...] = tuple(question.key for question in QUESTIONS if question.compares)
NEEDS = ("title", "query")  # questions that are asked only where there is a title, or an interest
VERDICT = "Which one would this shopper rather click?"  # the tenth: the answer, not a line of the reasons


def unasked(title: str, interest: Sequence[str]) -> frozenset[str]:
    """Keys of the questions about what was not given."""
    return frozenset(key for key, given in (("title", title), ("query", interest)) if not given)


class AspectAnswer(Record):
    """The answer to one question, with what it rests on (shown to people, checked where it can be)."""

    question: str
    answer: Answer
    reason_a: str = ""  # what creative A shows in this respect
    reason_b: str = ""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.question not in KEYS:
            raise ValueError(f"there is no question {self.question!r}; there are {', '.join(KEYS)}")
        if (self.question in ASPECTS) != (self.answer not in ("yes", "no")):
            raise ValueError(f"{self.answer!r} does not answer the question {self.question!r}")
        return self

    def swapped(self) -> AspectAnswer:
        return AspectAnswer(
            question=self.question,
            answer=MIRROR[self.answer],
            reason_a=self.reason_b,
            reason_b=self.reason_a,
        )


class Assessment(Record):
    """Answers to the questions that were asked, in their order, and the verdict written after them."""

    findings: tuple[AspectAnswer, ...]
    verdict: Side | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        told = tuple(answer.question for answer in self.findings)
        if told != tuple(key for key in KEYS if key in told or key not in NEEDS):
            raise ValueError(
                f"an assessment answers {', '.join(KEYS)}, each once and in this order; "
                f"only {' and '.join(NEEDS)} may be missing"
            )
        return self

    def __getitem__(self, key: str) -> AspectAnswer:
        """Raises KeyError for a question that was not asked."""
        for answer in self.findings:
            if answer.question == key:
                return answer
        raise KeyError(key)

    def __contains__(self, key: str) -> bool:
        return any(answer.question == key for answer in self.findings)

    def without(self, keys: Collection[str]) -> Assessment:
        """The same without the answers to some questions of `NEEDS`."""
        return self.model_copy(update={"findings": tuple(f for f in self.findings if f.question not in keys)})

    def swapped(self) -> Assessment:
        """The same assessment with the names A and B exchanged; twice gives the assessment back."""
        return Assessment(
            findings=tuple(answer.swapped() for answer in self.findings),
            verdict=OTHER[self.verdict],  # type: ignore[arg-type]
        )

    def rubric(self) -> int:
        """Aspects that speak for A minus those that speak for B: -7 … 7."""
        return sum(SIGN[answer.answer] for answer in self.findings)


class Judgement(Record):
    """What a selector says of one pair after seeing it in both orders."""

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

    def swapped(self) -> Judgement:
        """The judgement of the same pair with the names A and B exchanged."""
        return self.model_copy(
            update={
                "p": 1 - self.p,
                "p_first": 1 - self.p_second,
                "p_second": 1 - self.p_first,
                "assessment": self.mirrored.swapped() if self.mirrored else None,
                "mirrored": self.assessment.swapped() if self.assessment else None,
            }
        )


# ---- creatives ---------------------------------------------------------------------------------------


class Known(Record):
    """What is known of a drawn creative in respect of one question."""

    worth: float = Field(default=0.0, ge=-20, le=20)  # what it adds to the log click-through rate
    reason: str = ""  # what is there, in a few words


class Creative(Record):
    """One advertising image; `facts` is known about it: construction truth, or detectors' findings."""

    id: Identifier
    image: ImageRef
    sha256: str = ""  # of the image bytes, where they were read
    impressions: int | None = Field(default=None, ge=0)
    clicks: int | None = Field(default=None, ge=0)
    text: str = ""  # words drawn on the image, where known
    facts: dict[str, str] = Field(default_factory=dict)
    known: dict[str, Known] = Field(default_factory=dict)  # by question, and for what belongs to none
    known_otherwise: tuple[Known, ...] = ()  # about the query, under each of the `other_interests`

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if (self.clicks is None) != (self.impressions is None):
            raise ValueError("impressions and clicks are given together or not at all")
        if self.clicks is not None and self.impressions is not None and self.clicks > self.impressions:
            raise ValueError(f"{self.clicks} clicks are more than {self.impressions} impressions")
        return self

    @classmethod
    def read(cls, id: str, image: ImageRef, text: str = "") -> Self:
        """One whose picture decodes, with its hash. Raises ImageError, and ValueError for a wrong field."""
        data = images.read_bytes(image)
        images.decode(data, max_side=64)
        return cls(id=id, image=image, sha256=hashlib.sha256(data).hexdigest(), text=text)

    @property
    def rate(self) -> float | None:
        """Observed click-through rate; None without impressions."""
        return self.clicks / self.impressions if self.clicks is not None and self.impressions else None


class _Shown(Record):
    """What a campaign and a pair share: the product, the interest and where it was shown."""

    id: Identifier
    product_id: str
    title: str = ""
    category: tuple[str, ...] = ()
    interest: tuple[str, ...] = ()  # the product's high-frequency queries, or one shopper's
    other_interests: tuple[tuple[str, ...], ...] = ()  # under which the truth is known too, see `known`
    exposure: dict[str, str] = Field(default_factory=dict)  # slot, dates, audience, randomised …
    source: str = ""  # data set; starts with "simulated" for drawn ones


class Campaign(_Shown):
    """Two or more creatives of one product that competed in one context."""

    creatives: tuple[Creative, ...]
    true_rates: tuple[float, ...] | None = None  # only a simulation knows them

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        ids = [creative.id for creative in self.creatives]
        if len(set(ids)) != len(ids):
            raise ValueError("two creatives of a campaign have the same id")
        if self.true_rates is not None and len(self.true_rates) != len(ids):
            raise ValueError("true_rates needs one rate a creative")
        return self

    def pair(self, i: int, j: int, id: str) -> Pair:
        """Creatives number i and j as A and B, with all that the campaign knows of them."""
        shared = {name: getattr(self, name) for name in _Shown.model_fields if name != "id"}
        rates = (self.true_rates[i], self.true_rates[j]) if self.true_rates else None
        return Pair(id=id, a=self.creatives[i], b=self.creatives[j], true_rates=rates, **shared)


class Pair(_Shown):
    """Two creatives of one product. `label` is an annotator's verdict, where there is one."""

    a: Creative
    b: Creative
    label: Label | None = None
    assessment: Assessment | None = None  # annotated, or following from the construction
    rationale: str = ""  # an annotator's reasons in free text, which name A and B: empty once swapped
    true_rates: tuple[float, float] | None = None

    def swapped(self) -> Pair:
        """The same pair with A and B exchanged."""
        return self.model_copy(
            update={
                "a": self.b,
                "b": self.a,
                "label": OTHER[self.label],
                "assessment": self.assessment.swapped() if self.assessment else None,
                "true_rates": self.true_rates[::-1] if self.true_rates else None,
                "rationale": "",
            }
        )
