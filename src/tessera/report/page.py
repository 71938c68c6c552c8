"""The report of a run: one HTML file that a person opens to see what was trained, how it went and what to do next.

A run's folder goes in, `report.html` beside it comes out, with its drawings inside and nothing fetched from anywhere. The
page is a flat list of sections, each a small function from a `RunRecord` to HTML that returns an empty string where the run
has nothing to say; a new kind of section is one more name in `SECTIONS`. A run may still be going, may have been killed
while it wrote a line, or may have been resumed: whatever can be read is shown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from html import escape
from pathlib import Path

import yaml

from tessera.report.charts import Series, bar_chart, legend, line_chart
from tessera.report.exams import kind_of
from tessera.report.forecast import course_band, forecast_figure
from tessera.report.parts import (
    amount,
    code,
    column,
    count_of,
    decimals,
    figure,
    section,
    shortly,
    smoothed,
    table,
    took,
    value_of,
    whole,
    write_page,
)
from tessera.report.preferred import examined_tiles, held_out_measures, probes_of_a_reward_model
from tessera.report.record import Event, RunRecord, items_of, mapping_of, number_of, read_run
from tessera.report.reinforced import answers_before_and_after, held_out_answers, reinforced_tiles, rollouts_and_updates
from tessera.report.stages import REPORT, part_of, stages_of_this_run
from tessera.report.use import finished, use_it

# Long lists are for the files in the folder; the page shows how they begin.
MOST_ROWS = 25


def write_report(run_folder: Path) -> Path:
    """Writes `report.html` into the run's folder and returns its path.

    Raises:
        UserError: the folder is not that of a run (it holds neither `recipe.yaml` nor `metrics.jsonl`).
    """
    run = read_run(run_folder)
    sections = "\n".join(part(run) for part in SECTIONS)
    return write_page(run_folder / REPORT, f"{_name(run)}: report of a run", sections)


def _headline(run: RunRecord) -> str:
    last, measured = run.steps[-1] if run.steps else {}, run.evaluations[-1] if run.evaluations else {}
    settings, done = mapping_of(run.recipe.get("train")), number_of(last, "tokens")
    planned = number_of(settings, "tokens")
    if finished(run):
        status = '<span class="status">finished</span>'
    elif planned > 0 and math.isfinite(done):
        status = f'<span class="status open">not finished: {done / planned:.0%} of its tokens</span>'
    else:
        status = "" if run.steps else '<span class="status open">not started</span>'
    unit, kind = _unit(measured), kind_of(run)
    if kind:
        tiles = reinforced_tiles(run) if kind == "reinforce" else examined_tiles(run)
    else:
        tiles = [
            (f"bits per {unit}, held out", decimals(number_of(measured, f"bits_per_{unit}"), 3)),
            ("held-out loss, nats per token", decimals(number_of(measured, "loss"), 3)),
            ("last training loss", decimals(number_of(last, "loss"), 3)),
            ("training tokens", shortly(done)),
        ]
    tiles += [
        ("training time", took(number_of(last, "seconds"))),
        ("parameters", shortly(number_of(run.about, "parameters"))),
    ]
    boxes = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for label, value in tiles)
    about = " ".join(escape(str(text)) for text in (run.recipe.get("summary"), run.about.get("model_size_text")) if text)
    return f'<header>{part_of(run)}<h1>{escape(_name(run))}{status}</h1><p>{about}</p><div class="tiles">{boxes}</div></header>'


def _unit(measured: Event) -> str:
    """What the held-out loss is counted by: pixels where there are some, else bytes."""
    return "pixel" if math.isfinite(number_of(measured, "bits_per_pixel")) else "byte"


def _warnings(run: RunRecord) -> str:
    lines = []
    if missed := [event for event in run.steps if event.get("skipped")]:
        where = ", ".join(whole(number_of(event, "step")) for event in missed[:10]) + (", ..." if len(missed) > 10 else "")
        why = "because the loss or the gradient was not finite or far out of the ordinary"
        lines.append(f"{count_of(len(missed), 'update')} skipped {why} (at step {where}).")
    if run.resumes:
        lines.append(f"{count_of(run.resumes, 'resume')} from an earlier step; steps done twice are shown once.")
    if strange := [event for event in run.evaluations if not math.isfinite(number_of(event, "loss"))]:
        lines.append(f"{count_of(len(strange), 'evaluation')} gave no finite loss.")
    lines += [escape(str(event.get("text", ""))) for event in run.notes]
    items = "".join(f"<li>{line}</li>" for line in lines)
    return section("Worth knowing", f"<ul>{items}</ul>", style="warnings") if lines else ""


def _forecast(run: RunRecord) -> str:
    ended = next((number_of(e, "loss") for e in reversed(run.evaluations) if e.get("final")), math.nan)
    figure = forecast_figure(run.forecast, run.verdict, ended)
    return section("Forecast and verdict", figure) if figure else ""


def _loss(run: RunRecord) -> str:
    if run.exams:
        return ""  # of a policy it says nothing, and others show it beside what they hold out
    tokens, losses = column(run.steps, "tokens"), column(run.steps, "loss")
    measured = column(run.evaluations, "tokens"), column(run.evaluations, "loss")
    curves = [
        Series("training loss, each step", tokens, losses, "faint"),
        Series("training loss, smoothed", tokens, smoothed(losses), "accent"),
        Series("held-out loss", *measured, "second", line=False, points=True),
    ]
    drawn = [curve for curve in curves if any(math.isfinite(y) for y in curve.ys)]
    bands = course_band(run.forecast, number_of(mapping_of(run.recipe.get("train")), "tokens"))
    chart = line_chart(drawn, "training tokens", "loss (nats per token, log scale)", log_y=True, bands=bands)
    return section("Loss", legend([*drawn, *bands]) + chart) if chart else ""


def _course(run: RunRecord) -> str:
    tokens = column(run.steps, "tokens")
    unit = _unit(run.evaluations[-1] if run.evaluations else {})
    measured = column(run.evaluations, "tokens"), column(run.evaluations, f"bits_per_{unit}")
    shares = [100 * share for share in column(run.steps, "peak_share")]
    plots = [
        ("Speed", "tokens per second", Series("tokens per second", tokens, column(run.steps, "tokens_per_second")), True),
        ("Share of the matmul peak", "per cent", Series("share", tokens, shares), True),
        ("Learning rate", "learning rate", Series("rate", tokens, column(run.steps, "rate")), True),
        ("Gradient norm, before clipping", "norm", Series("norm", tokens, column(run.steps, "grad_norm")), False),
        (f"Bits per {unit}, held out", f"bits per {unit}", Series(f"bits per {unit}", *measured, "second", points=True), False),
    ]
    figures = ""
    for caption, unit, series, from_zero in plots:
        if sum(map(math.isfinite, series.ys)) < 2 or (caption.startswith("Gradient") and kind_of(run) == "reinforce"):
            continue
        figures += figure(caption, line_chart([series], "training tokens", unit, width=440, height=230, from_zero=from_zero))
    return section("How it went", f'<div class="two">{figures}</div>') if figures else ""


def _comparison(run: RunRecord) -> str:
    trained = number_of(mapping_of(run.baselines.get("trained")), "bits_per_byte")
    if not math.isfinite(trained) and run.evaluations:
        trained = number_of(run.evaluations[-1], "bits_per_byte")
    bars = []
    for key, name in (("untrained", "Untrained model"), ("ngram", "N-gram counts")):
        entry = mapping_of(run.baselines.get(key))
        bars.append((str(entry.get("name") or name), number_of(entry, "bits_per_byte"), "faint"))
    bars = [bar for bar in [*bars, ("This model", trained, "accent")] if math.isfinite(bar[1]) and bar[1] > 0]
    if len(bars) < 2:
        return ""
    text = "Bits needed to write down one byte of the held-out text, the same for all; fewer is better."
    return section("Against baselines", f'<p class="dim">{text}</p>' + bar_chart(bars, "bits per byte"))


def _completions(run: RunRecord) -> str:
    parts = ""
    for item in map(mapping_of, run.completions):
        prompt, reference = str(item.get("prompt") or ""), item.get("reference")
        columns = f"<div><h3>The model</h3>{code(prompt, str(item.get('completion') or ''))}</div>"
        columns += f"<div><h3>What the author wrote</h3>{code(prompt, str(reference))}</div>" if reference else ""
        parts += f'<div class="pair"><h3>{escape(str(item.get("title") or ""))}</h3><div class="two">{columns}</div></div>'
    text = "The prompt is grey, what follows it is coloured. The model was not trained on these documents."
    return section("Completions of held-out text", f'<p class="dim">{text}</p>{parts}') if parts else ""


def _pictures(run: RunRecord) -> str:
    figures = ""
    for item in map(mapping_of, items_of(run.shown.get("drawn"))):
        png, caption, read = (escape(str(item.get(key) or "")) for key in ("png", "caption", "read_as"))
        below = f"<figcaption>&ldquo;{caption}&rdquo;, read as {read}</figcaption>"
        figures += f'<figure><img src="data:image/png;base64,{png}" alt="{caption}">{below}</figure>'
    text = "Drawn by their names, pixel by pixel, and read by a classifier that was trained on real ones alone."
    if seen := mapping_of(run.shown.get("seen")):
        right, of = whole(number_of(seen, "right")), whole(number_of(seen, "of"))
        text += f" Of {of} real ones that it was never shown it names {right} rightly."
    return section("Pictures", f'<p class="dim">{text}</p><div class="drawn">{figures}</div>') if figures else ""


def _sums(run: RunRecord) -> str:
    answers = [mapping_of(item) for item in items_of(run.shown.get("sums"))]
    rows = [
        (escape(str(a.get("question") or "")), escape(str(a.get("answer") or "")), "right" if a.get("right") else "wrong",
         "learned" if a.get("known") else "never shown")
        for a in answers
    ]  # fmt: skip
    known, new = ([bool(a.get("right")) for a in answers if bool(a.get("known")) == known] for known in (True, False))
    text = f"{sum(known)} of {len(known)} sums that it learned are right, and {sum(new)} of {len(new)} that it was never shown."
    folded = f"<details><summary>All of them</summary>{table(('asked', 'answered', '', ''), rows)}</details>"
    return section("Sums in words", f'<p class="dim">{text}</p>{folded}') if rows else ""


def _samples(run: RunRecord) -> str:
    by_prompt: dict[str, list[Event]] = {}
    for event in run.samples:
        by_prompt.setdefault(str(event.get("prompt") or ""), []).append(event)
    parts = ""
    for prompt, events in by_prompt.items():
        shown = [events[0], events[len(events) // 2], events[-1]] if len(events) > 2 else events
        columns = ""
        for event in shown:
            columns += f"<div><h3>step {whole(number_of(event, 'step'))}</h3>{code(prompt, str(event.get('text') or ''))}</div>"
        parts += f'<div class="pair"><div class="three">{columns}</div></div>'
    folded = f"<details><summary>What the model wrote first, midway and last</summary>{parts}</details>"
    return section("Samples during the run", folded) if parts else ""


def _settings(run: RunRecord) -> str:
    # A resumed run may print its settings again; the last word counts.
    latest = {str(event.get("name")): event for event in run.derived}
    rows = []
    for name, event in latest.items():
        rows.append((f"<code>{escape(name)}</code>", value_of(event.get("value")), escape(str(event.get("reason") or ""))))
    chosen = table(("setting", "value", "why"), rows, numbers=(1,)) if rows else ""
    page = escape(yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True)) if run.recipe else ""
    recipe = f"<details><summary>The whole recipe, as run</summary><pre>{page}</pre></details>" if page else ""
    return section("Settings", chosen + recipe) if chosen or recipe else ""


def _data(run: RunRecord) -> str:
    columns = ("documents", "bytes", "exact_duplicates", "near_duplicates", "skipped")
    heads = ("source", "documents kept", "bytes kept", "exact duplicates dropped", "near duplicates dropped", "skipped")
    rows = []
    for source in map(mapping_of, items_of(run.about.get("data"))):
        amounts = (whole(amount(source, key)) for key in columns)
        rows.append((f"<code>{escape(str(source.get('uri') or ''))}</code>", *amounts))
    body = table(heads, rows, numbers=range(1, 6)) if rows else ""
    if run.skipped:
        reasons = Counter(str(event.get("reason")) for event in run.skipped)
        counted = "; ".join(f"{n} {escape(reason)}" for reason, n in reasons.most_common(8))
        counted += "; ..." if len(reasons) > 8 else ""
        listed = [(escape(str(event.get("path"))), escape(str(event.get("reason")))) for event in run.skipped[:MOST_ROWS]]
        files = table(("file", "why"), listed)
        if len(run.skipped) > MOST_ROWS:
            files += f'<p class="dim">{len(run.skipped) - MOST_ROWS} more are in <code>skipped.jsonl</code>.</p>'
        body += f"<details><summary>{count_of(len(run.skipped), 'file')} not read: {counted}</summary>{files}</details>"
    return section("Data", body) if body else ""


def _environment(run: RunRecord) -> str:
    facts = [("command", run.about.get("command")), ("commit", run.about.get("commit"))]
    facts += list(mapping_of(run.about.get("machine")).items())
    facts += [("versions", ", ".join(f"{name} {version}" for name, version in mapping_of(run.about.get("versions")).items()))]
    facts += [("parameters that multiply each token", run.about.get("matmul_parameters"))]
    if seconds := [s for s in column(run.checkpoints, "seconds") if math.isfinite(s)]:
        facts += [("checkpoints", f"{len(seconds)}, {math.fsum(seconds) / len(seconds):.2g} s each")]
    rows = [(escape(str(key).replace("_", " ")), value_of(value)) for key, value in facts if value not in (None, "")]
    return section("Where and how it ran", table(("", ""), rows)) if rows else ""


SECTIONS: tuple[Callable[[RunRecord], str], ...] = (
    _headline,
    stages_of_this_run,
    _forecast,
    _warnings,
    held_out_answers,
    held_out_measures,
    probes_of_a_reward_model,
    rollouts_and_updates,
    answers_before_and_after,
    _loss,
    _comparison,
    _completions,
    _pictures,
    _sums,
    _samples,
    _course,
    _settings,
    _data,
    _environment,
    use_it,
)


def _name(run: RunRecord) -> str:
    """The recipe's name, or the folder's."""
    return str(run.recipe.get("name") or run.folder.resolve().name)
