"""`/v1/responses`: answers with a memory. They go on from each other or from a conversation, run in the background, are kept.

A response is kept with the items that it answered; what came before is found by following `previous_response_id`.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_left
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.responses import Response

from tessera.serve import bodies
from tessera.serve.bodies import Body, Part
from tessera.serve.chat import Effort, Name
from tessera.serve.compaction import compacted, expanded, output_of
from tessera.serve.context import Call, Desk, Here, Id, Limit, Server, in_thread, wholly
from tessera.serve.context import Order as Sorting
from tessera.serve.dialogue import (
    Choice,
    Form,
    Tool,
    constraint,
    effort_of,
    endless,
    prompt_ids,
    refuse_endless,
    room_for,
    silenced,
)
from tessera.serve.errors import ApiError, invalid
from tessera.serve.generation import Generation, Order, Usage, unless_left, when_there_is_room
from tessera.serve.items import Items, conversation_of, kept, message_item, renewed
from tessera.serve.models import Served, now
from tessera.serve.response_events import Happened, Writer
from tessera.serve.store import Record, new_id
from tessera.serve.stored_chat import page_of
from tessera.serve.streams import MAY_STREAM, EventStream, event
from tessera.tokens.chat import Message

router = APIRouter(tags=["responses"])

_KIND, _WHAT = "response", "response"
_LONGEST_CHAIN = 1000
_LAST = ("response.completed", "response.incomplete", "response.failed")
"""Events after which a response does not change any more."""


class ResponseTool(Part):
    """A tool; only functions run here."""

    type: str
    name: Name = "unnamed"
    description: str = ""
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    strict: bool = True


class ToolChoice(Part):
    """A function that must be called, or the tools that are allowed."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[dict[str, Any]] = []


class TextFormat(Part):
    """The form of the text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Name | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | bool | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextConfig(Part):
    """The form of the text, and how long it should be."""

    format: TextFormat = TextFormat()
    verbosity: Literal["low", "medium", "high"] = "medium"


class Reasoning(Part):
    """How much to think."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: str | None = None
    mode: str | None = None


class ConversationParam(Part):
    """The conversation to go on with."""

    id: str


class StreamOptions(Part):
    """Accepted; nothing is obfuscated here."""

    include_obfuscation: bool = False


class ResponseInput(Body):
    """What decides about the prompt: the body of `POST /v1/responses/input_tokens`."""

    model: str
    input: str | Items = ""
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationParam | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=128)] = []
    tool_choice: Literal["none", "auto", "required"] | ToolChoice = "auto"
    parallel_tool_calls: bool = True
    reasoning: Reasoning | None = None
    text: TextConfig = TextConfig()
    truncation: Literal["auto", "disabled"] = "disabled"
    personality: str | None = None


class ResponseRequest(ResponseInput, bodies.Sampled):
    """The body of `POST /v1/responses`. Fields without a use here are checked and let be."""

    background: bool = False
    include: list[str] = []
    max_output_tokens: bodies.TokenCount | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    metadata: bodies.Metadata = {}
    store: bool = True
    stream: bool = False
    stream_options: StreamOptions | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: str | None = None
    prompt: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    context_management: list[dict[str, Any]] | None = None
    background_options: dict[str, Any] | None = None
    access_programs: dict[str, Any] | None = None
    image: dict[str, Any] | None = None

    @property
    def conversation_id(self) -> str | None:
        """Of the conversation to go on with."""
        return self.conversation.id if isinstance(self.conversation, ConversationParam) else self.conversation


class CompactRequest(Body):
    """The body of `POST /v1/responses/compact`. Nothing is written by the model, so instructions are counted only."""

    model: str
    input: str | Items = ""
    instructions: str | None = None
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: str | None = None
    image: dict[str, Any] | None = None


