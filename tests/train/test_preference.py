"""Preferences: the losses are those of the papers, and answers side by side are as if each stood alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tessera.data.loader import Batch
from tessera.device import Machine
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.posttrain.pairs import rows_of
from tessera.posttrain.preference import Row, batch_of
from tessera.recipe import Train
from tessera.tokens.document import TokenRecord
from tessera.train.gradients import Gradients
from tessera.train.objectives import Objective
from tessera.train.parallel import World
from tessera.train.preference import PreferenceSettings, preference_objective, reward_objective

MACHINE = Machine("test", "cpu", 0, "float32", 1, "test")
V, SCORE = 41, 39


def tiny() -> Decoder:
    decoder = Decoder(DecoderConfig(vocab_size=V, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=64))
    decoder.initialise(0)
    dice = torch.Generator().manual_seed(1)
    for parameter in decoder.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=dice)
    return decoder


def record(seed: int, prompt: int = 3) -> TokenRecord:
    dice = np.random.default_rng(seed)
    length = prompt + int(dice.integers(2, 6))
    ids = dice.integers(1, 38, length).astype(np.int32)
    return TokenRecord(ids, np.arange(length) >= prompt)


def logprob(decoder: Decoder, answer: TokenRecord) -> torch.Tensor:
    """Of one answer that stands alone."""
    ids = torch.as_tensor(answer.ids.astype(np.int64))[None]
    logp = decoder.logits(decoder(ids[:, :-1])).log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
    return logp[torch.as_tensor(answer.learn[1:])].sum()


def score(decoder: Decoder, answer: TokenRecord) -> torch.Tensor:
    ids = torch.as_tensor(answer.ids.astype(np.int64))[None]
    return decoder.logits(decoder(ids))[0, -1, SCORE]


def learn(objective: Objective, batch: Batch, **train: Any) -> tuple[Decoder, dict[str, float]]:
    decoder = tiny()
    gradients = Gradients(decoder, Train(**{"batch_rows": len(batch.ids), "context": 32} | train), MACHINE, World(), objective)
    sums = gradients.add(batch, batch.learned) / batch.learned
    return decoder, dict(zip(gradients.measures, sums.tolist(), strict=True))


def same_gradients(found: Decoder, wanted: Decoder) -> bool:
    pairs = [(a.grad, b.grad) for a, b in zip(found.parameters(), wanted.parameters(), strict=True)]
    largest = max(float(b.abs().max()) for _, b in pairs if b is not None)
    return all(float((a - b).abs().max()) <= 2e-5 * largest for a, b in pairs if a is not None and b is not None)


def test_rows_hold_answers_side_by_side_with_their_last_tokens_among_what_is_read() -> None:
    first, second = (
        TokenRecord(np.array([5, 6, 7]), np.array([False, True, True])),
        TokenRecord(np.array([5, 8]), np.array([False, True])),
    )
    batch = rows_of([[first, second]], pad=1)
    assert batch.ids.tolist() == [[5, 6, 7, 5, 8, 1, 1, 1, 1]]
    assert batch.learn.tolist() == [[True, True, False, True, *[False] * 4]]
    assert batch.documents is not None and batch.documents.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]
    scored = batch_of([Row((first, second))], pad=1)
    assert scored.extras["places"].tolist() == [[2, 4]] and scored.learned == 1 and scored.tokens == 3


@pytest.mark.parametrize("settings", [PreferenceSettings(), PreferenceSettings(0.3, True, 0.5)])
def test_the_loss_is_that_of_dpo_and_a_pair_is_never_parted(settings: PreferenceSettings) -> None:
    pairs = [(record(2 * n), record(2 * n + 1)) for n in range(5)]
    reference = [(-3.0 - n, -4.0) for n in range(5)]
    batch = batch_of([Row(pair, reference=two) for pair, two in zip(pairs, reference, strict=True)], pad=1)
    wanted, losses, margins = tiny(), [], []
    for pair, two in zip(pairs, reference, strict=True):
        logp = [logprob(wanted, answer) for answer in pair]
        counts = [float(answer.learn.sum()) for answer in pair]
        change = [(p - r) / (n if settings.normalised else 1) for p, r, n in zip(logp, two, counts, strict=True)]
        margins.append(settings.beta * (change[0] - change[1]))
        losses.append(-F.logsigmoid(margins[-1]) - settings.anchor * logp[0] / counts[0])
    torch.stack(losses).mean().backward()
    for micro_rows in (1, 5):
        found, measures = learn(preference_objective(settings), batch, micro_rows=micro_rows)
        assert same_gradients(found, wanted)
        assert measures["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
        assert measures["margin"] == pytest.approx(float(torch.stack(margins).mean()), rel=1e-4, abs=1e-6)
        assert measures["accuracy"] == np.mean([float(margin) > 0 for margin in margins])


def test_a_tie_is_half_right_so_that_a_model_before_its_first_step_is_at_chance() -> None:
    alike = Row((record(0), record(0)), reference=(-3.0, -3.0))
    _, measures = learn(preference_objective(PreferenceSettings()), batch_of([alike, alike], pad=1), micro_rows=2)
    assert (measures["margin"], measures["accuracy"]) == (0, 0.5)


def test_all_pairs_of_a_prompt_count_as_one_and_scores_are_read_at_the_last_real_token() -> None:
    rows = [
        Row((record(1), record(2), record(3)), ((0, 1), (0, 2), (1, 2))),
        Row((record(4), record(5)), ((1, 0),)),
    ]
    wanted, losses = tiny(), []
    for row in rows:
        scores = [score(wanted, answer) for answer in row.records]
        losses.append(torch.stack([-F.logsigmoid(scores[a] - scores[b]) for a, b in row.better]).mean())
    torch.stack(losses).mean().backward()
    for micro_rows in (1, 2):
        found, measures = learn(reward_objective(SCORE), batch_of(rows, pad=1), micro_rows=micro_rows)
        assert measures["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
        assert same_gradients(found, wanted)
