"""Server-sent events: what a route yields goes out at once, an error becomes an event, a client that leaves ends it all."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tessera.serve.errors import ApiError, of_exception
from tessera.serve.generation import until_left

_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
_SILENCE_SECONDS = 15.0
"""After so long without an event a comment goes out, so that no proxy takes the stream for dead."""

MAY_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
"""For the OpenAPI document: a route that answers with events where it is asked to."""

DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """One event as it goes over the wire."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + b"data: " + text.encode("utf-8", "replace") + b"\n\n"


class EventStream(Response):
    """Sends the pieces of an asynchronous generator, which is closed when all is sent or the client has left."""

    def __init__(self, pieces: AsyncGenerator[bytes]) -> None:
        self._pieces = pieces
        self._sent = False
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sending = asyncio.ensure_future(self._send(scope, send))
        others = [asyncio.ensure_future(until_left(receive)), asyncio.ensure_future(self._break_silence(send))]
        try:
            await asyncio.wait({sending, others[0]}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*others, sending):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending

    async def _send(self, scope: Scope, send: Send) -> None:
        failure: Exception | None = None
        try:
            async for piece in self._pieces:
                self._sent = True
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Exception as error:
            failure = error
            answer = of_exception(error)
            scope["state"]["error_code"] = answer.code
            await send({"type": "http.response.body", "body": event(answer.body), "more_body": True})
        finally:
            await self._pieces.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        if failure is not None and (failure.__cause__ is not None or not isinstance(failure, ApiError)):
            raise failure  # for the log

    async def _break_silence(self, send: Send) -> None:
        while True:
            self._sent = False
            await asyncio.sleep(_SILENCE_SECONDS)
            if not self._sent:
                await send({"type": "http.response.body", "body": b": still here\n\n", "more_body": True})
