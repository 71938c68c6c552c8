"""The exam of a run of reinforcement, on tasks that are held out: what it reaches decides which weights are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tessera.posttrain.answers import of_answers
from tessera.posttrain.rollouts import Grade, Player, earnings
from tessera.posttrain.verifiers import Task
from tessera.train import loop


def exam(player: Player, tasks: Sequence[Task], grade: Grade, samples: int, max_tokens: int, seed: int) -> loop.Exam:
    """`samples` answers to each task that is held out: the same tasks with the same random numbers each time."""

    def take() -> Mapping[str, Any]:
        groups = player.play(tasks, samples, max_tokens, f"exam {seed}")
        earned = earnings(grade, tasks, groups)
        right_GK = np.array(
            [
                [r > 0 and c.finish_reason == "stop" for r, c in zip(given, group, strict=True)]
                for given, group in zip(earned, groups, strict=True)
            ]
        )
        done = [c for group in groups for c in group]
        by_task = right_GK.mean(1)
        rewards = [reward for given in earned for reward in given]
        return {
            "reward": sum(rewards) / len(rewards),
            "pass_at_1": float(by_task.mean()),
            "standard_error": float(by_task.std(ddof=1) / len(by_task) ** 0.5) if len(by_task) > 1 else math.nan,
            "pass_at_k": float(right_GK.any(1).mean()),
            "k": samples,
            "tasks": len(tasks),
            "truncated": sum(c.finish_reason != "stop" for c in done) / len(done),
            "length": sum(len(c.ids) for c in done) / len(done),
            **of_answers(player, tasks, groups, right_GK),
        }

    # Where rewards are 0 or 1, that is pass@1; a grader may pay for half an answer.
    return loop.Exam(take, "reward")
