"""Thinking from scratch: does accuracy grow with effort, what does reinforcement add, and what do votes over samples?

    python benchmarks/thinking.py [--seeds 1] [--examples 22000] [--steps 50] [--picture FILE.png]

A model of fresh weights goes through `tessera posttrain reason` on a dial (`dial 3*7+4*9=`: from left to right, the last digit is
kept): a cold start on worked examples, then reinforcement. Both models then answer problems that neither has met, without thought
and with each effort, 16 samples of each at temperature 1. `--picture` needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import facts, result_path, store

DATA = "dial"
RATE_TIMES = 2.5
"""Of the cold start: the rules' rates are for a model that knows something already."""
BAR = 0.25
EFFORTS = ("none", "low", "medium", "high")
SAMPLES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--examples", type=int, default=22_000, help="of the cold start")
    parser.add_argument("--steps", type=int, default=50, help="of the reinforcement")
    parser.add_argument("--tasks", type=int, default=150, help="problems to be measured on")
    parser.add_argument("--folder", help="keep the runs here")
    parser.add_argument("--picture", help="draw the curves into this PNG")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()
    from tessera.device import prepare_process

    prepare_process()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.folder or scratch)
        result: dict[str, Any] = {**facts(), "options": vars(options), "seeds": []}
        for seed in range(options.seeds):
            found = one(folder / f"seed-{seed}", seed, options)
            print(f"seed {seed}: {words(found)}", flush=True)
            result["seeds"].append(found)
            store(result_path("thinking"), result)
        if options.picture:
            draw(result, Path(options.picture))
    if options.json:
        print(json.dumps(result))


