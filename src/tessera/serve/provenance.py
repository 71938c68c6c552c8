"""`/v1/content_provenance_checks`: whether a file says that a model here made it.

A file that says nothing may come from here all the same: whoever saves a picture anew, or takes a photograph of it, loses the
mark. Marks of other makers are checked too, and are not "detected". No watermark is looked for.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, UploadFile
from pydantic import BaseModel

from tessera.provenance import read_mark
from tessera.serve.context import Here, in_thread
from tessera.serve.errors import invalid
from tessera.serve.models import now

router = APIRouter(tags=["content provenance"])


class Check(BaseModel):
    """The form of `POST /v1/content_provenance_checks`."""

    file: UploadFile


@router.post("/v1/content_provenance_checks")
async def check(body: Annotated[Check, Form(media_type="multipart/form-data")], here: Here) -> dict[str, Any]:
    """Reads the mark of a picture, a film or a recording."""
    data = await body.file.read()
    try:
        mark = await in_thread(read_mark, data)
    except ValueError:
        raise invalid(
            "The file is no PNG, JPEG, WebP, GIF, MP4, MOV, WAV, FLAC or MP3 that can be read.", "file", "invalid_file"
        ) from None
    result: dict[str, Any] = {
        "type": "c2pa",
        "outcome": "detected" if mark.ours else "not_detected",
        "validation_state": mark.state,
        "issuer": mark.issuer,
        "generated_at": mark.made,
        "model": mark.model if mark.ours else None,
    }
    return {"object": "content_provenance_check", "created_at": now(), "results": [result]}
