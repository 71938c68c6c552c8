"""What is asked, what is right, and the type of a function that judges: `(task, answer) -> 0 or 1`.

A verifier is a pure function: the same task and the same text give the same number, whoever asks and in whatever order. It pays 1
or nothing; a share of the mark for half an answer is what reinforcement learning finds first and never leaves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """One question.

    Args:
        prompt: what the model reads.
        answer: the right one, where there is one; it may end a worked solution (see `extract`).
        data: what else a verifier needs, and only plain JSON values: a schema, tests, checks with their arguments.
        id: names the task in records; unique in its set.
    """

    prompt: str
    answer: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""


Verifier = Callable[[Task, str], float]
"""From a task and the text of an answer, without its thinking, to 1.0 (right) or 0.0."""

_FRAMES = (
    re.compile(r"<answer>(.*?)</answer>", re.DOTALL),
    re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}"),
    re.compile(r"^####[ \t]*(\S.*)$", re.MULTILINE),
)


def extract(text: str) -> str:
    """The final answer in a text: what stands last in `<answer>...</answer>`, else in `\\boxed{...}`, else behind `####`; the
    whole text where there is none of them. Without white space around it."""
    for frame in _FRAMES:
        if found := frame.findall(text):
            return str(found[-1]).strip()
    return text.strip()
