"""Worked examples: every step is right, more effort takes more and smaller steps, and nothing held out is shown."""

from __future__ import annotations

import random

import pytest

from tessera.posttrain import worked
from tessera.posttrain.curriculum import BUILT_IN, open_pool
from tessera.posttrain.verifiers import Task
from tessera.tokens.chat import EFFORTS


def test_the_steps_of_a_dial() -> None:
    task = Task("dial 3*7+4*9+3=", "8")
    assert worked.dial_steps(task) == ["1", "5", "5", "8"]
    assert [worked.thought_of("dial", task, effort) for effort in ("", *EFFORTS)] == ["", "1 5", "1 5 5 8", "1 5 5 8"]


@pytest.mark.parametrize(
    ("prompt", "steps"),
    [
        ("478+356=", "8+6=14 7+5+1=13 4+3+1=8"),
        ("423-158=", "3-8=-5+10=5 2-5-1=-4+10=6 4-1-1=2"),
        ("9-40=", "-0-9=-9+10=1 4-0-1=3"),
        ("0-0=", "0-0=0"),
    ],
)
def test_the_steps_of_a_sum(prompt: str, steps: str) -> None:
    assert " ".join(worked.arithmetic_steps(Task(prompt, ""))) == steps


@pytest.mark.parametrize("name", worked.STEPS)
def test_all_steps_lead_to_the_answer_and_more_effort_takes_more_of_them(name: str) -> None:
    make, (low, high) = BUILT_IN[name]
    dice = random.Random(0)
    tasks = [make(level, dice) for level in range(low, high + 1) for _ in range(50)]
    written = {effort: [worked.thought_of(name, task, effort) for task in tasks] for effort in EFFORTS}
    lengths = [max(map(len, written[effort])) for effort in EFFORTS]
    assert lengths == sorted(set(lengths))
    for task, steps in zip(tasks, written["high"], strict=True):
        digits = [step.rpartition("=")[2] for step in steps.split(" ")]
        # The last step's result, then the last digits of those before it.
        found = digits[-1] if name == "dial" else digits[-1] + "".join(digit[-1] for digit in digits[-2::-1])
        assert int(found) == abs(int(task.answer))


def test_every_effort_is_shown_and_nothing_that_is_held_out() -> None:
    pool = open_pool("dial:4-5", 64, 0)
    examples = list(worked.generate("dial", pool, 250, 0))
    assert [sum(e.effort == effort for e in examples) for effort in ("", *EFFORTS)] == [50, 50, 50, 100]
    assert {e.task.data["level"] for e in examples} == {4, 5}
    assert not {e.task.prompt for e in examples} & {task.prompt for task in pool.held_out}
    assert all(bool(e.thought) == bool(e.effort) for e in examples)
