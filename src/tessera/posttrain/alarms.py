"""What is watched while a model is reinforced, and the limits from which a person is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.train.loop import Observer

MISMATCH_ALARM = {"float32": 1e-3, "bfloat16": 5e-2}
"""By the dtype that is computed in: mean |log p(train) - log p(rollout)| from which the two no longer are the same policy; 1e-6
and 1e-2 are usual."""
TRUNCATION_ALARM = 0.1
"""Share of the answers that are cut off."""


class Alarms:
    """An observer that says when training and rollouts part, and when many answers are cut off: each once.

    Args:
        dtype: of the machine.
        tell: those who are told.
        punished: answers that are cut off count as wrong already.
    """

    def __init__(self, dtype: str, tell: Sequence[Observer], punished: bool = False) -> None:
        self.limit = MISMATCH_ALARM[dtype]
        self.tell = tell
        self.remedy = "raise --max-tokens" + ("" if punished else ", or count them as wrong by --punish-truncated")
        self._said: set[str] = set()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] != "step":
            return
        # Where a batch of rollouts makes several updates, the first alone is made by the weights that sampled.
        fresh = event if not event.get("age") else {"step": event["step"]}
        self._watch(
            "mismatch", fresh, self.limit,
            "training and rollouts do not compute the same probabilities (mean |log p - log p| {value:.2g}): what is learned is "
            "not what was sampled; look for a changed temperature, another dtype or a kernel at fault.",
        )  # fmt: skip
        self._watch(
            "truncated", event, TRUNCATION_ALARM,
            "{value:.0%} of the answers were cut off; " + self.remedy + ".",
        )  # fmt: skip

    def _watch(self, name: str, event: Mapping[str, Any], limit: float, words: str) -> None:
        value = event.get(name, 0.0)
        if name not in self._said and not value <= limit:
            self._said.add(name)
            text = f"at step {event['step']:,} " + words.format(value=value)
            for observer in self.tell:
                observer({"event": "note", "step": event["step"], "text": text})
