"""Conversations for a first assistant that can do all that its family can: talk, reckon, look, write functions, compare answers,
obey the right one.

Every answer follows from its question by a rule, so that a test can judge it. Some conversations come without an effort, and are
answered at once; those with one have a thought before each answer: in sums the working, as short as the effort asks, where two
answers are compared what is right, elsewhere a few words that say what is asked.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tessera.data import builtin_dialogues, builtin_functions, builtin_hierarchy, builtin_pictures
from tessera.data.builtin_dialogues import CAPITALS
from tessera.data.builtin_wordings import OPPOSITES
from tessera.data.pictures import png
from tessera.tokens.pictures import QUESTION

ASSISTANT = 40_000
"""Conversations that `builtin:assistant` holds where no count is named."""
PAIRS = 4_000
"""That `builtin:judgements` holds where no count is named."""
EFFORTS = ("", "low", "medium", "high")
SUMS = ("What is {} {} {}?", "{} {} {}", "{} {} {} =", "How much is {} {} {}?", "Work out {} {} {}.", "Please compute {} {} {}.")
COMPARE = "Which answer is better, A or B?\n\nQuestion: {question}\nA: {a}\nB: {b}"
_LOOKS = (QUESTION, QUESTION, "What do you see?", "What is this?", builtin_pictures.DIGIT_QUESTION)
_WRITES = ("Write a Python function: {}", "Please write a function. {}", "Python: {}")
_SHIFT = 0.7
"""Share of the digits that are moved by a pixel."""

Messages = list[dict[str, Any]]


def examples(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Lines as `posttrain sft` reads them."""
    dice = random.Random(f"assistant {seed}")
    # Sums come with their working here.
    talk = builtin_dialogues.examples(count, seed, without={"sum"})
    shown = _digits()
    rules = builtin_hierarchy.examples(count, seed)
    for _ in range(count):
        effort = dice.choice(EFFORTS)
        kind = dice.choices(list(_SHARES), list(_SHARES.values()))[0]
        if kind == "talk":
            messages = _thinking(next(talk)["messages"], effort, "talk")
        elif kind == "look":
            messages = _thinking(_look(shown, dice), effort, "look")
        elif kind == "obey":
            messages = _thinking(next(rules)["messages"], effort, "rules")
        else:
            messages = _KINDS[kind](dice, effort)
        yield {"messages": messages}


