"""docs/tour.py goes through all steps by the SDK against a server, and against the model in the box where there is one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tessera.errors import UserError
from tessera.model import weights
from tessera.serve.app import Settings
from tessera.tour import STEPS
from tests.serve.conftest import Running, make_model, script_of, serving

_SEEDS = 5
_FEWER = 3.0
"""Standard errors by which the shipped model may do worse here than its card says."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_of("tour")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Iterator[Running]:
    able = make_model(
        tmp_path_factory.mktemp("models") / "able", draws=True, films=True, speaks=True, thinking={"low": 4, "high": 8}
    )
    with serving(Settings(tmp_path_factory.mktemp("data")), able, base_folder) as running:
        yield running


def test_every_step_is_asked_and_judged_and_media_become_files(
    script: ModuleType, server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = script.main(["--base-url", server.url, "--model", "able", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 1  # the model is noise
    assert [line.partition(": ")[0] for line in said.splitlines() if not line.startswith(" ")] == [
        step.title for step in STEPS for _ in range(2 if step.kind == "judge" else 1)
    ]
    assert "left out" not in said
    heads = {path.name.partition("-")[0]: path.read_bytes()[:12] for path in tmp_path.iterdir()}
    assert set(heads) == {"draw", "film", "play"}
    assert heads["draw"].startswith(b"\x89PNG") and heads["play"].startswith(b"RIFF")
    assert heads["film"][4:8] == b"ftyp" or heads["film"].startswith(b"GIF")


def test_what_a_model_cannot_do_is_said(
    script: ModuleType, server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = script.tour(server.client(), "base", tmp_path, 1)
    said = capsys.readouterr().out
    assert set(found) == {"complete", "fill"} and said.count("left out") == len(STEPS) - 2
    assert "Draw a seven: left out, base has no pictures" in said


def test_the_shipped_model_does_each_step(script: ModuleType, tmp_path: Path) -> None:
    try:
        folder = weights.resolve_model("starter")
    except UserError as error:
        pytest.skip(f"the package holds no model here: {error}")
    with serving(Settings(tmp_path / "data"), folder) as running:
        found = script.tour(running.client().with_options(timeout=600), next(iter(running.models)).name, tmp_path / "out", _SEEDS)
    assert set(found) == {step.name for step in STEPS}
    rows = json.loads((folder.parent / "evaluations.json").read_text(encoding="utf-8"))
    said = {row["measure"]: row["value"] for row in rows if row["suite"] == "tour" and row["of"] == "starter"}
    assert sum(value >= 0.9 for value in said.values()) >= len(STEPS) / 2, "a model that can do little is no model to ship"
    for step in STEPS:
        share, right = said[step.title], found[step.name]
        allowed = len(right) * share - _FEWER * max(0.5, (len(right) * share * (1 - share)) ** 0.5)
        assert sum(right) >= allowed, (step.title, share, right)
