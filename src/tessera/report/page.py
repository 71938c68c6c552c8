"""The report of a run: one HTML file that a person opens to see what was trained, how it went and what to do next.

A run's folder goes in, `report.html` beside it comes out, with its drawings inside and nothing fetched from anywhere. The
page is a flat list of sections, each a small function from a `RunRecord` to HTML that returns an empty string where the run
has nothing to say; a new kind of section is one more name in `SECTIONS`. A run may still be going, may have been killed
while it wrote a line, or may have been resumed: whatever can be read is shown.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from tessera.report.charts import Series, bar_chart, duration, legend, line_chart, short
from tessera.report.forecast import course_band, forecast_figure
from tessera.report.record import Event, RunRecord, items_of, mapping_of, number_of, read_run
from tessera.report.style import STYLE

# Long lists are for the files in the folder; the page shows how they begin.
MOST_ROWS = 25
# Stands where a number is missing.
NOTHING = "&ndash;"


def write_report(run_folder: Path) -> Path:
    """Writes `report.html` into the run's folder and returns its path.

    Raises:
        UserError: the folder is not that of a run (it holds neither `recipe.yaml` nor `metrics.jsonl`).
    """
    run = read_run(run_folder)
    sections = "\n".join(section(run) for section in SECTIONS)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(_name(run))}: report of a run</title><style>{STYLE}</style></head>"
        f"<body><main>{sections}</main></body></html>\n"
    )
    path = run_folder / "report.html"
    aside = path.with_name("report.html.part")
    # Generated text may hold lone surrogates, which have no UTF-8.
    aside.write_text(page, encoding="utf-8", errors="replace")
    os.replace(aside, path)
    return path


def _headline(run: RunRecord) -> str:
    last, measured = run.steps[-1] if run.steps else {}, run.evaluations[-1] if run.evaluations else {}
    settings, done = mapping_of(run.recipe.get("train")), number_of(last, "tokens")
    planned = number_of(settings, "tokens")
    # Where rows are filled up with padding, the last step comes before the last token.
    batch_tokens = number_of(settings, "batch_rows") * number_of(settings, "context")
    if done >= planned * 0.99 or number_of(last, "step") * batch_tokens >= planned:
        status = '<span class="status">finished</span>'
    elif planned > 0 and math.isfinite(done):
        status = f'<span class="status open">not finished: {done / planned:.0%} of its tokens</span>'
    else:
        status = "" if run.steps else '<span class="status open">not started</span>'
    unit = _unit(measured)
    tiles = [
        (f"bits per {unit}, held out", _decimals(number_of(measured, f"bits_per_{unit}"), 3)),
        ("held-out loss, nats per token", _decimals(number_of(measured, "loss"), 3)),
        ("last training loss", _decimals(number_of(last, "loss"), 3)),
        ("training tokens", _short(done)),
        ("training time", _duration(number_of(last, "seconds"))),
        ("parameters", _short(number_of(run.about, "parameters"))),
    ]
    boxes = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for label, value in tiles)
    about = " ".join(escape(str(text)) for text in (run.recipe.get("summary"), run.about.get("model_size_text")) if text)
    return f'<header><h1>{escape(_name(run))}{status}</h1><p>{about}</p><div class="tiles">{boxes}</div></header>'


def _unit(measured: Event) -> str:
    """What the held-out loss is counted by: pixels where there are some, else bytes."""
    return "pixel" if math.isfinite(number_of(measured, "bits_per_pixel")) else "byte"


def _warnings(run: RunRecord) -> str:
    lines = []
    if missed := [event for event in run.steps if event.get("skipped")]:
        where = ", ".join(_whole(number_of(event, "step")) for event in missed[:10]) + (", ..." if len(missed) > 10 else "")
        why = "because the loss or the gradient was not finite or far out of the ordinary"
        lines.append(f"{_count(len(missed), 'update')} skipped {why} (at step {where}).")
    if run.resumes:
        lines.append(f"{_count(run.resumes, 'resume')} from an earlier step; steps done twice are shown once.")
    if strange := [event for event in run.evaluations if not math.isfinite(number_of(event, "loss"))]:
        lines.append(f"{_count(len(strange), 'evaluation')} gave no finite loss.")
    lines += [escape(str(event.get("text", ""))) for event in run.notes]
    items = "".join(f"<li>{line}</li>" for line in lines)
    return _section("Worth knowing", f"<ul>{items}</ul>", style="warnings") if lines else ""


def _forecast(run: RunRecord) -> str:
    ended = next((number_of(e, "loss") for e in reversed(run.evaluations) if e.get("final")), math.nan)
    figure = forecast_figure(run.forecast, run.verdict, ended)
    return _section("Forecast and verdict", figure) if figure else ""


def _loss(run: RunRecord) -> str:
    tokens, losses = _column(run.steps, "tokens"), _column(run.steps, "loss")
    measured = _column(run.evaluations, "tokens"), _column(run.evaluations, "loss")
    curves = [
        Series("training loss, each step", tokens, losses, "faint"),
        Series("training loss, smoothed", tokens, _smoothed(losses), "accent"),
        Series("held-out loss", *measured, "second", line=False, points=True),
    ]
    drawn = [curve for curve in curves if any(math.isfinite(y) for y in curve.ys)]
    bands = course_band(run.forecast, number_of(mapping_of(run.recipe.get("train")), "tokens"))
    chart = line_chart(drawn, "training tokens", "loss (nats per token, log scale)", log_y=True, bands=bands)
    return _section("Loss", legend([*drawn, *bands]) + chart) if chart else ""


def _course(run: RunRecord) -> str:
    tokens = _column(run.steps, "tokens")
    unit = _unit(run.evaluations[-1] if run.evaluations else {})
    measured = _column(run.evaluations, "tokens"), _column(run.evaluations, f"bits_per_{unit}")
    shares = [100 * share for share in _column(run.steps, "peak_share")]
    plots = [
        ("Speed", "tokens per second", Series("tokens per second", tokens, _column(run.steps, "tokens_per_second")), True),
        ("Share of the matmul peak", "per cent", Series("share", tokens, shares), True),
        ("Learning rate", "learning rate", Series("rate", tokens, _column(run.steps, "rate")), True),
        ("Gradient norm, before clipping", "norm", Series("norm", tokens, _column(run.steps, "grad_norm")), False),
        (f"Bits per {unit}, held out", f"bits per {unit}", Series(f"bits per {unit}", *measured, "second", points=True), False),
    ]
    figures = ""
    for caption, unit, series, from_zero in plots:
        if sum(map(math.isfinite, series.ys)) < 2:
            continue
        chart = line_chart([series], "training tokens", unit, width=440, height=230, from_zero=from_zero)
        figures += f"<figure><figcaption>{caption}</figcaption>{chart}</figure>"
    return _section("How it went", f'<div class="two">{figures}</div>') if figures else ""


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
    return _section("Against baselines", f'<p class="dim">{text}</p>' + bar_chart(bars, "bits per byte"))


def _completions(run: RunRecord) -> str:
    parts = ""
    for item in map(mapping_of, run.completions):
        prompt, reference = str(item.get("prompt") or ""), item.get("reference")
        columns = f"<div><h3>The model</h3>{_code(prompt, str(item.get('completion') or ''))}</div>"
        columns += f"<div><h3>What the author wrote</h3>{_code(prompt, str(reference))}</div>" if reference else ""
        parts += f'<div class="pair"><h3>{escape(str(item.get("title") or ""))}</h3><div class="two">{columns}</div></div>'
    text = "The prompt is grey, what follows it is coloured. The model was not trained on these documents."
    return _section("Completions of held-out text", f'<p class="dim">{text}</p>{parts}') if parts else ""


def _pictures(run: RunRecord) -> str:
    figures = ""
    for item in map(mapping_of, items_of(run.shown.get("drawn"))):
        png, caption, read = (escape(str(item.get(key) or "")) for key in ("png", "caption", "read_as"))
        below = f"<figcaption>&ldquo;{caption}&rdquo;, read as {read}</figcaption>"
        figures += f'<figure><img src="data:image/png;base64,{png}" alt="{caption}">{below}</figure>'
    text = "Drawn by their names, pixel by pixel, and read by a classifier that was trained on real ones alone."
    if seen := mapping_of(run.shown.get("seen")):
        right, of = _whole(number_of(seen, "right")), _whole(number_of(seen, "of"))
        text += f" Of {of} real ones that it was never shown it names {right} rightly."
    return _section("Pictures", f'<p class="dim">{text}</p><div class="drawn">{figures}</div>') if figures else ""


def _sums(run: RunRecord) -> str:
    answers = [mapping_of(item) for item in items_of(run.shown.get("sums"))]
    rows = [
        (escape(str(a.get("question") or "")), escape(str(a.get("answer") or "")), "right" if a.get("right") else "wrong",
         "learned" if a.get("known") else "never shown")
        for a in answers
    ]  # fmt: skip
    known, new = ([bool(a.get("right")) for a in answers if bool(a.get("known")) == known] for known in (True, False))
    text = f"{sum(known)} of {len(known)} sums that it learned are right, and {sum(new)} of {len(new)} that it was never shown."
    folded = f"<details><summary>All of them</summary>{_table(('asked', 'answered', '', ''), rows)}</details>"
    return _section("Sums in words", f'<p class="dim">{text}</p>{folded}') if rows else ""


def _samples(run: RunRecord) -> str:
    by_prompt: dict[str, list[Event]] = {}
    for event in run.samples:
        by_prompt.setdefault(str(event.get("prompt") or ""), []).append(event)
    parts = ""
    for prompt, events in by_prompt.items():
        shown = [events[0], events[len(events) // 2], events[-1]] if len(events) > 2 else events
        columns = ""
        for event in shown:
            columns += f"<div><h3>step {_whole(number_of(event, 'step'))}</h3>{_code(prompt, str(event.get('text') or ''))}</div>"
        parts += f'<div class="pair"><div class="three">{columns}</div></div>'
    folded = f"<details><summary>What the model wrote first, midway and last</summary>{parts}</details>"
    return _section("Samples during the run", folded) if parts else ""


def _settings(run: RunRecord) -> str:
    # A resumed run may print its settings again; the last word counts.
    latest = {str(event.get("name")): event for event in run.derived}
    rows = []
    for name, event in latest.items():
        rows.append((f"<code>{escape(name)}</code>", _value(event.get("value")), escape(str(event.get("reason") or ""))))
    table = _table(("setting", "value", "why"), rows, numbers=(1,)) if rows else ""
    page = escape(yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True)) if run.recipe else ""
    recipe = f"<details><summary>The whole recipe, as run</summary><pre>{page}</pre></details>" if page else ""
    return _section("Settings", table + recipe) if table or recipe else ""


def _data(run: RunRecord) -> str:
    columns = ("documents", "bytes", "exact_duplicates", "near_duplicates", "skipped")
    heads = ("source", "documents kept", "bytes kept", "exact duplicates dropped", "near duplicates dropped", "skipped")
    rows = []
    for source in map(mapping_of, items_of(run.about.get("data"))):
        amounts = (_whole(_amount(source, column)) for column in columns)
        rows.append((f"<code>{escape(str(source.get('uri') or ''))}</code>", *amounts))
    body = _table(heads, rows, numbers=range(1, 6)) if rows else ""
    if run.skipped:
        reasons = Counter(str(event.get("reason")) for event in run.skipped)
        counted = "; ".join(f"{n} {escape(reason)}" for reason, n in reasons.most_common(8))
        counted += "; ..." if len(reasons) > 8 else ""
        listed = [(escape(str(event.get("path"))), escape(str(event.get("reason")))) for event in run.skipped[:MOST_ROWS]]
        table = _table(("file", "why"), listed)
        if len(run.skipped) > MOST_ROWS:
            table += f'<p class="dim">{len(run.skipped) - MOST_ROWS} more are in <code>skipped.jsonl</code>.</p>'
        body += f"<details><summary>{_count(len(run.skipped), 'file')} not read: {counted}</summary>{table}</details>"
    return _section("Data", body) if body else ""


def _environment(run: RunRecord) -> str:
    facts = [("command", run.about.get("command")), ("commit", run.about.get("commit"))]
    facts += list(mapping_of(run.about.get("machine")).items())
    facts += [("versions", ", ".join(f"{name} {version}" for name, version in mapping_of(run.about.get("versions")).items()))]
    facts += [("parameters that multiply each token", run.about.get("matmul_parameters"))]
    if seconds := [s for s in _column(run.checkpoints, "seconds") if math.isfinite(s)]:
        facts += [("checkpoints", f"{len(seconds)}, {math.fsum(seconds) / len(seconds):.2g} s each")]
    rows = [(escape(str(key).replace("_", " ")), _value(value)) for key, value in facts if value not in (None, "")]
    return _section("Where and how it ran", _table(("", ""), rows)) if rows else ""


def _next(run: RunRecord) -> str:
    folder = shlex.quote(str(run.folder))
    prompts = items_of(mapping_of(run.recipe.get("train")).get("sample_prompts"))
    prompt = next((str(p).splitlines()[0] for p in prompts if str(p).strip()), "Once upon a time")
    resumed = f"tessera train {shlex.quote(_name(run))}"
    if "asked" in run.about:
        resumed = "tessera posttrain sft"
    rows = [
        (f"tessera generate {folder} {shlex.quote(prompt)}", "continue a text"),
        (f"tessera chat {folder}", "talk to it in the terminal"),
        (f"tessera eval {folder}", "measure it"),
        (f"{resumed} --out {folder} --resume", "go on where the run stopped"),
    ]
    table = _table(("", ""), [(f"<code>{escape(command)}</code>", what) for command, what in rows])
    weights = f"<code>{escape(str(run.folder / 'model'))}</code>"
    text = f"The weights in {weights} open in transformers with <code>from_pretrained</code>."
    return _section("Use it", f'{table}<p class="dim">{text}</p>')


SECTIONS: tuple[Callable[[RunRecord], str], ...] = (
    _headline,
    _forecast,
    _warnings,
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
    _next,
)


def _name(run: RunRecord) -> str:
    """The recipe's name, or the folder's."""
    return str(run.recipe.get("name") or run.folder.resolve().name)


def _section(title: str, body: str, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f"<section{kind}><h2>{title}</h2>{body}</section>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table of ready HTML cells; columns in `numbers` are set right."""
    right = set(numbers)
    kinds = [' class="number"' if i in right else "" for i in range(len(heads))]
    top = "".join(f"<th{kind}>{head}</th>" for kind, head in zip(kinds, heads, strict=True))
    lines = [f"<tr>{top}</tr>"] if any(heads) else []
    for row in rows:
        lines.append("<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _code(prompt: str, text: str) -> str:
    """Prompt and continuation, which may have been written with the prompt before it."""
    continuation = text.removeprefix(prompt)
    return f'<pre><span class="prompt">{escape(prompt)}</span><span class="made">{escape(continuation)}</span></pre>'


def _smoothed(values: Sequence[float]) -> list[float]:
    """Running mean; values that are not finite neither count nor show.

    It forgets over a twentieth of what was seen so far, at most a fiftieth of the run: short at first,
    where the loss falls so fast that a longer mean would lag behind it.
    """
    mean, smoothed = 0.0, []
    for i, value in enumerate(values):
        if math.isfinite(value):
            mean += (value - mean) / max(min(i / 20, len(values) / 50), 1)
        smoothed.append(mean if math.isfinite(value) else math.nan)
    return smoothed


def _amount(event: Event, key: str) -> float:
    """The value as a number, or the length of a list of what is counted."""
    return float(len(event[key])) if isinstance(event.get(key), list) else number_of(event, key)


def _column(events: Sequence[Event], key: str) -> list[float]:
    return [number_of(event, key) for event in events]


def _decimals(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING


def _short(value: float) -> str:
    return short(value) if math.isfinite(value) else NOTHING


def _duration(seconds: float) -> str:
    return duration(seconds) if math.isfinite(seconds) else NOTHING


def _whole(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else NOTHING


def _value(value: Any) -> str:
    """A setting or fact of any kind as escaped text: thousands apart, floats to 4 digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple | dict):
        return escape(json.dumps(value, ensure_ascii=False))
    return escape(str(value))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
