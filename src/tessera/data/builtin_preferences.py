"""Answers to small tasks put into words, right and wrong ones, dressed alike.

Which of two answers is better can be seen in what it says and in nothing else: right and wrong ones are worded by the same four
forms, drawn apart from each other, and are equally long on the average. `examples` makes what a crowd of mixed skill would write,
half of it wrong; `pairs` sets a right answer against a wrong one, as a careful reader would.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tessera.data.builtin_wordings import KINDS, OPPOSITES, TAUGHT, one_of, question, word_for

PAIRS = 4_000
"""That `builtin:preferences` holds where no count is named; of examples twice as many."""
FORMS = ("{a}", "It is {a}.", '"{a}"', "Here you are: {a}")
RIGHT = 0.5
"""Share of right answers among the examples."""


def examples(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Lines as `posttrain sft` reads them."""
    dice = random.Random(f"examples {seed}")
    for _ in range(count):
        kind, word, prompt = _asked(dice)
        said = KINDS[kind].does(word) if dice.random() < RIGHT else wrong(kind, word, dice)
        yield {"prompt": prompt, "completion": dressed(said, dice)}


def pairs(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Lines as `posttrain dpo` and `posttrain reward` read them."""
    dice = random.Random(f"pairs {seed}")
    for _ in range(count):
        kind, word, prompt = _asked(dice)
        right, other = KINDS[kind].does(word), wrong(kind, word, dice)
        yield {"prompt": prompt, "chosen": dressed(right, dice), "rejected": dressed(other, dice)}


def _asked(dice: random.Random) -> tuple[str, str, str]:
    """Kind, word and question."""
    wording, word = one_of(TAUGHT, dice), ""
    # One letter, again and again, has no wrong order.
    while len(set(word)) < 2:
        word = word_for(wording[0], dice)
    return wording[0], word, question(wording, word)


def wrong(kind: str, word: str, dice: random.Random) -> str:
    """An answer that looks like the right one and is not."""
    right = KINDS[kind].does(word)
    while True:
        turned = "".join(dice.sample(word, len(word)))
        changed = word.replace(dice.choice(word), dice.choice("abcdefghijklmnoprstuvwy"))
        there = {
            "opposite": list(OPPOSITES), "sort": [turned], "reverse": [turned], "first": list(word), "last": list(word),
            "repeat": [f"{word} {turned}", f"{turned} {turned}", f"{word} {changed}"],
            "capitals": [turned.upper(), changed.upper()], "length": list("23456"),
        }  # fmt: skip
        if (said := dice.choice(there[kind])) != right:
            return said


def dressed(said: str, dice: random.Random) -> str:
    """An answer in one of the forms."""
    return dice.choice(FORMS).format(a=said)


def undressed(text: str) -> str:
    """What an answer says, whatever its form."""
    for form in FORMS[1:]:
        before, _, after = form.partition("{a}")
        if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
            return text[len(before) : len(text) - len(after)]
    return text
