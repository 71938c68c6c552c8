"""The policy gradient: it is the one of the books, and does not depend on how a batch is shared out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from tessera.data.loader import Batch
from tessera.device import Machine
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.recipe import Train
from tessera.train import policy
from tessera.train.gradients import Gradients
from tessera.train.parallel import World
from tessera.train.policy import Policy, PolicySettings, objective, token_logprobs

MACHINE = Machine("test", "cpu", 0, "float32", 1, "test")
V, ROWS, T = 41, 16, 12
BLOCKED = torch.tensor([0, 40])
PLAIN = PolicySettings()


def tiny() -> Decoder:
    decoder = Decoder(DecoderConfig(vocab_size=V, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=64))
    decoder.initialise(0)
    # Fresh blocks are the identity; these are to have gradients everywhere.
    dice = torch.Generator().manual_seed(1)
    for parameter in decoder.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=dice)
    return decoder


def batch(seed: int = 0) -> Batch:
    """Rollouts of different lengths, whose log-probabilities are roughly those of `tiny`."""
    dice = np.random.default_rng(seed)
    ids = dice.integers(1, V - 1, (ROWS, T + 1))
    learn = np.arange(T) < dice.integers(2, T, (ROWS, 1))
    with torch.no_grad():
        logp, _ = logprobs_of(tiny(), ids)
    old = np.where(learn, logp.numpy() + dice.normal(0, 0.3, (ROWS, T)), 0).astype(np.float32)
    advantages = np.where(learn, dice.normal(0, 1, (ROWS, 1)), 0).astype(np.float32)
    return Batch(ids, learn, None, ROWS * T, {"logprobs": old, "advantages": advantages})


def logprobs_of(decoder: Decoder, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) log-probabilities of the targets, and (B, T, V) of all ids, the plain way."""
    tokens = torch.as_tensor(ids)
    logits = decoder.logits(decoder(tokens[:, :-1])).clone()
    logits[..., BLOCKED] = -torch.inf
    everything = logits.log_softmax(-1)
    return everything.gather(-1, tokens[:, 1:, None])[..., 0], everything


def gradient(given: Batch, settings: PolicySettings = PLAIN, **train: Any) -> tuple[list[torch.Tensor], dict[str, float]]:
    decoder = tiny()
    gradients = Gradients(
        decoder, Train(**{"batch_rows": ROWS, "context": T} | train), MACHINE, World(), objective(settings, BLOCKED)
    )
    sums = gradients.add(given, given.learned) / given.learned
    return [p.grad for p in decoder.parameters() if p.grad is not None], dict(zip(gradients.measures, sums.tolist(), strict=True))


def difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Largest difference as a part of the largest entry."""
    return float(torch.cat([(x - y).flatten() for x, y in zip(a, b, strict=True)]).abs().max()) / float(
        torch.cat([y.flatten() for y in b]).abs().max()
    )


def test_on_policy_it_is_the_gradient_of_the_mean_advantage_times_log_probability() -> None:
    given, decoder = batch(), tiny()
    logp, everything = logprobs_of(decoder, given.ids)
    given.extras["logprobs"][:] = np.where(given.learn, logp.detach().numpy(), 0)
    learn, A = torch.as_tensor(given.learn), torch.as_tensor(given.extras["advantages"])
    (-(logp * A)[learn].sum() / learn.sum()).backward()
    found, measures = gradient(given)
    assert difference(found, [p.grad for p in decoder.parameters() if p.grad is not None]) < 1e-5
    entropy = torch.special.entr(everything.detach().exp()).sum(-1)[learn].mean()
    assert measures["entropy"] == pytest.approx(float(entropy), rel=1e-5)
    assert measures["mismatch"] < 1e-6 and measures["clipped"] == 0


def test_a_ratio_to_the_rollout_is_corrected_up_to_a_cap() -> None:
    given, decoder = batch(), tiny()
    logp, _ = logprobs_of(decoder, given.ids)
    learn, A = torch.as_tensor(given.learn), torch.as_tensor(given.extras["advantages"])
    given.extras["logprobs"][0, 0] -= 3
    change = logp.detach() - torch.as_tensor(given.extras["logprobs"])
    (-(change.exp().clamp(max=policy.RATIO_CAP) * logp * A)[learn].sum() / learn.sum()).backward()
    found, measures = gradient(given)
    assert difference(found, [p.grad for p in decoder.parameters() if p.grad is not None]) < 1e-5
    assert measures["mismatch"] == pytest.approx(float(change[learn].abs().mean()), rel=1e-4)
    assert measures["clipped"] == pytest.approx(float((change.exp() >= policy.RATIO_CAP)[learn].double().mean()))


@pytest.mark.parametrize("micro_rows", [1, 4, 5])
def test_micro_batches_change_nothing_but_rounding(micro_rows: int) -> None:
    assert difference(gradient(batch(), micro_rows=micro_rows)[0], gradient(batch(), micro_rows=ROWS)[0]) <= 1e-5
    assert difference(gradient(batch(), workers=2, micro_rows=micro_rows)[0], gradient(batch())[0]) <= 1e-5


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    whole, decoder, world = batch(), tiny(), World(rank, 2)
    # Shares of unlike numbers of tokens: the mean of two means would be another.
    rows = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    share = Batch(whole.ids[rows], whole.learn[rows], None, whole.tokens, {n: a[rows] for n, a in whole.extras.items()})
    gradients = Gradients(decoder, Train(batch_rows=ROWS, context=T, micro_rows=4), MACHINE, world, objective(PLAIN, BLOCKED))
    learned = float(world.sum(torch.tensor(share.learned)))
    gradients.add(share, learned)
    if rank == 0:
        torch.save([p.grad for p in decoder.parameters()], f"{folder}/gradients")
    world.barrier()  # neither leaves before the other: 1 of 36 ended in SIGABRT, with this 0 of 90
    dist.barrier()  # as `parallel.joined` does: who leaves first takes with it what the other still holds, which may abort
    dist.destroy_process_group()


def test_two_processes_find_the_gradient_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    assert difference(torch.load(tmp_path / "gradients", weights_only=True), gradient(batch())[0]) <= 1e-5


def test_clipping_bounds_what_a_ratio_can_gain() -> None:
    change = torch.tensor([0.5, 0.1, -0.5, 0.5, -0.5, 2.0]).requires_grad_()
    A = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    module = Policy(tiny(), PolicySettings(clip_low=0.2, clip_high=0.3, dual_clip=3.0), BLOCKED, False)
    gain, clipped = module._gain(change, A)
    expected = [1.3, np.exp(0.1), np.exp(-0.5), -np.exp(0.5), -0.8, -3.0]
    np.testing.assert_allclose(gain.detach().numpy(), expected, rtol=1e-6)
    assert clipped.tolist() == [True, False, False, False, True, True]
    gain.sum().backward()
    assert change.grad is not None and (change.grad != 0).tolist() == [False, True, True, True, False, False]


def test_the_kl_is_estimated_without_bias_and_pulls_back() -> None:
    given, decoder = batch(), tiny()
    logp, _ = logprobs_of(decoder, given.ids)
    given.extras["advantages"][:] = 0
    given.extras["reference"] = np.where(given.learn, logp.detach().numpy() - 0.5, 0).astype(np.float32)  # type: ignore[index]
    found, measures = gradient(given, PolicySettings(kl=0.1))
    assert measures["kl"] == pytest.approx(np.exp(-0.5) - 0.5, rel=1e-5)
    learn = torch.as_tensor(given.learn)
    # d k3 / d logp = 1 - exp(reference - logp).
    (0.1 * (1 - np.exp(-0.5)) * logp[learn].mean()).backward()
    assert difference(found, [p.grad for p in decoder.parameters() if p.grad is not None]) < 1e-4


def test_supervised_rows_have_a_mean_of_their_own() -> None:
    given, decoder = batch(), tiny()
    given.extras["advantages"][:] = 0
    learn = given.learn.copy()
    given.learn[8:] = False
    weights = np.zeros((ROWS, T), np.float32)
    weights[8:] = learn[8:] * 0.5 * given.learn.sum() / learn[8:].sum()
    given.extras["supervised"] = weights  # type: ignore[index]
    found, measures = gradient(given, PolicySettings(supervised=True))
    logp, _ = logprobs_of(decoder, given.ids)
    loss = -0.5 * logp[8:][torch.as_tensor(learn[8:])].mean()
    loss.backward()
    assert measures["supervised_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert difference(found, [p.grad for p in decoder.parameters() if p.grad is not None]) < 1e-5


def test_many_logits_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.randn(300, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets, head = torch.arange(300) % (V - 2) + 1, tiny().head_weight
    whole = token_logprobs(hidden, head, targets, BLOCKED)
    (expected,) = torch.autograd.grad(whole[0].square().sum(), hidden)
    monkeypatch.setattr(policy, "_LOGIT_BYTES", {"cpu": 1})
    parts = token_logprobs(hidden, head, targets, BLOCKED)
    (found,) = torch.autograd.grad(parts[0].square().sum(), hidden)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(found, expected)
