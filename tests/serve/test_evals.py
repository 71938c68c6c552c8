"""Evals by the SDK: rows from a file or the request, a model or given answers, graders, and results row by row."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import OpenAI

from .conftest import wait_for

SCHEMA: Any = {"type": "object", "properties": {"q": {"type": "string"}, "want": {"type": "string"}}, "required": ["want"]}
CONFIG: Any = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
TEXTS = {"input": "{{ sample.output_text }}", "reference": "{{ item.want }}"}
SAME: Any = {"type": "string_check", "name": "same", "operation": "eq", **TEXTS}
ALIKE: Any = {"type": "text_similarity", "name": "alike", "evaluation_metric": "fuzzy_match", "pass_threshold": 0.5, **TEXTS}
GIVEN = [
    {"item": {"want": "red"}, "sample": {"output_text": "red"}},
    {"item": {"want": "red"}, "sample": {"output_text": "rod"}},
    {"item": {"want": "red"}, "sample": {"output_text": "blue"}},
]


def ended(client: OpenAI, eval_id: str, run_id: str) -> Any:
    def status() -> str:
        return client.evals.runs.retrieve(run_id, eval_id=eval_id).status

    assert wait_for(lambda: status() in ("completed", "failed"), 60)
    return client.evals.runs.retrieve(run_id, eval_id=eval_id)


def given(rows: list[Any]) -> Any:
    return {"type": "jsonl", "source": {"type": "file_content", "content": rows}}


@pytest.fixture(scope="module")
def made(client: OpenAI) -> Any:
    return client.evals.create(name="colours", data_source_config=CONFIG, testing_criteria=[SAME, ALIKE], metadata={"a": "b"})


def test_given_answers_are_graded_row_by_row(client: OpenAI, made: Any) -> None:
    assert made.id.startswith("eval_") and made.object == "eval" and made.testing_criteria[1].pass_threshold == 0.5
    started = client.evals.runs.create(made.id, data_source=given(GIVEN), name="first")
    assert started.status == "queued" and started.object == "eval.run"
    run = ended(client, made.id, started.id)
    assert run.status == "completed" and run.error is None
    counts = run.result_counts
    assert (counts.total, counts.passed, counts.failed, counts.errored) == (3, 1, 2, 0)
    assert [(c.testing_criteria, c.passed, c.failed) for c in run.per_testing_criteria_results] == [
        ("same", 1, 2),
        ("alike", 2, 1),
    ]
    items = list(client.evals.runs.output_items.list(run.id, eval_id=made.id, limit=2))
    assert sorted(item.datasource_item_id for item in items) == [0, 1, 2]
    second = next(item for item in items if item.datasource_item_id == 1)
    assert second.status == "fail" and [result.passed for result in second.results] == [False, True]
    assert second.results[1].score == pytest.approx(2 / 3) and second.sample.output[0].content == "rod"
    shown = client.evals.runs.output_items.retrieve(second.id, eval_id=made.id, run_id=run.id)
    assert shown.datasource_item == {"want": "red"}
    passed = client.evals.runs.output_items.list(run.id, eval_id=made.id, status="pass")
    assert [item.datasource_item_id for item in passed] == [0]


def test_a_model_is_asked_for_each_row_of_a_file(client: OpenAI, made: Any) -> None:
    rows = [{"item": {"q": f"Say {word}", "want": word}} for word in ("red", "green", "blue", "black", "white")]
    file = client.files.create(file=("rows.jsonl", "\n".join(map(json.dumps, rows)).encode()), purpose="evals")
    template: Any = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "{{ item.q }}, please"}]
    source: Any = {
        "type": "completions",
        "model": "tiny",
        "source": {"type": "file_id", "id": file.id},
        "input_messages": {"type": "template", "template": template},
        "sampling_params": {"max_completion_tokens": 4, "temperature": 0, "seed": 1},
    }
    run = ended(client, made.id, client.evals.runs.create(made.id, data_source=source).id)
    assert run.status == "completed" and run.model == "tiny" and run.result_counts.total == 5
    (usage,) = run.per_model_usage
    assert usage.invocation_count == 5 and usage.completion_tokens == 20 and usage.run_model_name == "tiny"
    item = client.evals.runs.output_items.list(run.id, eval_id=made.id).data[0]
    assert item.sample.input[1].content.endswith(", please") and item.sample.usage.completion_tokens == 4
    assert item.sample.finish_reason == "length" and item.sample.output[0].role == "assistant"
    asked: Any = [{"role": message.role, "content": message.content} for message in item.sample.input]
    same = client.chat.completions.create(model="tiny", messages=asked, max_tokens=4, temperature=0, seed=1)
    assert same.choices[0].message.content == item.sample.output[0].content
    assert {run.id for run in client.evals.runs.list(made.id, status="completed")} >= {run.id}


def test_rows_that_are_none_fail_the_run_and_what_a_grader_misses_is_an_error(client: OpenAI, made: Any) -> None:
    failed = ended(client, made.id, client.evals.runs.create(made.id, data_source=given([{"item": {"q": "x"}}])).id)
    assert failed.status == "failed" and "row 1" in failed.error.message and "want" in failed.error.message
    criterion: Any = {**SAME, "reference": "{{ item.answer }}"}
    other = client.evals.create(data_source_config=CONFIG, testing_criteria=[criterion])
    run = ended(client, other.id, client.evals.runs.create(other.id, data_source=given(GIVEN[:1])).id)
    assert run.result_counts.errored == 1
    item = client.evals.runs.output_items.list(run.id, eval_id=other.id).data[0]
    assert "item.answer" in item.sample.error.message
    with pytest.raises(openai.BadRequestError, match="completed"):
        client.evals.runs.cancel(run.id, eval_id=other.id)
    assert client.evals.update(other.id, name="renamed").name == "renamed"
    assert client.evals.runs.delete(run.id, eval_id=other.id).deleted
    assert client.evals.delete(other.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.evals.retrieve(other.id)
    assert other.id not in [one.id for one in client.evals.list(limit=100)]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"data_source_config": {"type": "logs"}}, "data_source_config.type"),
        ({"data_source_config": {"type": "custom", "item_schema": {"type": "blub"}}}, "data_source_config.item_schema"),
        ({"testing_criteria": []}, "testing_criteria"),
        ({"testing_criteria": [{**SAME, "operation": "is"}]}, "testing_criteria[0].grader.operation"),
        ({"testing_criteria": [{**ALIKE, "pass_threshold": "much"}]}, "testing_criteria[0].pass_threshold"),
    ],
)
def test_evals_are_checked(client: OpenAI, change: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.evals.create(**{"data_source_config": CONFIG, "testing_criteria": [SAME]} | change)
    assert refused.value.param == param


def test_runs_are_checked(client: OpenAI, made: Any) -> None:
    template: Any = {"type": "template", "template": [{"role": "user", "content": "x"}]}
    inline: Any = {"type": "file_content", "content": GIVEN}
    for source, param in (
        ({"type": "completions", "source": inline, "input_messages": template}, "data_source.model"),
        ({"type": "completions", "source": inline, "model": "tiny"}, "data_source.input_messages"),
        ({"type": "jsonl", "source": {"type": "stored_completions"}}, "data_source.type"),
        ({"type": "jsonl", "source": {"type": "file_id", "id": "file-none"}}, "data_source.source.id"),
        ({"type": "completions", "source": inline, "input_messages": template, "model": "gpt-9"}, "model"),
    ):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
            client.evals.runs.create(made.id, data_source=source)  # type: ignore[arg-type]
        assert refused.value.param == param  # type: ignore[union-attr]
