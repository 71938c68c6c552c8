"""What stages share whose model is the best of its checkpoints on what was held out: from a prepared folder to that model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tessera.data.loader import Batch, Shares
from tessera.device import Machine
from tessera.errors import UserError
from tessera.model.decoder import Decoder
from tessera.run import RunFolder
from tessera.tokens.vocabulary import Vocabulary
from tessera.train import checkpoint, loop
from tessera.train.launch import launch
from tessera.train.objectives import Evaluation, Objective, document_mask
from tessera.train.parallel import ALONE, World

Say = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """What is special of one.

    Args:
        decoder: with the weights that it starts from, on its device.
        loader: of the batches to learn from.
        held_out: batches to be examined on, `units` in each.
        objective: with the loss, or whatever else decides, among its measures.
        mark: the measure that decides; the lower the better.
        digest: of all that is learned from.
    """

    decoder: Decoder
    loader: loop.Batches
    held_out: Sequence[Batch]
    objective: Objective
    mark: str
    digest: str


def tune(
    path: Path,
    resume: bool,
    observers: Callable[[RunFolder], Sequence[loop.Observer]],
    say: Say,
    build: Callable[[RunFolder, Machine, Vocabulary], Stage],
    companions: Callable[[Path], None] | None = None,
    world: World = ALONE,
) -> Evaluation | None:
    """Trains what a stage's `prepare` wrote, from its last checkpoint where there is one and `resume` asks for it.

    Args:
        observers: makes those that are told the events, besides the folder's own record.
        build: what is special.
        companions: writes further files into the model's folder.
        world: this process among several, each of which has a row of every batch.

    Returns:
        None where the run was finished already.

    Raises:
        UserError: another process trains in the folder, or there are more processes than rows.
        RunFailed, Interrupted: as `train.loop`.
    """
    folder = RunFolder.open(path)
    world.lead(folder.lock)
    if world.size > (rows := folder.recipe.train.batch_rows or 1):
        raise UserError(f"{world.size} processes cannot share batches of {rows}; start fewer, or give a larger --batch-size.")
    vocabulary = Vocabulary.load(path / "tokenizer")

    def job(machine: Machine, told: Sequence[loop.Observer]) -> loop.Job:
        stage = build(folder, machine, vocabulary)
        recipe = folder.recipe
        module = stage.objective.build(stage.decoder)

        @torch.no_grad()
        def take() -> Mapping[str, float]:
            sums = np.zeros(len(stage.objective.measures))
            for batch in stage.held_out:
                sums += module(*tensors(batch, machine.torch_device), **_extras(batch, machine.torch_device))[1].cpu().numpy()
            units = sum(batch.units or 0.0 for batch in stage.held_out)
            means = dict(zip(stage.objective.measures, (sums / units).tolist(), strict=True))
            return means | {"rows": int(units), "mark": -means[stage.mark]}

        return loop.Job(
            recipe=recipe,
            decoder=stage.decoder,
            loader=Shares(stage.loader, world.rank, world.size),
            held_out=(),
            final_held_out=(),
            token_bytes=np.zeros(stage.decoder.config.vocab_size, np.int32),
            machine=machine,
            matmul_peak=folder.info["machine"]["matmul_peak_gflops"] * 1e9,
            identity={"recipe": recipe.fingerprint(), "tokenizer": vocabulary.hash, "data": stage.digest},
            writer=checkpoint.Writer(folder.checkpoints) if world.first else None,
            observers=told,
            world=world,
            objective=stage.objective,
            # By the loss, not by accuracy, of which a few rows make only a few values.
            exam=loop.Exam(take, "mark"),
        )

    def told() -> list[loop.Observer]:
        return [folder.record, *observers(folder)]

    return launch(folder, vocabulary, None, world, resume, told, say, job, best=True, companions=companions)


def tensors(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """ids, learn as weights, and the mask, if the rows need one; as objectives take them."""
    mask = None if batch.documents is None else document_mask(torch.as_tensor(batch.documents).to(device))
    return torch.as_tensor(batch.ids).to(device), torch.as_tensor(batch.learn).float().to(device), mask


def _extras(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(array).to(device) for name, array in batch.extras.items()}
