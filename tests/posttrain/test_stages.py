"""`tessera posttrain reason` and `chat`: all stages in one folder, gone on with where they stood, refused in one sentence."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera.engine.thinking import budgets_of
from tessera.errors import Interrupted
from tessera.posttrain import plans, stages
from tessera.posttrain.curriculum import by_level, open_pool, read_tasks
from tessera.run import RunFolder

SMALL = (
    "--data", "dial:5-6", "--examples-count", "120", "--steps", "2", "--groups", "2", "--group", "2", "--set", "train.threads=1",
)  # fmt: skip
Tessera = Callable[..., tuple[int, str]]


def weights_of(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_both_stages_of_reason_make_one_model_that_thinks_and_go_on_where_they_stood(
    tessera: Tessera, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, said = tessera("posttrain", "reason", "--model", str(model), *SMALL, "--out", str(whole))
    assert code == 0, said
    assert "thoughts of at most so many tokens: 3 at the effort low, 7 at the effort medium, 11 at the effort high" in said
    assert "stage 1: supervised" in said and "stage 2: reinforce" in said and "by effort: low " in said
    assert budgets_of(str(whole)) == {"low": 3, "medium": 7, "high": 11}
    exam = next(event for event in RunFolder(whole).events() if event["event"] == "exam")
    assert {"pass_at_1_low", "pass_at_1_medium", "pass_at_1_high"} <= exam.keys()
    # The marks of a thought are two tokens more.
    assert 2 <= exam["thought_length_low"] <= 5 and exam["thought_length_high"] <= 13 and exam["standard_error_low"] is not None
    assert {answer["effort"] for answer in exam["answers"]} == {"low", "medium", "high"}
    step = next(event for event in RunFolder(whole).events() if event["event"] == "step")
    assert 2 <= step["thought_length"] < step["length"]
    assert 'href="cold/report.html"' in (whole / "report.html").read_text()

    # Stopped between the stages: the cold start is finished, the reinforcement not prepared to the end.
    record = plans.record

    def stop(planned: Any, folder: RunFolder, *more: Any) -> None:
        if folder.path == broken:
            raise Interrupted(2)
        record(planned, folder, *more)

    with monkeypatch.context() as patch:
        patch.setattr(plans, "record", stop)
        code, said = tessera("posttrain", "reason", "--model", str(model), *SMALL, "--out", str(broken))
        assert code == 130 and "--resume" in said and (broken / "held_out.jsonl").is_file()
    code, said = tessera("posttrain", "reason", "--model", str(model), *SMALL, "--out", str(broken))
    assert code == 2 and "exists already" in said
    code, said = tessera("posttrain", "reason", "--out", str(broken), "--steps", "9", "--resume")
    assert code == 2 and "--steps is 9 here and 2 in the run" in said
    code, said = tessera("posttrain", "reason", "--out", str(broken), "--resume")
    assert code == 0, said
    assert weights_of(broken) == weights_of(whole) and weights_of(broken / "cold") == weights_of(whole / "cold")
    code, said = tessera("posttrain", "reason", "--out", str(whole), "--resume")
    assert code == 0 and "the run is finished" in said


def test_own_examples_teach_their_own_budgets(tessera: Tessera, model: Path, write: Callable[..., str], tmp_path: Path) -> None:
    def example(word: str, effort: str, thought: str) -> dict[str, Any]:
        said = {"role": "assistant", "content": word[::-1], "reasoning_content": thought, "reasoning_effort": effort}
        return {"messages": [{"role": "user", "content": word}, said]}

    words = [a + b for a in "abcde" for b in "fghij"]
    rows = [example(w, e, t) for w in words for e, t in (("low", w[1]), ("high", f"{w[1]} then {w[0]}"))]
    tasks = write([{"prompt": w, "answer": w[::-1]} for w in words], "tasks.jsonl")
    out = tmp_path / "own"
    more = ("--examples", write(rows), "--epochs", "1", "--steps", "1", "--groups", "2", "--group", "2", "--max-tokens", "4")
    code, said = tessera(
        "posttrain", "reason", "--model", str(model), "--data", tasks, *more, "--set", "train.threads=1", "--out", str(out)
    )
    assert code == 0, said
    assert budgets_of(str(out)) == {"low": 1, "high": 8}


def test_chat_learns_from_examples_and_then_from_preferences(
    tessera: Tessera, model: Path, write: Callable[..., str], tmp_path: Path
) -> None:
    def asked(n: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"Say {n}"}]

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    examples = write([{"messages": asked(n) + said(f"{n}.")} for n in range(20)])
    pairs = write([{"prompt": asked(n), "chosen": said(f"{n}."), "rejected": said("no")} for n in range(20)], "pairs.jsonl")
    words = ("posttrain", "chat", "--model", str(model), "--data", examples, "--out", str(tmp_path / "chat"))
    code, text = tessera(*words)
    assert code == 2 and "--pairs is missing" in text
    code, text = tessera(*words, "--pairs", pairs, "--beta", "-1")
    assert code == 2 and "--beta -1 must be positive" in text and not (tmp_path / "chat" / "sft").exists()
    code, text = tessera(*words, "--pairs", pairs, "--epochs", "1", "--set", "train.threads=1")
    assert code == 0, text
    assert "stage 1: supervised" in text and "stage 2: preference" in text
    assert json.loads((tmp_path / "chat" / "stages.json").read_text())["recipe"] == "chat"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--data", "reversal"), "for reversal give --examples"),
        (("--budget", "5m", "--steps", "3"), "give --budget, or --epochs and --steps"),
        (("--budget", "5Mtok"), "share a budget of time"),
        (("--examples-count", "4"), "must be at least 100"),
        (("--data", "dial:9"), "write the levels as LOW-HIGH"),
        (("--epochs", "0"), "--epochs 0 must be positive"),
        (("--steps", "0"), "--steps 0 must be at least 1"),
        (("--group", "1"), "--group 1 must be at least 2"),
        (("--verifier", "nobody_here:score"), "'nobody_here' cannot be imported"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence_before_anything_is_learned(
    tessera: Tessera, model: Path, tmp_path: Path, more: tuple[str, ...], sentence: str
) -> None:
    code, said = tessera("posttrain", "reason", "--model", str(model), "--out", str(tmp_path / "out"), *more)
    assert code == 2 and sentence in said
    assert not (tmp_path / "out" / "cold").exists()


def test_examples_without_a_thought_are_refused_before_they_are_learned(
    tessera: Tessera, model: Path, write: Callable[..., str], tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    words = ("posttrain", "reason", "--model", str(model), "--data", "dial", "--examples", write([{"messages": turns}] * 4))
    code, said = tessera(*words, "--out", str(tmp_path / "out"))
    assert code == 2 and "reasoning_effort, from which a model could learn to think" in said
    assert not (tmp_path / "out" / "cold").exists()


def test_a_level_that_is_held_out_as_a_whole_is_none_to_begin_at(model: Path, write: Callable[..., str]) -> None:
    prompts = [f"{n}=" for n in range(10)]
    order = list(prompts)
    random.Random("held out 0").shuffle(order)
    rows = [{"prompt": p, "answer": "1", "data": {"level": int(p == order[1])}} for p in prompts]
    path = Path(write(rows, "tasks.jsonl"))
    assert by_level(read_tasks(path))[0] == (0, 1) and open_pool(str(path), 128, 0).levels == (0,)
    assert stages.Reason(str(model), str(path), examples="e.jsonl").reinforcement(model, ("low",)).level == 0


def test_reinforcement_with_an_effort_needs_a_model_that_has_it(tessera: Tessera, model: Path, tmp_path: Path) -> None:
    words = ("posttrain", "grpo", "--model", str(model), "--data", "dial", "--effort", "high", "--out", str(tmp_path / "out"))
    code, said = tessera(*words)
    assert code == 2 and "was not trained to think" in said and "tessera posttrain reason" in said


def test_how_an_effort_is_left_out_is_said(tessera: Tessera, tmp_path: Path) -> None:
    words = ("posttrain", "grpo", "--model", "starter", "--data", "dial", "--out", str(tmp_path / "out"))
    code, said = tessera(*words, "--effort", "low, none")
    assert code == 2 and "no effort 'none'; write one of low, medium, high, or leave it out" in said
