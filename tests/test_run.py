"""A run's folder: one owner, whole files, a record that survives a crash."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from tessera import recipe
from tessera.device import cache_folder
from tessera.errors import RunFailed, UserError, disk_full
from tessera.run import KEPT, Follower, RunFolder, disk_may_be_full, write_text


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs" / "a", recipe.load("text", ["budget=5ktok"]))


def test_what_is_written_is_read_back(folder: RunFolder) -> None:
    assert RunFolder.open(folder.path).recipe == folder.recipe == recipe.load("text", ["budget=5ktok"])
    assert folder.info == {}
    folder.write_info({"command": "tessera train"})
    assert RunFolder.open(folder.path).info == {"command": "tessera train"}


def test_a_folder_has_one_owner(folder: RunFolder) -> None:
    with pytest.raises(UserError, match="another process is training"):
        RunFolder(folder.path).lock()
    with pytest.raises(UserError, match="another process is training"):
        RunFolder.create(folder.path, folder.recipe)
    folder.unlock()
    RunFolder(folder.path).lock()


def test_a_start_that_was_broken_off_is_replaced_and_a_prepared_run_is_not(folder: RunFolder) -> None:
    folder.record({"event": "derived", "name": "x"})
    folder.unlock()
    again = RunFolder.create(folder.path, folder.recipe)
    assert list(again.events()) == []
    again.write_info({"command": "tessera train"})
    again.unlock()
    for name in ("train.jsonl", "held_out.jsonl", "tasks.jsonl", "made.npz", "reference_train.npy", "reference_held_out.npy"):
        (folder.path / name).write_text("half")
    again = RunFolder.create(folder.path, folder.recipe)
    assert again.info == {}
    again.write_info({"command": "tessera train", "prepared_seconds": 1.0})
    again.unlock()
    with pytest.raises(UserError, match="exists already"):
        RunFolder.create(folder.path, folder.recipe)


@pytest.mark.parametrize(("name", "part"), [("run.json", "info"), ("recipe.yaml", "recipe")])
@pytest.mark.parametrize("content", [b'{"command": "tess', b"\xff"])
def test_a_damaged_page_is_said_in_one_sentence(folder: RunFolder, name: str, part: str, content: bytes) -> None:
    (folder.path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is damaged") as caught:
        getattr(RunFolder.open(folder.path), part)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["letter.txt", "model", "run.json", "checkpoints"])
def test_other_things_are_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="exists already"):
        RunFolder.refuse_occupied(tmp_path)


def test_a_place_where_no_folder_can_be_made_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunFolder.refuse_occupied(tmp_path / "runs" / "a")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file is a file, not a folder"):
        RunFolder.refuse_occupied(tmp_path / "file" / "a")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match="closed to this user"):
        RunFolder.refuse_occupied(tmp_path / "runs" / "a")


def test_a_run_may_begin_beside_what_a_server_keeps(tmp_path: Path) -> None:
    (tmp_path / KEPT).mkdir()
    (tmp_path / KEPT / "tessera.db").write_text("mine")
    assert RunFolder.create(tmp_path, recipe.load("text")).recipe == recipe.load("text")
    assert (tmp_path / KEPT / "tessera.db").read_text() == "mine"


def test_only_a_run_is_said_to_go_on_by_resume(folder: RunFolder, tmp_path: Path) -> None:
    (folder.path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="--resume"):
        RunFolder.refuse_occupied(folder.path)
    with pytest.raises(UserError, match=r"give another --out\.$"):
        RunFolder.refuse_occupied(tmp_path)


@pytest.mark.parametrize("name", ["recipe.yaml", "tokenizer"])
def test_what_a_start_writes_is_not_replaced_where_somebody_else_put_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        RunFolder.create(tmp_path, recipe.load("text"))
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder.create(tmp_path / "file" / "below", recipe.load("text"))


def test_events_survive_cut_and_spoiled_lines_and_are_forgotten_from_a_step_on(folder: RunFolder) -> None:
    folder.record({"event": "derived", "name": "train.tokens"})
    for step in range(1, 6):
        folder.record({"event": "step", "step": step, "loss": math.nan if step == 2 else 1.5})
    with open(folder.path / "metrics.jsonl", "ab") as file:
        file.write(b'\x00\xff\n5\n{"event": "step", "st')
    again = RunFolder.open(folder.path)
    assert [e.get("step") for e in again.events()] == [None, 1, 2, 3, 4, 5]
    assert [e["loss"] for e in again.events() if e.get("step") == 2] == [None]
    again.forget_after(3)
    again.record({"event": "step", "step": 4, "loss": 1.0})
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line).get("step") for line in lines] == [None, 1, 2, 3, 4]


def test_a_follower_reads_whole_lines_once_and_a_file_written_anew_from_its_beginning(folder: RunFolder) -> None:
    follower = Follower(folder.path)
    assert follower.read() == (False, [])
    one, two, three = ({"event": "step", "step": step} for step in (1, 2, 3))
    folder.record(one)
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write(json.dumps(two)[:9])
    assert follower.read() == (True, [one])
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write(json.dumps(two)[9:] + "\n")
    assert follower.read() == (False, [two]) and follower.read() == (False, [])
    again = RunFolder.open(folder.path)
    again.forget_after(1)
    again.record(three)
    assert follower.read() == (True, [one, three])


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "new \udc80")
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_names_the_newest_checkpoint(tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    with pytest.raises(RunFailed, match=r"disk is full.*step-10; make room and --resume"), disk_may_be_full(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RunFailed, match="make room and start again"), disk_may_be_full(tmp_path / "none"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(FileNotFoundError), disk_may_be_full(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "No such file")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full to stand for a full disk")
def test_a_disk_that_is_full_for_an_array_is_known_too() -> None:
    with open("/dev/full", "wb") as full, pytest.raises(OSError) as caught:
        np.zeros(1 << 16).tofile(full)
    assert caught.value.errno is None and disk_full(caught.value) == os.strerror(errno.ENOSPC)
    assert disk_full(OSError("something else")) is None


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TESSERA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "tessera"
