"""The loop: bad steps are skipped, saved states are exact, signals end it in order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.data.loader import Loader, validation_batches
from tessera.data.shards import Shards, SourceShards, Tokens
from tessera.device import Machine
from tessera.errors import Interrupted, RunFailed, UserError
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.recipe import Data, Recipe, Source, Train
from tessera.train import checkpoint, loop
from tessera.train.checkpoint import Writer
from tessera.train.loop import Job, train

V, T, ROWS, STEPS = 24, 16, 4, 60


def numbers(length: int, seed: int) -> Tokens:
    """Documents in which each id is mostly the one before plus one, so that there is something to learn."""
    dice = np.random.default_rng(seed)
    ids = np.cumsum(1 + (dice.random(length) < 0.2) * dice.integers(0, 5, length)) % (V - 2) + 1
    offsets = np.arange(0, length + 1, 50)
    return Tokens(ids.astype(np.uint16), offsets, None)


def make(folder: Path | None = None, observers: tuple[loop.Observer, ...] = (), **settings: Any) -> Job:
    """A run of 60 steps on a model of 14 thousand parameters."""
    base: dict[str, Any] = dict(
        tokens=STEPS * ROWS * T,
        context=T,
        short_context=T // 2,
        batch_rows=ROWS,
        micro_rows=2,
        matrix_rate=0.02,
        adam_rate=0.01,
        weight_decay=0.1,
        warmup_steps=4,
        cooldown_steps=20,
        evaluate_every=10,
        evaluate_tokens=64,
        final_tokens=64,
        checkpoint_seconds=1e-6,
    )
    recipe = Recipe(
        name="test", summary="Counts.", data=Data(sources=(Source(uri="files:none"),)), train=Train(**base | settings)
    )
    decoder = Decoder(DecoderConfig(vocab_size=V, width=32, layers=1, heads=2, kv_heads=1, head_size=16, mlp_width=64, context=T))
    decoder.initialise(0)
    shards = Shards(Path("none"), "hash", (SourceShards("files:none", numbers(4000, 0), numbers(400, 1)),), pad_id=0)
    return Job(
        recipe=recipe,
        decoder=decoder,
        loader=Loader(shards, recipe.data, T, ROWS, seed=0),
        held_out=validation_batches(shards, T, ROWS, 64),
        final_held_out=validation_batches(shards, T, ROWS, 64),
        token_bytes=np.ones(V, np.int32),
        machine=Machine("test", "cpu", 0, "float32", 1, "test"),
        matmul_peak=1e9,
        identity={"recipe": "r", "tokenizer": "t", "data": "d"},
        writer=None if folder is None else Writer(folder),
        observers=observers,
    )


def disturb(job: Job, factor: Callable[[int], float]) -> None:
    """Multiplies what the decoder gives in training step n (from 1) by `factor(n)`."""
    passes = 0

    def hook(module: Any, args: Any, hidden: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        if not torch.is_grad_enabled():
            return hidden
        passes += 1
        return hidden * factor((passes + 1) // 2)  # two micro-batches a step

    job.decoder.register_forward_hook(hook)


def weights_of(job: Job) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in job.decoder.named_parameters()}


def test_the_first_part_of_the_steps_reads_short_rows() -> None:
    lengths: list[int] = []
    job = make(short_share=0.25)
    job.decoder.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]) if torch.is_grad_enabled() else None)
    train(job)
    early = STEPS // 4
    # As many tokens at once as before, in rows half as long.
    assert lengths == [T // 2] * (2 * early) + [T] * (2 * (STEPS - early))


def test_it_learns_and_tells_each_step_once() -> None:
    events: list[dict[str, Any]] = []
    job = make(observers=(events.append,))
    result = train(job)
    steps = [e for e in events if e["event"] == "step"]
    assert [e["step"] for e in steps] == list(range(1, STEPS + 1)) and not any(e["skipped"] for e in steps)
    assert result.loss < 0.7 * steps[0]["loss"]
    assert [e["step"] for e in events if e["event"] == "evaluation"] == list(range(10, STEPS + 1, 10))
    assert set(steps[0]) == {
        "event",
        "step",
        "tokens",
        "loss",
        "accuracy",
        "grad_norm",
        "rate",
        "tokens_per_second",
        "seconds",
        "peak_share",
        "skipped",
    }


@pytest.mark.parametrize("micro_rows", [1, 3, 4])
def test_accumulation_changes_nothing_but_rounding(micro_rows: int) -> None:
    found = []
    for rows in (2, micro_rows):
        events: list[dict[str, Any]] = []
        train(make(observers=(events.append,), micro_rows=rows, tokens=5 * ROWS * T))
        found.append([(e["loss"], e["grad_norm"]) for e in events if e["event"] == "step"])
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    # The weights of later steps have passed through Muon, which makes little of much and much of little.
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 300.0])
def test_a_bad_step_is_skipped_counted_and_told(factor: float) -> None:
    events: list[dict[str, Any]] = []
    seen: list[dict[str, torch.Tensor]] = []
    job = make(observers=(events.append, lambda e: seen.append(weights_of(job)) if e["event"] == "step" else None))
    disturb(job, lambda step: factor if step in {45, 50} else 1.0)
    result = train(job)
    assert [e["step"] for e in events if e["event"] == "step" and e["skipped"]] == [45, 50]
    assert all(torch.equal(seen[43][n], seen[44][n]) for n in seen[44]) and not torch.equal(
        *(seen[i]["model.norm.weight"] for i in (45, 44))
    )
    assert np.isfinite(result.loss)


def test_what_is_known_by_heart_may_vary_as_it_likes() -> None:
    events: list[dict[str, Any]] = []
    job = make(observers=(events.append,))
    disturb(job, lambda step: 1e-7 * (100.0 if step in {45, 50} else 1.0))
    train(job)
    assert not [e["step"] for e in events if e["event"] == "step" and e["skipped"]]


def test_ten_bad_steps_in_a_row_stop_the_run_and_name_the_checkpoint(tmp_path: Path) -> None:
    job = make(tmp_path / "checkpoints")
    disturb(job, lambda step: float("nan") if step > 20 else 1.0)
    with pytest.raises(RunFailed, match="10 steps in a row") as caught:
        train(job)
    newest = checkpoint.latest(tmp_path / "checkpoints", lambda text: pytest.fail(text))
    assert (
        newest is not None
        and f"the last good checkpoint is {newest.folder}" in str(caught.value)
        and "step 20" in str(caught.value)
    )
    assert caught.value.exit_code == 1


def test_the_workers_of_a_run_that_fails_are_gone() -> None:
    def stop(event: dict[str, Any]) -> None:
        raise RunFailed("no more")

    with pytest.raises(RunFailed) as caught:  # held, as a notebook holds the last traceback, and with it the run's frames
        train(make(observers=(stop,), workers=2))
    assert caught.value and not [thread.name for thread in threading.enumerate() if thread.name.startswith("worker")]


def test_nine_bad_steps_are_survived() -> None:
    job = make()
    disturb(job, lambda step: float("nan") if 21 <= step < 30 else 1.0)
    assert np.isfinite(train(job).loss)


@pytest.mark.parametrize("workers", [1, 2])
def test_recomputing_changes_no_bit_of_a_run(workers: int) -> None:
    lean, plain = (make(tokens=10 * ROWS * T, workers=workers, micro_rows=1, recompute=r) for r in (True, False))
    assert train(lean) == train(plain)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(lean).values(), weights_of(plain).values(), strict=True))


@pytest.mark.parametrize("settings", [{"optimizer": "muon"}, {"optimizer": "adamw"}, {"optimizer": "adamw", "recompute": True}])
def test_any_checkpoint_leads_to_the_same_bits(tmp_path: Path, settings: dict[str, Any]) -> None:
    whole = make(tokens=20 * ROWS * T, **settings)
    expected = train(whole)
    broken = make(tmp_path / "checkpoints", tokens=20 * ROWS * T, **settings)
    disturb(broken, lambda step: stop_at(step, 9))
    with pytest.raises(Interrupted) as caught:
        train(broken)
    assert caught.value.step == 9 and caught.value.exit_code == 143
    start = checkpoint.latest(tmp_path / "checkpoints", lambda text: pytest.fail(text))
    assert start is not None and start.step == 9
    again = make(tokens=20 * ROWS * T, **settings)
    assert train(again, start) == expected
    assert all(torch.equal(a, b) for a, b in zip(weights_of(whole).values(), weights_of(again).values(), strict=True))


def stop_at(step: int, wanted: int) -> float:
    if step == wanted:
        os.kill(os.getpid(), signal.SIGTERM)
    return 1.0


def test_signals_are_handed_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    job = make(tmp_path / "checkpoints")
    disturb(job, lambda step: stop_at(step, 2))
    with pytest.raises(Interrupted):
        train(job)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("name", ["recipe", "tokenizer", "data"])
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, name: str) -> None:
    train(make(tmp_path / "checkpoints", tokens=2 * ROWS * T))
    start = checkpoint.latest(tmp_path / "checkpoints", lambda text: pytest.fail(text))
    job = make(tokens=2 * ROWS * T)
    with pytest.raises(UserError, match=f"with another {name}"):
        train(replace(job, identity=job.identity | {name: "other"}), start)


def test_each_checkpoint_is_told_with_the_seconds_that_it_took_itself(tmp_path: Path) -> None:
    told: list[float] = []
    job = make(tmp_path, (lambda e: told.append(e["seconds"]) if e["event"] == "checkpoint" else None,), tokens=5 * ROWS * T)
    train(job)
    assert job.writer is not None and len(told) >= 5
    assert sum(told) == pytest.approx(job.writer.seconds_blocked)


def test_the_best_checkpoint_is_kept_beside_the_newest_two(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    job = make(tmp_path / "checkpoints", observers=(events.append,), evaluate_every=5)
    # From step 15 on the gradients point the wrong way, so that the model gets worse.
    for parameter in job.decoder.parameters():
        parameter.register_hook(lambda g: -g if sum(e["event"] == "step" for e in events) >= 15 else g)
    train(job)
    evaluations = {e["step"]: e["loss"] for e in events if e["event"] == "evaluation"}
    best = min(evaluations, key=evaluations.__getitem__)
    kept = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert best <= 20 and f"step-{best}" in kept and f"step-{STEPS}" in kept and len(kept) == 3
