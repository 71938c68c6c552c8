"""`POST /v1/chat/completions`: a conversation in, the next turn out, whole or as a stream, one or several."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field, StringConstraints
from starlette.responses import Response

from tessera.engine.request import Finished, Token
from tessera.serve import bodies
from tessera.serve.answers import Answer, Piece
from tessera.serve.bodies import Part
from tessera.serve.choosing import Choose, chosen
from tessera.serve.context import Here, in_thread
from tessera.serve.dialogue import Choice, Form, Tool, constraint, effort_of, prompt_ids, refuse_endless, room_for, silenced
from tessera.serve.errors import invalid
from tessera.serve.generation import Generation, Order, unless_left
from tessera.serve.models import Served, now
from tessera.serve.seen import seen
from tessera.serve.store import new_id
from tessera.serve.streams import DONE, MAY_STREAM, EventStream, event
from tessera.tokens.chat import NO_ARGUMENTS, Message, ToolCall

router = APIRouter()

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_MEDIA = {"input_audio": "sound, which the recipe `speak` brings", "file": "files in messages"}


class ImageUrl(Part):
    """A picture; its address has to hold it (`data:image/png;base64,...`)."""

    url: str


class ContentPart(Part):
    """A part of a message's content; all but text needs a model that has the medium."""

    type: Literal["text", "image_url", "input_audio", "file", "refusal"]
    text: str = ""
    refusal: str = ""
    image_url: ImageUrl | None = None


class FunctionCall(Part):
    """What the assistant wanted called."""

    name: str
    arguments: str


class Called(Part):
    """A call in an assistant's message."""

    id: str
    type: Literal["function", "custom"] = "function"
    function: FunctionCall


class ChatMessage(Part):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] = ""
    name: str | None = None
    tool_calls: list[Called] = []
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Function(Part):
    """A function that may be called."""

    name: Name
    description: str = ""
    parameters: dict[str, Any] = NO_ARGUMENTS
    strict: bool = False


class FunctionTool(Part):
    """A tool."""

    type: Literal["function"]
    function: Function


class NamedFunction(Part):
    """The name of a function."""

    name: str


class AllowedTools(Part):
    """Those of the tools that may be called this time."""

    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class ToolChoice(Part):
    """A function that must be called, or the tools that are allowed."""

    type: Literal["function", "allowed_tools"]
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class JsonSchema(Part):
    """A schema with its name."""

    name: Name
    description: str = ""
    schema_: Annotated[dict[str, Any] | bool, Field(alias="schema")] = {}
    strict: bool = False


