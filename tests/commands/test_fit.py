"""`tessera fit`: a table in, the law and its forecasts out, in words and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tessera.cli import app
from tessera.commands.fit import fit
from tessera.errors import UserError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    C = np.geomspace(1e16, 1e19, 7)
    loss = (1.7 + 86 * C**-0.092) * np.exp(1e-3 * np.random.default_rng(0).standard_normal(7))
    rows = [
        f"{0.1 * c**0.5:.10g},{c:.10g},{y:.10g},{'a' if c < 1e18 else 'b'},run{i}"
        for i, (c, y) in enumerate(zip(C, loss, strict=True))
    ]
    path = tmp_path / "runs.csv"
    path.write_text("N,C,loss,set,name\n" + "\n".join([*rows, rows[2]]) + "\n", encoding="utf-8")
    return path


def run(table: Path, *options: str) -> str:
    done = CliRunner().invoke(app, ["fit", str(table), *options], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_json_has_the_promised_keys_at_full_precision(table: Path) -> None:
    found = json.loads(run(table, "--target", "C=1e20", "--target", "N=1e9,D=1.7e10", "--level", "0.8", "--json"))
    keys = "form coefficients intervals objective residual_sd identified refused reasons warnings backtest predictions"
    for key in keys.split():
        assert key in found
    assert found["form"] == "frontier" and found["refused"] is False and found["reasons"] == []
    assert any("stood twice" in warning and "run2" in warning for warning in found["warnings"])
    first = found["predictions"][0]
    assert {"N", "D", "C", "loss", "low", "high", "level"} <= first.keys() and first["level"] == 0.8 and first["C"] == 1e20
    k = found["coefficients"]
    assert k["E"] + k["A"] * 1e20 ** -k["a"] == pytest.approx(first["loss"], rel=1e-14)


def test_the_screen_shows_law_backtest_forecast_and_warnings(table: Path) -> None:
    text = run(table, "--target", "C=1e20")
    for words in ("frontier: L = E + A C^-a", "Back-test", "90% intervals", "1e+20", "Warnings", "stood twice"):
        assert words in text
    assert "REFUSED" not in text


def test_a_refusal_is_printed_in_words_with_the_numbers_and_is_no_error(table: Path) -> None:
    text = run(table, "--where", "C<=1.1e17 or name=run0", "--target", "C=1e20")
    assert "REFUSED" in text and "1e+20" in text and "decades" in text
    assert json.loads(run(table, "--where", "C<=1.1e17", "--target", "C=1e20", "--json"))["refused"] is True


def test_many_targets_come_from_a_file(table: Path, tmp_path: Path) -> None:
    (tmp_path / "targets.csv").write_text("C\n2e19\n1e20\n", encoding="utf-8")
    found = json.loads(run(table, "--targets", str(tmp_path / "targets.csv"), "--json"))
    assert [one["C"] for one in found["predictions"]] == [2e19, 1e20]


def test_bad_input_is_a_user_error(table: Path) -> None:
    for options in ({"form": "cubic"}, {"where": "set=z"}, {"loss": "bpb"}, {"targets": ["C=big"]}, {"level": 2.0}):
        words = {"targets": [], "targets_file": None, "where": None, "form": "auto", "loss": "loss", "level": 0.9} | options
        with pytest.raises(UserError):
            fit(str(table), as_json=False, **words)  # type: ignore[arg-type]
