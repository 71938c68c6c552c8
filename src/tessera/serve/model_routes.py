"""`/v1/models`: what is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from tessera.serve.context import Here
from tessera.serve.errors import ApiError
from tessera.serve.models import Served

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(here: Here) -> dict[str, Any]:
    """The models that this key may use."""
    return {"object": "list", "data": [_shown(served) for served in here.server.models.of(here.owner)]}


@router.get("/v1/models/{model:path}")
async def retrieve(model: str, here: Here) -> dict[str, Any]:
    """One of them."""
    return _shown(here.server.models.get(model, here.owner))


@router.delete("/v1/models/{model:path}")
async def delete(model: str, here: Here) -> dict[str, Any]:
    """A model that was tuned through the API could be forgotten; those of the command line stay."""
    here.server.models.get(model, here.owner)
    raise ApiError(403, "Models named on the command line cannot be deleted through the API.", "model", "permission_denied")


def _shown(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": served.owner or "tessera",
        "context_length": served.context,
        "dialogue": served.tuned,
    }
