"""A prepared run's folder -> its finished model: opened, taken up at the last checkpoint, trained, saved. All stages end here."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tessera
from tessera import device as devices
from tessera.data.shards import Shards
from tessera.model import weights
from tessera.recipe import Recipe
from tessera.run import RunFolder
from tessera.tokens.vocabulary import Vocabulary
from tessera.train import checkpoint, loop, lora
from tessera.train.job import assemble
from tessera.train.objectives import Evaluation
from tessera.train.parallel import World

Build = Callable[[devices.Machine, Sequence[loop.Observer]], loop.Job]
"""From the machine and the observers to the job of a prepared folder."""


def launch(
    folder: RunFolder,
    vocabulary: Vocabulary,
    shards: Shards | None,
    world: World,
    resume: bool,
    observers: Callable[[], Sequence[loop.Observer]],
    say: Callable[[str], None],
    build: Build | None = None,
    best: bool = False,
    companions: Callable[[Path], None] | None = None,
) -> Evaluation | None:
    """Trains what the folder describes and writes `model/`.

    Args:
        folder: prepared, and owned by this process where it is the first.
        vocabulary, shards: of the run; `shards` are None where `build` needs none.
        world: this process among several.
        resume: from its last checkpoint where there is one; False: from the weights that a run starts from.
        observers: makes those that are told the events; called if there is something left to train.
        say: told where it goes on, and of damaged checkpoints.
        build: makes the job; None: `assemble`, from the shards.
        best: the model is that of the best checkpoint, not of the last step.
        companions: writes further files into `model/`, beside those of the vocabulary.

    Returns:
        The held-out loss of the weights at the last step; None where the run was finished already.

    Raises:
        UserError, RunFailed, Interrupted: as `loop.train`.
    """
    recipe, info = folder.recipe, folder.info
    facts = info["machine"]
    # A resumed run computes as it began: the stored thread count, dtype and compile choice, nothing measured again.
    machine = devices.detect(facts["dtype"], facts["threads"])
    start = world.lead(lambda: checkpoint.latest(folder.checkpoints, lambda text: say(f"warning: {text}")) if resume else None)
    if start is not None and start.step == loop.total_steps(recipe) and folder.model.is_dir():
        return None
    if world.first:
        checkpoint.set_aside(folder.checkpoints, start)
        folder.forget_after(start.step if start else 0)
        if resume:
            text = f"resumed from {start.folder}" if start else "resumed; no checkpoint was written yet, so from the beginning"
            folder.record({"event": "note", "step": start.step if start else 0, "text": text})
            say(text)
    told = observers() if world.first else ()
    if build is not None:
        job = build(machine, told)
    else:
        assert shards is not None
        job = assemble(folder, machine, vocabulary, shards, world, told, resumed=start is not None)
    result = loop.train(job, start)
    if world.first:
        chosen = _take_best(folder, job, say) if best else folder.checkpoints / f"step-{loop.total_steps(recipe)}"
        if recipe.train.lora is not None:
            lora.save_adapter(chosen, folder.path / "adapter", recipe.train, info["init"])
        special, context = _special(info, vocabulary), job.decoder.config.context

        def beside(model: Path) -> None:
            vocabulary.save(model, context)
            if companions is not None:
                companions(model)

        weights.save(job.decoder, folder.model, special=special, companions=beside)
    return result


def _take_best(folder: RunFolder, job: loop.Job, say: Callable[[str], None]) -> Path:
    """Puts the weights of the best checkpoint, which the writer has kept, into the decoder; returns where it lies."""
    last = checkpoint.latest(folder.checkpoints, say)
    assert last is not None
    step = last.state["best_step"]
    best = folder.checkpoints / f"step-{last.step if step is None else step}"
    if best != last.folder:
        checkpoint.read_weights(best, job.decoder)
    say(f"the model is that of step {last.step if step is None else step:,} of {last.step:,}, the best on what is held out")
    return best


def origin(recipe: Recipe, machine: devices.Machine, peak: float, init: Path | None) -> dict[str, Any]:
    """What a run's folder says of where it comes from.

    Args:
        recipe, machine: of the run; the command as typed and the versions are told beside.
        peak: FLOP/s of the machine's matmul.
        init: the Hugging Face folder that it starts from, of which all is kept that a resumed run needs; None: from nothing.
    """
    return {
        "command": " ".join(["tessera", *map(shlex.quote, sys.argv[1:])]),
        "versions": {
            "tessera": tessera.__version__, "python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__,
        },
        "machine": {
            "cpu": machine.name, "threads": machine.threads, "matmul_peak_gflops": peak / 1e9, "dtype": machine.dtype,
            "compiled": recipe.train.compile,
        },
        "init": None if init is None else str(init.resolve()),
        "init_shape": None if init is None else asdict(weights.read_config(init)),
        "init_special": None if init is None else asdict(weights.read_special(init)),
    }  # fmt: skip


def _special(info: dict[str, Any], vocabulary: Vocabulary) -> weights.SpecialIds:
    """Ids for the config files; a model to go on from keeps its own, and one that was tuned on dialogue ends its turns too."""
    kept = info["init_special"] or {}
    # JSON has no tuples.
    own = weights.SpecialIds(**{**kept, "end": tuple(kept.get("end", ()))})
    ends = own.end or (vocabulary.end_id,)
    if info.get("dialogue") and vocabulary.end_turn_id not in ends:
        ends = (*ends, vocabulary.end_turn_id)
    pad = vocabulary.pad_id if own.pad is None else own.pad
    # Who has learned from conversations thinks as they do: where none of them does, it would answer what it was not taught.
    thinking = info["thinking"] if info.get("dialogue") and "thinking" in info else own.thinking
    return weights.SpecialIds(own.begin, ends, pad, thinking, {**own.guided, **info.get("guided", {})})
