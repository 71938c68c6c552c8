"""`tessera bench`: runs a script of the checkout's `benchmarks/`, in a process that is prepared by nobody but itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import tessera
from tessera.device import PROCESS_SETTINGS
from tessera.errors import UserError

SCRIPTS = {
    "train": "train_speed.py",
    "generate": "generate.py",
    "memory": "memory.py",
    "muon": "muon_share.py",
    "race": "optimizer_race.py",
    "shakespeare": "shakespeare.py",
    "kills": "kill_resume.py",
    "checkpoints": "checkpoint_cost.py",
    "fresh": "fresh_clone.py",
    "box": "box.py",
    "specialists": "specialists.py",
    "tokenizer": "tokenizer.py",
    "rules": "rule_sweep.py",
    "forecasts": "forecasts.py",
    "fit": "fit.py",
    "serve": "serve.py",
    "soak": "soak.py",
    "digits": "digits.py",
    "emoji": "emoji.py",
    "shapes": "shapes.py",
    "film": "film.py",
    "film-speed": "film_speed.py",
    "speak": "speak.py",
    "reinforce": "reinforce.py",
    "ppo": "ppo.py",
    "safety": "safety.py",
    "thinking": "thinking.py",
    "few-shot": "few_shot.py",
    "codex": "codex.py",
    "zero-shot": "zero_shot.py",
    "preference": "preference.py",
    "moderation": "moderation.py",
    "probe": "probe.py",
    "distil": "distil.py",
    "rollouts": "rollouts.py",
}
"""What each is called on the command line; `benchmarks/README.md` says what they ask."""


def bench(name: str, options: list[str], folder: Path | None = None) -> int:
    """Runs one benchmark, which prints and stores its result; returns its exit code.

    Args:
        name: key of SCRIPTS.
        options: of the script, as `--threads 2`.
        folder: of the scripts; None: `benchmarks/` of the checkout that the package stands in.

    Raises:
        UserError: no such benchmark, or no checkout.
    """
    if name not in SCRIPTS:
        raise UserError(f"there is no benchmark {name!r}; the benchmarks are {', '.join(SCRIPTS)}.")
    script = (folder or Path(tessera.__file__).parents[2] / "benchmarks") / SCRIPTS[name]
    if not script.is_file():
        raise UserError(f"there is no {script}: benchmarks come with a checkout, not with the installed package.")
    # What this process set for itself must not reach the peers that tessera is compared with.
    environment = {key: value for key, value in os.environ.items() if PROCESS_SETTINGS.get(key) != value}
    return subprocess.run([sys.executable, str(script), *options], env=environment, check=False).returncode
