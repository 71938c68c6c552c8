"""Responses by the SDK: every event in its order, memory, background, cancellation; conversations with their items."""

from __future__ import annotations

import asyncio
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tessera.engine.sampling import SamplingParams
from tessera.serve.generation import Caller, Generation, Order
from tessera.serve.metrics import Metrics
from tessera.serve.response_events import Writer
from tessera.serve.responses import _shortened
from tessera.tokens.chat import Message
from tessera.tokens.vocabulary import Vocabulary

from .conftest import Running, wait_for

FIELDS = [
    "id", "object", "created_at", "status", "background", "error", "incomplete_details", "instructions", "max_output_tokens",
    "metadata", "model", "output", "parallel_tool_calls", "previous_response_id", "reasoning", "service_tier", "temperature",
    "text", "tool_choice", "tools", "top_p", "truncation", "usage", "user", "store", "conversation", "top_logprobs",
    "max_tool_calls",
]  # fmt: skip
CLOCK: Any = {
    "type": "function",
    "name": "get_time",
    "parameters": {"type": "object", "properties": {"zone": {"enum": ["here", "there"]}}, "required": ["zone"]},
    "strict": False,
}


def exactly(text: str) -> Any:
    return {"format": {"type": "json_schema", "name": "exact", "schema": {"const": text}}}


@pytest.fixture(scope="module")
def vocabulary(running: Running) -> Vocabulary:
    return running.models.get("tiny", "local").vocabulary


def test_a_response_echoes_what_was_asked(running: Running) -> None:
    asked = {"model": "tiny", "input": "hi", "instructions": "be kind", "temperature": 0.5, "metadata": {"a": "b"}, "user": "me"}
    made = httpx2.post(running.url + "/responses", json=asked | {"text": exactly("fine"), "top_p": 0.9}, timeout=30).json()
    assert [field for field in FIELDS if field not in made] == []
    assert made["id"].startswith("resp_") and made["object"] == "response" and made["status"] == "completed"
    assert made["instructions"] == "be kind" and made["temperature"] == 0.5 and made["metadata"] == {"a": "b"}
    (message,) = made["output"]
    assert message["id"].startswith("msg_") and message["role"] == "assistant" and message["status"] == "completed"
    assert message["content"] == [{"type": "output_text", "text": '"fine"', "annotations": [], "logprobs": []}]
    usage = made["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens_details"]["cached_tokens"] >= 0 and usage["output_tokens_details"]["reasoning_tokens"] == 0


def test_a_response_that_is_cut_off_is_incomplete(client: OpenAI) -> None:
    made = client.responses.create(model="tiny", input="hi", max_output_tokens=3, text=exactly("a long text"))
    assert made.status == "incomplete" and made.incomplete_details and made.incomplete_details.reason == "max_output_tokens"
    assert made.output_text == '"a '


def test_the_events_of_a_text_come_in_order(running: Running) -> None:
    body = {"model": "tiny", "input": "hi", "stream": True, "text": exactly("ok"), "include": ["message.output_text.logprobs"]}
    with httpx2.stream("POST", running.url + "/responses", json=body, timeout=30) as answer:
        lines = [line for line in answer.iter_lines() if line]
    names, events = lines[::2], [json.loads(line[6:]) for line in lines[1::2]]
    assert [name[7:] for name in names] == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * deltas, "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    added = events[2]
    assert added["item"]["content"] == [] and added["output_index"] == 0 and added["item"]["status"] == "in_progress"
    parts = events[3:-2]
    assert {event["item_id"] for event in parts} == {added["item"]["id"]} and {event["output_index"] for event in parts} == {0}
    assert events[3]["part"]["text"] == "" and all(isinstance(event["logprobs"], list) for event in parts[1:-1])
    assert sum(len(event["logprobs"]) for event in parts[1:-2]) == len('"ok"')
    assert "".join(event["delta"] for event in parts[1:-2]) == parts[-2]["text"] == '"ok"'
    last = events[-1]["response"]
    assert last["output"][0]["content"][0]["text"] == '"ok"' and last["usage"]["output_tokens"] > 0


def test_the_sdks_stream_helper_gathers_the_response(client: OpenAI) -> None:
    with client.responses.stream(model="tiny", input="hi", text=exactly("fine")) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and final.output_text == '"fine"' and final.status == "completed"


