"""A corner of the disk to train in: a tiny text, a cache, and the command line, called here or in a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera import cli, device

TINY = (
    'data.sources=["files:{text}"]',
    "tokenizer.vocabulary_size=288",
    "model.width=64",
    "model.layers=1",
    "train.context=64",
    "train.batch_rows=4",
    "train.micro_rows=2",
    "train.threads=1",
    "train.checkpoint_seconds=0.05",
    "train.sample_prompts=[]",
)
"""40 steps with `--budget 10ktok`: four rows of 64 tokens each."""


@dataclass(frozen=True)
class Corner:
    """Where the tests of one session train.

    Args:
        folder: holds everything.
    """

    folder: Path

    @property
    def prepared(self) -> Path:
        """A run's folder in which no step was taken yet."""
        return self.folder / "prepared"

    @property
    def unbroken(self) -> Path:
        """The same, trained without a break."""
        return self.folder / "unbroken"

    @property
    def text(self) -> Path:
        return self.folder / "text"

    def words(self, out: Path, *more: str, budget: str = "10ktok") -> list[str]:
        """`tessera train` in words."""
        settings = [word.format(text=self.text) for word in TINY] + [m for m in more if not m.startswith("--")]
        flags = [m for m in more if m.startswith("--")]
        return ["train", "text", "--out", str(out), "--budget", budget, *flags, *(w for s in settings for w in ("--set", s))]

    def call(self, *words: str) -> tuple[int, str]:
        """Exit code and standard error of a command, in this process."""
        said, before = io.StringIO(), sys.argv
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        sys.argv = ["tessera", *words]
        code: Any = 0
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            sys.argv = before
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return code, said.getvalue()

    def start(self, *words: str, launcher: tuple[str, ...] = ("-m", "tessera")) -> subprocess.Popen[str]:
        """The same in a process of its own."""
        source = str(Path(cli.__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, *words]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    def copy(self, name: str, of: Path, to: Path | None = None) -> Path:
        """A run's folder to spoil."""
        return Path(shutil.copytree(of, (to or self.folder) / name))

    @staticmethod
    def weights(run: Path) -> bytes:
        """The finished model's file."""
        return (run / "model" / "model.safetensors").read_bytes()

    @staticmethod
    def events(run: Path, kind: str) -> list[dict[str, Any]]:
        """What metrics.jsonl holds of one kind; a line that is being written is left out."""
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        return [e for e in map(json.loads, lines) if e["event"] == kind]

    def same(self, run: Path) -> bool:
        """Whether the run ended with the unbroken run's bits, each step recorded once and with the same loss."""
        found, wanted = ([(e["step"], e["loss"]) for e in self.events(r, "step")] for r in (run, self.unbroken))
        return found == wanted and self.weights(run) == self.weights(self.unbroken)


@pytest.fixture(scope="session")
def corner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corner]:
    made = Corner(tmp_path_factory.mktemp("corner"))
    made.text.mkdir()
    dice = random.Random(0)
    words = ["".join(dice.choice("etaoinshrdlu") for _ in range(dice.randint(2, 8))) for _ in range(200)]
    for number in range(40):
        lines = [" ".join(dice.choice(words) for _ in range(12)) for _ in range(16)]
        (made.text / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSERA_CACHE", str(made.folder / "cache"))
        # Measuring takes seconds and is not what is tested here.
        patch.setattr(device, "matmul_peak", lambda machine, seconds=1.0: 5e10)
        code, said = made.call(*made.words(made.unbroken))
        assert code == 0, said
        # What a run that was killed before its first step leaves behind.
        made.copy("prepared", made.unbroken)
        for name in ("checkpoints", "model"):
            shutil.rmtree(made.prepared / name)
        (made.prepared / "report.html").unlink()
        keep = [line for line in (made.prepared / "metrics.jsonl").read_text().splitlines() if '"derived"' in line]
        (made.prepared / "metrics.jsonl").write_text("\n".join(keep) + "\n")
        yield made
    torch.set_num_threads(threads)
