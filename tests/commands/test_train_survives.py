"""Kills, signals, full disks and flipped bytes: what was trained is kept, and what comes out is the same to the bit."""

from __future__ import annotations

import errno
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from tessera.model import weights
from tessera.run import RunFolder
from tessera.scaling import seal

KILLED_AT_FLUSH = """
import os, signal, sys
left, real = int(sys.argv.pop(1)), os.fsync
def fsync(handle):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)
os.fsync = fsync
from tessera.cli import main
main()
"""
"""Dies by SIGKILL at the n-th flush to the disk; a resumed run makes one before it trains, and four for each checkpoint."""


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits for something that a process does."""
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.002)


def steps(corner: Any, run: Path) -> int:
    return len(corner.events(run, "step"))


def test_three_kills_and_resumes_give_the_same_bits_as_the_unbroken_run(corner: Any) -> None:
    run, dice = corner.copy("killed", corner.prepared), random.Random(5)
    words = corner.words(run, "--resume")
    for flush in (dice.randint(6, 9), dice.randint(3, 5)):
        process = corner.start(str(flush), *words, launcher=("-c", KILLED_AT_FLUSH))
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    begun, more = steps(corner, run), dice.randint(3, 8)
    process = corner.start(*words)
    process.stderr.readline()
    until(lambda: steps(corner, run) >= begun + more, process)
    process.kill()
    process.communicate()
    assert steps(corner, run) < steps(corner, corner.unbroken)
    code, said = corner.call(*words)
    assert code == 0 and re.search(r"resumed from .*step-\d+", said), said
    assert corner.same(run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_prints_the_resume_command_and_is_the_exit_code(corner: Any, number: int, code: int) -> None:
    run = corner.copy(f"signal-{number}", corner.prepared)
    process = corner.start(*corner.words(run, "--resume"))
    until(lambda: steps(corner, run) >= 3, process)
    # While one trains, nobody else gets in.
    for flag in ((), ("--resume",)):
        refused, said = corner.call(*corner.words(run, *flag))
        assert refused == 2 and len(said.strip().splitlines()) == 1, said
        assert "another process is training" in said if flag else "exists already" in said
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == code, said
    last = said.strip().splitlines()[-1]
    name = signal.Signals(number).name
    found = re.fullmatch(rf"tessera: stopped by {name} after step (\d+); go on with: tessera train text .*--resume.*", last)
    assert found and (run / "checkpoints" / f"step-{found[1]}").is_dir()
    assert "Traceback" not in said
    assert corner.call(*corner.words(run, "--resume"))[0] == 0
    assert corner.same(run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_training_leaves_nothing_in_the_way(corner: Any, number: int, code: int) -> None:
    run = corner.folder / f"early-{number}"
    process = corner.start(*corner.words(run, "train.seed=3"))
    process.stderr.readline()
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == code and "Traceback" not in said, said
    prepared = (run / "run.json").is_file()
    assert said.strip().splitlines()[-1].endswith(f"train.seed=3{' --resume' if prepared else ''}"), said
    if not prepared:
        RunFolder.refuse_occupied(run)


def test_a_run_that_left_its_band_says_so_once_also_when_it_is_resumed(corner: Any, tmp_path: Path) -> None:
    run = corner.copy("left", corner.prepared, tmp_path)
    intervals = {str(level): [0.9, 1.1] for level in seal.LEVELS}
    band = [{"part": part, "loss": 1.0, "intervals": intervals} for part in (0.05, 0.95)]
    page = {"run": str(run), "made": "2026-11-30", "target": {"C": 1e9}, "loss": 1.0, "ladder": [{"C": 1e8, "loss": 2.0}]}
    page |= {
        "fit": {"form": "additive", "coefficients": {}},
        "sd": 0.05,
        "degrees": 3,
        "reach": 2.0,
        "intervals": intervals,
        "band": band,
    }
    seal.seal(run, page, dict.fromkeys(seal.INGREDIENTS, "another"))
    process = corner.start(*corner.words(run, "--resume"))
    until(lambda: steps(corner, run) >= 6, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 143 and steps(corner, run) < 36 and "at step 4 the run left the 99 % band" in said, said
    assert corner.call(*corner.words(run, "--resume"))[0] == 0
    assert [e["step"] for e in corner.events(run, "note") if "99 % band" in e["text"]] == [4]


def test_a_start_that_was_killed_half_way_is_replaced(corner: Any) -> None:
    run = corner.copy("half", corner.prepared)
    (run / "run.json").unlink()
    code, said = corner.call(*corner.words(run, "--resume"))
    assert code == 2 and "without --resume" in said
    assert corner.call(*corner.words(run))[0] == 0
    assert corner.same(run)
    assert len(corner.events(run, "derived")) == len(corner.events(corner.unbroken, "derived"))


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_flipped_byte_is_noticed_and_the_checkpoint_before_is_used(corner: Any, file: str) -> None:
    run = corner.copy(f"flipped-{file}", corner.unbroken)
    shutil.rmtree(run / "model")
    before, newest = sorted((run / "checkpoints").iterdir(), key=lambda p: int(p.name[5:]))[-2:]
    spoiled = bytearray((newest / file).read_bytes())
    spoiled[random.Random(file).randrange(len(spoiled))] ^= 1
    (newest / file).write_bytes(bytes(spoiled))
    code, said = corner.call(*corner.words(run, "--resume"))
    assert code == 0 and re.search(rf"warning: checkpoint \S+{newest.name} is damaged", said) and f"resumed from {before}" in said
    assert corner.same(run)


def test_without_any_good_checkpoint_the_run_begins_anew(corner: Any) -> None:
    run = corner.copy("all-damaged", corner.unbroken)
    shutil.rmtree(run / "model")
    for folder in (run / "checkpoints").iterdir():
        (folder / "state.json").write_text("{}")
    code, said = corner.call(*corner.words(run, "--resume"))
    assert code == 0 and "from the beginning" in said
    assert corner.same(run)


@pytest.fixture
def small_disk(corner: Any) -> Iterator[Path]:
    """A disk of 1.8 MB; a checkpoint takes about 0.68 MB, and two are kept while a third is written."""
    disk = corner.folder / "disk"
    disk.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1800k", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here ({mounted.stderr.strip()})")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that takes all room but `leave` bytes."""
    filler = disk / "filler"
    filler.write_bytes(b"x" * (shutil.disk_usage(disk).free - leave))
    return filler


