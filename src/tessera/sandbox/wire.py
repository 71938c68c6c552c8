"""Values between the harness and the candidate, as plain JSON: what arrives is rebuilt from built-in types alone.

So an object of the candidate's own class, with an `__eq__` that always agrees, arrives as the number or list it is, or as an
`Opaque` that equals nothing but itself. Nothing is pickled and nothing that arrives is executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

LARGEST = 16 << 20
"""Bytes of a message."""
_LONGEST_ITERATOR = 100_000
_DEEPEST = 200
_COLLECTIONS: tuple[tuple[str, Any], ...] = (("l", list), ("t", tuple), ("S", set), ("F", frozenset))


class Gone(Exception):
    """The other side has ended, or says what is no message."""


class Opaque:
    """An object that stays in the candidate's process; here it is only a ticket to hand back."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


def encode(value: Any, keep: Callable[[Any], int] | None = None, depth: int = 0) -> Any:
    """A value as JSON.

    Args:
        keep: takes an object that cannot travel and gives its ticket; None: that is a TypeError.
    """
    if depth > _DEEPEST:
        raise ValueError("a value is nested too deeply")
    if value is None or value is True or value is False:
        return value
    # By the base type and by its own methods: a subclass may have overridden what is asked of it.
    if isinstance(value, str):
        return ["s", str.__str__(value)]
    if isinstance(value, int):
        return ["i", hex(int.__index__(value))]
    if isinstance(value, float):
        return ["f", float.hex(value)]
    if isinstance(value, complex):
        return ["c", float.hex(value.real), float.hex(value.imag)]
    if isinstance(value, bytes):
        return ["b", bytes.hex(value)]
    if isinstance(value, range):
        return ["r", hex(value.start), hex(value.stop), hex(value.step)]
    if isinstance(value, Opaque):
        return ["o", value.number]
    for tag, kind in _COLLECTIONS:
        if isinstance(value, kind):
            return [tag, *(encode(item, keep, depth + 1) for item in kind.__iter__(value))]
    if isinstance(value, dict):
        return ["d", *([encode(k, keep, depth + 1), encode(v, keep, depth + 1)] for k, v in dict.items(value))]
    if keep is None:
        raise TypeError(f"a {type(value).__name__} cannot be handed to the candidate")
    if isinstance(value, Iterator):
        items = [encode(item, keep, depth + 1) for _, item in zip(range(_LONGEST_ITERATOR), value, strict=False)]
        return ["I", *items]
    return ["o", keep(value)]


def decode(data: Any, ticket: Callable[[int], Any] = Opaque) -> Any:
    """The value again. Raises ValueError, TypeError, IndexError or RecursionError for what `encode` does not write."""
    if data is None or data is True or data is False:
        return data
    tag, *rest = data
    if tag == "s" and isinstance(rest[0], str):
        return rest[0]
    if tag == "i":
        return int(rest[0], 16)
    if tag == "f":
        return float.fromhex(rest[0])
    if tag == "c":
        return complex(float.fromhex(rest[0]), float.fromhex(rest[1]))
    if tag == "b":
        return bytes.fromhex(rest[0])
    if tag == "r":
        return range(*(int(part, 16) for part in rest))
    if tag == "o" and isinstance(rest[0], int):
        return ticket(rest[0])
    if tag == "d":
        return {decode(k, ticket): decode(v, ticket) for k, v in rest}
    items = [decode(item, ticket) for item in rest]
    kinds: dict[str, Callable[[list[Any]], Any]] = {
        "l": list, "t": tuple, "S": set, "F": frozenset, "I": iter,
    }  # fmt: skip
    if tag not in kinds:
        raise ValueError("a message with a tag that does not exist")
    return kinds[tag](items)


def send(descriptor: int, message: Any) -> None:
    """Writes a message: its length in four bytes, then JSON."""
    body = json.dumps(message).encode()
    if len(body) > LARGEST:
        raise ValueError("a message is too large")
    rest = memoryview(len(body).to_bytes(4, "big") + body)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def receive(descriptor: int) -> Any:
    """Reads a message, and not a byte behind it.

    Raises:
        Gone
    """
    size = int.from_bytes(_exactly(descriptor, 4), "big")
    if size > LARGEST:
        raise Gone
    try:
        return json.loads(_exactly(descriptor, size))
    except (ValueError, RecursionError):
        raise Gone from None


def _exactly(descriptor: int, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(descriptor, min(size - len(parts), 1 << 16))
        if not part:
            raise Gone
        parts += part
    return bytes(parts)
