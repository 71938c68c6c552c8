"""How a fine-tuning job tunes: by examples, preferences or rewards.

What each method wants of a file, what it asks of its stage of `posttrain`, and what its steps and measurements are called in
events, checkpoints and the file of results.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tessera.errors import UserError
from tessera.model import weights
from tessera.posttrain import examples, preference, reinforce, supervised
from tessera.posttrain.curriculum import open_pool, write_tasks
from tessera.posttrain.pairs import read_questions
from tessera.posttrain.verifiers import Task
from tessera.posttrain.verifiers.graders import missing
from tessera.recipe import Recipe
from tessera.tokens import chat
from tessera.tokens.vocabulary import Vocabulary

Kind = Literal["supervised", "dpo", "reinforcement"]
KINDS: tuple[Kind, ...] = ("supervised", "dpo", "reinforcement")
SPLITS = (("train", "the training file"), ("validation", "the validation file"))
TASKS = {"train": "tasks.jsonl", "validation": "held_out.jsonl"}
"""What the rows of `reinforcement` are written to, as its stage reads them."""
_SETTINGS = ("train.threads=1", "train.checkpoint_seconds=15")
_GROUP = 8
"""Answers to a task where `compute_multiplier` says nothing else."""


class Names(NamedTuple):
    """What is told of a step, and of a measurement on what is held out: field of the run's events -> name in the API."""

    step: Mapping[str, str]
    measured: Mapping[str, str]
    event: str
    """Of the measurements."""
    decides: str
    """Which of them says what the best checkpoint is, more being better; empty: the last one is the model."""


NAMES: dict[Kind, Names] = {
    "supervised": Names(
        {"loss": "loss", "accuracy": "mean_token_accuracy"}, {"loss": "loss", "accuracy": "mean_token_accuracy"}, "evaluation", ""
    ),
    "dpo": Names(
        {"loss": "loss", "accuracy": "preference_accuracy", "margin": "reward_margin"},
        {"loss": "loss", "accuracy": "preference_accuracy", "margin": "reward_margin"},
        "exam",
        "mark",
    ),
    "reinforcement": Names(
        {"loss": "loss", "reward": "reward_mean", "length": "completion_tokens_mean", "entropy": "entropy"},
        {"reward": "reward_mean", "length": "completion_tokens_mean"},
        "exam",
        "reward",
    ),
}


def write_wish(
    kind: Kind,
    folder: Path,
    base: Path,
    hyperparameters: Mapping[str, Any],
    seed: int,
    grader: Mapping[str, Any] | None = None,
) -> None:
    """Writes down in a job's folder what `tuner` shall do with the files there.

    Args:
        base: folder of the model to tune.
        hyperparameters: of the method; `auto` leaves one to the rules.
        grader: that rewards answers.
    """
    chosen = {name: None if value == "auto" else value for name, value in hyperparameters.items()}
    train, validation = (str(folder / f"{split}.jsonl") for split, _ in SPLITS)
    held = validation if (folder / "validation.jsonl").exists() else None
    wish: Any
    if kind == "supervised":
        wish = supervised.Wish(
            str(base), train, validation=held, validation_share=0.0, epochs=chosen["n_epochs"],
            batch_size=chosen["batch_size"], rate_multiplier=chosen["learning_rate_multiplier"], seed=seed, settings=_SETTINGS,
        )  # fmt: skip
    elif kind == "dpo":
        wish = preference.Wish(
            "dpo", str(base), train, validation=held, epochs=chosen["n_epochs"],
            batch_size=chosen["batch_size"] or preference.BATCH,
            rate=_rate(preference.RATES["dpo"], chosen, base), beta=chosen["beta"] or 0.1, seed=seed, settings=_SETTINGS,
        )  # fmt: skip
    else:
        effort = chosen["reasoning_effort"]
        every = [f"train.evaluate_every={chosen['eval_interval']}"] if chosen["eval_interval"] else []
        wish = reinforce.Wish(
            str(base), str(folder / TASKS["train"]), "grader", validation=held and str(folder / TASKS["validation"]),
            group=max(2, round(_GROUP * (chosen["compute_multiplier"] or 1.0))), groups=chosen["batch_size"] or 16,
            rate=_rate(reinforce.RATE, chosen, base), max_tokens=chosen["max_tokens"], exam_samples=chosen["eval_samples"] or 4,
            efforts=() if effort in (None, "default") else (str(effort),), seed=seed, settings=(*_SETTINGS, *every),
        )  # fmt: skip
    page = {"kind": kind, "wish": asdict(wish), "epochs": chosen["n_epochs"], "grader": grader}
    (folder / "wish.json").write_text(json.dumps(page), encoding="utf-8")


