"""`tessera posttrain`: from a trained model and examples to a tuned one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tessera.commands.live import LiveLine, check_tracker, tracker
from tessera.commands.train import say
from tessera.data import builtin_lines
from tessera.device import cache_folder, detect, is_first
from tessera.errors import Interrupted, UserError
from tessera.evals.moderation import measure_moderation
from tessera.model import weights
from tessera.posttrain import distil, moderation, preference, reinforce, stages
from tessera.posttrain import supervised as tuning
from tessera.posttrain.labelled import read_labelled
from tessera.report import write_report
from tessera.run import RunFolder, disk_may_be_full
from tessera.tokens.chat import EFFORTS
from tessera.train import loop, parallel
from tessera.train.objectives import Evaluation

FILES = ("data", "validation", "pairs", "ptx")
"""What may be `builtin:NAME` of `data.builtin_lines` instead of a file."""


def supervised(wanted: Mapping[str, Any], out: str | None, resume: bool) -> Path:
    """Tunes a model on examples; returns the run's folder.

    Args:
        wanted: fields of `Wish` that somebody gave.
        out: the run's folder; by default `runs/MODEL-sft`.
        resume: go on from the last checkpoint in that folder; what is wanted then must be what was.

    Raises:
        UserError: anything that the person can set right.
        RunFailed: the disk is full, or too many steps in a row were useless.
        Interrupted: a signal asked to stop.
    """
    wanted = with_files(wanted)
    path = _place(wanted, out, resume, "sft", "a file of examples")
    with _resumable(path):
        result = _through(tuning, wanted, path, resume)
        if result is not None and not math.isnan(result.loss):
            right = f"{result.accuracy:.1%} of {result.tokens:,} tokens right"
            say(f"held-out loss {result.loss:.4f} nats per token, {right}")
        _say_where(path, result)
    return path


def reinforced(kind: reinforce.Kind, wanted: Mapping[str, Any], out: str | None, resume: bool) -> Path:
    """Trains a model by rewards; returns the run's folder.

    Args:
        kind: `grpo` or `ppo`.
        wanted: fields of `reinforce.Wish` that somebody gave.
        out: the run's folder; by default `runs/MODEL-KIND`.
        resume: go on from the last checkpoint in that folder; what is wanted then must be what was.

    Raises:
        UserError, RunFailed, Interrupted: as `supervised`.
    """
    wanted = with_files(wanted)
    path = _place(wanted, out, resume, kind, "a file of tasks, arithmetic or reversal")
    with _resumable(path):
        result = _through(reinforce, {**wanted, "kind": kind}, path, resume)
        _say_reinforced(path)
        _say_where(path, result)
    return path


def preferred(kind: preference.Kind, wanted: Mapping[str, Any], out: str | None, resume: bool) -> Path:
    """Trains on preferences; returns the run's folder.

    Args:
        kind: `dpo`, the model itself, or `reward`, a model that scores answers.
        wanted: fields of `preference.Wish` that somebody gave.
        out: the run's folder; by default `runs/MODEL-KIND`.
        resume: go on from the last checkpoint in that folder; what is wanted then must be what was.

    Raises:
        UserError, RunFailed, Interrupted: as `supervised`.
    """
    wanted = with_files(wanted)
    path = _place(wanted, out, resume, kind, "a file of preferences")
    with _resumable(path):
        result = _through(preference, {**wanted, "kind": kind}, path, resume)
        _say_preferred(path)
        _say_where(path, result)
    return path


def moderated(wanted: Mapping[str, Any], out: str | None, resume: bool) -> Path:
    """Trains a moderation model; returns the run's folder.

    Args:
        wanted: fields of `moderation.Wish` that somebody gave.
        out: the run's folder; by default `runs/MODEL-moderation`.
        resume: go on from the last checkpoint in that folder; what is wanted then must be what was.

    Raises:
        UserError, RunFailed, Interrupted: as `supervised`.
    """
    path = _place(wanted, out, resume, "moderation", "a file of labelled texts")
    with _resumable(path):
        result = _through(moderation, wanted, path, resume)
        _say_moderated(path)
        _say_where(path, result)
    return path


def distilled(wanted: Mapping[str, Any], out: str | None, resume: bool) -> Path:
    """Teaches a model its own guidance; returns the run's folder.

    Args:
        wanted: fields of `distil.Wish` that somebody gave.
        out: the run's folder; by default `runs/MODEL-distil`.
        resume: go on from the last checkpoint in that folder; what is wanted then must be what was.

    Raises:
        UserError, RunFailed, Interrupted: as `supervised`.
    """
    path = _place({"data": "", **wanted}, out, resume, "distil", "a source")
    with _resumable(path):
        result = _through(distil, wanted, path, resume)
        exams = [event for event in RunFolder(path).events() if event["event"] == "exam"]
        best = max(exams, key=lambda event: event["mark"])
        say(
            f"{exams[0]['divergence']:.4f} nats a token from the guided distribution before, {best['divergence']:.4f} after step "
            f"{best['step']:,}, on {best['rows']} that were held out"
        )
        _say_where(path, result)
    return path


def staged(name: str, wanted: Mapping[str, Any], out: str | None, resume: bool) -> Path:
    """Takes a model through all stages of a recipe; returns the folder of the last one's run.

    Args:
        name: of `stages.RECIPES`.
        wanted: fields of that recipe that somebody gave.
        out: the folder; by default `runs/MODEL-NAME`.
        resume: go on in that folder with the stage that was under way; what is wanted then must be what was.

    Raises:
        UserError, RunFailed, Interrupted: as `supervised`.
    """
    wanted = with_files(wanted)
    path = _place({"data": "", "pairs": "", **wanted} if name == "reason" else wanted, out, resume, name, "a file of examples")
    if name == "chat" and not resume and "pairs" not in wanted:
        raise UserError("--pairs is missing; give a file of preferences (docs/preference.md).")

    def begin() -> None:
        if resume:
            _refuse_changes(wanted, stages.asked(name, path), path)
        else:
            stages.begin(name, wanted, path)

    with _resumable(path, stages.ASKED), parallel.joined() as world:
        world.lead(begin)
        wish = stages.asked(name, path)
        result, number = None, 0
        while (stage := wish.stage(number, path)) is not None:
            number += 1
            say(f"stage {number}: {stage.module.__name__.rpartition('.')[2]}, in {stage.path}")
            prepared = world.share(RunFolder(stage.path).prepared)
            if not prepared:
                world.lead(lambda: stage.module.prepare(stage.wish, stage.path, say))
            result = _tuned(stage.module, stage.path, prepared, world)
            if world.first:
                write_report(stage.path)
            world.barrier()
        (_say_reinforced if name == "reason" else _say_preferred)(path)
        _say_where(path, result)
    return path


def _say_reinforced(path: Path) -> None:
    """The first and the best exam of a run of reinforcement."""
    exams = [event for event in RunFolder(path).events() if event["event"] == "exam"]
    # The reward decides: that is pass@1, where rewards are 0 or 1.
    first, best = exams[0], max(exams, key=lambda event: event["reward"])
    if RunFolder(path).info["reinforce"].get("reward_model") is not None:
        say(f"held-out reward {first['reward']:.3f} before and {best['reward']:.3f} after step {best['step']:,}")
    # One task has no spread.
    error = "" if best["standard_error"] is None else f" (standard error {best['standard_error']:.1%})"
    say(
        f"held-out pass@1 {first['pass_at_1']:.1%} before and {best['pass_at_1']:.1%}{error} after step {best['step']:,}, "
        f"on {best['tasks']} task{'s' * (best['tasks'] > 1)}"
    )
    efforts = [effort for effort in EFFORTS if f"pass_at_1_{effort}" in best]
    if efforts:
        each = (f"{effort} {first[f'pass_at_1_{effort}']:.1%} -> {best[f'pass_at_1_{effort}']:.1%}" for effort in efforts)
        say(f"by effort: {', '.join(each)}")


def _say_preferred(path: Path) -> None:
    """The best exam of a run on preferences."""
    exams = [event for event in RunFolder(path).events() if event["event"] == "exam"]
    best = max(exams, key=lambda event: event["mark"])
    measured = f"{best['accuracy']:.1%} of the held-out pairs in the right order, loss {best['loss']:.4f}"
    say(f"{measured}, after step {best['step']:,}")


def _say_moderated(path: Path) -> None:
    """How well a moderation model ranks what was held out, by category."""
    if not is_first():
        return
    machine = detect("float32")
    moderator = moderation.Moderator(path, machine)
    file = path / "held_out.jsonl"
    for score in measure_moderation(moderator, read_labelled(file), str(file)):
        if score.chance is not None:
            say(f"held out, {score.measure}: {score.value:.3f} of {score.n:,} texts, chance {score.chance:.3f}")


def with_files(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What is wanted, with the files that built-in data is written to; UserError where there is no such data."""
    folder = cache_folder() / "lines"
    return {
        name: str(builtin_lines.write(value, folder)) if name in FILES and str(value).startswith("builtin:") else value
        for name, value in wanted.items()
    }


