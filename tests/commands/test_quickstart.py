"""`tessera quickstart` after its training: comparison, completions, sums, digits, report, server; and what it refuses."""

from __future__ import annotations

import base64
import json
import shlex
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tessera.commands import foretell, quickstart, serve, train
from tessera.errors import UserError
from tessera.model import starter
from tessera.scaling import seal

SETTINGS = (
    'data.sources=["files:{text}","builtin:sums?below=9","builtin:digits"]', "data.pictures.views=1",
    "data.validation_fraction=0.1", "tokenizer.vocabulary_size=288", "model.width=32", "model.layers=1", "train.context=128",
    "train.batch_rows=4", "train.micro_rows=2", "train.threads=1", "train.workers=1", "train.compile=false",
    "train.final_tokens=1024", "train.evaluate_tokens=1024", "train.sample_prompts=[]",
)  # fmt: skip


@pytest.fixture(scope="module")
def small(corner: Any) -> Path:
    """A run of the quickstart's recipe, with the corner's text for code."""
    out = corner.folder / "small-quickstart"
    sets = [word for s in SETTINGS for word in ("--set", s.format(text=corner.text))]
    code, said = corner.call("train", "quickstart", "--out", str(out), "--budget", "12ktok", "--no-forecast", *sets)
    assert code == 0, said
    return Path(out)


@pytest.fixture
def trained(corner: Any, small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where a quickstart will be, whose training takes no time."""
    monkeypatch.setattr(train, "train", lambda recipe, budget, settings, init, out, **more: shutil.copytree(small, out))
    monkeypatch.setattr(quickstart, "CODE", f"files:{corner.text}")
    return tmp_path / "run"


def test_it_compares_completes_reckons_draws_looks_and_is_refused_a_second_time(
    corner: Any, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"suite": "bits", "on": "held-out documents of builtin:stdlib", "bits_per_byte": 1.234, "documents": 9, "of": "starter"},
        {"suite": "digits", "measure": "named rightly", "value": 0.912, "n": 300, "of": "draw"},
        {"suite": "digits", "measure": "drawn as meant", "value": 0.97, "n": 100, "of": "starter"},
    ]
    monkeypatch.setattr(starter, "FOLDER", trained.parent / "box")
    starter.FOLDER.mkdir()
    (starter.FOLDER / "evaluations.json").write_text(json.dumps(rows))
    quickstart.quickstart("2m", str(trained))
    bits = {name: entry["bits_per_byte"] for name, entry in json.loads((trained / "baselines.json").read_text()).items()}
    assert 0 < bits["trained"] < bits["untrained"] and 0 < bits["ngram"] < bits["untrained"]
    shown = json.loads((trained / "shown.json").read_text())
    assert len(shown["sums"]) > 5 and all(
        a["question"].startswith("What is ") and a["question"][-1] == "?" for a in shown["sums"]
    )
    assert [d["caption"] for d in shown["drawn"]][7] == "a seven" and len(shown["drawn"]) == 10
    assert all(base64.b64decode(d["png"]).startswith(b"\x89PNG") for d in shown["drawn"])
    assert 100 < shown["seen"]["of"] < 200 and 0 <= shown["seen"]["right"] <= shown["seen"]["of"]
    report = (trained / "report.html").read_text()
    assert all(title in report for title in ("Against baselines", "<h2>Pictures</h2>", "<h2>Sums in words</h2>"))
    assert report.count("data:image/png;base64,") == 10
    printed = capsys.readouterr().out
    assert "Forecast, sealed" not in printed
    beside = printed.partition("Beside the model in the box")[2].partition("Done in")[0]
    assert "1.234" in beside and "97%" in beside and "91%" not in beside and "sums" not in beside
    assert f"./tessera serve {trained}" in printed and "begins now" not in printed
    monkeypatch.chdir(trained.parent)
    commands = [shlex.split(line)[1:] for line in printed.splitlines() if line.startswith("  ./tessera generate")]
    assert len(commands) == 4
    for command in commands:
        code, said = corner.call(*command)
        assert code == 0, said
    assert (trained.parent / "seven.png").is_file()
    with pytest.raises(UserError, match="holds a finished quickstart"):
        quickstart.quickstart("2m", str(trained))


def test_it_ends_with_the_verdict_on_its_forecast(trained: Path, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(small, trained)
    verdict = seal.Verdict(2.02, 2.0, {"0.5": False, "0.8": True, "0.9": True}, 0.01, 0.9, 0.6, 0.2).to_json()
    (trained / foretell.VERDICT).write_text(json.dumps({**verdict, "ledger": "f00d"}))
    quickstart.quickstart("2m", str(trained))
    said = "verdict: 2.0200 where 2.0000 was foretold, +1.00% (z +0.90), inside the 80% interval"
    assert f"Forecast, sealed before the training; {said}" in capsys.readouterr().out


def test_a_run_without_sums_and_digits_has_none_to_show(
    corner: Any, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(corner.unbroken, trained)
    quickstart.quickstart("2m", str(trained))
    assert json.loads((trained / "shown.json").read_text()) == {}
    assert "Sums" not in capsys.readouterr().out and (trained / "baselines.json").is_file()


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


@pytest.mark.parametrize(("budget", "sentence"), [("soon", "is not a time"), ("1e15", "needs a time"), ("10s", "at least 90s")])
def test_a_budget_that_is_no_time_is_refused(tmp_path: Path, budget: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        quickstart.quickstart(budget, str(tmp_path / "run"))
