"""What a run of reinforcement is watched by: an exam on tasks that are held out, and alarms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tessera.posttrain.rollouts import EFFORT, Grade, Player, earnings
from tessera.posttrain.verifiers import Task
from tessera.tokens.chat import EFFORTS
from tessera.train import loop

MISMATCH_ALARM = {"float32": 1e-3, "bfloat16": 5e-2}
"""Mean |log p(train) - log p(rollout)| from which the two no longer are the same policy; 1e-6 and 1e-2 are usual."""
TRUNCATION_ALARM = 0.1


def exam(player: Player, tasks: Sequence[Task], grade: Grade, samples: int, max_tokens: int, seed: int) -> loop.Exam:
    """`samples` answers to each task that is held out: the same tasks with the same random numbers each time."""

    def take() -> Mapping[str, float]:
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
            **by_effort(tasks, by_task),
        }

    # Where rewards are 0 or 1, that is pass@1; a grader may pay for half an answer.
    return loop.Exam(take, "reward")


def by_effort(tasks: Sequence[Task], success: Sequence[float]) -> dict[str, float]:
    """The mean success of the tasks of each effort, where they have one."""
    efforts = [task.data.get(EFFORT) for task in tasks]
    return {
        f"pass_at_1_{effort}": float(np.mean([s for e, s in zip(efforts, success, strict=True) if e == effort]))
        for effort in EFFORTS
        if effort in efforts
    }


class Alarms:
    """An observer that says when training and rollouts part, and when many answers are cut off: each once.

    Args:
        dtype: of the machine.
        tell: those who are told.
    """

    def __init__(self, dtype: str, tell: Sequence[loop.Observer]) -> None:
        self.limit = MISMATCH_ALARM[dtype]
        self.tell = tell
        self._said: set[str] = set()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] != "step":
            return
        # Where a batch makes several updates, the first alone is made by the weights that sampled.
        fresh = event if not event.get("age") else {"step": event["step"]}
        self._watch(
            "mismatch", fresh, self.limit,
            "training and rollouts do not compute the same probabilities (mean |log p - log p| {value:.2g}): what is learned is "
            "not what was sampled; look for a changed temperature, another dtype or a kernel at fault.",
        )  # fmt: skip
        self._watch(
            "truncated", event, TRUNCATION_ALARM,
            "{value:.0%} of the answers were cut off; raise --max-tokens, or count them as wrong by --punish-truncated.",
        )  # fmt: skip

    def _watch(self, name: str, event: Mapping[str, Any], limit: float, words: str) -> None:
        value = event.get(name, 0.0)
        if name not in self._said and not value <= limit:
            self._said.add(name)
            text = f"at step {event['step']:,} " + words.format(value=value)
            for observer in self.tell:
                observer({"event": "note", "step": event["step"], "text": text})