def _place(wanted: Mapping[str, Any], out: str | None, resume: bool, stage: str, what: str) -> Path:
    """The run's folder; UserError where something is missing that it or the run needs."""
    if missing := [name for name in ("model", "data") if name not in wanted]:
        if not resume:
            raise UserError(f"--{missing[0]} is missing; give --model, a trained model, and --data, {what}.")
        if out is None:
            raise UserError("--resume needs to know the run: give its --out, or --model as it was given then.")
    return Path(out or f"runs/{weights.home(Path(wanted['model'])).name}-{stage}")


@contextmanager
def _resumable(path: Path, mark: str | None = None) -> Iterator[None]:
    """Says of what ends the block whether `--resume` goes on: where the run is prepared, or the file `mark` is there."""
    try:
        with disk_may_be_full(path):
            yield
    except Interrupted as stop:
        there = (path / mark).is_file() if mark else RunFolder(path).prepared
        raise Interrupted(stop.number, stop.step, there) from None


def _through(stage: Any, wanted: Mapping[str, Any], path: Path, resume: bool) -> Evaluation | None:
    """A stage from its beginning, or from where it stopped, to its end; `stage`: its module."""

    def begin() -> None:
        if resume:
            _refuse_changes(wanted, stage.asked(RunFolder.open(path)), path)
        else:
            stage.prepare(stage.Wish(**wanted), path, say)

    with parallel.joined() as world:
        world.lead(begin)
        return _tuned(stage, path, resume, world)


