"""A process with one peer in it that takes a training step whenever a line `step` comes in.

Started by `common.Worker`, never by hand.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

from common import Setting

PACKAGES = {
    "tessera": "tessera.train.loop",
    "transformers": "transformers.models.qwen3.modeling_qwen3",
    "litgpt": "litgpt.model",
    "plain": "plain_gpt",
}


class Turn:
    """This side of the conversation: answers commands until the next step is asked for, and times that step."""

    def __init__(self, setting: Setting, base_bytes: int) -> None:
        self.setting = setting
        self.base_bytes = base_bytes
        self._began = (0.0, 0.0)

    def first(self, parameters: int) -> None:
        """Says that all is built, and waits for the first step."""
        self._say(ready=True, parameters=parameters)
        self._wait()

    def __call__(self, loss: float) -> None:
        """Ends a step and waits for the next."""
        self._synchronise()
        cpu, wall = time.process_time() - self._began[0], time.perf_counter() - self._began[1]
        self._say(cpu=cpu, wall=wall, loss=loss)
        self._wait()

    def _wait(self) -> None:
        for line in sys.stdin:
            command = line.strip()
            if command == "step":
                self._began = (time.process_time(), time.perf_counter())
                return
            if command == "peak":
                self._say(flops=matmul_peak(self.setting))
            elif command == "memory":
                self._say(bytes=peak_bytes(self.setting) - self.base_bytes)
        raise SystemExit

    def _synchronise(self) -> None:
        if self.setting.gpu:
            import torch

            torch.cuda.synchronize()

    def _say(self, **answer: Any) -> None:
        print(json.dumps(answer), flush=True)


def matmul_peak(setting: Setting) -> float:
    """FLOP/s of the best square product, 1024 to 4096; by process time on one CPU thread, where others may share the machine."""
    import torch

    clock = time.process_time if setting.threads == 1 and not setting.gpu else time.perf_counter
    dtype = torch.float32 if setting.precision == "float32" else torch.bfloat16
    device = "cuda" if setting.gpu else "cpu"
    best = 0.0
    for size, times in ((1024, 10), (2048, 4), (4096, 2)):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        for _ in range(times * (10 if setting.gpu else 1)):
            begin = clock()
            a @ b
            if setting.gpu:
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (clock() - begin))
    return best


def peak_bytes(setting: Setting) -> int:
    """Highest resident size of this process so far; on a GPU, the most that torch has allocated on it."""
    if setting.gpu:
        import torch

        return int(torch.cuda.max_memory_allocated())
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def main() -> None:
    setting = Setting(**json.loads(sys.argv[1]))
    from tessera import device

    if setting.allocator:
        device.prepare_process()
    try:
        import torch

        # torch imports these late, at the first optimizer or compilation; here, so that they do not count as the step's memory.
        import torch._dynamo

        if setting.compiled:
            import torch._inductor.compile_fx
        __import__(PACKAGES[setting.peer])
        if setting.gpu:
            torch.cuda.reset_peak_memory_stats()
        turn = Turn(setting, 0 if setting.gpu else peak_bytes(setting))
        from peers import run_peer, run_tessera

        (run_tessera if setting.peer == "tessera" else run_peer)(setting, turn)
    except Exception as error:
        print(
            json.dumps({"error": f"{setting}: {type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"}),
            flush=True,
        )
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
