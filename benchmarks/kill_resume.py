"""Twenty kill -9 at random moments, then `--resume`: are the final weights those of the unbroken run, bit for bit?

    python benchmarks/kill_resume.py [--kills 20] [--tokens 600ktok] [--seed 0]

Everything goes through the command line. One run is left alone; others of the same recipe are killed again and again, every
second time while a checkpoint is being written (its folder, still under its temporary name, is there), and resumed until they
end. A folder that was killed before it was prepared is refused by `--resume` and is started anew, as a person would.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import environment, facts, result_path, store, tessera_command

PATIENCE_SECONDS = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--tokens", default="600ktok", help="budget of one run")
    parser.add_argument("--source", default="builtin:stdlib", help="of the documents")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runs = Runs(folder, options.tokens, options.source)
        # The first run also fills the cache of documents; the second shows how long a run takes that finds it.
        runs.finish(folder / "first")
        begin = time.perf_counter()
        runs.finish(folder / "unbroken")
        usual = time.perf_counter() - begin
        expected = digest(folder / "unbroken")
        print(f"unbroken: {usual:.1f} s, weights {expected[:16]}")
        result: dict[str, Any] = {**facts(), "unbroken_seconds": usual, "expected": expected, "kills": [], "runs": []}
        result["repeated_run_equal"] = digest(folder / "first") == expected
        while len(result["kills"]) < options.kills:
            name = f"broken-{len(result['runs'])}"
            kills = runs.break_and_finish(folder / name, options.kills - len(result["kills"]), moments, usual)
            same = digest(folder / name) == expected
            result["kills"] += kills
            result["runs"].append({"kills": len(kills), "equal": same})
            print(f"{name}: {len(kills)} kills, weights {'equal' if same else 'DIFFERENT'}", flush=True)
            shutil.rmtree(folder / name)
    writing = sum(k["while"] == "writing a checkpoint" for k in result["kills"])
    equal = all(run["equal"] for run in result["runs"])
    verdict = "bitwise equal every time" if equal else "NOT EQUAL"
    print(f"{len(result['kills'])} kills ({writing} while writing a checkpoint): {verdict}")
    result["all_equal"] = equal
    store(result_path("kill-resume"), result)
    if options.json:
        print(json.dumps(result))
    sys.exit(0 if equal else 1)


class Runs:
    """The same training again and again, each time in another folder."""

    def __init__(self, folder: Path, tokens: str, source: str) -> None:
        self.environment = {**environment(1), "TESSERA_CACHE": str(folder / "cache")}
        settings = (f'data.sources=["{source}"]', "train.threads=1", "train.checkpoint_seconds=1", "train.sample_prompts=[]")
        self.command = [*tessera_command(), "train", "code", "--budget", tokens, "--no-forecast"]
        for setting in settings:
            self.command += ["--set", setting]

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        """A fresh start, or a resumption where there is a run in the folder."""
        if out.exists() and not (out / "run.json").is_file():
            shutil.rmtree(out)
        resume = ["--resume"] if out.exists() else []
        log = open(out.with_suffix(".log"), "ab")  # noqa: SIM115 (the child keeps it)
        process = subprocess.Popen([*self.command, "--out", str(out), *resume], env=self.environment, stdout=log, stderr=log)
        log.close()
        return process

    def finish(self, out: Path) -> None:
        """Runs to the end.

        Raises:
            RuntimeError: it ended with an error; the text is the end of what it said.
        """
        code = self.start(out).wait(timeout=PATIENCE_SECONDS)
        if code:
            raise RuntimeError(out.with_suffix(".log").read_text(errors="replace")[-2000:])

    def break_and_finish(self, out: Path, most: int, moments: random.Random, usual: float) -> list[dict[str, Any]]:
        """Kills the run up to `most` times and lets it end."""
        kills: list[dict[str, Any]] = []
        while len(kills) < most and not (out / "report.html").is_file():
            process, begin = self.start(out), time.perf_counter()
            in_writing = len(kills) % 2 == 1
            wait = moments.uniform(0.0, usual)
            while process.poll() is None and time.perf_counter() - begin < PATIENCE_SECONDS:
                writing = any((out / "checkpoints").glob(".step-*"))
                if writing if in_writing else time.perf_counter() - begin > wait:
                    # Into the middle of the writing, not always at its first moment.
                    time.sleep(moments.uniform(0.0, 0.03) if in_writing else 0.0)
                    process.kill()
                    process.wait()
                    steps = sorted(int(p.name[5:]) for p in (out / "checkpoints").glob("step-*"))
                    what = "writing a checkpoint" if any((out / "checkpoints").glob(".step-*")) else "training or starting"
                    kills.append({"after_seconds": time.perf_counter() - begin, "while": what, "checkpoints_on_disk": steps})
                    break
                time.sleep(0.001)
            if process.poll() not in (0, -9):
                raise RuntimeError(out.with_suffix(".log").read_text(errors="replace")[-2000:])
            if process.returncode == 0:
                return kills
        self.finish(out)
        return kills


def digest(out: Path) -> str:
    """SHA-256 of the final weights."""
    found = hashlib.sha256()
    for file in sorted((out / "model").glob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
