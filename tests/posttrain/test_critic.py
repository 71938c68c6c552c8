"""Advantages by a critic: those of the paper, and the plain ones where the critic knows nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tessera.engine.request import Completion, FinishReason
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.posttrain.critic import Settings, Valued, advantages, explained_variance
from tessera.posttrain.rollouts import logprobs_under, rows_of, with_advantages
from tessera.tokens.document import TokenRecord
from tessera.train.critic import Critic

V, PAD = 41, 1
NONE = torch.zeros(0, dtype=torch.int64)
RAW = Settings(lam=1.0, whiten=False)


def tiny(seed: int = 0) -> Decoder:
    decoder = Decoder(DecoderConfig(vocab_size=V, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=64))
    decoder.initialise(seed)
    dice = torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=dice)
    return decoder


def critic(constant: float | None = None) -> Critic:
    made = Critic(tiny(3))
    if constant is None:
        made.value.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    else:
        made.bias.data.fill_(constant)
    return made


def completion(ids: list[int], reason: FinishReason = "stop", forced: int | None = None) -> Completion:
    learn = np.array([False, False] + [True] * len(ids))
    if forced is not None:
        learn[2 + forced] = False
    return Completion(
        TokenRecord(np.array([7, 8, *ids], np.int32), learn, np.where(learn, -0.5, 0).astype(np.float32)),
        2,
        0,
        0,
        reason,
        "",
        0,
        0,
    )


GROUP = [completion([3, 4, 5]), completion([6]), completion([9, 9, 9, 9]), completion([2, 2, 3, 3], forced=2)]
REWARDS = [1.0, 0.0, 0.0, 1.0]


def settled(
    valued: Valued, group: Any = GROUP, rewards: Any = REWARDS, number: int = 1
) -> tuple[list[TokenRecord], dict[str, float]]:
    kept = valued.keep(group, rewards)
    assert kept is not None
    (records,), told = valued.settle([kept], number)
    return records, told


def slow(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> list[float]:
    """The sum of equation 16 written out, for one rollout without gaps."""
    after = [*values[1:], 0.0][: len(values)]
    errors = [r + gamma * b - a for r, a, b in zip(rewards, values, after, strict=True)]
    return [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(errors))) for t in range(len(errors))]


@pytest.mark.parametrize(("gamma", "lam"), [(1, 0.95), (0.9, 0.7), (1, 1), (0.99, 0)])
def test_the_estimates_are_the_sums_of_the_paper_and_skip_what_was_not_sampled(gamma: float, lam: float) -> None:
    dice = np.random.default_rng(0)
    learn = dice.random((6, 11)) < 0.7
    learn[3] = False
    rewards = np.where(learn, dice.normal(size=learn.shape), 0)
    values = np.where(learn, dice.normal(size=learn.shape), 0).astype(np.float32)
    found = advantages(rewards, values, learn, gamma, lam)
    for row in range(6):
        there = learn[row]
        np.testing.assert_allclose(
            found[row, there], slow(rewards[row, there], values[row, there].astype(float), gamma, lam), atol=1e-12
        )
        assert not found[row, ~there].any()


def test_with_lambda_one_they_are_returns_less_values() -> None:
    records, _ = settled(Valued(critic(), RAW, PAD))
    for record, reward in zip(records, REWARDS, strict=True):
        assert record.values is not None and record.values[record.learn].any()
        np.testing.assert_allclose(record.returns[record.learn], reward, atol=1e-6)  # type: ignore[index]
        np.testing.assert_allclose(record.advantages, record.returns - record.values, atol=1e-6)  # type: ignore[operator]
        for values in (record.advantages, record.values, record.returns):
            assert values is not None and not values[~record.learn].any() and values.dtype == np.float32


def test_a_critic_that_says_a_constant_is_a_baseline() -> None:
    records, told = settled(Valued(critic(0.5), RAW, PAD))
    # The mean of the group, here: then it is the other kind of reinforcement.
    expected = with_advantages(GROUP, REWARDS, std=False)
    assert expected is not None and told["explained_variance"] == pytest.approx(0) and told["value"] == pytest.approx(0.5)
    for found, plain in zip(records, expected, strict=True):
        assert np.array_equal(found.advantages, plain.advantages)  # type: ignore[arg-type]


def test_each_token_costs_its_kl_to_the_reference() -> None:
    reference = tiny(5)
    records, told = settled(Valued(critic(0.0), Settings(lam=1.0, whiten=False, kl=0.1), PAD, reference, NONE))
    batch = rows_of([replace(c.record, advantages=c.record.logprobs) for c in GROUP], PAD)
    away = np.where(batch.learn, batch.extras["logprobs"] - logprobs_under(reference, batch, NONE), 0)
    assert told["kl"] == pytest.approx(away.sum() / batch.learn.sum(), rel=1e-5)
    for row, (record, reward) in enumerate(zip(records, REWARDS, strict=True)):
        places = np.flatnonzero(record.learn)
        wanted = [reward - 0.1 * away[row, place - 1 :].sum() for place in places]
        np.testing.assert_allclose(record.advantages[places], wanted, rtol=1e-5)  # type: ignore[index]


def test_whitening_and_warming_up() -> None:
    records, _ = settled(Valued(critic(), Settings(), PAD))
    plain, _ = settled(Valued(critic(), Settings(whiten=False), PAD))
    found, before = (np.concatenate([r.advantages[r.learn] for r in some]) for some in (records, plain))  # type: ignore[index]
    assert found.mean() == pytest.approx(0, abs=1e-6) and found.std() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(found, (before - before.mean()) / before.std(), rtol=1e-4, atol=1e-5)
    # The critic learns from the first batch, the policy does not.
    warm = Valued(critic(), Settings(warmup=1), PAD)
    first, second = (settled(warm, number=number)[0] for number in (1, 2))
    assert not any(r.advantages.any() for r in first) and all(r.returns.any() for r in first[:1])  # type: ignore[union-attr]
    assert any(r.advantages.any() for r in second)  # type: ignore[union-attr]


def test_what_was_cut_off_is_learned_from_to_punish_it_only() -> None:
    group = [completion([3]), completion([4], "length")]
    assert len(settled(Valued(critic(), RAW, PAD), group, [1, 0])[0]) == 1
    assert len(settled(Valued(critic(), Settings(punish=True), PAD), group, [1, 0])[0]) == 2
    assert Valued(critic(), RAW, PAD).keep(group[1:], [0]) is None
    assert Valued(critic(), RAW, PAD).settle([], 1)[0] == []
    assert set(rows_of([], PAD, Valued(critic(), RAW, PAD).names).extras) == {"logprobs", "advantages", "values", "returns"}


def test_what_is_explained_is_between_nothing_and_all() -> None:
    returns = np.array([0.0, 1.0, 1.0, 0.0])
    assert explained_variance(returns, returns) == 1 and explained_variance(returns * 0 + 3, returns) == 0
    assert explained_variance(returns, np.ones(4)) == 0 and explained_variance(returns[:0], returns[:0]) == 0
