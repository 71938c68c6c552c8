"""The server's public routes as the page calls them: over HTTP, with the key of the person who looks at it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import httpx


class Refused(Exception):
    """The server did not do what it was asked for.

    Args:
        message: for a person.
        status: of HTTP; 0: the server could not be reached, or went silent.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


@dataclass(frozen=True)
class Delta:
    """What came of an answer. `tokens` is how many the whole of it has, where that is known already; `picture` is a `data:` URL
    of all that is drawn so far, `media` one of a finished film or sound, and `percent` is how much of that is made."""

    text: str = ""
    picture: str = ""
    media: str = ""
    percent: int | None = None
    reasoning: str = ""
    finish_reason: str | None = None
    tokens: int | None = None


_POLL_SECONDS = 0.5


class Client:
    """A server.

    Args:
        address: host and port, as the browser's connection came in.
        key: of the person; empty: none.
    """

    def __init__(self, address: tuple[str, int], key: str = "") -> None:
        self.address = address
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        self._http = httpx.AsyncClient(
            base_url=f"http://{host}:{address[1]}",
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(30, read=600),
            trust_env=False,  # no proxy stands between the server and itself
        )

    async def close(self) -> None:
        """Ends the connections."""
        await self._http.aclose()

    async def get(self, path: str, **query: Any) -> Any:
        """What stands at a path.

        Raises:
            Refused: nothing does, or not for this key.
        """
        return (await self._ask("GET", path, params=query)).json()

    async def text(self, path: str) -> str:
        """The same, as text.

        Raises:
            Refused: as `get`.
        """
        return (await self._ask("GET", path)).text

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Sends an object.

        Raises:
            Refused: the server did not take it.
        """
        return (await self._ask("POST", path, json=body)).json()

    async def upload(self, name: str, purpose: str, content: bytes) -> Any:
        """Puts a file among those of the person.

        Raises:
            Refused: the server did not take it.
        """
        return (await self._ask("POST", "/v1/files", data={"purpose": purpose}, files={"file": (name, content)})).json()

    async def delete(self, path: str) -> None:
        """Forgets what stands at a path.

        Raises:
            Refused: nothing does.
        """
        await self._ask("DELETE", path)

    async def answer(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[Delta]:
        """What comes of a chat's or a text's completion, of a picture, a film or a sound. The server stops when it is closed.

        Raises:
            Refused: before or while it came.
        """
        if path == "/v1/videos":
            async with aclosing(self._film(body)) as deltas:
                async for delta in deltas:
                    yield delta
            return
        if path == "/v1/audio/speech":
            yield Delta(media=_data_url(await self._ask("POST", path, json=body)), finish_reason="stop")
            return
        body = {**body, "stream": True}
        if not path.startswith("/v1/images/"):
            body["stream_options"] = {"include_usage": True}
        if "messages" in body:
            body["include_reasoning"] = True
        try:
            async with self._http.stream("POST", path, json=body) as response:
                if response.status_code >= 400:
                    await response.aread()
                    raise _refusal(response)
                async with aclosing(response.aiter_lines()) as lines:  # type: ignore[type-var]
                    async for line in lines:
                        if line.startswith("data: ") and line != "data: [DONE]":
                            for delta in _deltas(json.loads(line[6:])):
                                yield delta
        except httpx.HTTPError as error:
            raise Refused(f"The server did not answer ({type(error).__name__}).") from None

    async def _film(self, body: Mapping[str, Any]) -> AsyncGenerator[Delta]:
        """A film while it is made; its job is forgotten in any case, as the chat keeps what came of it."""
        path = f"/v1/videos/{(await self.post('/v1/videos', body))['id']}"
        try:
            while (job := await self.get(path))["status"] in ("queued", "in_progress"):
                yield Delta(percent=job["progress"])
                await asyncio.sleep(_POLL_SECONDS)
            if job["status"] != "completed":
                raise Refused(job["error"]["message"])
            yield Delta(media=_data_url(await self._ask("GET", f"{path}/content")), finish_reason="stop")
        finally:
            with suppress(Refused):
                await self.delete(path)

    async def _ask(self, method: str, path: str, **what: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, path, **what)
        except httpx.HTTPError as error:
            raise Refused(f"The server did not answer ({type(error).__name__}).") from None
        if response.status_code >= 400:
            raise _refusal(response)
        return response


def _data_url(response: httpx.Response) -> str:
    """A file as an address that holds it."""
    return f"data:{response.headers['content-type']};base64,{base64.b64encode(response.content).decode()}"


def _deltas(event: Mapping[str, Any]) -> list[Delta]:
    if "error" in event:
        raise Refused(event["error"]["message"])
    if "b64_json" in event:
        picture = f"data:image/{event['output_format']};base64,{event['b64_json']}"
        usage = event.get("usage")
        return [Delta(picture=picture, finish_reason="stop" if usage else None, tokens=usage and usage["output_tokens"])]
    found = []
    for choice in event["choices"]:
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content") or ""
        found.append(Delta(text, reasoning=delta.get("reasoning") or "", finish_reason=choice.get("finish_reason")))
    if event.get("usage"):
        found.append(Delta(tokens=event["usage"]["completion_tokens"]))
    return found


def _refusal(response: httpx.Response) -> Refused:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"The server answered {response.status_code}."
    if response.status_code == 429 and (wait := response.headers.get("retry-after")):
        message = f"{message} Try again in {wait} s."
    return Refused(message, response.status_code)
