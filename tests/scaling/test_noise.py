"""What seeds say of noise."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.scaling.law import MEASURABLE
from tessera.scaling.noise import between_seeds


def repeated(top: float, growth: float, seeds: int, dice: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    C = 1e12 * 2.0 ** np.arange(6)
    spread = np.sqrt(top**2 + (growth * np.log10(C[-1] / C)) ** 2)
    return [2.0 * np.exp(s * dice.standard_normal(seeds)) for s in spread], C


def test_runs_that_were_not_repeated_say_nothing_and_all_count_alike() -> None:
    noise, weight = between_seeds([np.array([2.0]), np.array([1.9])], np.array([1e12, 2e12]))
    assert noise is None and weight.tolist() == [1.0, 1.0]


def test_noise_that_grows_downwards_is_told_from_noise_that_does_not() -> None:
    dice = np.random.default_rng(0)
    noise, weight = between_seeds(*repeated(2e-3, 0.02, 40, dice))
    assert noise == pytest.approx(2e-3, rel=0.3)
    lowest = np.sqrt((2e-3) ** 2 + (0.02 * np.log10(32)) ** 2)
    assert weight[-1] == pytest.approx(40) and 0.5 < weight[0] / (40 * (2e-3 / lowest) ** 2) < 2
    noise, weight = between_seeds(*repeated(4e-3, 0.0, 40, dice))
    assert noise == pytest.approx(4e-3, rel=0.2) and (weight > 30).all()


def test_two_seeds_that_happen_to_agree_do_not_make_noise_vanish() -> None:
    C = 1e12 * 2.0 ** np.arange(4)
    losses = [np.array([2.0, 2.02]), np.array([1.9, 1.91]), np.array([1.8]), np.array([1.7, 1.7])]
    noise, weight = between_seeds(losses, C)
    assert noise is not None and noise > 2 * MEASURABLE and weight[0] < weight[1] < weight[3]
