"""Sampling: each row as its own settings say, with random numbers of its own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tessera.engine.sampling import NOTHING, Draw, History, SamplingParams, sample, uniform
from tessera.errors import UserError

LOGITS = torch.log(torch.tensor([0.4, 0.05, 0.3, 0.0, 0.15, 0.1]))


def frequencies(params: SamplingParams, draws: int = 20_000) -> np.ndarray:
    """Shares of the ids when the unit interval is swept evenly."""
    uniforms = [(i + 0.5) / draws for i in range(draws)]
    sampled = sample(LOGITS.repeat(draws, 1), [Draw(params, u) for u in uniforms])
    return np.bincount(sampled.ids, minlength=6) / draws


@pytest.mark.parametrize(
    "params,expected",
    [
        (SamplingParams(), [0.4, 0.05, 0.3, 0, 0.15, 0.1]),
        (SamplingParams(temperature=0.5), np.array([16, 0.25, 9, 0, 2.25, 1]) / 28.5),
        (SamplingParams(temperature=0), [1, 0, 0, 0, 0, 0]),
        (SamplingParams(top_k=2), [4 / 7, 0, 3 / 7, 0, 0, 0]),
        (SamplingParams(top_p=0.75), [0.4 / 0.85, 0, 0.3 / 0.85, 0, 0.15 / 0.85, 0]),
        (SamplingParams(top_p=1e-9), [1, 0, 0, 0, 0, 0]),
        (SamplingParams(top_k=3, top_p=0.5), [4 / 7, 0, 3 / 7, 0, 0, 0]),
        (SamplingParams(min_p=0.3), [0.4 / 0.85, 0, 0.3 / 0.85, 0, 0.15 / 0.85, 0]),
    ],
)
def test_tokens_come_as_often_as_the_settings_say(params: SamplingParams, expected: list[float]) -> None:
    np.testing.assert_allclose(frequencies(params), expected, atol=2e-4)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams(), SamplingParams(top_p=0.5), SamplingParams(temperature=0), SamplingParams(temperature=2, top_k=7)]
    for step in range(50):
        draws = [Draw(p, uniform(seed, step)) for seed, p in enumerate(params)]
        together = sample(logits.clone(), draws)
        for row in range(4):
            alone = sample(logits[row : row + 1].clone(), draws[row : row + 1])
            assert alone.ids[0] == together.ids[row] and alone.logprobs[0] == pytest.approx(together.logprobs[row])


def test_logprobs_are_of_the_tempered_distribution_before_cutting() -> None:
    for params, temperature in ((SamplingParams(temperature=0.5, top_k=1), 0.5), (SamplingParams(temperature=0), 1.0)):
        sampled = sample(LOGITS[None].clone(), [Draw(params, 0.3)])
        assert sampled.logprobs[0] == pytest.approx(float((LOGITS / temperature).log_softmax(-1)[sampled.ids[0]]), abs=1e-6)


def test_a_forbidden_token_is_not_drawn_even_at_the_edges() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 1.0, float("-inf")]])
    for at in (0.0, 1 - 2**-53, 0.2689414):
        assert sample(logits.clone(), [Draw(SamplingParams(), at)]).ids[0] in (1, 3)


@pytest.mark.parametrize("temperature", [1e-40, 1e-9, 9e-6, 1e-5])
def test_any_temperature_above_zero_is_one(temperature: float) -> None:
    sampled = sample(LOGITS.repeat(2, 1), [Draw(SamplingParams(temperature=t), 0.99) for t in (temperature, 1.0)])
    assert sampled.ids == [0, 5] and np.isfinite(sampled.logprobs).all()


def test_a_row_with_no_token_left_has_none_and_its_neighbour_has_one() -> None:
    banned = SamplingParams(bias={i: -100.0 for i in range(6)})
    for params in (banned, SamplingParams(bias={0: -100.0, 2: -100.0})):
        allowed = torch.tensor([True, False, True, False, False, False])
        draws = [Draw(params, 0.5, None, allowed), Draw(SamplingParams(temperature=0), 0.5), Draw(SamplingParams(), 0.99)]
        sampled = sample(LOGITS.repeat(3, 1), draws)
        assert sampled.ids == [NOTHING, 0, 5]
    assert sample(torch.full((1, 6), float("nan")), [Draw(SamplingParams(), 0.5)]).ids == [NOTHING]


def test_penalties_and_bias_are_what_a_plain_loop_makes_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 100, generator=generator)
    prompt, sampled = [1, 2, 2, 3], [2, 50, 50, 50, 7]
    params = [
        SamplingParams(presence_penalty=0.7, frequency_penalty=0.3, seed=0),
        SamplingParams(repetition_penalty=1.8, frequency_penalty=-0.2, bias={7: 4.0, 99: -100.0, 0: -2.5}),
        SamplingParams(bias={5: 100.0}),
    ]
    draws = []
    for p in params:
        history = History(prompt, 100, torch.device("cpu")) if p.penalised else None
        for token in sampled if history else ():
            history.add(token)
        draws.append(Draw(dataclasses.replace(p, top_logprobs=100), 0.5, history))
    found = sample(logits.clone(), draws)
    for row, p in enumerate(params):
        expected = logits[row].double().tolist()
        for token in range(100):
            if token in prompt + sampled and p.repetition_penalty != 1:
                expected[token] *= p.repetition_penalty if expected[token] < 0 else 1 / p.repetition_penalty
            expected[token] -= p.frequency_penalty * sampled.count(token) + p.presence_penalty * (token in sampled)
            expected[token] += p.bias.get(token, 0.0) if p.bias.get(token, 0.0) > -100 else -np.inf
        logprobs = torch.tensor(expected).log_softmax(-1)
        top = dict(found.top[row])
        assert len(top) == 100 - (99 in p.bias) and found.logprobs[row] == pytest.approx(top[found.ids[row]], abs=1e-5)
        assert all(value == pytest.approx(float(logprobs[token]), abs=1e-5) for token, value in top.items())
    assert found.ids[2] == 5


def test_a_mask_replaces_the_blocked_ids_of_its_row_only() -> None:
    blocked = torch.tensor([1, 2, 3])
    allowed = torch.zeros(200, dtype=torch.bool)
    allowed[[2, 150]] = True
    for step in range(20):
        draws = [Draw(SamplingParams(), uniform(0, step)), Draw(SamplingParams(), uniform(1, step), allowed_V=allowed)]
        logits = torch.zeros(2, 200)
        logits[:, :4] = 5.0
        ids = sample(logits, draws, blocked).ids
        assert ids[0] not in (1, 2, 3) and ids[1] in (2, 150)


def test_random_numbers_are_uniform_and_follow_from_seed_and_step() -> None:
    numbers = np.array([[uniform(seed, step) for step in range(100)] for seed in range(100)])
    assert np.array_equal(numbers, [[uniform(seed, step) for step in range(100)] for seed in range(100)])
    assert numbers.min() >= 0 and numbers.max() < 1 and len(np.unique(numbers)) == numbers.size
    shares = np.histogram(numbers, bins=20, range=(0, 1))[0] / numbers.size
    np.testing.assert_allclose(shares, 0.05, atol=0.01)
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": -1},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"min_p": 2.0},
        {"stop": ("",)},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
        {"repetition_penalty": 0.0},
        {"bias": {3: float("nan")}},
        {"top_logprobs": -1},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(change)).split("_")[0]):
        dataclasses.replace(SamplingParams(), **change)  # type: ignore[arg-type]
