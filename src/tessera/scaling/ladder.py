"""The ladder: the same recipe at smaller budgets, trained before the run it is to foretell.

A recipe, its budget in FLOPs, a vocabulary and token files go in; the table of finished rungs (N, D, C, loss) comes out, for
`scaling.forecast` to fit. Every rung is what the rules make of its smaller budget, with the target's vocabulary and held-out
rows. Rungs are trained side by side in processes of their own, the largest first, and are kept by the hash of everything
that decides their loss: a second ladder of the same recipe costs nothing, and one that was stopped goes on.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import functools
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tessera
from tessera.data.shards import Shards
from tessera.device import PROCESS_SETTINGS, Machine, memory_bytes
from tessera.errors import RunFailed, UserError
from tessera.model.decoder import DecoderConfig
from tessera.recipe import Recipe
from tessera.run import RunFolder
from tessera.scaling import rules
from tessera.scaling.law import Runs
from tessera.scaling.noise import between_seeds
from tessera.scaling.rung import RESULT
from tessera.scaling.table import DIVERGED
from tessera.tokens.vocabulary import Vocabulary
from tessera.train.loop import MOST_SKIPPED

RATIO = 2.0
"""Between the budgets of neighbouring rungs."""
REACH = 8.5
"""The target's FLOPs over those of the largest rung."""
SEEDS = (2, 1, 1, 2, 2, 3)
"""Runs of each rung, largest first: an error of the largest moves a forecast by two to three times as much, and the small ones
are noisy and cheap (docs/LOG.md, "Small runs count less"). Five ratios of 2 are 1.505 decades, the least that a forecast may
rest on."""
PHASES = 4
"""Rungs stand on a fixed grid of budgets, this many between two of a ladder, so that they are found again when the budget of
the next target, which is measured in seconds, differs a little."""
LAWFUL_FLOPS = 4e11
"""Of the smallest rung. From 4.6e11 on log loss falls evenly with log compute, of code and of dialogue; the rungs below fall more
slowly, and ladders with them are refused (docs/LOG.md, 2026-11-29, "The ladder after it" and "Dialogue")."""
LEAST_EVALUATED = 8192
"""Tokens of each evaluation on a rung's way, of which the band is made; its final loss is on all that the target's is on."""
COMPUTING_ROOMS = ("tokens", "model", "data", "train", "recipe.py", "device.py")
"""Of the package: what decides the loss of a run. A change elsewhere leaves rungs and seals valid."""

_SAID = "said.txt"
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

Say = Callable[[str], None]


class NoLadder(UserError):
    """There is no ladder for this run; the text says why and what would help."""


@dataclass(frozen=True)
class Rung:
    """One run of a ladder.

    Args:
        budget: FLOPs that it was planned for; the seeds of one rung have the same.
        recipe: resolved.
        shape: of its model.
        path: of its folder in the cache.
    """

    budget: float
    recipe: Recipe
    shape: DecoderConfig
    path: Path

    @property
    def tokens(self) -> int:
        """D as planned, padding included."""
        assert self.recipe.train.tokens
        return self.recipe.train.tokens

    @property
    def flops(self) -> float:
        """C as planned."""
        return self.shape.flops_per_token(self.recipe.train.mean_context) * self.tokens

    @property
    def done(self) -> bool:
        """Whether it was trained before."""
        return (self.path / RESULT).is_file()

    @property
    def result(self) -> dict[str, Any]:
        """What `scaling.rung` wrote."""
        return dict(json.loads((self.path / RESULT).read_text(encoding="utf-8")))


def share(reach: float = REACH) -> float:
    """FLOPs of a whole ladder, as a part of its target's."""
    return sum(seeds / RATIO**number for number, seeds in enumerate(SEEDS)) / reach


