"""Text completions: what harnesses read (echo, log-probabilities) is what the model computes, and the gap is filled."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import openai
import pytest
import torch
from openai import OpenAI

from tessera.model import weights
from tessera.model.decoder import Decoder
from tessera.tokens.vocabulary import Vocabulary

from .conftest import Running


@pytest.fixture(scope="module")
def vocabulary(running: Running) -> Vocabulary:
    return running.models.get("base", "local").vocabulary


@pytest.fixture(scope="module")
def decoder(base_folder: Any) -> Decoder:
    return weights.load(base_folder)


def plain_logprobs(decoder: Decoder, ids: list[int]) -> torch.Tensor:
    """(T - 1, V): of what follows each token."""
    with torch.inference_mode():
        return torch.log_softmax(decoder.logits(decoder(torch.tensor([ids])))[0, :-1], dim=-1)


def test_a_completion_has_its_fields(client: OpenAI) -> None:
    made = client.completions.create(model="base", prompt="once", max_tokens=5, seed=1)
    assert (
        made.id.startswith("cmpl-") and made.object == "text_completion" and made.choices[0].finish_reason in ("length", "stop")
    )
    assert made.usage is not None and made.usage.prompt_tokens == 4
    assert "once" not in made.choices[0].text


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_echo_with_logprobs_is_the_models_own_opinion(
    client: OpenAI, decoder: Decoder, vocabulary: Vocabulary, max_tokens: int
) -> None:
    prompt = "The boat left."
    made = client.completions.create(
        model="base", prompt=prompt, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0, seed=1
    )
    choice = made.choices[0]
    told = choice.logprobs
    assert told is not None and told.tokens and told.token_logprobs and told.top_logprobs and told.text_offset
    assert choice.text.startswith(prompt) and told.tokens[: len(prompt)] == list(prompt)
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    ids = vocabulary.encode_text(prompt)
    expected = plain_logprobs(decoder, ids)
    for t in range(1, len(ids)):
        assert told.token_logprobs[t] == pytest.approx(float(expected[t - 1, ids[t]]), abs=1e-3)
        assert max(told.top_logprobs[t].values()) == pytest.approx(float(expected[t - 1].max()), abs=1e-3)
    assert told.text_offset[: len(prompt)] == list(range(len(prompt)))
    assert len(told.tokens) <= len(prompt) + max_tokens and len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs)


def test_echo_with_no_alternatives_has_each_tokens_own_logprob(client: OpenAI) -> None:
    made = client.completions.create(model="base", prompt="The boat.", echo=True, logprobs=0, max_tokens=1)
    told = made.choices[0].logprobs
    assert told is not None and told.token_logprobs and told.top_logprobs and told.token_logprobs[0] is None
    assert all(value is not None for value in told.token_logprobs[1:]) and all(len(top) == 1 for top in told.top_logprobs[1:])


def test_the_least_temperature_is_the_likeliest_token(client: OpenAI) -> None:
    said = [client.completions.create(model="base", prompt="a", temperature=t, max_tokens=4, seed=1) for t in (1e-40, 0)]
    assert said[0].choices[0].text == said[1].choices[0].text


def test_a_request_that_leaves_no_token_fails_and_others_go_on(client: OpenAI, vocabulary: Vocabulary) -> None:
    stream = client.completions.create(model="base", prompt="a", max_tokens=200, stream=True, logit_bias={"5": 100})
    next(iter(stream))
    banned = {str(id): -100 for id in range(vocabulary.size)}
    for body in ({"logit_bias": banned}, {"extra_body": {"repetition_penalty": 1e-300}}):
        with pytest.raises(openai.BadRequestError, match="No token is left to choose from"):
            client.completions.create(model="base", prompt="a", max_tokens=5, **body)
    with pytest.raises(openai.BadRequestError, match="No token is left to choose from"):
        client.responses.create(model="base", input="a", extra_body={"repetition_penalty": 1e-300})
    assert len(list(stream)) > 3


def test_prompts_may_be_many_and_may_be_ids(client: OpenAI, vocabulary: Vocabulary) -> None:
    ask: dict[str, Any] = {"model": "base", "max_tokens": 5, "seed": 3}
    texts = ["first", "second one"]
    many = client.completions.create(prompt=texts, n=2, **ask)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.usage is not None and many.usage.prompt_tokens == sum(map(len, texts))
    ids = client.completions.create(prompt=[vocabulary.encode_text(text) for text in texts], n=2, **ask)
    assert [choice.text for choice in ids.choices] == [choice.text for choice in many.choices]
    alone = client.completions.create(prompt=vocabulary.encode_text("first"), **ask)
    assert alone.choices[0].text == many.choices[0].text


def test_without_a_prompt_a_document_begins_and_no_text_can_pass_for_its_token(client: OpenAI) -> None:
    nothing = client.completions.create(model="base", prompt=None, max_tokens=1)
    spelled = client.completions.create(model="base", prompt="<|endoftext|>", max_tokens=1)
    assert nothing.usage is not None and nothing.usage.prompt_tokens == 1
    assert spelled.usage is not None and spelled.usage.prompt_tokens == len("<|endoftext|>")


def test_best_of_returns_the_likeliest(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": "base", "prompt": "x", "max_tokens": 6, "seed": 5, "logprobs": 0}
    all_four = client.completions.create(n=4, **ask).choices
    best = client.completions.create(n=1, best_of=4, **ask)

    def mean(choice: Any) -> float:
        return float(np.mean(choice.logprobs.token_logprobs))

    assert len(best.choices) == 1 and mean(best.choices[0]) == pytest.approx(max(map(mean, all_four)), abs=1e-4)


def test_offsets_are_places_in_the_text_also_where_characters_take_several_tokens(client: OpenAI, vocabulary: Vocabulary) -> None:
    (only_b,) = vocabulary.encode_text("b")
    ask: dict[str, Any] = {"model": "base", "max_tokens": 6, "logprobs": 0, "logit_bias": {str(only_b): 100}, "stop": "bbbbbbbb"}
    (made,) = client.completions.create(prompt="aä😀b", echo=True, **ask).choices
    assert made.logprobs is not None and made.text == "aä😀bbbbbbb"
    assert made.logprobs.text_offset == [0, 1, 1, 2, 2, 2, 2, *range(3, 10)]
    # The stop string is held back to the end, and the places are those of the tokens all the same.
    parts = [chunk.choices[0].logprobs for chunk in client.completions.create(prompt="a", stream=True, **ask)]
    assert [at for part in parts if part for at in part.text_offset or ()] == [*range(6)]


def test_echo_without_tokens_reads_only(client: OpenAI) -> None:
    made = client.completions.create(model="base", prompt="once", echo=True, max_tokens=0)
    assert made.choices[0].text == "once" and made.choices[0].logprobs is None
    assert made.usage is not None and (made.usage.prompt_tokens, made.usage.completion_tokens) == (4, 0)


def test_cached_tokens_of_all_prompts_count_as_their_tokens_do(client: OpenAI) -> None:
    prompts = ["once upon a time " * 20, "twice upon a time " * 20]
    ask: dict[str, Any] = {"model": "base", "prompt": prompts, "max_tokens": 1, "n": 2}
    client.completions.create(**ask)
    usage = client.completions.create(**ask).usage
    assert usage is not None and usage.prompt_tokens == sum(map(len, prompts)) and usage.prompt_tokens_details is not None
    assert 0.9 * usage.prompt_tokens < (usage.prompt_tokens_details.cached_tokens or 0) <= usage.prompt_tokens


def test_a_suffix_asks_for_what_lies_between(client: OpenAI, vocabulary: Vocabulary) -> None:
    made = client.completions.create(model="base", prompt="def f(", suffix="): pass", max_tokens=4)
    assert made.usage is not None and made.usage.prompt_tokens == len("def f(") + len("): pass") + 3


def test_a_stream_says_the_same(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": "base", "prompt": "once", "max_tokens": 20, "seed": 2, "logprobs": 1}
    whole = client.completions.create(**ask).choices[0]
    chunks = list(client.completions.create(stream=True, stream_options={"include_usage": True}, **ask))
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    pieces = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(piece.text for piece in pieces) == whole.text and pieces[-1].finish_reason == whole.finish_reason
    tokens = [token for piece in pieces if piece.logprobs for token in piece.logprobs.tokens or []]
    assert whole.logprobs is not None and tokens == whole.logprobs.tokens
    echoed = client.completions.create(model="base", prompt="once", max_tokens=1, echo=True, stream=True)
    assert next(iter(echoed)).choices[0].text == "once"


def test_embeddings_are_unit_vectors_in_the_order_of_the_inputs(client: OpenAI, running: Running, decoder: Decoder) -> None:
    texts = ["alpha", "be", "a much longer text than the others"]
    made = client.embeddings.create(model="base", input=texts)
    assert [item.index for item in made.data] == [0, 1, 2] and made.usage.prompt_tokens == sum(map(len, texts))
    vocabulary = running.models.get("base", "local").vocabulary
    for text, item in zip(texts, made.data, strict=True):
        with torch.inference_mode():
            mean = decoder(torch.tensor([vocabulary.encode_text(text)]))[0].mean(0)
        np.testing.assert_allclose(item.embedding, torch.nn.functional.normalize(mean, dim=0), atol=1e-5)
        assert np.linalg.norm(item.embedding) == pytest.approx(1, abs=1e-5)


def test_embeddings_come_as_base64_or_numbers_and_can_be_shortened(client: OpenAI) -> None:
    plain = client.embeddings.create(model="base", input="alpha", encoding_format="float").data[0].embedding
    coded: Any = client.embeddings.create(model="base", input="alpha", encoding_format="base64").data[0].embedding
    assert isinstance(coded, str)
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(coded), "<f4"), plain, atol=1e-6)
    short = client.embeddings.create(model="base", input="alpha", dimensions=8).data[0].embedding
    assert len(short) == 8 and np.linalg.norm(short) == pytest.approx(1, abs=1e-5)


@pytest.mark.skipif(not hasattr(OpenAI, "decisions"), reason="this SDK has no decisions (since 3.54)")
def test_decisions_are_the_models_probabilities(client: OpenAI, decoder: Decoder, running: Running) -> None:
    questions: Any = [
        {"type": "predicate", "name": "blue", "instructions": "The sky is blue."},
        {
            "type": "choice",
            "instructions": "Which?",
            "choices": [{"value": "a", "description": "first"}, {"value": True}, {"value": "true"}],
        },
        {"type": "score", "instructions": "How good?", "levels": [{"label": "bad"}, {"label": "fair"}, {"label": "good"}]},
    ]
    made = client.decisions.create(model="base", input="the sky", questions=questions)
    predicate, choice, score = made.answers
    assert predicate.type == "predicate" and predicate.name == "blue" and 0 <= predicate.probability <= 1
    assert choice.type == "choice" and [p.value for p in choice.probabilities] == ["a", True, "true"]
    assert sum(p.probability for p in choice.probabilities) == pytest.approx(1)
    assert choice.confidence == max(p.probability for p in choice.probabilities) and choice.name is None
    assert score.type == "score" and [(p.value, p.label) for p in score.probabilities] == [(0, "bad"), (1, "fair"), (2, "good")]
    assert score.score == pytest.approx(sum(p.value * p.probability for p in score.probabilities))
    assert made.usage.output_tokens == 0 and made.usage.input_tokens > 0
    vocabulary = running.models.get("base", "local").vocabulary
    prompt = vocabulary.encode_text("the sky\n\nThe sky is blue.\nAnswer with one of:\nyes\nno\n\n")
    sums = []
    for option in ("yes", "no"):
        ids = [*prompt, *vocabulary.encode_text(option), vocabulary.end_id]
        after = plain_logprobs(decoder, ids)[len(prompt) - 1 :]
        sums.append(float(sum(after[t, id] for t, id in enumerate(ids[len(prompt) :]))))
    assert predicate.probability == pytest.approx(np.exp(sums[0]) / np.exp(sums).sum(), abs=1e-4)


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert sorted(model.id for model in client.models.list()) == ["base", "tiny"]
    can = {"pictures": False, "films": False, "sounds": False, "fills": True, "thinking": {}}
    assert client.models.retrieve("tiny").model_extra.items() >= can.items()  # type: ignore[union-attr]
    model = client.models.retrieve("tiny")
    assert model.object == "model" and model.owned_by == "tessera" and model.created == 1_700_000_000
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/none")
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("tiny")
