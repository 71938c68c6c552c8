"""`/v1/files`: what clients upload and what jobs write; contents lie on disk, once each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, UploadFile
from starlette.responses import FileResponse, Response

from tessera.serve.context import Here, Id, Order, Server, in_thread
from tessera.serve.errors import ApiError, invalid
from tessera.serve.models import now
from tessera.serve.store import chunks_of, new_id

router = APIRouter(tags=["files"])

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_KIND, _WHAT = "file", "file"
_HOLDERS = (_KIND, "upload.part", "batch", "picture", "video", "eval.run")
"""Kinds of objects that have contents on the disk."""
_LONGEST_LIFE = 30 * 24 * 3600
_BYTES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}


@router.post("/v1/files")
async def create(
    here: Here,
    file: UploadFile,
    purpose: Annotated[str, Form()],
    anchor: Annotated[str | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[int | None, Form(alias="expires_after[seconds]", ge=3600, le=_LONGEST_LIFE)] = None,
) -> dict[str, Any]:
    """Takes a file in."""
    check_purpose(purpose)
    if (anchor is None) != (seconds is None) or anchor not in (None, "created_at"):
        raise invalid("'expires_after' needs the anchor 'created_at' and seconds.", "expires_after")
    expires_at = None if seconds is None else now() + seconds
    return await in_thread(
        keep,
        here.server,
        here.owner,
        file.filename or "upload",
        purpose,
        chunks_of(file.file),
        expires_at,
        here.server.most_file_bytes,
    )


@router.get("/v1/files")
async def list_files(
    here: Here,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
    purpose: str | None = None,
) -> dict[str, Any]:
    """The files, also by purpose."""
    return await here.page(_KIND, after, limit, order, where=None if purpose is None else {"purpose": purpose})


@router.get("/v1/files/{file_id}")
async def retrieve(file_id: Id, here: Here) -> dict[str, Any]:
    """What is known about a file."""
    return (await here.find(_KIND, file_id, _WHAT)).body


@router.delete("/v1/files/{file_id}")
async def delete(file_id: Id, here: Here) -> dict[str, Any]:
    """Forgets a file."""
    record = await here.find(_KIND, file_id, _WHAT)
    await here.delete(_KIND, file_id, _WHAT)
    await in_thread(forget_bytes, here.server, record.private["digest"])
    return {"id": file_id, "object": "file", "deleted": True}


@router.get("/v1/files/{file_id}/content", response_class=Response, responses=_BYTES)
async def content(file_id: Id, here: Here) -> Response:
    """The file itself, as bytes that no browser takes for a page."""
    record = await here.find(_KIND, file_id, _WHAT)
    path = here.server.blobs.path(record.private["digest"])
    headers = {"x-content-type-options": "nosniff"}
    return FileResponse(path, media_type="application/octet-stream", filename=record.body["filename"], headers=headers)


def check_purpose(purpose: str) -> None:
    """400 where it is none that the API knows."""
    if purpose not in PURPOSES:
        raise invalid(f"'{purpose[:50]}' is not one of {', '.join(PURPOSES)}.", "purpose")


def keep(
    server: Server,
    owner: str,
    name: str,
    purpose: str,
    chunks: Iterable[bytes],
    expires_at: int | None = None,
    most_bytes: int | None = None,
    md5: str | None = None,
) -> dict[str, Any]:
    """Writes a file and notes it.

    Args:
        md5: what the bytes must have as their digest.

    Raises:
        ApiError: 413, it is larger than `most_bytes`; 400, it is empty or has another digest.
    """

    def refer(digest: str, size: int) -> dict[str, Any]:
        body = {
            "id": new_id("file-"),
            "object": "file",
            "bytes": size,
            "created_at": now(),
            "filename": plain_name(name),
            "purpose": purpose,
            "status": "processed",
            "status_details": None,
            "expires_at": expires_at,
        }
        server.store.put(owner, _KIND, body, {"digest": digest}, expires_at=expires_at)
        return body

    return server.blobs.write(_checked(chunks, most_bytes, md5), refer)


def forget_bytes(server: Server, digest: str) -> None:
    """Removes contents that no file has any more."""

    def referred() -> bool:
        return any(server.store.everywhere(kind, private={"digest": digest}) for kind in _HOLDERS)

    server.blobs.forget(digest, referred)


def plain_name(name: str) -> str:
    """A file's name without the folders that a client may have written before it."""
    base = PurePosixPath(PureWindowsPath(name).name).name
    name = "".join(c for c in base if c.isprintable())[:255]
    return name if name.strip(". ") else "upload"


def _checked(chunks: Iterable[bytes], most_bytes: int | None, md5: str | None) -> Iterable[bytes]:
    size, digest = 0, hashlib.md5(usedforsecurity=False)
    for chunk in chunks:
        size += len(chunk)
        if most_bytes is not None and size > most_bytes:
            raise ApiError(413, f"The file is larger than {most_bytes} bytes.", "file", "file_too_large")
        digest.update(chunk)
        yield chunk
    if size == 0:
        raise invalid("The file is empty.", "file", "empty_file")
    if md5 is not None and digest.hexdigest() != md5.lower():
        raise invalid("The bytes do not have this MD5.", "md5")
