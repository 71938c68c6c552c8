"""The events of a response in their order, made from the tokens of its answer; the response object grows with them.

created, in_progress, then for each item of the output: added, its deltas, done; at last completed, incomplete or failed. A
thought is an empty item, unless a summary was asked for: then its words are the summary, where clients look for one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from tessera.engine.request import Finished, Token
from tessera.serve.answers import Answer, Piece
from tessera.serve.chat import logprob_entry
from tessera.serve.errors import of_exception
from tessera.serve.generation import Generation
from tessera.serve.store import new_id

Happened = dict[str, Any]

_PARTS = {
    "message": ("content", "content_part", "output_text"),
    "reasoning": ("summary", "reasoning_summary_part", "reasoning_summary_text"),
}
"""Kind of item -> the field that holds its only part, and what events call that part and its text."""


class Writer:
    """Writes one response.

    Args:
        response: the object as it was created; it is changed in place.
        generation: of one order.
        logprobs: whether the text's tokens are shown with their log-probabilities.
        thoughts: whether the words of thoughts are shown.
    """

    def __init__(self, response: dict[str, Any], generation: Generation, logprobs: bool, thoughts: bool = False) -> None:
        self.response = response
        self._generation = generation
        self._logprobs = logprobs
        self._answer = Answer(generation.served.vocabulary)
        self._shows_thoughts = thoughts
        self._number = -1
        self._item: dict[str, Any] | None = None
        self._shown_logprobs: list[dict[str, Any]] = []

    async def events(self) -> AsyncGenerator[Happened]:
        """All of them. What goes wrong is the last event; leaving early aborts the generation."""
        try:
            # Entered before anything is told: whoever leaves at the first event stops the engine too.
            async with self._generation as generation:
                self.response["status"] = "in_progress"
                yield self._event("response.created", response=self._snapshot())
                yield self._event("response.in_progress", response=self._snapshot())
                async for _, happened in generation.events():
                    if isinstance(happened, Finished):
                        for shown in self._finish(happened):
                            yield shown
                        continue
                    for piece in self._answer.feed(happened):
                        for shown in self._show(piece):
                            yield shown
        except Exception as error:
            answer = of_exception(error)
            self.response["status"] = "failed"
            code = "server_error" if answer.status >= 500 else "invalid_prompt"
            self.response["error"] = {"code": code, "message": answer.message}
        yield self._event(f"response.{self.response['status']}", response=self._snapshot())

    def _finish(self, finished: Finished) -> Iterator[Happened]:
        for piece in self._answer.finish():
            yield from self._show(piece)
        if not self.response["output"] and self._item is None:
            yield from self._open(_message())
        status = "completed" if finished.reason == "stop" else "incomplete"
        yield from self._close(status)
        self._generation.usage.reasoning = self._answer.reasoning_tokens
        self.response["status"] = status
        self.response["usage"] = self._generation.usage.of_response()
        if status == "completed":
            self.response["completed_at"] = int(time.time())
        else:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}

    def _show(self, piece: Piece) -> Iterator[Happened]:
        if piece.kind == "call":
            yield from self._close("completed")
            call = {"call_id": new_id("call_"), "name": piece.text, "arguments": ""}
            yield from self._open({"id": new_id("fc_"), "type": "function_call", "status": "in_progress", **call})
            return
        kind = {"content": "message", "reasoning": "reasoning", "arguments": "function_call"}[piece.kind]
        if self._item is None or self._item["type"] != kind:
            yield from self._close("completed")
            yield from self._open(_message() if kind == "message" else _reasoning(self._shows_thoughts))
        assert self._item is not None
        if kind == "function_call":
            self._item["arguments"] += piece.text
            yield self._delta("response.function_call_arguments.delta", piece.text)
            return
        if kind == "reasoning" and not self._shows_thoughts:
            return
        if kind == "reasoning":
            self._item["summary"][0]["text"] += piece.text
            yield self._delta("response.reasoning_summary_text.delta", piece.text, summary_index=0)
            return
        self._item["content"][0]["text"] += piece.text
        logprobs = self._entries(piece.tokens)
        self._item["content"][0]["logprobs"] += logprobs
        yield self._delta("response.output_text.delta", piece.text, content_index=0, logprobs=logprobs)

    def _open(self, item: dict[str, Any]) -> Iterator[Happened]:
        """An item begins, and where it has one, its only part."""
        self._item = item
        field, part_name, _ = _PARTS.get(item["type"], ("", "", ""))
        parts = item.get(field)
        empty = item | ({field: []} if parts else {})
        yield self._event("response.output_item.added", output_index=self._index, item=empty)
        if parts:
            place = self._place() | {f"{field}_index": 0}
            yield self._event(f"response.{part_name}.added", **place, part=dict(parts[0]))

    def _close(self, status: str) -> Iterator[Happened]:
        """The open item ends."""
        item = self._item
        if item is None:
            return
        item["status"] = status
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **self._place(), **done)
        else:
            field, part_name, text_name = _PARTS[item["type"]]
            place = self._place() | {f"{field}_index": 0}
            for part in item[field]:
                said = {name: part[name] for name in ("text", "logprobs") if name in part}
                yield self._event(f"response.{text_name}.done", **place, **said)
                yield self._event(f"response.{part_name}.done", **place, part=dict(part))
        yield self._event("response.output_item.done", output_index=self._index, item=dict(item))
        self.response["output"].append(item)
        self._item = None

    @property
    def _index(self) -> int:
        return len(self.response["output"])

    def _place(self) -> dict[str, Any]:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": self._index}

    def _delta(self, type: str, delta: str, **more: Any) -> Happened:
        return self._event(type, **self._place(), delta=delta, **more)

    def _entries(self, tokens: tuple[Token, ...]) -> list[dict[str, Any]]:
        return [logprob_entry(self._generation.served, token) for token in tokens] if self._logprobs else []

    def _event(self, type: str, **fields: Any) -> Happened:
        self._number += 1
        return {"type": type, "sequence_number": self._number} | fields

    def _snapshot(self) -> dict[str, Any]:
        return self.response | {"output": list(self.response["output"])}


def _message() -> dict[str, Any]:
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"id": new_id("msg_"), "type": "message", "status": "in_progress", "role": "assistant", "content": [part]}


def _reasoning(shown: bool) -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": ""}] if shown else []
    return {"id": new_id("rs_"), "type": "reasoning", "status": "in_progress", "summary": summary}
