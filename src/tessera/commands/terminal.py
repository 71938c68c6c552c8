"""What a model wrote, as a terminal may have it: nothing in it can move the cursor, change a title or hide a line."""

from __future__ import annotations

import sys
from typing import TextIO

import numpy as np

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
# The second set of control characters: some terminals take U+009B for the beginning of an escape sequence.
_BYTES = {code: f"<{code:02X}>" for code in range(0x80, 0xA0)}
# They turn the order of what stands around them (CVE-2021-42574), so that code reads as it does not run.
_TURNS = {code: f"<U+{code:04X}>" for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_SHOWN = _PICTURES | _BYTES | _TURNS

_SHADES = np.array([2 * shade for shade in " .:-=+*#%@"])


def shades(pixels: np.ndarray) -> list[str]:
    """A picture, (H, W, 3) uint8, as H lines of 2 W characters, the brighter the denser."""
    level = pixels.mean(-1) * (len(_SHADES) - 1) / 255
    return ["".join(_SHADES[np.rint(row).astype(int)]) for row in level]


def read_standard_input(line: bool = False) -> str:
    """All that comes there, or a line of it; bytes that are no UTF-8 as U+FFFD, whatever the locale says of them.

    Raises:
        EOFError: a line was wanted, and there is none.
    """
    raw = getattr(sys.stdin, "buffer", None)
    if not line:
        return sys.stdin.read() if raw is None else raw.read().decode("utf-8", "replace")
    text: str = sys.stdin.readline() if raw is None else raw.readline().decode("utf-8", "replace")
    if not text:
        raise EOFError
    return text.rstrip("\n")


def printable(text: str) -> str:
    """`text` with every control character but line end and tab as a sign that can be seen: ESC as U+241B."""
    return text.translate(_SHOWN)


def write(text: str, end: str = "", stream: TextIO | None = None) -> None:
    """Prints what a model or a prompt holds: made printable for a terminal, as it stands into a file or a pipe.

    Args:
        text: any piece of it; characters are replaced one by one, so that pieces may be cut anywhere.
        end: comes after it as it is.
        stream: standard output unless given. What its encoding cannot hold is replaced.
    """
    stream = stream or sys.stdout
    if stream.isatty():
        text = printable(text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding) + end)
    stream.flush()
