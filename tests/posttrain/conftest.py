"""A tiny random model that knows its turns, and files of examples for it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera import cli
from tessera.model import weights
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.posttrain import supervised
from tessera.run import RunFolder
from tessera.tokens.vocabulary import Vocabulary

CONTEXT = 128
WORDS = ("red", "green", "blue", "black", "white")

ONE_THREAD = ("--set", "train.threads=1", "--set", "train.checkpoint_seconds=0.001")
SMALL = ("--group", "4", "--groups", "4", "--exam-tasks", "6", "--steps", "8", "--max-tokens", "4")
TASKS = [{"prompt": f"{n}: ", "answer": "b"} for n in range(40)]


def example(first: str, second: str) -> dict[str, Any]:
    """A question and its answer."""
    asked = {"role": "user", "content": f"Say {first} then {second}"}
    return {"messages": [asked, {"role": "assistant", "content": f"{first} {second}."}]}


EXAMPLES = [example(a, b) for a in WORDS for b in WORDS]


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    """Thread count and signal handlers are the process's own again afterwards."""
    threads = torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def tessera(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Calls the command line: its exit code and what it says."""

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tessera", *words])
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, capsys.readouterr().err

    return call


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    vocabulary = Vocabulary.train(["a byte is enough"], 256)
    config = DecoderConfig(vocabulary.size, width=32, layers=1, heads=2, kv_heads=1, head_size=16, mlp_width=48, context=CONTEXT)
    decoder = Decoder(config)
    decoder.initialise(0)
    weights.save(decoder, folder, special=weights.SpecialIds(end=(vocabulary.end_id,)), companions=vocabulary.save)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as lines and returns the file's path; a text is a line as it stands."""

    def write_lines(rows: Sequence[Mapping[str, Any] | str], name: str = "examples.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return str(path)

    return write_lines


@pytest.fixture(scope="session")
def starter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers a, b or c and ends, each about as often."""
    folder = tmp_path_factory.mktemp("starter")
    rows = [{"prompt": f"{n}: ", "completion": "abc"[n % 3]} for n in range(60)]
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ("train.threads=1", "train.context=8")
    wish = supervised.Wish(
        str(model),
        str(folder / "examples.jsonl"),
        validation_share=0,
        epochs=12,
        batch_size=16,
        rate_multiplier=3,
        settings=settings,
    )
    supervised.prepare(wish, folder / "run", lambda text: None)
    supervised.tune(folder / "run", False, lambda folder: [], lambda text: None)
    return folder / "run"


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    return str(tmp_path / "tasks.jsonl")


def words(starter: Path, tasks: str, out: Path, *more: str) -> tuple[str, ...]:
    return ("--model", str(starter), "--data", tasks, "--out", str(out), *ONE_THREAD, *SMALL, *more)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in RunFolder(run).events() if event["event"] == kind]


def weights_of(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()
