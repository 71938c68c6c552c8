"""A document before and after it becomes ids.

`Document` is what a source yields and what a person reads: segments of text, pictures, film, sound and control tokens, each
with a flag that says whether the model learns to produce it. `TokenRecord` is what a document becomes and the one type in
which training data, rollouts and served answers travel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["text", "image", "video", "audio", "control"]


@dataclass(frozen=True)
class Segment:
    """A stretch of one kind.

    Args:
        kind: what `content` is.
        content: the text; for a control segment the token's name, `<|image|>`; for media the ids within that
            medium's own block, int64, any shape (flattened in C order), or the pixels of a picture, (H, W, 3) uint8, or
            (H, W, 4) where transparent ones are hidden, or of a film, (T, H, W, 3), or the samples of a sound, (T,) int16: these
            become ids with what frames them (`tokens.pictures`, `tokens.films`, `tokens.sounds`).
        learn: whether the model is trained to produce this stretch (False: it is only read).
        per_second: frames in a second of a film, samples in one of a sound; 0: nobody knows, or it is none.
    """

    kind: Kind
    content: str | np.ndarray
    learn: bool = True
    per_second: float = 0.0


@dataclass(frozen=True)
class Document:
    """Segments in the order in which they are read, and where they came from (a path, `dataset[17]`)."""

    segments: tuple[Segment, ...]
    source: str = ""

    @classmethod
    def of_text(cls, text: str, source: str = "") -> Document:
        """A document of one learned text segment."""
        return cls((Segment("text", text),), source)

    @property
    def text(self) -> str:
        """Its text segments, joined."""
        return "".join(str(s.content) for s in self.segments if s.kind == "text")


@dataclass(frozen=True)
class TokenRecord:
    """One sequence of `T` tokens, from pre-training to reinforcement learning. Nothing is ever re-tokenised.

    Args:
        ids: (T,) int32.
        learn: (T,) bool; whether the loss counts the prediction of this token.
        logprobs: (T,) float32, log-probability under the policy that sampled it (0 where it was given), or None.
        advantages: (T,) float32, or None outside reinforcement learning.
        values, returns: (T,) float32, what a critic expected before this token and what came from it on, or None without one.
    """

    ids: np.ndarray
    learn: np.ndarray
    logprobs: np.ndarray | None = None
    advantages: np.ndarray | None = None
    values: np.ndarray | None = None
    returns: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)
