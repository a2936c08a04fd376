"""What the service takes and gives: the shapes of its API, which are also its OpenAPI description.

Embeddings, search, products and the service's state are here; what people look through and judge is in
`review_schemas`.

Requests forbid fields that they do not know, so a misspelt name is an error and never a default in silence;
`/v1/embeddings` is the exception, because clients of other makers send fields of their own there. Every text,
list and number is bounded here, before any work is done; images are bounded where they are decoded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from moonshelf.catalogue.filters import MAX_LOOKUPS
from moonshelf.catalogue.rows import COLUMNS

MAX_TEXT = 20_000  # characters of one text
MAX_FILTER = 100  # values of one filter
MAX_LIST = 100  # entries of any list or mapping here; of inputs and products `max_items` are taken
Column = Literal[COLUMNS]  # type: ignore[valid-type]
# Base64 of the largest picture that the decoder takes (16 MiB), with its data: prefix.
MAX_IMAGE_TEXT = 23_000_000

Reason = Literal["off", "on", "auto"]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
# Outer spaces are no part of an id, wherever it stands: the catalogue keeps it without.
Id = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(str.strip)]
Image = Annotated[
    str,
    Field(
        max_length=MAX_IMAGE_TEXT,
        description="A picture as a data URI (data:image/jpeg;base64,…) or as base64 alone; a web address "
        "only where the service allows its host.",
    ),
]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Reply(BaseModel):
    """Made of what the catalogue and the judge give, by the names of its attributes."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)


# ------------------------------------------------------------------------------------------ errors


class ErrorBody(Reply):
    """In the form of OpenAI's API: its clients show `message`."""

    message: str
    type: str = Field(description="invalid_request_error, authentication_error, overloaded, timeout …")
    param: str | None = Field(default=None, description="The field that is wrong, as a path.")
    code: str | None = None


class ErrorReply(Reply):
    error: ErrorBody


# -------------------------------------------------------------------------------------- embeddings


class ImageUrl(BaseModel):
    url: Image


class Part(BaseModel):
    """One part of a chat message: {"type": "text", "text": …} or {"type": "image_url", "image_url": …}."""

    type: Literal["text", "image_url", "image", "input_text", "input_image"]
    text: Text | None = None
    image_url: ImageUrl | Image | None = None
    image: Image | None = None


class Message(BaseModel):
    """One chat message. The user's messages of a request are one product; other roles are left out."""

    role: str = Field(default="user", max_length=20)
    content: Text | Annotated[list[Part], Field(max_length=64)]


class Item(Strict):
    """Text, picture, or both as one product: the documented form for pictures."""

    text: Text | None = None
    image: Image | Annotated[list[Image], Field(max_length=16)] | None = None

    @model_validator(mode="after")
    def _something(self) -> Item:
        if not self.text and not self.image:
            raise ValueError("an item needs a text, an image, or both")
        return self


def _text_or_picture(value: str) -> str:
    if len(value) > MAX_TEXT and value[:5].lower() != "data:":
        raise ValueError(f"the text has {len(value):,} characters, at most {MAX_TEXT:,} are taken")
    return value


Input = Annotated[str, Field(max_length=MAX_IMAGE_TEXT), AfterValidator(_text_or_picture)] | Item


def examples(*given: dict[str, Any]) -> ConfigDict:
    """The part of a request's configuration that shows how it may look."""
    return ConfigDict(json_schema_extra={"examples": list(given)})


PNG = "data:image/png;base64,iVBORw0KGgo="


class EmbeddingsRequest(BaseModel):
    """OpenAI's form with pictures. `input` is a text, a data URI, an item, or a list of these."""

    model_config = examples(
        {"model": "starter", "input": ["red running shoe", "blue leather bag"]},
        {"input": [{"text": "Trail runner", "image": PNG}], "reason": "on", "dimensions": 128},
    )

    input: Input | Annotated[list[Input], Field(min_length=1)] | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=64)] | None = None
    model: str | None = Field(default=None, max_length=500, description="Name of the served model, or none.")
    dimensions: int | None = Field(default=None, ge=1, le=8192)
    encoding_format: Literal["float", "base64"] = "float"
    reason: Reason = Field(default="off", description="Write a rationale first: off, on or auto.")
    input_type: Literal["query", "document"] = Field(
        default="document", description="Which prompt a model takes that has two; ours has one."
    )
    user: str | None = Field(default=None, max_length=500, description="Taken and not used.")

    @model_validator(mode="before")
    @classmethod
    def _no_token_ids(cls, data: Any) -> Any:
        given = data.get("input") if isinstance(data, dict) else None
        first = given[0] if isinstance(given, list) and given else None
        if isinstance(first, int) or (isinstance(first, list) and first and isinstance(first[0], int)):
            raise ValueError(
                "input holds token ids of another tokenizer: send texts "
                "(LangChain: check_embedding_ctx_length=False)"
            )
        return data

    @model_validator(mode="after")
    def _one_source(self) -> EmbeddingsRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either input or messages")
        return self


