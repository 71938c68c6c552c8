"""What checkpointing every minute costs at 75M parameters, in wall time: that is what a person waits for.

    python benchmarks/checkpoint_cost.py [--pairs 5] [--threads 2]

The real loop runs with AdamW on a small batch and a checkpoint every two minutes. While one is copied and written a few steps
take longer; the cost is by how much they together exceed as many steps of the median length of the rest of that minute. Whole
minutes are no measure: they differ by 15 % among themselves on a shared machine. The minute after has no checkpoint, and the same
sum over as many of its first steps says how far off such a number can be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import Shape, facts, result_path, spread, store


class Enough(Exception):
    """All minutes are over."""


@dataclass
class Minute:
    """One minute of training.

    Args:
        seconds: of each step, one after the other.
        written: how many steps had ended when the checkpoint that began the minute was on disk.
    """

    seconds: list[float] = field(default_factory=list)
    written: int = 0

    def excess(self, steps: int) -> float:
        """Seconds by which the first `steps` exceed steps of the rest's median length."""
        return sum(self.seconds[:steps]) - steps * statistics.median(self.seconds[steps:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="minutes with a checkpoint and minutes without")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a minute")
    parser.add_argument("--threads", type=int, default=None, help="default: all cores")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--folder", default=None, help="where checkpoints go; default: the system's temporary folder")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()

    from tessera import device

    device.prepare_process()
    # 69M parameters by default; few tokens a step, since what a checkpoint costs does not depend on them.
    shape = Shape(options.layers, options.width, context=64, rows=1, vocabulary=16_384)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        minutes, blocked, parameters = measure(shape, options, Path(scratch))
    pairs = list(zip(minutes[0::2], minutes[1::2], strict=True))
    if any(not 0 < with_.written < len(with_.seconds) for with_, _ in pairs):
        sys.exit("a checkpoint was not on disk within its minute: give more --seconds.")
    costs = spread([with_.excess(with_.written) / options.seconds for with_, _ in pairs])
    without = spread([control.excess(with_.written) / options.seconds for with_, control in pairs])
    # What it would cost if training only waited for the copy.
    waiting = blocked / (len(pairs) * options.seconds)
    step = statistics.median(second for minute in minutes for second in minute.seconds)
    print(f"{parameters:,} parameters, {len(pairs)} pairs of {options.seconds:.0f} s, step {step:.2f} s")
    print(f"a checkpoint every {options.seconds:.0f} s costs {_range(costs)} of the time; without one: {_range(without)}")
    print(f"training stands still for {waiting:.2%}; on disk after {statistics.median(m.written for m, _ in pairs):.0f} steps")
    result = {
        **facts(),
        "parameters": parameters,
        "pairs": [[asdict(minute) for minute in pair] for pair in pairs],
        "cost": costs,
        "without_checkpoint": without,
        "standing_still": waiting,
        "threads": options.threads,
    }
    store(result_path("checkpoint-cost"), result)
    if options.json:
        print(json.dumps(result))


def measure(shape: Shape, options: argparse.Namespace, folder: Path) -> tuple[list[Minute], float, int]:
    """Minute by minute, beginning with one that has a checkpoint; seconds that training stood still; parameters."""
    from peers import decoder_config, fixed_job, fixed_recipe

    from tessera.device import detect
    from tessera.train.checkpoint import Writer
    from tessera.train.loop import train

    minutes: list[Minute] = []
    last = began = time.perf_counter()
    blocked, awaited = 0.0, folder

    def observer(event: dict[str, Any]) -> None:
        nonlocal last, began, blocked, awaited
        now = time.perf_counter()
        if event["event"] == "checkpoint":
            # Until the first checkpoint everything warms up. What training waited for belongs to the minute that begins.
            if len(minutes) == 2 * options.pairs:
                raise Enough
            if not minutes:
                blocked = writer.seconds_blocked
            minutes.append(Minute())
            awaited = folder / f"step-{event['step']}"
            began = last
        elif event["event"] == "step":
            if minutes:
                if now - began > options.seconds and len(minutes) % 2 == 1:
                    minutes.append(Minute())
                minute = minutes[-1]
                minute.seconds.append(now - last)
                if len(minutes) % 2 == 1 and not minute.written and awaited.exists():
                    minute.written = len(minute.seconds)
            last = now

    machine = detect("auto", options.threads)
    # A rate so small that nothing is learned: there is nothing to learn, and random ids at a usual rate end in a divergence.
    recipe = fixed_recipe(shape, 1, checkpoint_seconds=2 * options.seconds, matrix_rate=1e-6, adam_rate=1e-6)
    writer = Writer(folder)
    job = fixed_job(recipe, decoder_config(shape), machine, observer, fresh=True, writer=writer)
    try:
        train(job)
    except Enough:
        writer.wait()
    return minutes, writer.seconds_blocked - blocked, sum(p.numel() for p in job.decoder.parameters())


def _range(found: dict[str, float]) -> str:
    return f"{found['median']:.2%} ({found['min']:.2%}..{found['max']:.2%})"


if __name__ == "__main__":
    main()
