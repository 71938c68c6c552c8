"""`tessera posttrain grpo`: it learns what is rewarded, goes on to the bit after a kill, and refuses in one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tessera import cli
from tessera.run import RunFolder

from .conftest import events, weights_of, words


@pytest.fixture
def grpo(tessera: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    """Calls the command: its exit code and what it says."""
    return partial(tessera, "posttrain", "grpo")


def test_what_is_rewarded_becomes_likelier_and_each_step_says_how(starter: Path, tasks: str, tmp_path: Path, grpo: Any) -> None:
    run = tmp_path / "run"
    code, said = grpo(*words(starter, tasks, run, "--steps", "25", "--rate", "0.01"))
    assert code == 0, said
    exams = events(run, "exam")
    assert exams[0]["step"] == 0 and exams[0]["pass_at_1"] < 0.7 and max(e["pass_at_1"] for e in exams) > 0.9, exams
    for exam in exams:
        answers = exam["answers"]
        assert 6 <= len(answers) <= 7 and all({"prompt", "wanted", "answer", "right"} <= answer.keys() for answer in answers)
        assert all(answer["right"] == (answer["answer"] == "b" and answer["ended"]) for answer in answers)
        # One of either kind is there, unless all answers to all tasks are of one.
        assert len({answer["right"] for answer in answers}) == 2 or exam["pass_at_1"] in (0, 1) or len(answers) == 6
    assert "held-out pass@1" in said and "the best on what is held out" in said
    step = events(run, "step")[0]
    names = (
        "reward",
        "pass_at_1",
        "pass_at_k",
        "dead_groups",
        "entropy",
        "truncated",
        "length",
        "grad_norm",
        "mismatch",
        "level",
    )
    assert all(isinstance(step[name], int | float) for name in names)
    assert max(e["mismatch"] for e in events(run, "step")) <= 1e-5
    assert events(run, "step")[-1]["entropy"] < step["entropy"]
    order = events(run, "rollouts")
    assert [e["step"] for e in order] == list(range(1, 26)) and len(order[0]["tasks"]) == len(order[0]["rewards"])
    held_out = {json.loads(line)["id"] for line in (run / "held_out.jsonl").read_text().splitlines()}
    assert not held_out & {id for e in order for id in e["tasks"]}


def test_a_killed_run_goes_on_to_the_bit(starter: Path, tasks: str, tmp_path: Path, grpo: Any) -> None:
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    more = ("--updates", "2", "--clip-low", "0.2", "--clip-high", "0.28", "--kl", "0.01", "--rate", "0.01", "--steps", "40")
    assert grpo(*words(starter, tasks, unbroken, *more))[0] == 0
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tessera", "posttrain", "grpo", *words(starter, tasks, killed, *more)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any((killed / "checkpoints").glob("step-[3-9]")):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    os.unlink(tasks)  # what is trained on stands in the run's folder
    code, said = grpo(*words(starter, tasks, killed, *more, "--kl", "0.1"), "--resume")
    assert code == 2 and "--kl is 0.1 here and 0.01" in said
    code, said = grpo(*words(starter, tasks, killed, *more), "--resume")
    assert code == 0 and "resumed from" in said, said
    for kind, names in (("step", ("step", "loss", "reward", "level", "clipped", "kl")), ("exam", ("step", "pass_at_1"))):
        found, wanted = ([[e[name] for name in names] for e in events(run, kind)] for run in (killed, unbroken))
        assert found == wanted
    assert weights_of(killed) == weights_of(unbroken)
    code, said = grpo("--out", str(killed), "--resume")
    assert code == 0 and "is finished" in said


def test_a_rate_of_zero_leaves_the_weights_to_the_bit(starter: Path, tasks: str, tmp_path: Path, grpo: Any) -> None:
    code, said = grpo(*words(starter, tasks, tmp_path / "run", "--rate", "0", "--steps", "3"))
    assert code == 0 and weights_of(tmp_path / "run") == weights_of(starter), said


def test_an_exam_of_one_task_says_so_and_has_no_error(starter: Path, tasks: str, tmp_path: Path, grpo: Any) -> None:
    more = ("--validation", tasks, "--exam-tasks", "1", "--rate", "0", "--steps", "1")
    code, said = grpo(*words(starter, tasks, tmp_path / "run", *more))
    assert code == 0 and f"of the 40 tasks in {tasks} the first 1 are the exam (--exam-tasks)" in said, said
    assert said.splitlines()[-2].endswith("after step 0, on 1 task") and "standard error" not in said


def test_an_own_function_is_the_verifier_and_alarms_are_told(
    starter: Path, tasks: str, tmp_path: Path, grpo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_rewards.py").write_text("def score(task, answer):\n    return answer.count('c') > 0\n")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    code, said = grpo(*words(starter, tasks, run, "--verifier", "own_rewards:score", "--max-tokens", "1", "--steps", "2"))
    # One token leaves no room for the end: every answer is cut off.
    assert code == 0 and "100% of the answers were cut off; raise --max-tokens." in said, said
    assert RunFolder(run).info["reinforce"]["punish_truncated"] is True  # right answers are known, and short
    assert events(run, "step")[0]["truncated"] == 1 and events(run, "step")[0]["grad_norm"] == 0
    assert weights_of(run) == weights_of(starter)
    (tmp_path / "bad_rewards.py").write_text("def score(task, answer):\n    return 0.5\n")
    code, said = grpo(*words(starter, tasks, tmp_path / "other", "--verifier", "bad_rewards:score"))
    assert code == 2 and "0.5" in said


def test_examples_are_mixed_in(starter: Path, tasks: str, tmp_path: Path, grpo: Any) -> None:
    examples = tmp_path / "examples.jsonl"
    long = json.dumps({"prompt": "3: ", "completion": "b" * 40})
    examples.write_text(f'{{"prompt": "1: ", "completion": "b"}}\n{{"prompt": "2: ", "completion": "b"}}\n{long}\n')
    run = tmp_path / "run"
    more = ("--ptx", str(examples), "--ptx-weight", "1", "--rate", "0.01", "--steps", "12")
    code, said = grpo(*words(starter, tasks, run, *more))
    assert code == 0 and f"1 of 3 examples in {examples} are longer than the 8 tokens of a task and its answer" in said, said
    found = [e["supervised_loss"] for e in events(run, "step")]
    assert found[-1] < 0.5 * found[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--budget", "1m"), "--budget or --steps"),
        (("--verifier", "nobody"), "no verifier 'nobody'"),
        (("--data", "nowhere.jsonl"), "cannot be read"),
        (("--model", "nowhere"), "nowhere is not a folder"),
        (("--group", "1"), "--group 1 must be at least 2"),
        (("--dual-clip", "1"), "--dual-clip"),
        (("--level", "4"), "--level 4"),
        (("--max-tokens", "200"), "which leaves"),
        (("--set", "train.rows=1"), "train.rows"),
        (("--ptx", "nowhere.jsonl"), "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    starter: Path, tasks: str, tmp_path: Path, grpo: Any, more: tuple[str, ...], said: str
) -> None:
    code, found = grpo(*words(starter, tasks, tmp_path / "run", *more))
    assert code == 2 and said in found and len(found.strip().splitlines()) == 1, found
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("budget", ["5ktok", "1e8", "2s"])
def test_a_budget_is_kept(starter: Path, tasks: str, tmp_path: Path, grpo: Any, budget: str) -> None:
    asked = [word for word in words(starter, tasks, tmp_path / "run", "--budget", budget)]
    place = asked.index("--steps")
    code, said = grpo(*asked[:place], *asked[place + 2 :])
    assert code == 0 and events(tmp_path / "run", "step"), said
