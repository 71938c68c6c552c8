"""Gradients of a batch: the same whoever computes them, and added up in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.data.loader import Batch
from tessera.device import Machine
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.recipe import Train
from tessera.train.gradients import Gradients
from tessera.train.parallel import World

MACHINE = Machine("test", "cpu", 0, "float32", 1, "test")


def tiny() -> Decoder:
    decoder = Decoder(DecoderConfig(vocab_size=41, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=64))
    decoder.initialise(0)
    return decoder


def batch_of(seed: int) -> Batch:
    ids = np.random.default_rng(seed).integers(0, 41, (4, 17))
    return Batch(ids, np.ones((4, 16), np.bool_), None, 64)


@pytest.mark.parametrize(("workers", "micro_rows", "kept"), [(1, 1, True), (1, 4, False), (2, 1, True), (2, 2, False)])
def test_a_second_batch_finds_nothing_of_the_first(workers: int, micro_rows: int, kept: bool) -> None:
    expected, decoder = tiny(), tiny()
    whole = Gradients(expected, Train(batch_rows=4), MACHINE, World())
    whole.add(batch_of(1), 64.0)
    settings = Train(batch_rows=4, workers=workers, micro_rows=micro_rows)
    with Gradients(decoder, settings, MACHINE, World()) as gradients:
        gradients.add(batch_of(0), 64.0)
        places = [p.grad.data_ptr() for p in decoder.parameters() if p.grad is not None]
        gradients.clear()
        assert all((p.grad is not None) == kept and not (kept and p.grad.any()) for p in decoder.parameters())  # type: ignore[union-attr]
        gradients.add(batch_of(1), 64.0)
        for a, b in zip(decoder.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)
        if kept:
            assert [p.grad.data_ptr() for p in decoder.parameters() if p.grad is not None] == places
    assert all(p.grad is None for p in decoder.parameters())