class Weights(Reply):
    """How much of a vector came from each modality; they add up to one."""

    image: float
    text: float
    rationale: float


class Embedding(Reply):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="Floats, or base64 of little-endian float32.")
    rationale: str | None = Field(default=None, description="What the model wrote, where it reasoned.")
    rationale_valid: bool | None = Field(default=None, description="The rationale kept its format.")
    attributes: dict[str, str] | None = Field(default=None, description="Attributes read from the rationale.")
    weights: Weights


class Usage(Reply):
    prompt_tokens: int
    completion_tokens: int = Field(default=0, description="Tokens of rationales.")
    total_tokens: int


class EmbeddingsReply(Reply):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class RerankRequest(BaseModel):
    """The form that Cohere's and Jina's clients send. Documents are texts, data URIs, or items as above."""

    model_config = examples({"query": "red running shoe", "documents": ["a red shoe", "a lamp"], "top_n": 1})

    query: Input
    documents: Annotated[list[Input], Field(min_length=1)]
    model: str | None = Field(default=None, max_length=500, description="Name of the reranker, or none.")
    top_n: int | None = Field(default=None, ge=1, description="So many of the best; none: all.")
    return_documents: bool = False


class Reranked(Reply):
    index: int = Field(description="Place among the documents of the request.")
    relevance_score: float
    document: dict[str, str] | None = Field(default=None, description="Its text, where that was asked for.")


class RerankReply(Reply):
    model: str
    results: list[Reranked] = Field(description="Best first.")
    usage: Usage


class ModelCard(Reply):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "moonshelf"
    dimensions: int
    fingerprint: str


class ModelsReply(Reply):
    object: Literal["list"] = "list"
    data: list[ModelCard]


# ------------------------------------------------------------------------------------------ search

Values = Annotated[list[Annotated[str, Field(max_length=500)]], Field(max_length=MAX_FILTER)]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


Pairs = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=200)], Annotated[Values, Field(min_length=1)]],
    Field(max_length=MAX_LOOKUPS),
]


class Terms(Strict):
    """Products that pass all of these; of one field any of the values counts."""

    brand: Values = []
    category: Annotated[
        Values, Field(description="Paths such as 'Shoes > Boots', or a first part of one.")
    ] = []
    colour: Values = []
    material: Values = []
    pattern: Values = []
    gender: Values = []
    size: Values = []
    availability: Values = []
    language: Values = []
    id: Values = []
    group_id: Values = []
    gtin: Values = []
    mpn: Values = []
    currency: Values = []
    price_min: Price | None = None
    price_max: Price | None = None
    attributes: Annotated[
        Pairs, Field(description="Of the feed, by name: case and spaces do not count.")
    ] = {}
    reasoned_attributes: Annotated[Pairs, Field(description="Those that the model wrote, by name.")] = {}
    rationale_valid: bool | None = None
    missing: Annotated[list[Column], Field(max_length=MAX_FILTER, description="All of these are empty.")] = []
    present: Annotated[list[Column], Field(max_length=MAX_FILTER, description="None of these is empty.")] = []


class Filters(Terms):
    """As Terms, and with other sets of terms: of `any_of` at least one passes, of `none_of` none does. A
    product that lacks a value passes no term on it, and so passes `none_of`. At most 100 comparisons."""

    any_of: Annotated[list[Terms], Field(max_length=20)] = []
    none_of: Annotated[list[Terms], Field(max_length=20)] = []


class SearchRequest(Strict):
    """Words, a picture, both, or `like`: the id of a product to be like."""

    model_config = examples(
        {"text": "red running shoe", "filters": {"price_max": 50}, "facets": True},
        {"like": "SKU-1", "limit": 5},
    )

    text: Text | None = None
    image: Image | None = None
    like: Id | None = None
    filters: Filters = Filters()
    mode: Literal["hybrid", "vector", "text"] = "hybrid"
    reason: Reason = "off"
    record_only: bool = Field(
        default=False, description="Look for words in the record, not in what the model wrote."
    )
    vector_weight: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="What vectors weigh in mode hybrid; none: as the index measured."
    )
    rerank: bool = Field(default=False, description="Let the service's reranker read the first 50 again.")
    offset: int = Field(default=0, ge=0, le=900)
    limit: int = Field(default=24, ge=1, le=100)
    facets: bool = Field(default=False, description="Count the values of the filters' fields too.")

    @model_validator(mode="before")
    @classmethod
    def _no_where(cls, data: Any) -> Any:
        if isinstance(data, dict) and "where" in data:
            raise ValueError(
                "where is no longer taken: write its conditions as filters, such as "
                '{"brand": ["Acme"], "price_max": 50, "none_of": [{"colour": ["red"]}]}'
            )
        return data


