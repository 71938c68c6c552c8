"""Chat completions by the SDK: whole and streamed, with tools, schemas, log-probabilities and everything else clients rely on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

from tessera.tokens.vocabulary import Vocabulary

from .conftest import Running

HI: list[Any] = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "additionalProperties": False}},
}


def said_exactly(text: str) -> Any:
    """A response format that leaves the model only this text, as a JSON string."""
    return {"type": "json_schema", "json_schema": {"name": "exact", "schema": {"const": text}}}


@pytest.fixture(scope="module")
def vocabulary(running: Running) -> Vocabulary:
    return running.models.get("tiny", "local").vocabulary


@pytest.fixture(scope="module")
def only_a(vocabulary: Vocabulary) -> dict[str, int]:
    """A bias under which the model writes nothing but a's."""
    return {str(vocabulary.encode_text("a")[0]): 100}


@pytest.fixture(scope="module")
def at_once(vocabulary: Vocabulary) -> dict[str, int]:
    """A bias under which the model ends its turn at once."""
    return {str(vocabulary.end_turn_id): 100}


def test_a_completion_has_every_field_that_clients_read(client: OpenAI, only_a: dict[str, int]) -> None:
    made = client.chat.completions.create(model="tiny", messages=HI, max_tokens=7, logit_bias=only_a)
    assert made.id.startswith("chatcmpl-") and made.object == "chat.completion" and made.model == "tiny"
    assert isinstance(made.created, int) and made.system_fingerprint
    (choice,) = made.choices
    assert choice.message.content == "a" * 7 and choice.message.role == "assistant" and choice.index == 0
    assert choice.finish_reason == "length" and "logprobs" in choice.model_fields_set and choice.logprobs is None
    usage = made.usage
    assert usage is not None and usage.completion_tokens == 7 and usage.total_tokens == usage.prompt_tokens + 7
    assert usage.prompt_tokens == len("hi") + 3  # its turn has an opening and a closing token, and the answer an opening one
    assert usage.prompt_tokens_details is not None and usage.prompt_tokens_details.cached_tokens is not None
    assert usage.completion_tokens_details is not None and usage.completion_tokens_details.reasoning_tokens == 0


def test_the_end_of_a_turn_is_a_stop(client: OpenAI, at_once: dict[str, int]) -> None:
    made = client.chat.completions.create(model="tiny", messages=HI, logit_bias=at_once)
    assert made.choices[0].finish_reason == "stop" and made.choices[0].message.content == ""


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit_count(client: OpenAI, only_a: dict[str, int], name: str) -> None:
    limit: dict[str, Any] = {name: 3}
    assert (
        client.chat.completions.create(model="tiny", messages=HI, logit_bias=only_a, **limit).choices[0].message.content == "aaa"
    )


def test_a_repeated_prompt_is_found_in_the_cache(client: OpenAI) -> None:
    long = [{"role": "user", "content": "cached " * 60}]
    details = [client.chat.completions.create(model="tiny", messages=long, max_tokens=1).usage for _ in range(2)]  # type: ignore[arg-type]
    cached = [usage.prompt_tokens_details.cached_tokens for usage in details if usage and usage.prompt_tokens_details]
    assert cached[0] == 0 and (cached[1] or 0) >= 384


def test_a_seed_gives_the_same_choices_whoever_else_is_there(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 12, "seed": 7}
    three = client.chat.completions.create(**ask, n=3)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in three.choices]
    assert len(set(texts)) == 3
    assert client.chat.completions.create(**ask).choices[0].message.content == texts[0]
    assert [c.message.content for c in client.chat.completions.create(**ask, n=3).choices] == texts


def test_temperature_zero_is_the_likeliest_text(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 12, "temperature": 0}
    assert len({client.chat.completions.create(**ask, seed=seed).choices[0].message.content for seed in range(3)}) == 1


