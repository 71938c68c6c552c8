"""Whatever goes wrong, the answer is the four-field envelope with a request id, and the SDK raises the class that it should."""

from __future__ import annotations

import contextlib
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from .conftest import Running

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2}


@pytest.fixture(scope="module")
def raw(running: Running) -> httpx2.Client:
    return httpx2.Client(base_url=running.url, timeout=30)


def envelope(answer: httpx2.Response, status: int, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"} and set(answer.json()["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = answer.json()["error"]
    assert error["message"] and error["type"] and answer.headers["x-request-id"].startswith("req_")
    if code is not None:
        assert error["code"] == code
    if param is not None:
        assert error["param"] == param
    return error


@pytest.mark.parametrize("path", ["/nope", "/chat", "/responses/resp_none", "/files/..%2f..%2fetc", "/models/none", "/%00"])
def test_what_is_not_there_is_404(raw: httpx2.Client, path: str) -> None:
    assert raw.get(path).status_code in (400, 404)
    envelope(raw.get(path), raw.get(path).status_code)


def test_another_method_is_405(raw: httpx2.Client) -> None:
    envelope(raw.put("/chat/completions", json={}), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "content,kind",
    [
        (b"{nope", "application/json"),
        (b"", "application/json"),
        (b"[1]", "application/json"),
        (b'"text"', "application/json"),
        (b"null", "application/json"),
        (b"\xff\xfe{", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"model=tiny", "application/x-www-form-urlencoded"),
        (b'{"model": "tiny", "messages": []}', "text/plain"),
    ],
)
@pytest.mark.parametrize("path", ["/chat/completions", "/responses", "/completions", "/embeddings", "/decisions", "/batches"])
def test_a_body_that_is_no_json_object_is_400(raw: httpx2.Client, path: str, content: bytes, kind: str) -> None:
    envelope(raw.post(path, content=content, headers={"content-type": kind}), 400)


def test_a_body_that_is_too_large_is_413_and_the_server_goes_on(raw: httpx2.Client, client: OpenAI) -> None:
    envelope(raw.post("/chat/completions", content=b" " * (33 << 20), headers={"content-type": "application/json"}), 413)

    def pieces() -> Any:
        for _ in range(40):
            yield b" " * (1 << 20)

    # Or the server hangs up while the client is still sending.
    with contextlib.suppress(httpx2.TransportError):
        envelope(raw.post("/responses", content=pieces(), headers={"content-type": "application/json"}), 413)
    assert client.models.list().data


@pytest.mark.parametrize(
    "change,param",
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [*MESSAGES, {"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages[1].tool_call_id"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"seed": "x"}, "seed"),
        ({"seed": 10**30}, "seed"),
        ({"stop": ["a"] * 1000}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": 5}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"metadata": {"k": 5}}, "metadata.k"),
        ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
        ({"tools": [{"type": "web"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
            "response_format",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
            "response_format",
        ),
        ({"reasoning_effort": "heroic"}, "reasoning_effort"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"frobnicate": 1}, "frobnicate"),
    ],
)
def test_every_field_of_a_chat_request_is_checked(raw: httpx2.Client, change: dict[str, Any], param: str) -> None:
    error = envelope(raw.post("/chat/completions", json=CHAT | change), 400)
    assert str(error["param"]).startswith(param), error
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "path,body,param",
    [
        ("/completions", {"prompt": 5}, "prompt"),
        ("/completions", {"prompt": [[1], ["x"]]}, "prompt"),
        ("/completions", {"prompt": [-1]}, "prompt"),
        ("/completions", {"prompt": [10**6]}, "prompt"),
        ("/completions", {"prompt": []}, "prompt"),
        ("/completions", {"prompt": "x", "logprobs": 21}, "logprobs"),
        ("/completions", {"prompt": "x", "n": 2, "best_of": 1}, "best_of"),
        ("/completions", {"prompt": "x", "best_of": 2, "stream": True}, "best_of"),
        ("/completions", {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ("/completions", {"prompt": ["x"], "suffix": "y"}, "suffix"),
        ("/completions", {"prompt": "x" * 2000}, "prompt"),
        ("/embeddings", {"input": ""}, "input"),
        ("/embeddings", {"input": []}, "input"),
        ("/embeddings", {"input": ["x", ""]}, "input"),
        ("/embeddings", {"input": {"a": 1}}, "input"),
        ("/embeddings", {"input": "x" * 2000}, "input"),
        ("/embeddings", {"input": "x", "dimensions": 0}, "dimensions"),
        ("/embeddings", {"input": "x", "dimensions": 10**6}, "dimensions"),
        ("/embeddings", {"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ("/responses", {"input": [{"type": "message"}]}, "input[0]"),
        ("/responses", {"input": [{"type": "telepathy"}]}, "input[0]"),
        ("/responses", {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
        ("/responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ("/responses", {"input": [{"role": "user", "content": "x", "id": "m" * 129}]}, "input[0].id"),
        ("/responses", {"input": [{"role": "user", "content": "x", "id": "m\0"}]}, "input[0].id"),
        ("/responses", {"input": ""}, "input"),
        ("/responses", {"input": "x", "previous_response_id": "resp_none"}, "previous_response_id"),
        ("/responses", {"input": "x", "conversation": "conv_none"}, "conversation"),
        ("/responses", {"input": "x", "background": True, "store": False}, "background"),
        ("/responses", {"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ("/responses", {"input": "x", "text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ("/responses", {"input": "x", "top_logprobs": 21}, "top_logprobs"),
        ("/responses", {"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ("/responses", {"input": "x", "truncation": "some"}, "truncation"),
        ("/decisions", {"input": "x", "questions": []}, "questions"),
        ("/decisions", {"input": "x", "questions": [{"type": "guess"}]}, "questions[0]"),
        ("/decisions", {"input": "x", "questions": [{"type": "predicate"}]}, "questions[0].instructions"),
        (
            "/decisions",
            {"input": "x", "questions": [{"type": "choice", "instructions": "x", "choices": [{"value": "a"}]}]},
            "questions[0].choices",
        ),
        (
            "/decisions",
            {"input": "x", "questions": [{"type": "choice", "instructions": "x", "choices": [{"value": "a"}, {"value": "a"}]}]},
            "questions[0]",
        ),
    ],
)
def test_fields_of_the_other_routes_are_checked(raw: httpx2.Client, path: str, body: dict[str, Any], param: str) -> None:
    answer = raw.post(path, json={"model": "tiny"} | body)
    error = envelope(answer, 404 if "conv_none" in str(body) else 400)
    assert str(error["param"]).startswith(param), error


def test_null_is_the_same_as_absent(client: OpenAI, raw: httpx2.Client) -> None:
    optional = [
        "temperature", "top_p", "n", "stop", "seed", "max_tokens", "logit_bias", "logprobs", "top_logprobs", "tools",
        "tool_choice", "response_format", "stream", "stream_options", "user", "metadata", "store", "presence_penalty",
        "frequency_penalty", "parallel_tool_calls", "reasoning_effort", "service_tier", "modalities", "audio", "functions",
    ]  # fmt: skip
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x", "name": None}], "max_completion_tokens": 2}
    assert raw.post("/chat/completions", json=body | dict.fromkeys(optional)).status_code == 200
    body = {"model": "tiny", "input": "x", "max_output_tokens": 2}
    fields = [
        "instructions",
        "tools",
        "tool_choice",
        "text",
        "reasoning",
        "previous_response_id",
        "conversation",
        "store",
        "stream",
    ]
    assert raw.post("/responses", json=body | dict.fromkeys(fields)).status_code == 200


def test_the_sdk_raises_the_class_that_belongs_to_the_status(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)  # type: ignore[arg-type]
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    assert missing.value.request_id is not None and missing.value.request_id.startswith("req_")
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 5000}])
    assert long.value.code == "context_length_exceeded" and long.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(**CHAT, extra_body={"frobnicate": 1})
    assert unknown.value.code == "unknown_parameter" and unknown.value.param == "frobnicate"


def test_a_success_has_a_request_id_too(client: OpenAI) -> None:
    assert str(client.models.list()._request_id).startswith("req_")


@pytest.mark.parametrize(
    "method,path",
    [
        ("POST", "/videos/characters"), ("POST", "/audio/translations"), ("GET", "/audio/voices"),
    ],
)  # fmt: skip
def test_what_is_not_in_this_version_says_who_brings_it(raw: httpx2.Client, method: str, path: str) -> None:
    answer = raw.request(method, path, json={})
    error = envelope(answer, 501, "not_implemented")
    assert "brings" in error["message"] and answer.headers["x-should-retry"] == "false"


def test_the_openapi_document_names_only_statuses_that_come(running: Running) -> None:
    page = httpx2.get(running.url.removesuffix("/v1") + "/openapi.json", timeout=60).json()
    operations = [operation for methods in page["paths"].values() for operation in methods.values()]
    assert len(operations) > 40 and not any("422" in operation["responses"] for operation in operations)
