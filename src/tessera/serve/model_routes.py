"""`/v1/models`: what is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from tessera.serve.context import Here, in_thread
from tessera.serve.errors import ApiError
from tessera.serve.models import Kept, Served
from tessera.serve.tuning import forget_model

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(here: Here) -> dict[str, Any]:
    """The models that this key may use."""
    return {"object": "list", "data": [_shown(served) for served in here.server.models.of(here.owner)]}


@router.get("/v1/models/{model:path}")
async def retrieve(model: str, here: Here) -> dict[str, Any]:
    """One of them."""
    return _shown(here.server.models.find(model, here.owner))


@router.delete("/v1/models/{model:path}")
async def delete(model: str, here: Here) -> dict[str, Any]:
    """Forgets a model that was tuned through the API; those of the command line stay."""
    found = here.server.models.find(model, here.owner)
    if not found.owner:
        raise ApiError(403, "Models named on the command line cannot be deleted through the API.", "model", "permission_denied")
    await in_thread(forget_model, here.server, found)
    return {"id": model, "object": "model", "deleted": True}


_NONE = {"pictures": False, "films": False, "sounds": False, "fills": False, "thinking": {}}
"""Of a model that was kept before its abilities were."""


def _shown(model: Served | Kept) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": model.owner or "tessera",
        "context_length": model.context,
        "dialogue": model.tuned,
        "moderation": model.moderates is not None,
        **_NONE,
        **model.abilities,
    }
