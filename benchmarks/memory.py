"""Peak memory of a training step: tessera against the leanest settings of transformers' Qwen3, each in a process of its own.

    python benchmarks/memory.py [--shapes 4x256,6x256] [--threads 1] [--no-compile]

Model, gradients, AdamW's state and everything a step needs: the highest resident size after three steps less that after imports.
Every setting is run `--repeats` times and its median counts; settings of the batch as a whole and of smaller micro-batches stand
side by side, since accumulation is the cheapest way to save memory and both sides have it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from common import SHAPES, Setting, Worker, WorkerFailed, facts, result_path, spread, store
from train_speed import tessera_choice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="4x256,6x256")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled settings out")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()
    options.gpu = False
    result: dict[str, Any] = {**facts(), "threads": options.threads, "notes": [], "shapes": {}}
    for name in options.shapes.split(","):
        result["shapes"][name] = measure(name, options, result["notes"])
    store(result_path("memory"), result)
    if options.json:
        print(json.dumps(result))


def measure(name: str, options: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    shape = SHAPES[name]
    own = tessera_choice(name, options)
    base = {"shape": name, "threads": options.threads, "same_weights": False}
    compiled = [False] if options.no_compile else [False, True]
    micros = sorted({1, own.micro_rows or 1, shape.rows})
    ours = {"allocator": True, "precision": own.precision}
    settings = [Setting(peer, compiled=c, micro_rows=m, recomputed=r, **base, **more)
                for peer, more in (("tessera", ours), ("transformers", {}))
                for c in compiled for m in micros for r in (False, True)]  # fmt: skip
    samples: dict[str, list[int]] = {}
    for _ in range(options.repeats):
        for setting in settings:
            try:
                samples.setdefault(str(setting), []).append(peak_of(setting, options.steps))
            except WorkerFailed as error:
                notes.append(f"not run: {error}")
    medians = {label: statistics.median(values) for label, values in samples.items()}
    chosen = str(
        Setting("tessera", compiled=own.compiled, micro_rows=own.micro_rows, allocator=True, precision=own.precision, **base)
    )

    def leanest(peer: str, rows: int | None = None) -> str:
        of_peer = [str(s) for s in settings if s.peer == peer and str(s) in medians and rows in {None, s.micro_rows}]
        return min(of_peer, key=medians.__getitem__)

    rivals = {
        "chosen by tessera / leanest of transformers": (chosen, leanest("transformers")),
        "leanest of tessera / leanest of transformers": (leanest("tessera"), leanest("transformers")),
        "chosen by tessera / leanest of transformers at the same micro-batch": (chosen, leanest("transformers", own.micro_rows)),
        "whole batch at once, tessera / leanest of transformers": (
            leanest("tessera", shape.rows),
            leanest("transformers", shape.rows),
        ),
    }
    ratios = {what: {"ours": a, "theirs": b, "ratio": medians[a] / medians[b]} for what, (a, b) in rivals.items()}
    print(f"{name}: peak memory of {options.steps} steps less that after imports, MB (10^6 bytes)")
    for label, values in samples.items():
        found = spread(values)
        mark = "*" if label == chosen else " "
        print(f" {mark}{label:<58} {found['median'] / 1e6:>8.1f} ({found['min'] / 1e6:.1f}..{found['max'] / 1e6:.1f})")
    print("  * what tessera's rules choose")
    for what, ratio in ratios.items():
        print(f"  {what}: {ratio['ratio']:.3f}")
    return {"chosen": chosen, "bytes": samples, "ratios": ratios}


def peak_of(setting: Setting, steps: int) -> int:
    """Bytes, in a fresh process."""
    worker = Worker(setting)
    for _ in range(steps):
        worker.ask()
    found = int(worker.ask("memory")["bytes"])
    worker.close()
    return found


if __name__ == "__main__":
    main()
