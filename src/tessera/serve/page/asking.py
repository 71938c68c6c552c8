"""What a model is asked: a turn and as much of the conversation before it as the model has room for.

The oldest turns are left out, never the instructions. How many tokens a prompt has, the server counts; a prompt that has fewer
bytes than would fit is not counted, as no token is shorter than a byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tessera.serve.page.client import Client, Refused
from tessera.serve.turns import Turn, messages, text_of

_PARTIAL_PICTURES = 3
_FOR_ANSWER = 4
"""This part of the context, a fourth, is kept for the answer where turns can be left out for it."""
_MARKS = 8
"""Tokens that the layout of a dialogue puts around a message, at most."""


@dataclass(frozen=True)
class Asking:
    """A question to one model.

    Args:
        mode: of the chat.
        model: its name.
        context: tokens that it reads, its answer among them.
        turns: the conversation up to and with the turn that is to be answered: of the user, an answer, of the user, ...
        instructions: before a dialogue.
        settings: the fields of the request that say how to answer.
        left_out: the oldest turns of the user, each with its answer, that the model is not told.
    """

    mode: str
    model: str
    context: int
    turns: Sequence[Turn]
    instructions: str
    settings: Mapping[str, Any]
    left_out: int = 0

    @property
    def told(self) -> Sequence[Turn]:
        """The turns of which the model is told."""
        return self.turns[2 * self.left_out :]

    def request(self) -> tuple[str, dict[str, Any]]:
        """Where the model is asked, and what."""
        body, asked = {**self.settings, "model": self.model}, self.turns[-1]["text"]
        match self.mode:
            case "chat":
                return "/v1/chat/completions", body | {"messages": messages(self.told, self.instructions)}
            case "draw":
                return "/v1/images/generations", body | {"prompt": asked, "partial_images": _PARTIAL_PICTURES}
            case "film":
                return "/v1/videos", body | {"prompt": asked}
            case "play":
                return "/v1/audio/speech", body | {"input": asked}
        text, behind = text_of(self.told)
        return "/v1/completions", body | {"prompt": text} | ({} if behind is None else {"suffix": behind})

    async def fitted(self, client: Client) -> Asking:
        """The same with as many of the oldest turns left out as it takes until the prompt and an answer fit."""
        if self.mode not in ("chat", "complete") or len(self.turns) < 2:
            return self
        most = self.settings.get("max_completion_tokens") or self.settings.get("max_tokens") or self.context
        room = self.context - min(most, self.context // _FOR_ANSWER)
        try:
            if await self._tokens(client, room) <= room:
                return self
            too_few, enough = 0, len(self.turns) // 2
            while enough - too_few > 1:
                middle = (too_few + enough) // 2
                if await replace(self, left_out=middle)._tokens(client, room) <= room:
                    enough = middle
                else:
                    too_few = middle
        except Refused:
            return self  # the request itself is refused as well, and says why
        return replace(self, left_out=enough)

    async def too_long(self, client: Client) -> str:
        """Why the last turn has no room, even by itself, in a sentence; empty: it has."""
        if self.mode not in ("chat", "complete"):
            return ""
        room = self.context - _MARKS
        try:
            tokens = await replace(self, left_out=len(self.turns) // 2)._tokens(client, room)
        except Refused:
            return ""  # as above
        if tokens <= room:
            return ""
        told = "With the instructions this" if self.instructions else "This"
        return (
            f"{told} message has {tokens:,} tokens, and {self.model} reads {self.context:,} with its answer. "
            "It was not sent; shorten it."
        )

    async def _tokens(self, client: Client, room: int) -> int:
        """Of the prompt; more than those where it is seen without counting that they are at most `room`.

        Raises:
            Refused: they cannot be counted.
        """
        told = self.told
        most = sum(len(text.encode()) + _MARKS for text in (self.instructions, *(turn["text"] for turn in told)))
        if most <= room and not any(turn["images"] for turn in told):
            return most
        said: Any = "".join(filter(None, text_of(told)))
        if self.mode == "chat":
            said = [{**one, "content": _as_input(one["content"])} for one in messages(told, self.instructions)]
        counted = await client.post("/v1/responses/input_tokens", {"model": self.model, "input": said})
        return int(counted["input_tokens"])


def _as_input(content: Any) -> Any:
    """A message's content as `/v1/responses` writes it."""
    if isinstance(content, str):
        return content
    return [
        {"type": "input_image", "image_url": part["image_url"]["url"]}
        if part["type"] == "image_url"
        else {"type": "input_text", "text": part["text"]}
        for part in content
    ]