@dataclass
class Live:
    """The events of a background response so far."""

    happened: list[Happened] = field(default_factory=list)
    more: asyncio.Condition = field(default_factory=asyncio.Condition)
    over: bool = False

    async def follow(self, after: int) -> AsyncGenerator[bytes]:
        """Those with a greater number, as they come."""
        sent = 0
        while True:
            for shown in self.happened[sent:]:
                sent += 1
                if shown["sequence_number"] > after:
                    yield event(shown, shown["type"])
            async with self.more:
                while not self.over and sent == len(self.happened):
                    await self.more.wait()
            if sent == len(self.happened):
                return

    async def tell(self, shown: Happened | None) -> None:
        """Adds an event; None: it was the last."""
        async with self.more:
            if shown is None:
                self.over = True
            else:
                self.happened.append(shown)
            self.more.notify_all()


@router.post("/v1/responses", responses=MAY_STREAM)
async def create(body: ResponseRequest, here: Here) -> Response:
    """Answers an input."""
    if body.background and not body.store:
        raise invalid("A background response must be stored.", "background")
    if body.prompt is not None:
        raise invalid("There are no stored prompts here.", "prompt", "unsupported_parameter")
    served = await here.model(body.model)
    given = await _given(body, here)
    order = await in_thread(_order, served, body, await _window(body, here, given))
    response = _new(body, served)
    if body.background:
        private = {"input": given, "request": body.model_dump(exclude_unset=True, by_alias=True), "background": True}
        await in_thread(here.server.store.put, here.owner, _KIND, response, private)
        live = _start(here.server, here.owner, response, served, order, body, given)
        return EventStream(live.follow(-1)) if body.stream else JSONResponse(response)
    writer = _writer(here, response, served, order, body)
    if body.stream:
        return EventStream(_stream(writer, body, given, here))

    async def whole() -> None:
        async for _ in writer.events():
            pass

    await unless_left(here.request, whole())
    await _keep(here.server, here.owner, writer.response, body, given)
    if writer.response["status"] == "failed":
        error = writer.response["error"]
        raise ApiError(500 if error["code"] == "server_error" else 400, error["message"], code=error["code"])
    return JSONResponse(writer.response)


@router.post("/v1/responses/input_tokens")
async def input_tokens(body: ResponseInput, here: Here) -> dict[str, Any]:
    """Counts the tokens that an input would have."""
    served = await here.model(body.model)
    request = ResponseRequest.model_validate(body.model_dump(exclude_unset=True, by_alias=True))
    items = await _window(request, here, await _given(request, here))
    turns = await in_thread(conversation_of, items, request.instructions)
    form = form_of(request)
    prompt = await in_thread(prompt_ids, served, turns, form.tools, "input", effort_of(served, form))
    return {"object": "response.input_tokens", "input_tokens": len(prompt)}


@router.post("/v1/responses/compact")
async def compact(body: CompactRequest, here: Here) -> dict[str, Any]:
    """Makes a long conversation short: what fits into half of the model's context, in an item to go on from."""
    served = await here.model(body.model)
    fields = {"model", "input", "instructions", "previous_response_id"}
    request = ResponseRequest.model_validate(body.model_dump(include=fields, exclude_unset=True, by_alias=True))
    items = await _window(request, here, await _given(request, here))
    turns = await in_thread(conversation_of, items, body.instructions)
    if not turns:
        raise invalid("There is nothing to make shorter: 'input' is empty.", "input", "missing_required_parameter")
    read = len(await in_thread(prompt_ids, served, turns, (), "input"))
    held = await in_thread(compacted, served, items)
    usage = Usage(prompt=read)
    here.state["usage"] = {"model": served.name, "prompt_tokens": read}
    return {
        "id": new_id("resp_"),
        "object": "response.compaction",
        "created_at": now(),
        "output": output_of(here.server.vault, here.owner, held),
        "usage": usage.of_response(),
    }


@router.get("/v1/responses/{response_id}", response_model=None, responses=MAY_STREAM)
async def retrieve(
    response_id: Id,
    here: Here,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=0)] | None = None,
    include_obfuscation: bool = False,
) -> Response:
    """A response that was kept; of one that runs in the background also the events."""
    record = await here.find(_KIND, response_id, _WHAT)
    if not stream:
        return JSONResponse(record.body)
    live = here.server.live.get(response_id)
    if live is None:
        raise invalid("Only a response in the background can be streamed, and not long after its end.", "stream")
    return EventStream(live.follow(-1 if starting_after is None else starting_after))


