"""The ledger: every forecast that was ever sealed here and what became of it, one JSON line each, in one unbroken chain.

`runs/ledger.jsonl` is only ever appended to. Each line holds the digest of the line before, so that taking one out shows. What
follows the newest line is nothing yet, so `verdict.json` holds the digest of its line, and the ledger's head is made known. A
forecast has a line `sealed` when its run is launched and a line `verdict` when the run has ended; one that has no verdict is
open, and stays in the list.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.scaling.seal import COUNTED

FILE = "ledger.jsonl"


@dataclass(frozen=True)
class Entry:
    """One forecast with its verdict.

    Args:
        run: folder, as it was given.
        seal: of its forecast.
        sealed: the line written at launch.
        verdict: the last line written about it, or None.
        digest: SHA-256 of that line.
    """

    run: str
    seal: str
    sealed: dict[str, Any]
    verdict: dict[str, Any] | None
    digest: str | None

    @property
    def state(self) -> str:
        """`open`, `void` or `judged`."""
        if self.verdict is None:
            return "open"
        return "void" if self.verdict["void"] else "judged"


@dataclass(frozen=True)
class Ledger:
    """All forecasts in the order in which they were sealed.

    Args:
        gaps: numbers of the lines that are damaged, or whose predecessor is not the one before.
        digests: SHA-256 of every line.
    """

    entries: tuple[Entry, ...]
    gaps: tuple[int, ...]
    digests: tuple[str, ...]

    @property
    def head(self) -> str | None:
        """Digest of the newest line, which binds all lines before it; kept elsewhere, it shows that one was changed."""
        return self.digests[-1] if self.digests else None

    @property
    def judged(self) -> list[Entry]:
        """Those that count."""
        return [e for e in self.entries if e.state == "judged"]

    @property
    def levels(self) -> list[float]:
        """Of the narrowest interval about its forecast that holds each judged run."""
        return [float(e.verdict["level"]) for e in self.judged if e.verdict]

    def hits(self) -> dict[str, tuple[int, int]]:
        """Per level: runs inside the interval, and runs judged."""
        verdicts = [e.verdict for e in self.judged if e.verdict]
        return {str(level): (sum(v["inside"][str(level)] for v in verdicts), len(verdicts)) for level in COUNTED}


def append(path: Path, event: str, facts: Mapping[str, Any]) -> str:
    """Adds one line, whoever else adds one at the same time.

    Args:
        path: of the ledger.
        event: `sealed` or `verdict`.
        facts: at least `run` and `seal`.

    Returns:
        SHA-256 of the line, which the next one will hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        lines = file.read().splitlines()
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = json.dumps({"event": event, "when": when, **facts, "previous": _digest(lines[-1]) if lines else None})
        file.seek(0, os.SEEK_END)
        # A line that a full disk or a crash cut off stays, and shows as a gap.
        file.write(("" if not lines or _ends_whole(path) else "\n") + line + "\n")
        file.flush()
        os.fsync(file.fileno())
    return _digest(line)


def read(path: Path) -> Ledger:
    """What the ledger holds; an empty one where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    sealed: dict[str, dict[str, Any]] = {}
    verdicts: dict[str, dict[str, Any]] = {}
    digests = tuple(_digest(line) for line in lines)
    held: dict[str, str] = {}
    gaps = []
    for number, text in enumerate(lines):
        try:
            line = json.loads(text)
            _look_over(line)
        except (KeyError, TypeError, ValueError):
            gaps.append(number + 1)
            continue
        if line.get("previous") != (digests[number - 1] if number else None):
            gaps.append(number + 1)
        if line["event"] == "sealed":
            # What was sealed first stands; a second line of one seal says something else of it.
            if sealed.setdefault(line["seal"], line) is not line:
                gaps.append(number + 1)
        else:
            verdicts[line["seal"]], held[line["seal"]] = line, digests[number]
    entries = tuple(Entry(line["run"], key, line, verdicts.get(key), held.get(key)) for key, line in sealed.items())
    return Ledger(entries, tuple(gaps), digests)


def _look_over(line: Any) -> None:
    """Looks for all that others read of a line.

    Raises:
        KeyError, TypeError, ValueError: a part that others read is not there, or is something else.
    """
    texts = [line["event"], line["seal"], line["run"]]
    numbers = []
    if line["event"] == "sealed":
        texts.append(line["when"])
        numbers = [line["loss"], line["reach"], line["target"]["C"], *line["intervals"]["0.9"]]
    elif line["void"] is None:
        numbers = [line[name] for name in ("loss", "foretold", "miss", "z", "level", "interval_score")]
        numbers += [line["inside"][str(level)] for level in COUNTED]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(number, int | float) for number in numbers):
        raise TypeError


def calibration(levels: Iterable[float]) -> list[tuple[float, float]]:
    """For the calibration plot: nominal level and share of the judged runs that the central interval of that level holds.

    One point per judged run, so that every hit and miss is a stair.

    Args:
        levels: of the narrowest interval that holds each run.
    """
    ordered = sorted(levels)
    return [(level, (number + 1) / len(ordered)) for number, level in enumerate(ordered)]


def _digest(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()


def _ends_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
