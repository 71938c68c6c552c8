"""A forecast is sealed before its run starts and judged after it has ended.

`forecast.json` in the run's folder holds what is foretold, with the hashes of code, data, tokenizer and recipe, and a digest
over all of it: whatever is changed later shows. The verdict compares the finished run with it; a run that was stopped early
or whose ingredients changed is void, and is not counted.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tessera.errors import UserError
from tessera.run import RunFolder, write_text

FILE = "forecast.json"
LEVELS = (0.5, 0.8, 0.9, 0.99)
COUNTED = (0.5, 0.8, 0.9)
"""Levels whose hits the ledger counts."""
INGREDIENTS = ("code", "data", "tokenizer", "recipe")


@dataclass(frozen=True)
class Verdict:
    """What became of a sealed forecast.

    Args:
        loss: held-out loss of the finished run, nats per token; None where it is void.
        foretold: the forecast's.
        inside: per level ("0.9"), whether the loss lies in that interval.
        miss: loss / foretold - 1.
        z: the miss in standard deviations of the forecast.
        level: of the narrowest central interval that holds the loss, between 0 and 1.
        interval_score: of the 90 % interval, relative to the foretold loss; less is better (Gneiting, Raftery 2007, eq. 43).
        void: why it is not counted, or None.
    """

    loss: float | None
    foretold: float
    inside: dict[str, bool]
    miss: float | None
    z: float | None
    level: float | None
    interval_score: float | None
    void: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def seal(folder: Path, page: Mapping[str, Any], ingredients: Mapping[str, str]) -> dict[str, Any]:
    """Writes `forecast.json` and returns what stands in it.

    Args:
        folder: of the run.
        page: what is foretold: at least `loss`, `intervals` (level -> [low, high]), `sd`, the relative standard deviation, and
            `degrees` of freedom of Student's t.
        ingredients: hash of each of INGREDIENTS.
    """
    sealed = {**page, **{name: ingredients[name] for name in INGREDIENTS}}
    sealed["seal"] = digest(sealed)
    write_text(folder / FILE, json.dumps(sealed, indent=1))
    return sealed


def read(folder: Path) -> dict[str, Any] | None:
    """What `forecast.json` holds, whether its seal is whole or not; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path} is not JSON; bring the file back as it was written.") from None
    try:
        _look_over(page)
    except (KeyError, TypeError, ValueError) as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else "does not hold a forecast"
        raise UserError(f"{path} {why}; bring the file back as it was written.") from None
    return dict(page)


def _look_over(page: Any) -> None:
    """
    Raises:
        KeyError, TypeError, ValueError: a part that others read is not there, or is something else.
    """
    if "seal" not in page:
        list(page["reasons"])
    if "seal" in page or "loss" in page:
        for level in COUNTED:
            low, high = map(float, page["intervals"][str(level)])
            if not low <= high:
                raise ValueError
        float(page["loss"])
    if "seal" in page:
        for name in ("sd", "degrees", "reach"):
            float(page[name])
        float(page["target"]["C"])
        for part in (*(page[name] for name in ("run", "made", *INGREDIENTS)), page["fit"]["form"]):
            if not isinstance(part, str):
                raise TypeError


def digest(page: Mapping[str, Any]) -> str:
    """SHA-256 over everything but the seal itself."""
    return hashlib.sha256(json.dumps({k: v for k, v in page.items() if k != "seal"}, sort_keys=True).encode()).hexdigest()


def broken(page: Mapping[str, Any], ingredients: Mapping[str, str]) -> str | None:
    """Why the forecast no longer speaks of this run, or None."""
    if page.get("seal") != digest(page):
        return "forecast.json was changed after it was sealed"
    changed = [name for name in INGREDIENTS if page.get(name) != ingredients[name]]
    return f"the {' and the '.join(changed)} changed after the forecast was sealed" if changed else None


def judge(page: Mapping[str, Any], loss: float) -> Verdict:
    """The verdict on a run that ended with that held-out loss."""
    foretold, sd = float(page["loss"]), float(page["sd"])
    inside = {level: bool(low <= loss <= high) for level, (low, high) in page["intervals"].items()}
    miss = loss / foretold - 1
    low, high = (bound / foretold for bound in page["intervals"]["0.9"])
    outside = max(low - loss / foretold, 0.0) + max(loss / foretold - high, 0.0)
    z = math.log(loss / foretold) / sd
    return Verdict(loss, foretold, inside, miss, z, level_of(z, page["degrees"]), high - low + 2 / 0.1 * outside)


