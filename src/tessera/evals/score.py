"""A number that a model got, with all that it means nothing without."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tessera.posttrain.verifiers.measures import mean_and_error


@dataclass(frozen=True)
class Score:
    """One measured number.

    Args:
        suite: like gsm8k.
        measure: like `pass@8, 4-shot`.
        value: of it; shares lie between 0 and 1.
        standard_error: over the `n` tasks (or documents, or pairs); NaN for a single one.
        n: that it was taken over.
        chance: what guessing gets; None where that is not defined.
        baseline: what the simple method named in `baseline_is` gets on the same tasks; None where there is none.
        settings: seed, temperature and whatever else the number depends on.
    """

    suite: str
    measure: str
    value: float
    standard_error: float
    n: int
    chance: float | None
    baseline: float | None
    baseline_is: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For `--json`; NaN is null there."""
        row = dataclasses.asdict(self)
        return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}

    def as_text(self) -> str:
        """For people, on one line."""
        error = "" if math.isnan(self.standard_error) else f" +- {self.standard_error:.4f}"
        chance = "" if self.chance is None else f", chance {self.chance:.4g}"
        baseline = "" if self.baseline is None else f", baseline {self.baseline:.4f} ({self.baseline_is})"
        return f"{self.suite}, {self.measure}: {self.value:.4f}{error}, n = {self.n}{chance}{baseline}"


def share(suite: str, measure: str, marks: Sequence[float], chance: float | None, settings: Mapping[str, Any]) -> Score:
    """How many of the tasks came out right, by a mark between 0 and 1 for each."""
    return Score(suite, measure, *mean_and_error([float(mark) for mark in marks]), len(marks), chance, None, "", settings)
