"""Stages that were trained one after the other: where each stands, and the links between their reports.

A folder with `chain.json` (`tessera reproduce`) holds each stage's run in a folder of its own; one with `stages.json` (`tessera
posttrain chat`, `reason`) is the run of its last stage and holds the earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tessera.report.charts import Series, legend, line_chart
from tessera.report.exams import decided, error_band, kept, kind_of, main_measure, mark_of, percents, told
from tessera.report.parts import NOTHING, column, figure, section, shortly, smoothed, table, took
from tessera.report.record import RunRecord, items_of, mapping_of, number_of, read_json, read_run
from tessera.run import CHAIN

ASKED = "stages.json"
REPORT = "report.html"
_RECIPES = {"reason": (("cold", "sft"), ("", "grpo")), "chat": (("sft", "sft"), ("", "dpo"))}
"""Of ASKED: folders of the stages and their kinds."""
_KINDS = {
    "train": "trained from nothing",
    "sft": "tuned on examples",
    "dpo": "tuned on preferences",
    "grpo": "reinforced by a verifier",
    "reward": "a judge of answers",
}


@dataclass(frozen=True)
class Stage:
    """One of several.

    Args:
        name: of the stage.
        kind: `train`, or the name of its command in `tessera posttrain`.
        folder: of its run.
        seconds: that it took, NaN where that is not told.
        done: it is finished.
    """

    name: str
    kind: str
    folder: Path
    seconds: float = math.nan
    done: bool = True

    def read(self) -> RunRecord | None:
        """What its folder says; None where there is no run yet."""
        begun = (self.folder / "recipe.yaml").is_file() or (self.folder / "metrics.jsonl").is_file()
        return read_run(self.folder) if begun else None


def stages_of(folder: Path) -> list[Stage]:
    """The stages that a folder holds, in their order; none where it holds no chain."""
    if (folder / CHAIN).is_file():
        page = mapping_of(read_json(folder / CHAIN))
        stages = []
        for stage in map(mapping_of, items_of(page.get("stages"))):
            name = str(stage.get("name") or "")
            place = folder / str(stage.get("folder") or name)
            stages.append(Stage(name, str(stage.get("kind") or ""), place, number_of(stage, "seconds")))
        names = {stage.name for stage in stages}
        for name, seconds in mapping_of(page.get("partial")).items():
            if name not in names:
                kind = "train" if not stages else name.partition("-")[0]
                stages.append(Stage(name, kind, folder / name, number_of({"s": seconds}, "s"), done=False))
        return stages
    recipe = _RECIPES.get(str(mapping_of(read_json(folder / ASKED)).get("recipe")), ())
    return [Stage(name or kind, kind, folder / name if name else folder) for name, kind in recipe]


def part_of(run: RunRecord) -> str:
    """Links to the page of the chain that the run is a stage of, and to its other stages."""
    here = run.folder.resolve()
    stages = stages_of(here.parent)
    if here not in [stage.folder for stage in stages]:
        return ""
    page = mapping_of(read_json(here.parent / CHAIN)) or mapping_of(read_json(here.parent / ASKED))
    links = [_link(f"../{REPORT}", Path(str(page.get("recipe"))).stem)]
    for stage in stages:
        if stage.folder == here:
            links.append(f"<b>{escape(stage.name)}</b>")
        elif stage.folder != here.parent:
            links.append(_link(f"../{stage.folder.name}/{REPORT}", stage.name))
        else:
            links.append(_link(f"../{REPORT}", stage.name))
    return f'<p class="links">{links[0]}: {" &rarr; ".join(links[1:])}</p>'


def stages_of_this_run(run: RunRecord) -> str:
    """The stages of which this run is the last."""
    stages = stages_of(run.folder) if run.stages else []
    return section("Stages", stages_table(stages, run.folder)) if len(stages) > 1 else ""


def stages_table(stages: Sequence[Stage], page: Path) -> str:
    """What each did, how long it took and what was measured at its beginning and its end, with links from a page in `page`."""
    rows = []
    for stage in stages:
        run = stage.read()
        steps = run.steps if run else []
        seconds = stage.seconds if math.isfinite(stage.seconds) else number_of(steps[-1] if steps else {}, "seconds")
        measure, first, last = outcome(run) if run else ("", NOTHING, NOTHING)
        name = escape(stage.name)
        if stage.folder != page and (stage.folder / REPORT).is_file():
            name = _link(f"{stage.folder.relative_to(page)}/{REPORT}", stage.name)
        open_mark = "" if stage.done else ' <span class="status open">under way</span>'
        tokens = shortly(number_of(steps[-1] if steps else {}, "tokens"))
        rows.append((name + open_mark, _KINDS.get(stage.kind, escape(stage.kind)), took(seconds), tokens, measure, first, last))
    heads = ("stage", "what it is", "time", "tokens", "measured", "first", "kept")
    return table(heads, rows, numbers=(2, 3, 5, 6))


def outcome(run: RunRecord) -> tuple[str, str, str]:
    """What a run is measured by, the first measurement, and that of the model that was kept."""
    measure, name = main_measure(run)
    measured = run.exams or [event for event in run.evaluations if math.isfinite(number_of(event, "loss"))]
    if not measured:
        return "", NOTHING, NOTHING
    return name, told(measured[0], measure), told(kept(run) if run.exams else measured[-1], measure)


def curve(stage: Stage) -> str:
    """The small chart of a stage: what it is measured by, over its steps."""
    run = stage.read()
    if run is None:
        return ""
    measure, name = main_measure(run)
    share = kind_of(run) in ("reinforce", "preference", "moderation")
    if not run.exams:
        tokens, losses = column(run.steps, "tokens"), column(run.steps, "loss")
        lines = [
            Series("training", tokens, losses, "faint"),
            Series("smoothed", tokens, smoothed(losses), "accent"),
            Series("held out", column(run.evaluations, "tokens"), column(run.evaluations, "loss"), "second", points=True),
        ]
        chart = line_chart(lines, "training tokens", "nats per token, log scale", width=440, height=230, log_y=True)
        return figure(f"{escape(stage.name)}: loss", legend(lines) + chart) if chart else ""
    scale = 100.0 if share else 1.0
    steps = column(run.exams, "step")
    lines = [
        Series(name, steps, [scale * decided(exam, measure) for exam in run.exams], "accent", points=True),
        mark_of(run, measure, scale),
    ]
    errors = percents(run.exams, "standard_error") if measure == "pass_at_1" else [math.nan] * len(steps)
    bands = error_band("one standard error", steps, lines[0].ys, errors, "band accent")
    unit = "per cent" if share else "nats per token"
    chart = line_chart(lines, "step", unit, width=440, height=230, bands=bands, from_zero=True)
    return figure(f"{escape(stage.name)}: {name}", legend([*lines[1:], *bands]) + chart) if chart else ""


def _link(address: str, name: str) -> str:
    return f'<a href="{escape(address)}">{escape(name)}</a>'
