"""No verifier pays for junk; each pays for what is right."""

from __future__ import annotations

import json

import pytest

from tessera.errors import RunFailed, UserError
from tessera.posttrain.verifiers import BUILT_IN, Task, load
from tessera.posttrain.verifiers.junk import junk_answers, paid_junk
from tessera.posttrain.verifiers.schema import schema

NAMES = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"], "additionalProperties": False}

TASKS: dict[str, list[tuple[Task, str]]] = {
    "code": [
        (Task("Write add.", data={"tests": "assert add(1, 2) == 3"}), "Here:\n```python\ndef add(a, b):\n    return a + b\n```"),
        (Task("def add(a, b):\n", data={"prefix": "def add(a, b):\n", "tests": "assert add(1, 2) == 3"}), "    return a + b\n"),
    ],
    "exact": [(Task("reverse abc", "cba"), "cba"), (Task("3 + 4 = ?", "Add.\n#### 7"), "so\n#### 7")],
    "grader": [
        (
            Task(
                "3 + 4 = ?",
                "7",
                {
                    "item": {"answer": "7"},
                    "grader": {
                        "type": "string_check",
                        "name": "same",
                        "operation": "eq",
                        "input": "{{ sample.output_text }}",
                        "reference": "{{item.answer}}",
                    },
                },
            ),
            "7",
        )
    ],
    "numeric": [(Task("3 + 4 = ?", "7"), "7.0"), (Task("1 / 3 = ?", "0.3333", {"tolerance": 0.001}), "1/3")],
    "schema": [
        (Task("a name", data={"schema": NAMES}), '{"name": "Ada"}'),
        (Task("Ada", '{"name": "Ada"}', {"schema": NAMES}), ' {"name":"Ada"} '),
    ],
    "instructions": [
        (
            Task(
                "In capitals with a <<title>> and the word JAM",
                data={
                    "instruction_id_list": ["detectable_format:title", "change_case:english_capital", "keywords:existence"],
                    "kwargs": [{}, {}, {"keywords": ["jam"]}],
                },
            ),
            "<<MORE>>\nJAM",
        ),
        (
            Task(
                "Two bullets ending in done",
                data={
                    "instruction_id_list": ["detectable_format:number_bullet_lists", "startend:end_checker"],
                    "kwargs": [{"num_bullets": 2}, {"end_phrase": "done"}],
                },
            ),
            "* a\n* b done",
        ),
    ],
}


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_no_verifier_pays_for_junk(name: str) -> None:
    verifier = load(name)
    if name == "gym":
        pytest.importorskip("reasoning_gym", reason="needs reasoning-gym (the extra [reasoning])")
        from tessera.posttrain.verifiers.gym import tasks

        # The three last pay more than nothing for junk by their own scores.
        names = ("number_sorting", "chain_sum", "fraction_simplification", "countdown", "basic_arithmetic", "letter_counting")
        examples = [(task, task.answer) for dataset in names for task in tasks(dataset, 5, seed=1)]
    else:
        examples = TASKS[name]
    if name == "code":
        from tessera.sandbox.box import open_sandbox

        try:
            open_sandbox()
        except RunFailed as error:
            pytest.skip(str(error))
    for task, right in examples:
        assert verifier(task, right) == 1, (task, right)
    # Where 0 is the answer, it is no junk; `junk_answers` leaves it out.
    assert paid_junk(verifier, [task for task, _ in examples]) == []


def test_the_junk_test_finds_what_pays_for_junk() -> None:
    def contains(task: Task, answer: str) -> float:
        return float(task.answer in answer)

    found = paid_junk(contains, [Task("3 + 4 = ?", "7")])
    assert {answer for _, answer in found} >= {"7 junk", "junk 7", "7 or zzz"}
    assert "0" not in junk_answers(Task("4 - 4 = ?", "0"))


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": 1}',
        '{"name": "Ada", "age": 3}',
        "{}",
        '{"name": "A", "name": "B"}',
        '{"name": "Ada"} and',
        '"Ada"',
        "NaN",
        "[" * 9999,
    ],
)
def test_a_schema_allows_nothing_else(answer: str) -> None:
    assert schema(Task("a name", data={"schema": NAMES}), answer) == 0


def test_an_answer_is_compared_as_json_not_as_text_or_as_python() -> None:
    task = Task("?", '{"a": 1, "b": [1.5]}', {"schema": {"type": "object"}})
    assert schema(task, '{"b": [15e-1], "a": 1.0}') == 1
    assert schema(task, '{"a": true, "b": [1.5]}') == 0


def test_a_task_without_a_schema_or_with_none_that_is_one_is_refused() -> None:
    for task, words in (
        (Task("?"), "no JSON schema"),
        (Task("?", data={"schema": {"type": "blub"}}), "not a JSON schema"),
        (Task("?", json.dumps({}), {"schema": NAMES}), "its own answer is not valid"),
        (Task("?", data={"schema": {"$ref": "http://localhost:1/s.json"}}), "not a JSON schema"),
    ):
        with pytest.raises(UserError, match=words):
            schema(task, "{}")
