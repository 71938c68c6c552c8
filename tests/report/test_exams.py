"""Reinforcement and preferences in a report: what exams and steps recorded is drawn, whatever state the run was left in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera import recipe
from tessera.report import read_run, write_report
from tessera.report.exams import kept

Parsed = Callable[[Path], Any]


def rollouts(number: int, **changed: Any) -> dict[str, Any]:
    """A step of reinforcement."""
    event = {"event": "step", "step": number, "tokens": 900 * number, "loss": -0.01, "seconds": 2.0 * number, "rate": 1e-4}
    event |= {"reward": 0.4 + number / 200, "pass_at_1": 0.4 + number / 200, "pass_at_k": 0.8, "dead_groups": 0.25}
    event |= {
        "entropy": 0.3,
        "mismatch": 4e-7,
        "truncated": 0.02,
        "length": 14.0,
        "thought_length": 9.0,
        "level": 3 + number // 20,
    }
    return event | {"rollouts": 64, "rollout_tokens_per_second": 900.0, "grad_norm": 0.7, "clipped": 0.0, "skipped": 0} | changed


def answer(task: str, text: str, right: bool, **changed: Any) -> dict[str, Any]:
    event = {
        "task": task,
        "prompt": f"What is {task}?",
        "wanted": "19",
        "thought": "12 and <b>7",
        "answer": text,
        "effort": "low",
    }
    return event | {"right": right, "ended": True} | changed


def exam(number: int, share: float, answers: list[dict[str, Any]], **changed: Any) -> dict[str, Any]:
    event = {"event": "exam", "step": number, "final": False, "seconds": 1.0, "reward": share, "pass_at_1": share}
    event |= {
        "standard_error": 0.031,
        "pass_at_k": 0.9,
        "k": 4,
        "tasks": 128,
        "truncated": 0.0,
        "length": 14.0,
        "answers": answers,
    }
    for place, effort in enumerate(("low", "high")):
        values = {"pass_at_1": share + 0.1 * place, "standard_error": 0.04, "thought_length": 5.0 + place}
        event |= {f"{name}_{effort}": value for name, value in values.items()}
    return event | changed


def write_run(folder: Path, events: list[dict[str, Any]], about: dict[str, Any], tail: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe.load("quickstart", ["train.tokens=100000"]).to_yaml())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + tail)
    (folder / "run.json").write_text(json.dumps({"parameters": 181_000, "machine": {"dtype": "float32"}} | about))
    return folder


@pytest.fixture
def reinforced(tmp_path: Path) -> Path:
    """A run of reinforcement whose second exam of three is the best."""
    events: list[dict[str, Any]] = [exam(0, 0.412, [answer("sum-1", "18", False), answer("sum-2", "19", True)])]
    for number in range(1, 41):
        events.append(rollouts(number))
        if number == 20:
            events.append(exam(20, 0.641, [answer("sum-1", "19", True), answer("sum-2", "19", True)]))
    events.append(exam(40, 0.52, [answer("sum-1", "19 19 19", False, ended=False), answer("sum-3", "<script>", False)]))
    return write_run(tmp_path / "run", events, {"reinforce": {"group": 8}})


def test_reinforcement_shows_what_its_exams_and_steps_recorded(reinforced: Path, parsed: Parsed) -> None:
    page = parsed(reinforced)
    for fact in (
        "41.2 \u00b1 3.1 % of the answers to 128 held-out tasks",
        "64.1 \u00b1 3.1 % after step 20, whose weights are the model",
        "low 41.2 % \u2192 64.1 %, high 51.2 % \u2192 74.1 %",
        "the model that was kept, step 20",
        "one standard error",
        "pass@4: one of 4 answers is right",
        "pass@1 by effort",
        "Length of the thoughts by effort",
        "Rollouts that were right",
        "Dead groups",
        "Entropy of the policy",
        "Answers that were cut off",
        "its thought",
        "Gradient norm, before clipping",
        "mean |log p(train) - log p(rollout)|",
        "Level of the curriculum",
        "Speed of the rollouts",
        "tessera posttrain grpo --out",
    ):
        assert fact in page.text, fact
    # Both alarms have their line; there is one gradient norm; what was never told has no chart.
    assert (reinforced / "report.html").read_text().count('class="line warn"') == 2
    assert page.text.count("Gradient norm") == 1 and "Bits" not in page.text and "bits per byte" not in page.text
    assert not any(absent in page.text for absent in ("KL to", "clipped", "Reward of a rollout", "(ptx)"))
    assert not page.addresses and not page.tags & {"script", "link", "img"}
    assert (reinforced / "report.html").stat().st_size < 150_000


def test_answers_stand_beside_each_other_and_are_not_obeyed(reinforced: Path, parsed: Parsed) -> None:
    page = parsed(reinforced).text
    shown = page[page.index("Answers to held-out tasks") :]
    # The task that changed comes first: wrong before, right in the model that was kept, cut off at the end.
    first = re.sub(r"\s+", " ", shown[: shown.index("sum-2")])
    assert re.search(r"What is sum-1.*step 0 ?wrong.*18.*step 20 ?right.*19.*step 40 ?cut off.*19 19 19", first), first
    assert "12 and <b>7" in shown and "<script>" in shown and "wanted: 19, effort low" in shown


def test_a_mismatch_near_its_alarm_and_rewards_that_are_no_pass_rate_are_drawn(tmp_path: Path, parsed: Parsed) -> None:
    events = [exam(0, 0.4, []), *(rollouts(n, mismatch=2e-3, reward=0.7, clipped=0.1, kl=0.02) for n in range(1, 9))]
    page = parsed(write_run(tmp_path / "run", events, {"reinforce": {}}))
    assert all(
        title in page.text for title in ("Reward of a rollout", "Tokens whose ratio was clipped", "KL to the starting model")
    )
    assert "no later exam was better" in page.text


def test_a_critic_shows_its_loss_and_what_it_foretells_and_old_rollouts_are_no_mismatch(tmp_path: Path, parsed: Parsed) -> None:
    told = {"value_loss": 0.2, "explained_variance": -0.4, "kl": 0.01, "reward": 1.7}
    events = [exam(n, 0.4, [], reward=float(n)) for n in (0, 8)]
    events += [rollouts(n, age=(n - 1) % 2, mismatch=1e-7 if n % 2 else 0.5, **told) for n in range(1, 9)]
    folder = write_run(tmp_path / "run", events, {"reinforce": {"kind": "ppo"}})
    page = parsed(folder)
    for fact in (
        "Loss of the critic",
        "explained variance",
        "KL to the starting model",
        "Reward, held out",
        "posttrain ppo --out",
    ):
        assert fact in page.text, fact
    assert kept(read_run(folder))["step"] == 8 and "more than right or wrong" in page.text
    mismatch = (folder / "report.html").read_text().partition("Training against rollouts")[2].partition("</svg>")[0]
    assert "1e-7" in mismatch and ">0.1<" not in mismatch  # the alarm at 0.001 is the top


def test_an_older_run_without_recorded_answers_shows_rollouts(tmp_path: Path, parsed: Parsed) -> None:
    told = [
        {"event": "rollouts", "step": n, "tasks": [f"dial-{n}"], "rewards": [[float(n % 2), 0.0]]}
        | {"sample": {"text": f"said {n}"}}
        for n in range(1, 9)
    ]
    bare = {key: value for key, value in exam(0, 0.4, []).items() if key != "answers" and "effort" not in key}
    page = parsed(write_run(tmp_path / "run", [bare, *(rollouts(n) for n in range(1, 9)), *told], {"reinforce": {}})).text
    shown = page[page.index("The first rollout of some steps") :]
    assert all(words in shown for words in ("said 1", "said 7", "said 2", "said 8", "dial-8", "right", "wrong"))


def test_a_run_killed_or_without_any_step_has_a_report(reinforced: Path, tmp_path: Path, parsed: Parsed) -> None:
    lines = (reinforced / "metrics.jsonl").read_text().splitlines(keepends=True)
    for count in (1, 2, 23):
        (reinforced / "metrics.jsonl").write_text("".join(lines[:count]) + lines[count][:40])
        assert "Held-out answers" in parsed(reinforced).text
    strange = exam(0, float("nan"), [{}], pass_at_k=None, tasks="?", standard_error=None) | {"answers": [None, {}]}
    page = parsed(write_run(tmp_path / "strange", [strange, rollouts(1, mismatch=float("inf"), level=None)], {}))
    assert "Held-out answers" in page.text
    assert not re.search(r'd="[^"]*(nan|inf)', (tmp_path / "strange" / "report.html").read_text())


def test_exams_that_were_taken_again_after_a_resume_stand_once(reinforced: Path) -> None:
    with (reinforced / "metrics.jsonl").open("a") as file:
        for event in (*(rollouts(n) for n in range(21, 41)), exam(40, 0.7, [])):
            file.write(json.dumps(event) + "\n")
    run = read_run(reinforced)
    assert [e["step"] for e in run.exams] == [0, 20, 40] and kept(run)["step"] == 40


def test_a_long_run_stays_small(reinforced: Path) -> None:
    events = [exam(0, 0.4, [answer("a", "x" * 1000, True)] * 8), *(rollouts(n) for n in range(1, 5001))]
    assert write_report(write_run(reinforced, events, {"reinforce": {}})).stat().st_size < 400_000


def preference(number: int, **changed: Any) -> dict[str, Any]:
    event = {
        "step": number,
        "tokens": 100 * number,
        "seconds": 1.0 * number,
        "loss": 0.7 - number / 100,
        "accuracy": 0.5 + number / 100,
    }
    event |= {"margin": number / 10, "chosen_change": number / 5, "rejected_change": -number / 4, "chosen_loss": 2.0}
    return event | changed


def test_preferences_show_accuracy_and_margin_on_what_is_held_out(tmp_path: Path, parsed: Parsed) -> None:
    events = [{"event": "step", "grad_norm": 1.0, "skipped": 0} | preference(n) for n in range(1, 21)]
    exams = [{"event": "exam", "rows": 37, "mark": -(0.7 - n / 100)} | preference(n) for n in (0, 10, 20)]
    page = parsed(write_run(tmp_path / "run", [*events, *exams], {"preference": {"kind": "dpo"}}))
    for fact in (
        "70.0 % after step 20",
        "37 pairs are held out",
        "Pairs in the right order",
        "nats per pair",
        "Margin",
        "the rejected one",
        "one standard error",
        "tessera posttrain dpo --out",
    ):
        assert fact in page.text, fact
    assert "undecided before the first step" in page.text  # a margin of 0 is no wrong order
    assert page.text.count("Gradient norm") == 1 and "Rollouts" not in page.text and "Attempts to fool it" not in page.text


def test_a_reward_model_shows_its_probes(tmp_path: Path, parsed: Parsed) -> None:
    measured = {"loss": 0.1, "accuracy": 0.95, "gap": 4.0, "score": 0.3}
    events = [{"event": kind, "step": n, "rows": 30, "mark": -0.1} | measured for n in (1, 2, 3) for kind in ("step", "exam")]
    folder = write_run(tmp_path / "run", events, {"preference": {"kind": "reward"}})
    (folder / "probes.json").write_text(json.dumps({"empty": {"beaten": 0, "of": 30}, "long": {"beaten": 7, "of": 29}}))
    page = parsed(folder)
    for fact in ("nothing at all", "0 of 30", "holds", "7 of 29", "can be fooled", "30 prompts are held out", "posttrain reward"):
        assert fact in page.text, fact
    (folder / "probes.json").write_text("[[")
    assert "Attempts to fool it" not in parsed(folder).text


def test_taught_guidance_and_moderation_show_what_they_are_judged_by(tmp_path: Path, parsed: Parsed) -> None:
    taught = [{"event": "exam", "step": n, "rows": 9, "mark": -0.2, "loss": 0.2, "divergence": 0.2345} for n in (0, 5)]
    page = parsed(write_run(tmp_path / "taught", taught, {"distil": {}}))
    assert "0.2345" in page.text and "Away from the guided distribution" in page.text
    labelled = [{"event": "exam", "step": n, "rows": 9, "mark": -0.2, "loss": 0.2, "accuracy": 0.9} for n in (0, 5)]
    page = parsed(write_run(tmp_path / "labelled", labelled, {"moderation": {}}))
    assert "Labels on the right side" in page.text and "9 texts are held out" in page.text