def refuse_lawless(flops: float) -> None:
    """Raises NoLadder where the ladder below a run of that many FLOPs would begin below LAWFUL_FLOPS."""
    smallest = flops / REACH / RATIO ** (len(SEEDS) - 1)
    if smallest < LAWFUL_FLOPS:
        raise NoLadder(
            f"its ladder would begin at {smallest:.1e} FLOPs, and below {LAWFUL_FLOPS:.0e} models learn too fast for a law; "
            f"a budget {math.ceil(LAWFUL_FLOPS / smallest)} times as large has one, or --forecast trains the ladder all the same."
        )


def design(
    intent: Recipe, target: rules.Plan, vocabulary: Vocabulary, shards: Shards, machine: Machine, cache: Path
) -> list[Rung]:
    """The rungs below a target, largest first.

    Args:
        intent: the recipe as the person wrote it, so that the rules fill the same gaps at every size.
        target: what it becomes at its full budget.
        vocabulary, shards: of the target; every rung uses them.
        machine: dtype and threads.
        cache: holds the rungs' folders.

    Raises:
        NoLadder: the smallest rungs would be too small to be the same recipe.
    """
    options = [_rungs(intent, target, top, vocabulary, shards, machine, cache) for top in _tops(target.flops)]
    # What was trained before is free; else the one whose reach is nearest to the wanted one.
    return max(
        options, key=lambda rungs: (sum(r.flops for r in rungs if r.done), -abs(math.log(target.flops / rungs[0].budget / REACH)))
    )


def train(rungs: Sequence[Rung], vocabulary: Vocabulary, shards: Shards, machine: Machine, say: Say) -> None:
    """Trains those that were not trained before, side by side where there are several cores.

    Raises:
        RunFailed: a rung ended with an error.
    """
    waiting = [rung for rung in rungs if not rung.done]
    said_before = {rung.path: _said(rung.path) for rung in waiting}
    total, begin = sum(r.flops for r in waiting), time.monotonic()
    threads = _threads(waiting, machine)
    running: dict[Rung, subprocess.Popen[str]] = {}
    free, done = machine.threads, 0.0
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: _stop(running.values()))
        while waiting or running:
            for rung in [r for r in waiting if threads[r.path] <= free]:
                if threads[rung.path] > free:
                    continue
                _prepare(rung, vocabulary, shards, machine, threads[rung.path])
                running[rung] = _start(rung, threads[rung.path])
                free -= threads[rung.path]
                waiting.remove(rung)
            time.sleep(0.1)
            for rung, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[rung]
                free += threads[rung.path]
                if process.returncode or not rung.done:
                    said = _said(rung.path).removeprefix(said_before[rung.path]).strip().splitlines()
                    why = said[-1].removeprefix("tessera: ").removesuffix(".") if said else "it said nothing"
                    raise RunFailed(f"a rung of the ladder failed ({rung.path}): {why}; {_remedy(rung)}, or give --no-forecast.")
                done += rung.flops
                found = rung.result
                say(
                    f"  rung {found['C']:.2e} FLOPs: {found['N']:,} parameters, {found['D']:,} tokens, "
                    f"seed {rung.recipe.train.seed}, loss {found['loss']:.4f}  "
                    f"({done / total:.0%} of the ladder in {time.monotonic() - begin:.0f} s)"
                )


