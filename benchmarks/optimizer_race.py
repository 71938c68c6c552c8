"""Time to the loss that a tuned AdamW reaches at the end of its run: Muon with the rules' own settings against AdamW.

    python benchmarks/optimizer_race.py [--run runs/quickstart] [--minutes 5] [--jobs 2]

Model, data and tokenizer are the run's (without --run: what the rules plan for the `code` recipe and six minutes). Each training
is one process with one thread and is timed in process time, evaluations not counted, so that two may run side by side. AdamW is
tuned over rates x batches with one seed; its best is repeated with all seeds and gives the loss to reach.

With a cool-down the loss in the middle of a run says little: it falls at the end. So Muon is given shorter runs, each with its
complete schedule, and the shortest whose mean final loss is at or below AdamW's is the time to that loss.

Finished trainings are kept in the result file; called again, the script does only what is missing (--out names an older file).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import environment, facts, result_path, spread, store
from race_worker import batches_of, prepared_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default=None, help="folder of a run whose model and data are used")
    parser.add_argument("--minutes", type=float, default=5.0, help="process time of a full run")
    parser.add_argument("--rates", default="1.5e-3,3e-3,6e-3,1.2e-2", help="of AdamW")
    parser.add_argument("--batch-factors", default="0.5,1,2", help="of AdamW's batch, times the rows that the rules give")
    parser.add_argument("--fractions", default="0.3,0.4,0.5,0.6,1", help="of the time, for Muon")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    parser.add_argument("--out", default=None)
    options = parser.parse_args()

    path = Path(options.out) if options.out else result_path("optimizer-race")
    race = Race(path, options)
    rates = [float(r) for r in options.rates.split(",")]
    batches = batches_of(race.run, [float(f) for f in options.batch_factors.split(",")])
    race.train([adamw(rate, rows, 0) for rate in rates for rows in batches])
    tuned = min((r for r in race.runs() if r["optimizer"] == "adamw" and r["seed"] == 0), key=lambda r: r["loss"])
    race.train([adamw(tuned["rate"], tuned["rows"], seed) for seed in range(options.seeds)])
    fractions = sorted(float(f) for f in options.fractions.split(","))
    race.train([muon(fraction, seed) for fraction in reversed(fractions) for seed in range(options.seeds)])
    race.conclude(tuned, fractions)
    if options.json:
        print(json.dumps(race.result))


def adamw(rate: float, rows: int, seed: int) -> dict[str, Any]:
    return {"optimizer": "adamw", "rate": rate, "rows": rows, "fraction": 1.0, "seed": seed}


def muon(fraction: float, seed: int) -> dict[str, Any]:
    """Batch and rates are the rules'."""
    return {"optimizer": "muon", "rate": None, "rows": None, "fraction": fraction, "seed": seed}


