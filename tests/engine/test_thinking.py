"""Thoughts: opened and, when their tokens are spent, closed by force; no part of the text; the answer keeps its constraint."""

from __future__ import annotations

import pytest

from tessera.engine.constraints import Grammars
from tessera.engine.engine import Engine
from tessera.engine.request import Request
from tessera.engine.sampling import SamplingParams
from tessera.engine.thinking import thinks, thought
from tessera.errors import UserError
from tessera.tokens.vocabulary import Vocabulary

BUDGETS = {"low": 0, "medium": 3, "high": 12}


@pytest.mark.parametrize("effort", BUDGETS)
def test_a_thought_is_opened_and_closed_by_force_and_only_what_was_chosen_is_learned(
    engine: Engine, vocabulary: Vocabulary, effort: str
) -> None:
    think = thought(vocabulary, BUDGETS, effort)
    # The model never closes it by itself, nor ends its turn.
    bias = dict.fromkeys((think.closing, think.opening, vocabulary.end_id, vocabulary.end_turn_id), -100.0)
    params = SamplingParams(think.tokens + 4, seed=1, bias=bias)
    (done,) = engine.complete([Request((65, 66), params, think)])
    ids, limit = done.ids.tolist(), BUDGETS[effort]
    assert ids[0] == think.opening and ids.index(think.closing) == limit + 1 and len(ids) == limit + 6
    chosen = done.record.learn[done.prompt_tokens :].tolist()
    assert chosen == [False] + [True] * limit + [False] + [True] * 4
    assert all(bool(logprob) == learned for logprob, learned in zip(done.logprobs.tolist(), chosen, strict=True))
    assert done.text == vocabulary.bytes_of(ids[limit + 2 :]).decode("utf-8", "replace")


def test_the_model_may_close_it_earlier_and_no_stop_string_in_it_counts(engine: Engine, vocabulary: Vocabulary) -> None:
    think = thought(vocabulary, BUDGETS, "high")
    (letter,) = vocabulary.encode_text("x")
    params = SamplingParams(20, 0, bias={letter: 100.0}, stop=("x",))
    (done,) = engine.complete([Request((65,), params, think)])
    assert done.ids.tolist() == [think.opening, *[letter] * 12, think.closing, letter]
    assert done.text == "" and done.finish_reason == "stop"
    (early,) = engine.complete([Request((65,), SamplingParams(4, 0, bias={think.closing: 100.0}), think)])
    assert early.ids.tolist()[:2] == [think.opening, think.closing]


def test_behind_a_thought_the_answer_keeps_its_constraint(engine: Engine, vocabulary: Vocabulary) -> None:
    grammar = Grammars(vocabulary).regex("(yes|no)")
    requests = [Request((65, n), SamplingParams(30, seed=n), thought(vocabulary, BUDGETS, "high", grammar)) for n in range(6)]
    said = [done for done in engine.complete(requests) if vocabulary.control("<|/think|>") in done.ids]
    assert said and {done.text for done in said} <= {"yes", "no"}


def test_a_model_that_was_not_taught_to_think_says_so(vocabulary: Vocabulary) -> None:
    assert thinks(vocabulary)
    with pytest.raises(UserError, match="not trained to think"):
        thought(vocabulary, {}, "low")
    with pytest.raises(UserError, match="write one of low, medium, high, or none"):
        thought(vocabulary, BUDGETS, "heroic")
