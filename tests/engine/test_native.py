"""In what precision a model is run: float32 on a CPU, unless something speaks against it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tessera import device
from tessera.engine import native


@pytest.fixture
def with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> device.Machine:
    """A CPU that has instructions for bf16."""
    machine = replace(device.detect("float32", 1), dtype="bfloat16", reason="it has bf16", kind="cpu")

    def detect(precision: str = "auto", threads: int | None = None) -> device.Machine:
        return machine if precision == "auto" else replace(machine, dtype=precision)

    monkeypatch.setattr(native, "detect", detect)
    return machine


def test_a_model_is_run_in_float32_on_a_cpu_with_bfloat16(with_bfloat16: device.Machine) -> None:
    found = native.machine_for(10**6)
    assert found.dtype == "float32" and found.reason != with_bfloat16.reason
    assert native.machine_for(10**6, "bfloat16").dtype == "bfloat16"


def test_a_model_that_would_fill_the_memory_stays_as_it_is(with_bfloat16: device.Machine) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert native.machine_for(memory // 17).dtype == "float32"
    assert native.machine_for(memory // 15).dtype == "bfloat16"


def test_a_gpu_keeps_its_own(with_bfloat16: device.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = replace(with_bfloat16, kind="cuda")
    monkeypatch.setattr(native, "detect", lambda precision, threads: gpu)
    assert native.machine_for(10**6) == gpu
