"""What people look through and judge, as the service takes and gives it: feedback, duplicates, creatives, the
dashboard. The rules of `schemas` hold here too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from moonshelf.catalogue.feedback import Entry
from moonshelf.service.schemas import (
    FacetValue,
    Id,
    Image,
    ProductView,
    Reply,
    RowProblem,
    Strict,
    Weights,
    examples,
)

# ---------------------------------------------------------------------------------------- feedback


class FeedbackRequest(Strict):
    """What a person says of a result. `subject` names it, such as the two ids of a pair.

    Kinds: `duplicate` (subject a, b; verdict accept or reject), `creative` (subject campaign, creatives …;
    verdict is the id of the one chosen, or accept), `attribute` (subject id, name; verdict is the right
    value), `search` (subject query, id; verdict accept or reject), `note`.
    """

    model_config = examples(
        {"kind": "duplicate", "subject": {"a": "SKU-1", "b": "SKU-2"}, "verdict": "reject"}
    )

    kind: Literal["duplicate", "creative", "attribute", "search", "note"]
    subject: Annotated[
        dict[Annotated[str, Field(max_length=50)], Annotated[str, Field(max_length=2000)]],
        Field(min_length=1, max_length=20),
    ]
    verdict: Annotated[str, Field(max_length=500)] = ""
    note: Annotated[str, Field(max_length=4000)] = ""

    @model_validator(mode="after")
    def _fits(self) -> FeedbackRequest:
        self.subject = {name: value.strip() for name, value in self.subject.items()}  # ids among them
        needed = {"duplicate": {"a", "b"}, "attribute": {"id", "name"}, "search": {"id"}}.get(
            self.kind, set()
        )
        if missing := sorted(needed - set(self.subject)):
            raise ValueError(f"feedback of kind {self.kind} needs {' and '.join(missing)} in subject")
        if self.kind in ("duplicate", "search") and self.verdict not in ("accept", "reject"):
            raise ValueError(f"the verdict of kind {self.kind} is accept or reject")
        if not self.verdict and not self.note:
            raise ValueError("feedback needs a verdict or a note")
        return self


class FeedbackReply(Reply):
    stored: Entry


class FeedbackList(Reply):
    total: int
    entries: list[Entry] = Field(description="Newest first.")


class SuggestionView(Reply):
    """A value that `moonshelf enrich` suggests for an empty attribute. Feedback on the `attribute` judges it:
    the value itself accepts, another overrides, `none` rejects."""

    product: ProductView
    name: str
    value: str
    source: Literal["title", "picture", "both", "person"]
    confidence: float
    accepted: bool = Field(description="It was sure enough for the supplemental feed.")
    allowed: str | None = Field(description="The taxonomy's own word for it.")
    review: Entry | None = Field(description="The last thing that a person said of this attribute.")


class SuggestionsReply(Reply):
    total: int
    suggestions: list[SuggestionView] = Field(description="The least sure first.")


# -------------------------------------------------------------------------------------- duplicates


class Evidence(Reply):
    """Why two products may be one: what agrees and what does not."""

    a: str
    b: str
    kind: Literal["duplicate", "variant", "similar"]
    score: float = Field(description="Cosine of the two vectors.")
    identifiers: dict[str, str]
    attributes_agree: list[str]
    attributes_differ: dict[str, list[str]]
    title_overlap: float
    picture_bits: int | None = Field(description="Of 63: bits in which the pictures' hashes differ.")
    conflicts: list[str]
    review: Entry | None = Field(default=None, description="The last thing that a person said of the pair.")


class DuplicateGroup(Reply):
    kind: Literal["duplicate", "variant", "similar"]
    score: float
    members: list[ProductView]
    pairs: list[Evidence]


class DuplicatesReply(Reply):
    total: int = Field(description="Groups of these kinds, before paging.")
    counts: dict[str, int] = Field(description="Groups of each kind.")
    groups: list[DuplicateGroup]
    notes: list[str]
    offset: int


# --------------------------------------------------------------------------------------- creatives


class CreativeIn(Strict):
    id: Id
    image: Image
    text: Annotated[str, Field(max_length=1000, description="Words on the image, where they are known.")] = ""


class CreativesRequest(Strict):
    title: Annotated[str, Field(max_length=1000)] = ""
    interest: Annotated[
        list[Annotated[str, Field(max_length=200)]],
        Field(max_length=10, description="What shoppers searched for."),
    ] = []  # noqa: RUF012 — ruff does not follow `Strict` into another module; pydantic copies defaults


class CompareRequest(CreativesRequest):
    a: CreativeIn
    b: CreativeIn


class RankRequest(CreativesRequest):
    creatives: Annotated[list[CreativeIn], Field(min_length=2)]
    budget: Annotated[int, Field(ge=1, le=200)] | None = Field(
        default=None, description="Comparisons at most."
    )
    export: Literal["plan", "csv", "bandit"] | None = Field(
        default=None, description="Put the order into this form too, as `moonshelf creative export` does."
    )
    base_rate: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Usual click-through rate, which a plan and a bandit's priors need."
    )


class FindingView(Reply):
    """One question of the protocol and its answer."""

    question: str = Field(description="Short name.")
    asks: str = Field(description="The question in words.")
    answer: str = Field(description="yes, no, A>B, A=B or A<B.")
    reason_a: str
    reason_b: str


class JudgeReply(Reply):
    judge: str = Field(description="Its name; empty where this service has none.")
    why: str = Field(description="Why it has none.")


class Judged(Reply):
    """What the judge said of two images."""

    p: float = Field(
        description="That a is the better one: a preference of the judge, no click-through rate."
    )
    abstained: str = Field(description="Why there is no verdict, or empty.")
    flags: list[str]
    findings: list[FindingView] = Field(description="Empty where the judge gives no reasons.")


class CompareReply(Judged):
    verdict: Literal["a", "b"] | None = Field(description="None where the judge abstains.")
    winner: str | None = Field(description="Id of the preferred creative.")
    p_first: float
    p_second: float
    judge: str
    note: str


class RankedCreative(Reply):
    id: str
    strength: float = Field(description="Log odds, mean 0.")
    interval: tuple[float, float]
    p_best: float


class PairView(Judged):
    a: str
    b: str
    verdict: str | None = Field(description="Id of the preferred one, None for an abstention.")


class RankReply(Reply):
    order: list[RankedCreative] = Field(description="Best first.")
    winner: str | None
    clear: bool
    identical: list[list[str]]
    unjudged: list[str]
    pairs: list[PairView]
    problems: list[str] = Field(default=[], description="Always empty; goes in the next version.")
    judge: str
    note: str
    export: str | None = None


# --------------------------------------------------------------------------------------- catalogue


class Coverage(Reply):
    """In how many products a field is filled."""

    field: str
    filled: int
    share: float


class Conflict(Reply):
    """A product whose title or feed says one thing and whose rationale another."""

    product: ProductView
    field: str
    feed: str = Field(description="What the title or the attributes say.")
    model: str = Field(description="What the model wrote after seeing the picture.")


class CatalogueReply(Reply):
    """The dashboard's numbers."""

    products: int
    with_picture: int
    reasoned: int = Field(description="Products with a rationale.")
    rationales_valid: int
    model: str
    fingerprint: str
    reason: str
    store_version: int
    index: dict[str, Any] | None = Field(description="What index.json says; None without an index.")
    index_note: str = Field(description="Why the index is not used, or empty.")
    coverage: list[Coverage]
    categories: list[FacetValue]
    weights: Weights | None = Field(description="Mean share of each modality.")
    conflicts: list[Conflict]
    conflicts_total: int
    broken: list[RowProblem] = Field(description="Pictures and rows that the last embedding rejected.")
    broken_total: int
    feedback: dict[str, int] = Field(description="Entries of each kind.")
