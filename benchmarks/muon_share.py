"""Muon's share of a training step: of a run as it was, and of other sizes.

    python benchmarks/muon_share.py [--run runs/quickstart] [--threads 1] [--steps 20]

The run's own recipe (shape, batch, micro-batch) goes through the real loop on random ids; torch's hooks around every optimizer
step tell Muon's time from the rest. Beside it stand a few sizes with the batch that the rules give them, and what AdamW would
take for the same matrices.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import facts, result_path, spread, store

if TYPE_CHECKING:
    from tessera.model.decoder import DecoderConfig
    from tessera.recipe import Recipe


class Enough(Exception):
    """All steps were taken."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default=None, help="folder of the quickstart's main run")
    parser.add_argument("--tokens", default="2e6,5e6,2e7,1e8", help="other sizes: what the rules plan for so many tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()

    from tessera import device

    device.prepare_process()
    cases = ([run_case(Path(options.run))] if options.run else []) + [
        planned_case(float(t)) for t in options.tokens.split(",") if t
    ]
    result: dict[str, Any] = {
        **facts(),
        "threads": options.threads,
        "clock": "cpu" if options.threads == 1 else "wall",
        "cases": [],
    }
    print("case                          parameters  tokens/step  step s   Muon's share (min..max)   AdamW for the same, share")
    for label, recipe, shape in cases:
        case = measure(recipe, shape, options)
        share = case["muon_share"]
        print(
            f"{label:<30}{shape.matmul_parameters:>10,} {case['tokens_per_step']:>12,} {case['step_seconds']['median']:>7.2f}   "
            f"{share['median']:>6.1%} ({share['min']:.1%}..{share['max']:.1%})      {case['adamw_share']:>6.1%}",
            flush=True,
        )
        result["cases"].append({"case": label, "recipe": recipe.model_dump(mode="json"), **case})
    store(result_path("muon-share"), result)
    if options.json:
        print(json.dumps(result))


def run_case(path: Path) -> tuple[str, Recipe, DecoderConfig]:
    """What a run trained."""
    from tessera.model.weights import read_config
    from tessera.run import RunFolder

    folder = RunFolder.open(path)
    return f"run {path.name}", folder.recipe, read_config(folder.model)


def planned_case(tokens: float) -> tuple[str, Recipe, DecoderConfig]:
    """What the rules plan for a number of tokens."""
    from tessera import recipe as recipes
    from tessera.scaling import rules

    asked = recipes.load("code", [f"budget={round(tokens)}tok"])
    plan = rules.resolve(asked, rules.Facts(None, 1e11))
    return f"{tokens:.0e} tokens planned", plan.recipe, plan.shape


def measure(recipe: Recipe, shape: DecoderConfig, options: argparse.Namespace) -> dict[str, Any]:
    """Takes steps with Muon, then with AdamW for the same matrices; the first step of each warms up."""
    muon = timed_steps(recipe, shape, options, "muon")
    adamw = timed_steps(recipe, shape, options, "adamw")
    # AdamW's own time for embeddings and gains is in both.
    extra = max(0.0, spread([s["AdamW"] for s in adamw])["median"] - spread([s["AdamW"] for s in muon])["median"])
    assert recipe.train.batch_rows
    return {
        "tokens_per_step": recipe.train.batch_rows * recipe.train.context,
        "step_seconds": spread([s["step"] for s in muon]),
        "muon_share": spread([s["Muon"] / s["step"] for s in muon]),
        "adamw_share": extra / spread([s["step"] for s in adamw])["median"],
        "samples": {"muon": muon, "adamw": adamw},
    }


def timed_steps(recipe: Recipe, shape: DecoderConfig, options: argparse.Namespace, optimizer: str) -> list[dict[str, float]]:
    """Seconds of each step, of its Muon and of its AdamW."""
    from peers import fixed_job, fixed_recipe_of
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    from tessera.device import detect
    from tessera.train.loop import train

    clock = time.process_time if options.threads == 1 else time.perf_counter
    steps: list[dict[str, float]] = []
    spent: dict[str, float] = {}
    began: dict[str, float] = {"step": clock()}

    def before(optimizer: Any, *_: Any) -> None:
        began[type(optimizer).__name__] = clock()

    def after(optimizer: Any, *_: Any) -> None:
        spent[type(optimizer).__name__] = clock() - began[type(optimizer).__name__]

    def observer(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            steps.append({"step": clock() - began["step"], **spent})
            if len(steps) > options.steps:
                raise Enough
            began["step"] = clock()

    machine = detect(recipe.train.precision, options.threads)
    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        train(fixed_job(fixed_recipe_of(recipe, optimizer, options.threads), shape, machine, observer))
    except Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return steps[1:]


if __name__ == "__main__":
    main()
