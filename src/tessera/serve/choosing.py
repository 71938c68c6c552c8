"""Which of several answers to one question are given: those that most agree with, or the likeliest (arXiv 2203.11171)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal

from tessera.posttrain.verifiers.answers import number
from tessera.posttrain.verifiers.task import extract
from tessera.serve.answers import Answer

Choose = Literal["votes", "likelihood"]


def chosen(answers: Sequence[Answer], n: int, by: Choose) -> list[tuple[int, int]]:
    """The best `n` answers, best first.

    Args:
        answers: finished.
        n: at most as many as there are answers.
        by: `votes`: those that most of them give, no two alike while there are others, each in its likeliest form;
            `likelihood`: those with the highest mean log-probability of a token.

    Returns:
        (place in `answers`, how many agree with it, itself included) of each.
    """
    votes = [vote(answer) for answer in answers]
    counts = Counter(votes)
    likely = sorted(range(len(answers)), key=lambda i: -_mean_logprob(answers[i]))
    if by == "votes":
        seen: Counter[Hashable] = Counter()
        rounds = {}
        for i in likely:
            rounds[i] = seen[votes[i]]
            seen[votes[i]] += 1
        # Sorting is stable: among equals the likelier one is first.
        likely.sort(key=lambda i: (rounds[i], -counts[votes[i]]))
    return [(i, counts[votes[i]]) for i in likely[:n]]


def vote(answer: Answer) -> Hashable:
    """What counts as the same answer: the same calls; else the same final number; else the same words."""
    if answer.calls:
        return tuple((call.name, call.arguments) for call in answer.calls)
    given = extract(answer.content)
    found = number(given)
    return " ".join(given.casefold().split()) if found is None else found


def _mean_logprob(answer: Answer) -> float:
    return sum(token.logprob for token in answer.tokens) / max(1, len(answer.tokens))
