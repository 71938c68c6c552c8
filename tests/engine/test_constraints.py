"""Constrained completions: always what the grammar says, always with an end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tessera.engine.constraints import MOST_WHITESPACE, Constraint, Grammars, IdRange
from tessera.engine.engine import Engine, Limits
from tessera.engine.request import Failed, Request
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.model.decoder import Decoder
from tessera.tokens.vocabulary import Vocabulary

Ask = Callable[..., tuple[int, Any]]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars(vocabulary: Vocabulary) -> Grammars:
    return Grammars(vocabulary)


def complete(engine: Engine, ask: Ask, constraint: Constraint, count: int = 8, **params: Any) -> list[Any]:
    heard = [ask(engine, [seed], SamplingParams(400, seed=seed, **params), constraint=constraint)[1] for seed in range(count)]
    ask(engine, [1], SamplingParams(50, seed=3))
    while engine.step():
        pass
    return heard


def test_a_random_model_writes_what_the_schema_says_and_ends_its_turn(
    long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask, grammars: Grammars
) -> None:
    texts = set()
    for heard in complete(Engine(long_decoder, vocabulary), ask, grammars.json_schema(SCHEMA)):
        completion = heard.end.completion
        made = json.loads(completion.text)
        assert set(made) == {"name", "size", "tags"} and len(made["name"]) <= 8 and 0 <= made["size"] <= 99
        assert len(made["tags"]) <= 3 and set(made["tags"]) <= {"red", "blue"}
        assert heard.end.reason == "stop" and completion.ids[-1] == vocabulary.end_turn_id
        assert "".join(event.text for event in heard.events[:-1]) == completion.text
        texts.add(completion.text)
    assert len(texts) == 8


def test_forced_tokens_are_not_learned_from_and_cost_no_draw(
    long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask, grammars: Grammars
) -> None:
    heard = complete(Engine(long_decoder, vocabulary), ask, grammars.regex('answer: (yes|no), as "always"'), 1)[0]
    record = heard.end.completion.record
    chosen = record.ids[record.learn]
    assert (
        vocabulary.decode_text(chosen) in ("y", "n")
        and np.flatnonzero(record.logprobs).tolist() == np.flatnonzero(record.learn).tolist()
    )
    assert heard.end.completion.text in ('answer: yes, as "always"', 'answer: no, as "always"')


def test_a_model_in_love_with_white_space_comes_to_an_end(
    long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask, grammars: Grammars
) -> None:
    bias = {i: 50.0 for i in range(vocabulary.text_size) if not vocabulary.bytes_of([i]).strip()}
    # Inside of a string white space is content, so the strings here are bounded.
    for heard in complete(Engine(long_decoder, vocabulary), ask, grammars.json_schema(SCHEMA), 4, bias=bias):
        text = heard.end.completion.text
        assert heard.end.reason == "stop" and max(map(len, re.findall(r"\s+", text))) == MOST_WHITESPACE
        json.loads(text)


def test_any_object_a_regular_expression_and_a_grammar(
    long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask, grammars: Grammars
) -> None:
    engine = Engine(long_decoder, vocabulary)
    # Its strings and numbers may be of any length; a closing sign that is likely ends them.
    bias = {ord_id: 4.0 for ord_id in vocabulary.encode_text('"}')}
    ended = [h.end.completion.text for h in complete(engine, ask, grammars.json_object(), bias=bias) if h.end.reason == "stop"]
    assert ended and all(isinstance(json.loads(text), dict) for text in ended)
    for heard in complete(engine, ask, grammars.regex(r"[ab]{3,5}c|[0-9]{4}")):
        assert re.fullmatch(r"[ab]{3,5}c|[0-9]{4}", heard.end.completion.text)
    for heard in complete(engine, ask, grammars.lark('start: "(" start ")" | "x" | "y"')):
        assert re.fullmatch(r"\(*[xy]\)*", heard.end.completion.text) or heard.end.reason == "length"


def test_control_tokens_cannot_be_asked_for(long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask, grammars: Grammars) -> None:
    user = vocabulary.control("<|user|>")
    engine = Engine(long_decoder, vocabulary)
    for grammar in ("start: <|user|>", f"start: <[{user}]>", f'start: "a" <[{user}]>'):
        try:
            heard = complete(engine, ask, grammars.lark(grammar), 1)[0]
        except UserError:
            continue
        assert user not in [getattr(event, "id", None) for event in heard.events]


def test_a_grammar_that_cannot_go_on_fails_alone(
    long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask, grammars: Grammars
) -> None:
    engine = Engine(long_decoder, vocabulary, Limits(rows=4))
    stuck = grammars.lark(f'start: "a" <[{vocabulary.control("<|user|>")}]>')
    _, other = ask(engine, [1], SamplingParams(20, seed=0, stop_ids=()))
    _, heard = ask(engine, [1], SamplingParams(20, seed=0), constraint=stuck)
    while engine.step():
        pass
    assert isinstance(heard.events[-1], Failed) and len(other.ids) == 20
    assert engine.stats().failed == 1 and engine.stats().cache_tokens == 0


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"$ref": "#"},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
        {"$ref": "#/$defs/missing"},
        {"$ref": "https://example.com/schema"},
        {"type": "string", "pattern": "(unclosed"},
        ["not", "an", "object"],
    ],
)
def test_a_schema_that_cannot_be_served_is_refused_in_one_sentence(grammars: Grammars, schema: Any) -> None:
    with pytest.raises(UserError) as refusal:
        grammars.json_schema(schema)
    message = str(refusal.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 300


def test_a_schema_nested_beyond_reason_is_refused(grammars: Grammars) -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(UserError, match="nested"):
        grammars.json_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"default": {"$ref": "#"}}},
        {"properties": {"const": {"$ref": "#/properties/const"}}},
        {"$ref": "#/$defs/enum", "$defs": {"enum": {"items": {"$ref": "#/$defs/enum"}}}},
        {"$ref": "#/$defs/a%20b", "$defs": {"a b": {"items": {"$ref": "#/$defs/a%20b"}}}},
        {"items": {"$ref": ""}},
        {"$id": "https://example.com/tree#", "items": {"$ref": "tree"}},
    ],
)
def test_a_schema_that_refers_to_itself_is_refused_whatever_its_names(grammars: Grammars, schema: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="refers to itself"):
        grammars.json_schema(schema)


@pytest.mark.parametrize("make", ["regex", "lark"])
def test_broken_expressions_and_grammars_are_refused_in_one_sentence(grammars: Grammars, make: str) -> None:
    with pytest.raises(UserError) as refusal:
        getattr(grammars, make)("start: (missing")
    assert "\n" not in str(refusal.value)


def test_references_that_lead_round_in_no_circle_are_served(
    long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask, grammars: Grammars
) -> None:
    pair = {"type": "array", "prefixItems": [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/n"}], "minItems": 2, "items": False}
    schema = {**pair, "$defs": {"n": {"enum": [1, 2], "default": {"$ref": "#"}}}}
    for heard in complete(Engine(long_decoder, vocabulary), ask, grammars.json_schema(schema), 3):
        assert set(json.loads(heard.end.completion.text)) <= {1, 2}


def test_a_range_of_ids_is_sampled_from_alone_and_closed(long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask) -> None:
    block = vocabulary.blocks[0]
    closing = vocabulary.control("<|/image|>")
    for heard in complete(Engine(long_decoder, vocabulary), ask, IdRange(block.offset, block.size, 12, closing), 3):
        ids = heard.ids
        assert len(ids) == 13 and ids[-1] == closing and heard.end.reason == "stop"
        assert all(block.offset <= i < block.offset + block.size for i in ids[:-1])


def test_a_grammar_may_name_the_control_tokens_that_it_is_given(
    long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask, grammars: Grammars
) -> None:
    opening, closing = vocabulary.control("<|tool_call|>"), vocabulary.control("<|/tool_call|>")
    rules = f"start: call+\ncall: <[{opening}]> {Grammars.json_rule(SCHEMA)} <[{closing}]>\n"
    for heard in complete(Engine(long_decoder, vocabulary), ask, grammars.lark(rules, (opening, closing)), 4):
        ids = heard.end.completion.ids.tolist()
        calls = ids.count(opening)
        assert ids[0] == opening and calls >= 1 and (heard.end.reason == "length" or ids.count(closing) == calls)
        first = ids[1 : ids.index(closing)] if closing in ids else None
        assert first is None or set(json.loads(vocabulary.decode_text(first))) == {"name", "size", "tags"}


def test_a_stop_string_ends_no_call_and_still_ends_the_text_beside_it(
    long_decoder: Decoder, vocabulary: Vocabulary, grammars: Grammars
) -> None:
    opening, closing = vocabulary.control("<|tool_call|>"), vocabulary.control("<|/tool_call|>")
    rules = f'start: call text\ncall: <[{opening}]> "a.b." <[{closing}]>\ntext: "c.d"\n'
    constraint, params = grammars.lark(rules, (opening, closing)), SamplingParams(40, seed=1, stop=("b.c", "."))
    (done,) = Engine(long_decoder, vocabulary).complete([Request((65,), params, constraint)])
    assert (done.text, done.finish_reason) == ("a.b.c", "stop")
    ids = done.ids.tolist()
    assert vocabulary.decode_text(ids[1 : ids.index(closing)]) == "a.b."
