"""The application: every route behind one door, an error envelope on every status, work that a restart takes up again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from tessera import __version__
from tessera.serve import (
    absent,
    audio,
    batches,
    chat,
    chats,
    completions,
    conversations,
    decisions,
    embeddings,
    errors,
    evals,
    files,
    fine_tuning,
    graders,
    images,
    model_routes,
    moderations,
    provenance,
    responses,
    runs,
    stored_chat,
    tuning,
    uploads,
    videos,
)
from tessera.serve.context import Here, Operating, Server, in_thread
from tessera.serve.door import Door
from tessera.serve.errors import ApiError, Envelope
from tessera.serve.files import forget_bytes
from tessera.serve.keys import Key, Limits
from tessera.serve.metrics import CONTENT_TYPE, Log, Metrics
from tessera.serve.models import Models, Served
from tessera.serve.page.front import Front
from tessera.serve.store import Blobs, Store

_MIB = 1 << 20
_HOUSEKEEPING_SECONDS = 600


@dataclass(frozen=True)
class Settings:
    """How a server is set up.

    Args:
        data: folder for files and, unless there is a `database_url`, the database.
        database_url: of SQLAlchemy; None: SQLite in `data`.
        keys: who may come in; empty: everybody on this machine.
        most_body_bytes: of a request that is no upload.
        most_file_bytes: of an uploaded file.
        runs: folder of the training runs that can be looked at; None: none can.
        page: show a page to browsers.
    """

    data: Path
    database_url: str | None = None
    keys: tuple[Key, ...] = ()
    most_body_bytes: int = 32 * _MIB
    most_file_bytes: int = 512 * _MIB
    runs: Path | None = None
    page: bool = False


def build(models: Models, settings: Settings, log: Log | None = None) -> Door:
    """The ASGI application of a server. It closes models and store when it shuts down.

    Raises:
        UserError: the database cannot be opened.
    """
    settings.data.mkdir(parents=True, exist_ok=True)
    store = Store(settings.database_url or f"sqlite:///{settings.data / 'tessera.db'}")
    metrics, log, limits = Metrics(), log or Log(), Limits(settings.keys)
    blobs = Blobs(settings.data / "files")
    operators = frozenset(key.owner for key in settings.keys if key.operator) if settings.keys else None
    server = Server(models, store, blobs, metrics, log, limits, settings.data, settings.most_file_bytes, settings.runs, operators)
    for served in models:
        _watch(metrics, served)
    models.on_add = lambda served: _watch(metrics, served)
    models.on_remove = lambda served: metrics.unwatch(served.name)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.spawn("housekeeping", _keep_house(server))
        await batches.resume(server, app)
        await responses.resume(server)
        await tuning.resume(server)
        await evals.resume(server, app)
        await videos.resume(server)
        yield
        await server.stop()
        store.close()

    app = FastAPI(
        title="Tessera",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        responses={status: {"model": Envelope} for status in (400, 401, 403, 404, 405, 413, 429, 500, 501)},
    )
    app.state.server = server
    errors.handle_all(app)
    _add_own_routes(app)
    app.include_router(model_routes.router)
    app.include_router(absent.router)
    for room in (chat, stored_chat, completions, responses, conversations, embeddings, decisions, moderations):
        app.include_router(room.router)
    for room in (images, videos, audio, provenance):
        app.include_router(room.router)
    for room in (files, uploads, batches, fine_tuning, graders, evals):
        app.include_router(room.router)
    for room in (chats, runs):
        app.include_router(room.router)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign] # as FastAPI's manual has it

    def most_bytes(path: str) -> int:
        carries_files = path == "/v1/files" or path.startswith("/v1/uploads/")
        return settings.most_file_bytes + _MIB if carries_files else settings.most_body_bytes

    page = Front() if settings.page else None

    async def stop() -> None:
        if page is not None:
            await page.close()
        await server.stop()

    return Door(app, settings.keys, limits, metrics, log, most_bytes, stop, page=page)


def _add_own_routes(app: FastAPI) -> None:
    """What belongs to no API family."""

    @app.get("/health", tags=["server"])
    async def health(here: Here) -> dict[str, str]:
        """200 while every engine's thread is alive."""
        for served in here.server.models:
            if not served.service.alive:
                raise ApiError(503, f"The engine of {served.name} has stopped.", code="engine_stopped")
        return {"status": "ok"}

    @app.get("/ready", tags=["server"])
    async def ready(here: Here) -> dict[str, Any]:
        """200 once there are models to answer, and the store answers."""
        await in_thread(here.server.store.get, "", "", "")
        names = [served.name for served in here.server.models if not served.owner]
        if not names:
            raise ApiError(503, "No model is loaded.", code="not_ready")
        return {"status": "ready"}

    @app.get("/metrics", tags=["server"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics(here: Operating) -> Response:
        """Numbers for Prometheus."""
        return Response(here.server.metrics.text(), media_type=CONTENT_TYPE)


def _watch(metrics: Metrics, served: Served) -> None:
    """What an engine knows of itself."""
    stats = served.service.stats
    metrics.watch("running_requests", "Requests being computed.", served.name, lambda: stats().running)
    metrics.watch("waiting_requests", "Requests in the queue.", served.name, lambda: stats().waiting)
    metrics.watch("cache_tokens", "Tokens in the cache of running requests.", served.name, lambda: stats().cache_tokens)
    metrics.watch("cache_limit_tokens", "Tokens that fit into it.", served.name, lambda: stats().cache_limit)


async def _keep_house(server: Server) -> None:
    """Forgets what has expired."""
    while True:
        for record in await in_thread(server.store.expire):
            if "digest" in record.private:
                await in_thread(forget_bytes, server, record.private["digest"])
        await asyncio.sleep(_HOUSEKEEPING_SECONDS)


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: bad input is 400 here, where FastAPI by itself says 422."""
    if app.openapi_schema is None:
        page = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for methods in page["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
        app.openapi_schema = page
    return app.openapi_schema
