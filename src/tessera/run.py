"""A run's folder: the resolved recipe, facts about the machine, metrics, checkpoints, the model, the report.

One process at a time owns a folder (a lock that the kernel drops when the process dies). Whatever is written is written
aside and renamed, or appended as one line.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from tessera import recipe as recipes
from tessera.errors import RunFailed, UserError, disk_full
from tessera.recipe import Recipe

CHAIN, BASE = "chain.json", "base"
"""What says of a folder that it is a chain's (`tessera reproduce`), and where the training that it begins with lies in it."""

KEPT = "serve-data"
"""Folder of what a server keeps, beside the first of its models."""

_LOCK = ".lock"
_BEFORE_TRAINING = frozenset(
    {"recipe.yaml", "tokenizer", "skipped.jsonl", "metrics.jsonl", "ladder.csv", "forecast.json", "tokens"}
    | {"stages.json", "examples.jsonl", "cold", "sft", "train.jsonl", "held_out.jsonl", "tasks.jsonl", "made.npz"}
    | {"reference_train.npy", "reference_held_out.npy"}
)
"""What stands in a folder before `run.json`, which is written last, says that it is prepared."""


def write_text(path: Path, text: str) -> None:
    """Replaces a file as a whole: written aside, flushed to the disk, renamed."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """`write_text` of bytes."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def disk_may_be_full(path: Path) -> Iterator[None]:
    """Turns a full disk under the block into one sentence.

    Raises:
        RunFailed: there is no room in `path`, or a quota or a limit on the size of files was reached.
    """
    try:
        yield
    except Exception as error:
        why = disk_full(error)
        if why is None:
            raise
        kept = max((path / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:]), default=None)
        then = f"the last good checkpoint is {kept}; make room and --resume" if kept else "make room and start again"
        raise RunFailed(f"the disk is full: {path} could not be written ({why}); {then}.") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what keeps the block from writing `path`, which a person named, into one sentence.

    Raises:
        UserError: the disk is full, or the place is none that this user can write.
    """
    try:
        yield
    except Exception as error:
        why = disk_full(error) or (error.strerror if isinstance(error, OSError) else None)
        if why is None:
            raise
        above = next((parent for parent in path.parents if parent.exists()), None)
        if above is not None and not above.is_dir():
            why = f"{above} is a file, not a folder"
        raise UserError(f"{path} cannot be written: {why}.") from None


class RunFolder:
    """Reads and writes one run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        self._metrics: IO[str] | None = None

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> RunFolder:
        """A new folder, owned by this process.

        Raises:
            UserError: something is there already, or it cannot be written.
        """
        cls.refuse_occupied(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path)
            folder.lock()
            cls.refuse_occupied(path)  # again: another process may have been faster
            for left in ("metrics.jsonl", "run.json"):
                (path / left).unlink(missing_ok=True)
            write_text(path / "recipe.yaml", recipe.to_yaml())
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from None
        return folder

    @classmethod
    def refuse_occupied(cls, path: Path) -> None:
        """Raises UserError where something stands, but for what a server keeps or a start that was broken off has left; and
        where no folder can be made."""
        if not path.exists():
            above = next(parent for parent in path.absolute().parents if parent.exists())
            if not above.is_dir():
                raise UserError(f"{path} cannot be written: {above} is a file, not a folder.")
            if not os.access(above, os.W_OK | os.X_OK):
                raise UserError(f"{path} cannot be written: {above} is closed to this user; give another --out.")
            return
        if path.is_dir():
            names = {p.name for p in path.iterdir()}
            # What a start leaves, it leaves beside its lock; a recipe.yaml or a tokenizer without one is somebody's own.
            left_by_a_start = _BEFORE_TRAINING if _LOCK in names else frozenset()
            if _LOCK in names and not cls(path).prepared:
                left_by_a_start |= {"run.json"}
            occupied = any(not name.startswith(".") and name not in left_by_a_start | {KEPT} for name in names)
        else:
            occupied = True
        if occupied:
            resume = ", or --resume to go on with the run that is in it" if (path / "recipe.yaml").is_file() else ""
            raise UserError(f"{path} exists already; give another --out{resume}.")

    @classmethod
    def behind(cls, home: Path) -> RunFolder:
        """The run that a model came from.

        Args:
            home: `weights.home` of it: a run's folder, or that of a chain, whose training it is then.
        """
        return cls(home / BASE if (home / CHAIN).is_file() else home)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run's folder.

        Raises:
            UserError: there is no run in it.
        """
        if not (path / "recipe.yaml").is_file():
            raise UserError(f"{path} holds no run (no recipe.yaml); start one without --resume.")
        return cls(path)

    def lock(self, wait: bool = False) -> None:
        """Owns the folder until the process ends.

        Args:
            wait: until another process gives it free.

        Raises:
            UserError: another process owns it and `wait` is not given, or it cannot be written.
        """
        try:
            self._lock = open(self.path / _LOCK, "w", encoding="utf-8")  # noqa: SIM115 (held as long as the process lives)
            fcntl.flock(self._lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(f"another process is training in {self.path}; wait for it, or give another --out.") from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}.") from None

    @property
    def held(self) -> bool:
        """Whether a process owns the folder now."""
        try:
            with open(self.path / _LOCK, encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            pass
        return False

    def unlock(self) -> None:
        """Gives the folder free."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe; UserError where the page is damaged."""
        page = self.path / "recipe.yaml"
        try:
            tree = yaml.safe_load(page.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise _damaged(page, error) from None
        return recipes.validate(tree, str(page))

    @property
    def info(self) -> dict[str, Any]:
        """`run.json`: command, versions, machine, data; what a resumed run must not measure again. UserError if damaged."""
        path = self.path / "run.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise _damaged(path, error) from None

    @property
    def prepared(self) -> bool:
        """Whether all that stands before the first step was written; UserError if damaged."""
        return "prepared_seconds" in self.info

    def write_info(self, info: dict[str, Any]) -> None:
        """Replaces `run.json`."""
        write_text(self.path / "run.json", json.dumps(info, indent=1))

    @property
    def model(self) -> Path:
        """The Hugging Face folder of the finished weights."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Holds `step-N` folders."""
        return self.path / "checkpoints"

    def record(self, event: dict[str, Any]) -> None:
        """Appends one event to metrics.jsonl; numbers that are not finite become null, as JSON has none."""
        if self._metrics is None:
            self._metrics = open(self.path / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (one line at a time)
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in event.items()}
        self._metrics.write(json.dumps(clean) + "\n")
        self._metrics.flush()

    def events(self) -> Iterator[dict[str, Any]]:
        """What metrics.jsonl holds; a line that a crash has cut off or spoiled is left out."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict):
                    yield event

    def forget_after(self, step: int) -> None:
        """Drops the events of steps after `step`, which a resumed run will take again."""
        kept = [e for e in self.events() if e.get("step", 0) <= step]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(e) + "\n" for e in kept))


class Follower:
    """Reads on in a run's `metrics.jsonl` while another process writes it.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / "metrics.jsonl"
        self._file = self._place = 0

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the file is another than before, as a resumed run writes it anew; and its whole lines that are new."""
        try:
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                anew = status.st_ino != self._file or status.st_size < self._place
                file.seek(0 if anew else self._place)
                lines = file.read()
                self._file, self._place = status.st_ino, file.tell() - len(lines) + lines.rfind(b"\n") + 1
        except FileNotFoundError:
            return False, []
        events = []
        for line in lines[: lines.rfind(b"\n") + 1].splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return anew, events


def _damaged(path: Path, error: Exception) -> UserError:
    said = " ".join(str(error).split())
    return UserError(f"{path} is damaged ({said}); put a copy of it back, or start a new run with another --out.")


def commit() -> str | None:
    """Of the checkout that the package stands in, if it stands in one and git is installed."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "--short", "HEAD", "--show-prefix"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    # In either order, as versions of git have it. Installed packages may lie within the checkout of something else.
    found = set(asked.stdout.split())
    prefix = "src/tessera/"
    return next(iter(found - {prefix}), None) if prefix in found else None
