"""What a run's folder says about the run, read for people: whatever can be read is there, whatever state the run was left in."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tessera.errors import UserError

Event = dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder says about it; every part may be empty.

    Args:
        folder: the run's folder.
        recipe: `recipe.yaml`, resolved.
        about: `run.json`: command, commit, versions, machine, data, sizes.
        steps, evaluations, exams, rollouts, samples, checkpoints, derived, notes: the events of `metrics.jsonl` of that kind,
            in order; steps that were done again after a resume stand once.
        resumes: how often the run was taken up again at an earlier step.
        baselines: `baselines.json`: bits per byte of other models on the same held-out documents.
        completions: `completions.json`.
        shown: `shown.json`: sums that were asked for, digits that were drawn, digits that were named.
        skipped: `skipped.jsonl`: files that were not read, and why.
        forecast: `forecast.json`: what was foretold before the run.
        verdict: `verdict.json`: what became of it.
        probes: `probes.json`: how many bad answers fool a reward model.
        stages: `stages.json`: what was asked of all stages of which this run is the last.
    """

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    steps: list[Event] = field(default_factory=list)
    evaluations: list[Event] = field(default_factory=list)
    exams: list[Event] = field(default_factory=list)
    rollouts: list[Event] = field(default_factory=list)
    samples: list[Event] = field(default_factory=list)
    checkpoints: list[Event] = field(default_factory=list)
    derived: list[Event] = field(default_factory=list)
    notes: list[Event] = field(default_factory=list)
    resumes: int = 0
    baselines: dict[str, Any] = field(default_factory=dict)
    completions: list[Any] = field(default_factory=list)
    shown: dict[str, Any] = field(default_factory=dict)
    skipped: list[Event] = field(default_factory=list)
    forecast: dict[str, Any] = field(default_factory=dict)
    verdict: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)


def read_run(run_folder: Path) -> RunRecord:
    """Everything the folder holds about its run.

    Raises:
        UserError: it holds neither `recipe.yaml` nor `metrics.jsonl`.
    """
    if not (run_folder / "recipe.yaml").is_file() and not (run_folder / "metrics.jsonl").is_file():
        raise UserError(f"{run_folder} is not the folder of a run: it has no recipe.yaml and no metrics.jsonl.")
    run = RunRecord(
        run_folder,
        recipe=mapping_of(_read_yaml(run_folder / "recipe.yaml")),
        about=mapping_of(read_json(run_folder / "run.json")),
        baselines=mapping_of(read_json(run_folder / "baselines.json")),
        completions=items_of(read_json(run_folder / "completions.json")),
        shown=mapping_of(read_json(run_folder / "shown.json")),
        skipped=_read_lines(run_folder / "skipped.jsonl"),
        forecast=mapping_of(read_json(run_folder / "forecast.json")),
        verdict=mapping_of(read_json(run_folder / "verdict.json")),
        probes=mapping_of(read_json(run_folder / "probes.json")),
        stages=mapping_of(read_json(run_folder / "stages.json")),
    )
    kinds = {
        "step": run.steps,
        "evaluation": run.evaluations,
        "exam": run.exams,
        "rollouts": run.rollouts,
        "sample": run.samples,
        "checkpoint": run.checkpoints,
        "derived": run.derived,
        "note": run.notes,
    }
    resumes = 0
    for event in _read_lines(run_folder / "metrics.jsonl"):
        if event.get("event") == "step" and run.steps and number_of(event, "step") <= number_of(run.steps[-1], "step"):
            resumes += 1
            for kind in (run.steps, run.evaluations, run.exams, run.rollouts, run.samples):
                kind[:] = [old for old in kind if number_of(old, "step") < number_of(event, "step")]
        if isinstance(kind_of := event.get("event"), str) and kind_of in kinds:
            kinds[kind_of].append(event)
    return RunRecord(**{**run.__dict__, "resumes": resumes})


def number_of(event: Event, key: str) -> float:
    """The value as a number; nan where it is missing or none."""
    value = event.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def mapping_of(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def items_of(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return list(value) if isinstance(value, list | tuple) else []


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def read_json(path: Path) -> Any:
    """What a file of JSON holds; None where it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _read_lines(path: Path) -> list[Event]:
    """The JSON objects of a file of lines. A line cut off by a kill is left out, wherever a resumed run wrote on after it."""
    if not path.is_file():
        return []
    events = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                events.append(event)
    return events
