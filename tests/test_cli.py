"""The command line itself: it answers at once, says its version, and ends bad input in one sentence."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tessera
from tessera import cli
from tessera.commands import reproduce, train
from tessera.errors import Interrupted


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tessera", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "datasets", "pyarrow", "tokenizers", "numpy", "pandas")
    code = f"import sys, tessera.cli; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_version_is_the_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"tessera {tessera.__version__}\n"


@pytest.mark.parametrize(
    "words", [["--nonsense"], ["train"], ["no-such-command"], ["generate", "nowhere", "x"], ["eval", "x", "--samples", "0"]]
)
def test_bad_input_exits_with_2(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    assert call(monkeypatch, *words) == 2


@pytest.mark.parametrize("words", [["generate", "starter", "What"], ["chat", "starter"]])
def test_to_say_nothing_is_refused_before_anything_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert call(monkeypatch, *words, "--max-tokens", "0") == 2
    said = capsys.readouterr()
    assert said.out == "" and "'--max-tokens'" in said.err


@pytest.mark.parametrize("words", [["plan"], ["eval"], ["report"]])
def test_a_name_that_no_file_can_have_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert call(monkeypatch, *words, "x" * 300) == 2
    assert capsys.readouterr().err == f"tessera: {'x' * 40}... is no file: its name is too long.\n"


def test_a_full_disk_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").touch()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        code = call(monkeypatch, "report", str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert code == 1 and said.startswith("tessera: the disk is full: ") and said.count("\n") == 1, said
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"], "nothing half-written is left"


def test_a_chain_that_is_stopped_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*asked: object) -> None:
        raise Interrupted(signal.SIGINT, 7, True)

    monkeypatch.setattr(reproduce, "reproduce", stopped)
    assert call(monkeypatch, "reproduce", "starter") == 130
    assert capsys.readouterr().err.endswith("go on with: tessera reproduce starter --resume\n")


def test_a_run_to_a_loss_that_is_stopped_goes_on_with_the_budget_that_was_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*asked: object) -> None:
        raise Interrupted(signal.SIGINT, 7, True)

    monkeypatch.setattr(train, "train", stopped)
    for words in (["--target-loss", "2", "--yes", "--budget", "1e10"], ["--target-loss=2", "--budget=1e10", "--yes"]):
        assert call(monkeypatch, "train", "text", *words, "--out", "x") == 130
        assert capsys.readouterr().err.endswith("go on with: tessera train text --out x --resume\n")
    assert call(monkeypatch, "train", "text", "--budget", "1e10") == 130
    assert capsys.readouterr().err.endswith("go on with: tessera train text --budget 1e10 --resume\n")


def test_every_command_has_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = [command.name or getattr(command.callback, "__name__", "") for command in cli.app.registered_commands]
    for name in [*names, "tokenizer"]:
        assert call(monkeypatch, name, "--help") == 0
        assert f"tessera {name}" in capsys.readouterr().out


def test_a_signal_within_a_finaliser_still_stops_the_command() -> None:
    """Python prints what a finaliser raises and goes on; imports have many."""
    program = """
import os, signal, time
from tessera.cli_shared import stop_in_words
from tessera.errors import Interrupted

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)

stop_in_words()
try:
    held = Finalised()
    del held
    time.sleep(30)
except Interrupted as stop:
    print(stop)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("stopped by SIGINT\n", "")
