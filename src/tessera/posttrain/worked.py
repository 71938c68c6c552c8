"""Tasks with their working written out, in coarser or finer steps: what a model learns to think from.

An effort says how much is done in one step, so more of it means more and easier steps: the working is longer, and each part of it
is likelier to be right. The steps of an effort are as long as the tasks make them; how long at most is its budget.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.posttrain.curriculum import Pool, dial_digits
from tessera.posttrain.verifiers import Task
from tessera.tokens import chat

STRIDES = {"dial": {"low": 4, "medium": 2, "high": 1}, "arithmetic": {"low": 8, "medium": 2, "high": 1}}
"""Moves of a dial, or digits, that an effort takes in one step."""
UNTHOUGHT = ""
"""The effort of an answer that comes at once."""
SHOWN = (UNTHOUGHT, "low", "medium", "medium", "medium", "high")
"""Efforts of the examples, in turn: the larger a step, the more examples it takes to learn it."""


def dial_steps(task: Task, stride: int) -> str:
    """The digits on the way: `dial 3*7+4*9=` with the stride 1: `1 5 5`, with 2: `5 5`."""
    digits = dial_digits(task.prompt.removeprefix("dial ").removesuffix("="))
    return " ".join([*digits[stride - 1 : -1 : stride], digits[-1]])


def arithmetic_steps(task: Task, stride: int) -> str:
    """`478+356=` with the stride 1: `8+6=14 7+5+1=13 4+3+1=8`; a difference below 0 the other way round, behind a minus."""
    expression = task.prompt.rstrip("=")
    sign = "+" if "+" in expression else "-"
    first, second = map(int, expression.split(sign))
    turned = sign == "-" and first < second
    if turned:
        first, second = second, first
    base, carry = 10**stride, 0
    steps: list[str] = []
    while first or second or not steps:
        a, b = first % base, second % base
        found = a + b + carry if sign == "+" else a - b - carry
        step = f"{a}{sign}{b}" + (f"{sign}{carry}" if carry else "") + f"={found}"
        if found < 0:
            step += f"+{base}={found + base}"
        steps.append(step)
        carry = int(found >= base if sign == "+" else found < 0)
        first, second = first // base, second // base
    return ("-" if turned else "") + " ".join(steps)


STEPS: dict[str, Callable[[Task, int], str]] = {"dial": dial_steps, "arithmetic": arithmetic_steps}
"""Name of generated tasks -> what writes the working of one, from the task and the stride."""


@dataclass(frozen=True)
class Example:
    """A task with the working that an effort asks for; without one where the effort is UNTHOUGHT."""

    task: Task
    effort: str
    thought: str

    def messages(self) -> list[dict[str, Any]]:
        """As files of examples have it."""
        said = chat.Message("assistant", self.task.answer, self.thought, effort=self.effort)
        return chat.write([chat.Message("user", self.task.prompt), said])


def generate(name: str, pool: Pool, count: int, seed: int) -> Iterator[Example]:
    """Examples of tasks that are not held out, levels in turn and efforts as SHOWN.

    Args:
        name: of STEPS.
        pool: of that name.
    """
    dice = random.Random(f"worked {seed}")
    for number in range(count):
        (task,) = pool.draw(number // len(SHOWN) % len(pool.levels), 1, dice)
        effort = SHOWN[number % len(SHOWN)]
        yield Example(task, effort, STEPS[name](task, STRIDES[name][effort]) if effort else "")


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Writes examples as supervised tuning reads them."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"messages": example.messages()}) + "\n" for example in examples)
