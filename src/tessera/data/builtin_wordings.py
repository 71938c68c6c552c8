"""Small tasks put into words, many ways: "What is the opposite of hot? cold".

Each wording is a phrase that says what to do (`the opposite of hot`, `the contrary of hot`) in a frame that asks for it (`What is
...?`, `Please write ....`). Some frames, and some pairs of a phrase and a frame, stand in no document: a model that answers such
a wording, with no example before it, has understood the words and not the line (zero-shot, GPT-2: "Language Models are
Unsupervised Multitask Learners", section 3).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tessera.tokens.document import Document

WORDINGS = 40_000
"""Documents that `builtin:wordings` yields where no count is named."""
_OPPOSITES = (
    "hot cold, big small, old new, up down, in out, wet dry, fast slow, high low, rich poor, hard soft, dark light, full empty, "
    "loud quiet, open shut, good bad, left right, long short, push pull, early late, near far, day night, yes no, true false, "
    "love hate, win lose, buy sell, give take, come go, start stop, thick thin, wide narrow, sweet sour, north south, east west, "
    "black white, clean dirty, heavy weightless, first last, front back, top bottom"
)
_PAIRS = [pair.split() for pair in _OPPOSITES.split(", ")]
OPPOSITES = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}
"""Each word of a pair -> the other one."""
LONGEST = 4
"""Letters of a word in all tasks but that of the opposites."""


@dataclass(frozen=True)
class Kind:
    """One thing to do with a word.

    Args:
        phrases: ways to say it, `{x}` for the word.
        does: from the word to the answer.
    """

    phrases: tuple[str, ...]
    does: Callable[[str], str]


KINDS = {
    "opposite": Kind(
        ("the opposite of {x}", "the contrary of {x}", "what is not {x} at all", "the other end from {x}"), OPPOSITES.__getitem__
    ),
    "sort": Kind(
        ("the letters of {x} in order", "{x} sorted by the alphabet", "{x} with its letters from a to z"),
        lambda x: "".join(sorted(x)),
    ),
    "repeat": Kind(("{x} twice", "{x} two times", "{x} and once more {x}", "a pair of {x}"), lambda x: f"{x} {x}"),
    "reverse": Kind(("{x} backwards", "{x} in reverse", "{x} from its end to its beginning"), lambda x: x[::-1]),
    "first": Kind(("the first letter of {x}", "the letter that {x} begins with", "the initial of {x}"), lambda x: x[0]),
    "last": Kind(("the last letter of {x}", "the letter that {x} ends with", "the final letter of {x}"), lambda x: x[-1]),
    "capitals": Kind(("{x} in capitals", "{x} in upper case", "{x} with large letters"), str.upper),
    "length": Kind(("the number of letters in {x}", "how long {x} is", "the length of {x}"), lambda x: str(len(x))),
}
FRAMES = (
    "What is {p}?", "Write {p}.", "Tell me {p}.", "Please give {p}.", "I want {p}.", "Find {p}:", "Say {p}:", "Now {p}:",
    "Question: {p}?", "Could you write {p}?", "Show {p}, please.", "Here is a task: {p}.",
)  # fmt: skip
NEW_FRAMES = ("Give me {p}!", "Please tell me: what is {p}?", "I would like to see {p}.")
"""Frames that stand in no document."""

Wording = tuple[str, str, str]
"""Key of KINDS, phrase, frame."""
_PAIRED = [(kind, phrase, frame) for kind, made in KINDS.items() for phrase in made.phrases for frame in FRAMES]
random.Random("wordings").shuffle(_PAIRED)
_QUARTER = len(_PAIRED) // 4
TAUGHT: tuple[Wording, ...] = tuple(_PAIRED[_QUARTER:])
"""Wordings that documents are made of."""
NEW: dict[str, tuple[Wording, ...]] = {
    "new pair": tuple(_PAIRED[:_QUARTER]),
    "new frame": tuple(
        (kind, phrase, frame) for kind, made in KINDS.items() for phrase, frame in itertools.product(made.phrases, NEW_FRAMES)
    ),
}
"""Wordings that stand in no document: a known phrase in a known frame that never held it, and a frame that is unknown."""


def wordings(count: int) -> Iterator[Document]:
    """That many questions with their answers, one document each."""
    for number in range(count):
        dice = random.Random(f"wording {number}")
        wording = one_of(TAUGHT, dice)
        word = word_for(wording[0], dice)
        yield Document.of_text(f"{question(wording, word)}{KINDS[wording[0]].does(word)}\n", f"wordings[{number}]")


def one_of(there: tuple[Wording, ...], dice: random.Random) -> Wording:
    """A wording, every kind equally often."""
    kind = dice.choice(list(KINDS))
    return dice.choice([wording for wording in there if wording[0] == kind])


def word_for(kind: str, dice: random.Random) -> str:
    """A word that the task can be about: one with an opposite, or, for all other tasks, letters that need not be a word."""
    if kind == "opposite":
        return dice.choice(list(OPPOSITES))
    if dice.random() < 0.5:
        return dice.choice([word for word in OPPOSITES if 3 <= len(word) <= LONGEST])
    return "".join(dice.choices("abcdefghijklmnoprstuvwy", k=dice.randint(3, LONGEST)))


def question(wording: Wording, word: str) -> str:
    """The words that ask, and a space."""
    return wording[2].format(p=wording[1].format(x=word)) + " "


def answers(word: str) -> list[str]:
    """What each task that can be about a word makes of it."""
    return [made.does(word) for kind, made in KINDS.items() if kind != "opposite" or word in OPPOSITES]
