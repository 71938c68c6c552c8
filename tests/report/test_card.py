"""The card of a model says what the records of its chain say, with error, chance and licences, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tessera import recipe
from tessera.data import builtin_lines, sources
from tessera.errors import UserError
from tessera.report.card import write_card
from tessera.report.licences import UNKNOWN, licence_of, named
from tessera.report.measured import read_measured


def score(of: str, suite: str, value: float, error: float | None = 0.02, n: int = 100, **more: Any) -> dict[str, Any]:
    row = {"suite": suite, "measure": "pass@1, 0-shot", "value": value, "standard_error": error, "n": n, "chance": None}
    return row | {"baseline": None, "baseline_is": "", "settings": {"seed": 0}, "of": of} | more


EVALUATIONS = [
    {
        "suite": "bits",
        "on": "held-out documents of builtin:stdlib",
        "bits_per_byte": 1.321,
        "nats_per_token": 2.1,
        "standard_error": 0.011,
    }
    | {"documents": 90, "tokens": 9000, "bytes": 30000, "of": "starter"},
    {
        "suite": "bits",
        "on": "held-out documents of builtin:stdlib",
        "bits_per_byte": 1.201,
        "nats_per_token": 2.0,
        "standard_error": 0.012,
    }
    | {"documents": 90, "tokens": 9000, "bytes": 30000, "of": "code"},
    score("starter", "arithmetic", 0.91, chance=0.01, baseline=0.25, baseline_is="the first number"),
    score("starter", "tour", 0.95, n=20, chance=0.1, measure="draw a seven"),
    score("starter", "tour", 0.55, n=20, chance=0.1, measure="what is in this picture"),
    score("starter", "blimp", 0.503, chance=0.5, n=67000),
    score("starter", "sorting", 0.3, baseline=0.28),
    score("starter", "over-refusal", 0.04),
    score("starter", "hierarchy", 0.95, error=None, n=1),
]


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A chain of two stages with every record that the card knows."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "recipe.yaml").write_text(recipe.load("quickstart", ["train.tokens=100000"]).to_yaml())
    events = [
        {"event": "step", "step": 9, "tokens": 100000, "loss": 2.5, "seconds": 60.0},
        {"event": "evaluation", "step": 9, "tokens": 100000, "loss": 2.4321, "final": True},
    ]
    (base / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    data = [{"uri": uri, "documents": 700, "bytes": 12_100_000} for uri in ("builtin:stdlib", "files:/home/somebody/novels")]
    (base / "run.json").write_text(json.dumps({"parameters": 4_200_000, "data": data}))
    sealed = {
        "intervals": {"0.9": [2.3, 2.6]},
        "loss": 2.45,
        "ladder": [{}] * 12,
        "reach": 8.0,
        "made": "then",
        "seal": "f00d" * 8,
    }
    (base / "forecast.json").write_text(json.dumps(sealed))
    verdict = {"loss": 2.4321, "miss": -0.0073, "z": -0.2, "inside": {"0.5": True, "0.8": True, "0.9": True}}
    (base / "verdict.json").write_text(json.dumps(verdict))
    lines = {"uri": "chat:/cache/lines/dialogues-2000-0-0a1b2c3d.jsonl", "documents": 2000, "bytes": 700_000}
    for name in ("sft", "dpo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(recipe.load("quickstart", []).to_yaml())
        (tmp_path / name / "run.json").write_text(json.dumps({"data": [lines]}))
    asked = {"data": "builtin:dialogues", "model": "/somewhere/base", "replay": 0.3}
    stages = [
        {"name": "base", "kind": "train", "folder": "base", "seconds": 3600.0},
        {"name": "sft", "kind": "sft", "folder": "sft", "seconds": 60.0, "asked": asked},
        {"name": "dpo", "kind": "dpo", "folder": "dpo", "seconds": 30.0},
    ]
    page: dict[str, Any] = {
        "recipe": "starter",
        "budget": "2h",
        "commit": "abc123",
        "command": "tessera reproduce starter --out /somewhere/runs/starter",
    }
    page |= {"versions": {"torch": "2.11"}, "machine": {"cpu": "a CPU", "threads": 2}, "stages": stages}
    (tmp_path / "chain.json").write_text(json.dumps(page))
    (tmp_path / "evaluations.json").write_text(json.dumps(EVALUATIONS))
    samples = [
        {"step": "complete a function", "prompt": "def add(a, b):", "answer": "    return a + b", "right": True},
        {"step": "draw", "prompt": "a seven", "answer": "", "right": True, "file": "samples/seven.png"},
        {"step": "sum", "prompt": "What is ```37``` + 58?", "answer": "12 | 13", "right": False},
    ]
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    (tmp_path / "model").mkdir()
    config = {"architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 6, "max_position_embeddings": 512, "dtype": "bfloat16"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    return tmp_path


def sections(card: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", card, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_it_says_what_the_records_say(chain: Path) -> None:
    card = write_card(chain).read_text()
    part = sections(card)
    assert "4.2M parameters" in card and "| layers | 6 |" in part["Shape"]
    assert "| arithmetic | pass@1, 0-shot | **0.91 ± 0.02** | 100 | 0.01 | 0.25 (the first number) |" in part["Measured"]
    assert "**1.321 ± 0.011** | 90 | &ndash; | &ndash; | 1.201 ± 0.012 (code)" in part["Measured"]
    assert "| draw a seven | **0.95 ± 0.02** | 20 | 0.1 |" in part["The tour"] and "tour" not in part["Measured"]
    assert "over-refusal" in part["Safety"] and "over-refusal" not in part["Measured"]
    assert "2.450" in part["Forecast and verdict"] and "inside the 50% interval" in part["Forecast and verdict"]
    assert "| base | train | 1 h 0 m | 100k | 2.4321 |" in part["How it was made"]
    assert "tessera reproduce starter --out runs/starter" in part["Make it again"] and "abc123" in part["Make it again"]


def test_limits_follow_from_the_measurements(chain: Path) -> None:
    limits = sections(write_card(chain).read_text())["Limits"]
    assert "512 tokens" in limits
    assert "what is in this picture: right 55% of the time" in limits and "draw a seven" not in limits
    assert "No better than chance or the baseline, within two standard errors: blimp, pass@1, 0-shot; sorting" in limits
    assert "arithmetic" not in limits and "over-refusal" not in limits
    assert "behind a specialist: bits, bits per byte: 1.321" in limits
    assert "The licence of files:somebody/novels is not known" in limits


def test_sources_stand_with_their_licences_and_without_this_machines_folders(chain: Path) -> None:
    card = write_card(chain).read_text()
    data = sections(card)["Data"]
    assert "`builtin:stdlib` | 58% | 700 | 12.1 MB | PSF-2.0" in data and UNKNOWN in data
    assert data.count("`builtin:dialogues` | &ndash; | 2,000 | 0.7 MB | Apache-2.0") == 2
    assert not re.search(r"/home|/cache|/somewhere", card)


def test_good_and_bad_samples_stand_as_they_came(chain: Path) -> None:
    samples = sections(write_card(chain).read_text())["Samples"]
    right, wrong = samples.split("### Wrong")
    assert "    return a + b" in right and "![seven.png](samples/seven.png)" in right and "first answer of each kind" in right
    assert "````text\nWhat is ```37``` + 58?\n````" in wrong and "12 | 13" in wrong


def test_the_front_matter_is_the_hubs(chain: Path) -> None:
    page = yaml.safe_load(write_card(chain).read_text().split("---\n")[1])
    assert page["license"] == "apache-2.0" and page["library_name"] == "transformers"
    results = page["model-index"][0]["results"]
    assert {"type": "arithmetic", "name": "arithmetic"} in [result["dataset"] for result in results]
    assert len(results) == sum(row["of"] == "starter" for row in EVALUATIONS)


def test_a_chain_without_evaluations_samples_and_forecast_still_has_a_card(chain: Path) -> None:
    for name in ("evaluations.json", "samples.json", "base/forecast.json", "base/verdict.json", "base/run.json"):
        (chain / name).unlink()
    part = sections(write_card(chain).read_text())
    assert "Measured" not in part and "Samples" not in part and "Shape" in part
    assert "No forecast was made" in part["Forecast and verdict"]


def test_what_is_no_chain_is_refused_in_words(chain: Path) -> None:
    (chain / "evaluations.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        write_card(chain)
    (chain / "model" / "config.json").unlink()
    with pytest.raises(UserError, match="no model/ yet"):
        write_card(chain)
    (chain / "chain.json").unlink()
    with pytest.raises(UserError, match="not the folder of a chain"):
        write_card(chain)


def test_every_built_in_source_has_a_licence() -> None:
    names = {"stdlib", "prose", "sums", "digits", *sources._COUNTED, *builtin_lines.LINES}
    assert not [name for name in names if licence_of(f"builtin:{name}?count=10") == UNKNOWN]


@pytest.mark.parametrize(
    ("uri", "shown", "licence"),
    [
        ("files:/data/text/lm/gutenberg_books", "files:text/lm/gutenberg_books", "public domain"),
        ("files:../shared/data/image/emoji/*.png", "files:image/emoji/*.png", "Apache-2.0"),
        ("chat:/x/cache/lines/hierarchy-20-0-0a1b2c3d.jsonl", "builtin:hierarchy", "Apache-2.0"),
        ("/data/text/math/gsm8k/train.jsonl", "text/math/gsm8k/train.jsonl", "MIT"),
        ("tasks:dial", "tasks:dial", "Apache-2.0"),
        ("arithmetic:1-3", "arithmetic:1-3", "Apache-2.0"),
        ("dial/log.jsonl", "dial/log.jsonl", UNKNOWN),
        ("files:emoji/mine.txt", "files:emoji/mine.txt", UNKNOWN),
        ("files:~/scan/*.txt", "files:scan/*.txt", UNKNOWN),
        ("files:/data/image/emoji-names/x.json", "files:image/emoji-names/x.json", "MIT, Apache-2.0, Unicode"),
        ("hub:somebody/something", "hub:somebody/something", UNKNOWN),
    ],
)
def test_addresses_are_shown_without_folders(uri: str, shown: str, licence: str) -> None:
    assert named(uri) == shown
    assert licence_of(uri).startswith(licence)


def test_measurements_know_whether_they_beat_guessing(chain: Path) -> None:
    rows = {row.suite: row for row in read_measured(chain / "evaluations.json") if row.of == "starter"}
    assert rows["arithmetic"].beats_guessing and rows["bits"].beats_guessing is None
    assert rows["blimp"].beats_guessing is False and rows["sorting"].beats_guessing is False
