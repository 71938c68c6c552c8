"""The outermost layer: every request gets an id, is let in or not, is counted and logged, whatever becomes of it.

Plain ASGI, so that streams pass through as they come and a client that leaves is noticed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tessera.serve.errors import ApiError, of_exception, too_busy
from tessera.serve.keys import LOCAL, Key, Limits, find_owner, refuse_foreign
from tessera.serve.metrics import Log, Metrics
from tessera.serve.page.front import Front, is_of_page
from tessera.serve.store import new_id

_log = logging.getLogger(__name__)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

OPEN_TO_ALL = frozenset({"/health", "/ready"})
"""Answered without a key."""
OPEN_PICTURES = "/tessera/pictures/"
"""So are drawn pictures: a browser shows them by an address that nobody can guess and that is soon over."""


class Door:
    """Wraps an application.

    It puts `owner`, `request_id` and `started` into the request's state.

    Args:
        app: what is behind it.
        keys: empty: no key is needed, and foreign pages are kept out.
        limits: of the keys.
        metrics, log: where requests are counted.
        most_bytes: of a body, by the path that it goes to.
        stop: ends what goes on behind it.
        most_running: requests that are answered at a time; more are asked to come again.
        page: what browsers are shown; None: nothing.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[Key],
        limits: Limits,
        metrics: Metrics,
        log: Log,
        most_bytes: Callable[[str], int],
        stop: Callable[[], Awaitable[None]],
        most_running: int = 1024,
        page: Front | None = None,
    ) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits
        self._metrics = metrics
        self._log = log
        self._most_bytes = most_bytes
        self._stop = stop
        self._most_running = most_running
        self._running = 0
        self._page = page

    async def stop(self) -> None:
        """Lets go of whoever is still being answered; for a server that is about to end."""
        await self._stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._page is not None and is_of_page(scope):
            await self._show(self._page, scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = new_id("req_")
        state["started"] = start
        limits: dict[str, str] = {}
        status, code = 0, None

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = state["request_id"]
                headers["openai-processing-ms"] = str(round((time.perf_counter() - start) * 1000))
                headers.update(limits)
            await send(message)

        self._running += 1
        try:
            limits |= self._let_in(scope, state)
            await self._app(scope, self._limited(scope, receive), send_marked)
        except Exception as error:
            # Starlette's own last resort has answered already where it could; here it is only written down.
            answer = of_exception(error)
            code = answer.code
            if answer.status >= 500:
                self._log.write("crash", request_id=state["request_id"], traceback=traceback.format_exc())
            if status == 0:
                await answer.response()(scope, receive, send_marked)
        finally:
            self._running -= 1
            self._count(scope, state, status, code, time.perf_counter() - start)

    async def _show(self, page: Front, scope: Scope, receive: Receive, send: Send) -> None:
        """The page itself needs no key, as it asks for one; what it shows comes through this door like any client's."""
        try:
            if not self._keys:
                refuse_foreign(Headers(scope=scope))
            if scope["type"] == "http":
                receive = self._limited(scope, receive)
        except ApiError as error:
            if scope["type"] == "http":
                await error.response()(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008, "reason": error.message[:120]})
            return
        await page(scope, receive, send)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, until the body is too large: nothing of it is read then, or no more of it."""
        most, seen = self._most_bytes(scope["path"]), 0
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > most:
            raise _too_large(most)

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise HTTPException(413, str(most))  # of Starlette, as its own readers of bodies let only that pass
            return message

        return limited

    def _let_in(self, scope: Scope, state: dict[str, Any]) -> dict[str, str]:
        if self._running > self._most_running:
            raise too_busy("Too many requests at a time.", 1)
        headers = Headers(scope=scope)
        if self._keys:
            if scope["path"] in OPEN_TO_ALL or scope["path"].startswith(OPEN_PICTURES):
                state["owner"] = ""
                return {}
            state["owner"] = find_owner(self._keys, headers.get("authorization", ""))
            return self._limits.enter(state["owner"])
        refuse_foreign(headers)
        state["owner"] = LOCAL
        return {}

    def _count(self, scope: Scope, state: dict[str, Any], status: int, code: str | None, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        # A label for each word that a stranger can think of would fill the memory.
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if status >= 400:
            self._metrics.errors.labels(code or state.get("error_code") or str(status)).inc()
        facts = {"request_id": state["request_id"], "method": scope["method"], "path": scope["path"], "status": status}
        self._log.write("request", **facts, seconds=round(seconds, 4), owner=state.get("owner"), **state.get("usage", {}))


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The body of the request is larger than {most} bytes.", code="request_too_large")


async def call(
    app: ASGIApp, owner: str, method: str, path: str, body: bytes, priority: int
) -> tuple[int, dict[str, str], bytes, str]:
    """A request from within: what a row of a batch asks for, on behalf of its owner.

    Args:
        app: behind the door.
        priority: of its generations; more is later.

    Returns:
        status, headers, body and request id.
    """
    request_id = new_id("req_")
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": None,
        "server": None,
        "state": {"owner": owner, "request_id": request_id, "started": time.perf_counter(), "priority": priority},
    }
    status = 500
    headers: dict[str, str] = {}
    pieces: list[bytes] = []
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            await asyncio.Event().wait()  # this client stays until it is answered
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            pieces.append(message.get("body", b""))

    try:
        await app(scope, receive, send)
    except Exception as error:
        # Whoever is out there gets the same from the door; one row must not end all others.
        _log.exception("a request from within failed: %s %s", method, path)
        return 500, {}, json.dumps(of_exception(error).body).encode(), request_id
    return status, headers, b"".join(pieces), request_id
