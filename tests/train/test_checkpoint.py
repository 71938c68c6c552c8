"""Checkpoints: whole or not there, checked before they are trusted, exact."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import load_file
from torch import nn

from tessera.errors import RunFailed
from tessera.train import checkpoint
from tessera.train.checkpoint import Writer, latest, set_aside


def trained(seed: int = 0) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    opts: list[torch.optim.Optimizer] = [torch.optim.AdamW(model.parameters(), fused=True)]
    model(torch.randn(3, 4)).sum().backward()
    opts[0].step()
    return model, opts


def write(writer: Writer, step: int, best: int | None = None, **state: Any) -> None:
    writer.write(*trained(step), {"step": step, "best_step": best, **state}, wait=True)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def silent(text: str) -> None:
    pytest.fail(text)


def test_what_is_written_is_restored_exactly(tmp_path: Path) -> None:
    model, opts = trained()
    Writer(tmp_path).write(model, opts, {"step": 7, "progress": {"losses": [0.1, 1 / 3]}}, wait=True)
    found = latest(tmp_path, silent)
    assert found is not None and found.step == 7 and found.state["progress"] == {"losses": [0.1, 1 / 3]}
    other, others = trained(seed=1)
    others[0].state.clear()
    found.restore(other, others)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        for entry, value in opts[0].state[mine].items():
            assert torch.equal(value, others[0].state[theirs][entry])


def test_training_on_does_not_change_what_is_being_written(tmp_path: Path) -> None:
    model, opts = trained()
    before = model[0].weight.detach().clone()  # type: ignore[index]
    writer, losses = Writer(tmp_path), [1.0]
    writer.write(model, opts, {"step": 1, "losses": losses})
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[index]
    losses.append(2.0)
    writer.wait()
    found = latest(tmp_path, silent)
    assert found is not None and found.state["losses"] == [1.0]
    assert torch.equal(load_file(found.folder / "weights.safetensors")["0.weight"], before)


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for step, best in ((9, 9), (10, 10), (11, 10), (12, 10), (100, 10)):
        write(writer, step, best)
    assert names(tmp_path) == {"step-10", "step-12", "step-100"}
    assert set(names(tmp_path / "step-100")) == {"weights.safetensors", "optimizer.safetensors", "state.json"}


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "zeros"])
def test_damage_is_noticed_and_the_one_before_is_used(tmp_path: Path, file: str, damage: str) -> None:
    writer, warnings = Writer(tmp_path), []
    for step in (2, 10):
        write(writer, step)
    path = tmp_path / "step-10" / file
    whole = path.read_bytes()
    place = random.Random(file + damage).randrange(len(whole))
    if damage == "gone":
        path.unlink()
    else:
        flipped = whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
        path.write_bytes({"flip": flipped, "cut": whole[:place], "zeros": bytes(len(whole))}[damage])
    found = latest(tmp_path, warnings.append)
    assert found is not None and found.step == 2
    assert len(warnings) == 1 and "step-10 is damaged" in warnings[0]


def test_every_single_flipped_bit_of_the_state_is_noticed(tmp_path: Path) -> None:
    write(Writer(tmp_path), 3, losses=[1.25, 3e-9])
    path = tmp_path / "step-3" / "state.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = latest(tmp_path, lambda text: None)
        # A flip between the tokens of JSON may leave its meaning as it is.
        assert found is None or found.state == {k: v for k, v in json.loads(whole).items() if k != "seal"}, place


def test_what_is_half_written_is_never_read_and_is_cleared(tmp_path: Path) -> None:
    write(Writer(tmp_path), 3)
    (tmp_path / "step-3").rename(tmp_path / ".step-4.123")
    assert latest(tmp_path, silent) is None
    Writer(tmp_path)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("crash", [1, 2, 3])
def test_a_crash_while_a_step_is_written_again_loses_neither_it_nor_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: int
) -> None:
    write(Writer(tmp_path), 3, note="first")
    calls = 0

    def counted(what: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == crash:
                raise KeyboardInterrupt  # like a killed process, it cleans nothing up
            return what(*args, **options)

        return call

    writer = Writer(tmp_path)
    writer.write(*trained(4), {"step": 2}, wait=True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(checkpoint.shutil, "rmtree", counted(checkpoint.shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            writer._write({"format": checkpoint.FORMAT, "step": 3, "note": "second"})
    found = latest(tmp_path, silent)
    assert found is not None and found.step == 3 and found.state["note"] == ("first" if crash < 3 else "second")
    Writer(tmp_path)
    assert names(tmp_path) == {"step-2", "step-3"}


def test_a_step_that_cannot_be_written_again_keeps_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path)
    write(writer, 3, note="first")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == f".step-3.{os.getpid()}":
            raise OSError(errno.ENOSPC, "full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(RunFailed, match=r"the last good checkpoint is .*step-3"):
        write(writer, 3, note="second")
    found = latest(tmp_path, silent)
    assert found is not None and found.state["note"] == "first" and names(tmp_path) == {"step-3"}


def test_damaged_ones_step_aside(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for step in (5, 6):
        write(writer, step)
    (tmp_path / "step-6" / "state.json").write_text("{}")
    start = latest(tmp_path, lambda text: None)
    set_aside(tmp_path, start)
    assert names(tmp_path) == {"step-5", "damaged-step-6"} and writer.last_good().endswith("step-5")
    write(writer, 6)
    write(writer, 7)
    assert names(tmp_path) == {"step-6", "step-7", "damaged-step-6"}


def test_a_write_that_fails_is_heard_of_and_names_the_last_good_one(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    write(writer, 1)
    (tmp_path / f".step-2.{os.getpid()}").write_text("in the way")
    writer.write(*trained(), {"step": 2})
    with pytest.raises(RunFailed, match=r"the last good checkpoint is .*step-1; make room and --resume"):
        writer.wait()
    writer.wait()


@pytest.mark.parametrize("direct", [True, False])
def test_tensors_of_every_kind_are_written_as_the_library_reads_them(
    tmp_path: Path, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not direct:
        monkeypatch.setattr(checkpoint, "_DIRECT", 0)
    # Some fill pieces exactly, some are cut by their borders, some are empty or single numbers.
    counts = (1, 7, checkpoint._PIECE // 4, 3 * checkpoint._PIECE // 4 + 5, 0)
    tensors = {f"t{n}": torch.arange(count, dtype=torch.float32) for n, count in enumerate(counts)}
    tensors |= {"half": torch.randn(3, 5).bfloat16(), "step": torch.tensor(3.0), "ids": torch.arange(6).view(2, 3)}
    digest = checkpoint.write_tensors(tensors, tmp_path / "a.safetensors")
    assert xxhash.xxh3_128((tmp_path / "a.safetensors").read_bytes()).hexdigest() == digest
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    with pytest.raises(FileExistsError):
        checkpoint.write_tensors(tensors, tmp_path / "a.safetensors")


def test_where_direct_writing_is_not_known_the_page_cache_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *more: Any) -> int:
        if checkpoint._DIRECT and flags & checkpoint._DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    checkpoint.write_tensors({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], torch.ones(3))


def test_what_stops_a_write_is_told_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_tensors({"a": torch.ones(3)}, tmp_path / "a.safetensors")