def test_a_call_streams_its_arguments_and_its_result_goes_back(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny", "input": "what time is it?", "tools": [CLOCK], "parallel_tool_calls": False}
    ask["extra_body"] = {"seed": 1}
    events = list(client.responses.create(tool_choice={"type": "function", "name": "get_time"}, stream=True, **ask))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[2] == "output_item.added" and kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    added: Any = events[2]
    assert added.item.type == "function_call" and added.item.arguments == "" and added.item.id.startswith("fc_")
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    done: Any = events[-3]
    assert "".join(deltas) == done.arguments and done.name == "get_time" and json.loads(done.arguments)["zone"]
    response: Any = events[-1]
    call = response.response.output[0]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "noon"}
    then = client.responses.create(
        model="tiny", input=[result], previous_response_id=response.response.id, tools=[CLOCK], max_output_tokens=4
    )  # type: ignore[call-overload]
    assert then.previous_response_id == response.response.id
    echoed = [{"role": "user", "content": "what time is it?"}, call.model_dump(exclude_none=True), result]
    again: Any = client.responses.create(model="tiny", input=echoed, tools=[CLOCK], max_output_tokens=4)  # type: ignore[arg-type]
    assert again.usage.input_tokens == then.usage.input_tokens


def test_reasoning_is_an_item_before_the_message(client: OpenAI, vocabulary: Vocabulary) -> None:
    # A grammar that allows thinking first; a seed is looked for under which the random model does.
    for seed in range(60):
        made = client.responses.create(
            model="tiny",
            input="hi",
            text=exactly("x"),
            reasoning={"effort": "low"},
            extra_body={"seed": seed},
            max_output_tokens=300,
        )
        if len(made.output) == 2:
            reasoning, message = made.output
            assert reasoning.type == "reasoning" and reasoning.id.startswith("rs_") and reasoning.summary == []
            assert message.type == "message" and made.output_text == '"x"'
            assert made.usage is not None and made.usage.output_tokens_details.reasoning_tokens > 0
            return
    pytest.fail("this random model never thought")


def test_a_response_goes_on_from_the_one_before(client: OpenAI) -> None:
    first = client.responses.create(model="tiny", input="my name is Ada", text=exactly("hello"))
    second = client.responses.create(model="tiny", input="who am I?", previous_response_id=first.id, text=exactly("Ada"))
    third = client.responses.create(model="tiny", input="and now?", previous_response_id=second.id, max_output_tokens=2)
    told = [
        {"role": "user", "content": "my name is Ada"},
        {"role": "assistant", "content": '"hello"'},
        {"role": "user", "content": "who am I?"},
        {"role": "assistant", "content": '"Ada"'},
        {"role": "user", "content": "and now?"},
    ]
    assert third.usage is not None
    count = client.responses.input_tokens.count(model="tiny", input=told)  # type: ignore[arg-type]
    assert third.usage.input_tokens == count.input_tokens
    assert count.object == "response.input_tokens"


def test_a_response_is_kept_unless_it_must_not_be(client: OpenAI) -> None:
    kept = client.responses.create(model="tiny", input="keep", max_output_tokens=2)
    assert client.responses.retrieve(kept.id).output == kept.output
    items = list(client.responses.input_items.list(kept.id))
    assert len(items) == 1 and items[0].type == "message" and items[0].content[0].text == "keep"  # type: ignore[union-attr]
    client.responses.delete(kept.id)
    forgotten = client.responses.create(model="tiny", input="forget", max_output_tokens=2, store=False)
    for id in (kept.id, forgotten.id):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(id)


def test_items_can_be_referred_to_by_id(client: OpenAI) -> None:
    made = client.responses.create(model="tiny", input="hi", text=exactly("remember me"))
    reference: Any = [{"type": "item_reference", "id": made.output[0].id}, {"role": "user", "content": "again"}]
    assert client.responses.create(model="tiny", input=reference, max_output_tokens=1).usage
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="tiny", input=[{"type": "item_reference", "id": "msg_none"}])


