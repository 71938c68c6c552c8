"""Captioned shapes: one run of `draw` on them, and how much of what a caption says is in what it draws.

Colour, form, size and place of one shape, the number of several, the relation of two: a picture is right where all that is said
is seen in it, and nothing else, by a checker that knows the forms (`tessera.evals.shapes`). Captions are new; those of the second
kind name pairs of colour and form that no picture of the training shows.

    python benchmarks/shapes.py                      # one seed, 20 minutes
    python benchmarks/shapes.py --seeds 0 1 2        # three
    python benchmarks/shapes.py --run runs/shapes    # measures a run that is there
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import about, facts, result_path, store, train

from tessera.commands.generate import open_engine
from tessera.device import prepare_process
from tessera.evals.shapes import shapes

SEEN, HELD_OUT = "drawn, as the caption says", "drawn, pairs held out, as the caption says"
BARS = {SEEN: 0.90, HELD_OUT: 0.75}
SETTINGS = ('data.sources=["builtin:shapes"]',)


def main() -> None:
    """Trains where no run is given, measures, prints and stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--run", help="measure this run instead of training one")
    parser.add_argument("--captions", type=int, default=500, help="of each kind")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--name", default="shapes")
    asked = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="shapes-") as scratch:
        for seed in asked.seeds:
            begin, run = time.monotonic(), Path(asked.run or Path(scratch) / f"seed-{seed}")
            if not asked.run:
                train("draw", run, seed, asked.budget, (*SETTINGS, *asked.settings))
            seconds = round(time.monotonic() - begin, 1)
            scores = shapes(open_engine(str(run), "float32"), asked.captions, seed)
            results.append({"seed": seed, "seconds": seconds, **about(run), "scores": [score.as_json() for score in scores]})
            for score in scores:
                print(score.as_text(), file=sys.stderr)
    values = {name: [s["value"] for r in results for s in r["scores"] if s["measure"] == name] for name in BARS}
    found = {"bars": BARS, "mean": {name: statistics.fmean(each) for name, each in values.items()}, "seeds": results}
    store(result_path(asked.name), {**facts(), **found})
    if asked.json:
        print(json.dumps(found))
        return
    for name, bar in BARS.items():
        shown, held = "  ".join(f"{value:.3f}" for value in values[name]), found["mean"][name] >= bar
        print(f"{name:<44} {shown}   bar {bar}: {'held' if held else 'missed'}")


if __name__ == "__main__":
    prepare_process()
    main()
