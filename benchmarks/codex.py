"""Code: functions written by their docstrings, and gaps filled from both sides.

A model of fresh weights reads `builtin:functions` and writes bodies for combinations that stand in no document; tests in the
sandbox judge them. Another reads the running Python's library by the recipe `code` and fills gaps of a few words in files that
it never saw, likeliest tokens, against itself with the left side alone.

    python benchmarks/codex.py [--seeds 1] [--budget 1Mtok] [--library-budget 2.5Mtok] [--only functions|infill]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import about, children_seconds, facts, result_path, store, train

from tessera.commands.evaluate import documents_of
from tessera.commands.generate import open_engine
from tessera.device import prepare_process
from tessera.engine.scheduler import Limits
from tessera.evals import answers, taught
from tessera.evals.bits import sample_documents
from tessera.evals.infill import infill
from tessera.sandbox.box import open_sandbox

BARS = {"pass@10": 0.8, "gain by the right side": 0.0}
SAMPLES = 10
BUDGET, LIBRARY_BUDGET = "1Mtok", "2.5Mtok"
FUNCTIONS = (
    'data.sources=["builtin:functions?count=30000"]', "data.deduplicate=exact", "data.fill_in_the_middle=0",
    "tokenizer.vocabulary_size=512", "train.context=128", "train.threads=1", "train.compile=false",
    "model.width=64", "model.layers=3",
)  # fmt: skip
LIBRARY = ("data.fill_in_the_middle=0.5", "train.threads=1", "train.compile=false")


def main() -> None:
    """Trains where no run is given, measures, prints and stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budget", default=BUDGET, help="of the model that writes functions")
    parser.add_argument("--library-budget", default=LIBRARY_BUDGET, help="of the one that fills gaps")
    parser.add_argument("--only", choices=("functions", "infill"))
    parser.add_argument("--functions-run", help="measure this run instead of training one")
    parser.add_argument("--library-run", help="measure this run instead of training one")
    parser.add_argument("--gaps", type=int, default=500)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    asked = parser.parse_args()
    prepare_process()
    result: dict[str, Any] = {**facts(), "options": vars(asked), "bars": BARS, "seeds": []}
    with tempfile.TemporaryDirectory(prefix="codex-") as scratch:
        for seed in range(asked.seeds):
            found: dict[str, Any] = {"seed": seed}
            if asked.only != "infill":
                given, out = asked.functions_run, Path(scratch) / f"functions-{seed}"
                found["functions"] = trained("code", given, out, seed, asked.budget, FUNCTIONS)
                found["functions"] |= functions(Path(given or out), seed)
            if asked.only != "functions":
                given, out = asked.library_run, Path(scratch) / f"library-{seed}"
                found["infill"] = trained("code", given, out, seed, asked.library_budget, LIBRARY)
                found["infill"] |= filled(Path(given or out), asked.gaps, seed)
            print(f"seed {seed}", words(found), sep="\n", flush=True)
            result["seeds"].append(found)
    store(result_path("codex"), result)
    if asked.json:
        print(json.dumps(result))


def trained(recipe: str, given: str | None, out: Path, seed: int, budget: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """A run, unless one is given: what it was and took."""
    begin = children_seconds()
    run = Path(given) if given else train(recipe, out, seed, budget, settings)
    return {"process_seconds": children_seconds() - begin, **about(run)}


def functions(run: Path, seed: int) -> dict[str, Any]:
    """pass@k of bodies for combinations that stand in no document."""
    engine = open_engine(str(run), "float32", Limits(rows=32, step_tokens=1024))
    settings = answers.Settings(tasks=1000, samples=SAMPLES, seed=seed)
    scores = answers.measure(engine, taught.functions(), settings, open_sandbox())
    return {"scores": [asdict(score) for score in scores]}


def filled(run: Path, gaps: int, seed: int) -> dict[str, Any]:
    """Gaps in the files that the run held out."""
    engine = open_engine(str(run), "float32", Limits(rows=32, step_tokens=1024))
    return {
        "scores": [
            asdict(score) for score in infill(engine, sample_documents(documents_of(str(run), (), False)[0], gaps), gaps, seed)
        ]
    }


def words(found: dict[str, Any]) -> str:
    """Each number with its error, and the verdicts."""
    lines = []
    if "functions" in found:
        lines.append(f"  functions, {found['functions']['process_seconds']:.0f} s of one core to train")
        for score in found["functions"]["scores"]:
            if score["measure"].startswith(("pass@1,", f"pass@{SAMPLES},")):
                verdict = ""
                if score["measure"].startswith(f"pass@{SAMPLES},"):
                    verdict = f": {'reached' if score['value'] >= BARS['pass@10'] else 'BELOW'} {BARS['pass@10']:.0%}"
                lines.append(shown(score) + f", a body that does nothing {score['baseline']:.1%}{verdict}")
    if "infill" in found:
        lines.append(f"  gaps, {found['infill']['process_seconds']:.0f} s of one core to train")
        exact, gain = found["infill"]["scores"]
        lines.append(shown(exact) + f", the left side alone {exact['baseline']:.1%}")
        sure = gain["value"] > 2 * gain["standard_error"]
        lines.append(shown(gain) + f": {'above' if sure else 'NOT SURELY ABOVE'} the left side alone")
    return "\n".join(lines)


def shown(score: dict[str, Any]) -> str:
    return f"    {score['measure']}: {score['value']:.1%} +- {score['standard_error']:.1%}, n = {score['n']}"


if __name__ == "__main__":
    main()