def one(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Trains a model and measures it before and after reinforcement."""
    from tessera.commands.posttrain import staged
    from tessera.model import weights
    from tessera.model.decoder import Decoder, DecoderConfig
    from tessera.run import RunFolder
    from tessera.tokens.vocabulary import Vocabulary

    begin = time.perf_counter(), time.process_time()
    folder.mkdir(parents=True)
    vocabulary = Vocabulary.train(["a byte is enough"], 256)
    shape = DecoderConfig(
        vocabulary.size, width=64, layers=3, heads=2, kv_heads=2, head_size=32, mlp_width=192, context=96, rope_theta=1000.0
    )
    decoder = Decoder(shape)
    decoder.initialise(seed)
    special = weights.SpecialIds(end=(vocabulary.end_id,), pad=vocabulary.pad_id)
    weights.save(decoder, folder / "fresh", special=special, companions=vocabulary.save)
    wanted = {
        "model": str(folder / "fresh"), "data": DATA, "examples_count": options.examples, "steps": options.steps, "seed": seed,
        "rate_multiplier": RATE_TIMES, "settings": ("train.threads=1",),
    }  # fmt: skip
    run = staged("reason", wanted, str(folder / "reason"), False)
    trained = time.perf_counter() - begin[0], time.process_time() - begin[1]
    tasks = unmet(run, options.tasks, seed)
    events = list(RunFolder(run).events())
    names = ("step", "reward", "pass_at_1", "entropy", "dead_groups", "truncated", "length", "mismatch")
    return {
        "seed": seed,
        "parameters": shape.parameters,
        "train_wall_seconds": trained[0],
        "train_process_seconds": trained[1],
        "tasks": len(tasks),
        "cold start": measured(run / "cold", tasks, seed),
        "reinforced": measured(run, tasks, seed),
        "exams": [e for e in events if e["event"] == "exam"],
        "curve": [{n: e[n] for n in names} for e in events if e["event"] == "step"],
        "wall_seconds": time.perf_counter() - begin[0],
        "process_seconds": time.process_time() - begin[1],
    }


def unmet(run: Path, count: int, seed: int) -> list[Any]:
    """Tasks, the levels in turn, that were in no example, rollout or exam."""
    from tessera.posttrain.curriculum import open_pool
    from tessera.run import RunFolder

    with open(run / "examples.jsonl", encoding="utf-8") as lines:
        met = {json.loads(line)["messages"][0]["content"] for line in lines}
    for event in RunFolder(run).events():
        met |= {f"{id.replace('-', ' ', 1)}=" for id in event.get("tasks", ())} if event["event"] == "rollouts" else set()
    with open(run / "held_out.jsonl", encoding="utf-8") as lines:
        met |= {json.loads(line)["prompt"] for line in lines}
    pool, dice, found = open_pool(DATA, 1, seed), random.Random(f"measured {seed}"), dict[str, Any]()
    while len(found) < count:
        (task,) = pool.draw(len(found) % len(pool.levels), 1, dice)
        if task.prompt not in met:
            found[task.prompt] = task
    return list(found.values())


def measured(model: Path, tasks: list[Any], seed: int) -> dict[str, Any]:
    """For each effort every measure with its standard error, and the tokens of the thoughts."""
    from tessera.commands.generate import open_engine
    from tessera.engine.scheduler import Limits
    from tessera.engine.thinking import budgets_of
    from tessera.evals import answers, suites

    suite = replace(suites.generated("dial"), make=lambda count, seed: tasks, max_tokens=4, stop=())
    engine = open_engine(str(model), "float32", Limits(rows=64, step_tokens=1024))
    found: dict[str, Any] = {}
    for effort in EFFORTS:
        settings = answers.Settings(
            samples=SAMPLES, temperature=1.0, seed=seed, dialogue=True, effort=effort.removesuffix("none"),
            budgets=budgets_of(str(model)),
        )  # fmt: skip
        scores = answers.measure(engine, suite, settings)
        found[effort] = {
            **{score.measure.split(",")[0]: [score.value, score.standard_error] for score in scores},
            "thought_tokens": scores[0].settings.get("thought_tokens", 0.0),
            "thought_limit": scores[0].settings.get("thought_limit", 0),
            "chance": scores[0].chance,
        }
    return found


def words(found: dict[str, Any]) -> str:
    """The numbers of the bar, of both models."""
    lines = [f"{found['train_process_seconds']:.0f} s of one core to train"]
    for stage in ("cold start", "reinforced"):
        by_effort = found[stage]
        one_sample = {effort: by_effort[effort]["pass@1"] for effort in EFFORTS}
        said = ", ".join(f"{effort} {value:.1%} +- {error:.1%}" for effort, (value, error) in one_sample.items())
        low, medium, high = (one_sample[effort][0] for effort in EFFORTS[1:])
        rises = low < medium < high and high - low >= BAR and high - one_sample["none"][0] >= BAR
        lines.append(f"{stage}: {said}: {'rises' if rises else 'DOES NOT RISE'} as it has to")
        for effort in EFFORTS[1:]:
            row = by_effort[effort]
            best = f"best@{SAMPLES} by mean log-probability"
            votes = ", ".join(f"{name} {row[name][0]:.1%}" for name in (f"maj@{SAMPLES}", best, f"pass@{SAMPLES}"))
            gain = row[f"maj@{SAMPLES}"][0] - row["pass@1"][0], row[best][0] - row["pass@1"][0]
            error = math.hypot(row["pass@1"][1], row[f"maj@{SAMPLES}"][1])
            lines.append(f"  {effort}: {votes}; vote {gain[0]:+.1%}, best {gain[1]:+.1%} over one (+- {error:.1%})")
    return "\n  ".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Accuracy by tokens of thought, by samples, and by step of reinforcement."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    counts = [2**power for power in range(int(math.log2(SAMPLES)) + 1)]
    for found in result["seeds"]:
        first = found is result["seeds"][0]
        for stage, style in (("cold start", "--"), ("reinforced", "-")):
            rows = [found[stage][effort] for effort in EFFORTS]
            ones = [row["pass@1"] for row in rows]
            left.errorbar(
                [row["thought_tokens"] for row in rows],
                [value for value, _ in ones],
                [2 * error for _, error in ones],
                linestyle=style,
                color="C0",
                capsize=2,
                label=stage if first else None,
            )
        if first:
            for effort, row in zip(EFFORTS, rows, strict=True):
                left.annotate(effort, (row["thought_tokens"], row["pass@1"][0]), textcoords="offset points", xytext=(4, -10))
            for number, (kind, label) in enumerate(
                (("pass@{}", "any is right"), ("maj@{}", "majority"), ("best@{} by mean log-probability", "likeliest"))
            ):
                points = [found["cold start"]["high"][kind.format(k) if k > 1 else "pass@1"] for k in counts]
                middle.errorbar(
                    counts, [v for v, _ in points], [2 * e for _, e in points], label=label, capsize=2, color=f"C{number}"
                )
        for number, effort in enumerate(EFFORTS[1:]):
            exams = found["exams"]
            values = [exam[f"pass_at_1_{effort}"] for exam in exams]
            right.plot([exam["step"] for exam in exams], values, color=f"C{number}", label=effort if first else None)
    left.axhline(0.1, color="grey", linewidth=0.5)
    left.margins(x=0.15)
    left.set(xlabel="tokens of thought", ylabel="right, one sample", ylim=(0, 1.02), title="thinking time (grey: chance)")
    middle.set_xscale("log", base=2)
    middle.set_xticks(counts, map(str, counts))
    middle.set(xlabel="samples", ylim=(None, 1.02), title="cold start, effort high")
    right.set(xlabel="step of reinforcement", ylim=(0, 1.02), title="held-out exam by effort")
    for axis in (left, middle, right):
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
