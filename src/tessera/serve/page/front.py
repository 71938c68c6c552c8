"""Where the page meets the server: which paths are its own, and how it comes to be there.

NiceGUI is imported when a browser first asks for the page, so that it costs a server nothing that only answers programs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PATHS = ("/_nicegui/", "/_nicegui_ws/")

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src data:; font-src 'self' data:; connect-src 'self' ws: wss:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'; object-src 'none'"
)
"""Nothing is fetched from elsewhere, whatever a model writes. The two `unsafe` are for Vue, which compiles in the browser."""


def is_of_page(scope: Scope) -> bool:
    """Whether a connection is for the page."""
    return scope["type"] != "lifespan" and (scope["path"] in ("/", "/favicon.ico") or scope["path"].startswith(_PATHS))


class Front:
    """The page as an ASGI application; one process has one."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None
        self._loading = asyncio.Lock()
        self._life = contextlib.AsyncExitStack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/" and scope["method"] not in ("GET", "HEAD"):
            await PlainTextResponse("The page is read by GET.", 405)(scope, receive, send)
            return
        app = await self._loaded()

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = _POLICY
                headers["referrer-policy"] = "no-referrer"
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        await app(scope, receive, send_marked if scope["type"] == "http" else send)

    async def close(self) -> None:
        """Lets go of the browsers."""
        await self._life.aclose()

    async def _loaded(self) -> ASGIApp:
        async with self._loading:
            if self._app is None:
                app = (await asyncio.to_thread(_import))()
                await self._life.enter_async_context(app.router.lifespan_context(app))
                self._app = app
        return self._app


def _import() -> Callable[[], FastAPI]:
    from tessera.serve.page.view import prepared

    return prepared
