"""Jobs by preferences and by rewards through the SDK, and the graders that they pay by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tessera.errors import RunFailed
from tessera.sandbox.box import open_sandbox
from tessera.serve.app import Settings

from .conftest import Running, make_model, serving, wait_for

WORDS = ("red", "green", "blue", "black")
SAME: Any = {
    "type": "string_check", "name": "same", "operation": "ilike",
    "input": "{{ sample.output_text }}", "reference": "{{ item.want }}",
}  # fmt: skip
ALIKE: Any = {**SAME, "type": "text_similarity", "name": "alike", "evaluation_metric": "fuzzy_match"}
ALIKE.pop("operation")


def pair(first: str, second: str) -> dict[str, Any]:
    def say(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    asked = {"messages": [{"role": "user", "content": f"Say {first} then {second}"}]}
    return {"input": asked, "preferred_output": say(f"{first} {second}."), "non_preferred_output": say("No, never.")}


def task(word: str) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Say {word}"}], "want": word[0]}


PAIRS = [pair(a, b) for a in WORDS for b in WORDS]
TASKS = [task(word) for word in (*WORDS, "white", "grey", "pink", "brown")]


def upload(client: OpenAI, rows: list[Any], purpose: Any = "fine-tune") -> str:
    lines = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    return client.files.create(file=("rows.jsonl", lines.encode()), purpose=purpose).id


def finished(client: OpenAI, id: str) -> Any:
    assert wait_for(lambda: client.fine_tuning.jobs.retrieve(id).status in ("succeeded", "failed"), 180)
    return client.fine_tuning.jobs.retrieve(id)


def metrics(client: OpenAI, id: str) -> list[dict[str, Any]]:
    events = list(client.fine_tuning.jobs.list_events(id, limit=100))
    return [event.data for event in events if event.type == "metrics"][::-1]  # type: ignore[misc]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("methods")
    with serving(Settings(folder / "data"), make_model(folder / "small", context=256)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return server.client()


def test_a_preference_job_makes_its_pairs_likelier_and_tells_so(client: OpenAI) -> None:
    chosen: Any = {"n_epochs": 3, "batch_size": 4, "beta": 0.2, "learning_rate_multiplier": 4}
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": chosen}}
    held = upload(client, [pair("white", word) for word in WORDS])
    job = client.fine_tuning.jobs.create(
        model="small", training_file=upload(client, PAIRS), validation_file=held, method=method, seed=1
    )
    done = finished(client, job.id)
    assert done.status == "succeeded", done.error
    shown = done.method.dpo.hyperparameters
    assert shown.beta == 0.2 and shown.n_epochs == 3 and shown.batch_size == 4 and done.hyperparameters.n_epochs == 3
    measured = metrics(client, job.id)
    trained = [m for m in measured if "train_loss" in m]
    assert len(trained) == 3 * len(PAIRS) / 4 and trained[-1]["train_loss"] < trained[0]["train_loss"]
    valid = [m["valid_preference_accuracy"] for m in measured if "valid_preference_accuracy" in m]
    assert valid and 0 <= valid[-1] <= 1 and "full_valid_reward_margin" in measured[-1]
    lines = client.files.content(done.result_files[0]).text.splitlines()
    assert lines[0].startswith("step,train_loss,train_preference_accuracy") and len(lines) == len(trained) + 1
    name = str(done.fine_tuned_model)
    best = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert name in [checkpoint.fine_tuned_model_checkpoint for checkpoint in best]
    for checkpoint in best[:2]:
        asked: Any = PAIRS[0]["input"]["messages"]
        answer = client.chat.completions.create(model=checkpoint.fine_tuned_model_checkpoint, messages=asked, max_tokens=4)
        assert answer.model == checkpoint.fine_tuned_model_checkpoint


def test_a_reinforcement_job_pays_by_its_grader_is_paused_and_ends_with_a_model(client: OpenAI, server: Running) -> None:
    chosen: Any = {"n_epochs": 12, "batch_size": 4, "compute_multiplier": 0.5, "eval_interval": 8, "eval_samples": 1}
    own: Any = {"grader": ALIKE, "hyperparameters": {**chosen, "max_tokens": 6}}
    file, held = upload(client, TASKS), upload(client, [task("violet")])
    job = client.fine_tuning.jobs.create(
        model="small", training_file=file, validation_file=held, method={"type": "reinforcement", "reinforcement": own}, seed=1
    )
    assert job.method is not None and job.method.reinforcement is not None
    assert wait_for(lambda: len(metrics(client, job.id)) > 2, 180)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"  # type: ignore[comparison-overlap]
    reached = max(m["step"] for m in metrics(client, job.id))
    client.fine_tuning.jobs.resume(job.id)
    done = finished(client, job.id)
    assert done.status == "succeeded", done.error
    data = Path(server.door._app.state.server.data)  # type: ignore[attr-defined]
    assert reached == 24 or "resumed from" in (data / "tuning" / job.id / "log.txt").read_text()
    shown = done.method.reinforcement
    assert shown.grader.name == "alike" and shown.hyperparameters.n_epochs == 12 and shown.hyperparameters.eval_interval == 8
    measured = metrics(client, job.id)
    assert [m["step"] for m in measured if "train_loss" in m] == list(range(1, 25))
    assert all(0 <= m["train_reward_mean"] <= 1 for m in measured if "train_reward_mean" in m)
    assert {m["step"] for m in measured if "valid_reward_mean" in m} >= {0, 8, 16}
    name = str(done.fine_tuned_model)
    assert client.chat.completions.create(model=name, messages=TASKS[0]["messages"], max_tokens=2).model == name


def test_a_grader_is_tried_on_an_answer(client: OpenAI) -> None:
    graders = client.fine_tuning.alpha.graders
    assert graders.validate(grader=SAME).grader is not None
    found = graders.run(grader=SAME, model_sample="a Red one", item={"want": "red"})
    assert found.reward == 1 and found.metadata.name == "same" and found.metadata.type == "string_check"
    missing = graders.run(grader=SAME, model_sample="a Red one", item={})
    assert missing.reward == 0 and missing.metadata.errors.invalid_variable_error
    both: Any = {"type": "multi", "name": "both", "graders": {"a": SAME, "b": ALIKE}, "calculate_output": "(a + b) / 2"}
    half = graders.run(grader=both, model_sample="red", item={"want": "red"})
    assert half.reward == 1 and half.sub_rewards == {"a": 1, "b": 1}
    try:
        open_sandbox()
    except RunFailed as error:
        pytest.skip(str(error))
    own: Any = {"type": "python", "name": "own", "source": "def grade(sample, item):\n    return len(sample['output_text']) / 8"}
    assert graders.run(grader=own, model_sample="four", item={}).reward == 0.5
    own["source"] = own["source"].replace("8", "0")
    assert graders.run(grader=own, model_sample="four", item={}).metadata.errors.python_grader_runtime_error


@pytest.mark.parametrize(
    ("grader", "param"),
    [
        ({"type": "score_model", "name": "x", "model": "small", "input": []}, "grader"),
        ({"type": "guess", "name": "x"}, "grader.type"),
        ({**SAME, "operation": "is"}, "grader.operation"),
    ],
)
def test_graders_that_are_none_are_refused_where_they_stand(client: OpenAI, grader: Any, param: str) -> None:
    for attempt in (
        lambda: client.fine_tuning.alpha.graders.validate(grader=grader),
        lambda: client.fine_tuning.alpha.graders.run(grader=grader, model_sample="x"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            attempt()
        assert refused.value.param == param
    with pytest.raises(openai.BadRequestError) as job:
        method: Any = {"type": "reinforcement", "reinforcement": {"grader": grader}}
        client.fine_tuning.jobs.create(model="small", training_file="file-x", method=method)
    assert job.value.param == f"method.reinforcement.{param}"


@pytest.mark.parametrize(
    ("method", "rows", "words"),
    [
        ({"type": "dpo"}, [PAIRS[0], {"prompt": "x"}], "training file, line 2: a preference is"),
        ({"type": "reinforcement", "reinforcement": {"grader": SAME}}, [TASKS[0], "{"], "training file, line 2: not JSON"),
        (
            {"type": "reinforcement", "reinforcement": {"grader": SAME}},
            [{"messages": TASKS[0]["messages"]}],
            "training file, line 1: there is no item.want",
        ),
        ({"type": "reinforcement", "reinforcement": {"grader": SAME}}, TASKS[:2], "too few to hold some out"),
    ],
)
def test_a_bad_file_fails_the_job_and_names_the_line(client: OpenAI, method: Any, rows: list[Any], words: str) -> None:
    job = client.fine_tuning.jobs.create(model="small", training_file=upload(client, rows), method=method)
    failed = finished(client, job.id)
    assert failed.status == "failed" and words in failed.error.message and "/" not in failed.error.message


@pytest.mark.parametrize(
    ("method", "param"),
    [
        ({"type": "reinforcement"}, "method.reinforcement.grader"),
        ({"type": "dpo", "supervised": {}}, "method.supervised"),
        ({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}}, "method.dpo.hyperparameters.beta"),
    ],
)
def test_fields_are_checked(client: OpenAI, method: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model="small", training_file="file-x", method=method)
    assert refused.value.param == param
