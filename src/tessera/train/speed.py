"""How fast this machine trains a model of a given shape, measured before anything is planned."""

from __future__ import annotations

import time

import torch

from tessera.device import Machine, synchronise
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.recipe import Train
from tessera.train import optimizers as optim
from tessera.train.objectives import NextToken


def tokens_per_second(config: DecoderConfig, train: Train, machine: Machine, compiled: bool, seconds: float = 4.0) -> float:
    """Training speed of one process on random ids, with the recipe's own batch, micro-batches and optimizer.

    Args:
        config: shape of the model.
        train: resolved settings.
        machine: where.
        compiled: as the run will be; compilation itself is not counted.
        seconds: about how long to measure, after one pass to warm up.
    """
    assert train.batch_rows and train.micro_rows
    decoder = Decoder(config, machine.torch_dtype).to(machine.torch_device)
    decoder.initialise(seed=0)
    objective = NextToken(decoder, train.z_loss, compiled)
    opts = optim.build(decoder, train, machine.torch_dtype)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (train.micro_rows, train.context + 1), generator=generator).to(machine.torch_device)
    weights = torch.ones(train.micro_rows, train.context, device=machine.torch_device)

    def micro_batch() -> float:
        begin = time.perf_counter()
        loss, _ = objective(ids, weights)
        (loss / weights.sum()).backward()
        synchronise(machine)
        return time.perf_counter() - begin

    def update() -> float:
        begin = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(list(decoder.parameters()), train.clip)
        for optimizer in opts:
            optimizer.step()
        for optimizer in opts:
            optimizer.zero_grad(set_to_none=True)
        synchronise(machine)
        return time.perf_counter() - begin

    micro_batch()
    update()
    passes: list[float] = []
    updates: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(passes) < 3:
        passes.append(micro_batch())
        updates.append(update())
    # The mean, not the best: the budget is met by what the machine does, not by what it could do.
    per_batch = sum(passes) / len(passes) * (train.batch_rows / train.micro_rows) + sum(updates) / len(updates)
    return train.batch_rows * train.context / per_batch
