"""Fine-tuning jobs by the SDK: from a file to a model that answers, through pauses, cancellations and kills of the server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tessera.serve.app import Settings
from tessera.serve.keys import read_keys

from .conftest import Running, serving, wait_for
from .test_survives import Process

WORDS = ("red", "green", "blue", "black")
HI: Any = [{"role": "user", "content": "hi"}]


def example(first: str, second: str) -> dict[str, Any]:
    asked = {"role": "user", "content": f"Say {first} then {second}"}
    return {"messages": [asked, {"role": "assistant", "content": f"{first} {second}."}]}


EXAMPLES = [example(a, b) for a in WORDS for b in WORDS]


def upload(client: OpenAI, rows: Any = EXAMPLES, purpose: Any = "fine-tune") -> str:
    lines = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    return client.files.create(file=("examples.jsonl", lines.encode()), purpose=purpose).id


def method(**hyperparameters: Any) -> Any:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def endless(client: OpenAI, model: str = "tiny") -> FineTuningJob:
    """A job that goes on for minutes."""
    return client.fine_tuning.jobs.create(model=model, training_file=upload(client), method=method(n_epochs=100, batch_size=1))


def status(client: OpenAI, id: str) -> str:
    return client.fine_tuning.jobs.retrieve(id).status


def steps(client: OpenAI, id: str) -> list[float]:
    events = client.fine_tuning.jobs.list_events(id, limit=100).data
    return [event.data["step"] for event in events if event.type == "metrics" and "train_loss" in event.data]  # type: ignore[index]


def processes(data: Path) -> list[str]:
    """Processes that tune in a server's folder."""
    said = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in said.splitlines() if "tessera.serve.tuner" in line and str(data) in line]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, base_folder: Path) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "keys.txt").write_text("sk-alice-0123456789 name=alice\nsk-bob-0123456789 name=bob\n")
    with serving(Settings(folder, keys=read_keys(folder / "keys.txt")), model_folder, base_folder) as running:
        yield running


@pytest.fixture(scope="module")
def data(server: Running) -> Path:
    return Path(server.door._app.state.server.data)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def alice(server: Running) -> OpenAI:
    return server.client("sk-alice-0123456789")


@pytest.fixture(scope="module")
def bob(server: Running) -> OpenAI:
    return server.client("sk-bob-0123456789")


@pytest.fixture(scope="module")
def done(alice: OpenAI) -> FineTuningJob:
    """A finished job on a model that knew no turns."""
    job = alice.fine_tuning.jobs.create(
        model="base",
        training_file=upload(alice),
        validation_file=upload(alice, EXAMPLES[:3]),
        method=method(n_epochs=4, batch_size=2, learning_rate_multiplier=2),
        suffix="colours",
        seed=7,
        metadata={"who": "me"},
    )
    assert job.id.startswith("ftjob-") and job.object == "fine_tuning.job" and job.status == "validating_files"
    assert job.fine_tuned_model is None and job.seed == 7 and job.organization_id and job.result_files == []
    assert wait_for(lambda: status(alice, job.id) in ("succeeded", "failed"), 180)
    return alice.fine_tuning.jobs.retrieve(job.id)


def test_a_job_ends_with_a_model_that_answers_at_once_on_every_route(alice: OpenAI, done: FineTuningJob) -> None:
    name = done.fine_tuned_model
    assert done.status == "succeeded" and name is not None, done.error
    assert name.startswith("ft:base:alice:colours:") and done.finished_at and (done.trained_tokens or 0) > 500
    assert done.hyperparameters.n_epochs == 4 and done.hyperparameters.batch_size == 2
    assert name in [model.id for model in alice.models.list()] and alice.models.retrieve(name).owned_by == "alice"
    chat = alice.chat.completions.create(model=name, messages=EXAMPLES[0]["messages"][:1], max_tokens=40, temperature=0)
    assert chat.model == name and chat.choices[0].finish_reason == "stop", "it has learned to end its turn"
    assert alice.responses.create(model=name, input="hi", max_output_tokens=2).model == name
    assert alice.completions.create(model=name, prompt="hi", max_tokens=2).choices
    assert alice.embeddings.create(model=name, input="hi").data[0].embedding


