"""Answers that are compared with the right one: letter by letter, or as numbers."""

from __future__ import annotations

import re
from fractions import Fraction

from tessera.errors import UserError
from tessera.posttrain.verifiers.task import Task, extract

# Three digits of exponent and sixty in all keep a hostile number from becoming one of a gigabyte.
_NUMBER = re.compile(r"([-+\u2212]?)\s?\$?\s?(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:[eE]([-+]?\d{1,3}))?\.?")
_FRACTION = re.compile(r"([-+\u2212]?\d{1,60})\s?/\s?(\d{1,60})")
_LONGEST = 60


def exact(task: Task, answer: str) -> float:
    """1 where the final answer is, letter by letter, the task's; only white space around it does not count.

    Raises:
        UserError: the task has no answer.
    """
    return float(extract(answer) == _gold(task))


def numeric(task: Task, answer: str) -> float:
    """1 where the final answer is one number and nothing else, and equals the task's: 1,234.50 is 1234.5, and $3 is 3.

    `task.data["tolerance"]`, by default 0, is the largest difference allowed; what is compared is read as it is written, not as
    floats.

    Raises:
        UserError: the task has no answer, or it is no number.
    """
    gold = number(_gold(task))
    if gold is None:
        raise UserError(f"task {task.id or task.prompt!r}: the answer {task.answer!r} is no number; use the verifier exact.")
    given = number(extract(answer))
    return float(given is not None and abs(given - gold) <= Fraction(str(task.data.get("tolerance", 0))))


def number(text: str) -> Fraction | None:
    """The number that a text is (integer, decimal, with thousands' commas, exponent, or a fraction), or None."""
    text = text.strip()
    if len(text) > _LONGEST:
        return None
    if fraction := _FRACTION.fullmatch(text):
        above, below = int(fraction[1].replace("\u2212", "-")), int(fraction[2])
        return Fraction(above, below) if below else None
    parts = _NUMBER.fullmatch(text)
    if parts is None or not (parts[2] or parts[3]):
        return None
    value = Fraction((parts[2] or "0").replace(",", "") + (parts[3] or ""))
    return value * Fraction(10) ** int(parts[4] or 0) * (-1 if parts[1] in ("-", "\u2212") else 1)


def _gold(task: Task) -> str:
    gold = extract(task.answer)
    if not gold:
        raise UserError(f"task {task.id or task.prompt!r} has no answer to compare with; give each task an answer.")
    return gold
