"""Handwritten digits, drawn by their names and named by what they show.

The judge of drawn ones is a classifier that knows the real ones and has nothing to do with the model that draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.svm import SVC

from tessera.data.builtin_pictures import GREY_LEVELS, NUMBERS, digit_arrays, digit_pixels
from tessera.engine.engine import Engine
from tessera.engine.pictures import Wish, draw, look
from tessera.engine.sampling import SamplingParams
from tessera.evals.score import Score, share

DRAWN, NAMED = "drawn as meant", "named rightly"
_SHAPE = (8, 8)


def digits(engine: Engine, count: int, seed: int) -> list[Score]:
    """How many of `count` digits are read as what they were to be, and how many that no source yields are named rightly.

    Raises:
        UserError: the model has learned no pictures.
    """
    _, read = draw_digits(engine, count, seed)
    levels, labels = digit_arrays("test")
    said = name_digits(engine, digit_pixels(levels[:count]))
    found = {
        DRAWN: [float(digit == place % len(NUMBERS)) for place, digit in enumerate(read)],
        NAMED: [float(word == NUMBERS[label]) for word, label in zip(said, labels[:count], strict=True)],
    }
    judged = {DRAWN: "a classifier that knows real digits", NAMED: "the word"}
    return [share("digits", name, right, 1 / len(NUMBERS), {"seed": seed, "by": judged[name]}) for name, right in found.items()]


def draw_digits(engine: Engine, count: int = len(NUMBERS), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Zero to nine in turn: pictures (N, 8, 8, 3) uint8, and what the judge reads, (N,) int64."""
    wishes = [Wish(f"a {NUMBERS[place % len(NUMBERS)]}", _SHAPE) for place in range(count)]
    pictures = np.stack([drawing.pixels for drawing in draw(engine, wishes, SamplingParams(max_tokens=1, seed=seed))])
    return pictures, read_digits(digit_judge(), pictures)


def name_digits(engine: Engine, pictures: Sequence[np.ndarray] | np.ndarray) -> list[str]:
    """The last word of what is said of each picture, (H, W, 3) uint8."""
    said = look(engine, list(pictures), "", SamplingParams(max_tokens=16, temperature=0))
    return [digit_of(completion.text) for completion in said]


def digit_of(caption: str) -> str:
    """The digit that a caption speaks of: its last word."""
    return caption.split()[-1] if caption.split() else ""


def digit_judge() -> SVC:
    """Trained on the digits that sources yield; it names 98.7 % of the 300 others."""
    levels, labels = digit_arrays("train")
    return SVC(C=10, gamma=0.0012).fit(levels.reshape(len(levels), -1), labels)


def read_digits(judge: SVC, pictures: np.ndarray) -> np.ndarray:
    """Which digit each picture shows, (N, 8, 8, 3) uint8 -> (N,) int64."""
    levels = np.rint(pictures[..., 0] / (255 / (GREY_LEVELS - 1)))
    return np.asarray(judge.predict(levels.reshape(len(levels), -1)), np.int64)
