"""A service that answers as told, where the real one cannot be made to: slow, failing, with hostile text.

Requests and replies go through the models of `schemas`, so what the page sends and what it is given keep the
contract. Security headers are the real service's. The products are the sample shop's; what "the model wrote"
is the shop's truth, with one attribute in three made wrong, so that there is something to disagree about.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

import moonshelf.service
from moonshelf import sample
from moonshelf.creatives.schema import QUESTIONS
from moonshelf.service import review_schemas as r
from moonshelf.service import schemas as s
from moonshelf.service.middleware import HEADERS

PAGE = Path(moonshelf.service.__file__).parent / "page"
NOTE = "A preference of the judge, for triage and as a prior of a test; it foretells no click-through rate."
FACETS = ("brand", "category", "colour", "material")


@dataclass
class Failure:
    """How the next requests of a path go wrong: `times` of them, or all of them for None."""

    status: int
    message: str
    retry_after: str | None = None
    times: int | None = None


@dataclass
class Told:
    """What the stub holds and does; tests change it between two requests."""

    products: list[s.ProductView]
    thumbnails: dict[str, bytes]
    groups: list[r.DuplicateGroup]
    notes: list[str] = field(default_factory=list)
    key: str | None = None
    failures: dict[str, Failure] = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)  # closed: searches wait
    feedback: list[r.Review] = field(default_factory=list)
    suggestions: list[r.SuggestionView] = field(default_factory=list)
    searches: list[s.SearchRequest] = field(default_factory=list)
    ranks: list[r.RankRequest] = field(default_factory=list)
    compared: list[r.CompareRequest] = field(default_factory=list)
    reasons: str = "the product is large and whole"
    abstained: str = ""
    judge: str = "the stub"
    conflicts: int = 6


@cache
def _shop(n: int) -> sample.Shop:
    return sample.shop(n)


def told(n: int = 30) -> Told:
    """The sample shop's first products, and groups of duplicates of each kind."""
    shop = _shop(n)
    views, pictures = [], {}
    for number, product in enumerate(shop.products):
        data = product.images[0].data
        assert data is not None
        path = f"/v1/thumbnails/{number}.jpg"
        pictures[path] = data
        feed = dict(product.attributes)
        wrote = {
            name: ("green" if (number + i) % 3 == 0 and name == "colour" else value)
            for i, (name, value) in enumerate(feed.items())
        }
        written = "; ".join(f"{name}: {value}" for name, value in wrote.items())
        share = 0.3 + 0.3 * ((number * 7) % 10) / 10
        views.append(
            s.ProductView(
                id=product.id, title=product.title, description=product.description, brand=product.brand,
                price=product.price, currency=product.currency, category=" > ".join(product.category),
                group_id=product.group_id, link=f"https://shop.example/{product.id}", availability="in_stock",
                attributes=feed, rationale=f"<think>{written}</think>", rationale_valid=True,
                reasoned_attributes=wrote, thumbnail=path,
                weights=s.Weights(image=share, text=0.95 - share, rationale=0.05),
            )
        )  # fmt: skip
    made = Told(views, pictures, [])
    made.groups = [
        group(kind, views[at], views[at + 1])
        for kind, at in (("duplicate", 0), ("duplicate", 2), ("variant", 4), ("similar", 6), ("duplicate", 8))
    ]
    made.gate.set()
    return made


def group(kind: Any, *members: s.ProductView) -> r.DuplicateGroup:
    """A group with the evidence of a duplicate whose sizes differ."""
    pairs = [
        r.Evidence(
            a=a.id, b=b.id, kind=kind, score=0.964, identifiers={"brand": "same", "gtin": "different"},
            attributes_agree=["colour", "material"], attributes_differ={"size": ["41", "42"]},
            title_overlap=0.82, picture_bits=4, conflicts=["one GTIN, but colour is red and blue"],
        )
        for i, a in enumerate(members) for b in members[i + 1 :]
    ]  # fmt: skip
    return r.DuplicateGroup(kind=kind, score=0.964, members=list(members), pairs=pairs)


