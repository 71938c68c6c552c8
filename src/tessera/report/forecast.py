"""The forecast of a run in its report: the ladder and the law over compute, what was sealed, what came of it.

`forecast.json` and `verdict.json` go in as plain data, HTML comes out; an empty string where nothing was foretold. A forecast
that was refused is shown with its reasons and marked as not sealed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tessera.report.charts import Band, Series, legend, line_chart, short

WHISKER = 1.15
"""Half the breadth of an interval in the chart, as a factor in compute."""


def forecast_figure(foretold: Mapping[str, Any], verdict: Mapping[str, Any], ended: float = math.nan) -> str:
    """Words, the chart of loss against compute, and the forecast in numbers.

    Args:
        ended: the finished run's held-out loss, for a forecast that was refused and therefore has no verdict.
    """
    if verdict.get("loss"):
        ended = float(verdict["loss"])
    return forecast_words(foretold, verdict, ended) + (_chart(foretold, ended) if "loss" in foretold else "")


def course_band(foretold: Mapping[str, Any], tokens: float) -> list[Band]:
    """The 90 % band along the run, for the chart of its loss; none where nothing was foretold.

    Args:
        tokens: of the whole run.
    """
    rows = [(row["part"], *row["intervals"]["0.9"]) for row in foretold.get("band", [])]
    if not rows:
        return []
    rows.append((1.0, *foretold["intervals"]["0.9"]))
    return [
        Band(
            "forecast of the held-out loss, 90 %",
            [p * tokens for p, _, _ in rows],
            [a for _, a, _ in rows],
            [b for *_, b in rows],
        )
    ]


def forecast_words(foretold: Mapping[str, Any], verdict: Mapping[str, Any], ended: float = math.nan) -> str:
    """The words alone, as HTML paragraphs, which Markdown shows too; arguments as of `forecast_figure`."""
    if "loss" not in foretold:
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in foretold.get("reasons", []))
        return f"<p>No forecast could be made.</p><ul>{reasons}</ul>" if reasons else ""
    low, high = foretold["intervals"]["0.9"]
    half = (high - low) / 2 / foretold["loss"]
    where = (
        f"{foretold['reach']:.1f} times beyond the largest" if foretold["reach"] > 1 else "for a run no larger than the largest"
    )
    said = (
        f"From {len(foretold['ladder'])} small runs{_shipped(foretold)} the law foretold a held-out loss of "
        f"<b>{foretold['loss']:.3f}</b> nats per token, 90 % between {low:.3f} and {high:.3f} (&plusmn;{half:.1%}), {where}."
    )
    if foretold.get("refused"):
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in foretold["reasons"])
        if math.isfinite(ended):
            said += f" The run ended at <b>{ended:.3f}</b>, {ended / foretold['loss'] - 1:+.2%}; it is not counted."
        said = f"<p><b>Not sealed.</b> The ladder does not carry a forecast:</p><ul>{reasons}</ul><p>{said}</p>"
    else:
        said = f"<p>{said} Sealed {escape(str(foretold['made']))} as <code>{escape(str(foretold['seal'])[:12])}</code>.</p>"
    if verdict.get("void"):
        said += f"<p>Verdict: void, not counted: {escape(str(verdict['void']))}.</p>"
    elif verdict:
        held = [level for level in ("0.5", "0.8", "0.9") if verdict["inside"][level]]
        place = f"inside the {float(held[0]):.0%} interval" if held else "outside the 90 % interval"
        said += f"<p>The run ended at <b>{verdict['loss']:.3f}</b>: {verdict['miss']:+.2%}, {place} (z {verdict['z']:+.2f}).</p>"
    return said


def _shipped(foretold: Mapping[str, Any]) -> str:
    """Of a ladder that was not trained for this run, where it comes from."""
    if not (origin := foretold.get("shipped")):
        return ""
    return f" that ship with the recipe, trained {escape(str(origin['made'])[:10])} elsewhere ({escape(str(origin['machine']))}),"


def _chart(foretold: Mapping[str, Any], ended: float) -> str:
    rungs: Sequence[Mapping[str, Any]] = foretold["ladder"]
    target = foretold["target"]["C"]
    start, end = min(r["C"] for r in rungs), max(target, *(r["C"] for r in rungs))
    xs = [start * (end / start) ** (i / 60) for i in range(61)]
    curves = [
        Series("runs of the ladder", [r["C"] for r in rungs], [r["loss"] for r in rungs], "accent", line=False, points=True)
    ]
    k = foretold["fit"]["coefficients"]
    if foretold["fit"]["form"] == "frontier":
        law = [k["E"] + k["A"] * x ** -k["a"] for x in xs]
        curves.append(Series(f"law: {k['E']:.3f} + {k['A']:.3g} C^-{k['a']:.3f}", xs, law, "faint"))
    if math.isfinite(ended):
        curves.append(Series("this run", [target], [ended], "second", line=False, points=True))
    wide = (target / WHISKER, target * WHISKER)
    bands = [
        Band(f"{float(level):.0%} interval{', not sealed' if foretold.get('refused') else ''}", wide, (low, low), (high, high))
        for level in ("0.9", "0.5")
        for low, high in [foretold["intervals"][level]]
    ]
    axes = "compute (FLOPs, log scale)", "loss (nats per token, log scale)"
    chart = line_chart(curves, *axes, log_y=True, log_x=True, bands=bands)
    reach = f'<p class="dim">Largest run of the ladder {short(max(r["C"] for r in rungs))} FLOPs, this run {short(target)}.</p>'
    return legend([*curves, *bands[:1]]) + chart + reach
