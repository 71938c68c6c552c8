"""From a conversation, its tools and the wanted form of the answer to what the engine takes: ids and a grammar.

A model that was tuned on dialogue reads its turns in the layout of `tokens.chat`. Any other model reads the contents one after
the other and goes on writing, as `tessera chat` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tessera.data.pictures import fitted
from tessera.engine.constraints import Constraint, Grammars
from tessera.engine.thinking import THINK, THOUGHT, thought
from tessera.errors import UserError
from tessera.serve.errors import ApiError, invalid
from tessera.serve.models import Served
from tessera.serve.seen import MOST_PICTURES
from tessera.tokens import chat
from tessera.tokens.chat import EFFORTS, Message
from tessera.tokens.document import Document, Segment
from tessera.tokens.pictures import QUESTION, known_size, picture_segment

Choice = Literal["none", "auto", "required"]

_AT_ONCE = ("none", "minimal")
_CALL, _CALLED = "<|tool_call|>", "<|/tool_call|>"
_SPOKEN = frozenset({"<|endoftext|>", "<|end_turn|>", THINK, THOUGHT, _CALL, _CALLED})


@dataclass(frozen=True)
class Tool:
    """A function the model may call. `parameters` is the JSON schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Form:
    """What an answer has to look like.

    Args:
        tools: that may be called.
        choice: `none`: no call; `auto`: text, then calls or not; `required`: calls only.
        parallel: more than one call is allowed.
        schema: JSON schema of the text; None: any text.
        effort: how much to think first, as it was asked for; None: nothing was said of it.
    """

    tools: tuple[Tool, ...] = ()
    choice: Choice = "none"
    parallel: bool = True
    schema: dict[str, Any] | bool | None = None
    effort: str | None = None

    @property
    def thinks(self) -> bool:
        """A model that was not trained on efforts may reason first, where a schema or a call would else come at once."""
        return self.effort not in (None, *_AT_ONCE)


def effort_of(served: Served, form: Form) -> str:
    """The effort with which a model answers: the nearest that it knows, a middle one where nothing was asked for; empty: none."""
    known = [effort for effort in EFFORTS if effort in served.thinking] if served.tuned else []
    if not known or form.effort in _AT_ONCE:
        return ""
    wanted = EFFORTS.index(form.effort) if form.effort in EFFORTS else len(EFFORTS) if form.effort else EFFORTS.index("medium")
    return min(known, key=lambda effort: abs(EFFORTS.index(effort) - wanted))


def prompt_ids(
    served: Served,
    conversation: Sequence[Message],
    tools: Sequence[Tool] = (),
    param: str = "messages",
    effort: str = "",
) -> list[int]:
    """The ids after which the model writes its answer, with an effort that it knows.

    Raises:
        ApiError: 400, the conversation is not one.
    """
    if any(message.pictures for message in conversation):
        conversation = _in_sight(served, conversation, param)
    if tools:
        conversation = (chat.describe_tools(map(vars, tools)), *conversation)
    try:
        # Clients send back a call that was cut off, with the error that its arguments gave them.
        if served.tuned:
            document = chat.render(conversation, add_generation_prompt=True, effort=effort, cut_calls=True)
        else:
            chat.render(conversation, cut_calls=True)  # the same mistakes are mistakes here
            document = _going_on(conversation)
    except UserError as error:
        raise invalid(str(error), param) from None
    return served.vocabulary.encode(document).ids.tolist() or [served.vocabulary.end_id]


def _in_sight(served: Served, conversation: Sequence[Message], param: str) -> list[Message]:
    """The conversation with its pictures at the size that the model knows.

    Raises:
        ApiError: 400, it reads none, or there are too many.
    """
    if not served.draws:
        place = next(i for i, message in enumerate(conversation) if message.pictures)
        said = "This model does not read pictures, which the recipe `see` brings (`tessera train see`)."
        raise invalid(said, f"{param}[{place}]" if param == "messages" else param, "unsupported_modality")
    if (count := sum(len(message.pictures) for message in conversation)) > MOST_PICTURES:
        raise invalid(f"There may be {MOST_PICTURES} pictures in a request, not {count}.", param)
    size = known_size(served.vocabulary)
    return [replace(m, pictures=tuple(fitted(picture, *size) for picture in m.pictures)) for m in conversation]


def _going_on(conversation: Sequence[Message]) -> Document:
    """All contents one after the other; a picture comes before the question about it, as `tokens.pictures.to_see` has it."""
    segments: list[Segment] = []
    texts: list[str] = []
    for message in conversation:
        if message.pictures:
            segments += [Segment("text", "\n\n".join(texts))] if texts else []
            segments += [picture_segment(picture, learn=False) for picture in message.pictures]
            texts = [] if message.content.strip() else [QUESTION]
        texts += [text for text in (message.content, *(call.arguments for call in message.tool_calls)) if text]
    return Document((*segments, Segment("text", "\n\n".join(texts))))


