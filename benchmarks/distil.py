"""Guidance that a model has learned: class accuracy and speed of digits drawn from one row, against those guided from two.

    python benchmarks/distil.py [--seeds 0 1 2] [--run runs/draw] [--count 2000]

A run of `draw`, then `posttrain distil` on what it makes itself. Of both models 500 digits are drawn, the class of each is judged
by an SVM that knows the real ones, and the time of both is taken in turn, a batch of 64 at a time, in process time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import children_seconds, facts, result_path, spread, store, train

DRAWN = 500
ROUNDS = 8
BARS = {"within": 0.03, "faster": 1.8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budget", help="of draw, instead of the recipe's")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="of draw")
    parser.add_argument("--run", help="begin with this run of `draw` instead of training one")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()
    from tessera.device import prepare_process

    prepare_process()
    import torch

    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {**facts(), "options": vars(options), "bars": BARS, "seeds": []}
    with tempfile.TemporaryDirectory(prefix="distil-") as scratch:
        for seed in options.seeds:
            found = {"seed": seed, **one(Path(scratch), seed, options)}
            result["seeds"].append(found)
            print(f"seed {seed}: {words(found)}", flush=True)
    store(result_path("distil"), result)
    if options.json:
        print(json.dumps(result))


def one(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Teaches one model and measures both."""
    from tessera.commands.generate import open_engine
    from tessera.commands.posttrain import distilled
    from tessera.data.builtin_pictures import NUMBERS
    from tessera.engine.pictures import Wish, draw
    from tessera.engine.sampling import SamplingParams
    from tessera.engine.scheduler import Limits
    from tessera.evals.digits import digit_judge, read_digits

    base = Path(options.run or train("draw", folder / f"draw-{seed}", seed, options.budget, options.settings))
    begin = time.process_time() + children_seconds()
    wanted = {
        "model": str(base), "guidance": options.guidance, "count": options.count, "epochs": options.epochs, "seed": seed,
        "settings": (f"train.threads={options.threads}",),
    }  # fmt: skip
    run = distilled(wanted, str(folder / f"distil-{seed}"), False)
    taught = time.process_time() + children_seconds() - begin
    svm, classes = digit_judge(), np.arange(DRAWN) % 10
    limits = Limits(rows=128, step_tokens=1024, queued_requests=4096, queued_tokens=1 << 22)
    sides = {
        "guided": (open_engine(str(base), "float32", limits), {"guidance": options.guidance}),
        "unguided": (open_engine(str(base), "float32", limits), {"guidance": 1.0}),
        "distilled": (open_engine(str(run), "float32", limits), {"distilled": True}),
    }
    right: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    pictures: dict[str, int] = {}
    for name, (engine, more) in sides.items():
        engine.compile()
        wishes = [Wish(f"a {NUMBERS[c]}", (8, 8), **more) for c in classes]
        drawn = np.stack([d.pixels for d in draw(engine, wishes, SamplingParams(1, seed=1000 * seed))])
        right[name] = [float((read_digits(svm, drawn) == classes).mean())]
        pictures[name] = len({d.tobytes() for d in drawn})
    for turn in range(ROUNDS):
        for name, (engine, more) in sides.items():
            wishes = [Wish(f"a {NUMBERS[c]}", (8, 8), **more) for c in classes[:64]]
            start = time.process_time()
            draw(engine, wishes, SamplingParams(1, seed=10_000 + turn))
            seconds[name].append(time.process_time() - start)
    faster = [a / b for a, b in zip(seconds["guided"], seconds["distilled"], strict=True)]
    return {
        "right": {name: values[0] for name, values in right.items()}, "different": pictures, "faster": spread(faster),
        "seconds": seconds, "taught_process_seconds": taught,
    }  # fmt: skip


def words(found: dict[str, Any]) -> str:
    """One line for a person."""
    right, faster = found["right"], found["faster"]
    close = right["distilled"] >= right["guided"] - BARS["within"]
    accuracy = f"right class: guided {right['guided']:.1%}, distilled {right['distilled']:.1%}, unguided {right['unguided']:.1%}"
    speed = f"{faster['median']:.2f} times as fast ({faster['q1']:.2f} to {faster['q3']:.2f})"
    verdicts = f"{'held' if close else 'MISSED'}; {'held' if faster['median'] >= BARS['faster'] else 'MISSED'}"
    return f"{accuracy}; {speed}; {found['taught_process_seconds']:.0f} s to teach ({verdicts})"


if __name__ == "__main__":
    main()