def check_files(folder: Path) -> None:
    """Reads the files of a job through; those of tasks are written as the stage reads them.

    Raises:
        UserError: a line that is not what the method learns from.
    """
    page = json.loads((folder / "wish.json").read_text(encoding="utf-8"))
    kind: Kind = page["kind"]
    for split, name in SPLITS:
        path = folder / f"{split}.jsonl"
        if not path.exists():
            continue
        if kind == "supervised":
            examples.check(path, name)
        elif kind == "dpo":
            _named(read_questions, path, name, Vocabulary.load(page["wish"]["model"]))
        else:
            tasks = _named(_tasks, path, name, page["grader"])
            write_tasks(folder / TASKS[split], tasks)
            if split == "train" and page["wish"]["validation"] is None:
                _named(lambda file: open_pool(str(file), 1, 0), folder / TASKS[split], name)  # enough to hold some out
            if split == "train" and page["epochs"]:
                # Only now it is known how many there are.
                page["wish"]["steps"] = max(1, math.ceil(page["epochs"] * len(tasks) / page["wish"]["groups"]))
                (folder / "wish.json").write_text(json.dumps(page), encoding="utf-8")


def used(kind: Kind, info: Mapping[str, Any], recipe: Recipe, steps: int) -> dict[str, Any]:
    """The hyperparameters of a prepared run as the API shows them.

    Args:
        info: of the run's folder.
        recipe: of the run.
        steps: of the run.
    """
    rows, epochs = recipe.train.batch_rows or 1, recipe.data.sources[0].epochs or 1
    if kind == "supervised":
        asked = info["asked"]
        size = asked["batch_size"] or max(1, round(info["examples"]["train"] * epochs / steps)) or rows
        return {"n_epochs": int(epochs), "batch_size": size, "learning_rate_multiplier": asked["rate_multiplier"] or 1.0}
    if kind == "dpo":
        asked = info["preference"]
        return {"n_epochs": int(asked["epochs"] or 1), "batch_size": rows, "beta": asked["beta"]}
    asked = info["reinforce"]
    return {
        "n_epochs": math.ceil(steps * asked["groups"] / info["data"][0]["documents"]),
        "batch_size": asked["groups"],
        "compute_multiplier": asked["group"] / _GROUP,
        "eval_interval": recipe.train.evaluate_every,
        "eval_samples": asked["exam_samples"],
        "max_tokens": asked["max_tokens"],
        "reasoning_effort": next(iter(asked["efforts"]), "default"),
    }


def told(kind: Kind, event: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run's event says in the words of the API; None: it is none that is told."""
    names = NAMES[kind]
    if event["event"] == "step":
        return {f"train_{name}": event.get(field) for field, name in names.step.items()}
    if event["event"] == names.event:
        split = "full_valid" if event["final"] else "valid"
        return {f"{split}_{name}": event.get(field) for field, name in names.measured.items()}
    return None


def best_step(kind: Kind, events: list[dict[str, Any]]) -> int:
    """The step whose weights are the model: the first of the best measurements, or the last step."""
    names = NAMES[kind]
    marks = [(event[names.decides], -event["step"]) for event in events if event["event"] == names.event and names.decides]
    return -max(marks)[1] if marks else max(event["step"] for event in events if event["event"] == "step")


def _rate(rule: float, chosen: Mapping[str, Any], base: Path) -> float | None:
    """The rate of the rules times what was asked for."""
    times = chosen["learning_rate_multiplier"]
    return None if times is None else rule * 128 / weights.read_config(base).width * times


def _named(read: Callable[..., Any], path: Path, name: str, *more: Any) -> Any:
    """What `read` finds in a file; a mistake in it is told by the name that its owner knows."""
    try:
        return read(path, *more)
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from None


def _tasks(path: Path, grader: Mapping[str, Any]) -> list[Task]:
    """The rows of a file as tasks: `messages` are asked, the grader sees the whole row as `item`."""
    tasks = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}).") from None
        if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
            raise UserError(f'{where}: a row is {{"messages": [...], ...}}, what is asked and whatever the grader needs.')
        try:
            turns = chat.read(row["messages"])
            chat.render(turns, add_generation_prompt=True)
            if turns[-1].role == "assistant":
                raise UserError("the last message is the assistant's; end with what it is asked.")
            if wrong := missing(grader, row):
                raise UserError(f"{wrong}, which the grader asks for.")
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        prompt = "\n\n".join(turn.content for turn in turns)
        tasks.append(Task(prompt, "", {"messages": row["messages"], "item": row, "grader": grader}, f"line {number}"))
    if not tasks:
        raise UserError(f"{path} holds no row; write one JSON object a line.")
    return tasks
