"""The routes below /v1: each takes a request apart, calls one of two services, and puts a reply together."""

from __future__ import annotations

import base64
import functools
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi import Path as PathParam

from moonshelf.attributes import canonical
from moonshelf.catalogue import feedback, overview
from moonshelf.catalogue.filters import to_condition
from moonshelf.catalogue.matching.duplicates import KINDS, MIN_SCORE, DuplicateReport, Group
from moonshelf.catalogue.store import WRITTEN_WEIGHT
from moonshelf.creatives import export as ranked
from moonshelf.creatives.schema import Campaign, Creative, Pair
from moonshelf.errors import Problem, UserError
from moonshelf.product import Product, clean_id
from moonshelf.prompts import read_rationale
from moonshelf.service import review_schemas as r
from moonshelf.service import schemas as s
from moonshelf.service.body import BodyRoute, Held, aside
from moonshelf.service.catalogue_service import CatalogueService, Encoded
from moonshelf.service.creative_service import CreativeService, creative
from moonshelf.service.inputs import BadInput, of_input, picture, product_of, products_of
from moonshelf.service.views import judged, view, views_of, weights


def _errors(texts: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": s.ErrorReply, "description": text} for status, text in texts.items()}


ERRORS = _errors({
    400: "The request cannot be used.", 401: "An API key is needed.", 403: "The key may not do this.",
    408: "The body came too slowly.", 413: "The request is too large.",
    422: "A field is wrong: `param` says which.",
    429: "Too much at once: Retry-After says when to come again.",
    503: "Loading, stopping, or another writer holds the folder.", 504: "The deadline has passed.",
})  # fmt: skip
router = APIRouter(prefix="/v1", responses=ERRORS, route_class=BodyRoute)
NOT_FOUND = _errors({404: "There is none."})
NO_JUDGE = _errors({501: "This service has no judge of creatives."})
Limit = Annotated[int, Query(ge=1, le=100)]
Offset = Annotated[int, Query(ge=0, le=1_000_000)]


def _given(get: Callable[[Request], Any]) -> Any:
    """What a route is given of the application, or of the middleware."""

    async def given(request: Request) -> Any:
        return get(request)

    return Depends(given)


Service = Annotated[CatalogueService, _given(lambda request: request.app.state.service)]
Judging = Annotated[CreativeService, _given(lambda request: request.app.state.judging)]
Deadline = Annotated[float, _given(lambda request: float(request.state.deadline))]
Holding = Annotated[Held, _given(lambda request: request.state.held)]


def _most(given: int, most: int, param: str) -> None:
    if given > most:
        raise BadInput(param, f"{given} are more than {most}, the most of one request")


# ------------------------------------------------------------------------------------- embeddings


@router.get("/models")
async def models(service: Service) -> s.ModelsReply:
    """The served model, in OpenAI's form."""
    return s.ModelsReply(data=[_card(service)])


@router.get("/models/{id:path}", responses=NOT_FOUND)
async def model(service: Service, id: str) -> s.ModelCard:
    """The served model, if that is its name."""
    card = _card(service)
    if id != card.id:
        raise HTTPException(404, f"this service has the model {card.id}, not {id[:200]}")
    return card


def _card(service: CatalogueService) -> s.ModelCard:
    return s.ModelCard(id=service.name, dimensions=service.model.dim, fingerprint=service.model.fingerprint)


@router.post("/embeddings", responses=NOT_FOUND)
async def embeddings(
    request: Request, service: Service, held: Holding, deadline: Deadline, asked: s.EmbeddingsRequest
) -> s.EmbeddingsReply:
    """Vectors of texts, pictures, or both as one product; with `reason`, what the model wrote about each.

    `dimensions` cuts a vector to its first numbers and makes it a unit vector again, which the model was
    trained for (Matryoshka). Model names are compared: a client that expects another model gets an error.
    """
    if asked.model not in (None, "", service.name):
        raise HTTPException(404, f"this service has the model {service.name}, not {asked.model}")
    dim = asked.dimensions or service.model.dim
    if dim > service.model.dim:
        raise BadInput("dimensions", f"the model has {service.model.dim} dimensions")
    products = await aside(request, products_of, asked)
    _most(len(products), service.settings.max_items, "input")
    products = [await service.fetched(p, f"input.{i}", held) for i, p in enumerate(products)]
    data, read, wrote = [], 0, 0
    asks = asked.input_type == "query"
    for i, one in enumerate(await service.encode(products, asked.reason, deadline, query=asks)):
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


@router.post("/rerank", responses=NOT_FOUND)
async def rerank(
    request: Request, service: Service, held: Holding, deadline: Deadline, asked: s.RerankRequest
) -> s.RerankReply:
    """Documents in the order in which they answer a query, as the service's reranker scores them."""
    step = service.reranking_step("model")
    if asked.model not in (None, "", step.reranker.name):
        raise HTTPException(404, f"this service has the reranker {step.reranker.name}, not {asked.model}")
    _most(len(asked.documents), service.settings.max_items, "documents")
    given = {"query": asked.query, **{f"documents.{i}": one for i, one in enumerate(asked.documents)}}
    query, *documents = [
        await service.fetched(await aside(request, of_input, one, param, param), f"{param}.image", held)
        for param, one in given.items()
    ]
    scores = await step.score([(query, one) for one in documents], deadline)
    order = np.argsort(-scores, kind="stable")[: asked.top_n].tolist()
    shown = [{"text": one.title} if asked.return_documents else None for one in documents]
    read = sum(len(query.title) + len(one.title) for one in documents) // 4
    return s.RerankReply(
        model=step.reranker.name, usage=s.Usage(prompt_tokens=read, total_tokens=read),
        results=[s.Reranked(index=i, relevance_score=scores[i], document=shown[i]) for i in order],
    )  # fmt: skip


# ----------------------------------------------------------------------------------------- search


@router.post("/search", responses=NOT_FOUND)
async def search(
    request: Request, service: Service, held: Holding, deadline: Deadline, asked: s.SearchRequest
) -> s.SearchReply:
    """Products by words, a picture, both, or like another; filtered, with counts for the filters."""
    if asked.text is None and asked.image is None and asked.like is None:
        raise BadInput("text", "give words (text), a picture (image), or the id of a product (like)")
    query = None
    if asked.like is None:
        pictures = (await aside(request, picture, asked.image, "image"),) if asked.image else ()
        given = Product(id="query", title=asked.text or "", images=pictures)
        query = await service.fetched(given, "image", held)
    elif asked.text is not None or asked.image is not None:
        raise BadInput("like", "like stands alone: leave text and image out")
    where = to_condition(asked.filters.model_dump(exclude_defaults=True))
    found = await service.search(
        query, asked.reason, deadline, like=asked.like, k=asked.offset + asked.limit + 1,
        where=where, mode=asked.mode, vector_weight=asked.vector_weight,
        written=0.0 if asked.record_only else WRITTEN_WEIGHT, rerank=asked.rerank,
    )  # fmt: skip
    hits = [
        s.SearchHit(score=hit.score, why=s.Why(**hit.why), product=view(hit.product))  # type: ignore[arg-type]
        for hit in found.hits[asked.offset : asked.offset + asked.limit]
    ]
    counted = None
    if asked.facets:
        count = functools.partial(overview.facets, service.store)
        counted = await service.pools.run("scan", service.remembered, "facets", count, where)
    return s.SearchReply(
        mode=found.mode, reranked_by=found.reranked_by or None, hits=hits, offset=asked.offset,
        notes=list(map(service.public, found.notes)), facets=counted,
        more=len(found.hits) > asked.offset + asked.limit,
    )  # fmt: skip


# --------------------------------------------------------------------------------------- products


@router.post("/products")
async def upsert(
    request: Request, service: Service, held: Holding, deadline: Deadline, asked: s.UpsertRequest
) -> s.UpsertReply:
    """Store products, new or changed. When the reply comes they are durable; bad ones are in `problems`."""
    _most(len(asked.products), service.settings.max_items, "products")
    products, problems = await aside(request, _products, asked.products, service.settings.max_images)
    done, more = Counter[str](), list[Problem]()
    if products:
        done, more = await service.put(products, asked.allow_text_only, held, deadline)
    problems = sorted([*problems, *more], key=lambda one: int(one.row))
    return s.UpsertReply(
        new=done["new"], changed=done["changed"], metadata_only=done["metadata"], unchanged=done["unchanged"],
        problems=list(map(s.RowProblem.model_validate, problems)),
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
async def delete_many(service: Service, asked: s.DeleteRequest) -> s.DeleteReply:
    """Remove products by id; durable when the reply comes."""
    _most(len(asked.ids), service.settings.max_items, "ids")
    ids = list(dict.fromkeys(asked.ids))
    gone = set(await service.remove(ids))
    return s.DeleteReply(deleted=len(gone), unknown=[id for id in ids if id not in gone])


@router.get("/products/{id:path}", responses=NOT_FOUND)
async def product(service: Service, id: str) -> s.ProductView:
    """One product as it is stored."""
    id = _valid(id)
    found: dict[str, s.ProductView] = await service.pools.run("read", views_of, service.store, [id])
    if id not in found:
        raise HTTPException(404, f"there is no product with the id {id[:256]}")
    return found[id]


@router.delete("/products/{id:path}", responses=NOT_FOUND)
async def delete(service: Service, id: str) -> s.DeleteReply:
    """Remove one product; durable when the reply comes."""
    id = _valid(id)
    if not await service.remove([id]):
        raise HTTPException(404, f"there is no product with the id {id[:256]}")
    return s.DeleteReply(deleted=1, unknown=[])


@router.get("/thumbnails/{key}.jpg", response_class=Response, responses=NOT_FOUND)
async def thumbnail(service: Service, key: Annotated[int, PathParam(ge=0, lt=2**63)]) -> Response:
    """A product's first picture: re-encoded when it was stored, small, without metadata."""
    rows = await service.pools.run("read", lambda: service.store.rows([key], ["thumbnail"]).to_pylist())
    if not rows or rows[0]["thumbnail"] is None:
        raise HTTPException(404, "there is no such picture")
    headers = {"cache-control": "private, max-age=300"}
    return Response(rows[0]["thumbnail"], media_type="image/jpeg", headers=headers)


# ------------------------------------------------------------------------------------- duplicates


@router.get("/duplicates")
async def duplicates(
    service: Service,
    kind: Annotated[list[Literal["duplicate", "variant", "similar"]] | None, Query()] = None,
    min_score: Annotated[float, Query(ge=-1, le=1)] = MIN_SCORE,
    reviewed: Annotated[bool, Query(description="Groups that people have judged too.")] = False,
    offset: Offset = 0,
    limit: Limit = 20,
) -> r.DuplicatesReply:
    """Products that may be in the catalogue twice, with the evidence; nothing is merged."""
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
        pairs.append(r.Evidence(**pair.as_dict(), review=said.get(frozenset((pair.a, pair.b)))))
    members = [views[id] for id in group.ids if id in views]  # one may have left since
    return r.DuplicateGroup(kind=group.kind, score=group.score, members=members, pairs=pairs)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------- feedback


@router.post("/feedback")
async def leave_feedback(request: Request, service: Service, asked: r.FeedbackRequest) -> r.FeedbackReply:
    """Keep what a person says of a result; durable when the reply comes."""
    entry = await service.pools.run(
        "write", feedback.add, service.settings.folder, kind=asked.kind, subject=asked.subject,
        verdict=asked.verdict, note=asked.note, by=request.state.key,
    )  # fmt: skip
    return r.FeedbackReply(stored=entry)


@router.get("/feedback")
async def read_feedback(
    service: Service,
    kind: Literal["duplicate", "creative", "attribute", "search", "note"] | None = None,
    offset: Offset = 0,
    limit: Limit = 50,
) -> r.FeedbackList:
    """What people said, newest first."""
    total, entries = await service.pools.run(
        "read", feedback.entries, service.settings.folder, kind=kind, limit=limit, offset=offset
    )
    return r.FeedbackList(total=total, entries=entries)


@router.get("/suggestions")
async def suggestions(
    service: Service,
    reviewed: Annotated[bool, Query(description="Those that people have judged too.")] = False,
    offset: Offset = 0,
    limit: Limit = 20,
) -> r.SuggestionsReply:
    """Values for empty attributes, as `moonshelf enrich --catalogue` has left them here."""
    listed = await service.pools.run("read", feedback.suggestions, service.settings.folder)
    wanted = [one for one in listed if reviewed or not one["review"]]
    page = wanted[offset : offset + limit]
    views = await service.pools.run("read", views_of, service.store, [one["id"] for one in page])
    names = r.SuggestionView.model_fields.keys() - {"product"}
    shown = [
        r.SuggestionView(product=views[one["id"]], **{name: one.get(name) for name in names})
        for one in page if one["id"] in views  # it may have left since
    ]  # fmt: skip
    return r.SuggestionsReply(total=len(wanted), suggestions=shown)


# -------------------------------------------------------------------------------------- creatives


@router.get("/creatives")
async def judge(judging: Judging) -> r.JudgeReply:
    """The judge of this service, or why it has none."""
    return r.JudgeReply(judge=judging.judge, why="" if judging.judge else judging.why)


@router.post("/creatives/compare", responses=NO_JUDGE)
async def compare(
    request: Request, judging: Judging, held: Holding, deadline: Deadline, asked: r.CompareRequest
) -> r.CompareReply:
    """Which of two images a shopper would rather click, how sure the judge is, and why."""
    a, b = await _creatives(request, held, {"a": asked.a, "b": asked.b})
    pair = Pair(id="pair", product_id="product", a=a, b=b, title=asked.title, interest=tuple(asked.interest))
    found = await judging.compare(pair, deadline)
    verdict = {"A": "a", "B": "b"}.get(found.verdict or "")
    return r.CompareReply(
        **judged(found), verdict=verdict, winner={"a": a.id, "b": b.id}.get(verdict or ""),  # type: ignore[arg-type]
        p_first=found.p_first, p_second=found.p_second, judge=judging.judge, note=judging.note,
    )  # fmt: skip


@router.post("/creatives/rank", responses=NO_JUDGE)
async def rank(
    request: Request, service: Service, judging: Judging, held: Holding, deadline: Deadline,
    asked: r.RankRequest,
) -> r.RankReply:  # fmt: skip
    """An order of two or more images of one product, from comparisons of pairs."""
    _most(len(asked.creatives), service.settings.max_images, "creatives")
    if len({one.id for one in asked.creatives}) != len(asked.creatives):
        raise BadInput("creatives", "two of them have one id")
    found = await _creatives(request, held, {f"creatives.{i}": one for i, one in enumerate(asked.creatives)})
    campaign = Campaign(
        id="request", product_id="product", title=asked.title, interest=tuple(asked.interest),
        creatives=tuple(found),
    )  # fmt: skip
    ranking = await judging.rank(campaign, asked.budget, service.pools, deadline)
    text = None
    if asked.export is not None:
        text = ranked.exported([(campaign, ranking)], asked.export, base_rate=asked.base_rate)
    pairs = [
        r.PairView(
            **judged(one.judgement), a=one.a, b=one.b,
            verdict={"A": one.a, "B": one.b}.get(one.judgement.verdict or ""),
        )
        for one in ranking.comparisons
    ]  # fmt: skip
    order = [
        r.RankedCreative(
            id=id, strength=ranking.strengths[id], interval=ranking.intervals[id], p_best=ranking.p_best[id]
        )
        for id in ranking.order
    ]
    return r.RankReply(
        order=order, winner=ranking.winner, clear=ranking.clear, unjudged=list(ranking.unjudged),
        identical=[list(group) for group in ranking.identical], pairs=pairs, judge=judging.judge,
        note=judging.note, export=text,
    )  # fmt: skip


async def _creatives(request: Request, held: Held, given: dict[str, r.CreativeIn]) -> list[Creative]:
    """Creatives by their places in the request."""
    service: CatalogueService = request.app.state.service
    made = []
    for param, one in given.items():
        param += ".image"
        ref = await aside(request, picture, one.image, param)
        whole = await service.fetched(Product(id="creative", images=(ref,)), param, held)
        made.append(await service.pools.run("picture", creative, one.id, whole.images[0], one.text, param))
    return made


# -------------------------------------------------------------------------------------- catalogue


@router.get("/catalogue")
async def catalogue(service: Service) -> r.CatalogueReply:
    """Numbers of the whole catalogue: coverage, conflicts between title and picture, what was rejected."""
    seen: overview.Overview = await service.pools.run(
        "scan", service.remembered, "dashboard", lambda: overview.dashboard(service.store)
    )
    index, note = await service.pools.run("read", service.catalogue.index_state)
    views = await service.pools.run("read", views_of, service.store, [one.id for one in seen.conflicts])
    coverage = [r.Coverage(field=f, filled=n, share=n / max(1, seen.products)) for f, n in seen.coverage]
    conflicts = [
        r.Conflict(product=views[one.id], field=one.field, feed=one.feed, model=one.model)
        for one in seen.conflicts if one.id in views
    ]  # fmt: skip
    shown = {
        **vars(seen), "model": service.name, "index": index, "index_note": service.public(note),
        "coverage": coverage, "conflicts": conflicts, "weights": weights(seen.weights),
        "feedback": await service.pools.run("read", feedback.counts, service.settings.folder),
    }  # fmt: skip
    return r.CatalogueReply(**shown)


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
