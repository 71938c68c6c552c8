"""`/tessera/chats`, `/tessera/preferences`: what the page keeps.

OpenAI's API has no such routes: its conversations cannot be listed, searched or branched. A chat is a tree of turns (see
`turns`). Thumbs under the answers to one question make pairs, each kept as a row of a preference job.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from starlette.responses import Response, StreamingResponse

from tessera.serve.bodies import Body
from tessera.serve.context import Call, Here, Id, Limit, in_thread
from tessera.serve.errors import invalid
from tessera.serve.models import now
from tessera.serve.store import Record, new_id
from tessera.serve.turns import pairs

router = APIRouter(tags=["chats"])

_CHAT, _TURN, _PAIR = "chat", "chat.turn", "preference"
_WHAT = "chat"
_MOST_TURNS = 10_000

Text = Annotated[str, StringConstraints(max_length=4 << 20)]
Picture = Annotated[str, StringConstraints(pattern=r"^data:image/[a-z+.-]{1,20};base64,")]
Media = Annotated[str, StringConstraints(pattern=r"^data:(video/mp4|image/gif|audio/wav);base64,")]
Name = Annotated[str, StringConstraints(max_length=200)]


class Settings(Body):
    """How a chat goes on; what is not given stays as it is."""

    title: Name | None = None
    instructions: Text | None = None
    picked: Annotated[dict[Name, Name], Field(max_length=_MOST_TURNS)] | None = None


class Create(Settings):
    """The body of `POST /tessera/chats`. In the mode `complete` there are no turns of a dialogue, only text that goes on; in the
    modes `draw`, `film` and `play` each turn of the user is a caption, and the answers are pictures, films and sounds."""

    mode: Literal["chat", "complete", "draw", "film", "play"] = "chat"


class NewTurn(Body):
    """The body of `POST /tessera/chats/ID/turns`. `media` are films and sounds; `effort` is what was asked for by name;
    `left_out` is how many of the oldest turns of the user, each with its answer, the model was not told."""

    role: Literal["user", "assistant"]
    after: Annotated[list[Name], Field(max_length=16)] = []
    text: Text
    images: Annotated[list[Picture], Field(max_length=16)] = []
    media: Annotated[list[Media], Field(max_length=16)] = []
    model: Name = ""
    effort: Name = ""
    reasoning: Text = ""
    finish_reason: Literal["stop", "length", "stopped"] = "stop"
    tokens: Annotated[int, Field(ge=0, lt=2**40)] = 0
    seconds: Annotated[float, Field(ge=0, lt=2**40)] = 0.0
    left_out: Annotated[int, Field(ge=0, le=_MOST_TURNS)] = 0


class Failure(Body):
    """Why a model, asked with an effort by name or without one, gave no answer to a turn of the user."""

    model: Name
    effort: Name = ""
    message: Annotated[str, StringConstraints(max_length=4000)]


class Rating(Body):
    """A thumb, or null to take it back."""

    rating: Literal["up", "down"] | None = None


@router.get("/tessera/chats")
async def list_chats(here: Here, after: str | None = None, limit: Limit = 20, query: str = "") -> dict[str, Any]:
    """The chats, newest first; with `query` those in which each of its words occurs."""
    return await here.page(_CHAT, after, limit, words=query[:1000])


@router.post("/tessera/chats")
async def create(body: Create, here: Here) -> dict[str, Any]:
    """Begins a chat."""
    title = body.title or ""
    chat = {
        "id": new_id("chat_"),
        "object": "chat",
        "created_at": now(),
        "title": title,
        "mode": body.mode,
        "instructions": body.instructions or "",
        "picked": body.picked or {},
    }
    await in_thread(here.server.store.put, here.owner, _CHAT, chat, words=title)
    return chat


@router.get("/tessera/chats/{chat_id}")
async def retrieve(chat_id: Id, here: Here) -> dict[str, Any]:
    """A chat with its turns, oldest first."""
    chat = await here.find(_CHAT, chat_id, _WHAT)
    return chat.body | {"turns": await _turns(here, chat_id)}


@router.post("/tessera/chats/{chat_id}")
async def update(chat_id: Id, body: Settings, here: Here) -> dict[str, Any]:
    """Changes its settings."""
    given = body.model_dump(exclude_none=True)
    return (await here.update(_CHAT, chat_id, _WHAT, lambda shown, _: shown.update(given), body.title or "")).body


@router.delete("/tessera/chats/{chat_id}")
async def delete(chat_id: Id, here: Here) -> dict[str, Any]:
    """Forgets it, its turns and its pairs."""
    await here.delete(_CHAT, chat_id, _WHAT)
    return {"id": chat_id, "object": "chat.deleted", "deleted": True}


@router.post("/tessera/chats/{chat_id}/turns")
async def add_turn(chat_id: Id, body: NewTurn, here: Here) -> dict[str, Any]:
    """Adds a turn."""
    await here.find(_CHAT, chat_id, _WHAT)
    other = "assistant" if body.role == "user" else "user"
    for id in body.after:
        before = await in_thread(here.server.store.get, here.owner, _TURN, id, chat_id)
        if before is None or before.body["role"] != other:
            raise invalid(f"The chat has no turn of the {other} with id '{id}'.", "after")
    if body.role == "assistant" and len(body.after) != 1:
        raise invalid("An answer comes after one turn of the user.", "after")
    turn = {"id": new_id("turn_"), "object": "chat.turn", "created_at": now()} | body.model_dump() | {"rating": None}
    await in_thread(here.server.store.put, here.owner, _TURN, turn, parent=chat_id)
    await here.update(_CHAT, chat_id, _WHAT, lambda shown, _: None, body.text)
    return turn


@router.post("/tessera/chats/{chat_id}/turns/{turn_id}")
async def rate(chat_id: Id, turn_id: Id, body: Rating, here: Here) -> dict[str, Any]:
    """Rates an answer; `pairs` says how many its question has now."""
    chat = await here.find(_CHAT, chat_id, _WHAT)
    turn = (await here.find(_TURN, turn_id, "turn", parent=chat_id)).body
    if turn["role"] != "assistant":
        raise invalid("Only answers are rated.", "rating")
    turn = (await here.update(_TURN, turn_id, "turn", lambda shown, _: shown.update(rating=body.rating))).body
    return turn | {"pairs": await _keep_pairs(here, chat, turn["after"][0])}


@router.post("/tessera/chats/{chat_id}/turns/{turn_id}/failures")
async def add_failure(chat_id: Id, turn_id: Id, body: Failure, here: Here) -> dict[str, Any]:
    """Keeps with a turn of the user why it was not answered, in place of what was kept of the same model and effort."""
    await here.find(_CHAT, chat_id, _WHAT)
    turn = (await here.find(_TURN, turn_id, "turn", parent=chat_id)).body
    if turn["role"] != "user":
        raise invalid("Only turns of the user fail to be answered.", "message")
    failure = body.model_dump()

    def add(shown: dict[str, Any], _: dict[str, Any]) -> None:
        others = (f for f in shown.get("failures", []) if (f["model"], f["effort"]) != (body.model, body.effort))
        shown["failures"] = [*others, failure]

    return (await here.update(_TURN, turn_id, "turn", add)).body


@router.get("/tessera/preferences")
async def list_preferences(here: Here, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
    """The pairs, newest first."""
    return await here.page(_PAIR, after, limit)


@router.get("/tessera/preferences.jsonl", response_class=Response)
async def export_preferences(here: Here) -> StreamingResponse:
    """All pairs, oldest first, a line each: `prompt`, `chosen`, `rejected`. Those that show pictures are left out."""

    async def lines() -> AsyncIterator[str]:
        after, more = None, True
        while more:
            page = await in_thread(here.server.store.page, here.owner, _PAIR, None, after, None, 100, "asc")
            for record in page.records:
                after = record.id
                row = {key: record.body[key] for key in ("prompt", "chosen", "rejected")}
                if not any(map(_pictured, row.values())):
                    yield json.dumps(row, ensure_ascii=True) + "\n"
            more = page.has_more

    headers = {"content-disposition": 'attachment; filename="preferences.jsonl"'}
    return StreamingResponse(lines(), media_type="application/jsonl", headers=headers)


def _pictured(said: str | list[dict[str, Any]]) -> bool:
    """Whether a part of a pair shows pictures, which no job reads; such pairs were kept once."""
    return not isinstance(said, str) and any(not isinstance(message["content"], str) for message in said)


async def _turns(here: Call, chat_id: str) -> list[dict[str, Any]]:
    page = await in_thread(here.server.store.page, here.owner, _TURN, chat_id, None, None, _MOST_TURNS, "asc")
    return [record.body for record in page.records]


_rating = asyncio.Lock()
"""Held while pairs follow from ratings: two thumbs at a time must not undo each other's."""


async def _keep_pairs(here: Call, chat: Record, asked_id: str) -> int:
    """Brings the kept pairs of a question to what its ratings say."""
    store = here.server.store
    async with _rating:
        turns = await _turns(here, chat.id)
        asked = next(turn for turn in turns if turn["id"] == asked_id)
        rows = {}
        for liked, disliked, row in pairs(turns, asked, chat.body["mode"], chat.body["instructions"]):
            id = f"pref_{liked['id'][5:]}_{disliked['id'][5:]}"
            models = {"chosen_model": liked["model"], "rejected_model": disliked["model"]}
            rows[id] = {"id": id, "object": "preference", "created_at": now(), "chat": chat.id, "turn": asked_id} | models | row
        of_question = {"turn": asked_id}
        kept = await in_thread(store.page, here.owner, _PAIR, chat.id, None, None, _MOST_TURNS, "asc", of_question)
        for record in kept.records:
            if record.id not in rows:
                await in_thread(store.delete, here.owner, _PAIR, record.id, chat.id)
        await in_thread(store.put_all, here.owner, _PAIR, [(row, {}) for row in rows.values()], chat.id)
    return len(rows)
