"""Rollouts: what is sampled is what is learned from, again to the bit, and only where there is something to learn."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tessera.data.loader import Batch
from tessera.device import Machine
from tessera.engine.request import Completion, FinishReason
from tessera.errors import UserError
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.posttrain.curriculum import Curriculum, open_pool
from tessera.posttrain.rollouts import Judge, Player, Rollouts, Sampling, mix, prompt_ids, rows_of, with_advantages
from tessera.posttrain.verifiers import Task
from tessera.recipe import Train
from tessera.tokens.document import TokenRecord
from tessera.tokens.vocabulary import Vocabulary
from tessera.train.gradients import Gradients
from tessera.train.parallel import World
from tessera.train.policy import PolicySettings, objective

MACHINE = Machine("test", "cpu", 0, "float32", 1, "test")
VOCABULARY = Vocabulary.train(["a byte is enough"], 256)
POOL = open_pool("reversal:2-3", 8, 0)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny() -> Decoder:
    """Ends an answer about every fifth token, and else says anything."""
    shape = DecoderConfig(VOCABULARY.size, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=48, context=64)
    decoder = Decoder(shape)
    decoder.initialise(0)
    dice = torch.Generator().manual_seed(1)
    for name, parameter in decoder.named_parameters():
        if name.endswith("weight") and parameter.ndim == 2:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=dice)
    with torch.no_grad():
        ids = torch.tensor([VOCABULARY.encode_text("reverse ab: ")])
        toward = decoder(ids)[0, -1]
        decoder.head_weight[VOCABULARY.end_id] += toward * (4 / toward.square().sum())
    return decoder


def first_letter_is_even(tasks: Any, answers: Any) -> list[list[float]]:
    return [[float(len(answer) % 2) for answer in group] for group in answers]


def never(tasks: Any, answers: Any) -> list[list[float]]:
    return [[0.0] * len(group) for group in answers]


def source(judge: Judge = first_letter_is_even, tell: Any = lambda event: None, **more: Any) -> Rollouts:
    player = Player(tiny(), VOCABULARY, False, torch.device("cpu"), torch.float32)
    sampling = Sampling(**{"group": 4, "groups": 6, "max_tokens": 12} | more)
    return Rollouts(player, POOL, player.graded_by(judge), sampling, Curriculum(2), tell)


def completion(ids: list[int], reason: FinishReason = "stop") -> Completion:
    learn = np.array([False, False] + [True] * len(ids))
    record = TokenRecord(np.array([7, 8, *ids], np.int32), learn, np.where(learn, -0.5, 0).astype(np.float32))
    return Completion(record, 2, 0, 0, reason, "", 0, 0)


def same(a: Batch, b: Batch) -> bool:
    return all(
        np.array_equal(x, y) for x, y in ((a.ids, b.ids), (a.learn, b.learn), *((a.extras[n], b.extras[n]) for n in a.extras))
    )


def test_an_advantage_is_the_reward_less_the_mean_of_the_group() -> None:
    group = [completion([3, 4]), completion([5]), completion([6, 6, 6]), completion([9])]
    records = with_advantages(group, [1, 0, 0, 1], std=False)
    assert records is not None
    assert records[0].advantages.tolist() == [0, 0, 0.5, 0.5]  # type: ignore[union-attr]
    assert [float(r.advantages[-1]) for r in records] == [0.5, -0.5, -0.5, 0.5]  # type: ignore[index]
    records = with_advantages(group, [1, 0, 0, 0], std=True)
    assert records is not None
    np.testing.assert_allclose([r.advantages[-1] for r in records], [3**0.5, *[-(3**-0.5)] * 3], rtol=1e-6)  # type: ignore[index]


def test_a_group_without_contrast_teaches_nothing() -> None:
    group = [completion([3]), completion([4])]
    assert with_advantages(group, [1, 1], False) is None and with_advantages(group, [0, 0], True) is None


def test_an_answer_that_was_cut_off_counts_in_the_mean_and_is_not_learned_from() -> None:
    group = [completion([3]), completion([4], "length"), completion([5], "length")]
    records = with_advantages(group, [1, 0, 0], False)
    assert records is not None and len(records) == 1 and float(records[0].advantages[-1]) == pytest.approx(2 / 3)  # type: ignore[index]
    assert with_advantages(group[1:], [1, 0], False) is None
    records = with_advantages(group, [1, 0, 0], False, punish=True)
    assert records is not None and [round(float(r.advantages[-1]), 4) for r in records] == [0.6667, -0.3333, -0.3333]  # type: ignore[index]


def test_a_record_that_is_all_prompt_or_all_answer_raises() -> None:
    whole, other = completion([3]), completion([4])
    for learn in (np.zeros(3, bool), np.ones(3, bool)):
        spoiled = replace(whole, record=replace(whole.record, learn=learn))
        with pytest.raises(AssertionError, match="prompt"):
            with_advantages([spoiled, other], [1, 0], False)


def test_rows_speak_of_the_next_token() -> None:
    records = with_advantages([completion([3, 4]), completion([5])], [1, 0], False)
    assert records is not None
    batch = rows_of(records, pad=1)
    assert batch.ids.tolist() == [[7, 8, 3, 4, 1, 1, 1, 1, 1], [7, 8, 5, 1, 1, 1, 1, 1, 1]]
    assert batch.learn.tolist() == [[False, True, True, *[False] * 5], [False, True, *[False] * 6]]
    assert batch.extras["advantages"][:, :3].tolist() == [[0, 0.5, 0.5], [0, -0.5, 0]]
    assert batch.extras["logprobs"][:, :3].tolist() == [[0, -0.5, -0.5], [0, -0.5, 0]]
    assert batch.learned == 3 and batch.tokens == 5


def test_the_end_of_an_answer_is_learned_and_training_finds_the_probabilities_of_the_rollout() -> None:
    rollouts = source()
    batch = rollouts.next()
    assert batch.learned > 0 and batch.facts["truncated"] < 1
    for ids, learn in zip(batch.ids, batch.learn, strict=True):
        assert ids[1:][learn][-1] == VOCABULARY.end_id and not learn[: len("reverse ") - 1].any()
    policy = objective(PolicySettings(), rollouts.player.blocked())
    gradients = Gradients(rollouts.player.policy, Train(batch_rows=24, context=32), MACHINE, World(), policy)
    sums = gradients.add(batch, batch.learned) / batch.learned
    assert 0 < float(sums[gradients.measures.index("mismatch")]) <= 1e-5


def test_the_weights_of_the_moment_are_played() -> None:
    rollouts = source()
    played = [c.ids.tolist() for c in rollouts.player.play(POOL.held_out[:2], 4, 8, "x")[0]]
    with torch.no_grad():
        rollouts.player.policy.head_weight[VOCABULARY.end_id] *= 10
    assert [c.ids.tolist() for c in rollouts.player.play(POOL.held_out[:2], 4, 8, "x")[0]] != played


def test_no_rollout_is_longer_than_a_row_holds() -> None:
    # A generated task may have more tokens than all those that the row was measured by.
    player = Player(tiny(), VOCABULARY, False, torch.device("cpu"), torch.float32, longest=16)
    groups = player.play([Task("reverse ab: "), Task("reverse abcd: ")], 8, 12, "long")
    assert max(len(c.record) for group in groups for c in group) == 16
    assert {c.finish_reason for group in groups for c in group} == {"stop", "length"}


def test_messages_that_are_none_are_told_of_their_task() -> None:
    with pytest.raises(UserError, match=r"task 'tasks\.jsonl:3': message 0 is not an object"):
        prompt_ids(Task("hi", data={"messages": "hi"}, id="tasks.jsonl:3"), VOCABULARY, True)


def test_dead_groups_are_refilled_as_often_as_allowed_and_told() -> None:
    told: list[dict[str, Any]] = []
    batch = source(never, told.append, refills=3).next()
    assert batch.learned == 0 and batch.facts["dead_groups"] == 1 and batch.facts["rollouts"] == 4 * 6 * 4
    assert len(told) == 1 and len(told[0]["tasks"]) == 24 and told[0]["rewards"] == [[0.0] * 4] * 24
    judged = 0

    def half(tasks: Any, answers: Any) -> list[list[float]]:
        nonlocal judged
        judged += 1
        found = first_letter_is_even(tasks, answers)
        return [group if place % 2 else [0.0] * 4 for place, group in enumerate(found)]

    batch = source(half, refills=5).next()
    groups = {tuple(ids[:12]) for ids in batch.ids.tolist()}
    assert judged > 1 and len(groups) <= 6 and 0.3 < batch.facts["dead_groups"] < 1


def test_they_are_repeated_to_the_bit_and_go_on_where_the_state_was_taken() -> None:
    unbroken, other = source(updates=2), source(updates=2)
    batches = [unbroken.next() for _ in range(4)]
    first = other.next()
    assert same(first, batches[0])
    state = json.loads(json.dumps(other.state()))
    resumed = source(updates=2)
    resumed.restore(state)
    # The second part of the first rollouts, then fresh ones.
    assert all(same(resumed.next(), batch) for batch in batches[1:])
    assert not same(batches[0], batches[1]) and not same(batches[0], batches[2])
    assert json.loads(json.dumps(resumed.state()))["curriculum"] == unbroken.state()["curriculum"]


def test_supervised_rows_stand_below_with_their_own_weight() -> None:
    records = with_advantages([completion([3, 4]), completion([5])], [1, 0], False)
    assert records is not None
    ids = np.arange(2 * 13).reshape(2, 13)
    learn = np.zeros((2, 12), np.bool_)
    learn[:, 4:10] = True
    mixed = mix(rows_of(records, 1), Batch(ids, learn, None, 24), 0.5, pad=1)
    assert mixed.ids.shape == (4, 13) and mixed.learned == 3
    assert mixed.ids[2:].tolist() == ids.tolist() and not mixed.learn[2:].any()
    assert mixed.extras["supervised"].sum() == pytest.approx(0.5 * 3) and not mixed.extras["supervised"][:2].any()
    assert not mixed.extras["advantages"][2:].any()
