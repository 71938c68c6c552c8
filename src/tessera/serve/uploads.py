"""`/v1/uploads`: a large file in parts, which become one file when all are there."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Any, Literal

from fastapi import APIRouter, UploadFile
from pydantic import Field

from tessera.serve.bodies import Body, Part
from tessera.serve.context import Call, Here, Id, in_thread
from tessera.serve.errors import ApiError, invalid
from tessera.serve.files import check_purpose, forget_bytes, keep, plain_name
from tessera.serve.models import now
from tessera.serve.store import Record, chunks_of, new_id

router = APIRouter(tags=["uploads"])

_KIND, _WHAT, _PART = "upload", "upload", "upload.part"
_LIFE_SECONDS = 3600
_MOST_PART_BYTES = 64 << 20


class ExpiresAfter(Part):
    """When the file is forgotten."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=30 * 24 * 3600)]


class Create(Body):
    """The body of `POST /v1/uploads`."""

    bytes: Annotated[int, Field(ge=1)]
    filename: Annotated[str, Field(min_length=1, max_length=1024)]
    mime_type: Annotated[str, Field(max_length=255)]
    purpose: str
    expires_after: ExpiresAfter | None = None


class Complete(Body):
    """The body of `POST /v1/uploads/ID/complete`."""

    part_ids: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    md5: str | None = None


@router.post("/v1/uploads")
async def create(body: Create, here: Here) -> dict[str, Any]:
    """Announces a file."""
    check_purpose(body.purpose)
    if body.bytes > here.server.most_file_bytes:
        raise ApiError(413, f"A file may have at most {here.server.most_file_bytes} bytes.", "bytes", "file_too_large")
    created = now()
    upload = {
        "id": new_id("upload_"),
        "object": "upload",
        "bytes": body.bytes,
        "created_at": created,
        "expires_at": created + _LIFE_SECONDS,
        "filename": plain_name(body.filename),
        "purpose": body.purpose,
        "status": "pending",
        "file": None,
    }
    private = {"life": body.expires_after.seconds if body.expires_after else None}
    await in_thread(here.server.store.put, here.owner, _KIND, upload, private)
    return upload


@router.post("/v1/uploads/{upload_id}/parts")
async def add_part(upload_id: Id, data: UploadFile, here: Here) -> dict[str, Any]:
    """Takes in a part, in any order."""
    record = await _pending(here, upload_id)
    if data.size is not None and data.size > _MOST_PART_BYTES:
        raise ApiError(413, f"A part may have at most {_MOST_PART_BYTES} bytes.", "data", "file_too_large")
    # A part whose answer was lost is sent again, so that there may be more than announced; twice as much is enough for that.
    announced, taken = record.body["bytes"], record.private.get("taken", 0) + (data.size or 0)
    if taken > 2 * announced + _MOST_PART_BYTES:
        raise invalid(f"The parts have {taken} bytes already, announced were {announced}.", "data", "size_mismatch")
    part = {"id": new_id("part_"), "object": "upload.part", "created_at": now(), "upload_id": upload_id}

    def refer(digest: str, size: int) -> None:
        store, expires_at = here.server.store, record.body["expires_at"]
        store.put(here.owner, _PART, part, {"digest": digest, "size": size}, upload_id, expires_at)
        store.update(here.owner, _KIND, upload_id, lambda _, private: private.update(taken=private.get("taken", 0) + size))

    await in_thread(here.server.blobs.write, chunks_of(data.file), refer)
    return part


@router.post("/v1/uploads/{upload_id}/complete")
async def complete(upload_id: Id, body: Complete, here: Here) -> dict[str, Any]:
    """Makes the parts, in the order given, a file."""
    record = await _pending(here, upload_id)
    life = record.private["life"]
    server, shown = here.server, record.body
    try:
        parts = [await here.find(_PART, id, "part", upload_id, "part_ids") for id in body.part_ids]
        size, announced = sum(part.private["size"] for part in parts), shown["bytes"]
        if size != announced:
            raise invalid(f"The parts have {size} bytes, announced were {announced}.", "part_ids", "size_mismatch")
        content = chain.from_iterable(server.blobs.read(part.private["digest"]) for part in parts)
        expires_at = None if life is None else now() + life
        most = server.most_file_bytes
        file = await in_thread(keep, server, here.owner, shown["filename"], shown["purpose"], content, expires_at, most, body.md5)
    except (ApiError, OSError):
        await _pending(here, upload_id)  # who completed it, or gave it up, meanwhile took the parts away
        raise

    def change(now_shown: dict[str, Any], _: dict[str, Any]) -> None:
        _refuse_unless_pending(now_shown)
        now_shown.update(status="completed", file=file)

    try:
        done = await here.update(_KIND, upload_id, _WHAT, change)
    except ApiError:
        # Somebody else completed it, or gave it up, while this was being written: one upload is one file.
        digest = (await here.find("file", file["id"], "file")).private["digest"]
        await here.delete("file", file["id"], "file")
        await in_thread(forget_bytes, server, digest)
        raise
    await _drop_parts(here, upload_id)
    return done.body


@router.post("/v1/uploads/{upload_id}/cancel")
async def cancel(upload_id: Id, here: Here) -> dict[str, Any]:
    """Gives up a file; its parts are forgotten."""
    await _pending(here, upload_id)

    def change(shown: dict[str, Any], _: dict[str, Any]) -> None:
        _refuse_unless_pending(shown)
        shown["status"] = "cancelled"

    record = await here.update(_KIND, upload_id, _WHAT, change)
    await _drop_parts(here, upload_id)
    return record.body


async def _pending(here: Call, upload_id: str) -> Record:
    record = await here.find(_KIND, upload_id, _WHAT)
    if record.body["status"] == "pending" and record.body["expires_at"] <= now():
        record = await here.update(_KIND, upload_id, _WHAT, lambda shown, _: shown.update(status="expired"))
        await _drop_parts(here, upload_id)
    _refuse_unless_pending(record.body)
    return record


def _refuse_unless_pending(upload: dict[str, Any]) -> None:
    if upload["status"] != "pending":
        raise invalid(f"The upload is {upload['status']}.", "upload_id", "upload_not_pending")


async def _drop_parts(here: Call, upload_id: str) -> None:
    def work() -> None:
        store = here.server.store
        while (page := store.page(here.owner, _PART, upload_id, limit=1000)).records:
            for part in page.records:
                store.delete(here.owner, _PART, part.id)
                forget_bytes(here.server, part.private["digest"])

    await in_thread(work)
