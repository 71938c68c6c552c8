"""Preferences, moderation and taught guidance in a run's report: what their exams measured beside what each step did.

Each function goes from a `RunRecord` to HTML, an empty string where the run is of another kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tessera.report.charts import Band, Series, legend, line_chart
from tessera.report.exams import decided, error_band, kept, kind_of, main_measure, mark_of, told, unit_of
from tessera.report.parts import NOTHING, column, decimals, figure, section, smoothed, table, whole
from tessera.report.record import RunRecord, mapping_of, number_of

PROBES = {
    "empty": "nothing at all",
    "repeated": "the chosen answer four times over",
    "echo": "the question again",
    "long": "the chosen answer with three answers to other questions behind it",
}
"""What the bad answers are that must not beat a chosen one."""
_LEFT_OUT = ("reinforce", "")


def examined_tiles(run: RunRecord) -> list[tuple[str, str]]:
    """The numbers at the top: label and value."""
    best, last = kept(run), run.steps[-1] if run.steps else {}
    measure, name = main_measure(run)
    return [
        (f"{name}, kept model", told(best, measure)),
        ("before the first step", told(run.exams[0], measure)),
        (f"held-out loss, {unit_of(run)}", decimals(number_of(best, "loss"), 4)),
        (f"step kept, of {whole(number_of(last, 'step'))}", whole(number_of(best, "step"))),
    ]


def held_out_measures(run: RunRecord) -> str:
    """Accuracy, loss and margin, on what is held out and in training."""
    kind = kind_of(run)
    if kind in _LEFT_OUT:
        return ""
    best, rows = kept(run), whole(number_of(kept(run), "rows"))
    measure, name = main_measure(run)
    what = {"nats per pair": "pairs", "nats per prompt": "prompts"}.get(unit_of(run), "texts")
    before = told(run.exams[0], measure)
    first = f"{before} before the first step" if before != NOTHING else "undecided before the first step"
    said = f"{name[0].upper()}{name[1:]}: {first}, {told(best, measure)} after step "
    said += f"{whole(number_of(best, 'step'))}, whose weights are the model since its held-out loss is the least. "
    said += f"{rows} {what} are held out."
    plots = [
        _course(
            run, "accuracy", "Labels on the right side" if kind == "moderation" else "Pairs in the right order", "per cent", 100
        ),
        _course(run, "loss", "Loss", unit_of(run)),
        _course(run, "divergence", "Away from the guided distribution", "nats per token"),
        _course(run, "margin", "Margin: beta times how much more the chosen answer gained", "nats"),
        _course(run, "gap", "How much higher the better answer is scored", "difference of scores"),
        _changes(run),
        _course(run, "chosen_loss", "Loss of the chosen answers", "nats per token"),
        _course(run, "score", "Mean score", "score"),
    ]
    return section("Held out", f'<p class="dim">{said}</p><div class="two half">{"".join(plots)}</div>')


def probes_of_a_reward_model(run: RunRecord) -> str:
    """How many bad answers beat the chosen one they were made of."""
    rows = []
    for kind, found in run.probes.items():
        beaten, of = number_of(mapping_of(found), "beaten"), number_of(mapping_of(found), "of")
        verdict = "holds" if beaten == 0 else "can be fooled"
        mark = f'<span class="status{"" if beaten == 0 else " open"}">{verdict}</span>'
        rows.append((PROBES.get(kind, kind), f"{whole(beaten)} of {whole(of)}", mark))
    text = "Bad answers made of held-out chosen ones. What beats the chosen answer is what reinforcement would find first."
    probed = table(("bad answer", "beat the chosen one", ""), rows, numbers=(1,))
    return section("Attempts to fool it", f'<p class="dim">{text}</p>{probed}') if rows else ""


def _course(run: RunRecord, key: str, caption: str, unit: str, scale: float = 1.0) -> str:
    """One measure over steps: in training, pale and smoothed, and held out, as dots."""
    if not any(key in exam for exam in run.exams):
        return ""
    steps, trained = column(run.steps, "step"), [scale * decided(event, key) for event in run.steps]
    exams, measured = column(run.exams, "step"), [scale * decided(exam, key) for exam in run.exams]
    lines = [
        Series("", steps, trained, "faint"),
        Series("training, smoothed", steps, smoothed(trained, 1 / 4, 1 / 10), "accent"),
        Series("held out", exams, measured, "second", points=True),
    ]
    bands = []
    if key == "accuracy":
        # Of so many that are right or wrong.
        n = number_of(run.exams[0], "rows")
        errors = [math.sqrt(max(y * (100 - y), 0.0) / n) if n > 0 else math.nan for y in measured]
        bands = error_band("one standard error", exams, measured, errors, "band second")
        lines.append(mark_of(run, key, scale))
    return _figure(caption, unit, lines, bands, zero=key == "accuracy")


def _changes(run: RunRecord) -> str:
    """How the log-probabilities of either answer changed since the reference."""
    steps = column(run.exams, "step")
    names = {"chosen_change": ("the chosen answer", "accent"), "rejected_change": ("the rejected one", "second")}
    lines = [Series(name, steps, column(run.exams, key), style, points=True) for key, (name, style) in names.items()]
    return _figure("Change of the log-probability since the start, held out", "nats per answer", lines, [])


def _figure(caption: str, unit: str, lines: Sequence[Series], bands: Sequence[Band], zero: bool = False) -> str:
    chart = line_chart(lines, "step", unit, width=440, height=230, bands=bands, from_zero=zero)
    return figure(caption, legend([*(line for line in lines if line.name), *bands]) + chart) if chart else ""
