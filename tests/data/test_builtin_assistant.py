"""Conversations for an assistant: every answer is right, thought fits the effort, and no picture is kept for measuring."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest

from tessera.data import builtin_assistant, builtin_pictures
from tessera.data.builtin_dialogues import CAPITALS
from tessera.data.builtin_wordings import OPPOSITES
from tessera.data.pictures import in_url, read_picture
from tessera.tokens import chat

ROWS = list(builtin_assistant.examples(1500, seed=3))
"""Kind of question -> rows with it."""


def asked(row: dict[str, Any]) -> str:
    content = row["messages"][0]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def test_sums_are_right_and_worked_out_as_the_effort_asks() -> None:
    found = 0
    for row in ROWS:
        if not (sum_ := re.search(r"(\d+) ?([+-]) ?(\d+)", asked(row))) or "better" in asked(row):
            continue
        found += 1
        answer = row["messages"][1]
        first, sign, second = int(sum_[1]), sum_[2], int(sum_[3])
        assert int(answer["content"]) == (first + second if sign == "+" else first - second)
        effort = answer.get("reasoning_effort", "")
        thought = answer.get("reasoning_content", "")
        assert thought == (builtin_assistant.working(first, sign, second, effort) if effort else "")
    assert found > 200


@pytest.mark.parametrize(
    ("first", "sign", "second", "steps"),
    [
        (478, "+", 356, ["8+6=14", "7+5+1=13", "4+3+1=8"]),
        (12, "-", 57, ["-7-2=5", "5-1=4"]),
        (31, "-", 7, ["1-7=-6+10=4", "3-0-1=2"]),
        (0, "+", 0, ["0+0=0"]),
    ],
)
def test_working_goes_from_the_right(first: int, sign: str, second: int, steps: list[str]) -> None:
    assert builtin_assistant.steps(first, sign, second) == steps


@pytest.mark.parametrize(
    ("effort", "thought"),
    [("low", "14 13 8"), ("medium", "8+6=14 7+5+1=13 4+3+1=8"), ("high", "8+6=14 7+5+1=13 4+3+1=8: 834")],
)
def test_more_effort_writes_out_more(effort: str, thought: str) -> None:
    assert builtin_assistant.working(478, "+", 356, effort) == thought


def test_borrowed_tens_and_a_minus_show_in_the_shortest_thought() -> None:
    assert builtin_assistant.working(31, "-", 7, "low") == "-6 2"
    assert builtin_assistant.working(12, "-", 57, "low") == "- 5 4"


def right(question: str) -> str:
    """By another way than the one that made the question."""
    if "opposite" in question:
        return OPPOSITES[question.removeprefix("What is the opposite of ").rstrip("?")]
    if "capital" in question:
        return CAPITALS[question.removeprefix("What is the capital of ").rstrip("?")]
    return str(sum(map(int, re.findall(r"\d+", question))))


def test_of_two_answers_the_better_one_is_right_and_the_other_wrong() -> None:
    dice = random.Random("judged")
    letters = []
    for _ in range(300):
        text, better, good, bad = builtin_assistant.judgement(dice)
        found = re.fullmatch(r"Which answer is better, A or B\?\n\nQuestion: (.*)\nA: (.*)\nB: (.*)", text)
        assert found is not None
        answers = {"A": found[2], "B": found[3]}
        assert [letter for letter, said in answers.items() if said == right(found[1])] == [better]
        assert good == answers[better] and bad == answers["AB"[better == "A"]]
        letters.append(better)
    assert 0.4 < letters.count("A") / len(letters) < 0.6
    for row in builtin_assistant.pairs(200, seed=1):
        question = row["prompt"][0]["content"]
        good, bad = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert good != bad and (question.startswith("Which") or good == right(question))


def test_digits_are_shown_that_are_not_kept_for_measuring_and_are_named_rightly() -> None:
    levels, numbers = builtin_pictures.digit_arrays("train")
    known = {pixels.tobytes(): int(n) for pixels, n in zip(builtin_pictures.digit_pixels(levels), numbers, strict=True)}
    seen = 0
    for row in ROWS:
        content = row["messages"][0]["content"]
        if isinstance(content, str):
            continue
        data = in_url(content[0]["image_url"]["url"])
        assert data is not None
        picture = read_picture(data)
        moved = (np.roll(picture, (down, right), (0, 1)) for down in (-1, 0, 1) for right in (-1, 0, 1))
        there = {known[m.tobytes()] for m in moved if m.tobytes() in known}
        assert any(row["messages"][1]["content"].endswith(builtin_pictures.NUMBERS[number]) for number in there)
        seen += 1
    assert seen > 100


def test_every_conversation_is_one_and_thinks_where_it_has_an_effort() -> None:
    for row in ROWS:
        turns = [m for m in chat.read(row["messages"], lambda url: np.zeros((8, 8, 3), np.uint8)) if m.role == "assistant"]
        assert turns and all(bool(turn.effort) == bool(turn.reasoning) and (turn.content or turn.tool_calls) for turn in turns)
    answers = [next(m for m in row["messages"] if m["role"] == "assistant") for row in ROWS]
    efforts = {answer.get("reasoning_effort", "") for answer in answers}
    assert efforts == set(builtin_assistant.EFFORTS)
    assert any("```python" in (answer["content"] or "") for answer in answers)
    assert any(row["messages"][0]["role"] == "system" for row in ROWS), "rules to obey"
    assert list(builtin_assistant.examples(20, seed=3)) == ROWS[:20] and ROWS[:20] != list(builtin_assistant.examples(20))
