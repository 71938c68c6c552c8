"""What is found out about the machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tessera import device
from tessera.errors import UserError
from tessera.train import parallel


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_threads_are_those_asked_for_or_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device.detect().threads == 2 == torch.get_num_threads()
    assert device.detect(threads=3).threads == 3 == torch.get_num_threads()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is used before the CPU is looked at")
@pytest.mark.parametrize("able", [True, False])
def test_bfloat16_is_for_processors_that_have_it(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    flags = "flags : fma avx512f avx512bw avx512vl avx512dq avx512_bf16" if able else "flags : fma avx2"
    monkeypatch.setattr(device, "cpu_flags", lambda: flags)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: able)
    assert device.detect().dtype == ("bfloat16" if able else "float32")
    assert device.detect("float32").torch_dtype == torch.float32
    if able:
        assert device.detect("bfloat16").torch_dtype == torch.bfloat16
    else:
        with pytest.raises(UserError, match=r"train\.precision=bfloat16"):
            device.detect("bfloat16")


def test_the_matmul_peak_is_a_speed() -> None:
    assert 1e8 < device.matmul_peak(device.detect("float32", 1), seconds=0.02) < 1e16


def test_the_compiler_is_looked_for_where_torch_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert not device.can_compile(device.detect("float32", 1))


def test_each_process_takes_its_own_gpu_before_it_joins_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", order.append)
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda backend, timeout: order.append(backend))
    monkeypatch.setattr(parallel.dist, "get_rank", lambda: 3)
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert parallel.join() == parallel.World(3, 4)
    assert order == [1, "nccl"]
