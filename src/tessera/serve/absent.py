"""Routes of the OpenAI API whose models are not in this version yet: 501, and who brings them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from tessera.serve.errors import not_here

router = APIRouter(tags=["not in this version"])

_CHARACTERS = "characters of films", "no issue brings them: a film here is made from its caption and its first frames"
_TRANSLATIONS = "translations of sound", "no issue brings them: ask a model for the words by /v1/audio/transcriptions"
_VOICES = "voices of one's own", "no issue brings them: a voice here is a speaker that the model has learned"
_PERMISSIONS = "permissions of checkpoints", "no issue brings them: a model belongs to the key whose job made it"
_STORES = "vector stores", "search over files is not planned yet; embed texts by /v1/embeddings"
_CONTAINERS = "containers", "code runs in no container here"

ABSENT: dict[str, tuple[str, str]] = {
    "/videos/characters": _CHARACTERS,
    "/videos/characters/{rest:path}": _CHARACTERS,
    "/audio/translations": _TRANSLATIONS,
    "/audio/voices": _VOICES,
    "/audio/voices/{rest:path}": _VOICES,
    "/audio/voice_consents": _VOICES,
    "/audio/voice_consents/{rest:path}": _VOICES,
    "/fine_tuning/checkpoints/{rest:path}": _PERMISSIONS,
    "/vector_stores": _STORES,
    "/vector_stores/{rest:path}": _STORES,
    "/containers": _CONTAINERS,
    "/containers/{rest:path}": _CONTAINERS,
}


def _absent(what: str, brought_by: str) -> Any:
    async def refuse(request: Request) -> None:
        """Not in this version."""
        raise not_here(what.capitalize(), brought_by)

    return refuse


for _path, _why in ABSENT.items():
    router.add_api_route(
        "/v1" + _path, _absent(*_why), methods=["GET", "POST", "DELETE"], status_code=501, include_in_schema=False
    )
