"""What the training benchmarks share: settings, shapes, workers that take their steps in turn, and stored results.

A peer runs in a process of its own, so that memory, allocator and thread settings are its own; this side asks for one step at
a time, so that peers that are compared take turns and meet the same state of the machine. Nothing here imports torch: a worker
must be able to prepare its process first.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import random
import re
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Shape:
    """A model of Qwen3's form and the batch it is trained on; heads have size 64, the embedding is tied."""

    layers: int
    width: int
    context: int
    rows: int
    vocabulary: int = 2048

    @property
    def heads(self) -> int:
        return self.width // 64

    @property
    def kv_heads(self) -> int:
        return self.heads // 2

    @property
    def mlp_width(self) -> int:
        return 3 * self.width

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.rows * self.context


SHAPES = {
    "4x256": Shape(4, 256, 256, 32),
    "6x256": Shape(6, 256, 512, 16),
    "124M-1024": Shape(12, 768, 1024, 32, 50_304),
    "124M-2048": Shape(12, 768, 2048, 16, 50_304),
    "350M-1024": Shape(24, 1024, 1024, 16, 50_304),
    "350M-2048": Shape(24, 1024, 2048, 8, 50_304),
    # For trying the scripts out.
    "tiny": Shape(2, 128, 64, 4),
}


@dataclass(frozen=True)
class Setting:
    """One way to take the same step.

    Args:
        peer: `tessera`, `transformers`, `litgpt` or `plain`.
        shape: key of SHAPES.
        compiled: torch.compile, of the blocks in tessera, of the whole model elsewhere.
        micro_rows: rows of one forward pass; None: the whole batch at once.
        allocator: with the settings of `tessera.device.prepare_process`, which are no part of the peer.
        precision: `float32`, `bfloat16` (tessera: activations; elsewhere: weights and state too) or `autocast` (bf16, with
            float32 weights).
        recomputed: gradient checkpointing (tessera: `train.recompute`), where the peer has it.
        optimizer: `adamw`, or `muon` (tessera only).
        threads: of the worker.
        gpu: on the first GPU instead of the CPU.
        same_weights: begin with the weights tessera begins with, so that losses can be compared.
    """

    peer: str
    shape: str
    compiled: bool = False
    micro_rows: int | None = None
    allocator: bool = False
    precision: str = "float32"
    recomputed: bool = False
    optimizer: str = "adamw"
    threads: int = 1
    gpu: bool = False
    same_weights: bool = True

    def __str__(self) -> str:
        parts = [self.peer, "compiled" if self.compiled else "eager", f"{self.micro_rows or SHAPES[self.shape].rows} rows"]
        parts += ["recomputed"] * self.recomputed + ["allocator"] * self.allocator
        parts += [self.precision] * (self.precision != "float32") + [self.optimizer] * (self.optimizer != "adamw")
        return ", ".join(parts)


class WorkerFailed(Exception):
    """A peer could not be run; the text says why."""


class Worker:
    """A process that takes one training step whenever it is asked."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), json.dumps(asdict(setting))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(setting.threads, setting.allocator), text=True,
        )  # fmt: skip
        try:
            self.facts = self._answer()
        except WorkerFailed:
            self.close()
            raise

    def ask(self, command: str = "step") -> dict[str, Any]:
        """`step`: {cpu, wall, loss}; `peak`: {flops}; `memory`: {bytes}.

        Raises:
            WorkerFailed: the process ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerFailed(f"{self.setting} ended with code {self._process.wait()}") from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                if "error" in answer:
                    raise WorkerFailed(answer["error"])
                return answer
        raise WorkerFailed(f"{self.setting} ended with code {self._process.wait()}")

    def close(self) -> None:
        """Ends the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.terminate()
        self._process.wait()


def environment(threads: int, allocator: bool = False) -> dict[str, str]:
    """For a process with that many threads; waiting threads sleep, for every peer alike.

    Args:
        threads: of the process.
        allocator: with what tessera sets in the environment of its processes, too.
    """
    from tessera.device import PROCESS_SETTINGS

    count = str(threads)
    # Whoever develops may keep Python from storing what it compiled; then every start compiles again (docs/LOG.md, 2026-11-30).
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **inherited,
        **(PROCESS_SETTINGS if allocator else {}),
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
    }


def in_turn(workers: Sequence[Worker], rounds: int, clock: str, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """`rounds` steps of every worker, one worker after the other, in a new order each round."""
    samples: dict[str, list[dict[str, Any]]] = {str(w.setting): [] for w in workers}
    order = random.Random(seed)
    for number in range(rounds):
        for worker in order.sample(workers, len(workers)):
            samples[str(worker.setting)].append(worker.ask())
        taken = sum(s[-1][clock] for s in samples.values())
        print(f"  round {number + 1} of {rounds}: {taken:.1f} s", file=sys.stderr, flush=True)
    return samples


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and quartiles."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "q1": low, "q3": high}


def tessera_command() -> list[str]:
    """The command line of the tessera that this interpreter imports."""
    return [sys.executable, "-m", "tessera"]


def train(recipe: str, out: Path, seed: int, budget: str | None = None, settings: Sequence[str] = ()) -> Path:
    """One run of a recipe by the command line, without a forecast; returns its folder.

    Args:
        recipe: its name.
        seed: of the weights, the split and the order of the data.
        budget: instead of the recipe's.
        settings: `key=value`.
    """
    words = [*tessera_command(), "train", recipe, "--out", str(out), "--no-forecast"]
    words += ["--budget", budget] if budget else []
    for setting in (f"train.seed={seed}", f"data.seed={seed}", *settings):
        words += ["--set", setting]
    subprocess.run(words, check=True)
    return out


def about(run: Path) -> dict[str, Any]:
    """Size and length of a run."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [e for e in events if e["event"] == "step"]
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return {
        "run": {
            "command": info["command"], "parameters": info["parameters"], "tokens": steps[-1]["tokens"], "steps": len(steps),
            "training_seconds": round(steps[-1]["seconds"], 1),
        }
    }  # fmt: skip


