"""The machine: what computes, in which precision, how fast it can multiply matrices, where it keeps what can be made again. Dtype
and device are decided here only.

`prepare_process` must run before torch is imported for the first time; everything else imports torch when called, so that
the command line can answer `--help` without it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.errors import UserError

if TYPE_CHECKING:
    import torch

# glibc's malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4

PROCESS_SETTINGS = {
    "OMP_WAIT_POLICY": "passive",
    "THP_MEM_ALLOC_ENABLE": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
}
"""Environment of a process that computes: waiting threads sleep, torch's large buffers lie on huge pages, oneDNN (products in
bf16) keeps the code of 128 shapes instead of 1,024, which in a server come to 300 MB more, and freed memory grows together at
once. glibc's is read before `main`, so it holds for processes that are started with it, as `./tessera` does."""


def prepare_process() -> None:
    """Keeps large buffers from going back to the kernel after every use, and waiting threads from spinning.

    A training step frees and takes the same buffers again; without this glibc unmaps each and the kernel clears every
    page anew: 8 to 15 % of the step's time (docs/LOG.md, 2026-11-23, "pages").
    """
    for name, value in PROCESS_SETTINGS.items():
        os.environ.setdefault(name, value)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(_TOP_PAD, 64 << 20)


@dataclass(frozen=True)
class Machine:
    """What a run computes on.

    Args:
        name: of the processor, for people.
        kind: `cpu` or `cuda`.
        index: which GPU of this machine.
        dtype: of the activations, `float32` or `bfloat16`; weights are always float32.
        threads: of one process.
        reason: why this dtype.
    """

    name: str
    kind: str
    index: int
    dtype: str
    threads: int
    reason: str

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device(self.kind, self.index) if self.kind == "cuda" else torch.device("cpu")


def processes() -> int:
    """How many `torchrun` started, this one among them; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that writes and speaks, also before it has joined the others."""
    return os.environ.get("RANK", "0") == "0"


def take_gpu() -> int:
    """The number of this process's own GPU, which it computes and speaks to the others on from now on."""
    import torch

    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return index


def detect(precision: str = "auto", threads: int | None = None) -> Machine:
    """Chooses device, precision and threads, and sets torch's thread count.

    Args:
        precision: `auto`, `float32` or `bfloat16`.
        threads: of this process; None: all cores shared by the processes of this machine.

    Raises:
        UserError: bfloat16 was asked of a CPU that has no instructions for it (it would run 100 times slower).
    """
    import torch

    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or max(1, cores // local_size)
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        index = take_gpu()
        dtype, reason = ("bfloat16", "the GPU has bf16 units") if precision == "auto" else (precision, "set in the recipe")
        return Machine(torch.cuda.get_device_name(index), "cuda", index, dtype, threads, reason)
    has_bfloat16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _cpu_has("avx512_bf16", "amx_bf16")
    if precision == "bfloat16" and not has_bfloat16:
        raise UserError("train.precision=bfloat16: this CPU has no bf16 instructions and would crawl; leave it at auto.")
    if precision == "auto":
        dtype = "bfloat16" if has_bfloat16 else "float32"
        reason = "the CPU has bf16 instructions" if has_bfloat16 else "the CPU has no bf16 instructions"
    else:
        dtype, reason = precision, "set in the recipe"
    return Machine(_cpu_name(), "cpu", 0, dtype, threads, reason)


def matmul_peak(machine: Machine, seconds: float = 1.0) -> float:
    """FLOP/s of the best square product of 1024 to 4096 in the machine's dtype; stops looking after about `seconds`."""
    import torch

    best, start = 0.0, time.perf_counter()
    for size in (1024, 2048, 4096):
        a = torch.randn(size, size, dtype=machine.torch_dtype, device=machine.torch_device)
        b = torch.randn(size, size, dtype=machine.torch_dtype, device=machine.torch_device)
        for _ in range(4):
            synchronise(machine)
            begin = time.perf_counter()
            a @ b
            synchronise(machine)
            best = max(best, 2 * size**3 / (time.perf_counter() - begin))
            if time.perf_counter() - start > seconds:
                return best
    return best


def memory_bytes(machine: Machine) -> int | None:
    """Of the GPU, all of it; None for a CPU, whose memory is no constraint on micro-batches that fit its cache."""
    if machine.kind != "cuda":
        return None
    import torch

    return int(torch.cuda.get_device_properties(machine.index).total_memory)


def synchronise(machine: Machine) -> None:
    """Waits until the device has done what it was given."""
    if machine.kind == "cuda":
        import torch

        torch.cuda.synchronize()


def can_compile(machine: Machine) -> bool:
    """Whether `torch.compile` works here: on a CPU it needs a C++ compiler."""
    return machine.kind == "cuda" or any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++"))


def cache_folder() -> Path:
    """Where token shards and other things that can be made again are kept: $TESSERA_CACHE, or ~/.cache/tessera."""
    named = os.environ.get("TESSERA_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "tessera"


def cpu_flags() -> str:
    """The line of /proc/cpuinfo with the processor's instructions; empty where there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return ""


def _cpu_has(*names: str) -> bool:
    return bool(set(names) & set(cpu_flags().split()))


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
