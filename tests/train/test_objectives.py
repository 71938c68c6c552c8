"""The loss, its gradients and the held-out measure, against torch's own and against sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tessera.data.loader import Batch
from tessera.device import Machine, can_compile
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.train import objectives
from tessera.train.objectives import NextToken, document_mask, evaluate, next_token


def tiny() -> Decoder:
    decoder = Decoder(
        DecoderConfig(vocab_size=41, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=64, context=16, tied=False)
    )
    decoder.initialise(0)
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=dice) * 0.05)
    return decoder


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("chunk_bytes", [1 << 22, 4 * 64 * 50])
def test_loss_and_gradients_are_torchs(z_loss: float, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "CHUNK_BYTES", {"cpu": chunk_bytes})
    dice = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 50, 16, generator=dice, requires_grad=True)
    head = torch.randn(50, 16, generator=dice, requires_grad=True)
    targets = torch.randint(50, (3, 50), generator=dice)
    weights = (torch.rand(3, 50, generator=dice) > 0.3).float() * torch.rand(3, 50, generator=dice)
    loss, (nats, _) = next_token(hidden, head, targets, weights, z_loss)
    found = torch.autograd.grad(loss * 0.25, (hidden, head))
    logits = hidden @ head.T
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none") * weights.flatten()
    expected = losses.sum() + z_loss * (logits.logsumexp(-1).square() * weights).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert (
        float(nats) == pytest.approx(float(losses.detach().sum()), rel=1e-5)
        and nats.dtype == torch.float64
        and not nats.requires_grad
    )
    for ours, theirs in zip(found, torch.autograd.grad(expected * 0.25, (hidden, head)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_rows_without_weight_count_for_nothing() -> None:
    hidden, head = torch.randn(1, 8, 16, requires_grad=True), torch.randn(20, 16)
    loss, (nats, _) = next_token(hidden, head, torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1, 8))
    loss.backward()
    assert loss.item() == nats.item() == 0 and hidden.grad is not None and not hidden.grad.any()


def test_very_large_logits_stay_finite() -> None:
    hidden, head = (
        torch.full((1, 4, 8), 60.0, requires_grad=True),
        torch.cat([torch.ones(1, 8), -torch.ones(9, 8)]).requires_grad_(),
    )
    loss, (nats, _) = next_token(hidden, head, torch.tensor([[0, 1, 2, 3]]), torch.ones(1, 4), 1e-4)
    loss.backward()
    assert loss.isfinite() and nats.item() == pytest.approx(3 * 960) and head.grad is not None and head.grad.isfinite().all()


def test_nothing_is_recorded_for_gradients_in_evaluation() -> None:
    with torch.no_grad():
        loss, _ = next_token(
            torch.randn(1, 4, 8), torch.randn(10, 8, requires_grad=True), torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4)
        )
    assert not loss.requires_grad


def test_bits_per_byte_of_a_case_by_hand() -> None:
    decoder = tiny()
    ids = torch.tensor([[5, 6, 7, 8, 0], [9, 10, 0, 0, 0]])
    learn = np.array([[True, True, True, True], [True, True, False, False]])
    token_bytes = np.zeros(41, np.int32)
    token_bytes[6:11] = [1, 2, 3, 4, 5]  # 0 stands for a control token: learned, but no bytes
    found = evaluate(decoder, [Batch(ids.numpy(), learn, None, 6)], token_bytes, torch.device("cpu"))
    with torch.no_grad():
        logits = decoder(ids[:, :-1]) @ decoder.head_weight.T
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(2, 4).double()
    everything, on_bytes = losses[torch.from_numpy(learn)].sum(), losses[0, :3].sum() + losses[1, 0]
    assert found.tokens == 6 and found.loss == pytest.approx(float(everything) / 6, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(float(on_bytes) / math.log(2) / (1 + 2 + 3 + 5), rel=1e-6)
    assert math.isnan(evaluate(decoder, [Batch(ids.numpy(), learn, None, 6)], token_bytes * 0, torch.device("cpu")).bits_per_byte)


def test_bits_per_second_count_what_lasts_by_its_length() -> None:
    decoder = tiny()
    ids = torch.tensor([[5, 6, 7, 8, 0]])
    learn = np.array([[True, False, False, True]])
    token_seconds = np.zeros(41)
    token_seconds[6:9] = [0.5, 0.25, 0.25]  # a film's id, and two of a sound, which are not learned at first
    no_bytes, batches = np.zeros(41, np.int32), [Batch(ids.numpy(), learn, None, 3)]
    found = evaluate(decoder, batches, no_bytes, torch.device("cpu"), token_seconds=token_seconds)
    with torch.no_grad():
        losses = F.cross_entropy(decoder.logits(decoder(ids[:, :-1]))[0], ids[0, 1:], reduction="none").double()
    assert found.bits_per_second == pytest.approx(float(losses[0]) / math.log(2) / 0.5, rel=1e-6)
    learn[0, 1] = True
    learn[0, 2] = True
    found = evaluate(decoder, batches, no_bytes, torch.device("cpu"), token_seconds=token_seconds)
    assert found.bits_per_second == pytest.approx(float(losses[:3].sum()) / math.log(2) / 1.0, rel=1e-6)
    assert list(found.in_bits) == ["bits_per_second"]
    assert math.isnan(evaluate(decoder, batches, no_bytes, torch.device("cpu")).bits_per_second)


def test_an_evaluation_is_the_same_in_any_batches() -> None:
    decoder, dice = tiny(), np.random.default_rng(0)
    ids, learn = dice.integers(0, 41, (6, 17)), dice.random((6, 16)) > 0.2
    token_bytes = dice.integers(0, 4, 41).astype(np.int32)
    together = evaluate(decoder, [Batch(ids, learn, None, 0)], token_bytes, torch.device("cpu"))
    apart = evaluate(
        decoder, [Batch(ids[i : i + 2], learn[i : i + 2], None, 0) for i in (0, 2, 4)], token_bytes, torch.device("cpu")
    )
    assert together.tokens == apart.tokens and together.loss == pytest.approx(apart.loss, rel=1e-6)
    assert together.bits_per_byte == pytest.approx(apart.bits_per_byte, rel=1e-6)
    with torch.no_grad():
        likeliest = decoder.logits(decoder(torch.as_tensor(ids[:, :-1]))).argmax(-1).numpy()
    assert together.accuracy == apart.accuracy == pytest.approx((likeliest == ids[:, 1:])[learn].mean())


def test_masked_documents_do_not_see_each_other() -> None:
    decoder = tiny()
    dice = torch.Generator().manual_seed(3)
    ids, other = torch.randint(41, (1, 17), generator=dice), torch.randint(41, (1, 17), generator=dice)
    other[:, 8:] = ids[:, 8:]
    mask = document_mask(torch.tensor([[0] * 8 + [1] * 8]))
    assert mask.shape == (1, 1, 16, 16) and bool(mask[0, 0].diagonal().all()) and not mask[0, 0].triu(1).any()
    objective, tail = NextToken(decoder, 0.0, compiled=False, recomputed=False), torch.tensor([[0.0] * 8 + [1.0] * 8])
    with torch.no_grad():
        masked = [float(objective(x, tail, mask)[1][0]) for x in (ids, other)]
        open_ = [float(objective(x, tail)[1][0]) for x in (ids, other)]
    assert masked[0] == pytest.approx(masked[1], rel=1e-6) and open_[0] != pytest.approx(open_[1], rel=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_recomputed_blocks_give_the_same_bits(compiled: bool) -> None:
    if compiled and not can_compile(Machine("test", "cpu", 0, "float32", 1, "test")):
        pytest.skip("torch.compile needs a C++ compiler here")
    decoder, ids = tiny(), torch.randint(41, (2, 17), generator=torch.Generator().manual_seed(4))
    mask = document_mask(torch.tensor([[0] * 8 + [1] * 8, [0] * 16]))
    found = []
    for recomputed in (False, True):
        objective = NextToken(decoder, 1e-4, compiled, recomputed)
        decoder.zero_grad()
        loss, _ = objective(ids, torch.ones(2, 16), mask)
        loss.backward()
        objective(ids, torch.ones(2, 16))[0].backward()
        found.append([loss, *(p.grad for p in decoder.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and all(bool(g.any()) for g in found[0])
