"""Captioned shapes: one run of `draw` on them, and how much of what a caption says is in what it draws.

Colour, form, size and place of one shape, the number of several, the relation of two: a picture is right where all that is said
is seen in it, and nothing else, by a checker that knows the forms (`tessera.evals.shapes`). Captions are new; those of the second
kind name pairs of colour and form that no picture of the training shows.

    python benchmarks/shapes.py                      # one seed, 20 minutes
    python benchmarks/shapes.py --seeds 3            # three
    python benchmarks/shapes.py --run runs/shapes    # measures a run that is there
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import of_models

from tessera.commands.generate import open_engine
from tessera.evals.shapes import shapes

BARS = {"drawn, as the caption says": 0.90, "drawn, pairs held out, as the caption says": 0.75}
SETTINGS = ('data.sources=["builtin:shapes"]',)


def measure(run: Path, captions: int, seed: int) -> dict[str, Any]:
    """Every score of the suite."""
    return {"scores": [score.as_json() for score in shapes(open_engine(str(run), "float32"), captions, seed)]}


def words(found: dict[str, Any]) -> str:
    """One line each, those with a bar beside it."""
    lines = []
    for score in found["scores"]:
        name, value, error = score["measure"], score["value"], score["standard_error"]
        spread = "" if error is None else f" +- {error:.1%}"
        bar = f"   bar {BARS[name]:.0%}: {'held' if value >= BARS[name] else 'missed'}" if name in BARS else ""
        lines.append(f"  {name:<48} {value:6.1%}{spread}{bar}")
    return "\n".join(lines)


if __name__ == "__main__":
    of_models("shapes", __doc__, "20m", SETTINGS, (500, "captions of each kind"), measure, words, "draw", bars=BARS)
