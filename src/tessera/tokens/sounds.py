"""A recording's place in the stream, and the order of caption, sound and question for each task.

A sound reads `<|audio|>` `<|begin_media|>`, then the ids of each of its steps, one from each book, then `<|/audio|>`. It has no
geometry: its rate is the tokenizer's, and how long it lasts is for the model to say. Training (`data.sound_tasks`) and asking
(`engine.sounds`) lay their documents out by the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tessera.tokens.document import Document, Segment
from tessera.tokens.media import MediaTokenizer
from tessera.tokens.pictures import BEGIN, given

if TYPE_CHECKING:
    from tessera.tokens.vocabulary import Vocabulary

AUDIO, AUDIO_END = "<|audio|>", "<|/audio|>"
QUESTIONS = ("Write down what you hear.", "write down what you hear", "What do you hear?", "What is said?")
"""Ways to ask for the words, all learned alike; the first is asked where the person asks nothing."""
QUESTION = QUESTIONS[0]
WHO = "Who is it?"
"""Asks for the speaker."""


def sound_segment(samples: np.ndarray, per_second: float, learn: bool = True) -> Segment:
    """Sound, (T,) int16, as a segment."""
    return Segment("audio", samples, learn, per_second)


def is_sound(segment: Segment) -> bool:
    """Whether a segment holds samples, not ids."""
    return segment.kind == "audio" and isinstance(segment.content, np.ndarray) and segment.content.dtype == np.int16


def sounds_of(document: Document) -> list[np.ndarray]:
    """The samples of each recording in a document."""
    return [np.asarray(s.content) for s in document.segments if is_sound(s)]


def to_speak(caption: str, samples: np.ndarray, per_second: float) -> tuple[Segment, ...]:
    """Caption -> sound; without a caption the sound alone."""
    return (*given(caption), sound_segment(samples, per_second))


def to_listen(samples: np.ndarray, per_second: float, questions: Sequence[tuple[str, str]]) -> tuple[Segment, ...]:
    """Sound -> answers to questions about it."""
    asked = [part for question, answer in questions for part in (*given(question), Segment("text", answer))]
    return (sound_segment(samples, per_second, False), *asked)


def sound_head(vocabulary: Vocabulary) -> list[int]:
    """The ids that stand before those of a sound."""
    return [vocabulary.control(AUDIO), vocabulary.control(BEGIN)]


def tokens_of_sound(grid: tuple[int, ...]) -> int:
    """Tokens of a sound whose ids have this shape, its head and end counted in."""
    return grid[0] * grid[1] + 3


def encode_sound(
    vocabulary: Vocabulary, segment: Segment, tokenizer: MediaTokenizer, offset: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a sound with its head and end, int32, and which are learned: its ids and its end, if any.

    Args:
        offset: of the tokenizer's block.
    """
    ids = tokenizer.encode(np.asarray(segment.content)).ravel() + offset
    head = sound_head(vocabulary)
    whole = np.concatenate([head, ids, [vocabulary.control(AUDIO_END)]]).astype(np.int32)
    return whole, (np.arange(len(whole)) >= len(head)) & segment.learn
