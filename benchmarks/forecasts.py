"""Own ladders, sealed forecasts and verdicts: code, prose and dialogue, two seeds each, one after the other in one ledger.

    python benchmarks/forecasts.py [--flops 1.2e14] [--seeds 2] [--only code,prose,dialogue] [--runs runs/forecasts]

Each is `tessera train RECIPE --forecast --budget ...` as a person types it, with all cores: the ladder, the seal, the run,
the verdict. The target has `--flops`, the ladder comes on top. Nothing is chosen afterwards: every forecast that is sealed
stands in the ledger of the folder and in the result, refusals and misses too. The result holds the ledger's head, so that git is
a witness from outside of what the ledger said. Runs that are finished are kept; called again,
only what is missing is done.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import HERE, data_folder, facts, result_path, store, tessera_command


def sources() -> dict[str, list[str]]:
    """Recipe and data of each subject."""
    prose = data_folder() / "text/lm"
    folders = ("gutenberg_books", "state_union", "inaugural", "shakespeare_xml")
    return {
        "code": ["code", "builtin:stdlib"],
        "prose": ["text", *(f"files:{prose / name}" for name in folders)],
        "dialogue": ["text", "python:forecast_data.dialogues"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flops", type=float, default=1.2e14, help="of the target")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="code,prose,dialogue")
    parser.add_argument("--runs", default="runs/forecasts")
    parser.add_argument("--threads", type=int, help="of each run; default all. With 1, several of these can go side by side")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    from tessera.commands.foretell import room_of_flops
    from tessera.scaling import ledger

    runs = Path(options.runs).resolve()
    path = Path(options.out) if options.out else result_path("forecasts")
    result: dict[str, Any] = {**facts(), "flops": options.flops, "forecasts": []}
    # Seed by seed, so that a run broken off has something of every subject.
    for seed in range(options.seeds):
        for name in options.only.split(","):
            recipe, *uris = sources()[name]
            out = runs / f"{name}-{seed}"
            if not (out / "model").is_dir():
                budget = f"{options.flops / room_of_flops():.4e}"
                command = [*tessera_command(), "train", recipe, "--forecast", "--budget", budget, "--out", str(out)]
                command += ["--resume"] if (out / "run.json").is_file() else []
                settings = [f"data.sources={json.dumps(uris)}", f"train.seed={10 * seed}", "train.sample_prompts=[]"]
                settings += [f"train.threads={options.threads}"] if options.threads else []
                for setting in settings:
                    command += ["--set", setting]
                environment = {
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))),
                }
                done = subprocess.run(command, cwd=HERE, env=environment, check=False)
                if done.returncode:
                    sys.exit(f"{name}, seed {seed}: exit code {done.returncode}; call again to go on.")
            result["forecasts"].append({"subject": name, "seed": seed, **read(out)})
            result["ledger_head"] = ledger.read(runs / ledger.FILE).head
            store(path, result)
    conclude(result)
    store(path, result)
    if options.json:
        print(json.dumps(result))


def read(out: Path) -> dict[str, Any]:
    """Forecast and verdict of a finished run."""
    page = json.loads((out / "forecast.json").read_text(encoding="utf-8"))
    verdict = out / "verdict.json"
    last = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    loss = next(e["loss"] for e in reversed(last) if e["event"] == "evaluation" and e["final"])
    kept = ("target", "refused", "reasons", "warnings", "loss", "intervals", "reach", "seal")
    ladder = [{k: v for k, v in row.items() if k != "curve"} for row in page["ladder"]]
    return {
        **{key: page.get(key) for key in kept}, "ladder": ladder, "measured": loss,
        "verdict": json.loads(verdict.read_text(encoding="utf-8")) if verdict.is_file() else None,
    }  # fmt: skip


def conclude(result: dict[str, Any]) -> None:
    """Prints the table, and the median error and coverage of those that were sealed."""
    sealed = [f for f in result["forecasts"] if not f["refused"]]
    for found in result["forecasts"]:
        foretold = found["loss"]
        line = f"{found['subject']:<9} seed {found['seed']}  measured {found['measured']:.4f}"
        if foretold:
            low, high = found["intervals"]["0.9"]
            line += f"  foretold {foretold:.4f} ({low:.4f} to {high:.4f})  {found['measured'] / foretold - 1:+.2%}"
        print(line + ("  NOT SEALED: " + " ".join(found["reasons"]) if found["refused"] else ""))
    if sealed:
        errors = [abs(f["measured"] / f["loss"] - 1) for f in sealed]
        halves = [(f["intervals"]["0.9"][1] - f["intervals"]["0.9"][0]) / 2 / f["loss"] for f in sealed]
        inside = sum(f["intervals"]["0.9"][0] <= f["measured"] <= f["intervals"]["0.9"][1] for f in sealed)
        result["median_error"], result["median_half_width"] = statistics.median(errors), statistics.median(halves)
        result["inside_90"], result["sealed"] = inside, len(sealed)
        print(
            f"{len(sealed)} sealed: median error {statistics.median(errors):.2%}, 90 % intervals hold {inside}, "
            f"median half-width {statistics.median(halves):.2%}"
        )


if __name__ == "__main__":
    main()
