"""What checkpointing every minute costs at 75M parameters: minutes that begin with a checkpoint against minutes without one.

    python benchmarks/checkpoint_cost.py [--pairs 5] [--threads 2]

The real loop runs with AdamW on a small batch and a checkpoint every two minutes. A minute with a checkpoint holds all of it, the
copy that training waits for and the writing in the background; the minute after it holds none. The cost is how much longer a step
takes on average in the first, in wall time: that is what a person waits for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Shape, facts, result_path, spread, store


class Enough(Exception):
    """All minutes are over."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="minutes with and minutes without")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a minute")
    parser.add_argument("--threads", type=int, default=None, help="default: all cores")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--folder", default=None, help="where checkpoints go; default: the system's temporary folder")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()

    from tessera import device

    device.prepare_process()
    # 73M parameters by default; few tokens a step, since what a checkpoint costs does not depend on them.
    shape = Shape(options.layers, options.width, context=64, rows=1, vocabulary=16_384)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        minutes, blocked, parameters = measure(shape, options, Path(scratch))
    pairs = list(zip(minutes[0::2], minutes[1::2], strict=False))
    costs = [statistics.fmean(with_) / statistics.fmean(without) - 1 for with_, without in pairs]
    # What it would cost if training only waited for the copy.
    waiting = blocked / (len(pairs) * options.seconds)
    found = spread(costs)
    step = statistics.median(second for minute in minutes for second in minute)
    print(f"{parameters:,} parameters, {len(pairs)} pairs of {options.seconds:.0f} s, step {step:.2f} s")
    extremes = f"{found['min']:.2%}..{found['max']:.2%}"
    print(f"a checkpoint every {options.seconds:.0f} s costs {found['median']:.2%} of the time ({extremes})")
    print(f"of it, training stands still for {waiting:.2%}")
    result = {
        **facts(),
        "parameters": parameters,
        "pairs": pairs,
        "cost": found,
        "standing_still": waiting,
        "threads": options.threads,
    }
    store(result_path("checkpoint-cost"), result)
    if options.json:
        print(json.dumps(result))


def measure(shape: Shape, options: argparse.Namespace, folder: Path) -> tuple[list[list[float]], float, int]:
    """Seconds of each step, minute by minute beginning with one that has a checkpoint; seconds blocked; parameters."""
    from peers import decoder_config, fixed_job, fixed_recipe

    from tessera.device import detect
    from tessera.train.checkpoint import Writer
    from tessera.train.loop import train

    minutes: list[list[float]] = []
    last = began = time.perf_counter()

    def observer(event: dict[str, Any]) -> None:
        nonlocal last, began
        now = time.perf_counter()
        if event["event"] == "checkpoint":
            # Until the first checkpoint everything warms up. What training waited for belongs to the minute that begins.
            if len(minutes) == 2 * options.pairs:
                raise Enough
            minutes.append([])
            began = last
        elif event["event"] == "step":
            if minutes:
                if now - began > options.seconds and len(minutes) % 2 == 1:
                    minutes.append([])
                minutes[-1].append(now - last)
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
    return minutes, writer.seconds_blocked, sum(p.numel() for p in job.decoder.parameters())


if __name__ == "__main__":
    main()
