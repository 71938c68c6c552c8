"""Tokens that are likely to come, fed to the model beside a stream's last one: what is guessed, and what is sampled where.

The random number of a token is the same with guesses as without, and so is therefore the token: guesses save steps and change
nothing (arXiv 2211.17192, where the draft is certain of itself).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.engine.constraints import Guesses
from tessera.engine.request import Top
from tessera.engine.sampling import Draw, sample, uniform
from tessera.engine.scheduler import Row


@dataclass(frozen=True)
class Guessed:
    """What was fed to the model before it was known to come.

    Args:
        ids: L - 1 of them.
        logits_LV: behind the token before them and behind each of them.
    """

    ids: list[int]
    logits_LV: Tensor


def guess(row: Row, most: int, context: int) -> list[int]:
    """What is likely to come after a row's last token, where that is next, at most so many; the same for both rows of a pair."""
    leader = row.leader or row
    # Most rows have no constraint, or guessed badly of late; asking what one can do would take longer than all else here.
    if leader.progress is None or not most or leader.made < leader.guesses_from or row.pending != 1 or not row.past_prompt:
        return []
    if leader.request.params.penalised or not isinstance(leader.progress, Guesses):
        return []
    room = min(leader.room - leader.made - 1, context - max(len(one.ids) for one in leader.rows))
    return leader.progress.guess(leader.ids[leader.prompt_tokens :], min(most, leader.guesses, room))


def draw_all(guessed: Mapping[Row, Guessed], blocked: Tensor) -> dict[tuple[Row, int], tuple[int, float, Top]]:
    """Samples at every place of the rows with guesses where there is a choice, all at once.

    Args:
        guessed: of leaders, followers and single rows.
        blocked: as in `sampling.sample`.

    Returns:
        By row and place, counted from the token that comes next: id, log-probability, and the likeliest.
    """
    places: list[tuple[Row, int]] = []
    logits: list[Tensor] = []
    draws: list[Draw] = []
    for row, fed in guessed.items():
        if row.leader is not None:
            continue
        assert isinstance(row.progress, Guesses)
        allowed_V = row.progress.allowed()
        allowed_V = None if allowed_V is None else allowed_V.to(fed.logits_LV.device)
        guidance, drawn = row.request.guidance, row.draws
        for place, logits_V in enumerate(fed.logits_LV):
            if row.progress.ahead(place) >= 0:
                continue
            if row.follower is not None and guidance is not None and guidance.holds(row.made + place):
                logits_V = guidance.mixed(logits_V, guessed[row.follower].logits_LV[place])
            draws.append(Draw(row.request.params, uniform(row.seed, drawn), None, allowed_V))
            places.append((row, place))
            logits.append(logits_V)
            drawn += 1
    if not draws:
        return {}
    sampled = sample(torch.stack(logits), draws, blocked)
    return dict(zip(places, zip(sampled.ids, sampled.logprobs, sampled.top, strict=True), strict=True))
