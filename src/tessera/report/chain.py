"""The report of a chain of stages: one page that says what each did and links their reports.

The folder of `tessera reproduce` goes in, `report.html` in it comes out; the reports of its stages are written anew, so that they
know each other.
"""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from tessera.errors import UserError
from tessera.report.card import CARD
from tessera.report.forecast import forecast_figure
from tessera.report.measured import SCORES, read_measured
from tessera.report.page import write_report
from tessera.report.parts import NOTHING, count_of, section, shortly, table, took, value_of, whole, write_page
from tessera.report.record import RunRecord, mapping_of, number_of, read_json
from tessera.report.stages import REPORT, Stage, curve, outcome, stages_of, stages_table
from tessera.run import CHAIN


def write_chain_report(folder: Path) -> Path:
    """Writes `report.html` into a chain's folder and returns its path.

    Raises:
        UserError: it has no readable `chain.json` with a recipe, or damaged evaluations.
    """
    page = mapping_of(read_json(folder / CHAIN))
    if not page.get("recipe"):
        raise UserError(f"{folder} is not the folder of a chain: it has no {CHAIN} that names a recipe.")
    stages = stages_of(folder)
    runs = {stage.name: run for stage in stages if (run := stage.read()) is not None}
    for stage in stages:
        if stage.name in runs:
            write_report(stage.folder)
    name = Path(str(page["recipe"])).stem
    curves = "".join(curve(stage) for stage in stages)
    parts = [
        _headline(folder, name, stages, runs),
        section("Stages", stages_table(stages, folder)) if stages else "",
        section("How they went", f'<div class="two half">{curves}</div>') if curves else "",
        _forecast(runs),
        _measured(folder, name),
        _where(page),
    ]
    return write_page(folder / REPORT, f"{name}: report of a chain", "\n".join(parts))


def _headline(folder: Path, name: str, stages: list[Stage], runs: dict[str, RunRecord]) -> str:
    done = (folder / "model" / "config.json").is_file()
    finished = sum(stage.done for stage in stages)
    words = "finished" if done else f"not finished: {count_of(finished, 'stage')} done"
    status = f'<span class="status{"" if done else " open"}">{words}</span>'
    first, last = (next(iter(runs.values()), None), next(reversed(runs.values()), None))
    seconds = math.fsum(stage.seconds for stage in stages if math.isfinite(stage.seconds))
    measure, _, value = outcome(last) if last else ("", "", NOTHING)
    tiles = [
        (f"{measure}, last stage" if measure else "last stage", value),
        ("stages", whole(len(stages))),
        ("training time, all stages", took(seconds)),
        ("parameters", shortly(number_of(first.about if first else {}, "parameters"))),
    ]
    boxes = "".join(f"<div><b>{shown}</b><span>{label}</span></div>" for label, shown in tiles)
    about = escape(str(first.recipe.get("summary") or "")) if first else ""
    if (folder / CARD).is_file():
        about += f' Its card with samples and limits: <a href="{CARD}">{CARD}</a>.'
    return f'<header><h1>{escape(name)}{status}</h1><p>{about}</p><div class="tiles">{boxes}</div></header>'


def _forecast(runs: dict[str, RunRecord]) -> str:
    """That of the training, the first stage."""
    for run in runs.values():
        ended = next((number_of(e, "loss") for e in reversed(run.evaluations) if e.get("final")), math.nan)
        drawn = forecast_figure(run.forecast, run.verdict, ended)
        return section("Forecast and verdict", drawn) if drawn else ""
    return ""


def _measured(folder: Path, name: str) -> str:
    """What the finished model got in the suites."""
    rows = []
    for row in read_measured(folder / SCORES):
        if row.of in (name, ""):
            error = f" &plusmn; {row.error:.3g}" if math.isfinite(row.error) else ""
            chance = f"{row.chance:.3g}" if math.isfinite(row.chance) else NOTHING
            what = ", ".join(filter(None, (row.measure, row.on)))
            rows.append((escape(row.suite), escape(what), f"{row.value:.4g}{error}", whole(row.n), chance))
    text = "&plusmn; is one standard error over n."
    shown = table(("suite", "measure", "value", "n", "chance"), rows, numbers=(2, 3, 4))
    return section("Measured at the end", f'<p class="dim">{text}</p>{shown}') if rows else ""


def _where(page: dict[str, object]) -> str:
    facts = [(key, page.get(key)) for key in ("command", "budget", "settings", "seed", "commit")]
    facts += list(mapping_of(page.get("machine")).items())
    versions = mapping_of(page.get("versions"))
    facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    rows = [(escape(str(key)), value_of(value)) for key, value in facts if value not in (None, "", [])]
    return section("Where and how it ran", table(("", ""), rows)) if rows else ""