def endless(served: Served, texts: Iterable[str]) -> bool:
    """Whether texts cannot fit together, as is known before the work of finding their tokens."""
    return sum(map(len, texts)) > served.most_characters


def refuse_endless(served: Served, texts: Sequence[str], param: str = "messages") -> None:
    """Raises ApiError, 400 `context_length_exceeded`, for texts that are `endless`."""
    if endless(served, texts):
        said = f"the prompt alone has {sum(map(len, texts))} characters, which are more"
        raise _too_long(served, said, param)


def room_for(served: Served, prompt: Sequence[int], wanted: int | None, param: str = "messages") -> int:
    """How many tokens may be written: what was asked for, or all that fit.

    Raises:
        ApiError: 400 `context_length_exceeded`, the prompt leaves no room.
    """
    room = served.context - len(prompt)
    if room < (wanted != 0):
        raise _too_long(served, f"the prompt alone has {len(prompt)}", param)
    return room if wanted is None else min(wanted, room)


def _too_long(served: Served, said: str, param: str) -> ApiError:
    message = f"This model's maximum context length is {served.context} tokens; {said}. Shorten it."
    return ApiError(400, message, param, "context_length_exceeded")


def silenced(served: Served, form: Form) -> dict[int, float]:
    """A bias that keeps the model from writing control tokens that have no place in an answer."""
    unspoken = {_CALL, _CALLED} if form.choice == "none" else set()
    if served.thinking:
        # The engine opens a thought where one is wanted, so the model need not.
        unspoken |= {THINK} if effort_of(served, form) else {THINK, THOUGHT}
    spoken = _SPOKEN - unspoken
    return {id: -100.0 for name, id in served.vocabulary.controls.items() if not _plays(served, name, spoken)}


def constraint(served: Served, form: Form, param: str) -> Constraint | None:
    """What the form leaves to be said, behind a thought where there is to be one; None where any text will do.

    Args:
        param: the field to name where the form cannot be kept.

    Raises:
        ApiError: 400, a schema cannot be followed, or this model's vocabulary has no token for a call.
    """
    if effort := effort_of(served, form):
        return thought(served.vocabulary, served.thinking, effort, constraint(served, replace(form, effort="none"), param))
    if form.schema is None and form.choice == "none":
        return None
    if form.choice != "none" and not {_CALL, _CALLED} <= served.vocabulary.controls.keys():
        raise invalid("This model has no token for tool calls.", "tools", "unsupported_value")
    try:
        rules, controls = _grammar(form, served.vocabulary.controls)
        return served.grammars.lark(rules, controls)
    except UserError as error:
        raise invalid(f"This schema cannot be followed: {error}", param, "invalid_schema") from None


def _grammar(form: Form, controls: Mapping[str, int]) -> tuple[str, list[int]]:
    """The form in Lark's notation, and the control tokens that it names."""
    rules, named = [], []
    if form.schema is not None:
        rules.append(f"text: {_json(form.schema)}")
    elif form.choice == "auto":
        rules.append("text: /(?s:.+)/")
    calls = "call+" if form.parallel else "call"
    if form.choice != "none":
        named += [controls[_CALL], controls[_CALLED]]
        any_tool = " | ".join(f"tool{i}" for i in range(len(form.tools)))
        rules.append(f"call: <[{controls[_CALL]}]> ({any_tool}) <[{controls[_CALLED]}]>")
        for i, tool in enumerate(form.tools):
            opening = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
            rules += [f"tool{i}: {opening} arguments{i} {json.dumps('}')}", f"arguments{i}: {_json(tool.parameters)}"]
    body = {"none": "text", "required": calls, "auto": f"(text | text? {calls})?"}[form.choice]
    if form.thinks and {THINK, THOUGHT} <= controls.keys():
        named += [controls[THINK], controls[THOUGHT]]
        rules.append(f"thought: <[{controls[THINK]}]> /(?s:.*)/ <[{controls[THOUGHT]}]>")
        body = f"thought? {body}"
    return "\n".join([f"start: {body}", *rules]) + "\n", named


def _plays(served: Served, name: str, spoken: frozenset[str]) -> bool:
    """Whether a control token, under any of its names, belongs into an answer."""
    id = served.vocabulary.controls[name]
    return any(served.vocabulary.controls.get(other) == id for other in spoken)


def _json(schema: dict[str, Any] | bool) -> str:
    return Grammars.json_rule(schema if isinstance(schema, dict) else {} if schema else {"not": {}})
