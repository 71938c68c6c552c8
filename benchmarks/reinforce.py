"""Reinforcement from scratch on reversal: does it learn, do the controls not, and do training and rollouts agree?

    python benchmarks/reinforce.py [--seeds 3] [--steps 160] [--control-steps 40] [--rate R] [--picture FILE.png]

A model of fresh weights is tuned on a few examples of words written backwards until it is right on about 40 % of held-out ones,
then reinforced by the code of `tessera posttrain grpo`. Controls start from the same weights, at the same rate: random rewards,
rewards handed to other groups, and a rate of 0. The gradients of one batch of rollouts in micro-batches of 1, 4 and 16 are
compared too; that two processes find the same is tested in tests/train/test_policy.py. `--picture` needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import facts, result_path, store

DATA = "reversal:2-5"
BAR, FIRST = 0.9, (0.25, 0.6)
MOST_POINTS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--control-steps", type=int, default=40, help="0: no controls")
    parser.add_argument("--rate", type=float, help="by default that of the command")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--examples", type=int, default=5000, help="of the cold start")
    parser.add_argument("--exam-tasks", type=int, default=96)
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
            cold = cold_start(folder / f"seed-{seed}", seed, options)
            found = {"seed": seed, "learned": learn(folder / f"seed-{seed}" / "grpo", cold, seed, options, options.steps)}
            print(f"seed {seed}: {words(found['learned'])}", flush=True)
            if options.control_steps and seed == 0:
                found["controls"] = controls(folder / f"seed-{seed}", cold, seed, options)
                found["gradients"] = splits(cold, folder / f"seed-{seed}" / "splits", options)
            result["seeds"].append(found)
        store(result_path("reinforce"), result)
        if options.picture:
            draw(result, Path(options.picture))
    if options.json:
        print(json.dumps(result))


def cold_start(folder: Path, seed: int, options: argparse.Namespace) -> Path:
    """A fresh model, tuned on `options.examples` examples once; returns its run's folder."""
    from tessera.model import weights
    from tessera.model.decoder import Decoder, DecoderConfig
    from tessera.posttrain import supervised
    from tessera.posttrain.curriculum import open_pool
    from tessera.tokens.vocabulary import Vocabulary

    folder.mkdir(parents=True)
    vocabulary = Vocabulary.train(["a byte is enough"], 256)
    shape = DecoderConfig(
        vocabulary.size, width=64, layers=3, heads=2, kv_heads=2, head_size=32, mlp_width=192, context=48, rope_theta=1000.0
    )
    decoder = Decoder(shape)
    decoder.initialise(seed)
    special = weights.SpecialIds(end=(vocabulary.end_id,), pad=vocabulary.pad_id)
    weights.save(decoder, folder / "fresh", special=special, companions=vocabulary.save)
    # The pool of the reinforcement that follows: its exam is on words that no example shows.
    pool, dice = open_pool(DATA, options.exam_tasks, seed), random.Random(seed)
    with open(folder / "examples.jsonl", "w", encoding="utf-8") as file:
        for number in range(options.examples):
            (task,) = pool.draw(number % len(pool.levels), 1, dice)
            file.write(json.dumps({"prompt": task.prompt, "completion": task.answer}) + "\n")
    wish = supervised.Wish(
        str(folder / "fresh"), str(folder / "examples.jsonl"), validation_share=0.01, epochs=1, batch_size=32,
        rate_multiplier=1.5, seed=seed, settings=("train.threads=1",),
    )  # fmt: skip
    supervised.prepare(wish, folder / "cold", quiet)
    supervised.tune(folder / "cold", False, lambda folder: [], quiet)
    return folder / "cold"


