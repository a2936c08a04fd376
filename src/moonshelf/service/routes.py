"""The routes below /v1: each takes a request apart, calls one of two services, and puts a reply together."""

from __future__ import annotations

import base64
import functools
from collections import Counter
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi import Path as PathParam

from moonshelf.attributes import canonical
from moonshelf.catalogue import feedback, overview
from moonshelf.catalogue.duplicates import KINDS, MIN_SCORE, DuplicateReport, Group
from moonshelf.catalogue.filters import Condition, to_condition
from moonshelf.catalogue.rows import key_of
from moonshelf.catalogue.store import WRITTEN_WEIGHT
from moonshelf.creatives import export as ranked
from moonshelf.creatives.schema import Campaign, Pair
from moonshelf.errors import Problem, UserError
from moonshelf.product import Product, clean_id
from moonshelf.prompts import read_rationale
from moonshelf.service import review_schemas as r
from moonshelf.service import schemas as s
from moonshelf.service.body import BodyRoute, Held, aside
from moonshelf.service.catalogue_service import CatalogueService, Encoded
from moonshelf.service.creative_service import CreativeService, creative
from moonshelf.service.inputs import BadInput, picture, product_of, products_of
from moonshelf.service.settings import Settings
from moonshelf.service.views import COLUMNS, findings, view, views_of, weights

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": s.ErrorReply, "description": text}
    for status, text in {
        400: "The request cannot be used.", 401: "An API key is needed.", 403: "The key may not do this.",
        408: "The body came too slowly.", 413: "The request is too large.",
        422: "A field is wrong: `param` says which.",
        429: "Too much at once: Retry-After says when to come again.",
        503: "Loading, stopping, or another writer holds the folder.", 504: "The deadline has passed.",
    }.items()
}  # fmt: skip
router = APIRouter(prefix="/v1", responses=ERRORS, route_class=BodyRoute)
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": s.ErrorReply, "description": "There is none."}}
NO_JUDGE: dict[int | str, dict[str, Any]] = {
    501: {"model": s.ErrorReply, "description": "This service has no judge of creatives."}
}
Limit = Annotated[int, Query(ge=1, le=100)]
Offset = Annotated[int, Query(ge=0, le=1_000_000)]


def service_of(request: Request) -> CatalogueService:
    service: CatalogueService = request.app.state.service
    return service


def _deadline(request: Request) -> float:
    return float(request.state.deadline)


def _held(request: Request) -> Held:
    held: Held = request.state.held
    return held


def _most(given: int, most: int, param: str) -> None:
    if given > most:
        raise BadInput(param, f"{given} are more than {most}, the most of one request")


# ------------------------------------------------------------------------------------- embeddings


@router.get("/models")
async def models(request: Request) -> s.ModelsReply:
    """The served model, in OpenAI's form."""
    return s.ModelsReply(data=[_card(service_of(request))])


@router.get("/models/{id:path}", responses=NOT_FOUND)
async def model(request: Request, id: str) -> s.ModelCard:
    """The served model, if that is its name."""
    card = _card(service_of(request))
    if id != card.id:
        raise HTTPException(404, f"this service has the model {card.id}, not {id[:200]}")
    return card


def _card(service: CatalogueService) -> s.ModelCard:
    return s.ModelCard(id=service.name, dimensions=service.model.dim, fingerprint=service.model.fingerprint)


@router.post("/embeddings", responses=NOT_FOUND)
async def embeddings(request: Request, asked: s.EmbeddingsRequest) -> s.EmbeddingsReply:
    """Vectors of texts, pictures, or both as one product; with `reason`, what the model wrote about each.

    `dimensions` cuts a vector to its first numbers and makes it a unit vector again, which the model was
    trained for (Matryoshka). Model names are compared: a client that expects another model gets an error.
    """
    service = service_of(request)
    if asked.model not in (None, "", service.name):
        raise HTTPException(404, f"this service has the model {service.name}, not {asked.model}")
    dim = asked.dimensions or service.model.dim
    if dim > service.model.dim:
        raise BadInput("dimensions", f"the model has {service.model.dim} dimensions")
    products = await aside(request, products_of, asked)
    _most(len(products), service.settings.max_items, "input")
    products = [await service.fetched(p, f"input.{i}", _held(request)) for i, p in enumerate(products)]
    data, read, wrote = [], 0, 0
    for i, one in enumerate(await service.encode(products, asked.reason, _deadline(request))):
        if isinstance(one, Problem):
            raise BadInput(f"input.{i}", one.reason)
        read, wrote = read + one.read_tokens, wrote + one.written.tokens
        data.append(_embedding(i, one, dim, asked.encoding_format))
    usage = s.Usage(prompt_tokens=read, completion_tokens=wrote, total_tokens=read + wrote)
    return s.EmbeddingsReply(data=data, model=service.name, usage=usage)


