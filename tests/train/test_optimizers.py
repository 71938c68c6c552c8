"""Muon, AdamW and the schedule."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from tessera.model.decoder import Decoder, DecoderConfig
from tessera.recipe import Train
from tessera.train import optimizers as optim

TRAIN = Train(matrix_rate=0.02, adam_rate=0.01, weight_decay=0.1)


def random_matrix(rows: int, columns: int, condition: float = 10.0) -> torch.Tensor:
    """With singular values from 1 down to 1/condition."""
    dice = torch.Generator().manual_seed(rows * 1000 + columns)
    u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=dice, dtype=torch.float64), full_matrices=False)
    return (
        u @ torch.diag(torch.logspace(0, -float(torch.tensor(condition).log10()), min(rows, columns), dtype=torch.float64)) @ v
    ).float()


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (64, 192), (192, 64), (16, 128), (1, 32)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_orthogonalise_brings_singular_values_near_one(rows: int, columns: int, scale: float) -> None:
    matrix = random_matrix(rows, columns) * scale
    found = optim.orthogonalise(matrix[None], torch.float32)[0]
    values = torch.linalg.svdvals(found)
    assert found.shape == matrix.shape and found.dtype == matrix.dtype
    assert values.min() > 0.7 and values.max() < 1.3
    # The directions stay: it is the nearest orthogonal matrix, not just any.
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert float((found * (u @ v)).sum() / min(rows, columns)) > 0.8


def test_orthogonalise_of_a_random_gradient_in_bfloat16() -> None:
    matrix = torch.randn(96, 160, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(optim.orthogonalise(matrix[None], torch.bfloat16)[0])
    assert values.min() > 0.65 and values.max() < 1.35


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64)])
def test_an_update_of_muon_has_a_fifth_of_the_rate_as_root_mean_square(shape: tuple[int, int]) -> None:
    parameter = nn.Parameter(torch.zeros(shape))
    muon = optim.Muon([parameter], lr=0.05, momentum=0.95, weight_decay=0.1, dtype=torch.float32)
    parameter.grad = random_matrix(*shape) * 37
    muon.step()
    assert float(parameter.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.05, rel=0.12)


def test_small_matrices_of_one_shape_are_updated_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> list[torch.Tensor]:
        shapes = [(16, 16), (16, 48), (16, 16), (48, 16), (16, 48), (16, 16)]
        matrices = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        muon = optim.Muon(matrices, lr=0.05, momentum=0.95, weight_decay=0.1, dtype=torch.float32)
        for step in range(3):
            for number, parameter in enumerate(matrices):
                parameter.grad = random_matrix(*parameter.shape, condition=5.0 + number + step) * (1 + number)
            muon.step()
        return [p.detach() for p in matrices]

    together = trained()
    monkeypatch.setattr(optim, "SMALL", 0)
    for a, b in zip(together, trained(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert not torch.equal(together[0], together[2])


def test_weight_decay_is_decoupled_and_scaled_by_the_rate() -> None:
    parameter = nn.Parameter(torch.ones(8, 8))
    muon = optim.Muon([parameter], lr=0.05, momentum=0.0, weight_decay=0.1, dtype=torch.float32)
    parameter.grad = torch.zeros(8, 8)
    muon.step()
    torch.testing.assert_close(parameter.detach(), torch.full((8, 8), 1 - 0.05 * 0.1))


def tiny(**more: Any) -> Decoder:
    decoder = Decoder(
        DecoderConfig(vocab_size=40, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=64, context=16, **more)
    )
    decoder.initialise(0)
    return decoder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_parameter_is_in_exactly_one_group(kind: str, tied: bool) -> None:
    decoder = tiny(tied=tied)
    opts = optim.build(decoder, TRAIN.model_copy(update={"optimizer": kind}), torch.float32)
    held = [id(p) for o in opts for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in decoder.parameters())
    assert len(opts) == (2 if kind == "muon" else 1)
    decayed = {id(p) for o in opts for g in o.param_groups if g["weight_decay"] for p in g["params"]}
    names = {n for n, p in decoder.named_parameters() if id(p) in decayed}
    assert names == {n for n, p in decoder.named_parameters() if p.ndim == 2 and ".layers." in n}


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_rates_and_decay_follow_the_schedule(kind: str) -> None:
    opts = optim.build(tiny(tied=True), TRAIN.model_copy(update={"optimizer": kind}), torch.float32)
    before = [(g["lr"], g["weight_decay"]) for o in opts for g in o.param_groups]
    for factor in (0.5, 0.1, 1.0):
        optim.set_rates(opts, factor)
        assert [(g["lr"], g["weight_decay"]) for o in opts for g in o.param_groups] == [
            (a * factor, b * factor) for a, b in before
        ]


def test_the_schedule_rises_stays_and_falls_to_nearly_nothing() -> None:
    factors = [optim.schedule(step, 100, warmup=9, cooldown=39) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9:61] == [1.0] * 52
    assert factors[-1] == pytest.approx(1 / 40) and all(a > b for a, b in itertools.pairwise(factors[60:]))
    assert [optim.schedule(step, 3, 0, 0) for step in range(3)] == [1.0, 1.0, 1.0]
    assert all(0 < optim.schedule(step, 10, 30, 30) <= 1 for step in range(10))
