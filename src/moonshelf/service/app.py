"""The application: the routes behind their middleware, errors in one form, health, metrics, and the page.

The port opens at once and `/ready` says 503 until model and index are loaded; on the way down it says so
again, and what was taken is finished. Errors follow OpenAI's form, because its clients show them well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteError
from starlette.middleware.cors import CORSMiddleware

from moonshelf import __version__
from moonshelf.catalogue.manifest import Locked, Unwritable
from moonshelf.errors import UserError
from moonshelf.memory import Crowded
from moonshelf.model.encoders.rerankers import RerankError
from moonshelf.service import routes, schemas
from moonshelf.service.batcher import Expired, Overloaded, Stopped
from moonshelf.service.body import Refused
from moonshelf.service.catalogue_service import CatalogueService
from moonshelf.service.creative_service import CreativeService, Unavailable
from moonshelf.service.inputs import BadInput
from moonshelf.service.keys import KeyRing
from moonshelf.service.middleware import LOADING_RETRY, Middleware, error_body
from moonshelf.service.monitor import CONTENT_TYPE, Monitor
from moonshelf.service.settings import Settings

log = logging.getLogger("moonshelf.service")

PAGE = Path(__file__).parent / "page"
SHOWN_ERRORS = 3  # fields named in one message
LONGEST = 500  # characters of what is said of one
SHAPES = {"string_type", "dict_type", "list_type", "model_type", "model_attributes_type"}


def create_app(settings: Settings, on_failure: Callable[[Exception], None] | None = None) -> FastAPI:
    """The service of one catalogue folder.

    `on_failure` is called where model or catalogue cannot be loaded (UserError: the message says why); the
    service then stays unready. Raises UserError for a file of keys that cannot be read.
    """
    monitor = Monitor()
    keys = KeyRing(settings.keys_file) if settings.keys_file is not None else None
    service = CatalogueService(settings, monitor)
    judging = CreativeService(settings.creative_model, settings.batch_tokens)

    def load() -> None:
        service.open(judging.open())
        judging.attach(service.batcher)

    async def start(app: FastAPI) -> None:
        try:
            await service.pools.run("write", load)
        except Exception as error:
            log.error("the service cannot start: %s", error)
            app.state.phase = "failed"
            if on_failure is not None:
                on_failure(error)
        else:
            app.state.phase = "ready"
            log.info("ready", extra={"products": len(service.catalogue), "model": service.name})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(start(app))
        yield
        phase, app.state.phase = app.state.phase, "stopping"
        if phase == "ready":
            await service.close()
        loading.cancel()  # nobody waits for a model that is being loaded

    app = FastAPI(
        title="Moonshelf", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Product embeddings with reasons, search, duplicates, and creatives compared.",
    )  # fmt: skip
    app.state.settings, app.state.service, app.state.judging = settings, service, judging
    app.state.monitor = monitor
    app.state.phase = "loading"
    app.include_router(routes.router)
    _errors(app)
    _around(app, monitor)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-deadline-seconds"],
        )  # fmt: skip
    app.add_middleware(Middleware, settings=settings, monitor=monitor, keys=keys)
    return app


def _around(app: FastAPI, monitor: Monitor) -> None:
    """Health, readiness, metrics and the page."""

    @app.get("/health")
    async def health() -> schemas.Health:
        """The process is alive."""
        return schemas.Health(version=__version__)

    @app.get("/ready", responses={503: {"model": schemas.Ready, "description": "Loading or stopping."}})
    async def ready(response: Response) -> schemas.Ready:
        """Requests are answered."""
        if app.state.phase == "ready":
            service: CatalogueService = app.state.service
            return schemas.Ready(
                status="ready", queued=service.batcher.waiting, products=len(service.catalogue)
            )
        response.status_code = 503
        status = "stopping" if app.state.phase == "stopping" else "loading"
        return schemas.Ready(status=status, queued=0, products=0)  # type: ignore[arg-type]

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counts and latencies, as Prometheus reads them."""
        return Response(monitor.text(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/static", StaticFiles(directory=PAGE, check_dir=False), name="static")


def _refusal(
    status: int, message: str, param: str | None = None, retry_after: int | None = None
) -> JSONResponse:
    headers = {"retry-after": str(retry_after)} if retry_after is not None else None
    return JSONResponse(error_body(status, message, param), status, headers)


def _errors(app: FastAPI) -> None:
    """Every error that a caller or the load may cause, as a status and one sentence."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        if any(one["type"] == "json_invalid" for one in found):
            return _refusal(400, "the body is no valid JSON")
        # Where a field takes several shapes, each says why it was not it: what fits a shape best comes first.
        found = [one for one in found if one["type"] not in SHAPES] or found
        said = [_said(one) for one in found[:SHOWN_ERRORS]]
        more = f" (and {len(found) - SHOWN_ERRORS} more)" if len(found) > SHOWN_ERRORS else ""
        return _refusal(422, "; ".join(said) + more, _path(found[0]))

    @app.exception_handler(StarletteError)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        reply = _refusal(error.status_code, str(error.detail))
        reply.headers.update(error.headers or {})
        return reply

    for kind in REFUSALS:
        app.add_exception_handler(kind, _refused)


# Status and seconds until it may be tried again; an error may say its own.
REFUSALS: dict[type[Exception], tuple[int, int | None]] = {
    BadInput: (422, None), Refused: (400, None), UserError: (400, None), Unwritable: (403, None),
    Crowded: (429, 1), Overloaded: (429, None), Unavailable: (501, None), Locked: (503, LOADING_RETRY),
    Stopped: (503, LOADING_RETRY), Expired: (504, None), RerankError: (503, LOADING_RETRY),
}  # fmt: skip


def _refused(request: Request, error: Exception) -> JSONResponse:
    status, retry = next(REFUSALS[kind] for kind in type(error).__mro__ if kind in REFUSALS)
    service: CatalogueService = request.app.state.service
    return _refusal(
        getattr(error, "status", status), service.public(str(error)), getattr(error, "param", None),
        getattr(error, "retry_after", retry),
    )  # fmt: skip


def _path(error: Any) -> str | None:
    """The field's path without the names of unions' members, which say nothing to a caller."""
    where = [str(part) for part in error["loc"][1:] if isinstance(part, int) or str(part).isidentifier()]
    return ".".join(where)[:LONGEST] or None


def _said(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")[:LONGEST]
    path = _path(error)
    return f"{path}: {message}" if path else message