def children_seconds() -> float:
    """Process time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def data_folder() -> Path:
    """Small real data: $TESSERA_DATA, or ../shared/data beside the checkout."""
    return Path(os.environ.get("TESSERA_DATA", HERE.parent.parent / "shared" / "data"))


def facts() -> dict[str, Any]:
    """Command, commit, machine and versions: what a result has to be read with."""
    from tessera.device import detect

    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "litgpt", "numpy", "tokenizers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(shlex.quote, sys.argv[1:])]),
        "commit": _git("rev-parse", "--short", "HEAD")
        + (", with changes" if _git("status", "--porcelain", "--", ":/src") else ""),
        "when": datetime.datetime.now().isoformat(timespec="seconds"),
        "machine": {
            "name": detect().name,
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "load": os.getloadavg(),
        },
        "versions": versions,
    }


def result_path(name: str) -> Path:
    """results/YYYY-MM-DD-NAME.json."""
    return RESULTS / f"{datetime.date.today().isoformat()}-{name}.json"


def store(path: Path, result: dict[str, Any]) -> None:
    """Writes a result as a whole, paths of this machine by their names alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(portable(result), indent=1) + "\n", encoding="utf-8")
    aside.replace(path)
    print(f"stored {path}", file=sys.stderr)


def portable(value: Any) -> Any:
    """The same with the last part of each absolute path alone, in texts at any depth: folders differ from machine to machine."""
    if isinstance(value, dict):
        return {key: portable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [portable(each) for each in value]
    return _PATH.sub(_last_part, value) if isinstance(value, str) else value


_PATH = re.compile(r"(?<![\w./])(/[\w.+@-]+)(?:/[\w.+@-]+)*/([\w.+@-]+)")


def _last_part(path: re.Match[str]) -> str:
    """Of what lies on this machine; routes of a server and the like stay."""
    return path[2] if Path(path[1]).is_dir() else path[0]


def of_models(
    name: str, doc: str, budget: str, settings: Sequence[str], tasks: tuple[int, str],
    measure: Callable[[Path, int, int], dict[str, Any]], words: Callable[[dict[str, Any]], str], recipe: str = "text",
    **more: Any,
) -> None:  # fmt: skip
    """A whole benchmark: for each seed trains a model where no run is given, measures, prints; stores in the end.

    Args:
        name: of the result.
        doc: of the script.
        budget, settings: of the runs.
        tasks: how many are measured, and what that is of.
        measure: from a run, how many and the seed to what was found.
        words: what was found, for people.
        recipe: of the runs.
        more: to be stored too.
    """
    from tessera.device import prepare_process

    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budget", default=budget)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--run", help="measure this run instead of training one")
    parser.add_argument("--tasks", type=int, default=tasks[0], help=tasks[1])
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    asked = parser.parse_args()
    prepare_process()
    result: dict[str, Any] = {**facts(), "options": vars(asked), **more, "seeds": []}
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as scratch:
        for seed in range(asked.seeds):
            begin = children_seconds()
            run = Path(asked.run or train(recipe, Path(scratch) / f"{seed}", seed, asked.budget, (*settings, *asked.settings)))
            found = {"seed": seed, "process_seconds": children_seconds() - begin, **about(run), **measure(run, asked.tasks, seed)}
            spent = "" if asked.run else f", {found['process_seconds']:.0f} s of one core to train"
            print(f"seed {seed}{spent}", words(found), sep="\n", flush=True)
            result["seeds"].append(found)
    store(result_path(name), result)
    if asked.json:
        print(json.dumps(result))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()
