"""Every stage in two processes: what one process learns from a batch, two learn from it together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.posttrain.conftest import EXAMPLES, SMALL, WORDS, events

PAIRS = [
    {"prompt": f"Say {first} then {second}", "chosen": f"{first} {second}.", "rejected": f"{second}."}
    for first in WORDS
    for second in WORDS
]
LABELLED = [{"text": f"{word} {n}", "labels": {"violence": int(word == "red")}} for word in WORDS for n in range(8)]


def group(*words: str, processes: int = 2) -> tuple[list[int], list[str]]:
    """Exit codes and standard errors of a group that tunes, started as `torchrun` does, whose own start would take as long."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        alike = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-m", "tessera", *words]
        one = subprocess.Popen(command, env={**os.environ, **alike, **place}, stderr=subprocess.PIPE, text=True)
        started.append(one)
    said = [process.communicate()[1] for process in started]
    return [process.returncode for process in started], said


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Words of each stage on the command line."""
    return {
        "sft": ("--epochs", "3", "--set", "train.batch_rows=6", "--validation-share", "0"),
        "dpo": ("--epochs", "2", "--batch-size", "5", "--rate", "0.002"),
        "reward": ("--epochs", "2", "--batch-size", "5", "--rate", "0.002"),
        "moderation": ("--epochs", "2", "--batch-size", "5"),
        "grpo": (*SMALL, "--rate", "0.01"),
        "ppo": (*SMALL, "--rate", "0.01", "--critic-warmup", "1", "--whiten"),
    }


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "moderation", "grpo", "ppo"])
def test_two_processes_learn_what_one_does(
    stage: str, stages: dict[str, tuple[str, ...]], starter: Path, tasks: str, write: Callable[..., str], tmp_path: Path,
    tessera: Callable[..., tuple[int, str]],
) -> None:  # fmt: skip
    lines = {"sft": EXAMPLES, "dpo": PAIRS, "reward": PAIRS, "moderation": LABELLED}
    data = write(lines[stage]) if stage in lines else tasks
    shared = ("posttrain", stage, "--model", str(starter), "--data", data, "--set", "train.threads=1", *stages[stage])
    shared = (*shared, "--set", "train.precision=float32")  # so that another order of sums changes next to nothing
    one, two = tmp_path / "one", tmp_path / "two"
    code, text = tessera(*shared, "--out", str(one))
    assert code == 0, text
    codes, said = group(*shared, "--out", str(two))
    assert codes == [0, 0], "\n".join(said)
    assert "model" in said[0] and not said[1]
    alone, together = (events(run, "step") for run in (one, two))
    assert len(alone) == len(together) > 2
    # Sampled tokens may part once roundings differ, so of rollouts only the first batches are compared.
    compared = slice(0, 2) if stage in ("grpo", "ppo") else slice(None)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(of(together, name)[compared], of(alone, name)[compared], rtol=2e-4, atol=1e-6)
    if stage in ("grpo", "ppo"):
        assert events(two, "rollouts")[0]["rewards"] == events(one, "rollouts")[0]["rewards"]
    else:
        ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (two, one))
        assert all(np.allclose(ours[name], theirs[name], atol=2e-4) for name in theirs)


def of(steps: list[dict[str, Any]], name: str) -> list[float]:
    return [step[name] for step in steps]


def test_more_processes_than_rows_are_refused_once(starter: Path, write: Callable[..., str], tmp_path: Path) -> None:
    words = (
        "posttrain",
        "dpo",
        "--model",
        str(starter),
        "--data",
        write(PAIRS),
        "--out",
        str(tmp_path / "run"),
        "--batch-size",
        "1",
    )
    codes, said = group(*words)
    assert codes == [2, 2] and "2 processes cannot share batches of 1" in said[0] and not said[1], said
