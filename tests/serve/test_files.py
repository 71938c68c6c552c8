"""Files, uploads and batches by the SDK: bytes come back as they went in, rows are answered through the same routes."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tessera.serve.app import Settings
from tessera.serve.files import plain_name

from .conftest import Running, serving, wait_for

CHAT: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


def rows(*bodies: dict[str, Any], url: str = "/v1/chat/completions") -> bytes:
    lines = [{"custom_id": f"row-{i}", "method": "POST", "url": url, "body": body} for i, body in enumerate(bodies)]
    return "\n".join(map(json.dumps, lines)).encode() + b"\n"


def say(text: str, model: str = "tiny") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 3, "seed": 1}


def test_a_file_comes_back_as_it_went_in(client: OpenAI) -> None:
    data = bytes(range(256)) * 5000
    made = client.files.create(file=("data.bin", data), purpose="user_data")
    assert made.id.startswith("file-") and made.bytes == len(data) and made.filename == "data.bin" and made.status == "processed"
    assert client.files.content(made.id).read() == data
    assert client.files.retrieve(made.id) == made
    same = client.files.create(file=("copy.bin", data), purpose="user_data")
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    assert client.files.content(same.id).read() == data  # the bytes are there as long as one file has them


def test_files_are_listed_by_purpose_page_by_page(client: OpenAI) -> None:
    made = [client.files.create(file=(f"{i}.jsonl", b"{}\n"), purpose="fine-tune").id for i in range(5)]
    assert [file.id for file in client.files.list(purpose="fine-tune", limit=2)][:5] == made[::-1]
    page = client.files.list(purpose="fine-tune", limit=2, order="asc")
    assert page.has_more and [file.id for file in page.data] == made[:2]
    assert [f.id for f in client.files.list(purpose="fine-tune", order="asc", after=made[2])] == made[3:]
    assert not client.files.list(purpose="vision").data


def test_the_same_bytes_lie_on_disk_once_and_go_with_the_last_file(client: OpenAI, running: Running) -> None:
    data = b"the same bytes" * 1000
    digest = hashlib.sha256(data).hexdigest()
    folder = running.door._app.state.server.blobs.folder  # type: ignore[attr-defined]
    ids = [client.files.create(file=(name, data), purpose="user_data").id for name in ("a", "b")]
    assert (folder / digest[:2] / digest).read_bytes() == data
    client.files.delete(ids[0])
    assert (folder / digest[:2] / digest).exists()
    client.files.delete(ids[1])
    assert not (folder / digest[:2] / digest).exists()


@pytest.mark.parametrize(
    "given,kept",
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\a.txt", "a.txt"),
        ("/", "upload"),
        ("..", "upload"),
        ("a\x00\n.txt", "a.txt"),
        ("x" * 999, "x" * 255),
        ("ünï.txt", "ünï.txt"),
    ],
)
def test_a_file_name_is_only_a_name(given: str, kept: str) -> None:
    assert plain_name(given) == kept


def test_bad_uploads_are_refused(client: OpenAI, running: Running) -> None:
    with pytest.raises(openai.BadRequestError) as purpose:
        client.files.create(file=("a", b"x"), purpose="mischief")  # type: ignore[arg-type]
    assert purpose.value.param == "purpose"
    with pytest.raises(openai.BadRequestError) as empty:
        client.files.create(file=("a", b""), purpose="batch")
    assert empty.value.code == "empty_file"
    missing = httpx2.post(running.url + "/files", data={"purpose": "batch"})
    assert missing.status_code == 400 and missing.json()["error"]["param"] == "file"
    broken = httpx2.post(running.url + "/files", content=b"--x\r\nnonsense", headers={"content-type": "multipart/form-data"})
    assert broken.status_code == 400 and "error" in broken.json()


def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(tmp_path: Path, model_folder: Path) -> None:
    with serving(Settings(tmp_path, most_file_bytes=1 << 20), model_folder) as small:
        client = small.client()
        with pytest.raises(openai.APIStatusError) as large:
            client.files.create(file=("big", b"x" * (1 << 20) + b"y"), purpose="user_data")
        assert large.value.status_code == 413
        with pytest.raises((openai.APIStatusError, openai.APIConnectionError)):
            client.files.create(file=("huge", b"x" * (50 << 20)), purpose="user_data")
        assert client.files.create(file=("fits", b"x" * (1 << 20)), purpose="user_data").bytes == 1 << 20
        assert len([path for path in (tmp_path / "files").rglob("*") if path.is_file()]) == 1
        with pytest.raises(openai.APIStatusError) as announced:
            client.uploads.create(bytes=2 << 20, filename="x", mime_type="text/plain", purpose="batch")
        assert announced.value.status_code == 413


def test_an_upload_becomes_a_file_of_its_parts_in_order(client: OpenAI) -> None:
    data = b"0123456789" * 1000
    upload = client.uploads.create(bytes=len(data), filename="parts.txt", mime_type="text/plain", purpose="user_data")
    assert upload.id.startswith("upload_") and upload.status == "pending" and upload.object == "upload"
    second = client.uploads.parts.create(upload.id, data=data[4000:])
    first = client.uploads.parts.create(upload.id, data=data[:4000])
    assert first.id.startswith("part_") and first.upload_id == upload.id
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(upload.id, part_ids=[first.id])
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(upload.id, part_ids=[first.id, second.id], md5="0" * 32)
    md5 = hashlib.md5(data).hexdigest()
    done = client.uploads.complete(upload.id, part_ids=[first.id, second.id], md5=md5)
    assert done.status == "completed" and done.file is not None and done.file.bytes == len(data)
    assert client.files.content(done.file.id).read() == data
    with pytest.raises(openai.BadRequestError):
        client.uploads.parts.create(upload.id, data=b"late")


def test_parts_go_with_time_and_are_no_more_than_announced(
    client: OpenAI, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tessera.serve import uploads

    monkeypatch.setattr(uploads, "_MOST_PART_BYTES", 10)
    upload = client.uploads.create(bytes=4, filename="x", mime_type="text/plain", purpose="user_data")
    for _ in range(2):
        client.uploads.parts.create(upload.id, data=b"123456789")
    with pytest.raises(openai.BadRequestError, match="announced were 4"):
        client.uploads.parts.create(upload.id, data=b"123456789")
    store = running.door._app.state.server.store  # type: ignore[attr-defined]
    (first, *_) = store.everywhere("upload.part")
    assert first.private["size"] == 9
    monkeypatch.setattr("tessera.serve.store.time.time", lambda: upload.expires_at + 1.0)
    assert {record.id for record in store.expire()} >= {first.id}


def test_an_upload_completed_twice_at_once_is_one_file(client: OpenAI) -> None:
    upload = client.uploads.create(bytes=3, filename="once.txt", mime_type="text/plain", purpose="user_data")
    part = client.uploads.parts.create(upload.id, data=b"abc")

    def complete(_: int) -> str | None:
        try:
            file = client.uploads.complete(upload.id, part_ids=[part.id]).file
        except openai.BadRequestError:
            return None
        return file and file.id

    with ThreadPoolExecutor(8) as threads:
        made = [id for id in threads.map(complete, range(8)) if id is not None]
    assert [file.id for file in client.files.list() if file.filename == "once.txt"] == made and len(made) == 1
    assert client.files.content(made[0]).read() == b"abc"


def test_an_upload_can_be_given_up(client: OpenAI) -> None:
    upload = client.uploads.create(bytes=3, filename="x", mime_type="text/plain", purpose="batch")
    part = client.uploads.parts.create(upload.id, data=b"abc")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(upload.id, part_ids=[part.id])


def finished(client: OpenAI, id: str) -> Any:
    assert wait_for(lambda: client.batches.retrieve(id).status in ("completed", "failed", "cancelled"), 20)
    return client.batches.retrieve(id)


def lines(client: OpenAI, id: str) -> dict[str, Any]:
    return {row["custom_id"]: row for row in map(json.loads, client.files.content(id).text.splitlines())}


def test_a_batch_answers_each_row_and_sorts_out_the_bad_ones(client: OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", rows(say("one"), say("two", "nobody"), say("three"))), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )
    assert made.id.startswith("batch_") and made.status == "validating" and made.metadata == {"a": "b"}
    done = finished(client, made.id)
    assert done.status == "completed" and done.completed_at and done.in_progress_at and done.finalizing_at
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (3, 2, 1)
    good, bad = lines(client, done.output_file_id), lines(client, done.error_file_id)
    assert set(good) == {"row-0", "row-2"} and set(bad) == {"row-1"}
    response = good["row-0"]["response"]
    assert response["status_code"] == 200 and response["request_id"].startswith("req_") and good["row-0"]["error"] is None
    alone = client.chat.completions.create(**say("one"))
    assert response["body"]["choices"][0]["message"]["content"] == alone.choices[0].message.content
    assert bad["row-1"]["error"]["code"] == "model_not_found" and bad["row-1"]["response"]["status_code"] == 404
    assert client.files.retrieve(done.output_file_id).purpose == "batch_output"
    assert made.id in [batch.id for batch in client.batches.list(limit=1)]


@pytest.mark.parametrize(
    "url,body",
    [
        ("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 2}),
        ("/v1/embeddings", {"model": "base", "input": "x"}),
        ("/v1/responses", {"model": "tiny", "input": "x", "max_output_tokens": 2}),
    ],
)
def test_a_batch_reaches_the_other_routes(client: OpenAI, url: Any, body: dict[str, Any]) -> None:
    file = client.files.create(file=("in.jsonl", rows(body, url=url)), purpose="batch")
    done = finished(client, client.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h").id)
    assert done.request_counts.completed == 1


@pytest.mark.parametrize(
    "data,code",
    [
        (b"no json\n", "invalid_json_line"),
        (b'{"custom_id": "a"}\n', "invalid_request"),
        (b"\n\n", "empty_file"),
        (rows(say("x"), url="/v1/files"), "invalid_request"),
        (rows(say("x")) * 2, "duplicate_custom_id"),
    ],
)
def test_a_file_that_is_no_batch_fails_in_words(client: OpenAI, data: bytes, code: str) -> None:
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    done = finished(client, client.batches.create(input_file_id=file.id, **CHAT).id)
    assert done.status == "failed" and done.errors.data[0].code == code and done.errors.data[0].message


def test_a_batch_can_be_cancelled(client: OpenAI, running: Running) -> None:
    long = say("long") | {"max_tokens": 900, "logit_bias": {"5": 100}}
    file = client.files.create(file=("in.jsonl", rows(*[long] * 40)), purpose="batch")
    with running.slowed():
        made = client.batches.create(input_file_id=file.id, **CHAT)
        assert wait_for(lambda: client.batches.retrieve(made.id).status == "in_progress")
        cancelled = client.batches.cancel(made.id)
    assert cancelled.status == "cancelled" and cancelled.cancelled_at and cancelled.cancelling_at
    assert running.idle(3)
    with pytest.raises(openai.BadRequestError):
        client.batches.cancel(made.id)


@pytest.mark.parametrize("seconds", [-5, 10, 10**30])
def test_the_life_of_a_batchs_answers_is_that_of_files(client: OpenAI, seconds: int) -> None:
    file = client.files.create(file=("in.jsonl", rows(say("one"))), purpose="batch")
    with pytest.raises(openai.BadRequestError) as error:
        client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            output_expires_after={"anchor": "created_at", "seconds": seconds},
        )
    assert error.value.param == "output_expires_after.seconds"


def test_a_batch_needs_a_file_of_its_own_purpose(client: OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", rows(say("x"))), purpose="user_data")
    for id, error in ((file.id, openai.BadRequestError), ("file-none", openai.NotFoundError)):
        with pytest.raises(error):
            client.batches.create(input_file_id=id, **CHAT)
