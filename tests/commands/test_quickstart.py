"""`tessera quickstart` after its training: comparison, completions, report, server; and what it refuses."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tessera.commands import quickstart, serve, train
from tessera.errors import UserError


@pytest.fixture
def trained(corner: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where a quickstart will be, whose training takes no time."""
    monkeypatch.setattr(train, "train", lambda recipe, budget, settings, init, out, resume: shutil.copytree(corner.unbroken, out))
    return tmp_path / "run"


def test_it_compares_completes_reports_and_is_refused_a_second_time(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quickstart.quickstart("2m", str(trained))
    bits = {name: entry["bits_per_byte"] for name, entry in json.loads((trained / "baselines.json").read_text()).items()}
    assert 0 < bits["trained"] < bits["untrained"] and 0 < bits["ngram"] < bits["untrained"]
    assert "untrained" in (trained / "report.html").read_text()
    printed = capsys.readouterr().out
    assert f"./tessera serve {trained}" in printed and "begins now" not in printed
    with pytest.raises(UserError, match="holds a finished quickstart"):
        quickstart.quickstart("2m", str(trained))


@pytest.mark.parametrize("taken", [False, True])
def test_in_the_end_it_serves_at_a_port_that_is_free(trained: Path, monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    asked: list[tuple[Sequence[str], int]] = []
    with socket.socket() as other:
        other.bind((serve.HOST, 0))
        usual = other.getsockname()[1]
        if taken:
            other.listen()
        else:
            other.close()
        monkeypatch.setattr(serve, "PORT", usual)
        monkeypatch.setattr(serve, "serve", lambda models, port: asked.append((models, port)))
        quickstart.quickstart("2m", str(trained), serves=True)
    assert asked == [([str(trained)], 0 if taken else usual)]


@pytest.mark.parametrize(("budget", "sentence"), [("soon", "is not a time"), ("1e15", "needs a time"), ("10s", "at least 75s")])
def test_a_budget_that_is_no_time_is_refused(tmp_path: Path, budget: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        quickstart.quickstart(budget, str(tmp_path / "run"))