def _embedding(index: int, one: Encoded, dim: int, form: str) -> s.Embedding:
    w = one.written
    vector = w.vector[:dim]
    if dim < len(w.vector):
        vector = vector / np.linalg.norm(vector)
    little = np.ascontiguousarray(vector, "<f4")
    shares = weights(w.weights.tolist())
    assert shares is not None
    read = canonical(read_rationale(w.rationale) or {}) if w.rationale else None
    return s.Embedding(
        index=index,
        embedding=base64.b64encode(little.tobytes()).decode() if form == "base64" else little.tolist(),
        rationale=w.rationale or None,
        rationale_valid=w.valid if w.rationale else None,
        attributes=read,
        weights=shares,
    )


# ----------------------------------------------------------------------------------------- search


@router.post("/search", responses=NOT_FOUND)
async def search(request: Request, asked: s.SearchRequest) -> s.SearchReply:
    """Products by words, a picture, both, or like another; filtered, with counts for the filters."""
    service = service_of(request)
    if asked.text is None and asked.image is None and asked.like is None:
        raise BadInput("text", "give words (text), a picture (image), or the id of a product (like)")
    query = None
    if asked.like is None:
        pictures = (await aside(request, picture, asked.image, "image"),) if asked.image else ()
        given = Product(id="query", title=asked.text or "", images=pictures)
        query = await service.fetched(given, "image", _held(request))
    elif asked.text is not None or asked.image is not None:
        raise BadInput("like", "like stands alone: leave text and image out")
    where = to_condition(asked.filters.model_dump(exclude_defaults=True))
    found = await service.search(
        query, asked.reason, _deadline(request), like=asked.like, k=asked.offset + asked.limit + 1,
        where=where, mode=asked.mode, vector_weight=asked.vector_weight,
        written=0.0 if asked.record_only else WRITTEN_WEIGHT,
    )  # fmt: skip
    hits = [
        s.SearchHit(score=hit.score, why=s.Why(**hit.why), product=view(hit.product))  # type: ignore[arg-type]
        for hit in found.hits[asked.offset : asked.offset + asked.limit]
    ]
    counted = await _facets(service, where) if asked.facets else None
    return s.SearchReply(
        mode=found.mode, notes=list(map(service.public, found.notes)), hits=hits, offset=asked.offset,
        more=len(found.hits) > asked.offset + asked.limit, facets=counted,
    )  # fmt: skip


async def _facets(service: CatalogueService, where: Condition | None) -> s.Facets:
    found: overview.Facets = await service.pools.run(
        "scan", service.remembered, "facets", functools.partial(overview.facets, service.store), where
    )
    return s.Facets(
        total=found.total, price_min=found.price_min, price_max=found.price_max,
        fields={
            name: [s.FacetValue(value=value, count=count) for value, count in values]
            for name, values in found.fields.items()
        },
    )  # fmt: skip


# --------------------------------------------------------------------------------------- products


@router.post("/products")
async def upsert(request: Request, asked: s.UpsertRequest) -> s.UpsertReply:
    """Store products, new or changed. When the reply comes they are durable; bad ones are in `problems`."""
    service = service_of(request)
    _most(len(asked.products), service.settings.max_items, "products")
    products, problems = await aside(request, _products, asked.products, service.settings.max_images)
    done, more = Counter[str](), list[Problem]()
    if products:
        done, more = await service.put(products, asked.allow_text_only, _held(request), _deadline(request))
    return s.UpsertReply(
        new=done["new"], changed=done["changed"], metadata_only=done["metadata"], unchanged=done["unchanged"],
        problems=_rows(sorted([*problems, *more], key=lambda one: int(one.row))),
    )  # fmt: skip