class Race:
    """The trainings, finished and to come, in one result file."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        self.path = path
        self.options = options
        if path.is_file():
            self.result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if self.result["minutes"] != options.minutes:
                raise SystemExit(f"{path} holds runs of {self.result['minutes']} minutes; give another --out.")
        else:
            self.result = {**facts(), "minutes": options.minutes, "clock": "cpu", "runs": {}, "seconds_per_token": {}}
        self.run = prepared_run(Path(options.run) if options.run else None)
        from tessera.run import RunFolder

        folder = RunFolder.open(self.run)
        self.result["recipe"] = folder.recipe.model_dump(mode="json")
        self.result["shards"] = Path(folder.info["shards"]).name

    def runs(self) -> list[dict[str, Any]]:
        return list(self.result["runs"].values())

    def train(self, wanted: list[dict[str, Any]]) -> None:
        """Does those that are not in the file yet, `jobs` at a time."""
        missing = [w for w in wanted if json.dumps(w) not in self.result["runs"]]
        if not missing:
            return
        # Speed first, alone: so that all runs of an optimizer have the same number of tokens.
        for optimizer in {w["optimizer"] for w in missing} - set(self.result["seconds_per_token"]):
            found = self._worker({"optimizer": optimizer, "measure": True})
            self.result["seconds_per_token"][optimizer] = found["seconds_per_token"]
        with ThreadPoolExecutor(self.options.jobs) as pool:
            for asked, done in zip(missing, pool.map(self._timed, missing), strict=True):
                self.result["runs"][json.dumps(asked)] = done
                store(self.path, self.result)
                print(line(done), flush=True)

    def _timed(self, asked: dict[str, Any]) -> dict[str, Any]:
        seconds = 60 * self.options.minutes * asked["fraction"]
        per_token = self.result["seconds_per_token"][asked["optimizer"]]
        return self._worker({**asked, "tokens": round(seconds / per_token), "seconds_per_token": per_token})

    def _worker(self, asked: dict[str, Any]) -> dict[str, Any]:
        begin = time.perf_counter()
        script = Path(__file__).with_name("race_worker.py")
        done = subprocess.run(
            [sys.executable, str(script), str(self.run), json.dumps(asked)],
            env=environment(1),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return {**json.loads(done.stdout.splitlines()[-1]), "wall_seconds": time.perf_counter() - begin}

    def conclude(self, tuned: dict[str, Any], fractions: list[float]) -> None:
        """The ratio of the times, its spread over seeds, and whether the tuning ended inside its grid."""
        target_runs = [
            r for r in self.runs() if (r["optimizer"], r["rate"], r["rows"]) == ("adamw", tuned["rate"], tuned["rows"])
        ]
        target = mean([r["loss"] for r in target_runs])
        full_time = mean([r["cpu_seconds"] for r in target_runs])
        points = []
        for fraction in fractions:
            runs = [r for r in self.runs() if r["optimizer"] == "muon" and r["fraction"] == fraction]
            points.append(
                (
                    mean([r["cpu_seconds"] for r in runs]) / full_time,
                    mean([r["loss"] for r in runs]),
                    spread([r["loss"] for r in runs]),
                )
            )
        reached = [p for p in points if p[1] <= target]
        tried = [(r["rate"], r["rows"]) for r in self.runs() if r["optimizer"] == "adamw"]
        across = [rate for rate, rows in tried if rows == tuned["rows"]], [rows for rate, rows in tried if rate == tuned["rate"]]
        inside = all(min(a) < t < max(a) for a, t in zip(across, (tuned["rate"], tuned["rows"]), strict=True))
        print(f"AdamW, tuned: rate {tuned['rate']:g}, {tuned['rows']} rows; loss {target:.4f} after {full_time:.0f} s")
        print(f"the best of AdamW's grid lies {'inside it' if inside else 'ON ITS EDGE: widen --rates or --batch-factors'}")
        for share, loss, over_seeds in points:
            print(f"  Muon at {share:.2f} of the time: {loss:.4f} ({over_seeds['min']:.4f}..{over_seeds['max']:.4f})")
        ratio = min((p[0] for p in reached), default=None)
        between = crossing([(p[0], p[1]) for p in points], target)
        if ratio is None:
            print("no Muon run reached that loss")
        else:
            print(f"time to loss, Muon / AdamW: {ratio:.2f} as run" + (f", {between:.2f} between runs" if between else ""))
        self.result["conclusion"] = {
            "target_loss": target, "target_losses": [r["loss"] for r in target_runs], "adamw_seconds": full_time,
            "adamw_rate": tuned["rate"], "adamw_rows": tuned["rows"], "inside_grid": inside,
            "ratio": ratio, "interpolated_ratio": between,
            "muon": [{"share_of_time": share, "loss": loss, "over_seeds": over_seeds} for share, loss, over_seeds in points],
        }  # fmt: skip
        store(self.path, self.result)


def crossing(points: list[tuple[float, float]], target: float) -> float | None:
    """Where the straight line between the runs beside it meets the target; None where no two runs stand on either side."""
    for (early, high), (late, low) in pairwise(points):
        if high > target >= low:
            return early + (late - early) * (high - target) / (high - low)
    return None


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def line(run: dict[str, Any]) -> str:
    rate = f"rate {run['rate']:g}" if run["rate"] else "rules"
    return (
        f"{run['optimizer']:<6} {rate:<13} {run['rows']:>3} rows, seed {run['seed']}, {run['fraction']:.2f} of the time: "
        f"loss {run['loss']:.4f} after {run['cpu_seconds']:.0f} s, {run['steps']} steps"
    )


if __name__ == "__main__":
    main()