def stub(state: Told) -> FastAPI:
    """The application."""
    app = FastAPI(openapi_url=None)
    numbers = count(1)

    @app.middleware("http")
    async def around(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        path = request.url.path
        reply: Response
        failure = next((f for start, f in state.failures.items() if path.startswith(start)), None)
        if (
            path.startswith("/v1/")
            and state.key
            and request.headers.get("authorization") != f"Bearer {state.key}"
        ):
            reply = _refused(401, "give an API key as Authorization: Bearer KEY")
        elif failure is not None and failure.times != 0:
            failure.times = None if failure.times is None else failure.times - 1
            reply = _refused(failure.status, failure.message)
            if failure.retry_after:
                reply.headers["retry-after"] = failure.retry_after
        else:
            reply = await call(request)
        for name, value in HEADERS:
            reply.headers[name.decode()] = value.decode()
        return reply

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.post("/v1/search")
    async def search(asked: s.SearchRequest) -> s.SearchReply:
        state.searches.append(asked)
        while not state.gate.is_set():
            await asyncio.sleep(0.05)
        found = [p for p in state.products if p.id != asked.like and _passes(p, asked.filters)]
        if asked.text:
            words = set(asked.text.lower().split())
            found.sort(key=lambda p: -len(words & set(p.title.lower().split())))
        mode = asked.mode if asked.text else "vector"
        hits = [
            s.SearchHit(
                score=1 / (61 + i), product=p,
                why=s.Why(vector_rank=i + 1, cosine=0.9 - i / 100, text_rank=i + 2 if asked.text else None,
                          bm25=7.5 - i / 10 if asked.text else None),
            )
            for i, p in enumerate(found)
        ][asked.offset : asked.offset + asked.limit]  # fmt: skip
        return s.SearchReply(
            mode=mode, notes=state.notes, hits=hits, offset=asked.offset,
            more=asked.offset + asked.limit < len(found), facets=_facets(found) if asked.facets else None,
        )  # fmt: skip

    @app.get("/v1/products/{id:path}")
    async def product(id: str) -> Any:
        found = [p for p in state.products if p.id == id]
        return found[0] if found else _refused(404, f"there is no product with the id {id}")

    @app.get("/v1/thumbnails/{name}")
    async def thumbnail(name: str) -> Response:
        data = state.thumbnails.get(f"/v1/thumbnails/{name}")
        return Response(data, media_type="image/jpeg") if data else _refused(404, "there is no such picture")

    @app.get("/v1/duplicates")
    async def duplicates(
        kind: Annotated[list[str] | None, Query()] = None, min_score: float = 0.9, reviewed: bool = False,
        offset: int = 0, limit: int = 20,
    ) -> r.DuplicatesReply:  # fmt: skip
        said = {(e.subject["a"], e.subject["b"]): e for e in state.feedback if e.kind == "duplicate"}
        groups = []
        for one in state.groups:
            pairs = [p.model_copy(update={"review": said.get((p.a, p.b))}) for p in one.pairs]
            if reviewed or not all(p.review for p in pairs):
                groups.append(one.model_copy(update={"pairs": pairs}))
        wanted = [one for one in groups if kind is None or one.kind in kind]
        return r.DuplicatesReply(
            total=len(wanted), groups=wanted[offset : offset + limit], notes=[], offset=offset,
            counts={k: sum(g.kind == k for g in groups) for k in ("duplicate", "variant", "similar")},
        )  # fmt: skip

    @app.post("/v1/feedback")
    async def feedback(asked: r.FeedbackRequest) -> r.FeedbackReply:
        entry = r.Entry(
            id=str(next(numbers)), time="2026-01-02T03:04:05Z", by="", **asked.model_dump(mode="json")
        )
        state.feedback.append(entry)
        return r.FeedbackReply(stored=entry)

    @app.get("/v1/creatives")
    async def judge() -> r.JudgeReply:
        return r.JudgeReply(judge=state.judge, why="" if state.judge else "it was started without a judge")

    @app.post("/v1/creatives/compare")
    async def compare(asked: r.CompareRequest) -> r.CompareReply:
        state.compared.append(asked)
        held = bool(state.abstained)
        return r.CompareReply(
            verdict=None if held else "b", winner=None if held else asked.b.id, p=0.5 if held else 0.29,
            p_first=0.33, p_second=0.25, abstained=state.abstained, flags=[], findings=_findings(state),
            judge="the stub", note=f"Judged by the stub. {NOTE}",
        )  # fmt: skip

    @app.post("/v1/creatives/rank")
    async def rank(asked: r.RankRequest) -> r.RankReply:
        state.ranks.append(asked)
        ids = [one.id for one in asked.creatives][::-1]
        images: dict[str, list[str]] = {}
        for one in asked.creatives:
            images.setdefault(one.image, []).append(one.id)
        weight = [2.0**-i for i in range(len(ids))]
        return r.RankReply(
            order=[
                r.RankedCreative(id=id, strength=1.0 - i, interval=(0.4 - i, 1.6 - i), p_best=w / sum(weight))
                for i, (id, w) in enumerate(zip(ids, weight, strict=True))
            ],
            winner=None if state.abstained else ids[0], clear=False,
            identical=[g for g in images.values() if len(g) > 1], unjudged=ids if state.abstained else [],
            pairs=[
                r.PairView(a=ids[1], b=ids[0], verdict=None if state.abstained else ids[0], p=0.3,
                           abstained=state.abstained, flags=[], findings=_findings(state))
            ],
            judge="the stub", note=f"Judged by the stub. {NOTE}",
            export=f"{asked.export} at {asked.base_rate}" if asked.export else None,
        )  # fmt: skip

    @app.get("/v1/suggestions")
    async def suggestions(limit: int = 20) -> r.SuggestionsReply:
        return r.SuggestionsReply(total=len(state.suggestions), suggestions=state.suggestions[:limit])

    @app.get("/v1/catalogue")
    async def catalogue() -> r.CatalogueReply:
        n = len(state.products)
        differ = [
            p for p in state.products if p.attributes.get("colour") != p.reasoned_attributes.get("colour")
        ]
        return r.CatalogueReply(
            products=n, with_picture=n - 1, reasoned=n, rationales_valid=n - 2, model="starter",
            fingerprint="0123abcd", reason="on", store_version=3, index={"kind": "flat", "rows": n},
            index_note="", weights=s.Weights(image=0.42, text=0.53, rationale=0.05),
            coverage=[
                r.Coverage(field=name, filled=n - i, share=(n - i) / max(1, n))
                for i, name in enumerate(("title", "picture", "price", "brand", "colour", "material"))
            ],
            categories=_facets(state.products).fields["category"],
            conflicts=[
                r.Conflict(product=p, field="colour", feed=p.attributes.get("colour", ""),
                           model=p.reasoned_attributes.get("colour", ""))
                for p in differ[: state.conflicts]
            ],
            conflicts_total=len(differ),
            broken=[
                s.RowProblem(row=i, id=f"p{i}", field="images", reason="the JPEG is cut short", fatal=True)
                for i in range(state.conflicts + 1)
            ],
            broken_total=state.conflicts + 1, feedback={"duplicate": 2},
        )  # fmt: skip

    app.mount("/static", StaticFiles(directory=PAGE), name="static")
    return app


def _refused(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "stub", "param": None, "code": None}}, status)


