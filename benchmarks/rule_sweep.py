"""Whether the rules are tuned: at some rungs, learning rates and batch of the rules against halves and doubles of both.

    python benchmarks/rule_sweep.py [--recipe code] [--budgets 9.25e11,3.7e12] [--factors 0.5,1,2] [--seeds 3] [--jobs 2]

Each training is one process with one thread. Both rates (matrices, embedding and head) move together. The last line of each
budget is how far the rules' own point lies above the best of the sweep, in means over seeds; the bar is 0.3 %. `--set` fixes
fields of the recipe, as in `tessera train`. Finished trainings are kept in the result file; called again, only what is missing
is done.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import environment, facts, result_path, store

FINAL_TOKENS = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="code")
    parser.add_argument("--budgets", default="9.25e11,3.7e12", help="FLOPs")
    parser.add_argument("--vocabulary", type=int, default=1024, help="text entries, as of the ladder's target")
    parser.add_argument("--factors", default="0.5,1,2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    parser.add_argument("--out", default=None)
    parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(train_one(json.loads(options.worker))))
        return
    path = Path(options.out) if options.out else result_path("rule-sweep")
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {**facts(), "runs": {}, "budgets": {}}
    factors = [float(f) for f in options.factors.split(",")]
    overrides = [f"tokenizer.vocabulary_size={options.vocabulary}", *options.settings]
    for budget in options.budgets.split(","):
        asked = [
            {"recipe": options.recipe, "budget": budget, "settings": overrides, "rate": rate, "batch": batch, "seed": seed}
            for rate, batch, seed in itertools.product(factors, factors, range(options.seeds))
        ]
        missing = [a for a in asked if json.dumps(a) not in result["runs"]]
        with ThreadPoolExecutor(options.jobs) as pool:
            for one, found in zip(missing, pool.map(worker, missing), strict=True):
                result["runs"][json.dumps(one)] = found
                store(path, result)
        result["budgets"][budget] = conclude(budget, asked, result["runs"])
        store(path, result)
    if options.json:
        print(json.dumps(result))


def worker(asked: dict[str, Any]) -> dict[str, Any]:
    """One training in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--worker", json.dumps(asked)]
    done = subprocess.run(command, env=environment(1), stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def conclude(budget: str, asked: list[dict[str, Any]], runs: dict[str, Any]) -> dict[str, Any]:
    """The table of means, and how far the rules' point lies above its best."""
    cells: dict[tuple[float, float], list[dict[str, Any]]] = {}
    for one in asked:
        cells.setdefault((one["rate"], one["batch"]), []).append(runs[json.dumps(one)])
    means = {cell: statistics.fmean(r["loss"] for r in found) for cell, found in cells.items()}
    noise = statistics.fmean(statistics.stdev(r["loss"] for r in found) for found in cells.values() if len(found) > 1)
    best = min(means, key=means.__getitem__)
    rule = cells[1.0, 1.0][0]
    print(f"{budget} FLOPs: N {rule['N']:,}, D {rule['D']:,}, rows {rule['rows']}, rates {rule['rates']}")
    print(f"  seeds differ by {noise:.4f}")
    batches = sorted({batch for _, batch in means})
    print("  rate \\ batch " + "".join(f"{batch:>10g}" for batch in batches))
    for rate in sorted({rate for rate, _ in means}):
        print(f"  {rate:<12g} " + "".join(f"{means[rate, batch]:>10.4f}" for batch in batches))
    excess = means[1.0, 1.0] / means[best] - 1
    print(f"  the rules lie {excess:.2%} above the best, at rate x {best[0]:g} and batch x {best[1]:g}", flush=True)
    return {
        "means": [[*cell, mean] for cell, mean in means.items()], "seed_deviation": noise, "best": best, "excess": excess,
        "rule": rule,
    }  # fmt: skip


def train_one(asked: dict[str, Any]) -> dict[str, Any]:
    """Trains the recipe at a budget, with the rules' rates and batch times the factors."""
    from tessera.device import prepare_process

    prepare_process()
    from tessera import recipe as recipes
    from tessera.commands.train import _tokenizer
    from tessera.data.corpus import gather
    from tessera.data.loader import Loader, validation_batches
    from tessera.data.shards import tokenise
    from tessera.device import cache_folder, detect
    from tessera.model.decoder import Decoder
    from tessera.scaling import rules
    from tessera.train.job import shape_of
    from tessera.train.loop import Job, total_steps, train

    single = [
        "train.threads=1",
        "train.workers=1",
        "train.compile=false",
        "train.sample_prompts=[]",
        "train.evaluate_every=1000000000",
    ]
    intent = recipes.load(asked["recipe"], [f"budget='{asked['budget']}'", *single, *asked["settings"]])
    by_rules = rules.resolve(intent, rules.Facts(None, 1e11)).recipe.train
    assert by_rules.batch_rows and by_rules.matrix_rate and by_rules.adam_rate
    rows = max(1, round(by_rules.batch_rows * asked["batch"]))
    changes = {"batch_rows": rows, "seed": asked["seed"]}
    changes |= {"matrix_rate": by_rules.matrix_rate * asked["rate"], "adam_rate": by_rules.adam_rate * asked["rate"]}
    plan = rules.resolve(intent.model_copy(update={"train": intent.train.model_copy(update=changes)}), rules.Facts(None, 1e11))
    recipe, settings = plan.recipe, plan.recipe.train
    corpus = gather(recipe.data, cache_folder(), lambda line: None)
    machine = detect(intent.train.precision, 1)
    vocabulary = _tokenizer(corpus, recipe, cache_folder(), machine)
    shards = tokenise(corpus, vocabulary, recipe.data, cache_folder(), lambda line: None, settings.context)
    decoder = Decoder(shape_of(recipe, vocabulary.size), machine.torch_dtype)
    decoder.initialise(settings.seed)
    held_out = validation_batches(shards, settings.context, 8, FINAL_TOKENS, recipe.data.document_mask)
    skipped = 0

    def count(event: dict[str, Any]) -> None:
        nonlocal skipped
        skipped += event.get("skipped", 0)

    assert settings.batch_rows and settings.tokens
    loader = Loader(shards, recipe.data, settings.context, settings.batch_rows, settings.seed)
    job = Job(recipe, decoder, loader, held_out, held_out, vocabulary.token_bytes, machine, 1e11, {}, observers=(count,))
    begin = time.process_time()
    found = train(job)
    return {
        "N": plan.shape.matmul_parameters, "D": settings.tokens, "C": plan.flops, "rows": settings.batch_rows,
        "rates": [settings.matrix_rate, settings.adam_rate], "steps": total_steps(recipe), "skipped": skipped,
        "loss": found.loss if math.isfinite(found.loss) else 1e9, "bits_per_byte": found.bits_per_byte,
        "cpu_seconds": time.process_time() - begin,
    }  # fmt: skip


if __name__ == "__main__":
    main()
