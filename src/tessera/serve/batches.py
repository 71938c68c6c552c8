"""`/v1/batches`: a file of requests, done one after the other when there is room, and a file of their answers.

The rows go through the same application as any request, with a lower priority. Answers are written down as they come, so that a
server that was killed goes on with the rows that have none.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.types import ASGIApp

from tessera.serve.bodies import Body, Metadata, Part
from tessera.serve.context import Here, Id, Limit, Server, in_thread, side_by_side, wholly
from tessera.serve.door import call
from tessera.serve.errors import ApiError, invalid, of_exception
from tessera.serve.files import forget_bytes, keep
from tessera.serve.models import now
from tessera.serve.store import new_id

router = APIRouter(tags=["batches"])

_KIND, _WHAT = "batch", "batch"
_MOST_ROWS = 50_000
_AT_A_TIME = 4
_PRIORITY = 10
Endpoint = Literal["/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions", "/v1/moderations"]


class ExpiresAfter(Part):
    """When the file of answers is forgotten."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=30 * 24 * 3600)]


class Create(Body):
    """The body of `POST /v1/batches`."""

    completion_window: Literal["24h"]
    endpoint: Endpoint
    input_file_id: str
    metadata: Metadata = {}
    output_expires_after: ExpiresAfter | None = None


@router.post("/v1/batches")
async def create(body: Create, here: Here) -> dict[str, Any]:
    """Takes a file of requests."""
    file = await here.find("file", body.input_file_id, "file", param="input_file_id")
    if file.body["purpose"] != "batch":
        raise invalid("The file must have been uploaded with the purpose 'batch'.", "input_file_id")
    created = now()
    times = ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at")
    batch = {
        "id": new_id("batch_"),
        "object": "batch",
        "endpoint": body.endpoint,
        "errors": None,
        "input_file_id": body.input_file_id,
        "completion_window": body.completion_window,
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": created,
        "expires_at": created + 24 * 3600,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": body.metadata,
        **dict.fromkeys(times),
    }
    life = body.output_expires_after.seconds if body.output_expires_after else None
    await in_thread(here.server.store.put, here.owner, _KIND, batch, {"digest": file.private["digest"], "life": life})
    _start(here.server, here.request.app, here.owner, str(batch["id"]))
    return batch


