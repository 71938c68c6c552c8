"""An answer while it comes: fetched in one task, shown ten times a second at most, kept when it ends. And what it may hold beside
words: pictures, films, sounds."""

from __future__ import annotations

import asyncio
import base64
import io
import time
import wave
from typing import Any

from nicegui import ui

from tessera.serve.page.asking import Asking
from tessera.serve.page.client import Client, Refused
from tessera.serve.page.markdown import Blocks
from tessera.serve.turns import Voice

THOUGHT = "Thought before it answered"
_NOTHING = 0, 0, "", "", None, 0
"""Of an answer is shown."""


class Answering:
    """One model's answer to one turn.

    Args:
        client: of the server.
        asking: what the model is asked.
        effort: that was asked for by name, if any.
    """

    def __init__(self, client: Client, asking: Asking, effort: str = "") -> None:
        self.voice: Voice = asking.model, effort
        self.asked: str = asking.turns[-1]["id"]
        self.failure = ""
        self._client = client
        self._asking = asking
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._picture = ""
        self._media = ""
        self._percent: int | None = None
        self._shown: tuple[Any, ...] = _NOTHING
        self._finish_reason = "stopped"
        self._tokens: int | None = None
        self._pieces = 0
        self._first: float | None = None
        self._start = time.perf_counter()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._view: LiveView | None = None

    async def run(self) -> bool:
        """Fetches it to its end; True where it did not fail before anything came."""
        if self._stopped:
            return True
        self._task = asyncio.ensure_future(self._fetch())
        await asyncio.wait({self._task})
        return bool(self._text or self._reasoning or self._picture or self._media) or not self.failure

    def stop(self) -> None:
        """What came so far is the answer."""
        if self._task is not None and not self._stopped:  # once: a second time would end how it tidies up
            self._task.cancel()
        self._stopped = True

    def turn(self) -> dict[str, Any]:
        """The body of `POST /tessera/chats/ID/turns`."""
        return {
            "role": "assistant",
            "after": [self.asked],
            "text": "".join(self._text),
            "images": [self._picture] if self._picture else [],
            "media": [self._media] if self._media else [],
            "model": self.voice[0],
            "effort": self.voice[1],
            "left_out": self._asking.left_out,
            "reasoning": "".join(self._reasoning),
            "finish_reason": self._finish_reason,
            "tokens": self._pieces if self._tokens is None else self._tokens,
            "seconds": round(time.perf_counter() - (self._first or self._start), 3),
        }

    def show(self, view: LiveView) -> None:
        """From now on it is shown there."""
        self._view, self._shown = view, _NOTHING
        self.flush()

    def flush(self) -> None:
        """Shows what came since the last time."""
        come = len(self._text), len(self._reasoning), self._picture, self._media, self._percent, self._asking.left_out
        if self._view is None or come == self._shown:
            return
        seen, thought, painted, played, percent, left_out = self._shown
        self._shown = come
        if self._asking.left_out != left_out:
            self._view.leave_out(self._asking.left_out)
        if self._picture != painted:
            self._view.paint(self._picture)
        if self._media != played:
            self._view.play(self._media)
        elif self._percent != percent:
            self._view.tell(self._percent)
        self._view.feed("".join(self._text[seen:]), "".join(self._reasoning[thought:]))

    async def _fetch(self) -> None:
        try:
            self._asking = await self._asking.fitted(self._client)
            path, body = self._asking.request()
            body |= {"reasoning_effort": self.voice[1]} if self.voice[1] else {}
            async for delta in self._client.answer(path, body):
                self._picture = delta.picture or self._picture
                self._media = delta.media or self._media
                self._percent = self._percent if delta.percent is None else delta.percent
                if delta.text or delta.reasoning:  # the first of a picture is a part of it already
                    self._first = self._first or time.perf_counter()
                    self._pieces += 1
                if delta.text:
                    self._text.append(delta.text)
                if delta.reasoning:
                    self._reasoning.append(delta.reasoning)
                self._finish_reason = delta.finish_reason or self._finish_reason
                self._tokens = self._tokens if delta.tokens is None else delta.tokens
        except Refused as refused:
            self.failure = refused.message