@router.delete("/v1/responses/{response_id}")
async def delete(response_id: Id, here: Here) -> dict[str, Any]:
    """Forgets a response; one that is running is stopped."""
    await here.find(_KIND, response_id, _WHAT)
    await here.server.cancel(response_id)
    await here.delete(_KIND, response_id, _WHAT)
    return {"id": response_id, "object": "response.deleted", "deleted": True}


@router.post("/v1/responses/{response_id}/cancel")
async def cancel(response_id: Id, here: Here) -> dict[str, Any]:
    """Stops a background response."""
    record = await here.find(_KIND, response_id, _WHAT)
    if not record.private.get("background"):
        raise invalid("Only responses created with background=true can be cancelled.", "response_id")
    await here.server.cancel(response_id)
    record = await here.find(_KIND, response_id, _WHAT)
    if record.body["status"] not in ("cancelled", "queued", "in_progress"):
        raise invalid(f"A response that is {record.body['status']} cannot be cancelled.", "response_id")
    return (await here.update(_KIND, response_id, _WHAT, lambda shown, _: shown.update(status="cancelled"))).body


@router.get("/v1/responses/{response_id}/input_items")
async def input_items(
    response_id: Id, here: Here, after: str | None = None, limit: Limit = 20, order: Sorting = "desc"
) -> dict[str, Any]:
    """The items that it answered."""
    record = await here.find(_KIND, response_id, _WHAT)
    return page_of(record.private["input"], after, limit, order)


async def resume(server: Server) -> None:
    """Takes up the background responses that a stop of the server has cut off."""
    found = [await in_thread(server.store.everywhere, _KIND, {"status": status}) for status in ("queued", "in_progress")]
    # All are found before any is started: one that waited is soon in progress, and would be found again.
    for record in (*found[0], *found[1]):
        try:
            await _start_again(server, record)
        except ApiError as error:
            failure = {"status": "failed", "error": {"code": "server_error", "message": error.message}}
            await in_thread(server.store.put, record.owner, _KIND, record.body | failure, record.private)