def test_logprobs_name_each_token_and_its_rivals(client: OpenAI) -> None:
    made = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=8, logprobs=True, top_logprobs=5, temperature=0, seed=1
    )
    content = made.choices[0].logprobs.content if made.choices[0].logprobs else None
    assert content and all(len(entry.top_logprobs) == 5 and entry.logprob <= 0 for entry in content)
    assert all(entry.top_logprobs[0].logprob == pytest.approx(entry.logprob, abs=1e-3) for entry in content)
    data = bytes(b for entry in content for b in entry.bytes or [])
    assert data.decode("utf-8", "replace") == made.choices[0].message.content
    # With a seed: any other might end its turn at once, with no token to show.
    bare = client.chat.completions.create(model="tiny", messages=HI, max_tokens=3, logprobs=True, temperature=0, seed=1)
    none = bare.choices[0].logprobs
    assert none is not None and none.content is not None and none.content[0].top_logprobs == []


def test_a_stop_string_ends_the_text_before_it(client: OpenAI) -> None:
    made = client.chat.completions.create(
        model="tiny", messages=HI, response_format=said_exactly("one STOP two"), stop=["nothing", "STOP"]
    )
    assert made.choices[0].message.content == '"one ' and made.choices[0].finish_reason == "stop"


def test_control_tokens_in_content_stay_text(client: OpenAI) -> None:
    plain = client.responses.input_tokens.count(model="tiny", input="x" * len("<|end_turn|>"))
    marked = client.responses.input_tokens.count(model="tiny", input="<|end_turn|>")
    assert plain.input_tokens == marked.input_tokens


def test_a_text_that_cannot_fit_is_refused_before_its_tokens_are_found(client: OpenAI) -> None:
    for role in ("user", "system"):
        messages: Any = [{"role": role, "content": "x" * 10_000_000}]
        with pytest.raises(openai.BadRequestError, match="10000000 characters") as error:
            client.chat.completions.create(model="tiny", messages=messages)
        assert error.value.code == "context_length_exceeded"


def test_content_may_come_in_parts(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    ask: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "seed": 5}
    whole = client.chat.completions.create(messages=[{"role": "user", "content": "ab"}], **ask)
    pieces = client.chat.completions.create(messages=[{"role": "user", "content": parts}], **ask)  # type: ignore[list-item]
    assert whole.choices[0].message.content == pieces.choices[0].message.content


def test_a_model_without_dialogue_goes_on_with_the_text(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": "base", "max_tokens": 6, "seed": 5}
    chat = client.chat.completions.create(messages=[{"role": "user", "content": "once upon"}], **ask)
    assert chat.usage is not None and chat.usage.prompt_tokens == len("once upon")


class Forecast(BaseModel):
    """What the model must write."""

    city: str
    degrees: int


@pytest.mark.parametrize("seed", range(3))
def test_a_schema_is_kept(client: OpenAI, seed: int) -> None:
    schema = WEATHER["function"]["parameters"]
    form: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": schema, "strict": True}}
    made = client.chat.completions.create(model="tiny", messages=HI, response_format=form, seed=seed, max_tokens=400)
    assert made.choices[0].finish_reason == "stop"
    data = json.loads(made.choices[0].message.content or "")
    assert data["city"] in ("Rome", "Oslo") and 0 <= data["days"] <= 9


def test_the_sdk_parses_into_a_class(client: OpenAI) -> None:
    for seed in range(40):
        made = client.chat.completions.create(
            model="tiny",
            messages=HI,
            seed=seed,
            max_tokens=300,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "Forecast", "schema": Forecast.model_json_schema(), "strict": True},
            },
        )
        if made.choices[0].finish_reason == "stop":
            Forecast.model_validate_json(made.choices[0].message.content or "")
            return
    pytest.fail("no text came to its end")


def test_json_mode_gives_an_object(client: OpenAI) -> None:
    made = client.chat.completions.create(model="tiny", messages=HI, response_format={"type": "json_object"}, max_tokens=30)
    assert (made.choices[0].message.content or "").startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_that_is_asked_for_comes(client: OpenAI, choice: Any) -> None:
    made = client.chat.completions.create(
        model="tiny", messages=HI, tools=[WEATHER, CLOCK], tool_choice=choice, parallel_tool_calls=False, seed=2
    )
    message = made.choices[0].message
    assert made.choices[0].finish_reason == "tool_calls" and message.content is None
    assert message.tool_calls is not None and len(message.tool_calls) == 1
    call: Any = message.tool_calls[0]
    assert call.id.startswith("call_") and call.type == "function" and isinstance(call.function.arguments, str)
    arguments = json.loads(call.function.arguments)
    if isinstance(choice, dict):
        assert call.function.name == "get_weather"
    assert call.function.name == "get_time" or set(arguments) == {"city", "days"}


