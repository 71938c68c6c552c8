"""A conversation as a document, an answer back as a message, and the Jinja template that other tools render it with.

The layout is one turn after the other, each opened by its role's control token and closed by `<|end_turn|>`:

    <|user|>text<|end_turn|>
    <|assistant|><|effort_low|><|think|>reasoning<|/think|>text
    <|tool_call|>{"name": "f", "arguments": {}}<|/tool_call|><|end_turn|>

without the line breaks. How much to think is said behind `<|assistant|>`, by whoever asks and for this turn only. The layout is
append-only: a longer conversation begins with exactly the segments of the shorter one, what its messages hold of effort and
reasoning included, so that ids and caches stay valid from turn to turn. The model learns what the assistant writes and the
token that ends its turn; role tokens, the effort and everybody else's turns are only read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tessera.errors import UserError
from tessera.tokens.document import Document, Segment
from tessera.tokens.pictures import picture_segment

EFFORTS = ("low", "medium", "high")
"""How much a model may think before it answers, from little to much; each has a token, `<|effort_low|>`."""
ROLES = ("system", "developer", "user", "assistant", "tool")
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}
"""JSON schema of the arguments of a function that says nothing of them."""


@dataclass(frozen=True)
class ToolCall:
    """A function the assistant wants called. `arguments` is the text of a JSON object, kept character for character."""

    name: str
    arguments: str = "{}"


@dataclass(frozen=True)
class Message:
    """One turn. Only the assistant's may carry `reasoning`, `tool_calls` and `effort`; a `tool` turn is the result of a call.

    `learn` counts for the assistant's turns: False if it is only read. `effort`: one of EFFORTS that was asked for, or none.
    `pictures`, (H, W, 3) uint8 each, stand before the content, as they do where a model learns to look.
    """

    role: str
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    learn: bool = True
    effort: str = ""
    pictures: tuple[np.ndarray, ...] = field(default=(), compare=False, repr=False)


def read(messages: Iterable[Mapping[str, Any]], seen: Callable[[str], np.ndarray] | None = None) -> tuple[Message, ...]:
    """Messages as the OpenAI API and chat data sets write them.

    Args:
        messages: `role`, `content` (text, parts of the types text and, for the user, image_url, or None), and for the assistant
            `reasoning_content` or `reasoning`, `reasoning_effort`, `weight` (0: not learned from), and `tool_calls` of
            `{"function": {"name", "arguments"}}` or `{"name", "arguments"}`; arguments are JSON text or data.
        seen: makes the pixels of a picture, (H, W, 3) uint8, from its address; None: there may be none.

    Raises:
        UserError: not of that form.
    """
    conversation = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UserError(f"message {i} is not an object with a role and content.")
        content, urls = _parted(message.get("content") or "")
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        if not isinstance(content, str) or not isinstance(reasoning, str):
            raise UserError(f"message {i}: content and reasoning must be text.")
        if urls and (seen is None or message.get("role") != "user"):
            raise UserError(f"message {i}: {'only the user shows pictures' if seen else 'pictures are not read here'}.")
        pictures = tuple(seen(url) for url in urls) if seen else ()
        calls = tuple(_read_call(call, i) for call in message.get("tool_calls") or ())
        weight = message.get("weight")
        if weight not in (None, 0, 1) or (weight is not None and message.get("role") != "assistant"):
            raise UserError(f"message {i}: weight is 0 or 1, and only the assistant's messages have one.")
        effort = message.get("reasoning_effort") or ""
        role = str(message.get("role"))
        conversation.append(Message(role, content, reasoning, calls, weight != 0, str(effort), pictures))
    return tuple(conversation)


def write(conversation: Iterable[Message]) -> list[dict[str, Any]]:
    """The inverse of `read`: what `apply_chat_template` and the OpenAI API take."""
    return [
        {"role": m.role, "content": m.content}
        | ({"reasoning_content": m.reasoning} if m.reasoning else {})
        | (
            {"tool_calls": [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in m.tool_calls]}
            if m.tool_calls
            else {}
        )
        | ({} if m.learn else {"weight": 0})
        | ({"reasoning_effort": m.effort} if m.effort else {})
        for m in conversation
    ]


def render(
    conversation: Sequence[Message],
    add_generation_prompt: bool = False,
    source: str = "",
    effort: str = "",
    cut_calls: bool = False,
) -> Document:
    """The document of a conversation; `learn` is True exactly on the assistant's words, calls and closing tokens, where its
    message is to be learned from.

    Args:
        conversation: its turns, oldest first.
        add_generation_prompt: end with `<|assistant|>`, for the model to answer.
        source: where it came from.
        effort: of the answer that the generation prompt asks for; none: nothing is said of it.
        cut_calls: arguments may be any text, as a model leaves them that came to its last token in the middle of a call.

    Raises:
        UserError: no message; an unknown role or effort; a tool message that answers no call; reasoning or calls of anybody
            but the assistant; arguments that are not a JSON object.
    """
    _check(conversation, cut_calls)
    segments: list[Segment] = []
    for message in conversation:
        mine = message.role == "assistant" and message.learn
        segments += _opening(message.role, message.effort)
        if message.reasoning:
            segments += _marked("<|think|>", message.reasoning, "<|/think|>", mine)
        segments += [picture_segment(picture, learn=False) for picture in message.pictures]
        if message.content:
            segments.append(Segment("text", message.content, learn=mine))
        for call in message.tool_calls:
            segments += _marked("<|tool_call|>", _call_text(call), "<|/tool_call|>", mine)
        segments.append(Segment("control", "<|end_turn|>", learn=mine))
    if add_generation_prompt:
        segments += _opening("assistant", effort)
    return Document(tuple(segments), source)


def describe_tools(tools: Iterable[Mapping[str, Any]]) -> Message:
    """The turn, before all others, that tells the model which functions it may call.

    Args:
        tools: `name`, `description` and `parameters` (a JSON schema) of each; the latter two may be absent.
    """
    lines = ["Tools:"]
    for tool in tools:
        described = {"name": tool["name"], "description": tool.get("description") or ""}
        described["parameters"] = NO_ARGUMENTS if tool.get("parameters") is None else tool["parameters"]
        lines.append(json.dumps(described, ensure_ascii=False))
    return Message("system", "\n".join(lines))


def parse(document: Document) -> Message:
    """The assistant's message in what it generated, up to its first `<|end_turn|>` or `<|endoftext|>`.

    Args:
        document: segments after `<|assistant|>` (which may lead). A mark that was never closed runs to the end; a call that is
            not of the form `{"name": text, "arguments": object}` stays in the content, to be seen.
    """
    said: dict[str, list[str]] = {"content": [], "reasoning": []}
    calls: list[ToolCall] = []
    call: list[str] | None = None
    where = "content"
    for segment in document.segments:
        if segment.kind == "text":
            (said[where] if call is None else call).append(str(segment.content))
        elif segment.kind != "control":
            continue
        elif segment.content in ("<|end_turn|>", "<|endoftext|>"):
            break
        elif segment.content == "<|think|>":
            where = "reasoning"
        elif segment.content == "<|/think|>":
            where = "content"
        elif segment.content in ("<|tool_call|>", "<|/tool_call|>"):
            _close(call, calls, said["content"])
            call = [] if segment.content == "<|tool_call|>" else None
    _close(call, calls, said["content"])
    return Message("assistant", "".join(said["content"]), "".join(said["reasoning"]), tuple(calls))


def chat_template(generation_marks: bool = False) -> str:
    """The Jinja template, for `chat_template.jinja`; in transformers it gives the ids of `render` on messages from `write`.

    Args:
        generation_marks: add the `{% generation %}` tags, with which transformers computes our learn mask
            (`return_assistant_tokens_mask`). Plain Jinja does not know the tag and refuses the template
            (llama-cpp-python#2225), so the shipped file goes without.
    """
    begin, end = ("{%- generation -%}", "{%- endgeneration -%}") if generation_marks else ("", "")
    return _TEMPLATE.replace("BEGIN\n", begin and begin + "\n").replace("END\n", end and end + "\n")


# Every tag strips the white space around it, so that the result does not depend on a renderer's trim_blocks and lstrip_blocks.
_TEMPLATE = """\
{%- if not messages -%}{{- raise_exception("a conversation needs at least one message") -}}{%- endif -%}
{%- set state = namespace(called=false) -%}
{%- for message in messages -%}
{%- if message.role not in ["system", "developer", "user", "assistant", "tool"] -%}
{{- raise_exception("unknown role " ~ message.role) -}}
{%- endif -%}
{%- if message.role == "tool" and not state.called -%}
{{- raise_exception("a tool message must follow an assistant message with tool_calls") -}}
{%- endif -%}
{%- if message.role != "tool" -%}{%- set state.called = message.role == "assistant" and message.tool_calls -%}{%- endif -%}
{{- "<|" ~ message.role ~ "|>" -}}
{%- if message.role == "assistant" -%}
{%- if message.reasoning_effort -%}{{- "<|effort_" ~ message.reasoning_effort ~ "|>" -}}{%- endif -%}
BEGIN
{%- set reasoning = message.reasoning_content or message.reasoning -%}
{%- if reasoning -%}{{- "<|think|>" ~ reasoning ~ "<|/think|>" -}}{%- endif -%}
{%- if message.content -%}{{- message.content -}}{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function or call -%}
{{- '<|tool_call|>{"name": ' ~ (function.name | tojson) ~ ', "arguments": ' -}}
{%- if function.arguments is string -%}{{- function.arguments -}}{%- else -%}{{- function.arguments | tojson -}}{%- endif -%}
{{- "}<|/tool_call|>" -}}
{%- endfor -%}
{{- "<|end_turn|>" -}}
END
{%- else -%}
{%- if message.content -%}{{- message.content -}}{%- endif -%}
{{- "<|end_turn|>" -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- "<|assistant|>" -}}
{%- if reasoning_effort in ["low", "medium", "high"] -%}{{- "<|effort_" ~ reasoning_effort ~ "|>" -}}{%- endif -%}
{%- endif -%}
"""


def _check(conversation: Sequence[Message], cut_calls: bool) -> None:
    if not conversation:
        raise UserError("the conversation is empty; it needs at least one message.")
    called = False
    for i, message in enumerate(conversation):
        if message.role not in ROLES:
            raise UserError(f"message {i} has the unknown role {message.role!r}; the roles are {', '.join(ROLES)}.")
        if message.role == "tool" and not called:
            raise UserError(f"message {i} is a tool's result, but no assistant message before it called a tool.")
        if message.role != "assistant" and (message.reasoning or message.tool_calls or message.effort):
            raise UserError(
                f"message {i} is a {message.role}'s, but only the assistant's may have reasoning, its effort or tool_calls."
            )
        for call in message.tool_calls:
            if not cut_calls and not _is_object(call.arguments):
                raise UserError(f"message {i}: the arguments of {call.name} are not a JSON object: {call.arguments[:80]!r}.")
        if message.role != "tool":
            called = bool(message.tool_calls)


def _opening(role: str, effort: str) -> list[Segment]:
    if effort and effort not in EFFORTS:
        raise UserError(f"there is no effort {effort!r}; write {', '.join(EFFORTS)}, or leave it out.")
    names = [f"<|{role}|>", *([f"<|effort_{effort}|>"] if effort else [])]
    return [Segment("control", name, learn=False) for name in names]


def _marked(opening: str, text: str, closing: str, learn: bool) -> list[Segment]:
    return [Segment("control", opening, learn), Segment("text", text, learn), Segment("control", closing, learn)]


def _parted(content: Any) -> tuple[Any, list[str]]:
    """Content given in parts as one text, and the addresses of its pictures; as it is where there are other parts."""
    if not isinstance(content, list):
        return content, []
    texts, urls = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        image = part.get("image_url") if kind == "image_url" else None
        url = image.get("url") if isinstance(image, Mapping) else image
        if kind == "text" and part.get("text") is not None:
            texts.append(str(part["text"]))
        elif isinstance(url, str):
            urls.append(url)
        else:
            return content, []
    return "".join(texts), urls


def _call_text(call: ToolCall) -> str:
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}'


def _close(call: list[str] | None, calls: list[ToolCall], content: list[str]) -> None:
    """Ends a tool call that is being read: adds it to `calls`, or its raw text to `content` when it is malformed."""
    if call is None:
        return
    text = "".join(call)
    try:
        data = json.loads(text)
        name, arguments = data["name"], data["arguments"]
    except (ValueError, TypeError, KeyError, RecursionError):
        name = arguments = None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        content.append(text)
        return
    # In our own layout the arguments are taken as they were written, so that rendering the message again gives the same ids.
    written = text.removeprefix(_call_text(ToolCall(name, ""))[:-1]).removesuffix("}")
    calls.append(ToolCall(name, written if _is_object(written) else json.dumps(arguments, ensure_ascii=False)))


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _read_call(call: Any, i: int) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f"message {i}: a tool call needs a name and arguments.")
    arguments = function.get("arguments", {})
    return ToolCall(function["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))
