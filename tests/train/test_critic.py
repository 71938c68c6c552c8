"""A critic beside the policy: its loss and gradient are the written ones, and what it learns leaves the policy as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tessera.data.loader import Batch
from tessera.device import Machine
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.recipe import Train
from tessera.train.critic import Critic, actor_critic, value_losses
from tessera.train.gradients import Gradients
from tessera.train.objectives import Objective
from tessera.train.parallel import World
from tessera.train.policy import PolicySettings, objective

MACHINE = Machine("test", "cpu", 0, "float32", 1, "test")
V, ROWS, T = 41, 8, 12
BLOCKED = torch.tensor([0, 40])
PLAIN = PolicySettings()


def tiny(seed: int = 0) -> Decoder:
    decoder = Decoder(DecoderConfig(vocab_size=V, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=64))
    decoder.initialise(seed)
    dice = torch.Generator().manual_seed(1)
    for parameter in decoder.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=dice)
    return decoder


def critic() -> Critic:
    made = Critic(tiny(3))
    made.value.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    made.bias.data.fill_(0.3)
    return made


def batch() -> Batch:
    dice = np.random.default_rng(0)
    learn = np.arange(T) < dice.integers(2, T, (ROWS, 1))
    learn[-1] = False  # as a supervised row has nothing that was sampled

    def noise(size: float) -> np.ndarray:
        return np.where(learn, dice.normal(0, size, (ROWS, T)), 0).astype(np.float32)

    extras = {"logprobs": noise(1), "advantages": noise(1), "values": noise(0.5), "returns": noise(1)}
    return Batch(dice.integers(1, V - 1, (ROWS, T + 1)), learn, None, ROWS * T, extras)


def gradient(given: Batch, loss: Objective, beside: Critic | None, **train: Any) -> tuple[Decoder, dict[str, float]]:
    decoder = tiny()
    gradients = Gradients(decoder, Train(**{"batch_rows": ROWS, "context": T} | train), MACHINE, World(), loss, beside)
    sums = gradients.add(given, given.learned) / given.learned
    return decoder, dict(zip(gradients.measures, sums.tolist(), strict=True))


def slopes(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_gradient_is_that_of_half_the_mean_squared_error(clip: float | None) -> None:
    given, found, plain = batch(), critic(), critic()
    _, measures = gradient(given, actor_critic(PLAIN, BLOCKED, clip), found)
    learn = torch.as_tensor(given.learn)
    old, returns = (torch.as_tensor(given.extras[name])[learn] for name in ("values", "returns"))
    hidden = plain.decoder(torch.as_tensor(given.ids[:, :-1]))
    values = (hidden * plain.value).sum(-1)[learn] + plain.bias
    errors = (values - returns) ** 2
    if clip is not None:
        errors = torch.maximum(errors, (torch.minimum(torch.maximum(values, old - clip), old + clip) - returns) ** 2)
    expected = errors.mean() / 2
    expected.backward()
    assert measures["value_loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(slopes(found), slopes(plain), rtol=1e-4, atol=1e-6)


def test_a_clipped_value_that_would_leave_the_old_one_farther_has_no_slope() -> None:
    found = torch.tensor([0.5, 0.5, 0.1, -0.5]).requires_grad_()
    losses = value_losses(found, torch.zeros(4), torch.tensor([1.0, 0.3, 1.0, -1.0]), 0.2)
    losses.sum().backward()
    # Nearer to the return than the clip allows: no slope; gone past it, or within the clip: the plain error's.
    assert losses.tolist() == pytest.approx([0.32, 0.02, 0.405, 0.32])
    assert found.grad is not None and found.grad.tolist() == pytest.approx([0, 0.2, -0.9, 0])


def test_the_policy_learns_what_it_learns_without_a_critic_to_the_bit() -> None:
    given = batch()
    alone = Batch(given.ids, given.learn, None, given.tokens, {n: given.extras[n] for n in ("logprobs", "advantages")})
    policy, measures = gradient(given, actor_critic(PLAIN, BLOCKED), critic())
    plain, expected = gradient(alone, objective(PLAIN, BLOCKED), None)
    assert torch.equal(slopes(policy), slopes(plain))
    assert {name: measures[name] for name in expected} == expected and set(measures) - set(expected) == {"value_loss"}


@pytest.mark.parametrize("shared", [{"micro_rows": 3}, {"workers": 2}, {"workers": 2, "micro_rows": 1}])
def test_micro_batches_and_workers_change_nothing_but_rounding(shared: dict[str, int]) -> None:
    whole, part = critic(), critic()
    expected, _ = gradient(batch(), actor_critic(PLAIN, BLOCKED, 0.2), whole)
    found, _ = gradient(batch(), actor_critic(PLAIN, BLOCKED, 0.2), part, **shared)
    for a, b in ((found, expected), (part, whole)):
        assert float((slopes(a) - slopes(b)).abs().max() / slopes(b).abs().max()) <= 1e-5


def test_a_fresh_critic_expects_nothing() -> None:
    assert not Critic(tiny())(torch.ones(2, 5, dtype=torch.int64)).any()
