"""`GET|POST|DELETE /v1/chat/completions[/ID[/messages]]`: completions that were created with `store: true`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from tessera.serve.bodies import Body, Metadata
from tessera.serve.context import Here, Id, Limit, Order
from tessera.serve.errors import invalid

router = APIRouter(tags=["chat"])

_KIND, _WHAT = "chat.completion", "stored chat completion"


class Update(Body):
    """The body of an update: new metadata, in place of the old."""

    metadata: Metadata = {}


@router.get("/v1/chat/completions")
async def list_completions(
    here: Here, after: str | None = None, limit: Limit = 20, order: Order = "asc", model: str | None = None
) -> dict[str, Any]:
    """Stored completions, also by `model` and `metadata[KEY]`."""
    where = {f"metadata.{key}": value for key, value in metadata_filter(here).items()}
    if model is not None:
        where["model"] = model
    return await here.page(_KIND, after, limit, order, where=where)


@router.get("/v1/chat/completions/{completion_id}")
async def retrieve(completion_id: Id, here: Here) -> dict[str, Any]:
    """One of them."""
    return (await here.find(_KIND, completion_id, _WHAT)).body


@router.post("/v1/chat/completions/{completion_id}")
async def update(completion_id: Id, body: Update, here: Here) -> dict[str, Any]:
    """Changes its metadata."""
    record = await here.update(_KIND, completion_id, _WHAT, lambda shown, _: shown.update(metadata=body.metadata))
    return record.body


@router.delete("/v1/chat/completions/{completion_id}")
async def delete(completion_id: Id, here: Here) -> dict[str, Any]:
    """Forgets it."""
    await here.delete(_KIND, completion_id, _WHAT)
    return {"object": "chat.completion.deleted", "id": completion_id, "deleted": True}


@router.get("/v1/chat/completions/{completion_id}/messages")
async def messages(
    completion_id: Id, here: Here, after: str | None = None, limit: Limit = 20, order: Order = "asc"
) -> dict[str, Any]:
    """The messages that it answered."""
    record = await here.find(_KIND, completion_id, _WHAT)
    return page_of(record.private["messages"], after, limit, order)


def metadata_filter(here: Here) -> dict[str, str]:
    """What a query asks of the metadata: `metadata[topic]=x`."""
    query = here.request.query_params
    return {key[9:-1]: value for key, value in query.items() if key.startswith("metadata[") and key.endswith("]")}


def page_of(items: list[dict[str, Any]], after: str | None, limit: int, order: str) -> dict[str, Any]:
    """A page of a list that is kept as a whole.

    Raises:
        ApiError: 400, `after` is not in it.
    """
    items = items if order == "asc" else items[::-1]
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise invalid(f"No object with id '{after[:100]}' is in this list.", "after")
        items = items[ids.index(after) + 1 :]
    shown = items[:limit]
    ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return {"object": "list", "data": shown, **ends, "has_more": len(items) > limit}
