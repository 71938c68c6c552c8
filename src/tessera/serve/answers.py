"""The tokens of an answer as they come, taken apart: content, reasoning and tool calls, ready to be shown.

Control tokens say where one part ends and the next begins; they are in no text. Characters are never split, nothing of a stop
string is given out, and a token's log-probability comes together with the text that it made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tessera.engine.request import Token
from tessera.engine.stream import TextStream
from tessera.tokens import chat
from tessera.tokens.document import Document, Segment
from tessera.tokens.vocabulary import Vocabulary

PieceKind = Literal["content", "reasoning", "call", "arguments"]

_OPENING = re.compile(r'\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')


@dataclass(frozen=True)
class Piece:
    """Something new to show.

    Args:
        kind: `content` or `reasoning`: more of the text; `call`: a call begins, `text` is its name; `arguments`: more of them.
        text: of that kind.
        tokens: of content, those that made the text.
        index: which call.
    """

    kind: PieceKind
    text: str
    tokens: tuple[Token, ...] = ()
    index: int = 0


@dataclass
class Answer:
    """One answer while it comes, and as a whole when it is there.

    Args:
        vocabulary: of the model.
        stop: strings that end the content.
    """

    vocabulary: Vocabulary
    stop: Sequence[str] = ()
    content: str = ""
    reasoning: str = ""
    calls: list[chat.ToolCall] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    """Those of the content."""
    reasoning_tokens: int = 0

    def __post_init__(self) -> None:
        # Ours come first among the names of an id, so that an imported model's token goes by our name too.
        self._names = {id: name for name, id in reversed(list(self.vocabulary.controls.items()))}
        self._where: Literal["content", "reasoning", "call"] = "content"
        self._stream = TextStream(self.stop)
        self._held: list[Token] = []
        self._call = ""
        self._begun = False

    def feed(self, token: Token) -> list[Piece]:
        """What can be shown after one more token."""
        name = self._names.get(token.id)
        if self._where == "reasoning":
            self.reasoning_tokens += 1
        if name is None:
            if self._where == "content":
                self._held.append(token)
            return self._text(self._stream.feed(self.vocabulary.bytes_of([token.id])))
        pieces = self._end_part()
        if name == "<|tool_call|>":
            self._enter("call")
        elif name in ("<|/tool_call|>", "<|/think|>"):
            self._enter("content")
        elif name == "<|think|>":
            self._enter("reasoning")
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back; no token follows. A call that was cut off before its name was there leaves nothing."""
        if self._where == "call" and not self._begun:
            return []
        return self._end_part()

    def _enter(self, where: Literal["content", "reasoning", "call"]) -> None:
        self._where = where
        self._stream = TextStream(self.stop if where == "content" else ())
        self._call, self._begun = "", False

    def _end_part(self) -> list[Piece]:
        pieces = self._text(self._stream.finish())
        if self._where == "call":
            pieces += self._end_call()
        self._held.clear()
        self._stream = TextStream(self.stop)
        return pieces

    def _text(self, text: str) -> list[Piece]:
        if self._where == "call":
            self._call += text
            return self._more_call()
        if self._where == "reasoning":
            self.reasoning += text
            return [Piece("reasoning", text)] if text else []
        if not text:
            return []
        self.content += text
        made = self._made(text)
        self.tokens += made
        return [Piece("content", text, made)]

    def _made(self, text: str) -> tuple[Token, ...]:
        """Of the tokens held back, those that begin within `text`."""
        left, count = len(text.encode()), 0
        while count < len(self._held) and left > 0:
            left -= len(self.vocabulary.bytes_of([self._held[count].id]))
            count += 1
        made, self._held = tuple(self._held[:count]), self._held[count:]
        return made

    def _more_call(self) -> list[Piece]:
        """Once the name is there, arguments are given out but for the brace that closes the call around them."""
        pieces = []
        if not self._begun and (opening := _OPENING.match(self._call)):
            self._begun = True
            self.calls.append(chat.ToolCall(json.loads(opening[1]), ""))
            self._call = self._call[opening.end() :]
            pieces.append(Piece("call", self.calls[-1].name, index=len(self.calls) - 1))
        if self._begun and len(self._call) > 1:
            pieces.append(self._arguments(self._call[:-1]))
            self._call = self._call[-1]
        return pieces

    def _arguments(self, text: str) -> Piece:
        call = self.calls[-1]
        self.calls[-1] = chat.ToolCall(call.name, call.arguments + text)
        return Piece("arguments", text, index=len(self.calls) - 1)

    def _end_call(self) -> list[Piece]:
        if self._begun:
            return [self._arguments(self._call)] if self._call not in ("", "}") else []
        # Not in our own layout: what `tokens.chat` can still read is a call, all else is text to be seen.
        said = chat.parse(Document((Segment("control", "<|tool_call|>"), Segment("text", self._call))))
        pieces = []
        for call in said.tool_calls:
            self.calls.append(call)
            index = len(self.calls) - 1
            pieces += [Piece("call", call.name, index=index), Piece("arguments", call.arguments, index=index)]
        self.content += said.content
        return pieces + ([Piece("content", said.content)] if said.content else [])
