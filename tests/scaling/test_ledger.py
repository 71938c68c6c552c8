"""The chain of forecasts and verdicts."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

from tessera.scaling import ledger

SEALED: dict[str, Any] = {"loss": 2.0, "reach": 9.0, "intervals": {"0.9": [1.9, 2.1]}, "target": {"C": 1e13}}


def verdict(inside: bool = True, level: float = 0.4, void: str | None = None) -> dict[str, Any]:
    levels = {str(level): inside for level in ledger.COUNTED}
    return {
        "loss": 2.0,
        "foretold": 2.0,
        "inside": levels,
        "miss": 0.0,
        "z": 1.0,
        "level": level,
        "interval_score": 0.1,
        "void": void,
    }


def enter(path: Path, name: str, *verdicts: dict[str, Any]) -> None:
    ledger.append(path, "sealed", {"run": name, "seal": f"seal-{name}", **SEALED})
    for one in verdicts:
        ledger.append(path, "verdict", {"run": name, "seal": f"seal-{name}", **one})


def test_every_forecast_stays_in_the_list_whatever_became_of_it(tmp_path: Path) -> None:
    path = tmp_path / "runs" / ledger.FILE
    enter(path, "hit", verdict())
    enter(path, "missed", verdict(inside=False, level=0.999))
    enter(path, "stopped", verdict(void="the run was stopped before its end"))
    enter(path, "running")
    enter(path, "resumed", verdict(void="the run was stopped before its end"), verdict())
    book = ledger.read(path)
    assert [(e.run, e.state) for e in book.entries] == [
        ("hit", "judged"), ("missed", "judged"), ("stopped", "void"), ("running", "open"), ("resumed", "judged"),
    ]  # fmt: skip
    assert book.hits() == {"0.5": (2, 3), "0.8": (2, 3), "0.9": (2, 3)}
    assert book.gaps == ()


def test_a_line_that_is_changed_or_taken_out_shows(tmp_path: Path) -> None:
    path = tmp_path / ledger.FILE
    for name in "abc":
        enter(path, name, verdict())
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], *lines[3:]]) + "\n")
    assert ledger.read(path).gaps == (3,)
    path.write_text("\n".join([lines[0].replace("2.0", "2.2"), *lines[1:]]) + "\n")
    assert ledger.read(path).gaps == (2,)


def test_a_line_cut_off_by_a_crash_is_a_gap_and_nothing_else_is_lost(tmp_path: Path) -> None:
    path = tmp_path / ledger.FILE
    enter(path, "a", verdict())
    whole = path.read_text()
    path.write_text(whole + '{"event": "sealed", "run": "b')
    enter(path, "c", verdict())
    book = ledger.read(path)
    assert [e.run for e in book.entries] == ["a", "c"] and book.gaps == (3,)


def test_a_line_that_says_something_else_is_a_gap(tmp_path: Path) -> None:
    path = tmp_path / ledger.FILE
    enter(path, "a", verdict())
    enter(path, "b")
    lines = path.read_text().splitlines()
    sealed, judged = json.loads(lines[0]), json.loads(lines[1])
    spoilt = [{k: v for k, v in sealed.items() if k != name} for name in ("event", "seal", "run", "reach", "target", "intervals")]
    spoilt += [sealed | {"intervals": {}}, sealed | {"loss": "2"}, sealed | {"target": 1}]
    for line in [[1], 7, None, "sealed", *spoilt]:
        path.write_text("\n".join([json.dumps(line), *lines[1:]]) + "\n")
        book = ledger.read(path)
        assert 1 in book.gaps and [e.run for e in book.entries] == ["b"]
    for line in [{k: v for k, v in judged.items() if k != name} for name in ("void", "inside", "level", "z")]:
        path.write_text("\n".join([lines[0], json.dumps(line), lines[2]]) + "\n")
        book = ledger.read(path)
        assert 2 in book.gaps and [e.state for e in book.entries] == ["open", "open"]


def write_twenty(path: Path, name: str) -> None:
    for number in range(20):
        enter(path, f"{name}{number}")


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / ledger.FILE
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=write_twenty, args=(path, name)) for name in "ab"]
    for one in both:
        one.start()
    for one in both:
        one.join()
    book = ledger.read(path)
    assert len(book.entries) == 40 and book.gaps == ()
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_the_calibration_counts_each_run_once(tmp_path: Path) -> None:
    path = tmp_path / ledger.FILE
    enter(path, "close", verdict(level=0.0))
    enter(path, "far", verdict(level=0.9))
    points = ledger.calibration(ledger.read(path).levels)
    assert points == [(0.0, 0.5), (0.9, 1.0)]


def test_no_file_is_an_empty_ledger(tmp_path: Path) -> None:
    book = ledger.read(tmp_path / "none.jsonl")
    assert book == ledger.Ledger((), (), ()) and book.head is None


def test_the_head_changes_with_the_newest_line(tmp_path: Path) -> None:
    path = tmp_path / ledger.FILE
    enter(path, "a")
    digest = ledger.append(path, "verdict", {"run": "a", "seal": "seal-a", **verdict()})
    book = ledger.read(path)
    assert book.head == digest == book.entries[0].digest
    path.write_text(path.read_text().replace('"miss": 0.0', '"miss": 0.1'))
    changed = ledger.read(path)
    assert changed.gaps == () and changed.head not in (None, digest)
