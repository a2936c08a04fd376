"""Creatives of a product, and pairs of them with what is known about their clicks.

Labels are impressions and clicks, never a bare "A is better": what they say is the posterior probability that
one rate is higher, and everything that is measured goes against that. `Campaign` holds all creatives of one
product in one context; `Pair` two of them. Pictures are references, as in `Product`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from moonshelf.creatives.protocol import Assessment, Side
from moonshelf.product import ImageRef, clean_id

Identifier = Annotated[str, AfterValidator(clean_id)]
Stratum = Literal["decisive", "weak", "toss-up"]


class Known(BaseModel):
    """What is known of a drawn creative in respect of one question."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worth: float = Field(default=0.0, ge=-20, le=20)  # what it adds to the log click-through rate
    reason: str = ""  # what is there, in a few words


class Creative(BaseModel):
    """One advertising image; `facts` is known about it: construction truth, or detectors' findings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    def _counts(self) -> Creative:
        if (self.clicks is None) != (self.impressions is None):
            raise ValueError("impressions and clicks are given together or not at all")
        if self.clicks is not None and self.impressions is not None and self.clicks > self.impressions:
            raise ValueError(f"{self.clicks} clicks are more than {self.impressions} impressions")
        return self

    @property
    def rate(self) -> float | None:
        """Observed click-through rate; None without impressions."""
        return self.clicks / self.impressions if self.clicks is not None and self.impressions else None


class _Shown(BaseModel):
    """What a campaign and a pair share: the product, the interest and where it was shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    def _distinct(self) -> Campaign:
        ids = [creative.id for creative in self.creatives]
        if len(set(ids)) != len(ids):
            raise ValueError("two creatives of a campaign have the same id")
        if self.true_rates is not None and len(self.true_rates) != len(ids):
            raise ValueError("true_rates needs one rate a creative")
        return self


class Pair(_Shown):
    """Two creatives of one product. `label` is an annotator's verdict, where there is one."""

    a: Creative
    b: Creative
    label: Side | Literal["tie"] | None = None
    assessment: Assessment | None = None  # annotated, or following from the construction
    rationale: str = ""  # an annotator's reasons in free text, which name A and B: empty once swapped
    true_rates: tuple[float, float] | None = None

    def swapped(self) -> Pair:
        """The same pair with A and B exchanged."""
        other: dict[str, Side | Literal["tie"]] = {"A": "B", "B": "A", "tie": "tie"}
        return self.model_copy(
            update={
                "a": self.b,
                "b": self.a,
                "label": other[self.label] if self.label else None,
                "assessment": self.assessment.swapped() if self.assessment else None,
                "true_rates": self.true_rates[::-1] if self.true_rates else None,
                "rationale": "",
            }
        )
