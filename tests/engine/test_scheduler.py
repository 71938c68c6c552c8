"""Who comes next, and how much of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tessera.engine.engine import Engine, Limits
from tessera.engine.request import Request
from tessera.engine.sampling import SamplingParams
from tessera.engine.scheduler import OVERTAKEN, Row, Scheduler, plan
from tessera.engine.stream import TextStream
from tessera.errors import UserError
from tessera.model.decoder import Decoder
from tessera.tokens.vocabulary import Vocabulary


def row(id: int, pending: int, priority: int = 0, room: int = 10) -> Row:
    request = Request(tuple(range(pending)), SamplingParams(room), priority=priority)
    return Row(id, request, list(request.prompt), pending, 0, room, 0, frozenset(), TextStream(), [])


@pytest.mark.parametrize(
    "pending,budget,counts",
    [
        ([1, 1, 1], 8, [1, 1, 1]),
        ([100, 1], 8, [7, 1]),
        ([1, 5], 8, [1, 5]),
        ([100, 1, 3, 40], 16, [8, 1, 3, 4]),
        ([100, 20], 11, [6, 5]),
        ([6, 3, 3], 64, [6, 3, 3]),
    ],
)
def test_a_step_serves_every_stream_and_divides_the_rest(pending: list[int], budget: int, counts: list[int]) -> None:
    assert plan([row(i, n) for i, n in enumerate(pending)], budget) == counts


def test_lower_priorities_come_first_and_nobody_waits_for_ever() -> None:
    scheduler = Scheduler(Limits(queued_requests=10_000), 10_000)
    for id, priority in enumerate([0, 1, -1, 1, 0]):
        scheduler.submit(row(id, 2, priority))
    order = []
    while (next_row := scheduler.admit(set())) is not None:
        order.append(next_row.id)
    assert order == [2, 0, 4, 1, 3]
    scheduler.submit(row(5, 2, priority=1))
    for id in range(6, 2 * OVERTAKEN):
        scheduler.submit(row(id, 2))
    served = []
    while 5 not in served:
        next_row = scheduler.admit(set())
        assert next_row is not None
        served.append(next_row.id)
    assert len(served) == OVERTAKEN


def test_a_large_request_is_not_passed_by_small_ones() -> None:
    scheduler = Scheduler(Limits(rows=8), 100)
    scheduler.running = [row(0, 20)]
    scheduler.submit(row(1, 80))
    scheduler.submit(row(2, 2))
    assert scheduler.admit(set()) is None
    scheduler.running = []
    first = scheduler.admit(set())
    assert first is not None and first.id == 1


def test_priorities_order_what_an_engine_serves(
    decoder: Decoder, vocabulary: Vocabulary, ask: Callable[..., tuple[int, Any]]
) -> None:
    engine = Engine(decoder, vocabulary, Limits(rows=1))
    params = SamplingParams(2, temperature=0, stop_ids=())
    heard = [ask(engine, [1], params, priority=priority)[1] for priority in (0, 2, 1)]
    ends: list[int] = []
    going = True
    while going:
        going = engine.step()
        ends += [i for i, h in enumerate(heard) if len(h.events) == 3 and i not in ends]
    assert ends == [0, 2, 1]


@pytest.mark.parametrize(
    "change", [{"rows": 0}, {"step_tokens": 16}, {"step_seconds": 0.0}, {"queued_requests": 0}, {"cache_tokens": 0}]
)
def test_limits_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        Limits(**change)


def test_steps_with_prompts_have_as_many_tokens_as_go_into_their_time() -> None:
    free, bound = (Scheduler(Limits(rows=4, step_tokens=256, step_seconds=most), 1000) for most in (None, 0.1))
    for scheduler in (free, bound):
        assert scheduler.step_tokens == 256
        scheduler.took(256, 0.2)
    assert free.step_tokens == 256 and bound.step_tokens == 128
    bound.took(4, 0.1)  # running streams alone say nothing about prompts
    assert bound.step_tokens == 128
    for _ in range(50):
        bound.took(128, 2.0)
    assert bound.step_tokens == 40  # a token for every row and some of a prompt, however slow
    for _ in range(50):
        bound.took(40, 0.001)
    assert bound.step_tokens == 256


def test_guesses_that_do_not_come_true_are_left_out_for_longer_and_longer() -> None:
    one = row(0, 3)
    one.judge_guesses(tried=1, right=1)
    assert (one.guesses, one.guesses_from) == (2, 0)
    one.judge_guesses(tried=4, right=2)
    assert (one.guesses, one.guesses_from) == (2, 0)
    pauses = []
    for _ in range(8):
        one.judge_guesses(tried=2, right=0)
        pauses.append(one.guesses_from - one.made)
    assert one.guesses == 1 and pauses == [2, 4, 8, 16, 32, 64, 64, 64]
    one.judge_guesses(tried=1, right=1)
    one.judge_guesses(tried=2, right=0)
    assert one.guesses_from - one.made == 2
