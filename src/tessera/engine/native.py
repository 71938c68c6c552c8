"""The step of running streams on a CPU in float32 as one call of compiled C++ (`step.cpp`).

The source is compiled once for this machine, in a few seconds, and kept; then it serves every model, every number of streams and
every context, and new weights are only packed again. torch's own way, one kernel for each operation, spends more time between the
products than in them where there are few streams (docs/LOG.md, 2026-11-29, "One call a step").
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from tessera.device import Machine, cache_folder, cpu_flags, detect
from tessera.engine.cache import SlotCache
from tessera.model.decoder import Block, Decoder, Rotary

_PANEL = 16
_TRIED_STEPS, _KEPT_STEPS = 6, 500
"""Of each number of threads, and then of the better one."""
_COMPARED_TOKENS = 64
"""Steps of more tokens, which read prompts, take far longer than others, and are not compared with them to choose threads."""
_BYTES = 8
"""For each parameter at most: the model's own and the packed one."""
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC")
# From the best on: a compiler that does not know one of them gets the next.
_VARIANTS = (("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())

_log = logging.getLogger(__name__)
_building = threading.Lock()


class _Layer(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("qkv", "out", "gate_up", "down", "attention_norm", "mlp_norm", "q_norm", "k_norm", "keys", "values")
    ]  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            "layers", "width", "heads", "kv_heads", "head_size", "mlp_width", "vocabulary", "capacity", "halves", "threads",
        )),
        ("layer", ctypes.POINTER(_Layer)),
        *((name, ctypes.c_void_p) for name in ("norm", "embedding", "cosines", "sines", "head")),
        *((name, ctypes.c_int64) for name in ("embedding_row", "embedding_column")),
        ("eps", ctypes.c_float),
    ]  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled `step.cpp`, built at the first call on a machine; None where there is no compiler, or it fails (logged)."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))), None)
    if compiler is None:
        return None
    source = resources.files("tessera.engine").joinpath("step.cpp").read_bytes()
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    key = hashlib.blake2b(b"\0".join((source, version, _processor().encode())), digest_size=10).hexdigest()
    path = cache_folder() / "native" / f"step-{key}.so"
    try:
        with _building:
            if not path.is_file():
                _build(compiler, source, path)
            found = ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else error
        _log.warning("the native step cannot be had, decoding stays in torch: %s", said)
        return None
    # Pointers come as whole numbers (Tensor.data_ptr), which ctypes would cut to 32 bits unless it is told.
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    found.tessera_pack.argtypes = [pointer, whole, whole, whole, whole, whole, pointer]
    found.tessera_halves.argtypes, found.tessera_halves.restype = [pointer, whole], whole
    found.tessera_step.argtypes = [pointer, whole, pointer, pointer, pointer, whole, pointer, pointer]
    found.tessera_pack.restype = found.tessera_step.restype = None
    return found


