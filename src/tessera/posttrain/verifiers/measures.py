"""Measures over several samples of one task, all from the same n samples: pass@k, majority vote, best of k; and their errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k samples is right: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1.

    Raises:
        ValueError: not 0 <= correct <= samples, or not 1 <= k <= samples.
    """
    _check(samples, k)
    if not 0 <= correct <= samples:
        raise ValueError(f"{correct} of {samples} samples cannot be right")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def maj_at_k(votes: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """Probability that the answer given most often among k of the samples, drawn without replacement, is right.

    It is summed over all subsets, not simulated; answers that tie win with equal chance. A vote of None (no answer could be read)
    is no vote; a subset without votes is wrong.

    Args:
        votes: the answers, (n,).
        correct: (n,), whether each is right; equal votes are equally right.

    Raises:
        ValueError: not 1 <= k <= n, or equal votes judged differently.
    """
    _check(len(votes), k)
    right: dict[Hashable, bool] = {}
    for vote, is_right in zip(votes, correct, strict=True):
        if right.setdefault(vote, is_right) != is_right and vote is not None:
            raise ValueError(f"the answer {vote!r} is judged both right and wrong")
    counts = Counter(vote for vote in votes if vote is not None)
    silent = len(votes) - sum(counts.values())
    # All right answers with equal counts win equally often, and any others enter only by their counts.
    winners = Counter(count for vote, count in counts.items() if right[vote])
    total = sum(
        many * _ways_to_win(count, Counter(counts.values()) - Counter([count]), silent, k) for count, many in winners.items()
    )
    return total / math.comb(len(votes), k)


def _ways_to_win(own: int, others: Counter[int], silent: int, k: int) -> float:
    """Number of k-subsets in which an answer with `own` votes has most, each divided by the number of answers that tie."""
    total = 0.0
    for most in range(1, min(own, k) + 1):
        # ways[drawn][ties]: from the other answers, none more than `most` times, `ties` of them exactly so often.
        ways: dict[tuple[int, int], int] = {(0, 0): 1}
        for count, many in others.items():
            for _ in range(many):
                more: dict[tuple[int, int], int] = {}
                for (drawn, ties), number in ways.items():
                    for taken in range(min(count, most, k - most - drawn) + 1):
                        key = (drawn + taken, ties + (taken == most))
                        more[key] = more.get(key, 0) + number * math.comb(count, taken)
                ways = more
        for (drawn, ties), number in ways.items():
            total += math.comb(own, most) * number * math.comb(silent, k - most - drawn) / (ties + 1)
    return total


def best_at_k(scores: Sequence[float], correct: Sequence[bool], k: int) -> float:
    """Probability that of k samples, drawn without replacement, the one with the highest score is right; ties win equally often.

    Raises:
        ValueError: not 1 <= k <= n.
    """
    _check(len(scores), k)
    groups: dict[float, list[bool]] = {}
    for score, is_right in zip(scores, correct, strict=True):
        groups.setdefault(score, []).append(is_right)
    total, below = 0.0, 0
    for score in sorted(groups):
        group = groups[score]
        ways = math.comb(below + len(group), k) - math.comb(below, k)
        total += ways * sum(group) / len(group)
        below += len(group)
    return total / math.comb(len(scores), k)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean over tasks and its standard error, which is NaN for a single task.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("there is nothing to take the mean of")
    array = np.asarray(values, np.float64)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.nan


def _check(samples: int, k: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k = {k} needs at least as many samples and at least 1, got {samples}")
