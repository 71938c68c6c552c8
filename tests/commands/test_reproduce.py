"""A chain of stages: from one budget, each on the model before it, and what stops it goes on with the part that was under way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from tessera.commands.evaluate import documents_of
from tessera.commands.reproduce import names_of, reproduce, share_of
from tessera.engine.thinking import budgets_of, speaks_dialogue
from tessera.errors import UserError
from tessera.model import weights
from tessera.posttrain.replay import first_run
from tessera.recipe import load
from tessera.run import RunFolder
from tessera.tokens.vocabulary import Vocabulary

PAGE = """
name: little
summary: A chain in little.
budget: 20ktok
data:
  sources: [{uri: "builtin:sums?below=12", weight: 0.5}, {uri: "builtin:digits", weight: 0.5}]
  document_mask: true
  pictures: {views: 1}
tokenizer: {vocabulary_size: 300}
model: {width: 32, layers: 1, head_size: 16}
train: {context: 256, threads: 1}
then:
  - {stage: sft, share: 0.4, data: "builtin:assistant?count=120", replay: 0.2, settings: [train.threads=1]}
  - {stage: dpo, share: 0.1, data: "builtin:judgements?count=30", anchor: 1.0, settings: [train.threads=1]}
  - {stage: grpo, share: 0.1, data: "arithmetic:1-2", efforts: [low], ptx: "builtin:assistant?count=60",
     settings: [train.threads=1]}
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chain") / "little.yaml"
    path.write_text(PAGE, encoding="utf-8")
    return path


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tessera", "reproduce", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_chain_runs_through_and_goes_on_where_it_stopped(page: Path) -> None:
    out = page.parent / "out"
    done = run(str(page), "--out", str(out), "--no-forecast")
    assert done.returncode == 0, done.stderr[-3000:]
    chain = json.loads((out / "chain.json").read_text(encoding="utf-8"))
    assert [stage["name"] for stage in chain["stages"]] == ["base", "sft", "dpo", "grpo"]
    assert all(stage["seconds"] > 0 for stage in chain["stages"])
    report = (out / "report.html").read_text(encoding="utf-8")
    assert all(f'href="{name}/report.html"' in report for name in ("base", "sft", "dpo", "grpo"))
    for name, before in (("sft", "base"), ("dpo", "sft"), ("grpo", "dpo")):
        info = json.loads((out / name / "run.json").read_text(encoding="utf-8"))
        assert Path(info["init"]) == out / before / "model"
    base = json.loads((out / "base" / "run.json").read_text(encoding="utf-8"))
    assert "the run is finished" not in done.stderr and "stages come after this training" not in done.stderr
    assert base["init"] is None
    with safe_open(out / "model" / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    vocabulary = Vocabulary.load(out / "model", weights.read_config(out / "model").vocab_size)
    assert speaks_dialogue(str(out / "model"), vocabulary) and "image" in vocabulary.media
    assert set(budgets_of(str(out / "model"))) == {"low", "medium", "high"}
    rows = json.loads((out / "evaluations.json").read_text(encoding="utf-8"))
    measured = {(row["suite"], row["measure"]) for row in rows}
    assert {("bits", "bits per byte"), ("bits", "bits per pixel")} <= measured
    assert any(suite == "arithmetic" for suite, _ in measured) and all(row["of"] == "little" and row["n"] > 1 for row in rows)

    card = (out / "CARD.md").read_text(encoding="utf-8")
    assert "| base | train |" in card and "| arithmetic | pass@1" in card and str(out) not in card

    # Of what the training held out, and it is what the last model learned first.
    assert documents_of(str(out), (), pictures=False)[1] == documents_of(str(out / "base" / "model"), (), pictures=False)[1]
    assert documents_of(str(out), (), pictures=False)[1] == "held-out documents of the run"
    assert first_run(out / "model").path == out.resolve() / "base"

    # As if it had been killed within the last stage, and before the first of its files was there.
    stamp = (out / "dpo" / "model" / "model.safetensors").stat().st_mtime_ns
    kept = json.loads((out / "chain.json").read_text(encoding="utf-8"))
    kept["stages"] = kept["stages"][:-1]
    (out / "chain.json").write_text(json.dumps(kept), encoding="utf-8")
    info = json.loads((out / "grpo" / "run.json").read_text(encoding="utf-8"))
    info.pop("prepared_seconds")
    (out / "grpo" / "run.json").write_text(json.dumps(info), encoding="utf-8")
    again = run(str(page), "--out", str(out), "--no-forecast", "--resume")
    assert again.returncode == 0 and "grpo, in" in again.stderr and "dpo, in" not in again.stderr, again.stderr[-3000:]
    assert (out / "dpo" / "model" / "model.safetensors").stat().st_mtime_ns == stamp
    owner = RunFolder(out)
    owner.lock()
    refused = run(str(page), "--out", str(out), "--no-forecast", "--resume")
    assert refused.returncode == 2 and "another process is training in" in refused.stderr
    owner.unlock()
    refused = run(str(page), "--out", str(out), "--no-forecast", "--resume", "--budget", "30ktok")
    assert refused.returncode == 2 and "budget is 30ktok here and 20ktok in the chain" in refused.stderr


def test_the_shipped_chain_is_a_page_with_its_stages() -> None:
    page = load("starter")
    assert [later.stage for later in page.then] == ["sft", "dpo", "grpo"] and names_of(page) == ["sft", "dpo", "grpo"]
    own = 1 - sum(later.share for later in page.then)
    assert own >= max(later.share for later in page.then), "no stage takes more than the training"


@pytest.mark.parametrize(
    ("budget", "share", "part"),
    [
        ("2h", 0.25, "1800s"),
        ("90s", 0.001, "1s"),
        ("50Mtok", 0.1, "5000000tok"),
        ("1e14", 0.5, "5.0000e+13"),
        ("$20", 0.5, "14400s"),
    ],
)
def test_a_share_of_a_budget_is_in_its_own_unit(budget: str, share: float, part: str) -> None:
    assert share_of(budget, share, price_per_hour=2.5) == part


def test_a_chain_begins_in_no_folder_that_holds_something_else(tmp_path: Path, page: Path) -> None:
    run_of_another = tmp_path / "run"
    (run_of_another / "model").mkdir(parents=True)
    for place in (run_of_another, page):
        # Before the data of the stages is read, which may take minutes: none.jsonl is not looked for.
        then = ["then=[{stage: sft, share: 0.1, data: none.jsonl}]"]
        with pytest.raises(UserError, match="exists already and holds no chain; give another --out"):
            reproduce(str(page), None, then, str(place), resume=False)
    assert [file.name for file in run_of_another.iterdir()] == ["model"]
    # What a server of the box keeps lies where its chain goes by default, and is in nobody's way.
    (tmp_path / "served" / "serve-data").mkdir(parents=True)
    with pytest.raises(UserError, match=r"none\.jsonl"):
        reproduce(str(page), None, then, str(tmp_path / "served"), resume=False)
    with pytest.raises(UserError, match="cannot be written"):
        reproduce(str(page), None, ["then=[{stage: grpo, share: 0.1, data: reversal}]"], str(page / "below"), resume=False)


def test_wrong_input_is_said_in_a_sentence(tmp_path: Path, page: Path) -> None:
    with pytest.raises(UserError, match="has no stages after its training"):
        reproduce("code", None, [], str(tmp_path / "a"), resume=False)
    with pytest.raises(UserError, match="is no folder of tessera reproduce"):
        reproduce(str(page), None, [], str(tmp_path / "b"), resume=True)
    for stage, data, said in (
        ("sft", "none.jsonl", "none.jsonl"),
        ("dpo", "builtin:none", "builtin:none"),
        ("grpo", "sums", "sums"),
    ):
        then = [f"then=[{{stage: {stage}, share: 0.1, data: {data!r}}}]"]
        with pytest.raises(UserError, match=said):
            reproduce(str(page), None, then, str(tmp_path / "c"), resume=False)
        assert not (tmp_path / "c").exists(), "told before anything is made"
    with pytest.raises(UserError, match=r"gone\.jsonl"):
        beside = ["then=[{stage: grpo, share: 0.1, data: 'arithmetic:1-2', ptx: gone.jsonl}]"]
        reproduce(str(page), None, beside, str(tmp_path / "c"), resume=False)
    with pytest.raises(UserError, match="`replay` says nothing to the stage dpo, but to sft"):
        load(str(page), ["then=[{stage: dpo, share: 0.1, data: a, replay: 0.2}]"])
    with pytest.raises(UserError, match="leave nothing of the budget"):
        reproduce(str(page), None, ["then=[{stage: dpo, share: 0.9, data: a}, {stage: dpo, share: 0.2, data: a}]"], None, False)
    assert names_of(load(str(page), ["then=[{stage: sft, share: 0.1, data: a}, {stage: sft, share: 0.2, data: a}]"])) == [
        "sft-1", "sft-2"
    ]  # fmt: skip