def _build(compiler: str, source: bytes, path: Path) -> None:
    """Compiles aside and renames, so that two processes at once do no harm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        code, made = Path(scratch) / "step.cpp", Path(scratch) / "step.so"
        code.write_bytes(source)
        for variant in _VARIANTS:
            done = subprocess.run([compiler, *_FLAGS, *variant, "-o", made, code], capture_output=True, check=False)
            if done.returncode == 0:
                break
        done.check_returncode()
        made.replace(path)


def _processor() -> str:
    """What `-march=native` depends on."""
    return f"{platform.machine()} {platform.processor()} {cpu_flags()}"


def fits(decoder: Decoder) -> bool:
    """Whether the native step can serve a decoder: on a CPU, in float32, with heads that are whole vectors."""
    weight, size = decoder.head_weight, decoder.config.head_size
    return weight.device.type == "cpu" and decoder.dtype == weight.dtype == torch.float32 and size % _PANEL == 0


def machine_for(parameters: int, precision: str = "auto", threads: int | None = None) -> Machine:
    """The machine as a model is to be run on it: on a CPU in float32, in which the native step makes 2 to 9 times the tokens of
    torch in bf16, if weights that are kept twice leave half of the memory free.

    Args:
        parameters: of the model.
        precision, threads: as of `detect`; a precision that is named is kept.

    Raises:
        UserError: as `detect`.
    """
    machine = detect(precision, threads)
    fill = 2 * _BYTES * parameters > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if precision != "auto" or machine.kind != "cpu" or machine.dtype == "float32" or fill:
        return machine
    return replace(machine, dtype="float32", reason="what generates on a CPU is fastest in it")


class Threads:
    """One thread or all, whichever was faster of late. The numbers are the same with any.

    Beside other work every product waits for the slowest thread, and a step takes many times as long with two as with one; alone
    it takes half. So both are tried in turn for a few steps, then the better one is kept for a while.

    Args:
        most: all of them.
    """

    def __init__(self, most: int) -> None:
        self.now = 1
        """To be used for the next step."""
        self.better = most
        """Of both, as far as it is known."""
        self._most = most
        self._taken: dict[int, list[float]] = {1: [], most: []}
        self._kept = 0

    def took(self, seconds: float) -> None:
        """What a step took with `now`."""
        if self._most == 1:
            return
        if self._kept:
            self._kept -= 1
            return
        self._taken[self.now].append(seconds)
        self.now = self._most if self.now == 1 else 1
        if all(len(times) >= _TRIED_STEPS for times in self._taken.values()):
            self.now = self.better = min(self._taken, key=lambda threads: statistics.median(self._taken[threads]))
            self._kept = _KEPT_STEPS
            self._taken = {threads: [] for threads in self._taken}


class NativeStep:
    """New tokens of some slots of a cache: one of each, a few, or a prompt.

    Args:
        code: `library`.
        decoder: that `fits`; its weights are copied in the step's own layout.
        rotary: of all positions of the context, (T, S) each.
    """

    def __init__(self, code: ctypes.CDLL, decoder: Decoder, rotary: Rotary) -> None:
        self._code, self._decoder = code, decoder
        self._threads = Threads(torch.get_num_threads())
        self._rotary = tuple(table.contiguous() for table in rotary)
        self.pack()

    @torch.no_grad()
    def pack(self) -> None:
        """Takes the decoder's weights as they are now."""
        decoder, config = self._decoder, self._decoder.config
        matrices = [p for p in decoder.parameters() if p.ndim == 2]
        halves = all(self._code.tessera_halves(p.data_ptr(), p.numel()) for p in map(_dense, matrices))
        dtype = torch.bfloat16 if halves else torch.float32
        self._kept: list[Tensor] = []  # the C++ side has only their addresses

        def packed(*parts: Tensor) -> int:
            outputs, inputs = sum(len(part) for part in parts), parts[0].shape[1]
            panels = torch.empty(-(-outputs // _PANEL) * _PANEL * inputs, dtype=dtype)
            whole = torch.cat(parts) if len(parts) > 1 else parts[0]
            self._code.tessera_pack(whole.data_ptr(), *whole.stride(), outputs, inputs, halves, panels.data_ptr())
            self._kept.append(panels)
            return panels.data_ptr()

        def plain(vector: Tensor) -> int:
            self._kept.append(vector.detach().contiguous())
            return self._kept[-1].data_ptr()

        layers = []
        for block in decoder.model.layers:
            assert isinstance(block, Block)
            attention, mlp = block.self_attn, block.mlp
            norms = [plain(attention.q_norm.weight), plain(attention.k_norm.weight)] if config.qk_norm else [None, None]
            layers.append(
                _Layer(
                    packed(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight),
                    packed(attention.o_proj.weight),
                    packed(mlp.gate_proj.weight, mlp.up_proj.weight),
                    packed(mlp.down_proj.weight),
                    plain(block.input_layernorm.weight), plain(block.post_attention_layernorm.weight), *norms, None, None,
                )
            )  # fmt: skip
        embedding = decoder.model.embed_tokens.weight
        self._layers = (_Layer * config.layers)(*layers)
        self._model = _Model(
            config.layers, config.width, config.heads, config.kv_heads, config.head_size, config.mlp_width, config.vocab_size,
            0, halves, 1, self._layers,
            plain(decoder.model.norm.weight), embedding.data_ptr(), self._rotary[0].data_ptr(), self._rotary[1].data_ptr(),
            packed(decoder.head_weight), *embedding.stride(), config.norm_eps,
        )  # fmt: skip
        self._tensors: Sequence[Tensor] = ()

    def __call__(self, ids: Sequence[int], slots: Sequence[int], cache: SlotCache, wanted: Sequence[int]) -> Tensor:
        """Logits (W, V) after W of B new tokens; keys and values of all are written, `cache.end` is not called.

        Args:
            ids: B new tokens.
            slots: of the cache, that each goes into; those of one slot come one behind the other.
            wanted: places among the tokens, in rising order.
        """
        positions, new = [], Counter[int]()
        for slot in slots:
            positions.append(cache.lengths[slot] + new[slot])
            new[slot] += 1
        cache.make_room(len(cache.lengths), max(positions) + 1)
        if self._tensors is not cache.slots:
            for number, layer in enumerate(self._layers):
                layer.keys, layer.values = cache.slots[2 * number].data_ptr(), cache.slots[2 * number + 1].data_ptr()
            self._tensors, self._model.capacity = cache.slots, cache.shape[1]
        B, W = len(ids), len(wanted)
        numbers = (ctypes.c_int64 * (3 * B + W))(*ids, *slots, *positions, *wanted)
        logits_WV = torch.empty((W, self._decoder.config.vocab_size))
        first = ctypes.addressof(numbers)
        tried = B <= _COMPARED_TOKENS
        began, self._model.threads = time.perf_counter(), self._threads.now if tried else self._threads.better
        places = (first, first + 8 * B, first + 16 * B)
        self._code.tessera_step(ctypes.addressof(self._model), B, *places, W, first + 24 * B, logits_WV.data_ptr())
        if tried:
            self._threads.took(time.perf_counter() - began)
        return logits_WV


def _dense(matrix: Tensor) -> Tensor:
    """The same numbers in one stretch of memory, in whatever order."""
    return matrix if matrix.is_contiguous() else matrix.t().contiguous()
