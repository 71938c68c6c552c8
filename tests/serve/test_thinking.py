"""A served model that was trained to think: effort is a budget of tokens, its thought is hidden and counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tessera.serve.app import Settings
from tessera.tokens.vocabulary import Vocabulary

from .conftest import make_model, serving

BUDGETS = {"low": 2, "medium": 6, "high": 20}
HI: Any = [{"role": "user", "content": "hi"}]
# The random model neither closes its thought by itself nor ends its turn.
VOCABULARY = Vocabulary.train(["a byte is enough"], 256)
ENDLESS = {str(VOCABULARY.control(name)): -100 for name in ("<|/think|>", "<|endoftext|>", "<|end_turn|>")}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = make_model(tmp_path_factory.mktemp("models") / "thinker", thinking=BUDGETS)
    with serving(Settings(tmp_path_factory.mktemp("data")), folder) as server:
        yield server.client()


def ask(client: OpenAI, most: int = 40, **more: Any) -> Any:
    return client.chat.completions.create(
        model="thinker", messages=HI, max_completion_tokens=most, logit_bias=ENDLESS, seed=1, **more
    )


@pytest.mark.parametrize(
    ("asked", "tokens"), [("low", 2), ("medium", 6), ("high", 20), ("xhigh", 20), (None, 6), ("none", 0), ("minimal", 0)]
)
def test_effort_is_a_budget_of_thought_that_is_counted_and_not_shown(thinker: OpenAI, asked: str | None, tokens: int) -> None:
    made = ask(thinker, **({} if asked is None else {"reasoning_effort": asked}))
    # The mark that closes a thought is counted with it, the one that opens it is not.
    assert made.usage.completion_tokens_details.reasoning_tokens == (tokens and tokens + 1)
    assert made.usage.completion_tokens == 40
    message = made.choices[0].message.model_dump()
    assert message["content"] and not message.get("reasoning") and not message.get("reasoning_content")


def test_a_thought_is_shown_to_whom_asks_for_it_whole_or_as_it_comes(thinker: OpenAI) -> None:
    more: Any = {"reasoning_effort": "high", "extra_body": {"include_reasoning": True}}
    whole = ask(thinker, **more).choices[0].message
    assert whole.reasoning and whole.reasoning == whole.reasoning_content
    deltas = [chunk.choices[0].delta.model_dump() for chunk in ask(thinker, stream=True, **more)]
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == whole.reasoning
    assert "".join(delta.get("content") or "" for delta in deltas) == whole.content
    hidden = [chunk.choices[0].delta.model_dump() for chunk in ask(thinker, stream=True, reasoning_effort="high")]
    assert not any(delta.get("reasoning") for delta in hidden)
    assert "".join(delta.get("content") or "" for delta in hidden) == whole.content


@pytest.mark.parametrize("effort", [None, "none", "high"])
def test_tokens_are_counted_with_the_effort(thinker: OpenAI, effort: Any) -> None:
    more = {} if effort is None else {"reasoning": {"effort": effort}}
    made = thinker.responses.create(model="thinker", input="hi", max_output_tokens=1, **more)
    assert made.usage is not None
    assert thinker.responses.input_tokens.count(model="thinker", input="hi", **more).input_tokens == made.usage.input_tokens


def test_a_schema_holds_behind_a_thought(thinker: OpenAI) -> None:
    schema = {"name": "x", "schema": {"const": "x"}}
    made = thinker.chat.completions.create(
        model="thinker", messages=HI, reasoning_effort="high", seed=3, logit_bias=ENDLESS,
        response_format={"type": "json_schema", "json_schema": schema},  # type: ignore[arg-type]
    )  # fmt: skip
    assert made.choices[0].message.content == '"x"' and made.choices[0].finish_reason == "stop"
    assert made.usage is not None and made.usage.completion_tokens_details is not None
    assert made.usage.completion_tokens_details.reasoning_tokens == 21


def test_a_response_hides_its_thought_and_never_goes_on_from_it(thinker: OpenAI) -> None:
    def respond(**more: Any) -> Any:
        return thinker.responses.create(model="thinker", max_output_tokens=30, extra_body={"seed": 5}, **more)

    made = respond(input="hi", reasoning={"effort": "high"})
    thought, message = made.output
    assert (thought.type, message.type) == ("reasoning", "message") and not thought.content and thought.summary == []
    assert 0 < made.usage.output_tokens_details.reasoning_tokens <= 21
    shown = respond(input="hi", reasoning={"effort": "high", "summary": "auto"})
    assert shown.output[0].summary[0].text and shown.output_text == made.output_text
    assert not shown.output[0].content
    after: Any = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": made.output_text}]
    again = [{"role": "user", "content": "more"}]
    told = respond(input=[*after, *again], reasoning={"effort": "low"})
    for before in (made, shown):
        kept = respond(input=again, previous_response_id=before.id, reasoning={"effort": "low"})
        assert kept.usage.input_tokens == told.usage.input_tokens
    events = list(respond(input="hi", reasoning={"effort": "high"}, stream=True))
    assert not any("reasoning" in event.type for event in events)
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == made.output_text


def test_a_thought_comes_as_a_summary_event_by_event_to_whom_asks_for_one(thinker: OpenAI) -> None:
    asked: Any = {"model": "thinker", "input": "hi", "max_output_tokens": 30, "reasoning": {"effort": "high", "summary": "auto"}}
    events: Any = list(thinker.responses.create(**asked, stream=True, extra_body={"seed": 5}))
    told = [event for event in events if "reasoning" in event.type]
    kinds = [event.type.removeprefix("response.reasoning_summary_") for event in told]
    assert kinds == ["part.added", *["text.delta"] * (len(kinds) - 3), "text.done", "part.done"] and "text.delta" in kinds
    thought = events[-1].response.output[0]
    assert all((event.item_id, event.output_index, event.summary_index) == (thought.id, 0, 0) for event in told)
    text = thought.summary[0].text
    assert told[0].part.text == "" and told[-2].text == told[-1].part.text == text
    assert "".join(event.delta for event in told if event.type.endswith("delta")) == text
    added, done = (next(e for e in events if e.type == f"response.output_item.{what}") for what in ("added", "done"))
    assert added.item.summary == [] and done.item.summary[0].text == text
