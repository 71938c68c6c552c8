"""Exact match and numeric equality; how a verifier is found by its name."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from tessera.errors import UserError
from tessera.posttrain.verifiers import Task, extract, load
from tessera.posttrain.verifiers.answers import exact, number, numeric


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 12\n", "12"),
        ("He has 3 + 4 = 7.\n#### 7", "7"),
        ("#### 6\nno, wait\n#### 7", "7"),
        (r"so \boxed{\frac{1}{2}} is it", r"\frac{1}{2}"),
        ("<answer>a</answer> or <answer> b </answer> #### c", "b"),
        ("####", "####"),
    ],
)
def test_the_last_framed_answer_is_the_answer(text: str, answer: str) -> None:
    assert extract(text) == answer


def test_exact_match_forgives_white_space_around_and_nothing_else() -> None:
    task = Task("reverse abc", "cba")
    assert [exact(task, text) for text in ("cba", " cba\n", "<answer>cba</answer>", "steps\n#### cba")] == [1, 1, 1, 1]
    assert [exact(task, text) for text in ("CBA", "cba.", "cb a", "c", "")] == [0, 0, 0, 0, 0]


def test_a_worked_solution_may_be_the_gold() -> None:
    task = Task("how many?", "2 + 16 = 18\n#### 18")
    assert exact(task, "#### 18") == numeric(task, "18.0") == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.50", Fraction(2469, 2)),
        ("$3", Fraction(3)),
        ("-$3.", Fraction(-3)),
        ("\u22125", Fraction(-5)),
        (".5", Fraction(1, 2)),
        ("2e3", Fraction(2000)),
        ("6/4", Fraction(3, 2)),
        ("1/0", None),
        ("1,23", None),
        ("3 apples", None),
        ("1 2", None),
        ("nan", None),
        ("inf", None),
        ("", None),
        (".", None),
        ("1e99999999", None),
        ("9" * 61, None),
        ("\u0663", Fraction(3)),
    ],
)
def test_numbers_are_read_exactly(text: str, value: Fraction | None) -> None:
    assert number(text) == value


def test_numeric_compares_values_within_the_tasks_tolerance() -> None:
    assert numeric(Task("0.1 + 0.2", "0.3"), "0.30") == 1
    assert numeric(Task("0.1 + 0.2", "0.3"), "0.30000000000000004") == 0
    assert numeric(Task("pi", "3.14159", {"tolerance": 0.01}), "22/7") == 1
    # As a float 0.3 is a little less than three tenths.
    assert numeric(Task("a third", "0.3", {"tolerance": 0.3}), "0.6") == 1
    assert numeric(Task("a third", "0.3", {"tolerance": 0.3}), "0.61") == 0


def test_a_task_without_what_the_verifier_needs_is_refused() -> None:
    with pytest.raises(UserError, match="no answer"):
        exact(Task("?"), "")
    with pytest.raises(UserError, match="no number"):
        numeric(Task("?", "many"), "3")


def test_an_own_function_is_found_beside_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards_here.py").write_text(
        "def score(task, answer):\n    return answer.count(task.data['letter']) == 2\n\ndef half(task, answer):\n    return 0.5\n"
        "def leaves(task, answer):\n    raise SystemExit\n"
    )
    (tmp_path / "my_script_here.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    score = load("my_rewards_here:score")
    task = Task("two a's", data={"letter": "a"})
    assert (score(task, "banal"), score(task, "ant")) == (1.0, 0.0)
    with pytest.raises(UserError, match=r"returned 0\.5.*return 0 or 1"):
        load("my_rewards_here:half")(task, "a")
    with pytest.raises(UserError, match="KeyError"):
        score(Task("no letter"), "a")
    with pytest.raises(UserError, match="failed on task 'q'"):
        load("my_rewards_here:leaves")(Task("q"), "a")
    for spec, words in {
        "nothing": "no verifier 'nothing'",
        "my_rewards_here:absent": "no function 'absent'",
        "absent_module:score": "cannot be imported",
        "my_script_here:score": "cannot be imported",
        "my_rewards_here:": "no function",
    }.items():
        with pytest.raises(UserError, match=words):
            load(spec)
    assert load("exact")(Task("q", answer="yes"), "yes") == 1


def test_data_that_does_not_fit_a_built_in_verifier_is_said_in_a_sentence() -> None:
    often = {
        "instruction_id_list": ["keywords:frequency"],
        "kwargs": [{"keyword": "a", "frequency": "3", "relation": "at least"}],
    }
    for spec, data in (("numeric", {"tolerance": "1%"}), ("numeric", {"tolerance": None}), ("instructions", often)):
        with pytest.raises(UserError, match=rf"of task 'q' is none for the verifier {spec}"):
            load(spec)(Task("q", answer="3", data=data), "3")
