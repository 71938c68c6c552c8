"""A critic against the mean of a group: `ppo` and `grpo` from the same weights, at equal seconds of one core.

    python benchmarks/ppo.py [--seeds 1] [--seconds 60] [--json] [--ppo critic_rate=0.001 ...]

The task, the model and its cold start are those of `reinforce.py`. Each kind is run for a few steps first, to know what one
costs, and then for as many as the seconds of processor time pay for, exams not counted. Both sample as many answers for a batch,
replacements of dead groups not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from common import facts, result_path, store
from reinforce import DATA, cold_start, quiet

PROBED, SKIPPED = 24, 4
"""Steps to know what one costs, and those of them that also pay for what is made once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="of one core, for each kind")
    parser.add_argument("--examples", type=int, default=5000, help="of the cold start")
    parser.add_argument("--exam-tasks", type=int, default=96)
    parser.add_argument("--kinds", default="grpo,ppo")
    parser.add_argument("--ppo", action="append", default=[], metavar="KEY=NUMBER", help="an option of ppo")
    parser.add_argument("--folder", help="keep the runs here, and go on from a cold start that is there")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()
    from tessera.device import prepare_process

    prepare_process()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.folder or scratch)
        result: dict[str, Any] = {**facts(), "options": vars(options), "seeds": []}
        for seed in range(options.seeds):
            place = folder / f"seed-{seed}"
            cold = place / "cold" if (place / "cold").is_dir() else cold_start(place, seed, options)
            found: dict[str, Any] = {"seed": seed}
            for kind in options.kinds.split(","):
                more = dict(option.split("=") for option in options.ppo) if kind == "ppo" else {}
                given = {name: json.loads(value) for name, value in more.items()}
                with tempfile.TemporaryDirectory(dir=place) as runs:
                    probe = learn(Path(runs) / "probe", kind, cold, seed, options, PROBED, given | {"exam_tasks": 4})
                    steps = round(options.seconds / probe["step_seconds"])
                    found[kind] = learn(Path(runs) / kind, kind, cold, seed, options, steps, given)
                print(f"seed {seed}, {kind}: {words(found[kind])}", flush=True)
            result["seeds"].append(found)
        store(result_path("ppo"), result)
    if options.json:
        print(json.dumps(result))


def learn(
    path: Path, kind: str, model: Path, seed: int, options: argparse.Namespace, steps: int, given: dict[str, Any]
) -> dict[str, Any]:
    """One run: its exams, with the processor time that had gone into learning before each, and its steps thinned out."""
    from tessera.posttrain import reinforce
    from tessera.run import RunFolder

    wish = reinforce.Wish(
        str(model), DATA, steps=steps, seed=seed, settings=("train.threads=1",), kind=kind,
        **{"exam_tasks": options.exam_tasks, **given},
    )  # fmt: skip
    reinforce.prepare(wish, path, quiet)
    each, mark, exams = list[float](), time.process_time(), list[dict[str, Any]]()

    def watch(event: dict[str, Any]) -> None:
        nonlocal mark
        now = time.process_time()
        if event["event"] == "step":
            each.append(now - mark)
        if event["event"] == "exam":
            names = ("step", "pass_at_1", "standard_error", "pass_at_k", "tasks")
            exams.append({"process_seconds": round(sum(each), 2), **{name: event[name] for name in names}})
        mark = now

    reinforce.tune(path, False, lambda folder: [watch], quiet)
    taken = [event for event in RunFolder(path).events() if event["event"] == "step"]
    names = ("step", "reward", "entropy", "length", "level", "value_loss", "explained_variance", "clipped", "grad_norm")
    return {
        "steps": steps,
        "process_seconds": sum(each),
        "step_seconds": sum(each[SKIPPED:]) / max(1, len(each) - SKIPPED),
        "exams": exams,
        "best": max(exam["pass_at_1"] for exam in exams),
        "curve": [{n: round(e[n], 4) for n in names if n in e} for e in taken[:: -(-len(taken) // 40)]],
    }


def words(run: dict[str, Any]) -> str:
    first, last = run["exams"][0], run["exams"][-1]
    return (
        f"{first['pass_at_1']:.1%} -> {last['pass_at_1']:.1%} of held-out answers right (best {run['best']:.1%}, standard error "
        f"{last['standard_error']:.1%}) in {run['steps']} steps, {run['process_seconds']:.0f} s of one core"
    )


if __name__ == "__main__":
    main()
