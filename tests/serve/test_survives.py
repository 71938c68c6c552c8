"""Who leaves frees the slot; who is killed comes back with everything that was kept, and goes on with what was not done."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

import tessera
from tessera.engine.engine import Limits
from tessera.serve import embeddings
from tessera.serve.app import Settings
from tessera.serve.items import message_item
from tessera.serve.store import Store

from .conftest import CONTEXT, Running, database_for, serving, wait_for

HI: Any = [{"role": "user", "content": "hi"}]
OPTIONS = ("--port", "0", "--threads", "1", "--no-compile")
ENDLESS: dict[str, Any] = {"model": "tiny", "max_tokens": CONTEXT, "logit_bias": {"5": 100}}


def leave(running: Running, path: str, body: dict[str, Any], after_bytes: int) -> None:
    """Sends a request and hangs up once so many bytes of the answer have come; 0: after a moment of silence."""
    host, port = running.url.split("/")[2].split(":")
    content = json.dumps(body).encode()
    with socket.create_connection((host, int(port))) as place:
        kind = f"Content-Type: application/json\r\nContent-Length: {len(content)}"
        place.sendall(f"POST /v1{path} HTTP/1.1\r\nHost: {host}:{port}\r\n{kind}\r\n\r\n".encode() + content)
        if after_bytes:
            place.recv(after_bytes)
        else:
            assert wait_for(lambda: not running.idle(0.001), 20)


def stopped_early(running: Running, path: str, body: dict[str, Any], whole: int) -> bool:
    """Whether an answer whose client leaves ends before its `whole` tokens."""
    with running.slowed():
        before = running.engine_tokens
        leave(running, path, body, after_bytes=400 if body["stream"] else 0)
        assert running.idle(10)
        return running.engine_tokens - before < 0.8 * whole


@pytest.mark.parametrize(
    "path,body",
    [
        ("/chat/completions", {"messages": HI, "stream": True}),
        ("/chat/completions", {"messages": HI, "stream": False}),
        ("/chat/completions", {"messages": HI, "stream": False, "n": 3}),
        ("/completions", {"prompt": "hi", "stream": True}),
        ("/completions", {"prompt": "hi", "stream": False}),
    ],
)
def test_a_client_that_leaves_frees_its_slot(running: Running, path: str, body: dict[str, Any]) -> None:
    assert running.idle()
    assert stopped_early(running, path, ENDLESS | body, CONTEXT * body.get("n", 1)), "it was written to the end"


def test_a_response_whose_client_leaves_is_stopped(running: Running) -> None:
    endless = {"type": "array", "items": {"const": "again"}, "minItems": 120}
    body = {"model": "tiny", "input": "hi", "text": {"format": {"type": "json_schema", "name": "x", "schema": endless}}}
    for stream in (True, False):
        assert stopped_early(running, "/responses", body | {"stream": stream}, CONTEXT)


def test_many_clients_at_once_all_get_their_answer(client: OpenAI, running: Running) -> None:
    answers: list[str | None] = [None] * 24

    def ask(i: int) -> None:
        made = client.chat.completions.create(model="tiny", messages=HI, seed=i % 3, max_tokens=20)
        answers[i] = made.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(answers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in answers and len(set(answers)) == 3 and running.idle()


def test_a_full_queue_is_429_before_the_stream_begins(tmp_path: Path, model_folder: Path) -> None:
    limits = Limits(rows=2, queued_requests=4)
    with serving(Settings(tmp_path), model_folder, limits=limits) as server:
        client = server.client()
        many = ["x"] * 20
        # The engine waits between two steps until all have asked, so that no place in the queue becomes free meanwhile.
        go_on = threading.Event()
        server.models.get("tiny", "local").service.run(lambda engine: go_on.wait(60))
        stream = client.completions.create(prompt=many, stream=True, **ENDLESS | {"max_tokens": 900})
        with pytest.raises(openai.RateLimitError) as full:
            client.completions.create(model="tiny", prompt="x", max_tokens=5, stream=True)
        go_on.set()
        assert int(full.value.response.headers["retry-after"]) >= 1 and full.value.code == "queue_full"
        assert next(iter(stream)).choices
        stream.close()
        assert server.idle(5)
        made = client.completions.create(model="tiny", prompt=many, max_tokens=1)
        assert [choice.index for choice in made.choices] == list(range(len(many)))


def test_a_failing_engine_is_an_error_in_the_stream(running: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = running.models.get("tiny", "local").service._engine

    def break_down(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken on purpose")

    with running.slowed():
        stream = client.chat.completions.create(messages=HI, stream=True, **ENDLESS)
        next(iter(stream))
        with monkeypatch.context() as patch:
            patch.setattr(engine, "step", break_down)
            with pytest.raises(openai.APIError) as error:
                list(stream)
    assert "purpose" not in str(error.value) and running.idle()
    assert client.chat.completions.create(model="tiny", messages=HI, max_tokens=1).choices


def test_what_nobody_foresaw_comes_in_the_envelope_and_ends_no_batch(
    running: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = embeddings.prompts_of

    def break_down(served: Any, given: Any, param: str) -> Any:
        if given == "broken":
            raise RuntimeError("on purpose")
        return real(served, given, param)

    monkeypatch.setattr(embeddings, "prompts_of", break_down)
    with pytest.raises(openai.InternalServerError) as error:
        client.embeddings.create(model="tiny", input="broken")
    assert error.value.code == "internal_error" and "purpose" not in str(error.value)
    rows = [
        {"custom_id": word, "method": "POST", "url": "/v1/embeddings", "body": {"model": "tiny", "input": word}}
        for word in ("broken", "whole", "hale")
    ]
    data = "\n".join(map(json.dumps, rows)).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(completion_window="24h", endpoint="/v1/embeddings", input_file_id=file.id)
    assert wait_for(lambda: client.batches.retrieve(batch.id).status == "completed", 20)
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts is not None and (counts.completed, counts.failed) == (2, 1)
    # What was asked lies on the disk no longer than its file.
    digest = hashlib.sha256(data).hexdigest()
    where = running.door._app.state.server.blobs.path(digest)  # type: ignore[attr-defined]
    assert where.exists()
    client.files.delete(file.id)
    assert not where.exists()


def test_a_restart_keeps_what_was_stored_and_finishes_what_was_begun(tmp_path: Path, model_folder: Path) -> None:
    row = {"model": "tiny", "messages": HI, "max_tokens": 60, "logit_bias": {"5": 100}}
    lines = [{"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": row} for i in range(16)]
    first = Process(tmp_path, model_folder)
    client = first.client()
    file = client.files.create(file=("in.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    response = client.responses.create(model="tiny", input="remember", max_output_tokens=3)
    chat = client.chat.completions.create(model="tiny", messages=HI, max_tokens=2, store=True)
    conversation = client.conversations.create(items=HI)
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    later = client.responses.create(model="tiny", input="later", background=True, max_output_tokens=100)

    def some_are_done() -> bool:
        counts = client.batches.retrieve(batch.id).request_counts
        return counts is not None and counts.completed > 0

    try:
        assert wait_for(some_are_done, 60)
    finally:
        first.kill()
    second = Process(tmp_path, model_folder)
    client = second.client()
    try:
        assert client.files.content(file.id).read().count(b"custom_id") == 16
        assert client.responses.retrieve(response.id).output == response.output
        assert client.chat.completions.retrieve(chat.id).choices == chat.choices
        assert client.conversations.items.list(conversation.id).data
        assert wait_for(lambda: client.responses.retrieve(later.id).status in ("completed", "incomplete"), 60)
        assert wait_for(lambda: client.batches.retrieve(batch.id).status == "completed", 60)
        done = client.batches.retrieve(batch.id)
        assert done.request_counts is not None and done.request_counts.completed == 16 and done.output_file_id
        answered = [json.loads(line)["custom_id"] for line in client.files.content(done.output_file_id).text.splitlines()]
        assert sorted(answered) == sorted(line["custom_id"] for line in lines)
        stream = client.chat.completions.create(messages=HI, stream=True, **ENDLESS)
        next(iter(stream))
        assert second.interrupt() == 0, "Ctrl-C in the middle of a stream ends the server in order"
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
        assert "Traceback" not in second.said
    finally:
        second.kill()


def test_responses_that_wait_are_begun_anew_once_only(tmp_path: Path, model_folder: Path) -> None:
    store = Store(database_for(tmp_path) or f"sqlite:///{tmp_path / 'tessera.db'}")
    long: Any = {"type": "array", "items": {"const": "again"}, "minItems": 100}
    for i in range(8):
        request = {"model": "tiny", "input": "hi", "background": True, "conversation": f"conv_{i}"}
        request["text"] = {"format": {"type": "json_schema", "name": "x", "schema": long}}
        body = {"id": f"resp_{i}", "object": "response", "status": "queued", "previous_response_id": None, "output": []}
        given = [message_item("user", "hi")]
        store.put("local", "conversation", {"id": f"conv_{i}"})
        store.put("local", "response", body, {"input": given, "request": request, "background": True})
    store.close()
    with serving(Settings(tmp_path), model_folder) as server:
        client = server.client()
        for i in range(8):
            assert wait_for(lambda i=i: client.responses.retrieve(f"resp_{i}").status in ("completed", "incomplete"), 60)
        assert server.idle()
        assert [len(client.conversations.items.list(f"conv_{i}").data) for i in range(8)] == [2] * 8


class Process:
    """`tessera serve` in a process of its own."""

    def __init__(self, data: Path, model: Path) -> None:
        source = str(Path(tessera.__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "tessera", "serve", str(model), "--data", str(data), *OPTIONS]
        if (url := database_for(data)) is not None:
            words += ["--database-url", url]
        self._process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        assert "http://" in line, line + self._process.stderr.read()
        self.url = "http://" + line.split("http://")[1].split()[0]
        self._said: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def client(self) -> OpenAI:
        return OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=90)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def interrupt(self) -> int:
        """Ctrl-C; the exit code."""
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(60)

    @property
    def said(self) -> str:
        return "".join(self._said)

    def _listen(self) -> None:
        for line in self._process.stderr or ():
            self._said.append(line)


def test_health_is_known_without_the_sdk(running: Running) -> None:
    root = running.url.removesuffix("/v1")
    assert httpx2.get(root + "/health").json() == {"status": "ok"} and httpx2.get(root + "/ready").json() == {"status": "ready"}