def test_what_is_given_again_stays_where_it_was(client: OpenAI) -> None:
    first = client.responses.create(model="tiny", input="hi", text=exactly("one"))
    again: Any = [first.output[0].model_dump(exclude_none=True), {"role": "user", "content": "again"}]
    second = client.responses.create(model="tiny", input=again, max_output_tokens=1)
    client.responses.delete(second.id)
    reference: Any = [{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "and?"}]
    assert client.responses.create(model="tiny", input=reference, max_output_tokens=1).usage

    old = client.conversations.create(items=[{"role": "user", "content": "I am Bo"}, {"role": "user", "content": "and Ada"}])
    items = list(client.conversations.items.list(old.id, order="asc"))
    new = client.conversations.create()
    copied: Any = [{"type": "item_reference", "id": items[0].id}, items[1].model_dump(exclude_none=True)]
    client.responses.create(model="tiny", input=copied, conversation=new.id, max_output_tokens=1)
    assert list(client.conversations.items.list(old.id, order="asc")) == items
    texts = [item.content[0].text for item in client.conversations.items.list(new.id, order="asc")]  # type: ignore[union-attr]
    assert texts[:2] == ["I am Bo", "and Ada"] and len(texts) == 3


def test_half_of_a_surrogate_pair_is_taken_as_a_stranger(client: OpenAI, running: Running) -> None:
    raw = httpx2.Client(base_url=running.url, timeout=30, headers={"content-type": "application/json"})
    conversation = client.conversations.create()
    item = {"type": "message", "role": "user", "content": "hi \ud83d"}
    answer = raw.post(f"/conversations/{conversation.id}/items", content=json.dumps({"items": [item]}))
    assert answer.status_code == 200, answer.text
    (kept,) = client.conversations.items.list(conversation.id)
    assert kept.content[0].text == "hi \ufffd"  # type: ignore[union-attr]
    assert raw.post("/responses", content=json.dumps({"model": "\ud800", "input": "x"})).status_code == 404
    odd = {"model": "tiny", "input": "x", "max_output_tokens": 1, "tool_choice": "none"}
    odd["tools"] = [{"type": "function", "name": "f", "parameters": {"x": float("nan")}}]
    assert raw.post("/responses", content=json.dumps(odd)).status_code in (200, 400)


def test_a_background_response_is_polled(client: OpenAI) -> None:
    made = client.responses.create(model="tiny", input="hi", background=True, text=exactly("later"))
    assert made.status == "queued" and made.background and made.output == []
    assert wait_for(lambda: client.responses.retrieve(made.id).status == "completed")
    done = client.responses.retrieve(made.id)
    assert done.output_text == '"later"' and done.usage is not None


def test_a_background_response_can_be_followed_from_any_event(client: OpenAI) -> None:
    stream = client.responses.create(model="tiny", input="hi", background=True, stream=True, text=exactly("later"))
    events = list(stream)
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    id = events[0].response.id  # type: ignore[union-attr]
    again = list(client.responses.retrieve(id, stream=True, starting_after=3))
    assert [event.sequence_number for event in again] == list(range(4, len(events)))


def test_a_background_response_can_be_cancelled(client: OpenAI, running: Running, vocabulary: Vocabulary) -> None:
    endless = {"type": "array", "items": {"const": "again"}, "minItems": 200}
    form: Any = {"format": {"type": "json_schema", "name": "endless", "schema": endless}}
    with running.slowed():
        made = client.responses.create(model="tiny", input="hi", background=True, text=form)
        assert client.responses.cancel(made.id).status == "cancelled"
    assert client.responses.retrieve(made.id).status == "cancelled"
    assert client.responses.cancel(made.id).status == "cancelled"
    assert running.idle(2)
    done = client.responses.create(model="tiny", input="hi", max_output_tokens=1)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(done.id)


def test_responses_cancelled_at_any_moment_stay_cancelled_and_hold_no_slot(client: OpenAI, running: Running) -> None:
    draw = random.Random(0)

    def begin_and_cancel(_: int) -> tuple[str, str]:
        id = client.responses.create(model="tiny", input="hi", background=True, max_output_tokens=draw.choice((3, 40, 900))).id
        time.sleep(draw.random() * 0.03)
        try:
            return id, str(client.responses.cancel(id).status)
        except openai.BadRequestError:  # it was done before
            return id, ""

    with ThreadPoolExecutor(6) as pool:
        ended = list(pool.map(begin_and_cancel, range(48)))
    assert running.idle(20)
    told = {client.responses.retrieve(id).status for id, status in ended if status == ""}
    assert told <= {"completed", "incomplete"}
    cancelled = [id for id, status in ended if status == "cancelled"]
    assert len(cancelled) > 5 and {client.responses.retrieve(id).status for id in cancelled} == {"cancelled"}


