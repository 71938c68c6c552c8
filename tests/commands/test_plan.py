"""`tessera plan`: what would be trained, from what this machine has."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tessera import device, run
from tessera.commands import train


def planned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The derived settings of a budget that needs no measurement."""
    monkeypatch.setattr(device, "matmul_peak", lambda machine, seconds=1.0: 5e10)
    train.plan("text", "50Mtok", [], True)
    return {item["name"]: item for item in json.loads(capsys.readouterr().out)["derived"]}


def test_a_machine_without_a_compiler_trains_uncompiled_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "can_compile", lambda machine: False)
    choice = planned(monkeypatch, capsys)["train.compile"]
    assert choice["value"] is False and "compiler" in choice["reason"]


def test_micro_batches_follow_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(device, "memory_bytes", lambda machine: 24 << 30)
    assert "memory" in planned(monkeypatch, capsys)["train.micro_rows"]["reason"]


def test_the_commit_is_noted_only_of_our_own_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(text: str) -> None:
        done = subprocess.CompletedProcess([], 0, text, "")
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)

    answer("abc1234\nsrc/tessera/\n")
    assert run.commit() == "abc1234"
    answer("src/tessera/\nabc1234\n")
    assert run.commit() == "abc1234", "other versions of git print the prefix first"
    answer("abc1234\n.venv/lib/python3.12/site-packages/tessera/\n")
    assert run.commit() is None

    def no_git(*args: Any, **kwargs: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert run.commit() is None
