"""`tessera reproduce RECIPE`: the training that a recipe describes and all stages after it, in one folder, from one budget.

    base/            the training, its ladder and sealed forecast with it
    sft/, dpo/, ...  the stages of `then`, each on the model of the one before
    model/           the last one's model in bf16, with the tokenizers of all media
    chain.json       what was asked for and how long each part took
    evaluations.json what the model is worth; samples.json, samples/: what it made in the tour
    CARD.md          the model card, from all of these records
    report.html      links the reports of the stages

What is finished is kept: whatever stops it, `--resume` goes on with the part that was under way.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import tessera
from tessera import device as devices
from tessera.commands import posttrain
from tessera.commands import train as training
from tessera.commands.exporting import export_model
from tessera.commands.live import duration
from tessera.commands.scorecard import scorecard
from tessera.commands.train import say
from tessera.errors import Interrupted, UserError
from tessera.posttrain import curriculum, supervised
from tessera.recipe import Budget, Later, Recipe
from tessera.report import write_card, write_chain_report
from tessera.report.measured import SCORES
from tessera.run import BASE, CHAIN, KEPT, RunFolder, commit, disk_may_be_full, write_text, writing


def reproduce(
    recipe: str, budget: str | None, overrides: list[str], out: str | None, resume: bool, forecast: bool | None = None
) -> Path:
    """Runs a chain; returns its folder.

    Args:
        recipe: name or path of a page with `then`.
        budget: instead of the page's, for the whole chain.
        overrides: `key=value`, of the page.
        out: the folder; by default `runs/NAME`.
        resume: go on in that folder.
        forecast: as of `tessera train`, for its training.

    Raises:
        UserError: anything that the person can set right.
        RunFailed, Interrupted: as `tessera train`.
    """
    if devices.processes() > 1:
        raise UserError("a chain runs in one process; start it without torchrun, or its stages one by one.")
    intent = training.load(recipe, budget, overrides)
    if not intent.then:
        raise UserError(f"recipe {recipe} has no stages after its training (then: ...); train it by tessera train {recipe}.")
    path = Path(out or f"runs/{intent.name}")
    _refuse_place(path, resume)
    for later in intent.then:
        _check(later)
    asked = {"recipe": recipe, "budget": intent.budget, "settings": overrides, "forecast": forecast, "seed": intent.train.seed}
    try:
        with disk_may_be_full(path):
            owner = RunFolder(path)
            chain = _begin(owner, asked, resume)
            for name, run in _parts(intent, path, recipe, budget, overrides, forecast).items():
                if name not in [stage["name"] for stage in chain["stages"]]:
                    _run(path, chain, name, run)
                    write_chain_report(path)
            if not (path / "model").is_dir():
                export_model(str(path / names_of(intent)[-1]), "hf", str(path / "model"), "bf16")
            if not (path / SCORES).is_file():
                scorecard(path, path / BASE, intent.name, say)
            card, report = write_card(path), write_chain_report(path)
            owner.unlock()
    except Interrupted as stop:
        raise Interrupted(stop.number, stop.step, (path / CHAIN).is_file()) from None
    took = ", ".join(f"{stage['name']} {duration(stage['seconds'])}" for stage in chain["stages"])
    say(f"the chain is finished: {took}; model {path / 'model'}, card {card}, report {report}")
    return path


def names_of(intent: Recipe) -> list[str]:
    """Folders of the stages after the training, in their order."""
    kinds = [later.stage for later in intent.then]
    return [kind if kinds.count(kind) == 1 else f"{kind}-{kinds[: i + 1].count(kind)}" for i, kind in enumerate(kinds)]


def share_of(budget: str, share: float, price_per_hour: float | None = None) -> str:
    """A part of a budget, in its own unit; of money the time that it buys, since a stage knows no price.

    >>> share_of("2h", 0.25)
    '1800s'
    >>> share_of("$20", 0.25, 2.5)
    '7200s'
    """
    whole = Budget.parse(budget)
    if whole.dollars is not None:
        assert price_per_hour is not None  # a recipe without one is refused
        return f"{max(1, round(whole.dollars * share / price_per_hour * 3600))}s"
    if whole.seconds is not None:
        return f"{max(1, round(whole.seconds * share))}s"
    return f"{max(1, round(whole.tokens * share))}tok" if whole.tokens is not None else f"{(whole.flops or 0) * share:.4e}"


def _check(later: Later) -> None:
    """Reads a stage's data, so that a mistake in it is told before hours are spent on what comes first."""
    data = Path(str(posttrain.with_files({"data": later.data})["data"]))
    if later.stage == "sft":
        supervised.check(data)
    elif later.stage == "grpo":
        curriculum.open_pool(later.data, 1, 0)
        if later.ptx is not None:
            supervised.check(Path(str(posttrain.with_files({"ptx": later.ptx})["ptx"])))
    elif not data.is_file():
        raise UserError(f"{later.data} is no file of preferences, which the stage {later.stage} learns from.")