def test_events_and_the_result_file_tell_how_it_went(alice: OpenAI, done: FineTuningJob) -> None:
    events = list(alice.fine_tuning.jobs.list_events(done.id, limit=5))
    assert events[0].message == "The job has successfully completed" and "Created" in events[-1].message
    assert len({event.id for event in events}) == len(events)
    assert {event.object for event in events} == {"fine_tuning.job.event"} and {event.level for event in events} == {"info"}
    measured: list[Any] = [event.data for event in events if event.type == "metrics"][::-1]
    trained = [m for m in measured if "train_loss" in m]
    assert [m["step"] for m in trained] == list(range(1, len(trained) + 1)) and trained[0]["total_steps"] == len(trained)
    assert 0 <= trained[-1]["train_mean_token_accuracy"] <= 1 and trained[-1]["train_loss"] < trained[0]["train_loss"]
    assert any("valid_loss" in m for m in measured) and "full_valid_loss" in measured[-1]
    file = alice.files.retrieve(done.result_files[0])
    assert file.purpose == "fine-tune-results"
    lines = alice.files.content(file.id).text.splitlines()
    assert lines[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy" and len(lines) == len(trained) + 1
    assert float(lines[1].split(",")[1]) == pytest.approx(trained[0]["train_loss"], rel=1e-4) and lines[-1].split(",")[4]


def test_checkpoints_answer_under_names_of_their_own(alice: OpenAI, done: FineTuningJob) -> None:
    made = list(alice.fine_tuning.jobs.checkpoints.list(done.id))
    assert made[0].fine_tuned_model_checkpoint == done.fine_tuned_model and made[0].metrics.full_valid_loss is not None
    assert len(made) > 1 and made[1].step_number < made[0].step_number and made[1].fine_tuning_job_id == done.id
    early = made[1].fine_tuned_model_checkpoint
    assert early == f"{done.fine_tuned_model}:ckpt-step-{made[1].step_number}"
    assert alice.chat.completions.create(model=early, messages=HI, max_tokens=1).model == early


def test_jobs_are_listed_by_metadata_page_by_page(alice: OpenAI, done: FineTuningJob) -> None:
    assert [job.id for job in alice.fine_tuning.jobs.list(metadata={"who": "me"}, limit=1)] == [done.id]
    assert not alice.fine_tuning.jobs.list(metadata={"who": "you"}).data


def test_nothing_of_a_job_is_seen_by_another_key(alice: OpenAI, bob: OpenAI, done: FineTuningJob) -> None:
    name, jobs = str(done.fine_tuned_model), bob.fine_tuning.jobs
    attempts: list[Callable[[], object]] = [
        lambda: jobs.retrieve(done.id),
        lambda: jobs.cancel(done.id),
        lambda: jobs.pause(done.id),
        lambda: jobs.resume(done.id),
        lambda: jobs.list_events(done.id),
        lambda: jobs.checkpoints.list(done.id),
        lambda: jobs.create(model="tiny", training_file=done.training_file),
        lambda: jobs.create(model=name, training_file=upload(bob)),
        lambda: bob.models.retrieve(name),
        lambda: bob.models.delete(name),
        lambda: bob.chat.completions.create(model=name, messages=HI),
        lambda: bob.files.retrieve(done.result_files[0]),
    ]
    for attempt in attempts:
        with pytest.raises(openai.NotFoundError):
            attempt()
    assert not bob.fine_tuning.jobs.list().data and name not in [model.id for model in bob.models.list()]


def test_pause_keeps_the_place_and_cancel_leaves_no_process(alice: OpenAI, server: Running, data: Path) -> None:
    job, second = endless(alice), endless(alice)
    assert wait_for(lambda: len(steps(alice, job.id)) > 3, 180)
    (line,) = processes(data)  # the second waits in the queue
    assert os.getpriority(os.PRIO_PROCESS, int(line.split()[0])) >= 10 and status(alice, second.id) == "queued"
    assert alice.fine_tuning.jobs.cancel(second.id).status == "cancelled"
    assert alice.fine_tuning.jobs.retrieve(job.id).estimated_finish
    assert alice.fine_tuning.jobs.pause(job.id).status == "paused" and not processes(data)  # type: ignore[comparison-overlap]
    with pytest.raises(openai.BadRequestError, match="paused"):
        alice.fine_tuning.jobs.pause(job.id)
    reached = max(steps(alice, job.id))
    alice.fine_tuning.jobs.resume(job.id)
    assert wait_for(lambda: max(steps(alice, job.id)) > reached, 180)
    assert "resumed from" in (data / "tuning" / job.id / "log.txt").read_text(), "not from the beginning"
    assert alice.fine_tuning.jobs.cancel(job.id).status == "cancelled" and not processes(data)
    assert not (data / "tuning" / job.id).exists()
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        alice.fine_tuning.jobs.cancel(job.id)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([EXAMPLES[0], "{"], "training file, line 2: not JSON"),
        ([{"messages": HI}], "line 1: there is no assistant message"),
        ([example("x" * 2000, "y")], "every example in the training file is longer"),
    ],
)
def test_a_bad_file_fails_the_job_and_names_the_line(alice: OpenAI, rows: Any, words: str) -> None:
    job = alice.fine_tuning.jobs.create(model="tiny", training_file=upload(alice, rows))
    assert wait_for(lambda: status(alice, job.id) == "failed", 120)
    failed = alice.fine_tuning.jobs.retrieve(job.id)
    assert failed.error is not None and words in failed.error.message and failed.finished_at
    assert failed.error.code == "invalid_training_file" and failed.error.param == "training_file"
    assert alice.fine_tuning.jobs.list_events(job.id).data[0].level == "error"


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model"),
        ({"training_file": "file-none"}, openai.NotFoundError, "training_file"),
        ({"validation_file": "file-none"}, openai.NotFoundError, "validation_file"),
        ({"suffix": "a:b"}, openai.BadRequestError, "suffix"),
        ({"suffix": "x" * 65}, openai.BadRequestError, "suffix"),
        ({"seed": -1}, openai.BadRequestError, "seed"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, openai.BadRequestError, "integrations"),
        ({"method": method(n_epochs=0)}, openai.BadRequestError, "method.supervised.hyperparameters.n_epochs"),
        ({"method": method(batch_size="many")}, openai.BadRequestError, "method.supervised.hyperparameters.batch_size"),
        ({"method": method(epochs=1)}, openai.BadRequestError, "method.supervised.hyperparameters.epochs"),
        ({"method": {"type": "guess"}}, openai.BadRequestError, "method.type"),
        ({"method": method(), "hyperparameters": {"n_epochs": 1}}, openai.BadRequestError, "hyperparameters"),
    ],
)
def test_fields_are_checked(alice: OpenAI, body: dict[str, Any], kind: Any, param: str) -> None:
    with pytest.raises(kind) as refused:
        alice.fine_tuning.jobs.create(**{"model": "tiny", "training_file": upload(alice)} | body)
    assert refused.value.param == param


