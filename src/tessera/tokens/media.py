"""What every tokenizer of a medium offers, whatever it is made of: of colours (`palette`), of learned codes (`quantizer`), or
learned elsewhere (`published`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from tessera.errors import UserError
from tessera.tokens.document import Kind


class StreamingDecoder(Protocol):
    """Decodes one signal while its ids are coming."""

    def feed(self, ids: np.ndarray) -> np.ndarray:
        """The part of the signal that has become certain by these ids; each part is given once, in order."""
        ...


class MediaTokenizer(Protocol):
    """Turns the signal of one medium into ids of its own block and back."""

    @property
    def name(self) -> str:
        """Of its kind: `palette`, `quantizer`."""
        ...

    @property
    def kind(self) -> Kind:
        """The medium."""
        ...

    @property
    def size(self) -> int:
        """How many ids it has."""
        ...

    @property
    def expects(self) -> str:
        """The signal that `encode` takes, in words."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of most signals that it was made for, in its units: what is made where no size is named."""
        ...

    @property
    def stride(self) -> int:
        """Side in pixels of what becomes one id of a picture or a film; their sides are multiples of it."""
        ...

    @property
    def rate(self) -> float:
        """Ids for one unit of the signal: a pixel, or a second."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that decides ids."""
        ...

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the ids of a signal of this shape; UserError where it takes none such."""
        ...

    def encode(self, signal: np.ndarray) -> np.ndarray:
        """Ids, int64, each from 0 to size - 1; UserError where it is not what the tokenizer expects."""
        ...

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """The signal; UserError where ids are out of range."""
        ...

    def stream(self, shape: tuple[int, ...]) -> StreamingDecoder:
        """Decodes a signal of a known shape while its ids are coming."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What the file in the model's folder holds; `from_json` reads it back."""
        ...


class Cut(Protocol):
    """How a signal is cut into what becomes one id, or one of each book."""

    @property
    def kind(self) -> Kind: ...

    @property
    def size(self) -> int:
        """How many ids, all books together."""
        ...

    @property
    def stride(self) -> int:
        """Side of a patch in pixels."""
        ...

    @property
    def time_stride(self) -> int:
        """Frames of a patch, but for the first, which has one."""
        ...

    @property
    def step(self) -> int:
        """Samples of a step of sound."""
        ...

    @property
    def books(self) -> int:
        """Ids of a step of sound, each of a stretch of ids of its own."""
        ...

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """`grid_of` it."""
        ...


def grid_of(cut: Cut, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a signal's ids: of (height, width) pixels, (frames, height, width), or (samples,), which are filled up to
    whole steps with silence: (h, w), (T', h, w), or (T', books).

    Raises:
        UserError: it cannot be cut into whole patches.
    """
    if cut.kind == "audio":
        if len(shape) != 1 or shape[0] < 1:
            raise UserError("sound without samples cannot be cut into steps.")
        return -(-shape[0] // cut.step), cut.books
    frames, height, width = shape if len(shape) == 3 else (1, *shape)
    if frames < 1 or (frames - 1) % cut.time_stride:
        raise UserError(f"a film of {frames} frames cannot be cut; it has to have k x {cut.time_stride} + 1.")
    if height < 1 or width < 1 or height % cut.stride or width % cut.stride:
        raise UserError(f"{height} x {width} pixels cannot be cut; the sides have to be multiples of {cut.stride}.")
    found = (frames - 1) // cut.time_stride + 1, height // cut.stride, width // cut.stride
    return found if cut.kind == "video" else found[1:]


class Steps:
    """Decodes what has come as often as a step is whole; what comes later changes nothing of what was given.

    Args:
        decode: of the tokenizer.
        cut: its own.
        grid: shape of the ids of the whole signal.
        held: samples before the end of what has come that later ids still change.
    """

    def __init__(self, decode: Callable[[np.ndarray], np.ndarray], cut: Cut, grid: tuple[int, ...], held: int = 0) -> None:
        self._decode, self._cut, self._grid, self._held = decode, cut, grid, held
        self._come = np.empty(0, np.int64)
        self._given = 0

    def feed(self, ids: np.ndarray) -> np.ndarray:
        """As `StreamingDecoder.feed`; UserError where there are more ids than the signal has."""
        self._come = np.concatenate([self._come, np.asarray(ids, np.int64).ravel()])
        if len(self._come) > math.prod(self._grid):
            raise UserError(f"these are {len(self._come) - math.prod(self._grid)} ids more than the signal has.")
        picture, sound = self._cut.kind == "image", self._cut.kind == "audio"
        whole = len(self._come) // (math.prod(self._grid) if picture else math.prod(self._grid[1:]))
        if not whole:
            side = tuple(n * self._cut.stride for n in self._grid[-2:])
            return np.empty(0, np.int16) if sound else np.empty((0, *side, 3), np.uint8)
        shape = self._grid if picture else (whole, *self._grid[1:])
        frames = self._decode(self._come[: math.prod(shape)].reshape(shape))
        frames = frames[None] if picture else frames
        if sound and whole < self._grid[0]:
            frames = frames[: max(self._given, len(frames) - self._held)]
        new, self._given = frames[self._given :], len(frames)
        return new[0] if picture and len(new) else new
