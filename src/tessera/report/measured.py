"""Measurements as `tessera eval --json` prints them, read back: rows of many suites -> values that can be laid side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.errors import UserError

SCORES, SAMPLES = "evaluations.json", "samples.json"
"""Of a chain: all that was measured, and what the model made in the tour."""
BITS = "bits"
_UNITS = (("bits_per_byte", "bits per byte"), ("bits_per_pixel", "bits per pixel"))


@dataclass(frozen=True)
class Measured:
    """One number that one model got.

    Args:
        of: the model: `starter`, or the recipe of a specialist.
        suite, measure: as in `evals.score.Score`; of bits per byte and pixel their names.
        on: documents that it was measured on; empty where the suite says all.
        value: of it; shares lie between 0 and 1.
        error: standard error, NaN where there is none.
        n: tasks, pairs, documents or pictures; NaN where it is not told.
        chance: what guessing gets, NaN where that is not defined.
        baseline: what the simple method named in `baseline_is` gets; NaN where there is none.
    """

    of: str
    suite: str
    measure: str
    on: str
    value: float
    error: float
    n: float
    chance: float
    baseline: float
    baseline_is: str

    @property
    def what(self) -> tuple[str, str, str]:
        """Equal for what different models got at the same."""
        return self.suite, self.measure, self.on

    @property
    def less_is_better(self) -> bool:
        """Whether it is a loss."""
        return any(word in self.measure for word in ("bits", "nats", "perplexity"))

    @property
    def beats_guessing(self) -> bool | None:
        """Better than chance and than the baseline by more than two standard errors; None where that is not known."""
        known = [value for value in (self.chance, self.baseline) if math.isfinite(value)]
        if not known or math.isnan(self.error):
            return None
        gain = min(known) - self.value if self.less_is_better else self.value - max(known)
        return gain > 2 * self.error


def read_measured(path: Path) -> list[Measured]:
    """The rows of an `evaluations.json`, in order; none where there is no such file.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}).") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} is no list of measurements.")
    return [measured for row in rows for measured in _of_row(row)]


def find(rows: Iterable[Measured], of: str, suite: str, measure: str = "", on: str = "") -> Measured | None:
    """The first of a model that is of this suite and holds these words in its measure and in what it was measured on."""
    return next((r for r in rows if r.of == of and r.suite == suite and measure in r.measure and on in r.on), None)


def _of_row(row: Mapping[str, Any]) -> Iterable[Measured]:
    of, settings = str(row.get("of", "")), row.get("settings")
    on = row.get("on") or (settings.get("on") if isinstance(settings, dict) else "") or ""
    if "measure" in row:
        value, error, n, chance, baseline = (_number(row, k) for k in ("value", "standard_error", "n", "chance", "baseline"))
        suite, measure, than = (str(row.get(key) or "") for key in ("suite", "measure", "baseline_is"))
        yield Measured(of, suite, measure, str(on), value, error, n, chance, baseline, than)
        return
    n = next((_number(row, key) for key in ("documents", "pictures") if key in row), math.nan)
    for key, measure in _UNITS:
        if key in row:
            error = _number(row, "standard_error")
            yield Measured(of, BITS, measure, str(on), _number(row, key), error, n, math.nan, math.nan, "")


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