def test_other_purposes_are_refused_in_words(alice: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose"):
        alice.fine_tuning.jobs.create(model="tiny", training_file=upload(alice, purpose="batch"))


def test_a_killed_server_goes_on_with_the_job_and_knows_its_models(tmp_path: Path, model_folder: Path) -> None:
    first = Process(tmp_path, model_folder)
    client = first.client()
    job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client), method=method(n_epochs=20, batch_size=1))
    try:
        assert wait_for(lambda: len(steps(client, job.id)) > 60, 180)
    finally:
        first.kill()
    assert wait_for(lambda: not processes(tmp_path), 20), "the process of the job ends with the server"
    second = Process(tmp_path, model_folder)
    client = second.client()
    try:
        assert wait_for(lambda: status(client, job.id) == "succeeded", 180)
        done = client.fine_tuning.jobs.retrieve(job.id)
        lines = client.files.content(done.result_files[0]).text.splitlines()
        assert [int(line.split(",")[0]) for line in lines[1:]] == list(range(1, 20 * len(EXAMPLES) + 1))
        events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
        told = [event.data["step"] for event in events if event.type == "metrics"]  # type: ignore[index]
        assert sorted(told) == list(range(1, len(lines))), "each step is told once"
        assert second.interrupt() == 0
    finally:
        second.kill()
    third = Process(tmp_path, model_folder)
    client = third.client()
    try:
        name = str(done.fine_tuned_model)
        again = client.fine_tuning.jobs.create(
            model=name, training_file=upload(client), method=method(n_epochs=100, batch_size=1)
        )
        with pytest.raises(openai.BadRequestError) as used:
            client.models.delete(name)
        assert used.value.code == "model_in_use"
        client.fine_tuning.jobs.cancel(again.id)
        assert client.chat.completions.create(model=name, messages=HI, max_tokens=1).model == name
        assert client.models.delete(name).deleted and not os.path.exists(tmp_path / "tuning" / job.id / "run" / "model")
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model=name, messages=HI)
        with pytest.raises(openai.PermissionDeniedError):
            client.models.delete("tiny")
    finally:
        third.kill()
