"""How fast this machine trains a model of a given shape, measured before anything is planned."""

from __future__ import annotations

import time

import numpy as np
import torch

from tessera.data.loader import Batch
from tessera.device import Machine, synchronise
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.recipe import Train
from tessera.train import optimizers as optim
from tessera.train.gradients import Gradients
from tessera.train.parallel import World

_SECONDS = 4.0
"""About how long is measured; in one second, behind one pass to warm up, it was told 2.3 times too slow."""


def tokens_per_second(config: DecoderConfig, train: Train, machine: Machine) -> float:
    """Training speed of one process on random ids, with the recipe's own batch, micro-batches and optimizer.

    Args:
        config: shape of the model.
        train: resolved settings; where they say that the blocks are compiled, the time for that is not counted.
        machine: where.
    """
    assert train.context and train.batch_rows and train.micro_rows
    decoder = Decoder(config, machine.torch_dtype).to(machine.torch_device)
    decoder.initialise(seed=0)
    opts = optim.build(decoder, train, machine.torch_dtype)
    rows = train.micro_rows * (train.workers or 1)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(rows, train.context + 1))
    batch = Batch(ids, np.ones((rows, train.context), bool), None, rows * train.context)

    def compute(gradients: Gradients) -> float:
        begin = time.perf_counter()
        gradients.add(batch, float(batch.tokens))
        synchronise(machine)
        return time.perf_counter() - begin

    def update(gradients: Gradients) -> float:
        begin = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(list(decoder.parameters()), train.clip)
        for optimizer in opts:
            optimizer.step()
        gradients.clear()
        synchronise(machine)
        return time.perf_counter() - begin

    computing: list[float] = []
    updating: list[float] = []
    with Gradients(decoder, train, machine, World()) as gradients:
        optim.share_work(opts, gradients.pool)
        compute(gradients)
        update(gradients)
        start = time.perf_counter()
        while time.perf_counter() - start < _SECONDS or len(computing) < 3:
            computing.append(compute(gradients))
            updating.append(update(gradients))
    # The mean, not the best: the budget is met by what the machine does, not by what it could do.
    per_batch = sum(computing) / len(computing) * (train.batch_rows / rows) + sum(updating) / len(updating)
    return train.batch_rows * train.context / per_batch