def _products(given: list[s.ProductIn], max_images: int) -> tuple[list[tuple[int, Product]], list[Problem]]:
    """Numbered records of an upsert, and what is wrong with the others."""
    products: list[tuple[int, Product]] = []
    problems: list[Problem] = []
    for i, one in enumerate(given):
        try:
            product = product_of(one, f"products.{i}")
            _most(len(product.images), max_images, f"products.{i}.images")
            products.append((i + 1, product))
        except BadInput as error:
            problems.append(Problem(i + 1, error.param.split(".", 2)[-1], error.message, one.id))
        except ValueError as error:
            problems.append(Problem(i + 1, "row", _first_line(error), one.id))
    return products, problems


@router.post("/products/delete")
async def delete_many(request: Request, asked: s.DeleteRequest) -> s.DeleteReply:
    """Remove products by id; durable when the reply comes."""
    service = service_of(request)
    _most(len(asked.ids), service.settings.max_items, "ids")
    ids = list(dict.fromkeys(asked.ids))
    gone = set(await service.remove(ids))
    return s.DeleteReply(deleted=len(gone), unknown=[id for id in ids if id not in gone])


@router.get("/products/{id:path}", responses=NOT_FOUND)
async def product(request: Request, id: str) -> s.ProductView:
    """One product as it is stored."""
    service = service_of(request)
    id = _valid(id)
    rows = await service.pools.run("read", lambda: service.store.rows([key_of(id)], COLUMNS).to_pylist())
    if not rows or rows[0]["id"] != id:
        raise HTTPException(404, f"there is no product with the id {id[:256]}")
    return view(rows[0])


@router.delete("/products/{id:path}", responses=NOT_FOUND)
async def delete(request: Request, id: str) -> s.DeleteReply:
    """Remove one product; durable when the reply comes."""
    id = _valid(id)
    if not await service_of(request).remove([id]):
        raise HTTPException(404, f"there is no product with the id {id[:256]}")
    return s.DeleteReply(deleted=1, unknown=[])


@router.get("/thumbnails/{key}.jpg", response_class=Response, responses=NOT_FOUND)
async def thumbnail(request: Request, key: Annotated[int, PathParam(ge=0, lt=2**63)]) -> Response:
    """A product's first picture: re-encoded when it was stored, small, without metadata."""
    service = service_of(request)
    rows = await service.pools.run("read", lambda: service.store.rows([key], ["thumbnail"]).to_pylist())
    if not rows or rows[0]["thumbnail"] is None:
        raise HTTPException(404, "there is no such picture")
    headers = {"cache-control": "private, max-age=300"}
    return Response(rows[0]["thumbnail"], media_type="image/jpeg", headers=headers)


# ------------------------------------------------------------------------------------- duplicates


@router.get("/duplicates")
async def duplicates(
    request: Request,
    kind: Annotated[list[Literal["duplicate", "variant", "similar"]] | None, Query()] = None,
    min_score: Annotated[float, Query(ge=-1, le=1)] = MIN_SCORE,
    reviewed: Annotated[bool, Query(description="Groups that people have judged too.")] = False,
    offset: Offset = 0,
    limit: Limit = 20,
) -> r.DuplicatesReply:
    """Products that may be in the catalogue twice, with the evidence; nothing is merged."""
    service = service_of(request)
    report: DuplicateReport = await service.pools.run(
        "scan", service.remembered, "duplicates",
        lambda score: service.catalogue.duplicates(min_score=score), min_score,
    )  # fmt: skip
    said = await service.pools.run("read", feedback.latest, service.settings.folder, "duplicate")
    open_groups = [
        group for group in report.groups
        if reviewed or not all(frozenset((pair.a, pair.b)) in said for pair in group.pairs)
    ]  # fmt: skip
    wanted = [group for group in open_groups if group.kind in (kind or KINDS)]
    shown = wanted[offset : offset + limit]
    views = await service.pools.run(
        "read", views_of, service.store, [id for group in shown for id in group.ids]
    )
    counts = Counter(group.kind for group in open_groups)
    return r.DuplicatesReply(
        total=len(wanted), counts={name: counts[name] for name in KINDS}, offset=offset,
        notes=list(map(service.public, report.notes)), groups=[_group(group, views, said) for group in shown],
    )  # fmt: skip