class ResponseFormat(Part):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Part):
    """What a stream carries."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(bodies.Sampled):
    """The body of `POST /v1/chat/completions`. Fields without a use here are checked and let be.

    `best_of` and `choose` are ours: of so many answers those are given that most agree with, or the likeliest.
    """

    model: str
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    choose: Choose = "votes"
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    frequency_penalty: bodies.Penalty = 0.0
    presence_penalty: bodies.Penalty = 0.0
    logit_bias: bodies.LogitBias = {}
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_tokens: bodies.TokenCount | None = None
    max_completion_tokens: bodies.TokenCount | None = None
    metadata: bodies.Metadata = {}
    n: Annotated[int, Field(ge=1, le=128)] = 1
    parallel_tool_calls: bool = True
    reasoning_effort: Effort | None = None
    include_reasoning: bool = False
    response_format: ResponseFormat | None = None
    stop: bodies.Stop | None = None
    store: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] = []
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    prediction: dict[str, Any] | None = None
    modalities: list[Literal["text", "audio"]] = ["text"]
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None


@router.post("/v1/chat/completions", tags=["chat"], responses=MAY_STREAM)
async def create(body: ChatRequest, here: Here) -> Response:
    """Answers a conversation."""
    served = await here.model(body.model)
    orders = await in_thread(_orders, served, body)
    run = _Run(body, served, Generation.start(served, orders, here.caller, len(orders)), len(orders[0].prompt))
    if body.stream:
        return EventStream(_stream(run, here))
    async with run.generation:
        completion = await unless_left(here.request, run.whole())
    if body.store:
        await in_thread(_store, here, completion, body)
    return JSONResponse(completion)


def conversation_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """The messages in the form of `tokens.chat`.

    Raises:
        ApiError: 400, a part that is neither text nor a picture, or a result that answers no call.
    """
    conversation = []
    open_calls: set[str] = set()
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if message.role == "function":
            raise invalid(
                "Messages of the role 'function' are no longer supported; use 'tool'.", f"{where}.role", "unsupported_value"
            )
        if message.role == "tool":
            if message.tool_call_id not in open_calls:
                raise invalid("A tool message must answer a call of the assistant message before it.", f"{where}.tool_call_id")
        else:
            open_calls = {call.id for call in message.tool_calls}
        reasoning = message.reasoning or message.reasoning_content or ""
        calls = tuple(ToolCall(call.function.name, call.function.arguments) for call in message.tool_calls)
        pictures = _pictures(message, where)
        conversation.append(Message(message.role, _text(message, where), reasoning, calls, pictures=pictures))
    return conversation


def form_of(body: ChatRequest) -> Form:
    """What the answer must look like.

    Raises:
        ApiError: 400, a choice without such a tool, a schema that is missing.
    """
    tools = tuple(Tool(t.function.name, t.function.description, t.function.parameters) for t in body.tools)
    if len({tool.name for tool in tools}) < len(tools):
        raise invalid("Two tools have the same name.", "tools")
    choice: Choice = "auto" if tools else "none"
    if isinstance(body.tool_choice, str):
        choice = body.tool_choice
        if choice != "none" and not tools:
            raise invalid("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
    elif body.tool_choice is not None:
        tools, choice = _chosen(body.tool_choice, tools)
    parallel = body.parallel_tool_calls and not isinstance(body.tool_choice, ToolChoice)
    schema: dict[str, Any] | bool | None = None
    if body.response_format is not None and body.response_format.type == "json_object":
        schema = {"type": "object"}
    elif body.response_format is not None and body.response_format.type == "json_schema":
        if body.response_format.json_schema is None:
            raise invalid("Missing required parameter: 'response_format.json_schema'.", "response_format.json_schema")
        schema = body.response_format.json_schema.schema_
    return Form(tools if choice != "none" else (), choice, parallel, schema, body.reasoning_effort)


def system_fingerprint(served: Served) -> str:
    """Changes when equal requests may get other answers."""
    return "fp_" + served.vocabulary.hash[:12]


def logprob_entry(served: Served, token: Token) -> dict[str, Any]:
    """A token with its log-probability and its rivals."""

    def one(id: int, logprob: float) -> dict[str, Any]:
        name = served.token_text(id)
        return {"token": name, "logprob": max(logprob, -9999.0), "bytes": list(served.vocabulary.bytes_of([id]) or name.encode())}

    return one(token.id, token.logprob) | {"top_logprobs": [one(id, logprob) for id, logprob in token.top]}


def _chosen(choice: ToolChoice, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], Choice]:
    mode: Choice = "required"
    if choice.type == "function":
        name = choice.function.name if choice.function else ""
        names = {name}
    else:
        allowed = choice.allowed_tools or AllowedTools(mode="auto", tools=[])
        names = {str((t.get("function") or t).get("name")) for t in allowed.tools}
        mode = allowed.mode
    found = tuple(tool for tool in tools if tool.name in names)
    if len(found) < len(names) or not names:
        raise invalid(f"Tool choice {sorted(names)} not found in 'tools'.", "tool_choice")
    return found, mode


def _text(message: ChatMessage, where: str) -> str:
    if isinstance(message.content, str):
        return message.content or message.refusal or ""
    for j, part in enumerate(message.content):
        if part.type in _MEDIA:
            raise invalid(f"This model does not read {_MEDIA[part.type]}.", f"{where}.content[{j}]", "unsupported_modality")
    return "".join(part.text or part.refusal for part in message.content)


def _pictures(message: ChatMessage, where: str) -> tuple[np.ndarray, ...]:
    parts = enumerate(message.content) if not isinstance(message.content, str) else ()
    shown = [(j, part.image_url) for j, part in parts if part.type == "image_url"]
    return tuple(seen(None if image is None else image.url, f"{where}.content[{j}]") for j, image in shown)


def _orders(served: Served, body: ChatRequest) -> list[Order]:
    """What to generate: `best_of` or n completions of one prompt."""
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("'top_logprobs' is only allowed when 'logprobs' is true.", "top_logprobs")
    if "audio" in body.modalities or body.audio is not None:
        raise invalid("This model does not speak; the recipe `speak` brings sound.", "modalities", "unsupported_modality")
    if body.web_search_options is not None:
        raise invalid("There is no web search here.", "web_search_options", "unsupported_parameter")
    if body.functions is not None or body.function_call is not None:
        raise invalid(
            "'functions' and 'function_call' are deprecated; use 'tools' and 'tool_choice'.", "functions", "unsupported_parameter"
        )
    samples = body.best_of or body.n
    if samples < body.n:
        raise invalid(f"'best_of' must be at least 'n', {body.n}.", "best_of")
    if body.stream and samples > body.n:
        raise invalid("'best_of' cannot be streamed.", "best_of")
    form = form_of(body)
    conversation = conversation_of(body.messages)
    refuse_endless(served, [message.content for message in conversation])
    prompt = prompt_ids(served, conversation, form.tools, effort=effort_of(served, form))
    rules = constraint(served, form, "tools" if form.tools else "response_format")
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    params = body.sampling(
        samples,
        max_tokens=room_for(served, prompt, limit),
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        bias=silenced(served, form) | checked_bias(served, body.logit_bias),
        stop=bodies.stop_strings(body.stop),
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    return [Order(prompt, p, rules) for p in params]


def checked_bias(served: Served, bias: Mapping[str, float]) -> dict[int, float]:
    """The bias by id.

    Raises:
        ApiError: 400, an id that the model does not have.
    """
    by_id = {int(token): value for token, value in bias.items()}
    if by_id and max(by_id) >= served.vocabulary.size:
        raise invalid(f"This model has the token ids 0 to {served.vocabulary.size - 1}.", "logit_bias")
    return by_id


class _Run:
    """The choices of one request while they come."""

    def __init__(self, body: ChatRequest, served: Served, generation: Generation, prompt_tokens: int) -> None:
        self.body = body
        self.served = served
        self.generation = generation
        generation.usage.prompt = prompt_tokens
        stop = bodies.stop_strings(body.stop)
        samples = body.best_of or body.n
        self.answers = [Answer(served.vocabulary, stop) for _ in range(samples)]
        self.call_ids: list[list[str]] = [[] for _ in range(samples)]
        self.finish_reasons = ["stop"] * samples
        self.head = {"id": new_id("chatcmpl-"), "created": now(), "model": served.name}
        self.tail = {"service_tier": "default", "system_fingerprint": system_fingerprint(served)}

    async def whole(self) -> dict[str, Any]:
        """The finished completion."""
        async for index, happened in self.generation.events():
            if isinstance(happened, Finished):
                self.end(index, happened)
            else:
                self.answers[index].feed(happened)
        return self.completion()

    def end(self, index: int, finished: Finished) -> list[Piece]:
        """Notes why a choice ended; returns what it had held back."""
        answer = self.answers[index]
        pieces = answer.finish()
        self.finish_reasons[index] = "tool_calls" if answer.calls and finished.reason == "stop" else finished.reason
        self.generation.usage.reasoning += answer.reasoning_tokens
        return pieces

    def call_id(self, index: int, call: int) -> str:
        """The id of a call, made when it is first asked for."""
        ids = self.call_ids[index]
        while len(ids) <= call:
            ids.append(new_id("call_"))
        return ids[call]

    def completion(self) -> dict[str, Any]:
        """All that came, as one object."""
        choices = [self._choice(index) for index in range(len(self.answers))]
        if len(choices) > self.body.n:
            best = chosen(self.answers, self.body.n, self.body.choose)
            choices = [choices[place] | {"index": index, "votes": votes} for index, (place, votes) in enumerate(best)]
        usage = {"usage": self.generation.usage.of_chat()}
        metadata = {"metadata": self.body.metadata} if self.body.store else {}
        return self.head | {"object": "chat.completion", "choices": choices} | usage | self.tail | metadata

    def _choice(self, index: int) -> dict[str, Any]:
        answer = self.answers[index]
        message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None, "annotations": []}
        if answer.calls:
            message["content"] = answer.content or None
            message["tool_calls"] = [
                {
                    "id": self.call_id(index, i),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for i, call in enumerate(answer.calls)
            ]
        if answer.reasoning and self.body.include_reasoning:
            message["reasoning"] = message["reasoning_content"] = answer.reasoning
        return {
            "index": index,
            "message": message,
            "logprobs": self.logprobs(answer.tokens),
            "finish_reason": self.finish_reasons[index],
        }

    def logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """Of tokens, where they were asked for."""
        if not self.body.logprobs:
            return None
        return {"content": [logprob_entry(self.served, token) for token in tokens], "refusal": None}


async def _stream(run: _Run, here: Here) -> AsyncGenerator[bytes]:
    """The chunks of a stream."""
    options = run.body.stream_options or StreamOptions()
    usage = {"usage": None} if options.include_usage else {}

    def chunk(index: int, delta: dict[str, Any], tokens: Sequence[Token] = (), finish_reason: str | None = None) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": run.logprobs(tokens) if tokens else None,
            "finish_reason": finish_reason,
        }
        return event(run.head | {"object": "chat.completion.chunk", "choices": [choice]} | run.tail | usage)

    async with run.generation:
        for index in range(run.body.n):
            yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        async for index, happened in run.generation.events():
            ended = isinstance(happened, Finished)
            pieces = run.end(index, happened) if isinstance(happened, Finished) else run.answers[index].feed(happened)
            for piece in pieces:
                if piece.kind != "reasoning" or run.body.include_reasoning:
                    yield chunk(index, _delta(run, index, piece), piece.tokens)
            if ended:
                yield chunk(index, {}, finish_reason=run.finish_reasons[index])
        if options.include_usage:
            last = {"object": "chat.completion.chunk", "choices": [], "usage": run.generation.usage.of_chat()}
            yield event(run.head | last | run.tail)
    if run.body.store:
        await asyncio.shield(in_thread(_store, here, run.completion(), run.body))
    yield DONE


def _delta(run: _Run, index: int, piece: Piece) -> dict[str, Any]:
    if piece.kind == "content":
        return {"content": piece.text}
    if piece.kind == "reasoning":
        return {"reasoning": piece.text, "reasoning_content": piece.text}
    if piece.kind == "arguments":
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}
    function = {"name": piece.text, "arguments": ""}
    id = run.call_id(index, piece.index)
    return {"tool_calls": [{"index": piece.index, "id": id, "type": "function", "function": function}]}


def _store(here: Here, completion: dict[str, Any], body: ChatRequest) -> None:
    messages = [
        {"id": f"{completion['id']}-{i}"} | message.model_dump(exclude_none=True, exclude_defaults=True)
        for i, message in enumerate(body.messages)
    ]
    here.server.store.put(here.owner, "chat.completion", completion, {"messages": messages})
