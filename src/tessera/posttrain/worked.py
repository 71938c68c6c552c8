"""Tasks with their working written out, as far as an effort allows: what a model learns to think from.

An effort says how many steps may be taken before the answer has to be given. Where they do not lead to the end, the rest has to
be found at once, which seldom is right: the more a task needs, the more effort it takes. How many tokens the steps of an effort
take at most is its budget.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.data import builtin_assistant
from tessera.posttrain.curriculum import Pool, dial_digits
from tessera.posttrain.verifiers import Task
from tessera.tokens import chat

TAKEN: dict[str, dict[str, int | None]] = {
    "dial": {"low": 2, "medium": 4, "high": None},
    "arithmetic": {"low": 1, "medium": 2, "high": None},
}
"""Steps of a task that an effort takes; None: all."""
UNTHOUGHT = ""
"""The effort of an answer that comes at once."""
SHOWN = (UNTHOUGHT, "low", "medium", "high", "high")
"""Efforts of the examples, in turn."""


def dial_steps(task: Task) -> list[str]:
    """The digits on the way: `dial 3*7+4*9=`: `1`, `5`, `5`."""
    return list(dial_digits(task.prompt.removeprefix("dial ").removesuffix("=")))


def arithmetic_steps(task: Task) -> list[str]:
    """As `builtin_assistant.steps` has it, `478+356=`: `8+6=14`, `7+5+1=13`, `4+3+1=8`."""
    expression = task.prompt.rstrip("=")
    sign = "+" if "+" in expression else "-"
    first, second = map(int, expression.split(sign))
    return builtin_assistant.steps(first, sign, second)


STEPS: dict[str, Callable[[Task], list[str]]] = {"dial": dial_steps, "arithmetic": arithmetic_steps}
"""Name of generated tasks -> what writes the working of one."""


def thought_of(name: str, task: Task, effort: str) -> str:
    """The steps that an effort takes; none where it is UNTHOUGHT."""
    return " ".join(STEPS[name](task)[: TAKEN[name][effort]]) if effort else ""


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
        yield Example(task, effort, thought_of(name, task, effort))


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Writes examples as supervised tuning reads them."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"messages": example.messages()}) + "\n" for example in examples)