def test_a_response_that_is_left_at_its_first_event_stops_the_engine(running: Running) -> None:
    served = running.models.get("tiny", "")
    assert running.idle()
    before = running.engine_tokens

    async def leave_early() -> None:
        caller = Caller("", {"started": 0.0}, Metrics(), lambda owner, tokens: None)
        order = Order([1], SamplingParams(max_tokens=900, stop_ids=()))
        events = Writer({"output": []}, Generation.start(served, [order], caller), False).events()
        assert (await anext(events))["type"] == "response.created"
        await events.aclose()
        assert await asyncio.to_thread(running.idle)

    with running.slowed():
        asyncio.run(leave_early())
    assert running.engine_tokens - before < 450


def test_what_is_too_long_is_refused_or_shortened_as_asked(client: OpenAI) -> None:
    turns: Any = [{"role": "user", "content": f"{i} " + "x" * 200} for i in range(8)]
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(model="tiny", input=turns)
    assert error.value.code == "context_length_exceeded"
    assert client.responses.create(model="tiny", input=turns, truncation="auto", max_output_tokens=2).usage


def test_thousands_of_turns_are_shortened_in_seconds(client: OpenAI) -> None:
    turns: Any = [{"role": role, "content": "words " * 50} for role in ("user", "assistant") * 1000]
    made = client.responses.create(
        model="tiny", instructions="Be short.", input=turns, truncation="auto", max_output_tokens=2, store=False
    )
    head = client.responses.input_tokens.count(model="tiny", instructions="Be short.", input=turns[-3:])
    assert made.usage is not None and made.usage.input_tokens == head.input_tokens, "as many as fit, and the instructions"


def test_a_result_goes_with_its_call_when_turns_are_left_out() -> None:
    system, call, result, end = (Message(role, role) for role in ("system", "assistant", "tool", "user"))
    assert _shortened([system, end, call, result, result, end]) == [
        [system, end, call, result, result, end], [system, call, result, result, end], [system, end], [end],
    ]  # fmt: skip
    assert _shortened([system]) == [[system]] and _shortened([call, result]) == [[call, result]]


def test_a_conversation_remembers(client: OpenAI) -> None:
    conversation = client.conversations.create(metadata={"of": "test"}, items=[{"role": "user", "content": "I am Bo"}])
    assert conversation.id.startswith("conv_") and conversation.object == "conversation"
    made = client.responses.create(model="tiny", input="who?", conversation=conversation.id, text=exactly("Bo"))
    assert made.conversation is not None and made.conversation.id == conversation.id
    items = list(client.conversations.items.list(conversation.id, order="asc"))
    assert [item.role for item in items if item.type == "message"] == ["user", "user", "assistant"]
    assert items[-1].id == made.output[0].id
    then = client.responses.create(model="tiny", input="and?", conversation={"id": conversation.id}, max_output_tokens=1)
    told: Any = [("user", "I am Bo"), ("user", "who?"), ("assistant", '"Bo"'), ("user", "and?")]
    count = client.responses.input_tokens.count(model="tiny", input=[{"role": r, "content": c} for r, c in told])
    assert then.usage is not None and then.usage.input_tokens == count.input_tokens


def test_conversations_and_their_items_can_be_managed(client: OpenAI) -> None:
    conversation = client.conversations.create()
    added = client.conversations.items.create(
        conversation.id, items=[{"type": "message", "role": "user", "content": f"{i}"} for i in range(5)]
    )
    assert [item.content[0].text for item in added.data] == ["0", "1", "2", "3", "4"]  # type: ignore[union-attr]
    page = client.conversations.items.list(conversation.id, limit=2)
    assert [item.id for item in page.data] == [added.data[4].id, added.data[3].id] and page.has_more
    assert len(list(client.conversations.items.list(conversation.id, limit=2))) == 5
    first: Any = added.data[0]
    assert client.conversations.items.retrieve(first.id, conversation_id=conversation.id) == first
    assert client.conversations.items.delete(first.id, conversation_id=conversation.id).id == conversation.id
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.retrieve(first.id, conversation_id=conversation.id)
    assert client.conversations.update(conversation.id, metadata={"k": "v"}).metadata == {"k": "v"}
    assert client.conversations.retrieve(conversation.id).metadata == {"k": "v"}
    assert client.conversations.delete(conversation.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.list(conversation.id)