def test_a_full_disk_keeps_the_last_good_checkpoint_and_says_so(corner: Any, small_disk: Path) -> None:
    run = corner.copy("full", corner.prepared, small_disk)
    code, said = corner.call(*corner.words(run, "--resume"))
    last = said.strip().splitlines()[-1]
    assert code == 1 and "the disk is full" in last and "Traceback" not in said, said
    kept = re.search(r"the last good checkpoint is (\S+);", last)
    assert kept and Path(kept[1]).is_dir() and not list((run / "checkpoints").glob(".step-*"))
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    code, said = corner.call(*corner.words(run, "--resume"))
    assert code == 0 and f"resumed from {kept[1]}" in said
    assert corner.same(run)


def test_a_disk_without_room_for_one_line_is_said_too(corner: Any, small_disk: Path) -> None:
    run = corner.copy("line", corner.prepared, small_disk)
    filler = fill(small_disk, 24_000)
    code, said = corner.call(*corner.words(run, "--resume"))
    assert code == 1 and "the disk is full" in said.strip().splitlines()[-1], said
    filler.unlink()
    fresh = small_disk / "fresh"
    fill(small_disk, 2_000)
    code, said = corner.call(*corner.words(fresh))
    assert code == 2 and "No space left" in said.strip().splitlines()[-1], said


def test_a_disk_that_is_full_for_the_finished_model_leaves_a_resumable_run(corner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})")

    run = corner.copy("unsaved", corner.prepared)
    with monkeypatch.context() as patch:
        patch.setattr(weights, "save_file", full)
        code, said = corner.call(*corner.words(run, "--resume"))
    last = said.strip().splitlines()[-1]
    assert code == 1 and "the disk is full" in last and "step-" in last and not (run / "model").exists()
    assert corner.call(*corner.words(run, "--resume"))[0] == 0
    assert corner.same(run)


def test_an_emptied_cache_is_written_again_and_changed_documents_are_refused(corner: Any, tmp_path: Path) -> None:
    run = corner.copy("uncached", corner.prepared)
    shards = Path(RunFolder(run).info["shards"])
    moved = shards.rename(tmp_path / "shards")
    odd = corner.text / "odd.txt"
    odd.write_text("a document that was not there before")
    code, said = corner.call(*corner.words(run, "--resume"))
    assert code == 2 and "the documents have changed" in said
    odd.unlink()
    code, said = corner.call(*corner.words(run, "--resume"))
    assert code == 0 and "reading the documents again" in said and moved.is_dir()
    assert corner.same(run)


def test_a_finished_run_is_left_as_it_is(corner: Any) -> None:
    before = (corner.unbroken / "metrics.jsonl").read_bytes()
    code, said = corner.call(*corner.words(corner.unbroken, "--resume"))
    assert code == 0 and "is finished" in said
    assert (corner.unbroken / "metrics.jsonl").read_bytes() == before
