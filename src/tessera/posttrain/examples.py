"""A file of examples -> documents in which exactly what is to be learned is marked.

One JSON object a line, as OpenAI's fine-tuning files have it: `{"messages": [...], "tools": [...]}`, or
`{"prompt": text, "completion": text}` for a model that knows no turns. Every mistake is one sentence with the number of its line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.pictures import fitted, in_url, on_white, read_picture
from tessera.data.reasons import Unreadable
from tessera.engine.thinking import THINK
from tessera.errors import UserError
from tessera.tokens import chat
from tessera.tokens.document import Document, Segment
from tessera.tokens.pictures import is_picture, known_size, picture_segment
from tessera.tokens.vocabulary import END, Vocabulary


@dataclass(frozen=True)
class Example:
    """One line.

    Args:
        line: its number, from 1.
        document: what the model reads.
        dialogue: it is a conversation, not a prompt with its completion.
        digest: uniform in [0, 2^64), from the content alone.
    """

    line: int
    document: Document
    dialogue: bool
    digest: int


@dataclass(frozen=True)
class Checked:
    """What a sound file holds.

    Args:
        digests: of its examples, in their order.
        dialogue: whether some are conversations.
    """

    digests: tuple[int, ...]
    dialogue: bool


def check(path: Path, name: str | None = None) -> Checked:
    """Reads a file through.

    Args:
        path: of the file.
        name: to call it by; None: its path.

    Raises:
        UserError: as `read_examples`.
    """
    digests, dialogue = [], False
    for example in read_examples(path, name):
        digests.append(example.digest)
        dialogue |= example.dialogue
    return Checked(tuple(digests), dialogue)


def read_examples(path: Path, name: str | None = None) -> Iterator[Example]:
    """The examples of a file; empty lines are passed over.

    Raises:
        UserError: no such file, no example in it, a line that is not one or has nothing to learn.
    """
    name, found = name or str(path), False
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                found = True
                where = f"{name}, line {number}"
                try:
                    document, dialogue = _document(line, where)
                except UserError as error:
                    raise UserError(f"{where}: {error}") from None
                digest = hashlib.blake2b(line.strip(), digest_size=8).digest()
                yield Example(number, document, dialogue, int.from_bytes(digest, "little"))
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}); give a file with one JSON object a line.") from None
    if not found:
        raise UserError(f"{name} holds no example; write one JSON object a line.")


def thoughts(document: Document) -> list[tuple[str, str]]:
    """The effort and the words of each thought that has an effort."""
    return [
        (str(said.content)[9:-2], str(thought.content))
        for said, opened, thought in zip(document.segments, document.segments[1:], document.segments[2:], strict=False)
        if said.kind == opened.kind == "control" and opened.content == THINK and str(said.content).startswith("<|effort_")
    ]


def in_sight(document: Document, vocabulary: Vocabulary) -> Document:
    """A document whose pictures are scaled down to the size that a model knows.

    Raises:
        UserError: it has some, and the model has not learned to see.
    """
    if not any(map(is_picture, document.segments)):
        return document
    if "image" not in vocabulary.media:
        raise UserError(f"{document.source} shows a picture, and the model has not learned to see (tessera train see).")
    size = known_size(vocabulary)
    segments = (picture_segment(fitted(np.asarray(s.content), *size), s.learn) if is_picture(s) else s for s in document.segments)
    return Document(tuple(segments), document.source)


def _seen(url: str) -> np.ndarray:
    """(H, W, 3) uint8 of a picture that stands in its own address."""
    try:
        data = in_url(url)
        if data is None:
            raise UserError("a picture has to stand in the line itself, as data:image/png;base64,....")
        return on_white(read_picture(data, alpha=True))
    except (ValueError, Unreadable) as error:
        raise UserError(f"a picture cannot be read ({error}).") from None


def _document(line: bytes, source: str) -> tuple[Document, bool]:
    """The document of a line, and whether it is a conversation."""
    try:
        # A byte order mark is what some editors put before the first line.
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError("not UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error}).") from None
    if not isinstance(row, dict) or not ("messages" in row or {"prompt", "completion"} <= row.keys()):
        raise UserError('an example is {"messages": [...]}, or {"prompt": text, "completion": text}.')
    if "messages" in row:
        return _conversation(row, source), True
    prompt, completion = row["prompt"], row["completion"]
    if not isinstance(prompt, str) or not isinstance(completion, str) or not completion:
        raise UserError("prompt and completion must be text, and the completion not empty.")
    read = (Segment("text", prompt, learn=False),) if prompt else ()
    return Document((*read, Segment("text", completion), Segment("control", END)), source), False


def _conversation(row: Mapping[str, Any], source: str) -> Document:
    if not isinstance(row["messages"], list):
        raise UserError("messages must be a list.")
    if not all(isinstance(m, Mapping) and isinstance(m.get("tool_calls") or [], list) for m in row["messages"]):
        raise UserError("a message is an object with role and content, and its tool_calls are a list.")
    turns = chat.read(row["messages"], _seen)
    mine = [turn for turn in turns if turn.role == "assistant"]
    if not mine:
        raise UserError("there is no assistant message, so nothing to learn.")
    if not any(turn.learn for turn in mine):
        raise UserError("every assistant message has the weight 0, so there is nothing to learn.")
    if not all(turn.content or turn.reasoning or turn.tool_calls for turn in mine):
        raise UserError("an assistant message has no content and no tool_calls.")
    tools = _tools(row.get("tools") or [])
    return chat.render((chat.describe_tools(tools), *turns) if tools else turns, source=source)


def _tools(given: Any) -> list[dict[str, Any]]:
    """The functions."""
    tools = []
    for tool in given if isinstance(given, list) else [None]:
        function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UserError('tools are a list of {"type": "function", "function": {"name", "description", "parameters"}}.')
        tools.append(dict(function))
    return tools
