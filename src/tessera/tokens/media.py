"""What every tokenizer of a medium offers, whatever it is made of: of colours (`palette`) or of learned codes (`quantizer`)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

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
