"""The tour: what a model that knows all media can be asked in a minute, as plain data.

Eight things to try, in nine requests, as one of them is asked with little and with much thought. The page shows them as
buttons, `docs/tour.py` goes through them by the API, and `evals.tour` measures each of them. What is asked about a picture or
about two answers differs from seed to seed; all else is the same request, answered anew.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tessera.data.builtin_assistant import COMPARE, known
from tessera.data.builtin_pictures import NUMBERS, digit_arrays, digit_pixels
from tessera.engine import films, sounds
from tessera.tokens.pictures import QUESTION

Kind = Literal["complete", "fill", "chat", "draw", "look", "film", "play", "judge"]


@dataclass(frozen=True)
class Step:
    """One thing to try.

    Args:
        name: of it, for files and records.
        title: what a button says, and a measurement is called.
        kind: how it is asked.
        prompt: what is asked, or before a gap; empty where it differs from seed to seed.
        needs: fields of `/v1/models` that have to be true of a model that can do it.
        suffix: what is behind a gap.
        effort: how much to think first; `none`: it answers at once, also where it would think if nothing were said.
        size: of a picture that is to be drawn, WIDTHxHEIGHT.
        temperature: at which it is asked; pictures are drawn at 1, as they are guided.
        max_tokens: of an answer in words, beside its thought.
        card: what the button says, where several steps share one, as they ask the same.
    """

    name: str
    title: str
    kind: Kind
    prompt: str = ""
    needs: tuple[str, ...] = ()
    suffix: str = ""
    effort: str = ""
    size: str = ""
    temperature: float = 1.0
    max_tokens: int = 64
    card: str = ""


@dataclass(frozen=True)
class Asking:
    """A step as it is asked once.

    Args:
        prompt: text before the gap, user's turn, caption, or what is to be played.
        right: the right answer, where it is one text.
        picture: (H, W, 3) uint8 that is asked about.
    """

    prompt: str
    right: str = ""
    picture: np.ndarray | None = None


_CALM = 0.2
"""Temperature of words: a little, so that twenty answers to one question are not the same answer twenty times."""

_SUM = "37 + 58 with low and high effort"

STEPS = (
    Step(
        "complete",
        "Complete this function",
        "complete",
        'def answer(values):\n    """Return the sum of the squares of the even numbers in values."""\n',
        temperature=_CALM,
        max_tokens=96,
    ),
    Step(
        "fill",
        "Fill in this gap",
        "fill",
        'def answer(values):\n    """Return the largest of the doubles of the odd numbers in values."""\n    found = []\n'
        "    for x in values:\n        if x % 2 == 1:\n",
        ("fills",),
        "    return max(found, default=0)\n",
        temperature=_CALM,
    ),
    Step(
        "sum-low",
        "37 + 58 with low effort",
        "chat",
        "What is 37 + 58?",
        ("dialogue", "thinking"),
        effort="low",
        temperature=_CALM,
        card=_SUM,
    ),
    Step(
        "sum-high",
        "37 + 58 with high effort",
        "chat",
        "What is 37 + 58?",
        ("dialogue", "thinking"),
        effort="high",
        temperature=_CALM,
        card=_SUM,
    ),
    Step("draw", "Draw a seven", "draw", "a seven", ("pictures",), size="8x8"),
    Step("look", "What is in this picture?", "look", needs=("pictures",), effort="none", temperature=_CALM),
    Step(
        "film",
        "A red ball bounces to the left",
        "film",
        "a red ball bounces to the left",
        ("films",),
        temperature=films.TEMPERATURE,
    ),
    Step("play", "Play C E G", "play", "C E G", ("sounds",), temperature=sounds.TEMPERATURE),
    Step(
        "judge",
        "Which of the two answers is better?",
        "judge",
        needs=("dialogue", "thinking"),
        effort="low",
        temperature=_CALM,
        max_tokens=8,
    ),
)
"""In the order in which they are shown. The two functions do what `data.builtin_functions` teaches."""


def askings(step: Step, seed: int) -> tuple[Asking, ...]:
    """How a step is asked with a seed: once, or, where two answers are compared, in both orders."""
    if step.kind == "look":
        levels, labels = digit_arrays("test")
        at = seed % len(labels)
        return (Asking(QUESTION, NUMBERS[labels[at]], digit_pixels(levels[at])),)
    if step.kind == "judge":
        return _compared(seed)
    return (Asking(step.prompt),)


def _compared(seed: int) -> tuple[Asking, ...]:
    """A right and a wrong answer to a small task in words, in both orders, first the one that the seed throws."""
    dice = random.Random(f"tour {seed}")
    question, right, wrong = known(dice)
    orders = [
        Asking(COMPARE.format(question=question, a=right, b=wrong), "A"),
        Asking(COMPARE.format(question=question, a=wrong, b=right), "B"),
    ]
    return tuple(dice.sample(orders, 2))