def _group(group: Group, views: dict[str, s.ProductView], said: Any) -> r.DuplicateGroup:
    pairs = []
    for pair in group.pairs:
        entry = said.get(frozenset((pair.a, pair.b)))
        review = _review(entry) if entry is not None else None
        pairs.append(r.Evidence(**{**pair.as_dict(), "review": review}))
    members = [views[id] for id in group.ids if id in views]  # one may have left since
    return r.DuplicateGroup(kind=group.kind, score=group.score, members=members, pairs=pairs)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------- feedback


@router.post("/feedback")
async def leave_feedback(request: Request, asked: r.FeedbackRequest) -> r.FeedbackReply:
    """Keep what a person says of a result; durable when the reply comes."""
    service = service_of(request)
    entry = await service.pools.run(
        "write", feedback.add, service.settings.folder, kind=asked.kind, subject=asked.subject,
        verdict=asked.verdict, note=asked.note, by=request.state.key,
    )  # fmt: skip
    return r.FeedbackReply(stored=_review(entry))


@router.get("/feedback")
async def read_feedback(
    request: Request,
    kind: Literal["duplicate", "creative", "attribute", "search", "note"] | None = None,
    offset: Offset = 0,
    limit: Limit = 50,
) -> r.FeedbackList:
    """What people said, newest first."""
    service = service_of(request)
    total, entries = await service.pools.run(
        "read", feedback.entries, service.settings.folder, kind=kind, limit=limit, offset=offset
    )
    return r.FeedbackList(total=total, entries=[_review(entry) for entry in entries])


def _review(entry: Any) -> r.Review:
    return r.Review(
        id=entry.id, time=entry.time, kind=entry.kind, subject=dict(entry.subject), verdict=entry.verdict,
        note=entry.note, by=entry.by,
    )  # fmt: skip


# -------------------------------------------------------------------------------------- creatives


@router.get("/creatives")
async def judge(request: Request) -> r.JudgeReply:
    """The judge of this service, or why it has none."""
    judging: CreativeService = request.app.state.judging
    return r.JudgeReply(judge=judging.judge, why="" if judging.judge else judging.why)


@router.post("/creatives/compare", responses=NO_JUDGE)
async def compare(request: Request, asked: r.CompareRequest) -> r.CompareReply:
    """Which of two images a shopper would rather click, how sure the judge is, and why."""
    judging: CreativeService = request.app.state.judging
    a, b = await _creatives(request, [asked.a, asked.b], ("a", "b"))
    words = {"title": asked.title, "interest": tuple(asked.interest)}
    pair = Pair(id="pair", product_id="product", a=a, b=b, **words)  # type: ignore[arg-type]
    judged = await judging.compare(pair, _deadline(request))
    sides: dict[str | None, tuple[Literal["a", "b"] | None, str | None]] = {
        "A": ("a", a.id), "B": ("b", b.id), None: (None, None),
    }  # fmt: skip
    verdict, winner = sides[judged.verdict]
    return r.CompareReply(
        verdict=verdict, winner=winner, p=judged.p, p_first=judged.p_first, p_second=judged.p_second,
        abstained=judged.abstained, flags=list(judged.flags), findings=findings(judged.assessment),
        judge=judging.judge, note=judging.note,
    )  # fmt: skip


