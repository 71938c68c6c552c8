"""What a model writes reaches a terminal as signs that can be seen, and anything else as it is."""

from __future__ import annotations

import io

import pytest

from tessera.commands import terminal
from tessera.commands.live import LiveLine


class Terminal(io.StringIO):
    """What was printed on it can be read back."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("def f():\n\treturn 'Grüße \u4e16\u754c'\n", "def f():\n\treturn 'Grüße \u4e16\u754c'\n"),
        ("\x1b]0;title\x07", "\u241b]0;title\u2407"),
        ("all is well\rX", "all is well\u240dX"),
        ("\x9b2J\x7f\x08\x00", "<9B>2J\u2421\u2408\u2400"),
        ("a\u202eb\u2066", "a<U+202E>b<U+2066>"),
    ],
)
def test_a_terminal_gets_no_control_characters_and_a_file_gets_them_all(text: str, shown: str) -> None:
    screen, file = Terminal(), io.StringIO()
    for piece in text:
        terminal.write(piece, stream=screen)
        terminal.write(piece, stream=file)
    assert (screen.getvalue(), file.getvalue()) == (shown, text)


def test_what_an_encoding_cannot_hold_is_replaced() -> None:
    raw = io.BytesIO()
    page = io.TextIOWrapper(raw, encoding="ascii")
    terminal.write("caf\u00e9 \udcff", end="\n", stream=page)
    assert raw.getvalue() == b"caf? ?\n"


def test_samples_on_the_live_line_are_made_printable() -> None:
    screen = Terminal()
    LiveLine(10, stream=screen)({"event": "sample", "step": 1, "prompt": "x = ", "text": "\x1b[31m\x9b2J"})
    assert screen.getvalue() == "\r\x1b[2K  x = \u241b[31m<9B>2J\n"
