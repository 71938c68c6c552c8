"""Reinforcement in a run's report: what its exams found, how rollouts and updates went, and answers before and after.

Each function goes from a `RunRecord` to HTML, an empty string where the run is of another kind or did not record such a thing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from tessera.posttrain.alarms import MISMATCH_ALARM, TRUNCATION_ALARM
from tessera.report.charts import Series, legend, line_chart
from tessera.report.exams import efforts_of, error_band, kept, kind_of, mark_of, percents, told
from tessera.report.parts import column, figure, percent, section, shortly, smoothed, whole
from tessera.report.record import Event, RunRecord, items_of, mapping_of, number_of

STYLES = ("second", "accent", "ink")
"""Of lines that stand beside each other, the least effort first."""
MOST_ANSWERS = 8


def reinforced_tiles(run: RunRecord) -> list[tuple[str, str]]:
    """The numbers at the top: label and value."""
    best, last = kept(run), run.steps[-1] if run.steps else {}
    kept_at, of = number_of(best, "step"), number_of(last, "step")
    return [
        ("held-out pass@1 of the kept model", percent(number_of(best, "pass_at_1"))),
        ("before the first step", percent(number_of(run.exams[0], "pass_at_1"))),
        (f"step kept, of {whole(of)}", whole(kept_at)),
        ("rollouts", shortly(sum(n for n in column(run.steps, "rollouts") if math.isfinite(n)))),
    ]


def held_out_answers(run: RunRecord) -> str:
    """pass@1 on the tasks that were held out, by step and by effort."""
    if kind_of(run) != "reinforce":
        return ""
    steps, best, first = column(run.exams, "step"), kept(run), run.exams[0]
    k, tasks = whole(number_of(best, "k")), whole(number_of(best, "tasks"))
    lines = [
        Series(f"pass@{k}: one of {k} answers is right", steps, percents(run.exams, "pass_at_k"), "faint", points=True),
        Series("pass@1", steps, percents(run.exams, "pass_at_1"), "accent", points=True),
        mark_of(run, "pass_at_1", 100),
    ]
    bands = error_band("one standard error", steps, lines[1].ys, percents(run.exams, "standard_error"), "band accent")
    body = legend([*lines, *bands]) + line_chart(lines, "step", "right answers (per cent)", bands=bands, from_zero=True)
    said = f"{told(first, 'pass_at_1')} of the answers to {tasks} held-out tasks were right before the first step, "
    if best is first:
        said += "and no later exam was better, so that the model is the one that the run began with."
    else:
        said += f"{told(best, 'pass_at_1')} after step {whole(number_of(best, 'step'))}, whose weights are the model."
    if _is_paid(run.exams):
        said += " What decides is the reward, which is more than right or wrong."
        rewards = [Series("reward", steps, column(run.exams, "reward"), "accent", points=True), mark_of(run, "reward")]
        chart = line_chart(rewards, "step", "mean reward", width=440, height=230)
        body += f'<div class="two half">{figure("Reward, held out", chart)}</div>'
    if efforts := efforts_of(run.exams):
        body += f'<div class="two half">{_by_effort(run, efforts)}</div>'
        each = (f"{e} {told(first, f'pass_at_1_{e}')} &rarr; {told(best, f'pass_at_1_{e}')}" for e in map(escape, efforts))
        said += f" By effort: {', '.join(each)}."
    return section("Held-out answers", f'<p class="dim">{said}</p>{body}')


def _is_paid(events: Sequence[Event]) -> bool:
    """Whether rewards are more than 0 for wrong and 1 for right."""
    return any(
        math.isfinite(r) and not math.isclose(r, p, abs_tol=1e-9)
        for r, p in zip(column(events, "reward"), column(events, "pass_at_1"), strict=True)
    )


def _by_effort(run: RunRecord, efforts: Sequence[str]) -> str:
    """pass@1 and thoughts of each effort."""
    steps, figures = column(run.exams, "step"), ""
    styles = dict(zip(efforts, STYLES, strict=False))
    lines = [Series(e, steps, percents(run.exams, f"pass_at_1_{e}"), style, points=True) for e, style in styles.items()]
    bands = []
    for line in lines:
        errors = percents(run.exams, f"standard_error_{line.name}")
        bands += error_band(line.name, steps, line.ys, errors, f"band {line.style}")
    chart = line_chart(lines, "step", "right answers (per cent)", width=440, height=230, bands=bands, from_zero=True)
    figures += figure("pass@1 by effort, &plusmn; one standard error" if bands else "pass@1 by effort", legend(lines) + chart)
    thoughts = [Series(e, steps, column(run.exams, f"thought_length_{e}"), style, points=True) for e, style in styles.items()]
    if chart := line_chart(thoughts, "step", "tokens", width=440, height=230, from_zero=True):
        figures += figure("Length of the thoughts by effort, held out", legend(thoughts) + chart)
    return figures


@dataclass(frozen=True)
class Plot:
    """One small chart over steps.

    Args:
        caption, unit: shown.
        keys: fields of the steps and their names in the legend; the first is drawn strongest.
        scale: of the values.
        limit: from which an alarm is raised; nan where there is none.
        log_y, from_zero: as of `line_chart`.
        noisy: drawn smoothed too.
    """

    caption: str
    unit: str
    keys: Mapping[str, str]
    scale: float = 1.0
    limit: float = math.nan
    log_y: bool = False
    from_zero: bool = True
    noisy: bool = True


def rollouts_and_updates(run: RunRecord) -> str:
    """What every step told of its rollouts and of its update."""
    if kind_of(run) != "reinforce":
        return ""
    dtype = str(mapping_of(run.about.get("machine")).get("dtype") or "float32")
    # Where a batch of rollouts makes several updates, the first alone is made by the weights that sampled.
    fresh = [event for event in run.steps if not event.get("age")]
    plots = (
        Plot("Rollouts that were right", "per cent", {"pass_at_1": "pass@1", "pass_at_k": "pass@k of a group"}, 100),
        *([Plot("Reward of a rollout", "mean reward", {"reward": "reward"})] if _is_paid(run.steps) else []),
        Plot("Dead groups: all right or all wrong, not learned from", "per cent of the groups", {"dead_groups": ""}, 100),
        Plot("Entropy of the policy", "nats per token", {"entropy": ""}),
        Plot("Answers that were cut off", "per cent", {"truncated": ""}, 100, 100 * TRUNCATION_ALARM),
        Plot("Length of a rollout", "tokens", {"length": "whole answer", "thought_length": "its thought"}),
        Plot("Gradient norm, before clipping", "norm", {"grad_norm": ""}),
        Plot(
            "Training against rollouts: mean |log p(train) - log p(rollout)|", "nats per token, log scale", {"mismatch": ""},
            limit=MISMATCH_ALARM.get(dtype, math.nan), log_y=True,
        ),
        Plot("Level of the curriculum", "level", {"level": ""}, noisy=False),
        Plot("Tokens whose ratio was clipped", "per cent", {"clipped": ""}, 100),
        Plot("KL to the starting model", "nats per token", {"kl": ""}),
        Plot("Loss of the critic", "half the squared error, per token", {"value_loss": ""}),
        Plot("Returns that the critic foretold: explained variance", "share of 1", {"explained_variance": ""}, from_zero=False),
        Plot("Loss of the examples beside (ptx)", "nats per token, weighted", {"supervised_loss": ""}),
        Plot("Speed of the rollouts", "tokens per second", {"rollout_tokens_per_second": ""}),
    )  # fmt: skip
    figures = "".join(_drawn(plot, fresh if "mismatch" in plot.keys else run.steps) for plot in plots)
    said = "Pale: each step; strong: a running mean. One step is one update."
    return section("Rollouts and updates", f'<p class="dim">{said}</p><div class="two half">{figures}</div>') if figures else ""


def _drawn(plot: Plot, events: Sequence[Event]) -> str:
    """The chart under its caption; an empty string where nothing was told, or nothing but the same number."""
    steps = column(events, "step")
    columns = {name: [plot.scale * value for value in column(events, key)] for key, name in plot.keys.items()}
    columns = {name: values for name, values in columns.items() if sum(map(math.isfinite, values)) > 1}
    if not columns or all(value == 0 or math.isnan(value) for values in columns.values() for value in values):
        return ""
    if not plot.noisy and len({value for values in columns.values() for value in values}) == 1:
        return ""
    lines = []
    for (name, values), style in zip(columns.items(), ("accent", "second"), strict=False):
        if plot.noisy:
            lines += [Series("", steps, values, "faint"), Series(name, steps, smoothed(values, 1 / 4, 1 / 10), style)]
        else:
            lines.append(Series(name, steps, values, style))
    if math.isfinite(plot.limit) and (plot.log_y or max(max(v for v in c if math.isfinite(v)) for c in columns.values()) > 0):
        lines.append(Series("alarm", [0, steps[-1]], [plot.limit, plot.limit], "warn"))
    chart = line_chart(lines, "step", plot.unit, width=440, height=230, log_y=plot.log_y, from_zero=plot.from_zero)
    named = [line for line in lines if line.name]
    return figure(plot.caption, (legend(named) if named else "") + chart) if chart else ""


def answers_before_and_after(run: RunRecord) -> str:
    """Answers to held-out tasks at the first exam, at that of the kept model and at the last; of older runs some rollouts."""
    if kind_of(run) != "reinforce":
        return ""
    shown = [exam for exam in (run.exams[0], kept(run), run.exams[-1]) if items_of(exam.get("answers"))]
    shown = [exam for place, exam in enumerate(shown) if exam not in shown[:place]]
    if not shown:
        return _sampled(run)
    tasks: dict[tuple[str, str], dict[int, Event]] = {}
    for place, exam in enumerate(shown):
        for answer in map(mapping_of, items_of(exam.get("answers"))):
            tasks.setdefault((str(answer.get("task")), str(answer.get("effort"))), {})[place] = answer
    # What changed is seen first, and what was only recorded once is seen last.
    order = sorted(tasks.values(), key=lambda by: (-len(by), len({bool(a.get("right")) for a in by.values()}) < 2))
    blocks = [_answers(by, shown) for by in order[:MOST_ANSWERS]]
    text = "The same tasks with the same random numbers each time, one answer to each; what was thought first is grey."
    more = f"<details><summary>{len(blocks) - 4} more tasks</summary>{''.join(blocks[4:])}</details>" if len(blocks) > 4 else ""
    return section("Answers to held-out tasks", f'<p class="dim">{text}</p>{"".join(blocks[:4])}{more}')


def _answers(by: Mapping[int, Event], shown: Sequence[Event]) -> str:
    """One task and the answers to it, beside each other."""
    one = next(iter(by.values()))
    wanted, effort = str(one.get("wanted") or ""), str(one.get("effort") or "")
    about = [f"wanted: {escape(wanted)}"] * bool(wanted) + [f"effort {escape(effort)}"] * bool(effort)
    columns = ""
    for place, answer in sorted(by.items()):
        step = whole(number_of(shown[place], "step"))
        said = _written(str(answer.get("thought") or ""), str(answer.get("answer") or ""))
        columns += f"<div><h3>step {step} {_verdict(answer)}</h3>{said}</div>"
    asked = f'<pre class="asked">{escape(str(one.get("prompt") or one.get("task") or ""))}</pre>'
    return f'<div class="pair">{asked}<p class="dim">{", ".join(about)}</p><div class="three">{columns}</div></div>'


def _verdict(answer: Event) -> str:
    right = bool(answer.get("right"))
    word = "right" if right else "wrong" if answer.get("ended", True) else "cut off"
    return f'<span class="status{"" if right else " open"}">{word}</span>'


def _written(thought: str, answer: str) -> str:
    thinking = f'<span class="prompt">{escape(thought)}</span>\n' if thought else ""
    return f'<pre>{thinking}<span class="made">{escape(answer)}</span></pre>'


def _sampled(run: RunRecord) -> str:
    """The first rollout of some steps, of runs that did not record the answers of their exams."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for event in run.rollouts:
        rewards, tasks, sample = items_of(event.get("rewards")), items_of(event.get("tasks")), mapping_of(event.get("sample"))
        if not (rewards and items_of(rewards[0]) and tasks and sample):
            continue
        right = number_of({"reward": rewards[0][0]}, "reward") > 0
        head = f"<h3>step {whole(number_of(event, 'step'))} {_verdict({'right': right})}</h3>"
        said = _written("", str(sample.get("text") or ""))
        found[right].append(f'<div>{head}<p class="dim">{escape(str(tasks[0]))}</p>{said}</div>')
    columns = [kind[place * (len(kind) - 1) // 2] for kind in found.values() if len(kind) > 2 for place in range(3)]
    text = "The first rollout of some steps, right ones and wrong ones, the earlier first."
    return section("Rollouts", f'<p class="dim">{text}</p><div class="three">{"".join(columns)}</div>') if columns else ""