def pairs(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Lines as `posttrain dpo` and `posttrain reward` read them: right answers and wrong ones, to small questions and, with an
    effort, to the question which of two answers is better."""
    dice = random.Random(f"assistant pairs {seed}")
    for _ in range(count):
        if effort := dice.choice(EFFORTS):
            asked, letter, right, wrong = judgement(dice)
            said = [(letter, right), ("AB"[letter == "A"], wrong)]
        else:
            asked, right, wrong = known(dice)
            said = [(right, ""), (wrong, "")]
        (prompt, chosen), (_, rejected) = (_turn(asked, answer, effort, thought) for answer, thought in said)
        yield {"prompt": [prompt], "chosen": [chosen], "rejected": [rejected]}


def steps(first: int, sign: str, second: int) -> list[str]:
    """The working of a sum or a difference of numbers that are not negative, digit by digit from the right.

    `478+356`: `8+6=14`, `7+5+1=13`, `4+3+1=8`; a difference below 0 the other way round, behind a minus.
    """
    turned = sign == "-" and first < second
    if turned:
        first, second = second, first
    carry = 0
    found: list[str] = []
    while first or second or not found:
        a, b = first % 10, second % 10
        value = a + b + carry if sign == "+" else a - b - carry
        step = f"{a}{sign}{b}" + (f"{sign}{carry}" if carry else "") + f"={value}"
        if value < 0:
            step += f"+10={value + 10}"
        found.append(step)
        carry = int(value >= 10 if sign == "+" else value < 0)
        first, second = first // 10, second // 10
    return ["-" * turned + found[0], *found[1:]]


def working(first: int, sign: str, second: int, effort: str) -> str:
    """A thought about a sum or a difference, as an effort asks for it.

    Of `478+356` with the effort low what each step comes to, `14 13 8`; with medium the steps themselves; with high also what
    they make together, behind a colon. A difference below 0 begins with a minus.
    """
    worked = steps(first, sign, second)
    if effort == "low":
        turned = sign == "-" and first < second
        return " ".join(["-"] * turned + [step.split("=")[1].removesuffix("+10") for step in worked])
    return " ".join(worked) + (f": {first + second if sign == '+' else first - second}" if effort == "high" else "")


def known(dice: random.Random) -> tuple[str, str, str]:
    """A small question, its right answer, and a wrong one of the same kind."""
    return _KNOWN[dice.randrange(len(_KNOWN))](dice)


def judgement(dice: random.Random) -> tuple[str, str, str, str]:
    """What asks which of two answers is better, the letter of the right one, and both: the right one and the wrong one."""
    question, right, wrong = known(dice)
    better = dice.choice("AB")
    a, b = (right, wrong) if better == "A" else (wrong, right)
    return COMPARE.format(question=question, a=a, b=b), better, right, wrong


def _turn(asked: Any, answer: str, effort: str, thought: str) -> Messages:
    """A question and its answer, with a thought where there is an effort."""
    return _thinking([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], effort, thought)


def _thinking(messages: Messages, effort: str, thought: str) -> Messages:
    """The same conversation with that thought before each answer, where there is an effort."""
    thinks = {"reasoning_effort": effort, "reasoning_content": thought} if effort else {}
    return [message | thinks if message["role"] == "assistant" else message for message in messages]


def _reckon(dice: random.Random, effort: str) -> Messages:
    digits = dice.choice((1, 2, 2, 2, 3))
    first, second = dice.randrange(10 ** (digits - 1), 10**digits), dice.randrange(10**digits)
    sign = dice.choice("++-")
    answer = str(first + second if sign == "+" else first - second)
    # The bare form is that of the suite `arithmetic` and of its tasks for reinforcement.
    asked = f"{first}{sign}{second}=" if dice.random() < 0.3 else dice.choice(SUMS).format(first, sign, second)
    return _turn(asked, answer, effort, working(first, sign, second, effort) if effort else "")


def _look(shown: tuple[np.ndarray, np.ndarray], dice: random.Random) -> Messages:
    pixels, numbers = shown
    index = dice.randrange(len(pixels))
    picture, name = pixels[index], builtin_pictures.NUMBERS[int(numbers[index])]
    if dice.random() < _SHIFT:
        picture = np.roll(picture, (dice.randint(-1, 1), dice.randint(-1, 1)), (0, 1))
    asked = dice.choice(_LOOKS)
    url = f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": asked}]
    answer = name if asked == builtin_pictures.DIGIT_QUESTION else f"a {name}" if name != "eight" else "an eight"
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def _write(dice: random.Random, effort: str) -> Messages:
    made = builtin_functions.function(dice.choice(builtin_functions.TAUGHT), dice)
    said = made.prompt.partition('"""')[2].rpartition('"""')[0]
    return _turn(dice.choice(_WRITES).format(said), f"```python\n{made.prompt}{made.body}```", effort, "a function")


def _compare(dice: random.Random, effort: str) -> Messages:
    asked, better, right, _ = judgement(dice)
    return _turn(asked, better, effort, right)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """(N, 8, 8, 3) uint8 and what they show; none of those that are kept for measuring."""
    levels, numbers = builtin_pictures.digit_arrays("train")
    return builtin_pictures.digit_pixels(levels), numbers


def _of_opposites(dice: random.Random) -> tuple[str, str, str]:
    word, other = dice.sample(list(OPPOSITES), 2)
    return f"What is the opposite of {word}?", OPPOSITES[word], other if other != OPPOSITES[word] else word


def _of_capitals(dice: random.Random) -> tuple[str, str, str]:
    country, other = dice.sample(list(CAPITALS), 2)
    return f"What is the capital of {country}?", CAPITALS[country], CAPITALS[other]


def _of_sums(dice: random.Random) -> tuple[str, str, str]:
    first, second = dice.randint(1, 9), dice.randint(1, 9)
    right = first + second
    return f"What is {first} + {second}?", str(right), str(dice.choice([n for n in range(2, 19) if n != right]))


_SHARES = {"talk": 0.22, "reckon": 0.32, "look": 0.14, "compare": 0.14, "write": 0.06, "obey": 0.12}
"""Of each kind of conversation."""
_KINDS: dict[str, Callable[[random.Random, str], Messages]] = {"reckon": _reckon, "compare": _compare, "write": _write}
_KNOWN: tuple[Callable[[random.Random], tuple[str, str, str]], ...] = (_of_opposites, _of_capitals, _of_sums)
