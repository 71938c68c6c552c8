"""What is told of the answers of an exam beside how many are right: by effort, how long the thoughts were, and a few to read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tessera.engine.request import Completion
from tessera.posttrain.rollouts import EFFORT, Player
from tessera.posttrain.verifiers import Task
from tessera.tokens.chat import EFFORTS

SHOWN, SHOWN_LETTERS = 6, 1000
"""Answers that are recorded for people to read, and letters of each of their parts."""


def of_answers(
    player: Player, tasks: Sequence[Task], groups: Sequence[Sequence[Completion]], right_GK: np.ndarray
) -> dict[str, Any]:
    """`thought_length` in tokens, and by effort, where anything was thought; of each effort the share of right answers and its
    standard error over tasks; `answers`, one each to a few tasks.

    Args:
        player: that gave the answers.
        groups: answers to each task.
        right_GK: bool, which are right.
    """
    thoughts_GK = np.array([[player.thought_tokens(completion) for completion in group] for group in groups])
    efforts = np.array([task.data.get(EFFORT, "") for task in tasks])
    told: dict[str, Any] = {"thought_length": float(thoughts_GK.mean())} if thoughts_GK.any() else {}
    for effort in EFFORTS:
        if not (these := efforts == effort).any():
            continue
        by_task = right_GK[these].mean(1)
        told[f"pass_at_1_{effort}"] = float(by_task.mean())
        told[f"standard_error_{effort}"] = float(by_task.std(ddof=1) / len(by_task) ** 0.5) if len(by_task) > 1 else math.nan
        told[f"thought_length_{effort}"] = float(thoughts_GK[these].mean())
    right = right_GK[:, 0]
    chosen = _to_show(right, len({*efforts}))
    return told | {"answers": [_shown(player, tasks[at], groups[at][0], bool(right[at])) for at in chosen]}


def _to_show(right: np.ndarray, kinds: int) -> list[int]:
    """Always the same few, from all over the tasks and of each of the `kinds` of effort that these take in turn; and one right or
    one wrong where those are all of the other kind."""
    spread = (place * len(right) // SHOWN for place in range(SHOWN))
    few = sorted({min(at + (place - at) % kinds, len(right) - 1) for place, at in enumerate(spread)})
    missing = {*map(bool, right)} - {bool(right[at]) for at in few}
    return few + [next(at for at in range(len(right)) if bool(right[at]) is kind) for kind in missing]


def _shown(player: Player, task: Task, completion: Completion, right: bool) -> dict[str, Any]:
    """An answer as it is recorded; what is long is cut."""
    thought, answer = player.said(completion)
    texts = {"prompt": task.prompt, "wanted": task.answer, "thought": thought, "answer": answer}
    return {
        "task": task.id, "effort": task.data.get(EFFORT, ""), **{name: text[:SHOWN_LETTERS] for name, text in texts.items()},
        "right": right, "ended": completion.finish_reason == "stop",
    }  # fmt: skip