def test_a_stop_string_leaves_a_call_whole(client: OpenAI) -> None:
    made = client.chat.completions.create(
        model="tiny", messages=HI, tools=[CLOCK], tool_choice="required", parallel_tool_calls=False, seed=2, stop=["}", "name"]
    )
    assert made.choices[0].finish_reason == "tool_calls" and made.choices[0].message.tool_calls
    call: Any = made.choices[0].message.tool_calls[0]
    assert call.function.name == "get_time" and isinstance(json.loads(call.function.arguments), dict)


def test_tools_that_must_not_be_called_are_not(client: OpenAI) -> None:
    for seed in range(5):
        made = client.chat.completions.create(
            model="tiny", messages=HI, tools=[WEATHER], tool_choice="none", seed=seed, max_tokens=20
        )
        assert made.choices[0].message.tool_calls is None


def test_parallel_calls_have_ids_of_their_own_and_results_find_them(client: OpenAI) -> None:
    made = client.chat.completions.create(
        model="tiny", messages=HI, tools=[CLOCK], tool_choice="required", seed=3, max_tokens=250
    )
    calls: Any = made.choices[0].message.tool_calls
    assert calls and len({call.id for call in calls}) == len(calls)
    message = made.choices[0].message.model_dump(exclude_none=True)
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "noon"} for call in message["tool_calls"]]
    then = client.chat.completions.create(model="tiny", messages=[*HI, message, *results], tools=[CLOCK], max_tokens=4)
    assert then.usage is not None and made.usage is not None and then.usage.prompt_tokens > made.usage.prompt_tokens


@pytest.mark.parametrize("arguments", ["", '{"city": "Ro'])
def test_a_call_that_was_cut_off_can_be_sent_back_with_the_error_that_it_gave(client: OpenAI, arguments: str) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    error = "The arguments are not valid JSON."
    messages: Any = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": error},
    ]
    then = client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER], max_tokens=4)
    called = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": arguments}
    items: Any = [*HI, called, {"type": "function_call_output", "call_id": "call_1", "output": error}]
    tool: Any = {"type": "function", **WEATHER["function"]}
    again = client.responses.create(model="tiny", input=items, tools=[tool], max_output_tokens=4)
    assert then.usage is not None and again.usage is not None
    assert then.usage.prompt_tokens == again.usage.input_tokens


def chunks_of(client: OpenAI, **ask: Any) -> list[ChatCompletionChunk]:
    return list(client.chat.completions.create(model="tiny", messages=HI, stream=True, **ask))


def raw_events(running: Running, body: dict[str, Any]) -> Iterator[str]:
    with httpx2.stream("POST", running.url + "/chat/completions", json=body, timeout=30) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-accel-buffering"] == "no"
        assert "content-length" not in answer.headers and answer.headers["x-request-id"].startswith("req_")
        yield from (line for line in answer.iter_lines() if line)


def test_a_stream_is_what_the_api_promises_line_by_line(running: Running, only_a: dict[str, int]) -> None:
    body = {"model": "tiny", "messages": HI, "max_tokens": 4, "stream": True, "n": 2, "logit_bias": only_a}
    lines = list(raw_events(running, body | {"stream_options": {"include_usage": True}}))
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 8
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    for index in (0, 1):
        choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert choices[0]["delta"]["role"] == "assistant" and choices[0]["delta"]["content"] == ""
        assert not any("role" in choice["delta"] for choice in choices[1:])
        assert choices[-1]["delta"] == {} and choices[-1]["finish_reason"] == "length"
        assert all(choice["finish_reason"] is None for choice in choices[:-1])
        assert "".join(choice["delta"].get("content") or "" for choice in choices) == "aaaa"


