"""A film's place in the stream: its geometry in tokens, and the order of caption and film for each task.

A film reads `<|video|>` frames*height*width@rate `<|begin_media|>`, then the ids of each step of its tokenizer, row by row, and
`<|frame|>` behind them, then `<|/video|>`. The first step is the first frame, so one that is made from its first frame, or gone
on with, is the same document as one that is made from a caption alone, with its beginning given: no task of its own is needed.
What lies before the ids is given, never learned. Training (`data.film_tasks`) and asking (`engine.films`) lay their documents out
by the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tessera.errors import UserError
from tessera.tokens.document import Document, Segment
from tessera.tokens.media import MediaTokenizer
from tessera.tokens.pictures import BEGIN, MOST_SIDE, given

if TYPE_CHECKING:
    from tessera.tokens.vocabulary import Vocabulary

VIDEO, VIDEO_END, FRAME = "<|video|>", "<|/video|>", "<|frame|>"
QUESTION = "What happens in the film?"
"""Answered with the caption; asked where the person asks nothing."""
MOST_FRAMES = 4096


@dataclass(frozen=True)
class Geometry:
    """Of a film: frames, pixels, and frames in a second (0: unknown)."""

    frames: int
    height: int
    width: int
    per_second: float = 0.0

    @property
    def words(self) -> str:
        """As the header has it."""
        return f"{self.frames}*{self.height}*{self.width}" + (f"@{self.per_second:g}" if self.per_second else "")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        return self.frames, self.height, self.width


def film_segment(film: np.ndarray, per_second: float, learn: bool = True) -> Segment:
    """A film, (T, H, W, 3) uint8, as a segment."""
    return Segment("video", film, learn, per_second)


def is_film(segment: Segment) -> bool:
    """Whether a segment holds the pixels of a film, not ids."""
    return segment.kind == "video" and isinstance(segment.content, np.ndarray) and segment.content.dtype == np.uint8


def films_of(document: Document) -> list[np.ndarray]:
    """The frames of each film in a document."""
    return [np.asarray(s.content) for s in document.segments if is_film(s)]


def to_film(caption: str, film: np.ndarray, per_second: float) -> tuple[Segment, ...]:
    """Caption -> film; without a caption the film alone."""
    return (*given(caption), film_segment(film, per_second))


def to_tell(film: np.ndarray, per_second: float, questions: Sequence[tuple[str, str]]) -> tuple[Segment, ...]:
    """Film -> answers to questions about it."""
    asked = [part for question, answer in questions for part in (*given(question), Segment("text", answer))]
    return (film_segment(film, per_second, False), *asked)


def film_head(vocabulary: Vocabulary, geometry: Geometry) -> list[int]:
    """The ids that stand before those of a film."""
    if not (1 <= geometry.frames <= MOST_FRAMES and 1 <= geometry.height <= MOST_SIDE and 1 <= geometry.width <= MOST_SIDE):
        raise UserError(
            f"a film of {geometry.words} (frames, height, width) is none that can be read or made; it has 1 to {MOST_FRAMES} "
            f"frames and sides from 1 to {MOST_SIDE}."
        )
    return [vocabulary.control(VIDEO), *vocabulary.encode_text(geometry.words), vocabulary.control(BEGIN)]


def tokens_of_film(grid: tuple[int, ...], geometry: Geometry) -> int:
    """Tokens of a film whose ids have this shape, with as many for its head as a byte-level tokenizer may need."""
    return grid[0] * (math.prod(grid[1:]) + 1) + len(geometry.words) + 3


def encode_film(
    vocabulary: Vocabulary, segment: Segment, tokenizer: MediaTokenizer, offset: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a film with all of its geometry, int32, and which are learned: its ids, the ends of its steps and its own, if any.

    Args:
        offset: of the tokenizer's block.
    """
    film = np.asarray(segment.content)
    frames, height, width = film.shape[:3]
    ids = tokenizer.encode(film)
    steps = np.full((len(ids), ids[0].size + 1), vocabulary.control(FRAME))
    steps[:, :-1] = ids.reshape(len(ids), -1) + offset
    head = film_head(vocabulary, Geometry(frames, height, width, segment.per_second))
    whole = np.concatenate([head, steps.ravel(), [vocabulary.control(VIDEO_END)]]).astype(np.int32)
    return whole, (np.arange(len(whole)) >= len(head)) & segment.learn
