"""Several answers to one question: those are given that most agree with, or the likeliest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tessera.engine.request import Token
from tessera.serve.answers import Answer
from tessera.serve.app import Settings
from tessera.serve.choosing import chosen, vote
from tessera.tokens.chat import ToolCall
from tessera.tokens.vocabulary import Vocabulary

from .conftest import make_model, serving

VOCABULARY = Vocabulary.train(["a byte is enough"], 256)


def answer(text: str, logprob: float = -1.0) -> Answer:
    return Answer(VOCABULARY, content=text, tokens=[Token(65, logprob, (), text)])


def test_the_majority_wins_in_its_likeliest_form_and_others_follow() -> None:
    answers = [answer("12"), answer("7", -0.1), answer(" 12.0 ", -0.5), answer("12", -2.0), answer("seven"), answer("7", -0.2)]
    assert chosen(answers, 3, "votes") == [(2, 3), (1, 2), (4, 1)]
    assert chosen(answers, 5, "votes")[3:] == [(0, 3), (5, 2)]
    assert chosen(answers, 2, "likelihood") == [(1, 2), (5, 2)]


def test_what_counts_as_the_same_answer() -> None:
    assert vote(answer("Yes,  it is")) == vote(answer("yes, it is")) != vote(answer("no"))
    assert vote(answer("1,000")) == vote(answer("1000")) != vote(answer("100"))
    calls = [Answer(VOCABULARY, calls=[ToolCall("add", arguments)]) for arguments in ('{"a": 1}', '{"a": 2}', '{"a": 1}')]
    assert vote(calls[0]) == vote(calls[2]) != vote(calls[1]) != vote(answer(""))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = make_model(tmp_path_factory.mktemp("models") / "many")
    with serving(Settings(tmp_path_factory.mktemp("data")), folder) as server:
        yield server.client()


def ask(client: OpenAI, **more: Any) -> Any:
    # Two tokens are left to choose from, so that answers agree.
    bias = {str(VOCABULARY.encode_text(letter)[0]): 100 for letter in "ab"}
    return client.chat.completions.create(
        model="many", messages=[{"role": "user", "content": "a or b?"}], max_completion_tokens=1, logit_bias=bias, seed=5, **more
    )


def test_a_chat_is_answered_by_the_majority(client: OpenAI) -> None:
    alone = [choice.message.content for choice in ask(client, n=9).choices]
    ((winner, count), *others) = Counter(alone).most_common()
    assert others and count > others[0][1]
    made = ask(client, extra_body={"best_of": 9})
    assert [c.message.content for c in made.choices] == [winner] and made.choices[0].votes == count
    assert made.usage.completion_tokens == 9
    both = ask(client, n=2, extra_body={"best_of": 9}).choices
    assert [(c.index, c.message.content, c.votes) for c in both] == [(0, winner, count), (1, others[0][0], 9 - count)]
    likely = ask(client, logprobs=True, n=9).choices
    best = max(likely, key=lambda choice: choice.logprobs.content[0].logprob)
    assert ask(client, extra_body={"best_of": 9, "choose": "likelihood"}).choices[0].message.content == best.message.content


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"n": 4, "extra_body": {"best_of": 2}}, "'best_of' must be at least 'n', 4."),
        ({"stream": True, "extra_body": {"best_of": 2}}, "'best_of' cannot be streamed."),
        ({"extra_body": {"best_of": 2, "choose": "luck"}}, "votes"),
    ],
)
def test_what_does_not_go_is_refused(client: OpenAI, more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, **more)
    assert sentence in error.value.message
