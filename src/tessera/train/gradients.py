"""The gradient of one batch: micro-batches shared by the workers of this process, and the batch shared by all processes.

A worker is a thread with a copy of the decoder that shares its weights and has gradients of its own. On CPUs small products gain
little from several threads each, but much from running side by side: at width 128 two workers train twice as fast as one
thread or two, at width 256 1.6 times as fast as two (docs/LOG.md, 2026-11-23, "workers"). Gradients are added up in the workers'
order, so the result does not depend on who is done first.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from tessera.data.loader import Batch
from tessera.device import Machine
from tessera.model.decoder import Decoder
from tessera.recipe import Train
from tessera.train.objectives import NEXT_TOKEN, NextToken, Objective, document_mask
from tessera.train.parallel import World

Model = TypeVar("Model", bound=nn.Module)


class Gradients:
    """Computes gradients of `decoder` into its parameters; a context, at whose end the workers are gone.

    Args:
        decoder: on its device.
        settings: `batch_rows`, `context`, `workers`, `micro_rows`, `compile`, `recompute` and `z_loss` count.
        machine: `threads` are shared by the workers.
        world: more than one process averages by DistributedDataParallel, and has one worker each.
        objective: None: the next token's cross-entropy.
        companion: what is learned beside the decoder, which the objective is built around too.
    """

    def __init__(
        self,
        decoder: Decoder,
        settings: Train,
        machine: Machine,
        world: World,
        objective: Objective | None = None,
        companion: nn.Module | None = None,
    ) -> None:
        self.device = machine.torch_device
        # By tokens: rows that are cut into pieces are as many more.
        self.micro_tokens = settings.micro_rows * settings.context if settings.micro_rows and settings.context else None
        self.world = world
        workers = (settings.workers or 1) if world.size == 1 else 1
        beside = () if companion is None else (companion,)
        models = [(decoder, *beside), *((_twin(decoder), *map(_twin, beside)) for _ in range(workers - 1))]
        self.measures = NEXT_TOKEN if objective is None else objective.measures
        objectives: list[nn.Module] = [
            NextToken(d, settings.z_loss, bool(settings.compile), settings.recompute)
            if objective is None
            else objective.build(d, *more)
            for d, *more in models
        ]
        if world.size > 1:
            objectives = [nn.parallel.DistributedDataParallel(objectives[0])]
        self.objectives = objectives
        self.parameters, *self._copies = [[p for model in one for p in model.parameters()] for one in models]
        assert settings.batch_rows
        self.accumulates = settings.batch_rows // (world.size * workers) > (settings.micro_rows or settings.batch_rows)
        if self.accumulates:
            for parameter in (p for objective in objectives for p in objective.parameters()):
                parameter.grad = torch.zeros_like(parameter)
        self.pool: ThreadPoolExecutor | None = None
        if workers > 1:
            share = max(1, machine.threads // workers)
            self.pool = ThreadPoolExecutor(workers, "worker", initializer=torch.set_num_threads, initargs=(share,))

    def add(self, batch: Batch, learned: float) -> Tensor:
        """Adds the gradient of the mean loss over `learned` tokens (or pairs ...), those of the whole batch over all processes.

        Returns:
            the sums of `measures` over this process's rows, float64.
        """
        rows, workers = len(batch.ids), len(self.objectives)
        if self.pool is None:
            return self._work(self.objectives[0], batch, range(rows), learned)
        shares = [range(rows * n // workers, rows * (n + 1) // workers) for n in range(workers)]
        jobs = [
            self.pool.submit(self._work, objective, batch, share, learned)
            for objective, share in zip(self.objectives, shares, strict=True)
        ]
        sums = torch.stack([job.result() for job in jobs]).sum(0)
        for copies in self._copies:
            for parameter, twin in zip(self.parameters, copies, strict=True):
                if twin.grad is not None:
                    parameter.grad = twin.grad if parameter.grad is None else parameter.grad.add_(twin.grad)
                    twin.grad = twin.grad.zero_() if self.accumulates else None
        return sums

    def clear(self) -> None:
        """Forgets the gradients. What micro-batches are added up in stays where it is: made anew among the activations, it would
        leave holes between them, a tenth of a small step's memory (docs/LOG.md, 2026-11-25, "Memory").
        """
        for parameter in self.parameters:
            if self.accumulates:
                assert parameter.grad is not None
                parameter.grad.zero_()
            else:
                parameter.grad = None

    def __enter__(self) -> Gradients:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the workers, also where one of them failed; what none has begun is dropped. Gives the gradients' memory back."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
        self.objectives[0].zero_grad()

    def _work(self, objective: nn.Module, batch: Batch, share: range, learned: float) -> Tensor:
        """One worker's rows, micro-batch by micro-batch."""
        sums = torch.zeros(len(self.measures), dtype=torch.float64, device=self.device)
        length = batch.ids.shape[1] - 1
        micro_rows = len(share) if self.micro_tokens is None else max(1, self.micro_tokens // length)
        for start in share[::micro_rows] if share else ():
            rows = slice(start, min(start + micro_rows, share.stop))
            ids = torch.as_tensor(batch.ids[rows]).to(self.device, non_blocking=True)
            weights = torch.as_tensor(batch.learn[rows]).to(self.device, torch.float32, non_blocking=True)
            mask = None if batch.documents is None else document_mask(torch.as_tensor(batch.documents[rows]).to(self.device))
            in_between = self.world.size > 1 and rows.stop != share.stop
            with cast(nn.parallel.DistributedDataParallel, objective).no_sync() if in_between else nullcontext():
                extras = {name: torch.as_tensor(array[rows]).to(self.device) for name, array in batch.extras.items()}
                loss, part = objective(ids, weights, mask, **extras)
                # Averaged over processes by DistributedDataParallel; multiplied back, so that it is a sum.
                (loss * (self.world.size / max(learned, 1.0))).backward()
            sums += part
        return sums


def _twin(model: Model) -> Model:
    """A module whose parameters are the same memory, with gradients of their own."""
    # What `deepcopy` believes to have copied already, it takes as it is.
    return copy.deepcopy(model, {id(p): nn.Parameter(p.detach()) for p in model.parameters()})
