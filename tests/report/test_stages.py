"""Stages that were trained one after the other: one page says what each did, and the reports link each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera import recipe
from tessera.errors import UserError
from tessera.report import write_chain_report, write_report

Read = Callable[[Path], Any]


def write_stage(folder: Path, exams: list[float] | None = None) -> None:
    """A run: of reinforcement where it has exams, else of training."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe.load("quickstart", ["train.tokens=100000"]).to_yaml())
    events: list[dict[str, Any]] = [
        {"event": "step", "step": n, "tokens": 10_000 * n, "loss": 3 - n / 10, "seconds": 5.0 * n} for n in range(1, 11)
    ]
    if exams is None:
        events += [
            {"event": "evaluation", "step": n, "tokens": 10_000 * n, "loss": 3 - n / 10, "bits_per_byte": 1.2} for n in (1, 10)
        ]
    for place, share in enumerate(exams or ()):
        events.append({"event": "exam", "step": 5 * place, "pass_at_1": share, "standard_error": 0.02, "k": 4, "tasks": 50})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "run.json").write_text(json.dumps({"parameters": 4_200_000} | ({"reinforce": {}} if exams else {})))


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A chain whose last stage is under way."""
    for name in ("base", "sft"):
        write_stage(tmp_path / name)
    write_stage(tmp_path / "grpo", [0.25, 0.5])
    stages = [{"name": n, "kind": k, "folder": n, "seconds": 60.0} for n, k in (("base", "train"), ("sft", "sft"))]
    page = {"recipe": "pages/starter.yaml", "budget": "2h", "command": "tessera reproduce starter", "stages": stages}
    (tmp_path / "chain.json").write_text(json.dumps(page | {"partial": {"grpo": 12.0}, "machine": {"cpu": "a <CPU>"}}))
    return tmp_path


def test_one_page_links_the_stages_of_a_chain_and_they_link_it(chain: Path, read_page: Read) -> None:
    page = read_page(write_chain_report(chain))
    assert page.addresses == ["base/report.html", "sft/report.html", "grpo/report.html"]
    assert not page.tags & {"script", "link", "img"}
    for fact in (
        "starter",
        "not finished: 2 stages done",
        "under way",
        "trained from nothing",
        "reinforced by a verifier",
        "2.9000",
        "2.0000",
        "25.0 \u00b1 2.0 %",
        "50.0 \u00b1 2.0 %",
        "2 m 12 s",
        "base: loss",
        "grpo: held-out pass@1",
        "a <CPU>",
    ):
        assert fact in page.text, fact
    stage = read_page(chain / "sft" / "report.html")
    assert stage.addresses == ["../report.html", "../base/report.html", "../grpo/report.html"]
    assert "starter: base" in stage.text


def test_a_finished_chain_shows_its_measurements_and_its_card(chain: Path, read_page: Read) -> None:
    (chain / "model").mkdir()
    (chain / "model" / "config.json").write_text("{}")
    (chain / "CARD.md").write_text("# starter")
    row = {"suite": "arithmetic", "measure": "pass@1, 0-shot", "value": 0.91, "standard_error": 0.02, "n": 100, "chance": 0.01}
    rows = [row | {"of": "starter"}, row | {"of": "code", "value": 0.99}]
    (chain / "evaluations.json").write_text(json.dumps(rows))
    page = read_page(write_chain_report(chain))
    assert "CARD.md" in page.addresses and "0.91 \u00b1 0.02" in page.text and "0.99" not in page.text
    assert "not finished" not in page.text


def test_a_chain_has_a_page_as_soon_as_it_has_begun(tmp_path: Path, read_page: Read) -> None:
    (tmp_path / "chain.json").write_text(json.dumps({"recipe": "starter", "stages": [], "partial": {"base": 3.0}}))
    page = read_page(write_chain_report(tmp_path))
    assert not page.addresses and "base" in page.text and "under way" in page.text
    (tmp_path / "chain.json").write_text("{")
    with pytest.raises(UserError, match="not the folder of a chain"):
        write_chain_report(tmp_path)


def test_a_folder_that_is_its_own_last_stage_links_the_earlier_ones(tmp_path: Path, read_page: Read) -> None:
    write_stage(tmp_path / "cold")
    (tmp_path / "stages.json").write_text(json.dumps({"recipe": "reason", "model": "runs/text"}))
    earlier = read_page(write_report(tmp_path / "cold"))
    assert earlier.addresses == ["../report.html", "../report.html"] and "reason: cold" in earlier.text
    write_stage(tmp_path, [0.4, 0.6])
    (tmp_path / "recipe.yaml").write_text(recipe.load("quickstart", ["train.tokens=200000"]).to_yaml())
    page = read_page(write_report(tmp_path))
    assert page.addresses == ["cold/report.html"] and "tuned on examples" in page.text and "posttrain reason --out" in page.text


def test_a_run_that_only_lies_beside_a_chain_is_no_part_of_it(chain: Path, read_page: Read) -> None:
    write_stage(chain / "other")
    assert not read_page(write_report(chain / "other")).addresses