def form_of(body: ResponseInput) -> Form:
    """What the answer must look like.

    Raises:
        ApiError: 400, a tool that does not run here, a choice without such a tool.
    """
    for i, tool in enumerate(body.tools):
        if tool.type != "function":
            raise invalid(
                f"There is no tool of type '{tool.type[:50]}' here; only functions.", f"tools[{i}].type", "unsupported_value"
            )
    tools = tuple(Tool(tool.name, tool.description, tool.parameters) for tool in body.tools)
    choice: Choice = "auto" if tools else "none"
    if isinstance(body.tool_choice, ToolChoice):
        named = (
            [body.tool_choice.name] if body.tool_choice.type == "function" else [t.get("name") for t in body.tool_choice.tools]
        )
        found = tuple(tool for tool in tools if tool.name in named)
        if body.tool_choice.type not in ("function", "allowed_tools") or not found or len(found) < len(set(named)):
            raise invalid("The tool choice is not found in 'tools'.", "tool_choice")
        choice = "required" if body.tool_choice.type == "function" else body.tool_choice.mode
        tools = found
    elif body.tool_choice == "required" and not tools:
        raise invalid("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
    elif tools:
        choice = body.tool_choice
    schema: dict[str, Any] | bool | None = None
    if body.text.format.type == "json_object":
        schema = {"type": "object"}
    elif body.text.format.type == "json_schema":
        schema = body.text.format.schema_
        if schema is None:
            raise invalid("Missing required parameter: 'text.format.schema'.", "text.format.schema", "missing_required_parameter")
    effort = body.reasoning.effort if body.reasoning else None
    parallel = body.parallel_tool_calls and not (isinstance(body.tool_choice, ToolChoice) and body.tool_choice.type == "function")
    return Form(tools if choice != "none" else (), choice, parallel, schema, effort)


def _order(served: Served, body: ResponseRequest, items: list[dict[str, Any]]) -> Order:
    form = form_of(body)
    turns = conversation_of(items, body.instructions)
    if not turns:
        raise invalid("'input' is empty, and there is nothing to go on from.", "input", "missing_required_parameter")

    def prompt_of(turns: list[Message]) -> list[int]:
        return prompt_ids(served, turns, form.tools, "input", effort_of(served, form))

    def fits(turns: list[Message]) -> bool:
        return not endless(served, [turn.content for turn in turns]) and len(prompt_of(turns)) < served.context

    if body.truncation == "auto":
        shorter = _shortened(turns)
        turns = shorter[min(bisect_left(shorter, True, key=fits), len(shorter) - 1)]
    refuse_endless(served, [turn.content for turn in turns], "input")
    prompt = prompt_of(turns)
    [params] = body.sampling(
        1,
        max_tokens=room_for(served, prompt, body.max_output_tokens, "input"),
        bias=silenced(served, form),
        top_logprobs=body.top_logprobs if _wants_logprobs(body) else None,
    )
    return Order(prompt, params, constraint(served, form, "tools" if form.tools else "text.format"))


def _shortened(turns: list[Message]) -> list[list[Message]]:
    """The turns, then what is left as the oldest go one by one. The instructions stay to the end, results go with their call."""
    head = turns[:1] if turns[0].role == "system" else []
    rest = turns[len(head) :]
    begins = [at for at, turn in enumerate(rest) if not at or turn.role != "tool"] or [0]
    shorter = [[*head, *rest[at:]] for at in begins]
    return [*shorter, rest[begins[-1] :]] if head and rest else shorter


def _shows_thoughts(body: ResponseRequest) -> bool:
    return body.reasoning is not None and (body.reasoning.summary or body.reasoning.generate_summary) is not None


def _wants_logprobs(body: ResponseRequest) -> bool:
    return body.top_logprobs > 0 or "message.output_text.logprobs" in body.include


async def _given(body: ResponseRequest, here: Desk) -> list[dict[str, Any]]:
    """The new items, references resolved."""
    if isinstance(body.input, str):
        return [message_item("user", body.input)] if body.input else []
    items = []
    for i, item in enumerate(kept(body.input)):
        if item["type"] == "item_reference":
            store = here.server.store
            record = await in_thread(store.get, here.owner, "response.item", item["id"])
            record = record or await in_thread(store.get, here.owner, "conversation.item", item["id"])
            if record is None:
                raise invalid(f"Item with id '{item['id'][:100]}' not found.", f"input[{i}].id", "not_found")
            item = record.body
        items.append(item)
    return items


async def _window(body: ResponseRequest, here: Desk, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All that the model reads: what came before, then what is given; compactions opened."""
    items = [*await _before(body, here), *given]
    return expanded(here.server.vault, here.owner, items)


async def _before(body: ResponseRequest, here: Desk) -> list[dict[str, Any]]:
    """The items that came before, oldest first."""
    if body.previous_response_id is not None and body.conversation_id is not None:
        raise invalid("'previous_response_id' and 'conversation' do not go together.", "conversation")
    if body.conversation_id is not None:
        await here.find("conversation", body.conversation_id, "conversation", param="conversation")
        return await in_thread(_conversation_items, here, body.conversation_id)
    links: list[list[dict[str, Any]]] = []
    id = body.previous_response_id
    while id is not None and len(links) < _LONGEST_CHAIN:
        record = await in_thread(here.server.store.get, here.owner, _KIND, id)
        if record is None:
            message = f"Previous response with id '{id[:100]}' not found."
            raise ApiError(400, message, "previous_response_id", "previous_response_not_found")
        if record.body["status"] not in ("completed", "incomplete"):
            raise invalid(f"The previous response is {record.body['status']}; it must be completed.", "previous_response_id")
        links.append([*record.private["input"], *record.body["output"]])
        id = record.body["previous_response_id"]
    return [item for link in reversed(links) for item in link]


def _conversation_items(here: Desk, id: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    after = None
    while True:
        page = here.server.store.page(here.owner, "conversation.item", id, after, limit=1000, order="asc")
        items += [record.body for record in page.records]
        if not page.has_more:
            return items
        after = items[-1]["id"]


def _new(body: ResponseRequest, served: Served) -> dict[str, Any]:
    """The response object before anything was written."""
    conversation = {"id": body.conversation_id} if body.conversation_id else None
    format = body.text.format.model_dump(by_alias=True, exclude_none=True)
    choice = body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(exclude_unset=True)
    reasoning = body.reasoning or Reasoning()
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": now(),
        "status": "queued" if body.background else "in_progress",
        "background": body.background,
        "completed_at": None,
        "conversation": conversation,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata,
        "model": served.name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store,
        "temperature": body.temperature,
        "text": {"format": format, "verbosity": body.text.verbosity},
        "tool_choice": choice,
        "tools": [tool.model_dump() for tool in body.tools],
        "top_logprobs": body.top_logprobs,
        "top_p": body.top_p,
        "truncation": body.truncation,
        "usage": None,
        "user": body.user,
    }


def _writer(here: Call, response: dict[str, Any], served: Served, order: Order, body: ResponseRequest) -> Writer:
    generation = Generation.start(served, [order], here.caller)
    generation.usage.prompt = len(order.prompt)
    return Writer(response, generation, _wants_logprobs(body), _shows_thoughts(body))


async def _stream(writer: Writer, body: ResponseRequest, given: list[dict[str, Any]], here: Call) -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(writer.events()) as events:
        async for shown in events:
            if shown["type"] in _LAST:
                # Kept before the client hears of it: its next request may go on from here.
                await asyncio.shield(_keep(here.server, here.owner, writer.response, body, given))
            yield event(shown, shown["type"])


async def _keep(
    server: Server,
    owner: str,
    response: dict[str, Any],
    body: ResponseRequest,
    given: list[dict[str, Any]],
    background: bool = False,
) -> None:
    """Keeps a response, its items, and what it adds to a conversation.

    What was given may be kept already, in another response or conversation, and stays there: a response refers to it, a
    conversation gets a copy.
    """
    store, output = server.store, response["output"]

    def work() -> None:
        if body.store:
            store.put(owner, _KIND, response, {"input": given, "background": background})
            new = [item for item in given if store.get(owner, "response.item", item["id"]) is None]
            store.put_all(owner, "response.item", [(item, {}) for item in (*new, *output)], parent=response["id"])
        if body.conversation_id is not None and response["status"] in ("completed", "incomplete"):
            copied: list[tuple[dict[str, Any], dict[str, Any]]] = [(item, {}) for item in (*map(renewed, given), *output)]
            store.put_all(owner, "conversation.item", copied, parent=body.conversation_id)

    await in_thread(work)


def _start(
    server: Server,
    owner: str,
    response: dict[str, Any],
    served: Served,
    order: Order,
    body: ResponseRequest,
    given: list[dict[str, Any]],
) -> Live:
    """Writes a response while its client does something else."""
    live = server.live[response["id"]] = Live()

    async def work() -> None:
        try:
            caller = server.caller(owner, {"started": asyncio.get_running_loop().time()})
            generation = await when_there_is_room(lambda: Generation.start(served, [order], caller))
            generation.usage.prompt = len(order.prompt)
            writer = Writer(dict(response), generation, _wants_logprobs(body), _shows_thoughts(body))
            async with contextlib.aclosing(writer.events()) as events:
                async for shown in events:
                    if shown["type"] == "response.in_progress":
                        await wholly(in_thread(server.store.update, owner, _KIND, response["id"], _begin))
                    if shown["type"] in _LAST:
                        await wholly(_keep(server, owner, writer.response, body, given, background=True))
                    await live.tell(shown)
        finally:
            await live.tell(None)
            asyncio.get_running_loop().call_later(60, server.live.pop, response["id"], None)

    server.spawn(response["id"], work())
    return live


def _begin(shown: dict[str, Any], private: dict[str, Any]) -> None:
    shown["status"] = "in_progress"


async def _start_again(server: Server, record: Record) -> None:
    body = ResponseRequest.model_validate(record.private["request"])
    desk = Desk(server, record.owner)
    served = await desk.model(body.model)
    given = record.private["input"]
    order = await in_thread(_order, served, body, await _window(body, desk, given))
    _start(server, record.owner, record.body, served, order, body, given)