def learn(
    path: Path, model: Path, seed: int, options: argparse.Namespace, steps: int, rate: float | None = None, judge: Any = None
) -> dict[str, Any]:
    """One run of reinforcement: its exams, and its steps thinned out."""
    from tessera.posttrain import reinforce
    from tessera.run import RunFolder

    wish = reinforce.Wish(
        str(model), DATA, steps=steps, groups=options.groups, rate=options.rate if rate is None else rate, seed=seed,
        exam_tasks=options.exam_tasks, settings=("train.threads=1",),
    )  # fmt: skip
    begin = time.perf_counter(), time.process_time()
    reinforce.prepare(wish, path, quiet)
    reinforce.tune(path, False, lambda folder: [], quiet, judge=judge)
    events = list(RunFolder(path).events())
    exams = [event for event in events if event["event"] == "exam"]
    taken = [event for event in events if event["event"] == "step"]
    names = ("step", "reward", "pass_at_1", "pass_at_k", "dead_groups", "entropy", "truncated", "length", "level", "grad_norm")
    return {
        "steps": len(taken),
        "rate": wish.rate,
        "exams": [{n: e[n] for n in ("step", "pass_at_1", "standard_error", "pass_at_k", "tasks")} for e in exams],
        "best": max(e["pass_at_1"] for e in exams),
        "mismatch": max(e["mismatch"] for e in taken),
        "rollout_tokens_per_second": sum(e["rollout_tokens_per_second"] for e in taken) / len(taken),
        "curve": [{n: round(e[n], 4) for n in names} for e in taken[:: -(-len(taken) // MOST_POINTS)]],
        "wall_seconds": time.perf_counter() - begin[0],
        "process_seconds": time.process_time() - begin[1],
    }


def controls(folder: Path, model: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Runs that must not learn, with what they came to at the end."""
    from tessera.posttrain.rollouts import judged_by
    from tessera.posttrain.verifiers import load

    right, dice = judged_by(load("exact")), random.Random(seed)

    def at_random(tasks: Sequence[Any], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[float(dice.random() < 0.4) for _ in group] for group in answers]

    def shuffled(tasks: Sequence[Any], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        rewards = [reward for group in right(tasks, answers) for reward in group]
        dice.shuffle(rewards)
        each = iter(rewards)
        return [[next(each) for _ in group] for group in answers]

    found: dict[str, Any] = {}
    for name, judge in (("random rewards", at_random), ("shuffled groups", shuffled)):
        run = learn(folder / name.replace(" ", "-"), model, seed, options, options.control_steps, judge=judge)
        first, last = run["exams"][0], run["exams"][-1]
        error = (first["standard_error"] ** 2 + last["standard_error"] ** 2) ** 0.5
        run["gain"], run["two_standard_errors"] = last["pass_at_1"] - first["pass_at_1"], 2 * error
        print(f"{name}: gain {run['gain']:+.3f} (two standard errors {2 * error:.3f})", flush=True)
        found[name] = run
    still = learn(folder / "rate-0", model, seed, options, 3, rate=0.0)
    files = [folder / run / "model" / "model.safetensors" for run in ("rate-0", "cold")]
    still["weights_equal"] = files[0].read_bytes() == files[1].read_bytes()
    print(f"rate 0: weights {'equal' if still['weights_equal'] else 'DIFFERENT'}", flush=True)
    return found | {"rate 0": still}


def splits(model: Path, path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Largest difference between the gradients of one batch in micro-batches, as a part of the largest entry."""
    import torch

    from tessera import device
    from tessera.posttrain import reinforce
    from tessera.run import RunFolder
    from tessera.tokens.vocabulary import Vocabulary
    from tessera.train.gradients import Gradients
    from tessera.train.parallel import World

    wish = reinforce.Wish(str(model), DATA, steps=1, groups=2, settings=("train.threads=1",))
    reinforce.prepare(wish, path, quiet)
    folder = RunFolder(path)
    machine = device.detect("float32", 1)
    job = reinforce.assemble(
        folder, folder.recipe, machine, Vocabulary.load(path / "tokenizer"), reinforce.asked(folder), writes=False
    )
    batch = job.loader.next()
    found: dict[int, torch.Tensor] = {}
    for rows in (16, 4, 1):
        settings = folder.recipe.train.model_copy(update={"micro_rows": rows, "context": batch.learn.shape[1]})
        with Gradients(job.decoder, settings, machine, World(), job.objective) as gradients:
            gradients.add(batch, batch.learned)
            found[rows] = torch.cat([p.grad.flatten() for p in job.decoder.parameters() if p.grad is not None]).clone()
    largest = float(found[16].abs().max())
    return {f"{16 // rows}x{rows}": float((found[rows] - found[16]).abs().max()) / largest for rows in (4, 1)}


def words(run: dict[str, Any]) -> str:
    first, best = run["exams"][0]["pass_at_1"], run["best"]
    start = "" if FIRST[0] <= first <= FIRST[1] else " (not near 40 %)"
    return (
        f"{first:.1%}{start} -> {best:.1%} held out ({'reached' if best >= BAR else 'BELOW'} {BAR:.0%}) in {run['steps']} steps, "
        f"{run['process_seconds']:.0f} s of one core; largest mismatch {run['mismatch']:.1e}"
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Pass@1 of exams and rewards and entropy of steps, a line for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for found in result["seeds"]:
        run, label = found["learned"], f"seed {found['seed']}"
        exams = run["exams"]
        left.errorbar(
            [e["step"] for e in exams],
            [e["pass_at_1"] for e in exams],
            [2 * e["standard_error"] for e in exams],
            label=label,
            capsize=2,
        )
        left.plot([p["step"] for p in run["curve"]], [p["reward"] for p in run["curve"]], alpha=0.3, color="grey")
        right.plot([p["step"] for p in run["curve"]], [p["entropy"] for p in run["curve"]], label=label)
        for name, control in found.get("controls", {}).items():
            points = control["exams"]
            left.plot([e["step"] for e in points], [e["pass_at_1"] for e in points], "--", label=name)
    left.axhline(BAR, color="black", linewidth=0.5)
    left.set(xlabel="step", ylabel="held-out pass@1", title="grey: reward in training", ylim=(0, 1))
    right.set(xlabel="step", ylabel="entropy of a token, nats")
    left.legend(fontsize=7)
    figure.savefig(path, dpi=90)


def quiet(text: str) -> None:
    """For runs whose words nobody needs."""


if __name__ == "__main__":
    main()