def _refuse_place(path: Path, resume: bool) -> None:
    """Raises UserError where there is no chain to go on with, or where a new one would lie among what is somebody else's."""
    there = (path / CHAIN).is_file()
    if resume and not there:
        raise UserError(f"{path} is no folder of tessera reproduce ({CHAIN} is missing); start one without --resume.")
    if not resume and there:
        raise UserError(f"{path} holds a chain already; give another --out, or --resume to go on with it.")
    if resume or not path.exists():
        return
    # A model in it would be taken for the chain's own. What a server of the box keeps lies where its chain goes by default.
    if not path.is_dir() or any(not file.name.startswith(".") and file.name != KEPT for file in path.iterdir()):
        raise UserError(f"{path} exists already and holds no chain; give another --out.")


def _begin(owner: RunFolder, asked: Mapping[str, Any], resume: bool) -> dict[str, Any]:
    """The chain's record, new or as it was left; its folder belongs to this process from now on."""
    path = owner.path
    file = path / CHAIN
    if not resume:
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
    owner.lock()
    _refuse_place(path, resume)  # again: another process may have been faster
    if not resume:
        machine = devices.detect("auto", None)
        chain = {
            **asked,
            "stages": [],
            "partial": {},
            "commit": commit(),
            "command": " ".join(["tessera", *map(shlex.quote, sys.argv[1:])]),
            "machine": {"cpu": machine.name, "threads": machine.threads},
            "versions": {"tessera": tessera.__version__, "python": sys.version.split()[0], "torch": torch.__version__},
        }
        _keep(path, chain)
        return chain
    chain = json.loads(file.read_text(encoding="utf-8"))
    for name, value in asked.items():
        if chain[name] != value:
            raise UserError(
                f"{name} is {value} here and {chain[name]} in the chain at {path}; leave it as it was, "
                "or start a new one with another --out."
            )
    return dict(chain)


def _keep(path: Path, chain: Mapping[str, Any]) -> None:
    write_text(path / CHAIN, json.dumps(chain, indent=1))


def _run(path: Path, chain: dict[str, Any], name: str, run: Callable[[bool], object]) -> None:
    """One part, from where it stopped, and how long it took, over all its beginnings."""
    say(f"\n{name}, in {path / name}")
    begun, before = time.monotonic(), chain["partial"].get(name, 0.0)
    there = RunFolder(path / name).prepared
    if not there:
        # What was not prepared to the end is made again.
        shutil.rmtree(path / name, ignore_errors=True)
    try:
        run(there)
        seconds = round(before + time.monotonic() - begun, 1)
        kind = "train" if name == BASE else name.partition("-")[0]
        chain["stages"].append({"name": name, "kind": kind, "folder": name, "seconds": seconds})
    finally:
        chain["partial"] = {name: round(before + time.monotonic() - begun, 1)}
        _keep(path, chain)


def _parts(
    intent: Recipe, path: Path, recipe: str, budget: str | None, overrides: list[str], forecast: bool | None
) -> dict[str, Callable[[bool], object]]:
    """Name of each part -> what runs it, told whether it goes on."""
    own = 1 - sum(later.share for later in intent.then)

    def part(share: float) -> str:
        return share_of(intent.budget, share, intent.price_per_hour)

    def base(resume: bool) -> object:
        return training.train(recipe, part(own), [*overrides, "then=[]"], None, str(path / BASE), resume, forecast)

    parts: dict[str, Callable[[bool], object]] = {BASE: base}
    before = path / BASE
    for later, name in zip(intent.then, names_of(intent), strict=True):
        parts[name] = _stage(later, before, path / name, part(later.share), intent.train.seed)
        before = path / name
    return parts


def _stage(later: Later, model: Path, out: Path, budget: str, seed: int) -> Callable[[bool], object]:
    wanted: dict[str, Any] = {
        "model": str(model), "data": later.data, "budget": budget, "seed": seed, "settings": later.settings,
    }  # fmt: skip
    if later.stage == "sft":
        return lambda resume: posttrain.supervised({**wanted, "replay": later.replay}, str(out), resume)
    given = {name: said for name in ("rate", "anchor", "ptx") if (said := getattr(later, name)) is not None}
    if later.stage == "dpo":
        return lambda resume: posttrain.preferred("dpo", {**wanted, **given}, str(out), resume)
    return lambda resume: posttrain.reinforced("grpo", {**wanted, **given, "efforts": later.efforts}, str(out), resume)
