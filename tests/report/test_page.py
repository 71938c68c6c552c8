"""The report shows what the run's folder says, whatever state the run was left in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera import recipe
from tessera.errors import UserError
from tessera.report import read_run, write_report
from tessera.report.charts import MOST_POINTS, Series, bar_chart, line_chart

Parsed = Callable[[Path], Any]


def step(number: int, **changed: Any) -> dict[str, Any]:
    event = {
        "event": "step",
        "step": number,
        "tokens": number * 1000,
        "loss": 8 / (1 + number / 10),
        "grad_norm": 0.7,
        "rate": 0.02,
    }
    return event | {"tokens_per_second": 35000.0, "seconds": number / 35, "peak_share": 0.5, "skipped": False} | changed


def evaluation(number: int, bits: float) -> dict[str, Any]:
    return {
        "event": "evaluation",
        "step": number,
        "tokens": number * 1000,
        "loss": bits * 2,
        "bits_per_byte": bits,
        "seconds": 1.0,
    }


def write_lines(path: Path, events: list[dict[str, Any]], tail: str = "") -> None:
    path.write_text("".join(json.dumps(e) + "\n" for e in events) + tail)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run's folder with every file that the report knows."""
    (tmp_path / "recipe.yaml").write_text(recipe.load("code", ["train.tokens=100000"]).to_yaml())
    derived = [{"event": "derived", "name": "model.layers", "value": 6, "reason": "because <6> & so"}]
    samples = [{"event": "sample", "step": s, "prompt": "class Stack:", "text": f"class Stack: early{s}"} for s in (0, 50, 100)]
    events = [
        *derived,
        *(step(s) for s in range(1, 101)),
        evaluation(100, 0.912),
        *samples,
        {"event": "checkpoint", "step": 100, "seconds": 0.2},
    ]
    write_lines(tmp_path / "metrics.jsonl", events)
    baselines = {"untrained": {"bits_per_byte": 3.74}, "ngram": {"bits_per_byte": 1.608}, "trained": {"bits_per_byte": 0.913}}
    (tmp_path / "baselines.json").write_text(json.dumps(baselines))
    completion = {
        "title": "quote",
        "prompt": "def quote(s):\n",
        "reference": "    return repr(s)\n",
        "completion": "    <script>alert(1)</script>",
    }
    (tmp_path / "completions.json").write_text(json.dumps([completion]))
    write_lines(tmp_path / "skipped.jsonl", [{"path": "a/<b>.py", "reason": "not UTF-8"}])
    source = {
        "uri": "builtin:stdlib",
        "documents": 1423,
        "bytes": 24518331,
        "exact_duplicates": 37,
        "near_duplicates": 112,
        "skipped": 1,
    }
    about = {
        "command": "tessera train code",
        "commit": "abc123",
        "versions": {"torch": "2.13.0"},
        "machine": {"threads": 2},
        "data": [source],
    }
    (tmp_path / "run.json").write_text(json.dumps(about | {"parameters": 7_340_288, "model_size_text": "6 layers"}))
    return tmp_path


def test_a_finished_run_shows_every_section(finished: Path, parsed: Parsed) -> None:
    page = parsed(finished)
    titles = (
        "Loss",
        "Against baselines",
        "Completions of held-out text",
        "Samples during the run",
        "How it went",
        "Settings",
        "Data",
        "Where and how it ran",
        "Use it",
    )
    assert all(title in page.text for title in titles)
    for fact in (
        "finished",
        "0.912",
        "100k",
        "7.34M",
        "3.740",
        "1.608",
        "0.913",
        "because <6> & so",
        "24,518,331",
        "2.13.0",
        "abc123",
        "a/<b>.py",
        "early50",
    ):
        assert fact in page.text, fact


def test_the_page_is_one_light_file_that_fetches_and_runs_nothing(finished: Path, parsed: Parsed) -> None:
    page = parsed(finished)
    assert not page.addresses
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert "@import" not in (finished / "report.html").read_text() and "url(" not in (finished / "report.html").read_text()
    assert (finished / "report.html").stat().st_size < 100_000
    assert not list(finished.glob("*report.html?*"))


def test_generated_html_is_shown_and_not_obeyed(finished: Path, parsed: Parsed) -> None:
    assert "<script>alert(1)</script>" in parsed(finished).text


def test_a_long_run_stays_small(finished: Path) -> None:
    write_lines(finished / "metrics.jsonl", [step(s) for s in range(1, 20_001)])
    assert write_report(finished).stat().st_size < 200_000


def test_the_command_to_go_on_takes_the_page_of_the_run_which_need_not_be_a_shipped_one(finished: Path, parsed: Parsed) -> None:
    assert "--resume" not in parsed(finished).text, "a finished run has nothing left to do"
    (finished / "recipe.yaml").write_text(recipe.load("code", ["name=mine", "train.tokens=200000"]).to_yaml())
    assert f"tessera train {finished / 'recipe.yaml'} --out {finished} --resume" in parsed(finished).text