def table(rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """The finished rungs as rows: what `rung.json` holds, with the budget and the seed."""
    return [{"budget": r.budget, "seed": r.recipe.train.seed, **r.result} for r in rungs]


def without_diverged(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The rows but for seeds that end above DIVERGED times the least of their rung, and a sentence that names those."""
    kept: list[Mapping[str, Any]] = []
    lost = []
    for row in rows:
        least = min((r["loss"] for r in rows if r["budget"] == row["budget"] and math.isfinite(r["loss"])), default=math.nan)
        if row["loss"] <= DIVERGED * least:
            kept.append(row)
        else:
            lost.append(f"seed {row['seed']} at {row['budget']:.2e} FLOPs")
    return kept, [f"Diverged, left out: {', '.join(lost)}."] if lost else []


def runs(rows: Sequence[Mapping[str, Any]]) -> Runs:
    """The rows for the law, without those that diverged: one per budget, the mean of its seeds, with the noise between them."""
    rows, _ = without_diverged(rows)
    budgets = sorted({row["budget"] for row in rows})
    seeds = [[row for row in rows if row["budget"] == budget] for budget in budgets]

    def mean(name: str) -> np.ndarray:
        return np.array([np.mean([float(row[name]) for row in rung]) for rung in seeds])

    U = unique_tokens(rows)
    D = mean("D")
    noise, weight = between_seeds([np.array([row["loss"] for row in rung], np.float64) for rung in seeds], mean("C"))
    return Runs(
        N=mean("N"), D=D, C=mean("C"), loss=mean("loss"), budget=np.arange(len(budgets)),
        weight=weight, name=tuple(f"{budget:.2e} FLOPs" for budget in budgets), seed_noise=noise, optimal=True,
        U=None if U is None else np.minimum(U, D),
    )  # fmt: skip


def unique_tokens(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Training tokens that there are for a ladder and its target, which read the same files; None of rungs of before 2026-12."""
    return next((float(row["U"]) for row in rows if "U" in row), None)


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The same as a file for `tessera fit`."""
    columns = [key for key, value in rows[0].items() if not isinstance(value, list)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@functools.cache
def code_hash() -> str:
    """Hex digest of the code that decides a run's loss, as it was when this process first asked."""
    digest = hashlib.sha256()
    root = Path(tessera.__file__).parent
    for name in COMPUTING_ROOMS:
        files = sorted((root / name).rglob("*.py")) if (root / name).is_dir() else [root / name]
        for file in files:
            digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _tops(flops: float) -> list[float]:
    """Budgets for the largest rung, near the target's over REACH, from the fixed grid."""
    nearest = math.log(flops / REACH, RATIO) * PHASES
    return [RATIO ** (step / PHASES) for step in (math.floor(nearest), math.ceil(nearest))]


def _rungs(
    intent: Recipe, target: rules.Plan, top: float, vocabulary: Vocabulary, shards: Shards, machine: Machine, cache: Path
) -> list[Rung]:
    settings = target.recipe.train
    media_ids = sum(block.size for block in vocabulary.blocks)
    facts = rules.Facts(
        None, 1e12, kind=machine.kind, memory_bytes=memory_bytes(machine), compiler=False, media_ids=media_ids,
        dtype=machine.dtype,
    )  # fmt: skip
    # Not how much data there is: a rung needs less of it than its target.
    rungs = []
    for number, seeds in enumerate(SEEDS):
        budget = top / RATIO**number
        train = intent.train.model_copy(update={
            "tokens": None, "threads": 1, "workers": 1, "compile": False, "sample_prompts": (), "track": "none",
            "final_tokens": settings.final_tokens,
            "context": settings.context, "short_context": settings.short_context,
        })  # fmt: skip
        same_model = {"rope_theta": target.recipe.model.rope_theta, "tied": target.recipe.model.tied}
        model = intent.model.model_copy(update=same_model)
        same = {"model": model, "tokenizer": target.recipe.tokenizer}
        asked = intent.model_copy(update={"budget": f"{budget:.6e}", "train": train, **same})
        try:
            plan = rules.resolve(asked, facts)
        except UserError as error:
            raise NoLadder(f"the smallest runs of its ladder would be too small: {error}") from None
        tokens, parameters = plan.recipe.train.tokens, plan.shape.matmul_parameters
        assert tokens and plan.recipe.train.evaluate_tokens and settings.evaluate_tokens
        if intent.model.width is None and not 0.5 < tokens / parameters / rules.TOKENS_PER_PARAMETER < 2:
            raise NoLadder(
                f"its ladder would begin at {top / RATIO ** (len(SEEDS) - 1):.2e} FLOPs, for which the smallest model there is, "
                f"of {parameters:,} parameters, is too large: give a larger budget, or --no-forecast to leave the ladder out."
            )
        # On its way a small rung would spend more on the target's evaluations than on training.
        often = min(settings.evaluate_tokens, max(plan.recipe.train.evaluate_tokens, LEAST_EVALUATED))
        for seed in range(seeds):
            changed = plan.recipe.train.model_copy(update={"seed": settings.seed + seed, "evaluate_tokens": often})
            seeded = plan.recipe.model_copy(update={"train": changed})
            rungs.append(Rung(budget, seeded, plan.shape, cache / "rungs" / _name(seeded, vocabulary, shards, machine)))
    return rungs


def _name(recipe: Recipe, vocabulary: Vocabulary, shards: Shards, machine: Machine) -> str:
    """Hash of what decides the loss, up to rounding."""
    page = recipe.model_dump(mode="json")
    for key in ("threads", "workers", "micro_rows", "compile", "checkpoint_seconds", "track", "sample_prompts"):
        del page["train"][key]
    facts = [page["model"], page["train"], page["data"], vocabulary.hash, shards.hash, machine.dtype, machine.kind, code_hash()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _threads(rungs: Sequence[Rung], machine: Machine) -> dict[Path, int]:
    """Cores for each rung, by its part of the work, so that all end at about the same time. A GPU trains one after the other."""
    if machine.kind == "cuda":
        return {rung.path: machine.threads for rung in rungs}
    total = sum(r.flops for r in rungs)
    return {rung.path: max(1, round(machine.threads * rung.flops / total)) for rung in rungs}


def _prepare(rung: Rung, vocabulary: Vocabulary, shards: Shards, machine: Machine, threads: int) -> None:
    """Writes the rung's folder, or leaves the one that this or another command has begun."""
    rows = rung.recipe.train.batch_rows
    assert rows
    workers = min(threads, rows) if machine.kind == "cpu" else 1
    train = rung.recipe.train.model_copy(update={"threads": threads, "workers": workers})
    assert train.context
    rung.path.parent.mkdir(parents=True, exist_ok=True)
    with open(rung.path.parent / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (rung.path / "run.json").is_file():
            return
        folder = RunFolder.create(rung.path, rung.recipe.model_copy(update={"train": train}))
        vocabulary.save(rung.path / "tokenizer", train.context)
        folder.write_info({
            "machine": {"dtype": machine.dtype, "threads": threads, "matmul_peak_gflops": 1.0},
            "shards": str(shards.folder), "init": None,
        })  # fmt: skip
        folder.unlock()


def _start(rung: Rung, threads: int) -> subprocess.Popen[str]:
    # A rung is one process, also where the run itself is shared by several.
    own = {k: v for k, v in os.environ.items() if k not in _TORCHRUN}
    environment = {**PROCESS_SETTINGS, **own, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    # Behind what was said before: another command that waits for this rung begins it too.
    with open(rung.path / _SAID, "a", encoding="utf-8") as said:
        # In a session of its own: Ctrl-C reaches this process, which then asks the rungs to save.
        return subprocess.Popen(
            [sys.executable, "-m", "tessera.scaling.rung", str(rung.path), str(os.getpid())],
            env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, text=True, start_new_session=True,
        )  # fmt: skip


def _stop(processes: Any) -> None:
    """Lets every rung that still runs write its checkpoint."""
    asked = list(processes)
    for process in asked:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in asked:
        process.wait()


def _said(path: Path) -> str:
    """The words of a rung's processes so far."""
    said = path / _SAID
    return said.read_text(encoding="utf-8", errors="replace") if said.is_file() else ""


def _remedy(rung: Rung) -> str:
    """What helps a rung that failed."""
    steps = [event["skipped"] for event in RunFolder(rung.path).events() if event["event"] == "step"]
    if len(steps) >= MOST_SKIPPED and all(steps[-MOST_SKIPPED:]):
        return "trained again as it is, it ends the same way: set these, or another train.seed, by --set for the whole ladder"
    return "run the same command again to go on"
