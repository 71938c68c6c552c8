"""Who comes in: keys, their limits, their walls; and without keys only this machine's own programs and pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tessera.errors import UserError
from tessera.serve.app import Settings
from tessera.serve.errors import ApiError
from tessera.serve.keys import Limits, is_loopback, read_keys

from .conftest import Running, serving, wait_for

KEYS = """\
# whom it belongs to comes behind the key
sk-alice-0123456789 name=alice operator=yes
sk-bob-0123456789 name=bob requests_per_minute=1000
sk-slow-0123456789 name=slow requests_per_minute=2
sk-short-0123456789 tokens_per_minute=5  # no name
"""
HI: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Any:
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys.txt").write_text(KEYS)
    with serving(Settings(folder, keys=read_keys(folder / "keys.txt")), model_folder) as server:
        yield server


def test_a_wrong_or_missing_key_is_401(keyed: Running) -> None:
    with pytest.raises(openai.AuthenticationError) as wrong:
        keyed.client("sk-wrong").models.list()
    assert wrong.value.code == "invalid_api_key" and wrong.value.request_id
    for headers in ({}, {"authorization": "Basic eDp5"}, {"authorization": "Bearer"}, {"authorization": "sk-alice-0123456789"}):
        answer = httpx2.get(keyed.url + "/models", headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert keyed.client("sk-alice-0123456789").models.list().data
    assert httpx2.get(keyed.url + "/nope").status_code == 401


def test_what_another_key_has_going_is_not_stopped_by_an_id_of_another_kind(keyed: Running) -> None:
    alice, bob = keyed.client("sk-alice-0123456789"), keyed.client("sk-bob-0123456789")
    long: Any = {"type": "array", "items": {"const": "again"}, "minItems": 100}
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": long}}
    going = alice.responses.create(model="tiny", input="hi", background=True, text=form)
    for client in (bob, alice):
        with pytest.raises(openai.NotFoundError):
            client.evals.runs.delete(going.id, eval_id="eval_none")
    assert wait_for(lambda: alice.responses.retrieve(going.id).status in ("completed", "incomplete"), 20)


def test_health_needs_no_key_but_what_concerns_the_whole_server_is_for_operators(keyed: Running) -> None:
    root = keyed.url.removesuffix("/v1")
    assert httpx2.get(root + "/health").status_code == 200 and httpx2.get(root + "/ready").status_code == 200
    assert httpx2.get(root + "/metrics").status_code == 401
    for path in ("/metrics", "/tessera/runs", "/tessera/runs/one", "/tessera/ledger"):
        refused = httpx2.get(root + path, headers={"authorization": "Bearer sk-bob-0123456789"})
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "not_an_operator", path
    text = httpx2.get(root + "/metrics", headers={"authorization": "Bearer sk-alice-0123456789"}).text
    assert httpx2.get(root + "/tessera/runs", headers={"authorization": "Bearer sk-alice-0123456789"}).json()["data"] == []
    for name in ("tessera_requests_total", "tessera_time_to_first_token", "tessera_waiting_requests", "tessera_errors_total"):
        assert name in text


def test_nothing_of_one_owner_is_seen_by_another(keyed: Running) -> None:
    alice, bob = keyed.client("sk-alice-0123456789"), keyed.client("sk-bob-0123456789")
    file = alice.files.create(file=("a.txt", b"secret"), purpose="batch")
    chat = alice.chat.completions.create(model="tiny", messages=HI, max_tokens=1, store=True)
    response = alice.responses.create(model="tiny", input="secret", max_output_tokens=1)
    conversation = alice.conversations.create(items=[{"role": "user", "content": "secret"}])
    item = alice.conversations.items.list(conversation.id).data[0]
    upload = alice.uploads.create(bytes=1, filename="x", mime_type="a/b", purpose="batch")
    batch = alice.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    attempts = [
        lambda: bob.files.retrieve(file.id),
        lambda: bob.files.content(file.id),
        lambda: bob.files.delete(file.id),
        lambda: bob.chat.completions.retrieve(chat.id),
        lambda: bob.chat.completions.messages.list(chat.id),
        lambda: bob.chat.completions.update(chat.id, metadata={}),
        lambda: bob.chat.completions.delete(chat.id),
        lambda: bob.responses.retrieve(response.id),
        lambda: bob.responses.input_items.list(response.id),
        lambda: bob.responses.cancel(response.id),
        lambda: bob.responses.delete(response.id),
        lambda: bob.responses.create(model="tiny", input="x", previous_response_id=response.id),
        lambda: bob.responses.create(model="tiny", input=[{"type": "item_reference", "id": response.output[0].id}]),
        lambda: bob.responses.create(model="tiny", input=[{"type": "item_reference", "id": item.id}]),
        lambda: bob.responses.create(model="tiny", input="x", conversation=conversation.id),
        lambda: bob.conversations.retrieve(conversation.id),
        lambda: bob.conversations.items.list(conversation.id),
        lambda: bob.conversations.items.create(conversation.id, items=[{"role": "user", "content": "x"}]),
        lambda: bob.uploads.parts.create(upload.id, data=b"x"),
        lambda: bob.uploads.cancel(upload.id),
        lambda: bob.batches.retrieve(batch.id),
        lambda: bob.batches.cancel(batch.id),
        lambda: bob.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"),
        lambda: bob.files.list(after=file.id),
    ]
    for attempt in attempts:
        with pytest.raises((openai.NotFoundError, openai.BadRequestError)) as refused:
            attempt()
        assert "secret" not in str(refused.value)
    assert not bob.files.list().data and not bob.batches.list().data and not bob.chat.completions.list().data
    assert alice.files.content(file.id).read() == b"secret"


def test_the_prefix_cache_does_not_tell_one_owner_of_another(keyed: Running) -> None:
    long: Any = [{"role": "user", "content": "a private text " * 30}]
    keys = ("sk-alice-0123456789", "sk-bob-0123456789", "sk-alice-0123456789")
    usages = [keyed.client(key).chat.completions.create(model="tiny", messages=long, max_tokens=1).usage for key in keys]
    cached = [usage.prompt_tokens_details.cached_tokens for usage in usages if usage and usage.prompt_tokens_details]
    assert cached[0] == cached[1] == 0 and (cached[2] or 0) > 0


def test_too_many_requests_are_429_with_the_time_to_wait(keyed: Running) -> None:
    slow = keyed.client("sk-slow-0123456789")
    first = slow.models.with_raw_response.list()
    assert first.headers["x-ratelimit-limit-requests"] == "2" and first.headers["x-ratelimit-remaining-requests"] == "1"
    slow.models.list()
    with pytest.raises(openai.RateLimitError) as limited:
        slow.chat.completions.create(model="tiny", messages=HI, stream=True)
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 31
    assert limited.value.code == "rate_limit_exceeded"


def test_tokens_are_counted_against_their_limit(keyed: Running) -> None:
    short = keyed.client("sk-short-0123456789")
    assert short.chat.completions.create(model="tiny", messages=HI, max_tokens=4).usage
    with pytest.raises(openai.RateLimitError, match="tokens per minute"):
        short.chat.completions.create(model="tiny", messages=HI, max_tokens=1)


def test_limits_fill_up_again(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-0123456789 name=a requests_per_minute=2 tokens_per_minute=60\n")
    now = 0.0
    limits = Limits(read_keys(tmp_path / "keys"), clock=lambda: now)
    limits.enter("a")
    limits.enter("a")
    with pytest.raises(ApiError) as error:
        limits.enter("a")
    assert error.value.headers["retry-after"] == "30"
    now = 30.0
    limits.enter("a")
    now = 90.0
    limits.spend("a", 70)
    with pytest.raises(ApiError) as error:
        limits.enter("a")
    assert error.value.headers["retry-after"] == "11"
    now = 101.0
    assert limits.enter("a")["x-ratelimit-remaining-tokens"] == "1"
    limits.enter("somebody without limits")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment\n",
        "short\n",
        "sk-0123456789 color=red\n",
        "sk-0123456789 tokens_per_minute=x\n",
        "sk-0123456789 operator=1\n",
    ],
)
def test_a_key_file_that_holds_no_keys_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UserError, match="keys"):
        read_keys(tmp_path / "keys")


def test_a_key_file_that_cannot_be_read_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"sk-0123456789 name=Ren\xe9\n")
    for name, words in (("nothere", "nothere cannot be read: No such file or directory."), ("latin", "latin is not UTF-8 text.")):
        with pytest.raises(UserError) as refused:
            read_keys(tmp_path / name)
        assert str(refused.value) == f"the key file {tmp_path / words}"


def test_without_keys_foreign_pages_and_names_are_kept_out(running: Running) -> None:
    body = {"model": "tiny", "messages": HI, "max_tokens": 1}
    port = running.url.split(":")[2].split("/")[0]
    for headers, allowed in (
        ({"host": "evil.example"}, False),
        ({"host": "127.0.0.1.evil.example"}, False),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": f"http://localhost:{int(port) - 1}"}, False),
        ({"origin": f"http://127.0.0.1:{port}"}, True),
        ({"host": f"localhost:{port}", "origin": f"http://localhost:{port}"}, True),
    ):
        answer = httpx2.post(running.url + "/chat/completions", json=body, headers=headers, timeout=30)
        assert answer.status_code == (200 if allowed else 403), headers
        assert allowed or answer.json()["error"]["type"] == "permission_error"
        assert "access-control-allow-origin" not in answer.headers


def test_which_addresses_are_this_machine_only() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.3.2.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.com")))


def test_the_log_holds_no_prompt_and_no_key(keyed: Running) -> None:
    secret: Any = [{"role": "user", "content": "my diary"}]
    keyed.client("sk-alice-0123456789").chat.completions.create(model="tiny", messages=secret, max_tokens=1)
    said = keyed.said.getvalue()
    assert '"completion_tokens": 1' in said and "diary" not in said and "sk-alice" not in said