@pytest.mark.parametrize(
    ("page", "about", "offered", "kept_back"),
    [
        ("code", {"data": [{"documents": 9, "pictures": 0}]}, ["generate {} 'def read_lines"], ["chat", "--out pic"]),
        ("text", {"asked": {}, "dialogue": True}, ["generate {} 'The first", "chat {}"], []),
        ("text", {"preference": {"kind": "reward"}, "dialogue": True}, ["--reward-model {}"], ["generate", "chat", "eval"]),
        ("text", {"preference": {"kind": "dpo"}, "dialogue": True}, ["generate {} 'The first", "chat {}"], ["reward-model"]),
        ("text", {"moderation": {}}, ["--suite moderation --data", "serve MODEL {}"], ["generate", "chat", "from_pretrained"]),
        ("draw", {"data": [{"documents": 9, "pictures": 9}]}, ["--out picture.png", '"" --image'], ["Once upon", "--video"]),
        ("see", {"data": [{"documents": 9, "pictures": 9}]}, ['"" --image'], ["Once upon", "--out picture.png"]),
        ("film", {"distil": {}, "medium": "video", "data": [{"documents": 9}]}, ["--out film.gif"], ["Once upon", "--video"]),
        (
            "omni",
            {"data": [{"documents": 9}, {"documents": 5, "pictures": 5}]},
            ["generate {} 'def read_lines", "--out picture.png", '"" --image'],
            ["chat"],
        ),
    ],
)
def test_only_commands_that_do_something_with_the_model_are_offered(
    tmp_path: Path, parsed: Parsed, page: str, about: dict[str, Any], offered: list[str], kept_back: list[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe.load(page, ["train.tokens=100000"]).to_yaml())
    (tmp_path / "run.json").write_text(json.dumps(about))
    write_lines(tmp_path / "metrics.jsonl", [step(s) for s in range(1, 101)])
    text = parsed(tmp_path).text.rpartition("Use it")[2]
    assert all(words.format(tmp_path) in text for words in offered), text
    assert not any(f"tessera {words} " in text or words in text for words in kept_back), text


def test_a_run_without_any_step_has_a_report(tmp_path: Path, parsed: Parsed) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe.load("code").to_yaml())
    assert "not started" in parsed(tmp_path).text


def test_a_run_killed_while_writing_a_line_has_a_report(finished: Path, parsed: Parsed) -> None:
    write_lines(finished / "metrics.jsonl", [step(s) for s in range(1, 41)], tail='{"event": "step", "step": 41, "lo')
    page = parsed(finished)
    assert "not finished: 40% of its tokens" in page.text


def test_a_resumed_run_counts_repeated_steps_once(finished: Path, parsed: Parsed) -> None:
    lost = [step(s, loss=99.0) for s in range(61, 71)]
    first = [*(step(s) for s in range(1, 61)), evaluation(60, 1.5), *lost, evaluation(70, 9.9)]
    write_lines(finished / "metrics.jsonl", first, tail='{"event"\n')
    with (finished / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(e) + "\n" for e in [*(step(s) for s in range(61, 101)), evaluation(100, 1.0)])
    run = read_run(finished)
    assert [e["step"] for e in run.steps] == list(range(1, 101))
    assert [e["bits_per_byte"] for e in run.evaluations] == [1.5, 1.0]
    assert run.resumes == 1 and max(e["loss"] for e in run.steps) < 99
    assert "1 resume from" in parsed(finished).text


def test_skipped_steps_and_values_that_are_not_numbers_are_named_and_left_out_of_the_curve(
    finished: Path, parsed: Parsed
) -> None:
    events = [step(s, peak_share=None) for s in range(1, 101)]
    events[6] |= {"loss": float("nan"), "grad_norm": float("inf"), "skipped": True}
    write_lines(finished / "metrics.jsonl", [*events, {**evaluation(100, 1.0), "loss": None, "bits_per_byte": "?"}])
    page = parsed(finished)
    assert "1 update skipped" in page.text and "(at step 7)" in page.text and "1 evaluation gave no finite loss" in page.text
    assert "Share of the matmul peak" not in page.text
    assert not re.search(r'd="[^"]*(nan|inf)', (finished / "report.html").read_text())


def test_damaged_side_files_cost_their_section_only(finished: Path, parsed: Parsed) -> None:
    for name in ("run.json", "baselines.json", "completions.json"):
        (finished / name).write_text("[[[")
    page = parsed(finished)
    assert "Loss" in page.text and "Against baselines" not in page.text
    (finished / "run.json").write_text(json.dumps({"data": 3, "versions": None, "machine": ["x"]}))
    (finished / "baselines.json").write_text(json.dumps({"untrained": None, "ngram": {"bits_per_byte": None}}))
    (finished / "completions.json").write_text(json.dumps([None, {"completion": "x\ud800"}]))
    parsed(finished)


def test_a_folder_that_is_no_run_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the folder of a run"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_charts_thin_long_series_and_draw_nothing_from_nothing() -> None:
    nan = float("nan")
    assert line_chart([Series("a", [nan], [1.0]), Series("b", [], [])], "x", "y") == ""
    assert "<circle" in line_chart([Series("one", [5.0], [0.0], points=True)], "x", "y", from_zero=True)
    assert line_chart([Series("n", [1.0, 2.0], [-1.0, 0.0])], "x", "y", log_y=True) == ""
    many = line_chart([Series("many", range(100_000), range(100_000))], "x", "y")
    assert many.count("L") <= MOST_POINTS + 5
    assert "<b>" not in bar_chart([("<b>", 1.0, "accent")], "u")
