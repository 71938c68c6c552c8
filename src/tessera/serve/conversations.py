"""`/v1/conversations`: lists of items that responses go on from and add to."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from tessera.serve.bodies import Body, Metadata
from tessera.serve.context import Call, Here, Id, Limit, Order, in_thread
from tessera.serve.errors import invalid
from tessera.serve.items import Item, kept, renewed
from tessera.serve.models import now
from tessera.serve.store import new_id

router = APIRouter(tags=["conversations"])

_KIND, _WHAT = "conversation", "conversation"
_ITEM = "conversation.item"

FewItems = Annotated[list[Item], Field(max_length=20)]


class Create(Body):
    """The body of `POST /v1/conversations`."""

    items: FewItems = []
    metadata: Metadata = {}


class Update(Body):
    """New metadata, in place of the old."""

    metadata: Metadata = {}


class AddItems(Body):
    """The body of `POST /v1/conversations/ID/items`."""

    items: Annotated[FewItems, Field(min_length=1)]


@router.post("/v1/conversations")
async def create(here: Here, body: Create | None = None) -> dict[str, Any]:
    """Begins a conversation."""
    body = body or Create()
    id = new_id("conv_")
    conversation = {"id": id, "object": "conversation", "created_at": now(), "metadata": body.metadata}
    items = _new(body.items)
    await in_thread(here.server.store.put, here.owner, _KIND, conversation)
    await in_thread(here.server.store.put_all, here.owner, _ITEM, [(item, {}) for item in items], id)
    return conversation


@router.get("/v1/conversations/{conversation_id}")
async def retrieve(conversation_id: Id, here: Here) -> dict[str, Any]:
    """One conversation, without its items."""
    return (await here.find(_KIND, conversation_id, _WHAT)).body


@router.post("/v1/conversations/{conversation_id}")
async def update(conversation_id: Id, body: Update, here: Here) -> dict[str, Any]:
    """Changes its metadata."""
    return (await here.update(_KIND, conversation_id, _WHAT, lambda shown, _: shown.update(metadata=body.metadata))).body


@router.delete("/v1/conversations/{conversation_id}")
async def delete(conversation_id: Id, here: Here) -> dict[str, Any]:
    """Forgets it and its items."""
    await here.delete(_KIND, conversation_id, _WHAT)
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


@router.post("/v1/conversations/{conversation_id}/items")
async def add_items(conversation_id: Id, body: AddItems, here: Here) -> dict[str, Any]:
    """Adds items at its end."""
    await here.find(_KIND, conversation_id, _WHAT)
    items = _new(body.items)
    await in_thread(here.server.store.put_all, here.owner, _ITEM, [(item, {}) for item in items], conversation_id)
    return {"object": "list", "data": items, "first_id": items[0]["id"], "last_id": items[-1]["id"], "has_more": False}


@router.get("/v1/conversations/{conversation_id}/items")
async def list_items(
    conversation_id: Id, here: Here, after: str | None = None, limit: Limit = 20, order: Order = "desc"
) -> dict[str, Any]:
    """Its items."""
    await here.find(_KIND, conversation_id, _WHAT)
    return await here.page(_ITEM, after, limit, order, parent=conversation_id)


@router.get("/v1/conversations/{conversation_id}/items/{item_id}")
async def retrieve_item(conversation_id: Id, item_id: Id, here: Here) -> dict[str, Any]:
    """One item."""
    return await _item(here, conversation_id, item_id)


@router.delete("/v1/conversations/{conversation_id}/items/{item_id}")
async def delete_item(conversation_id: Id, item_id: Id, here: Here) -> dict[str, Any]:
    """Takes an item out; returns the conversation."""
    await _item(here, conversation_id, item_id)
    await here.delete(_ITEM, item_id, "item", parent=conversation_id)
    return (await here.find(_KIND, conversation_id, _WHAT)).body


async def _item(here: Call, conversation_id: str, item_id: str) -> dict[str, Any]:
    await here.find(_KIND, conversation_id, _WHAT)
    return (await here.find(_ITEM, item_id, "item", parent=conversation_id)).body


def _new(items: list[Item]) -> list[dict[str, Any]]:
    """Items as they are kept; each gets an id of its own, as one conversation may be copied into another."""
    shown = kept(items, "items")
    if any(item["type"] == "item_reference" for item in shown):
        raise invalid("A reference cannot be added; send the item.", "items")
    return [renewed(item) for item in shown]
