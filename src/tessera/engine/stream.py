"""Text that is safe to show while tokens arrive: no half character, nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

ASIDES = {"<|think|>": True, "<|/think|>": False, "<|tool_call|>": True, "<|/tool_call|>": False}
"""Control token -> whether what follows it is no text for people, where a stop string is a part like any other."""


class TextStream:
    """Turns the bytes of tokens, as they come, into text, and holds back what the next token could still change.

    Args:
        stop: strings that end the text and are not part of it.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.text = ""
        """All that was given out."""
        self.stopped = False
        """A stop string was met."""
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # may be the beginning of a stop string

    def feed(self, token: bytes, aside: bool = False) -> str:
        """Takes the bytes of the next token and returns the text that is certain now; bytes that are no UTF-8 read U+FFFD.

        Args:
            aside: no stop string counts in it.
        """
        new = self._decoder.decode(token)
        if not aside or self.stopped:
            return self._give(new, final=False)
        new, self._held = self._held + new, ""
        self.text += new
        return new

    def finish(self) -> str:
        """Returns what was held back; no token follows."""
        return self._give(self._decoder.decode(b"", final=True), final=True)

    def _give(self, new: str, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            given = text[: min(found)]
        else:
            given = text if final else text[: len(text) - self._could_be_stop(text)]
        self._held = text[len(given) :]
        self.text += given
        return given

    def _could_be_stop(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        lengths = (n for stop in self._stop for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
        return max(lengths, default=0)
