"""Small Python functions, made here: what a docstring says in words, the body does.

Each takes a list of whole numbers, keeps some of them, makes something of each, and gathers what is left: "Return the sum of the
squares of the even numbers in values." A fifth of all combinations of the three stands in no document, so that a model that
writes those has put together what it met apart (compare Codex, arXiv 2107.03374, section 2).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tessera.tokens.document import Document

FUNCTIONS = 20_000
"""Documents that `builtin:functions` yields where no count is named."""
_NAMES = ("f", "g", "compute", "answer", "solve", "result_of", "work_out", "evaluate")
_ARGUMENTS = ("xs", "values", "numbers", "items", "data")


@dataclass(frozen=True)
class Part:
    """One of the three things that a function does.

    Args:
        words: ways to say it; `{k}` is a number from 2 to 9.
        code: an expression or a condition about `x`, or an expression of the list `{found}`.
        does: the same as a function, of x and k or of the list; what tests expect is computed by it.
    """

    words: tuple[str, ...]
    code: str
    does: Callable[..., Any]


KEPT = {
    "all": Part(("the numbers",), "", lambda x, k: True),
    "even": Part(("the even numbers",), "x % 2 == 0", lambda x, k: x % 2 == 0),
    "odd": Part(("the odd numbers",), "x % 2 == 1", lambda x, k: x % 2 == 1),
    "positive": Part(("the positive numbers", "the numbers above zero"), "x > 0", lambda x, k: x > 0),
    "negative": Part(("the negative numbers", "the numbers below zero"), "x < 0", lambda x, k: x < 0),
    "above": Part(("the numbers above {k}", "the numbers greater than {k}"), "x > {k}", lambda x, k: x > k),
    "below": Part(("the numbers below {k}", "the numbers less than {k}"), "x < {k}", lambda x, k: x < k),
    "multiples": Part(("the multiples of {k}", "the numbers divisible by {k}"), "x % {k} == 0", lambda x, k: x % k == 0),
    "others": Part(("the numbers other than {k}",), "x != {k}", lambda x, k: x != k),
}
MADE = {
    "same": Part(("",), "x", lambda x, k: x),
    "squares": Part(("the squares of ",), "x * x", lambda x, k: x * x),
    "doubles": Part(("the doubles of ", "twice "), "2 * x", lambda x, k: 2 * x),
    "opposites": Part(("the opposites of ",), "-x", lambda x, k: -x),
    "sizes": Part(("the sizes of ", "the absolute values of "), "abs(x)", lambda x, k: abs(x)),
    "digits": Part(("the last digits of ",), "abs(x) % 10", lambda x, k: abs(x) % 10),
    "more": Part(("{k} more than ",), "x + {k}", lambda x, k: x + k),
    "less": Part(("{k} less than ",), "x - {k}", lambda x, k: x - k),
    "times": Part(("{k} times ",), "{k} * x", lambda x, k: k * x),
}
GATHERED = {
    "sum": Part(("the sum of ", "the total of "), "sum({found})", sum),
    "number": Part(("the number of different values of ",), "len(set({found}))", lambda found: len(set(found))),
    "largest": Part(("the largest of ", "the maximum of "), "max({found}, default=0)", lambda found: max(found, default=0)),
    "smallest": Part(("the smallest of ", "the minimum of "), "min({found}, default=0)", lambda found: min(found, default=0)),
    "first": Part(("the first of ",), "next(iter({found}), 0)", lambda found: found[0] if found else 0),
    "list": Part(("a list of ", "the list of "), "{found}", list),
    "sorted": Part(("a sorted list of ",), "sorted({found})", sorted),
    "reversed": Part(("a reversed list of ",), "{found}[::-1]", lambda found: found[::-1]),
}

Combination = tuple[str, str, str]
"""Keys of GATHERED, MADE and KEPT."""
_COMBINATIONS: list[Combination] = list(itertools.product(GATHERED, MADE, KEPT))
random.Random("combinations of functions").shuffle(_COMBINATIONS)
_FIFTH = len(_COMBINATIONS) // 5
HELD_OUT, TAUGHT = tuple(_COMBINATIONS[:_FIFTH]), tuple(_COMBINATIONS[_FIFTH:])
"""Combinations that stand in no document, and those that documents are made of."""


@dataclass(frozen=True)
class Function:
    """A function with its tests.

    Args:
        prompt: from `def` to the end of the docstring.
        body: what follows, one of several ways to write it.
        name: of the function.
        tests: assertions, one a line.
    """

    prompt: str
    body: str
    name: str
    tests: str


def functions(count: int) -> Iterator[Document]:
    """That many functions of the combinations in TAUGHT, one document each."""
    for number in range(count):
        dice = random.Random(f"function {number}")
        made = function(dice.choice(TAUGHT), dice)
        yield Document.of_text(made.prompt + made.body, f"functions[{number}]")


def function(combination: Combination, dice: random.Random) -> Function:
    """A function that does this, with words, names, numbers and a way of writing it that the dice choose."""
    gathered, made, kept = GATHERED[combination[0]], MADE[combination[1]], KEPT[combination[2]]
    name, argument = dice.choice(_NAMES), dice.choice(_ARGUMENTS)
    makes_with, keeps_with = dice.randint(2, 9), dice.randint(2, 9)
    words = (
        dice.choice(gathered.words) + dice.choice(made.words).format(k=makes_with) + dice.choice(kept.words).format(k=keeps_with)
    )
    each, condition = made.code.format(k=makes_with), kept.code.format(k=keeps_with)
    if dice.random() < 0.5:
        found = f"[{each} for x in {argument}{' if ' * bool(condition)}{condition}]"
        body = f"    return {gathered.code.format(found=found)}\n"
    else:
        inner = f"        if {condition}:\n            " if condition else "        "
        body = f"    found = []\n    for x in {argument}:\n{inner}found.append({each})\n"
        body += f"    return {gathered.code.format(found='found')}\n"
    # The number that the condition speaks of is in each, or leaving out others than it would look right.
    lists = [[], *(dice.sample([keeps_with, *(dice.randint(-20, 20) for _ in range(size))], size + 1) for size in range(4, 10))]
    tests = ""
    for numbers in lists:
        left = [made.does(x, makes_with) for x in numbers if kept.does(x, keeps_with)]
        tests += f"assert {name}({numbers}) == {gathered.does(left)!r}\n"
    return Function(f'def {name}({argument}):\n    """Return {words} in {argument}."""\n', body, name, tests)
