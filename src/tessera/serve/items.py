"""The items of responses and conversations: messages, calls, their results and reasoning, as they come in and are kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag

from tessera.serve.bodies import Part
from tessera.serve.errors import invalid
from tessera.serve.seen import seen
from tessera.serve.store import new_id
from tessera.tokens.chat import Message, ToolCall

Status = Literal["in_progress", "completed", "incomplete"]
ItemId = Annotated[str, StringConstraints(pattern=r"^[\w.:-]{1,128}$")]
"""As routes take it, so that what is kept under it can be asked for."""


class ContentPart(Part):
    """A part of a message; all but text needs a model that has the medium."""

    type: Literal[
        "input_text", "output_text", "text", "summary_text", "reasoning_text", "refusal",
        "input_json", "input_image", "input_file", "input_audio",
    ]  # fmt: skip
    text: str = ""
    refusal: str = ""
    image_url: str | None = None
    detail: str = "auto"
    data: dict[str, Any] | list[dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    logprobs: list[dict[str, Any]] = []


class MessageItem(Part):
    """A turn, of the user or as the assistant gave it."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]
    id: ItemId | None = None
    status: Status = "completed"


class FunctionCallItem(Part):
    """A call that the assistant asked for."""

    type: Literal["function_call"]
    name: str
    arguments: str
    call_id: str
    id: ItemId | None = None
    status: Status = "completed"


class FunctionOutputItem(Part):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[ContentPart]
    id: ItemId | None = None
    status: Status = "completed"


class ReasoningItem(Part):
    """What the assistant thought."""

    type: Literal["reasoning"]
    summary: list[ContentPart] = []
    content: list[ContentPart] = []
    encrypted_content: str | None = None
    id: ItemId | None = None
    status: Status = "completed"


class CompactionItem(Part):
    """What `/v1/responses/compact` made of the items before it."""

    type: Literal["compaction"]
    encrypted_content: str
    id: ItemId | None = None


class ItemReference(Part):
    """An item that is kept already."""

    type: Literal["item_reference"]
    id: str


def _kind(item: Any) -> str:
    """An item without a type is a message."""
    return str((item.get("type") if isinstance(item, dict) else getattr(item, "type", None)) or "message")


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[CompactionItem, Tag("compaction")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_kind),
]
Items = Annotated[list[Item], Field(max_length=2048)]

_PREFIXES = {
    "message": "msg_",
    "function_call": "fc_",
    "function_call_output": "fco_",
    "reasoning": "rs_",
    "compaction": "cmp_",
}


def message_item(role: str, text: str) -> dict[str, Any]:
    """A message of one text, as it is kept."""
    part = {"type": "input_text", "text": text}
    return {"id": new_id("msg_"), "type": "message", "status": "completed", "role": role, "content": [part]}


def renewed(item: dict[str, Any]) -> dict[str, Any]:
    """A copy of an item, with an id of its own: kept in two places under one id, it would leave the first."""
    return item | {"id": new_id(item["id"].split("_")[0][:8] + "_")}


def kept(items: Iterable[Item], param: str = "input") -> list[dict[str, Any]]:
    """Items as they are kept and shown: each with an id, contents as lists. References stay as they are.

    Raises:
        ApiError: 400, content that this model does not read.
    """
    result = []
    for i, item in enumerate(items):
        if isinstance(item, ItemReference):
            result.append({"type": "item_reference", "id": item.id})
            continue
        if isinstance(item, ReasoningItem):
            _refuse_media([*item.summary, *item.content], f"{param}[{i}]")
        shown = item.model_dump(exclude_none=True)
        shown["id"] = item.id or new_id(_PREFIXES[item.type])
        if isinstance(item, MessageItem):
            kind: Literal["output_text", "input_text"] = "output_text" if item.role == "assistant" else "input_text"
            parts = [ContentPart(type=kind, text=item.content)] if isinstance(item.content, str) else item.content
            _refuse_media(parts, f"{param}[{i}].content", pictures=item.role != "assistant")
            shown["content"] = [_shown_part(part) for part in parts]
        elif isinstance(item, FunctionOutputItem) and not isinstance(item.output, str):
            _refuse_media(item.output, f"{param}[{i}].output")
            shown["output"] = "".join(part.text for part in item.output)
        elif isinstance(item, ReasoningItem):
            shown["summary"] = [{"type": "summary_text", "text": part.text} for part in item.summary]
            shown["content"] = [{"type": "reasoning_text", "text": part.text} for part in item.content]
        result.append(shown)
    return result


def conversation_of(items: Sequence[dict[str, Any]], instructions: str | None, param: str = "input") -> list[Message]:
    """Kept items as turns: reasoning and calls join the assistant's message that they belong to.

    Raises:
        ApiError: 400, a result that answers no call, a picture that cannot be read.
    """
    turns = [Message("system", instructions)] if instructions else []
    mine = Message("assistant")
    open_calls: set[str] = set()

    def close() -> None:
        nonlocal mine
        if mine != Message("assistant"):
            turns.append(mine)
            mine = Message("assistant")

    for item in items:
        if item["type"] == "item_reference":
            raise invalid("An item reference has no meaning here; send the item.", param)
        if item["type"] == "reasoning":
            if mine.content or mine.tool_calls:
                close()
            thought = "".join(part["text"] for part in item.get("content", []))
            mine = replace(mine, reasoning=mine.reasoning + thought)
        elif item["type"] == "function_call":
            mine = replace(mine, tool_calls=(*mine.tool_calls, ToolCall(item["name"], item["arguments"])))
            open_calls.add(item["call_id"])
        elif item["type"] == "function_call_output":
            if item["call_id"] not in open_calls:
                raise invalid(f"No tool call found for function call output with call_id {item['call_id'][:100]}.", param)
            close()
            turns.append(Message("tool", item["output"]))
        else:
            text = "".join(part.get("text") or part.get("refusal") or "" for part in item["content"])
            if item["role"] != "assistant":
                close()
                shown = [part["image_url"] for part in item["content"] if part["type"] == "input_image"]
                turns.append(Message(item["role"], text, pictures=tuple(seen(url, param) for url in shown)))
            else:
                if mine.content or mine.tool_calls:
                    close()
                mine = replace(mine, content=text)
    close()
    return turns


def _shown_part(part: ContentPart) -> dict[str, Any]:
    if part.type == "refusal":
        return {"type": "refusal", "refusal": part.refusal}
    if part.type == "output_text":
        return {"type": "output_text", "text": part.text, "annotations": part.annotations, "logprobs": part.logprobs}
    if part.type == "input_json":
        return {"type": "input_text", "text": json.dumps(part.data, ensure_ascii=False)}
    if part.type == "input_image":
        return {"type": "input_image", "image_url": part.image_url, "detail": part.detail}
    return {"type": part.type, "text": part.text}


def _refuse_media(parts: Iterable[ContentPart], param: str, pictures: bool = False) -> None:
    """400 for parts that nothing here reads, and pictures that are not in the request itself.

    Args:
        pictures: they may stand there.
    """
    brings = {"input_image": "pictures here, only in messages to it", "input_audio": "sound; the recipe `speak` brings it"}
    for j, part in enumerate(parts):
        if pictures and part.type == "input_image":
            if not (part.image_url or "").startswith("data:"):
                seen(part.image_url, f"{param}[{j}]")
        elif part.type in ("input_image", "input_audio", "input_file"):
            what = brings.get(part.type, "files in messages")
            raise invalid(f"This model does not read {what}.", f"{param}[{j}]", "unsupported_modality")