def level_of(z: float, degrees: float) -> float:
    """Of the narrowest central interval that holds what lies z standard deviations off, by Student's t."""
    from scipy.special import stdtr  # half a second that a server, which only reads seals, need not wait

    return 2 * float(stdtr(degrees, abs(z))) - 1


def void(page: Mapping[str, Any], why: str) -> Verdict:
    """The verdict on a run that cannot be compared with its forecast."""
    return Verdict(None, float(page["loss"]), {}, None, None, None, None, why)


def outcome(folder: RunFolder, steps: int) -> float | None:
    """The held-out loss of a finished run, NaN of one that diverged; None while it is not finished.

    Args:
        steps: of the whole run.
    """
    last: float | None = None
    for event in folder.events():
        if event["event"] == "evaluation" and event.get("final") and event["step"] == steps:
            last = math.nan if event["loss"] is None else event["loss"]
    return last


def course(rows: Sequence[Mapping[str, Any]], flops: float) -> list[tuple[float, float, float]]:
    """How far above its final loss a run of that size stands on its way, from the curves of the ladder's rungs.

    All runs have the same schedule in parts of their length, so that loss / final loss at one part changes slowly with size;
    its logarithm is taken as linear in log C. How wrong that was about the largest rung, seen from the others, widens it.

    Args:
        rows: of the ladder, with `C`, `loss`, `curve` (part of the run, held-out loss) and `way_loss`, the loss at the end on the
            rows of the curve: fewer than those of `loss`, and by 1 to 3 % easier or harder (rungs of before 2026-12 lack it).
        flops: C of the target.

    Returns:
        Part of the run, loss / final loss there, and the relative standard deviation of that.
    """
    parts = [p / 10 for p in range(1, 10)]
    reached = [r for r in rows if len(r["curve"]) >= 5]
    if len(reached) < 4:
        return []
    x = np.log([r["C"] for r in reached])
    top = x.max()
    lower = x < top - 0.1
    found = []
    for part in parts:
        y = np.log([_at(part, r["curve"]) / r.get("way_loss", r["loss"]) for r in reached])
        expected, sd = _foreseen(x, y, math.log(flops))
        if lower.sum() >= 3 and np.ptp(x[lower]) > 0.1:
            missed = float(y[~lower].mean()) - _foreseen(x[lower], y[lower], top)[0]
            sd = math.hypot(sd, missed * math.sqrt(max(0.0, math.log(flops) - top) / (top - x[lower].max())))
        found.append((part, math.exp(expected), max(0.003, sd)))
    return found


def _foreseen(x: np.ndarray, y: np.ndarray, at: float) -> tuple[float, float]:
    """Where a line through the points stands at `at`, and the standard deviation of a new point there."""
    design = np.stack([np.ones_like(x), x - at], axis=1)
    solved, *_ = np.linalg.lstsq(design, y, rcond=None)
    sd = math.sqrt(float(((y - design @ solved) ** 2).sum()) / max(1, len(y) - 2))
    return float(solved[0]), sd * math.sqrt(1 + float(np.linalg.inv(design.T @ design)[0, 0]))


def _at(part: float, curve: Sequence[Sequence[float]]) -> float:
    """The held-out loss at a part of the run, between its evaluations."""
    return float(np.interp(part, [point[0] for point in curve], [point[1] for point in curve]))


def band(page: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], flops: float) -> list[dict[str, Any]]:
    """Where the held-out loss is to stand along the run: the forecast times the course, with intervals at each level.

    Returns:
        Rows with `part` (of the run), `loss` and `intervals` (level -> [low, high]).
    """
    foretold = float(page["loss"])
    rows_out = []
    for part, ratio, sd in course(rows, flops):
        intervals = {}
        for level, (low, high) in page["intervals"].items():
            quantile = _NORMAL[float(level)]
            half = math.hypot((high - low) / 2 / foretold, quantile * sd)
            intervals[level] = [foretold * ratio * math.exp(-half), foretold * ratio * math.exp(half)]
        rows_out.append({"part": part, "loss": foretold * ratio, "intervals": intervals})
    return rows_out


_NORMAL = {0.5: 0.6745, 0.8: 1.2816, 0.9: 1.6449, 0.99: 2.5758}
"""Two-sided quantiles of the normal distribution at LEVELS."""