def _passes(product: s.ProductView, filters: s.Filters) -> bool:
    held = {"brand": product.brand, "category": product.category, **product.attributes}
    chosen = {name: values for name, values in filters.model_dump().items() if name in FACETS and values}
    price = product.price or 0
    low, high = filters.price_min or 0, filters.price_max
    return all(held.get(name) in values for name, values in chosen.items()) and (
        low <= price and (high is None or price <= high)
    )


def _facets(products: list[s.ProductView]) -> s.Facets:
    fields = {}
    for name in FACETS:
        counts: dict[str, int] = {}
        for product in products:
            value = {"brand": product.brand, "category": product.category, **product.attributes}.get(name)
            if value:
                counts[value] = counts.get(value, 0) + 1
        ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
        fields[name] = [s.FacetValue(value=value, count=n) for value, n in ordered]
    prices = [product.price for product in products if product.price is not None]
    return s.Facets(
        total=len(products), fields=fields, price_min=min(prices, default=None),
        price_max=max(prices, default=None),
    )  # fmt: skip


def _findings(state: Told) -> list[r.FindingView]:
    answers = ("A<B", "A=B", "A>B")
    return [
        r.FindingView(
            question=question.key, asks=question.asks,
            answer=answers[i % 3] if question.compares else "no",
            reason_a="small, at the edge" if question.compares else "",
            reason_b=state.reasons if question.compares else "",
        )
        for i, question in enumerate(QUESTIONS)
    ]  # fmt: skip