@router.post("/creatives/rank", responses=NO_JUDGE)
async def rank(request: Request, asked: r.RankRequest) -> r.RankReply:
    """An order of two or more images of one product, from comparisons of pairs."""
    judging: CreativeService = request.app.state.judging
    settings: Settings = request.app.state.settings
    _most(len(asked.creatives), settings.max_images, "creatives")
    if len({one.id for one in asked.creatives}) != len(asked.creatives):
        raise BadInput("creatives", "two of them have one id")
    names = tuple(f"creatives.{i}" for i in range(len(asked.creatives)))
    found = await _creatives(request, asked.creatives, names)
    campaign = Campaign(
        id="request", product_id="product", title=asked.title, interest=tuple(asked.interest),
        creatives=tuple(found),
    )  # fmt: skip
    ranking = await judging.rank(campaign, asked.budget, service_of(request).pools, _deadline(request))
    text = None
    if asked.export is not None:
        text = ranked.exported([(campaign, ranking)], asked.export, base_rate=asked.base_rate)
    pairs = [
        r.PairView(
            a=one.a, b=one.b, verdict={"A": one.a, "B": one.b}.get(one.judgement.verdict or ""),
            p=one.judgement.p, abstained=one.judgement.abstained, flags=list(one.judgement.flags),
            findings=findings(one.judgement.assessment),
        )
        for one in ranking.comparisons
    ]  # fmt: skip
    return r.RankReply(
        order=[
            r.RankedCreative(
                id=id, strength=ranking.strengths[id], interval=ranking.intervals[id],
                p_best=ranking.p_best[id],
            )
            for id in ranking.order
        ],
        winner=ranking.winner, clear=ranking.clear, identical=[list(group) for group in ranking.identical],
        unjudged=list(ranking.unjudged), pairs=pairs, judge=judging.judge,
        note=judging.note, export=text,
    )  # fmt: skip


async def _creatives(request: Request, given: list[r.CreativeIn], params: tuple[str, ...]) -> list[Any]:
    service = service_of(request)
    made = []
    for one, param in zip(given, params, strict=True):
        ref = await aside(request, picture, one.image, f"{param}.image")
        whole = await service.fetched(Product(id="creative", images=(ref,)), f"{param}.image", _held(request))
        made.append(
            await service.pools.run("picture", creative, one.id, whole.images[0], one.text, f"{param}.image")
        )
    return made


# -------------------------------------------------------------------------------------- catalogue


@router.get("/catalogue")
async def catalogue(request: Request) -> r.CatalogueReply:
    """Numbers of the whole catalogue: coverage, conflicts between title and picture, what was rejected."""
    service = service_of(request)
    seen: overview.Overview = await service.pools.run(
        "scan", service.remembered, "dashboard", lambda: overview.dashboard(service.store)
    )
    index, note = await service.pools.run("read", service.catalogue.index_state)
    views = await service.pools.run("read", views_of, service.store, [one.id for one in seen.conflicts])
    return r.CatalogueReply(
        products=seen.products, with_picture=seen.with_picture, reasoned=seen.reasoned,
        rationales_valid=seen.rationales_valid, model=service.name, fingerprint=seen.fingerprint,
        reason=seen.reason, store_version=seen.store_version, index=index, index_note=service.public(note),
        coverage=[r.Coverage(field=f, filled=n, share=n / max(1, seen.products)) for f, n in seen.coverage],
        categories=[s.FacetValue(value=v, count=n) for v, n in seen.categories],
        weights=weights(seen.weights) if seen.weights is not None else None,
        conflicts=[
            r.Conflict(product=views[one.id], field=one.field, feed=one.feed, model=one.model)
            for one in seen.conflicts if one.id in views
        ],
        conflicts_total=seen.conflicts_total, broken=_rows(seen.broken), broken_total=seen.broken_total,
        feedback=await service.pools.run("read", feedback.counts, service.settings.folder),
    )  # fmt: skip


def _rows(problems: list[Problem]) -> list[s.RowProblem]:
    return [
        s.RowProblem(
            row=one.row if isinstance(one.row, int) else 0,
            id=one.id, field=one.field, reason=one.reason, fatal=one.fatal,
        )
        for one in problems
    ]  # fmt: skip


def _valid(id: str) -> str:
    """The id as it is stored, if it can be one at all. Raises UserError."""
    try:
        id.encode()
        return clean_id(id)
    except UnicodeEncodeError:
        raise UserError("the id is not valid Unicode") from None
    except ValueError as error:
        raise HTTPException(404, f"there is no such product: {error}") from None


def _first_line(error: ValueError) -> str:
    found = getattr(error, "errors", None)
    return str(found()[0]["msg"]).removeprefix("Value error, ") if found else str(error).split("\n")[0]
