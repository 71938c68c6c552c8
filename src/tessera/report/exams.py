"""What the exams of a run say: the held-out measures by which a tuned model is kept, first, kept and last, and their charts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tessera.report.charts import Band, Series
from tessera.report.parts import NOTHING, column, decimals, percent
from tessera.report.record import Event, RunRecord, number_of

KINDS = ("reinforce", "preference", "distil", "moderation")
"""Under which `run.json` keeps what such a run was asked for."""
# In what a held-out loss is counted, by the measure that only that kind has.
_UNITS = {"margin": "nats per pair", "gap": "nats per prompt", "divergence": "nats per token"}


def kind_of(run: RunRecord) -> str:
    """One of KINDS; empty where nothing was held an exam on."""
    if not run.exams:
        return ""
    told = next((kind for kind in KINDS if kind in run.about), "")
    measures = {"pass_at_1": "reinforce", "margin": "preference", "gap": "preference", "divergence": "distil"}
    return told or next((kind for key, kind in measures.items() if key in run.exams[0]), "")


def kept(run: RunRecord) -> Event:
    """The exam whose weights are the model, or would be if the run ended now: the first of the best."""
    decides = next((key for key in ("mark", "reward", "pass_at_1") if any(key in exam for exam in run.exams)), "")
    marks = [mark if math.isfinite(mark) else -math.inf for mark in column(run.exams, decides)]
    return run.exams[marks.index(max(marks))] if marks else {}


def efforts_of(exams: Sequence[Event]) -> list[str]:
    """Efforts that the exams tell apart, the least first."""
    before = "pass_at_1_"
    return [key.removeprefix(before) for key in exams[0] if key.startswith(before)] if exams else []


def main_measure(run: RunRecord) -> tuple[str, str]:
    """The measure that a person looks at first, and its name."""
    measures = {
        "reinforce": ("pass_at_1", "held-out pass@1"),
        "preference": ("accuracy", "held-out pairs in the right order"),
        "distil": ("divergence", "nats a token from the guided distribution"),
        "moderation": ("accuracy", "held-out labels right"),
    }
    return measures.get(kind_of(run), ("loss", "held-out loss, nats per token"))


def unit_of(run: RunRecord) -> str:
    """In what the loss of the exams is counted."""
    return next((unit for key, unit in _UNITS.items() if run.exams and key in run.exams[0]), "nats per label")


def decided(event: Event, measure: str) -> float:
    """A measure of an exam; nan where it is the share of pairs in the right order and no pair is in any, as before the first step
    of DPO, where the model is its own reference."""
    between = number_of(event, "margin" if "margin" in event else "gap")
    return math.nan if measure == "accuracy" and abs(between) < 1e-7 else number_of(event, measure)


def told(event: Event, measure: str) -> str:
    """A measure of an exam or an evaluation for people, with its standard error where it has one."""
    value = decided(event, measure)
    if measure in ("loss", "divergence"):
        return decimals(value, 4)
    error = number_of(event, "standard_error") if measure == "pass_at_1" else math.nan
    if math.isfinite(value) and math.isfinite(error):
        return f"{100 * value:.1f} &plusmn; {100 * error:.1f} %"
    return percent(value) if math.isfinite(value) else NOTHING


def mark_of(run: RunRecord, measure: str, scale: float = 1.0) -> Series:
    """A dot where the model was kept."""
    best = kept(run)
    step = number_of(best, "step")
    name = f"the model that was kept, step {step:,.0f}"
    return Series(name, [step], [scale * number_of(best, measure)], "kept", line=False, points=True)


def error_band(name: str, steps: Sequence[float], shares: Sequence[float], errors: Sequence[float], style: str) -> list[Band]:
    """The ground of one standard error about shares, not below 0; none where there are fewer than two of them."""
    rows = [row for row in zip(steps, shares, errors, strict=True) if all(map(math.isfinite, row))]
    if len(rows) < 2:
        return []
    return [Band(name, [x for x, _, _ in rows], [max(y - e, 0.0) for _, y, e in rows], [y + e for _, y, e in rows], style)]


def percents(events: Sequence[Event], key: str) -> list[float]:
    """The shares of the events as per cent."""
    return [100 * share for share in column(events, key)]
