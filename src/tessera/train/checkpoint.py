"""Checkpoints that a crash cannot spoil: written aside, checksummed, renamed; only safetensors and JSON.

A checkpoint is a folder `step-N` with `weights.safetensors` (float32, Hugging Face's names), `optimizer.safetensors`
(`NAME/STATE`) and `state.json` (step, loader, counters, what it must be resumed with, and digests of the other two, which tell
accidents, not people).
Writing happens in a thread, from a copy, while training goes on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from torch import Tensor, nn

from tessera.errors import RunFailed, UserError, disk_full
from tessera.model.checksum import checksum

FORMAT = 2
KEEP = 2
_PIECE = 1 << 22
_DIRECT = getattr(os, "O_DIRECT", 0)
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64"}


@dataclass(frozen=True)
class Checkpoint:
    """One good checkpoint on disk.

    Args:
        folder: `.../step-N`.
        state: what `state.json` holds.
    """

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates taken when it was written."""
        return int(self.state["step"])

    def restore(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Puts weights and optimizer state back, on the devices where the parameters are."""
        read_weights(self.folder, model)
        parameters = dict(model.named_parameters())
        owner = {id(p): o for o in optimizers for group in o.param_groups for p in group["params"]}
        with safe_open(self.folder / "optimizer.safetensors", framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (safetensors' handle is no mapping)
                name, _, entry = key.rpartition("/")
                parameter = parameters[name]
                optimizer = owner[id(parameter)]
                # AdamW keeps its step count on the CPU whatever the device, but where one kernel updates everything.
                device = "cpu" if entry == "step" and not optimizer.defaults.get("fused") else parameter.device
                optimizer.state[parameter][entry] = file.get_tensor(key).to(device)


def read_weights(folder: Path, model: nn.Module) -> None:
    """Puts the weights of the checkpoint `folder` into the model, on the devices where the parameters are."""
    with safe_open(folder / "weights.safetensors", framework="pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(name))


def latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is named in a warning and the one before it is tried.

    Only who owns the folder may call this: what a crash has left under another name gets its own back.

    Raises:
        UserError: it was written by a version of Tessera with another format.
    """
    _put_back(folder)
    for candidate in sorted(folder.glob("step-*"), key=_step_of, reverse=True):
        if not re.fullmatch(r"step-\d+", candidate.name):
            continue
        try:
            text = (candidate / "state.json").read_text(encoding="utf-8")
            state = json.loads(text)
            # The seal is over values, and a number's last digit may be another without changing it.
            if text != _text(state):
                raise ValueError("state.json is not what was written")
            for name, digest in state["xxh128"].items():
                if checksum(candidate / name) != digest:
                    raise ValueError(f"{name} is not what was written")
            seal = state.pop("seal")
            if seal != _seal(state):
                raise ValueError("state.json is not what was written")
        except (OSError, ValueError, KeyError) as error:
            warn(f"checkpoint {candidate} is damaged ({error}) and is left aside.")
            continue
        if state["format"] != FORMAT:
            raise UserError(f"checkpoint {candidate} has format {state['format']}, this version of Tessera reads {FORMAT}.")
        return Checkpoint(candidate, state)
    return None


def set_aside(folder: Path, start: Checkpoint | None) -> None:
    """Renames what is newer than the checkpoint that a run goes on from, so that nothing takes a damaged one for the newest."""
    for newer in folder.glob("step-*"):
        if start is None or _step_of(newer) > start.step:
            aside = newer.with_name(f"damaged-{newer.name}")
            shutil.rmtree(aside, ignore_errors=True)
            newer.rename(aside)


class Writer:
    """Writes checkpoints in the background, one at a time, and keeps the newest two and the best.

    Args:
        folder: where `step-N` folders go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds_blocked = 0.0
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._copies: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}}
        folder.mkdir(parents=True, exist_ok=True)
        _put_back(folder)
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def write(self, model: nn.Module, optimizers: list[torch.optim.Optimizer], state: dict[str, Any], wait: bool = False) -> None:
        """Copies everything now and writes it in the background (or at once, with `wait`).

        Raises:
            RunFailed: this or an earlier write found the disk full.
        """
        begin = time.perf_counter()
        self.wait()
        _copy_into(self._copies["weights"], {n: p.detach() for n, p in model.named_parameters()})
        _copy_into(self._copies["optimizer"], _optimizer_tensors(model, optimizers))
        # Through JSON and back: a copy that the training loop cannot change under the writer.
        frozen = json.loads(json.dumps({"format": FORMAT, **state}))
        self._thread = threading.Thread(target=self._write, args=(frozen,), name="checkpoint", daemon=False)
        self._thread.start()
        if wait:
            self.wait()
        self.seconds_blocked += time.perf_counter() - begin

    def wait(self) -> None:
        """Returns when the last write is on disk.

        Raises:
            RunFailed: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            error, self._failure = self._failure, None
            why = "the disk is full" if disk_full(error) else str(error)
            raise RunFailed(
                f"a checkpoint could not be written in {self.folder} ({why}); {self.last_good()}; make room and --resume."
            )

    def last_good(self) -> str:
        """Words that name the newest checkpoint, once what is being written is on disk."""
        self.wait()
        good = max(self.folder.glob("step-*"), key=_step_of, default=None)
        return f"the last good checkpoint is {good}" if good else "there is no earlier checkpoint"

    def _write(self, state: dict[str, Any]) -> None:
        _step_back()
        aside = self.folder / f".step-{state['step']}.{os.getpid()}"
        try:
            aside.mkdir()
            state["xxh128"] = {}
            for name, tensors in self._copies.items():
                file = aside / f"{name}.safetensors"
                state["xxh128"][file.name] = write_tensors(tensors, file)
            state["seal"] = _seal(state)
            (aside / "state.json").write_text(_text(state), encoding="utf-8")
            _flush(aside / "state.json")
            final = self.folder / f"step-{state['step']}"
            before = aside.with_name(f"{aside.name}.before")
            if final.exists():
                final.rename(before)
            aside.rename(final)
            _flush(self.folder)
            shutil.rmtree(before, ignore_errors=True)
            self._prune(state.get("best_step"))
        except Exception as error:
            # Whatever it is, the run hears of it at the next `wait`.
            self._failure = error
            shutil.rmtree(aside, ignore_errors=True)
            _put_back(self.folder)

    def _prune(self, best_step: int | None) -> None:
        whole = sorted(self.folder.glob("step-*"), key=_step_of)
        for old in whole[:-KEEP]:
            if _step_of(old) != best_step:
                shutil.rmtree(old, ignore_errors=True)


def _put_back(folder: Path) -> None:
    """Gives their names back to checkpoints that made way for another of the same step, which a crash kept from its place."""
    for before in folder.glob(".step-*.before"):
        final = folder / f"step-{_step_of(before)}"
        if not final.exists():
            before.rename(final)


def _step_back() -> None:
    """Lets this thread run only where no other wants to, on systems that know that: it takes the time that training leaves.

    The lowest niceness is not enough: what wakes up may have to wait for the rest of its time slice, at each of the many small
    products of a step (docs/LOG.md, 2026-11-30, "Checkpoints every minute").
    """
    if sys.platform == "linux":
        # May be forbidden by a container; the checkpoint is then written like everything else.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))


def _copy_into(copies: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Fills the copies, which are allocated once and used again."""
    for name, tensor in tensors.items():
        if name not in copies:
            copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        copies[name].copy_(tensor)


def _optimizer_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{entry}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
    }


def write_tensors(tensors: dict[str, Tensor], file: Path) -> str:
    """Writes a new safetensors file and returns its XXH3 digest of 128 bits, from one pass over the tensors.

    Past the page cache where the file system allows: what is written is not read again soon, and copying it there takes as long
    as all the rest (docs/LOG.md, 2026-11-30, "Checkpoints every minute").

    Raises:
        OSError: it could not be written.
    """
    entries, at = {}, 0
    for name, tensor in tensors.items():
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    stream = _Stream(file)
    try:
        stream.write(memoryview(len(head).to_bytes(8, "little") + head))
        for tensor in tensors.values():
            stream.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return stream.finish()
    finally:
        stream.close()


class _Stream:
    """Bytes on their way into a new file, hashed as they pass."""

    def __init__(self, file: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            self._handle = os.open(file, flags | _DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Not on every file system: there the page cache takes it.
            self._handle = os.open(file, flags, 0o666)
        self._digest = xxhash.xxh3_128()
        # Memory of its own begins at a page, and is written in whole blocks, as direct writing demands.
        self._view, self._filled = memoryview(mmap.mmap(-1, _PIECE)), 0

    def write(self, data: memoryview) -> None:
        """Takes bytes, which may change afterwards."""
        self._digest.update(data)
        while len(data):
            count = min(len(data), _PIECE - self._filled)
            self._view[self._filled : self._filled + count] = data[:count]
            self._filled, data = self._filled + count, data[count:]
            if self._filled == _PIECE:
                self._drain()

    def finish(self) -> str:
        """Writes the rest, waits for the disk and returns the digest."""
        if _DIRECT:
            # The rest is no whole block.
            fcntl.fcntl(self._handle, fcntl.F_SETFL, fcntl.fcntl(self._handle, fcntl.F_GETFL) & ~_DIRECT)
        self._drain()
        os.fsync(self._handle)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Gives the file back."""
        os.close(self._handle)

    def _drain(self) -> None:
        rest = self._view[: self._filled]
        while len(rest):
            rest = rest[os.write(self._handle, rest) :]
        self._filled = 0


def _text(state: dict[str, Any]) -> str:
    return json.dumps(state, indent=1)


def _seal(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _step_of(folder: Path) -> int:
    found = re.search(r"step-(\d+)", folder.name)
    return int(found[1]) if found else -1
