"""`tessera fit`: the law of a table of runs and its forecasts, on the screen or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tessera.scaling.forecast import Forecast, forecast
from tessera.scaling.law import FORMULAS
from tessera.scaling.table import parse_target, read, read_targets


def fit(
    path: str,
    targets: Sequence[str],
    targets_file: str | None,
    where: str | None,
    form: str,
    loss: str,
    level: float,
    as_json: bool,
) -> None:
    """Fits, forecasts and prints. A refused forecast is printed too; only bad input is an error.

    Args:
        path: table of runs; `docs/fit.md` describes it.
        targets: `C=3e21` or `N=1e9,D=2e10`.
        targets_file: a CSV file with more of them.
        where: rows to keep, `C<=1e20 and dataset=rw`.
        form: `auto` or one of `law.FORMS`.
        loss: column that holds the loss.
        level: of the intervals.
        as_json: print JSON.

    Raises:
        UserError: what `table.read`, `table.read_targets`, `table.parse_target` and `forecast` refuse to read.
    """
    asked = [parse_target(text) for text in targets] + (read_targets(targets_file) if targets_file else [])
    table = read(path, where, loss)
    found = forecast(table.runs, asked, form, level, warnings=table.warnings, notes=table.notes)
    print(json.dumps(found.to_json(), indent=1) if as_json else "\n".join(_lines(found, len(table.runs))))


def _lines(found: Forecast, rows: int) -> list[str]:
    lines = [f"{rows} runs, {found.budgets} budgets over {found.decades:.1f} decades of compute"]
    lines += [f"  {note}" for note in found.notes]
    if found.coefficients:
        residual = "" if found.residual_sd is None else f", residual {found.residual_sd:.2%} of the loss"
        lines += ["", f"{found.form}: {FORMULAS[found.form]}{residual}"]
        for name, value in found.coefficients.items():
            ends = found.intervals.get(name)
            lines.append(f"  {name} {value:<12.5g}" + (f" 90 %: {ends[0]:.4g} to {ends[1]:.4g}" if ends else ""))
    if found.backtest:
        lines += [
            "",
            f"Back-test: upper rungs forecast from the lower ones; {found.drift:.2%} per tenfold compute is reckoned with",
        ]
        lines.append(f"  {'seen up to C':>12} {'forecast at':>12} {'times':>7} {'predicted':>10} {'measured':>10} {'error':>8}")
        shown = found.backtest if len(found.backtest) <= 24 else sorted(found.backtest, key=lambda one: -abs(one.error))[:12]
        lines += [
            f"  {b.upto:>12.3g} {b.target:>12.3g} {b.factor:>7.1f} {b.predicted:>10.4f} {b.actual:>10.4f} {b.error:>+8.2%}"
            for b in shown
        ]
        if len(shown) < len(found.backtest):
            lines.append(f"  (the {len(shown)} largest errors of {len(found.backtest)})")
    if found.predictions:
        names = [name for name in found.forms if name != found.form]
        lines += ["", f"Forecasts with {found.level:.0%} intervals" + (", beside them the other forms" if names else "")]
        head = f"  {'N':>9} {'D':>9} {'C':>9} {'loss':>9} {'low':>9} {'high':>9} {'+-':>6} {'beyond':>7}"
        lines.append(head + "".join(f" {name:>9}" for name in names))
        for i, p in enumerate(found.predictions):
            others = "".join(f" {found.forms[name]['losses'][i]:>9.4f}" for name in names)
            lines.append(
                f"  {p.N:>9.3g} {p.D:>9.3g} {p.C:>9.3g} {p.loss:>9.4f} {p.low:>9.4f} {p.high:>9.4f} "
                f"{p.high / p.loss - 1:>6.1%} {p.factor:>6.1f}x{others}"
            )
    if found.warnings:
        lines += ["", "Warnings", *(f"  {warning}" for warning in found.warnings)]
    if found.refused:
        lines += ["", "REFUSED: this ladder cannot support a forecast; the numbers above are for looking at."]
        lines += [f"  {reason}" for reason in found.reasons]
    return lines