def untold(left_out: int) -> None:
    """That the model was not told of the oldest turns."""
    fit = "first turn no longer fits and was" if left_out == 1 else f"first {left_out} turns no longer fit and were"
    ui.label(f"The {fit} left out.").classes("dim small")


def drawn(url: str) -> ui.element:
    """A picture that a model drew, its pixels as they are."""
    picture = ui.element("img").props('alt="drawn picture"').classes("picture drawn")
    picture.props["src"] = url
    return picture


def played(url: str) -> ui.element:
    """A film that goes round and round, or a sound with its player."""
    if url.startswith("data:audio/"):
        with ui.element("div").classes("sound") as sound:
            ui.element("audio").props('controls aria-label="sound"').props["src"] = url
            if seconds := _seconds(url):  # a player counts whole ones
                ui.label(f"{seconds:.2f} s").classes("dim small")
        return sound
    if url.startswith("data:image/"):
        return drawn(url)
    film = ui.element("video").props('autoplay loop muted playsinline aria-label="film"').classes("picture drawn")
    film.props["src"] = url
    return film


def _seconds(url: str) -> float:
    """How long a sound is, by the head of its WAV file; 0: that is none."""
    try:
        with wave.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as sound:
            return sound.getnframes() / sound.getframerate()
    except (ValueError, EOFError, wave.Error):
        return 0.0


class LiveView:
    """Where an answer is shown while it comes. Draws itself where it is made.

    Args:
        plain: the text as it is, which goes on with another, instead of Markdown.
    """

    def __init__(self, plain: bool) -> None:
        self._plain = plain
        self._blocks = Blocks()
        self._all = ""
        self._thought = ""
        self._untold = ui.element("div")
        self._fold = ui.expansion("Thinking ...", icon="psychology").classes("thought")
        with self._fold:
            self._reasoning = ui.label().classes("thought-text")
        self._fold.set_visibility(False)
        if plain:
            self._end = ui.label().classes("made")
        else:
            self._done = ui.html().classes("text done")
            self._open = ui.html().classes("text")
        self._painted: ui.element | None = None
        self._easel = ui.element("div")
        self._made = ui.label().classes("dim")
        self._made.set_visibility(False)
        self._wait = ui.html('<span class="wait"><i></i><i></i><i></i></span>', sanitize=False)

    def leave_out(self, turns: int) -> None:
        """Says that so many are not told."""
        with self._untold:
            untold(turns)

    def paint(self, url: str) -> None:
        """Shows a picture, in place of the unfinished one before it."""
        if self._painted is None:
            with self._easel:
                self._painted = drawn(url)
            self._wait.set_visibility(False)
        else:
            self._painted.props["src"] = url
            self._painted.update()

    def play(self, url: str) -> None:
        """Shows a film or a sound."""
        with self._easel:
            played(url)
        self._made.set_visibility(False)
        self._wait.set_visibility(False)

    def tell(self, percent: int | None) -> None:
        """How much is made."""
        self._made.text = f"{percent} % made" if percent else "Begun"
        self._made.set_visibility(True)

    def feed(self, text: str, reasoning: str) -> None:
        """Adds what came."""
        self._all += text
        self._thought += reasoning
        if text or reasoning:
            self._wait.set_visibility(not self._all and self._painted is None)
        if reasoning:
            self._fold.set_visibility(True)
            self._reasoning.text = self._thought
        if not text:
            return
        self._fold.text = THOUGHT
        if self._plain:
            self._end.text = self._all
            return
        done, rest = self._blocks.feed(text)
        if self._done.content != done:
            self._done.content = done
        self._open.content = rest