class Why(Reply):
    """Where a hit comes from: its ranks (from 1) in the lists, and the scores there."""

    vector_rank: int | None = None
    cosine: float | None = None
    text_rank: int | None = None
    bm25: float | None = None
    code_rank: int | None = Field(default=None, description="The words hold its id, SKU, GTIN or MPN.")
    fused_rank: int | None = Field(default=None, description="Before the reranker read it again.")
    rerank: float | None = Field(default=None, description="What the reranker gave.")


class ProductView(Reply):
    """A product as it is shown. `thumbnail` is a path below the service, None without a picture."""

    id: str
    title: str
    description: str = ""
    brand: str | None = None
    price: float | None = None
    currency: str | None = None
    category: str = ""
    group_id: str | None = None
    link: str | None = None
    availability: str | None = None
    attributes: dict[str, str] = Field(default={}, description="From the feed.")
    rationale: str = ""
    rationale_valid: bool | None = None
    reasoned_attributes: dict[str, str] = Field(default={}, description="From the rationale.")
    weights: Weights | None = None
    thumbnail: str | None = None


class SearchHit(Reply):
    score: float = Field(description="Orders the list: fused score, cosine or BM25, by `mode`.")
    why: Why
    product: ProductView


class FacetValue(Reply):
    value: str
    count: int


class Facets(Reply):
    """Counts over all products that pass the filters, not only those on this page."""

    total: int
    fields: dict[str, list[FacetValue]]
    price_min: float | None = None
    price_max: float | None = None


class SearchReply(Reply):
    mode: str = Field(description="hybrid, vector or text: what was done.")
    reranked_by: str | None = Field(default=None, description="None where the order is that of the search.")
    notes: list[str]
    hits: list[SearchHit]
    offset: int
    more: bool = Field(description="There are hits after these.")
    facets: Facets | None = None


# ---------------------------------------------------------------------------------------- products


class ProductIn(Strict):
    """One catalogue record. It needs a title, a description or a picture."""

    model_config = examples(
        {
            "id": "SKU-1", "title": "Trail runner", "category": ["Shoes", "Running shoes"], "images": [PNG],
            "attributes": {"colour": "red"}, "price": 79.9, "currency": "EUR",
        }
    )  # fmt: skip

    id: Id
    title: Text = ""
    description: Text = ""
    images: Annotated[list[Image], Field(max_length=16)] = []
    category: Annotated[list[Annotated[str, Field(max_length=500)]], Field(max_length=20)] = []
    attributes: Annotated[
        dict[Annotated[str, Field(max_length=200)], Annotated[str, Field(max_length=2000)]],
        Field(max_length=100),
    ] = {}
    brand: Annotated[str, Field(max_length=500)] | None = None
    price: Price | None = None
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] | None = None
    language: Annotated[str, Field(max_length=35)] | None = None
    group_id: Annotated[str, Field(max_length=256)] | None = None
    gtin: Annotated[str, Field(max_length=20)] | None = None
    mpn: Annotated[str, Field(max_length=200)] | None = None
    link: Annotated[str, Field(max_length=4096)] | None = None
    availability: Annotated[str, Field(max_length=50)] | None = None


class UpsertRequest(Strict):
    products: Annotated[list[ProductIn], Field(min_length=1)]
    allow_text_only: bool = Field(
        default=False, description="Take a product by its text where no picture of it can be used."
    )


class RowProblem(Reply):
    """One thing wrong with one product; `fatal`: it was not stored."""

    row: Annotated[int, BeforeValidator(lambda row: row if isinstance(row, int) else 0)] = Field(
        description="Position in the request, from 1."
    )
    id: str | None
    field: str
    reason: str
    fatal: bool


class UpsertReply(Reply):
    """Counts of products; what is counted as new, changed or metadata_only is durable."""

    new: int
    changed: int
    metadata_only: int
    unchanged: int
    problems: list[RowProblem] = []


class DeleteRequest(Strict):
    ids: Annotated[list[Id], Field(min_length=1)]


class DeleteReply(Reply):
    deleted: int
    unknown: list[str] = Field(description="Ids of the request that the catalogue does not hold.")


# ------------------------------------------------------------------------------------------ state


class Health(Reply):
    status: Literal["ok"] = "ok"
    version: str


class Ready(Reply):
    status: Literal["ready", "loading", "stopping"]
    queued: int
    products: int