@router.get("/v1/batches")
async def list_batches(here: Here, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
    """The batches."""
    return await here.page(_KIND, after, limit)


@router.get("/v1/batches/{batch_id}")
async def retrieve(batch_id: Id, here: Here) -> dict[str, Any]:
    """One batch."""
    return (await here.find(_KIND, batch_id, _WHAT)).body


@router.post("/v1/batches/{batch_id}/cancel")
async def cancel(batch_id: Id, here: Here) -> dict[str, Any]:
    """Stops a batch; the answers that are there are kept."""
    record = await here.find(_KIND, batch_id, _WHAT)
    if record.body["status"] not in ("validating", "in_progress", "finalizing"):
        raise invalid(f"A batch that is {record.body['status']} cannot be cancelled.", "batch_id")
    await here.update(_KIND, batch_id, _WHAT, lambda shown, _: shown.update(status="cancelling", cancelling_at=now()))
    await here.server.cancel(batch_id)
    record = await here.find(_KIND, batch_id, _WHAT)
    if record.body["status"] != "cancelling":
        return record.body  # it was done before it heard of it
    work = _Work(here.server, here.request.app, here.owner, batch_id)
    await in_thread(work.close, "cancelled")
    return (await here.find(_KIND, batch_id, _WHAT)).body


async def resume(server: Server, app: ASGIApp) -> None:
    """Goes on with the batches that a stop of the server has cut off."""
    for record in await in_thread(server.store.everywhere, _KIND):
        if record.body["status"] in ("validating", "in_progress", "finalizing"):
            _start(server, app, record.owner, record.id)
        elif record.body["status"] == "cancelling":
            await in_thread(_Work(server, app, record.owner, record.id).close, "cancelled")


def _start(server: Server, app: ASGIApp, owner: str, id: str) -> None:
    server.spawn(id, _Work(server, app, owner, id).run())


class _Work:
    """One batch on its way."""

    def __init__(self, server: Server, app: ASGIApp, owner: str, id: str) -> None:
        self._server = server
        self._app = app
        self._owner = owner
        self._id = id
        self._lines = server.data / "batches" / f"{id}.jsonl"
        self._lines.parent.mkdir(exist_ok=True)
        record = server.store.get(owner, _KIND, id)
        assert record is not None
        self._batch, self._private = record.body, record.private

    async def run(self) -> None:
        """From the file to the answers."""
        try:
            rows = await in_thread(self._read)
        except ApiError as error:
            problem = {"code": error.code, "message": error.message, "param": error.param, "line": None}
            self._note(status="failed", failed_at=now(), errors={"object": "list", "data": [problem]})
            await in_thread(self._release)
            return
        done = await in_thread(self._done)
        counts = {"total": len(rows), "completed": sum(done.values()), "failed": len(done) - sum(done.values())}
        self._note(status="in_progress", in_progress_at=now(), request_counts=dict(counts))
        waiting = iter([row for row in rows if row["custom_id"] not in done])

        async def worker() -> None:
            for row in waiting:
                answer = await self._answer(row)
                await wholly(in_thread(_append, self._lines, answer))
                counts["completed" if answer["error"] is None else "failed"] += 1
                self._note(request_counts=dict(counts))

        try:
            await side_by_side(worker, _AT_A_TIME)
        except* Exception:
            unforeseen = of_exception(RuntimeError())
            problem = {"code": unforeseen.code, "message": unforeseen.message, "param": None, "line": None}
            self._note(errors={"object": "list", "data": [problem]})
            await in_thread(self.close, "failed")
            raise
        self._note(status="finalizing", finalizing_at=now())
        await wholly(in_thread(self.close, "completed"))  # cancelled in between, it would be closed twice

    def close(self, status: str) -> None:
        """Makes the answers files."""
        groups: dict[str, list[bytes]] = {"output_file_id": [], "error_file_id": []}
        for line in _lines_of(self._lines):
            groups["output_file_id" if line["error"] is None else "error_file_id"].append(json.dumps(line).encode() + b"\n")
        made = {}
        life = self._private["life"]
        for name, lines in groups.items():
            if lines:
                file_name = f"{self._id}_{name.split('_')[0]}.jsonl"
                expires_at = None if life is None else now() + life
                made[name] = keep(self._server, self._owner, file_name, "batch_output", iter(lines), expires_at)["id"]
        self._note(status=status, **{f"{status}_at": now()}, **made)
        self._lines.unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        """Lets go of the requests, which are not read again: they go when their file does."""
        digest = self._private["digest"]
        self._server.store.update(self._owner, _KIND, self._id, lambda _, private: private.update(digest=None))
        if digest is not None:
            forget_bytes(self._server, digest)

    def _read(self) -> list[dict[str, Any]]:
        """The rows of the file.

        Raises:
            ApiError: a line is not a request, or two have the same custom_id.
        """
        rows: list[dict[str, Any]] = []
        seen: set[str] = set()
        with open(self._server.blobs.path(self._private["digest"]), "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = _row(line, number, self._batch["endpoint"])
                if row["custom_id"] in seen:
                    raise ApiError(400, f"Line {number}: the custom_id is there already.", "custom_id", "duplicate_custom_id")
                seen.add(row["custom_id"])
                rows.append(row)
                if len(rows) > _MOST_ROWS:
                    raise ApiError(400, f"A batch has at most {_MOST_ROWS} requests.", "input_file_id", "too_many_requests")
        if not rows:
            raise ApiError(400, "The file holds no request.", "input_file_id", "empty_file")
        return rows

    def _done(self) -> dict[str, bool]:
        """Which rows were answered before the server stopped, and whether well."""
        return {line["custom_id"]: line["error"] is None for line in _lines_of(self._lines)}

    async def _answer(self, row: dict[str, Any]) -> dict[str, Any]:
        # A row's answer is one object, so nothing is streamed.
        body = json.dumps({k: v for k, v in row["body"].items() if k not in ("stream", "stream_options")}).encode()
        while True:
            status, headers, said, request_id = await call(
                self._app, self._owner, "POST", self._batch["endpoint"], body, _PRIORITY
            )
            if status != 429:
                break
            await asyncio.sleep(float(headers.get("retry-after", "1")))
        answer = json.loads(said)
        response = {"status_code": status, "request_id": request_id, "body": answer}
        error = answer["error"] if status >= 400 else None
        shown = None if error is None else {"code": error["code"], "message": error["message"]}
        return {"id": new_id("batch_req_"), "custom_id": row["custom_id"], "response": response, "error": shown}

    def _note(self, **changes: Any) -> None:
        self._server.store.update(self._owner, _KIND, self._id, lambda shown, _: shown.update(changes))


def _row(line: bytes, number: int, endpoint: str) -> dict[str, Any]:
    """A line of the file, if it is a request to this endpoint."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ApiError(400, f"Line {number} is not valid JSON.", "input_file_id", "invalid_json_line") from None
    right = isinstance(row, dict) and isinstance(row.get("custom_id"), str) and isinstance(row.get("body"), dict)
    if not right or row.get("method") != "POST" or row.get("url") != endpoint:
        message = f"Line {number} must have a custom_id, the method POST, the url {endpoint} and a body."
        raise ApiError(400, message, "input_file_id", "invalid_request")
    return dict(row)


def _append(path: Path, answer: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        # The line end comes first: a line that a kill has cut off must not spoil the next.
        file.write("\n" + json.dumps(answer))


def _lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The answers written so far; a last line cut off by a kill is left out."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                yield json.loads(line)
