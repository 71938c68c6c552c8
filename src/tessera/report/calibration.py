"""The calibration plot of a ledger: how often runs fell inside intervals, against how often they were said to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tessera.report.charts import Series, legend, line_chart
from tessera.report.style import STYLE


def write_calibration(path: Path, points: Sequence[tuple[float, float]]) -> Path:
    """Writes one self-contained page.

    Args:
        path: of the page.
        points: nominal level and share of runs inside, both between 0 and 1.
    """
    levels, shares = [0.0, *(100 * x for x, _ in points), 100.0], [0.0, *(100 * y for _, y in points), 100.0]
    curves = [
        Series("what was said", [0.0, 100.0], [0.0, 100.0], "faint"),
        Series("what came", levels, shares, "accent", points=True),
    ]
    chart = line_chart(curves, "level of the interval, per cent", "runs inside, per cent", from_zero=True)
    text = (
        f"{len(points)} judged forecasts. Below the diagonal, intervals were too narrow; above it, wider than needed. "
        "With few runs the stairs are coarse."
    )
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>Calibration of forecasts</title><style>{STYLE}</style></head>"
        f"<body><main><section><h2>Calibration of forecasts</h2><p>{text}</p>{legend(curves)}{chart}</section></main></body>"
        "</html>\n",
        encoding="utf-8",
    )
    aside.replace(path)
    return path