def _tuned(stage: Any, path: Path, resume: bool, world: parallel.World) -> Evaluation | None:
    with _watched(path) as observers:
        result: Evaluation | None = stage.tune(path, resume, observers, say, world)
    # What is told of it is read from its folder.
    world.barrier()
    return result


@contextmanager
def _watched(path: Path) -> Iterator[Callable[[RunFolder], Sequence[loop.Observer]]]:
    """What a person sees of the run, and its tracker."""
    recipe = RunFolder.open(path).recipe
    check_tracker(recipe.train.track)
    live = LiveLine(loop.total_steps(recipe))

    def observers(folder: RunFolder) -> list[loop.Observer]:
        tracking = tracker(recipe.train.track, path, recipe.name)
        return [live, *([tracking] if tracking else [])]

    try:
        yield observers
    finally:
        live.close()


def _say_where(path: Path, result: Evaluation | None) -> None:
    """The last line; writes the report."""
    if not is_first():
        return
    say(f"{'the run is finished: ' if result is None else ''}model {path / 'model'}, report {write_report(path)}")


def _refuse_changes(wanted: Mapping[str, Any], before: Any, path: Path) -> None:
    """A resumed run goes on as it began."""
    for name, value in wanted.items():
        if (kept := getattr(before, name)) != value:
            option = {"settings": "set", "efforts": "effort"}.get(name, name.replace("_", "-"))
            raise UserError(
                f"--{option} is {value} here and {kept} in the run at {path}; leave it as it was, "
                "or start a new run with another --out."
            )
