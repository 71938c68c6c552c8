"""pass@k, majority vote and best of k equal what counting all subsets gives."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import pytest

from tessera.posttrain.verifiers.measures import best_at_k, maj_at_k, mean_and_error, pass_at_k

VOTES = ["a", "a", "b", "b", "b", "c", None, "d"]
CORRECT = [True, True, False, False, False, True, False, False]


def majority(votes: list[str | None], k: int, right: set[str]) -> Fraction:
    total, n = Fraction(0), 0
    for subset in itertools.combinations(votes, k):
        n += 1
        counts = Counter(vote for vote in subset if vote is not None)
        winners = [vote for vote in counts if counts[vote] == max(counts.values())]
        if winners:
            total += Fraction(sum(vote in right for vote in winners), len(winners))
    return total / n


@pytest.mark.parametrize("k", range(1, 9))
def test_every_measure_is_its_mean_over_all_subsets(k: int) -> None:
    subsets = list(itertools.combinations(range(8), k))
    assert pass_at_k(8, 3, k) == pytest.approx(sum(any(CORRECT[i] for i in s) for s in subsets) / len(subsets))
    assert maj_at_k(VOTES, CORRECT, k) == pytest.approx(float(majority(VOTES, k, {"a", "c"})))
    scores = [0.5, 0.1, 0.4, 0.9, 0.2, 0.95, 0.3, 0.0]
    best = sum(CORRECT[max(s, key=lambda i: scores[i])] for s in subsets) / len(subsets)
    assert best_at_k(scores, CORRECT, k) == pytest.approx(best)


def test_pass_at_k_is_one_minus_the_failures_not_a_power() -> None:
    assert pass_at_k(5, 1, 5) == 1
    assert pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)
    assert pass_at_k(200, 0, 100) == 0
    for samples, correct, k in ((3, 4, 1), (3, 1, 4), (3, 1, 0)):
        with pytest.raises(ValueError, match="samples"):
            pass_at_k(samples, correct, k)


def test_ties_share_and_silence_does_not_vote() -> None:
    assert maj_at_k(["a", "b"], [True, False], 2) == 0.5
    assert best_at_k([1.0, 1.0], [True, False], 2) == 0.5
    assert maj_at_k([None, None], [False, False], 1) == 0
    assert maj_at_k([None, "a", None], [False, True, False], 3) == 1
    with pytest.raises(ValueError, match="both right and wrong"):
        maj_at_k(["a", "a"], [True, False], 1)


def test_many_samples_are_counted_in_a_moment() -> None:
    votes = [str(i % 40) for i in range(64)]
    assert 0 < maj_at_k(votes, [vote == "3" for vote in votes], 32) < 1


def test_the_error_is_that_of_the_mean() -> None:
    mean, error = mean_and_error([0, 1, 1, 0])
    assert (mean, error) == pytest.approx((0.5, math.sqrt(1 / 3) / 2))
    assert math.isnan(mean_and_error([1])[1])
