"""Tasks in levels: the level follows success, what is held out is never trained on, files are read or refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tessera.errors import UserError
from tessera.posttrain.curriculum import WINDOW, Curriculum, open_pool
from tessera.posttrain.verifiers import load


def test_difficulty_rises_above_70_percent_and_falls_under_10() -> None:
    course = Curriculum(3, level=1)
    for _ in range(WINDOW):
        course.note(1, 0.7)
    assert course.level == 1
    course.note(1, 1.0)
    assert course.level == 2 and course.recent == ()
    for _ in range(WINDOW - 1):
        course.note(2, 0.0)
    course.note(1, 1.0)  # of another level: does not count
    assert course.level == 2
    course.note(2, 0.0)
    assert course.level == 1
    for _ in range(3 * WINDOW):
        course.note(course.level, 0.0)
    assert course.level == 0


def test_it_stays_between_the_first_and_the_last_level_and_keeps_its_state() -> None:
    course = Curriculum(2, level=1)
    for _ in range(2 * WINDOW):
        course.note(1, 1.0)
    assert course.level == 1
    assert Curriculum.of(json.loads(json.dumps(course.state()))) == course


def test_easier_levels_come_again_the_oftener_the_more_is_wrong_and_harder_ones_do_not() -> None:
    dice, course = random.Random(0), Curriculum(4, level=2)
    for _ in range(60):
        course.note(0, 1.0)
        course.note(1, 0.25)
        course.note(2, 0.5)
    picked = [course.pick(dice) for _ in range(1350)]
    # By weights of 0.1, 0.75 and 0.5.
    found = [picked.count(level) for level in range(4)]
    assert sum(found) == 1350 and all(abs(n - wanted) < 60 for n, wanted in zip(found, (100, 750, 500, 0), strict=True)), found


@pytest.mark.parametrize("data", ["reversal", "arithmetic", "reversal:2-3", "arithmetic:1-1"])
def test_generated_tasks_are_right_and_never_those_held_out(data: str) -> None:
    pool, dice = open_pool(data, 40, seed=3), random.Random(1)
    hidden = {task.prompt for task in pool.held_out}
    assert len(hidden) >= 10 and {t.data["level"] for t in pool.held_out} == set(pool.levels)
    verify = load("exact" if data.startswith("reversal") else "numeric")
    for level, name in enumerate(pool.levels):
        for task in pool.draw(level, 100, dice):
            assert task.prompt not in hidden and task.data["level"] == name and verify(task, task.answer) == 1
            if data.startswith("reversal"):
                assert task.answer[::-1] in task.prompt
            else:
                assert eval(task.prompt[:-1]) == int(task.answer)
    assert pool.held_out == open_pool(data, 40, seed=3).held_out != open_pool(data, 40, seed=4).held_out


def test_a_file_is_sorted_into_levels_and_a_part_held_out(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    rows = [{"prompt": f"{n}?", "answer": str(n), "data": {"level": n % 3 + 5}, "id": f"q{n}"} for n in range(30)]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    pool = open_pool(str(file), 128, seed=0)
    assert pool.levels == (5, 6, 7) and len(pool.held_out) == 6 and sum(map(len, pool.tasks)) == 24
    assert {t.id for t in pool.held_out}.isdisjoint(t.id for level in pool.tasks for t in level)
    drawn = pool.draw(1, 5, random.Random(0))
    assert len({t.id for t in drawn}) == 5 and all(t.data["level"] == 6 for t in drawn)
    assert len(pool.draw(1, 50, random.Random(0))) == 50


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no task"),
        ("{", "line 1: not JSON"),
        ('{"answer": "4"}', "line 1: a task is"),
        ('{"prompt": "a", "answer": 4}', "answer must be text"),
        ('{"prompt": "a", "level": 4}', "not level"),
        ('{"prompt": "a", "data": {"level": "x"}}', "whole number"),
        ('{"prompt": "a"}\n' * 9, "too few to hold some out"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        open_pool(str(file), 10, 0)


@pytest.mark.parametrize(
    ("data", "words"), [("nowhere.jsonl", "cannot be read"), ("reversal:6-2", "LOW-HIGH"), ("arithmetic:x", "LOW")]
)
def test_a_name_that_is_none_is_one_sentence(data: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_pool(data, 10, 0)