def test_without_being_asked_a_stream_says_nothing_of_usage(running: Running) -> None:
    lines = list(raw_events(running, {"model": "tiny", "messages": HI, "max_tokens": 2, "stream": True}))
    assert not any("usage" in json.loads(line[6:]) for line in lines[:-1])


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_says_what_the_whole_would_have_said(client: OpenAI, seed: int) -> None:
    ask: dict[str, Any] = {"seed": seed, "max_tokens": 30, "logprobs": True, "top_logprobs": 1}
    whole = client.chat.completions.create(model="tiny", messages=HI, **ask).choices[0]
    pieces = [chunk.choices[0] for chunk in chunks_of(client, **ask)]
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.message.content
    entries = [entry for piece in pieces if piece.logprobs for entry in piece.logprobs.content or []]
    assert whole.logprobs is not None and [e.token for e in entries] == [e.token for e in whole.logprobs.content or []]


def test_a_stream_splits_no_character_and_leaks_no_stop_string(client: OpenAI) -> None:
    text = "naïve 🙂 日本 STO STOP never"
    pieces = [
        chunk.choices[0].delta.content or "" for chunk in chunks_of(client, response_format=said_exactly(text), stop="STOP")
    ]
    assert "".join(pieces) == '"naïve 🙂 日本 STO ' and not any("\ufffd" in piece for piece in pieces)


def test_a_streamed_call_begins_with_its_name_and_goes_on_with_arguments(client: OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    chunks = chunks_of(client, tools=[WEATHER], tool_choice=choice, seed=4)
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    first = deltas[0]
    assert first.index == 0 and first.id and first.type == "function"
    assert first.function is not None and first.function.name == "get_weather" and first.function.arguments == ""
    for delta in deltas[1:]:
        assert delta.index == 0 and delta.id is None and delta.type is None
        assert delta.function is not None and delta.function.name is None and delta.function.arguments
    arguments = "".join(delta.function.arguments or "" for delta in deltas if delta.function)
    assert set(json.loads(arguments)) == {"city", "days"} and len(deltas) > 3
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_sdks_stream_helper_gathers_a_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=HI, response_format=said_exactly("fine")) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds and "content.done" in kinds
    assert final.choices[0].message.content == '"fine"'


def test_stored_completions_can_be_listed_changed_and_deleted(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny", "max_tokens": 2, "store": True}
    made = [
        client.chat.completions.create(messages=[{"role": "user", "content": f"number {i}"}], metadata={"topic": f"t{i}"}, **ask)
        for i in range(3)
    ]
    unstored = client.chat.completions.create(model="tiny", messages=HI, max_tokens=2)
    ids = [completion.id for completion in client.chat.completions.list(limit=2)]
    assert ids[-3:] == [completion.id for completion in made] and unstored.id not in ids
    assert [c.id for c in client.chat.completions.list(metadata={"topic": "t1"})] == [made[1].id]
    assert client.chat.completions.list(limit=1, order="desc").data[0].id == made[2].id
    got = client.chat.completions.retrieve(made[0].id)
    assert got.choices == made[0].choices and got.metadata == {"topic": "t0"}
    assert client.chat.completions.update(made[0].id, metadata={"topic": "new"}).metadata == {"topic": "new"}
    (message,) = client.chat.completions.messages.list(made[0].id)
    assert message.content == "number 0" and message.role == "user" and message.id
    assert client.chat.completions.delete(made[0].id).deleted
    assert made[0].id not in [c.id for c in client.chat.completions.list()]


def test_reasoning_stays_out_of_the_content(client: OpenAI, vocabulary: Vocabulary) -> None:
    think = {str(vocabulary.control("<|think|>")): 100}
    made = client.chat.completions.create(model="tiny", messages=HI, logit_bias=think, max_tokens=5, reasoning_effort="low")
    message = made.choices[0].message.model_dump()
    assert message["content"] == "" and not message.get("reasoning")
    assert made.usage is not None and made.usage.completion_tokens_details is not None
    assert made.usage.completion_tokens_details.reasoning_tokens == 4
