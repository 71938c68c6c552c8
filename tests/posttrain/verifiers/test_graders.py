"""OpenAI's graders: what they pay, what they say of what goes wrong, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tessera.errors import RunFailed, UserError
from tessera.posttrain.verifiers.graders import check, grade
from tessera.posttrain.verifiers.similarity import MEASURES
from tessera.sandbox.box import open_sandbox


def string(operation: str = "eq", text: str = "{{sample.output_text}}", reference: str = "{{ item.want }}") -> dict[str, Any]:
    return {"type": "string_check", "name": "same", "operation": operation, "input": text, "reference": reference}


def similar(metric: str) -> dict[str, Any]:
    texts = {"input": "{{sample.output_text}}", "reference": "{{item.want}}"}
    return {"type": "text_similarity", "name": "alike", "evaluation_metric": metric, **texts}


def python(source: str) -> dict[str, Any]:
    return {"type": "python", "name": "own", "source": source}


def multi(formula: str, **graders: Any) -> dict[str, Any]:
    return {"type": "multi", "name": "both", "graders": graders, "calculate_output": formula}


@pytest.mark.parametrize(
    ("grader", "answer", "reward"),
    [
        (string(), "Red", 1),
        (string(), "red", 0),
        (string("ne"), "red", 1),
        (string("like"), "a Red one", 1),
        (string("ilike"), "A RED ONE", 1),
        (string("eq", "{{sample.output_json.colour.0}}"), '{"colour": ["Red"]}', 1),
        (string("eq", "{{sample.output_json.colour}}"), "no JSON", 0),
        (multi("0.25 * a + max(b, 0.5)^2", a=string(), b=string("ne")), "Red", 0.5),
    ],
)
def test_graders_pay_what_is_said(grader: dict[str, Any], answer: str, reward: float) -> None:
    check(grader)
    found = grade(grader, answer, {"want": "Red"})
    assert found.reward == reward and not found.wrong


def test_measures_of_likeness_are_those_of_their_papers() -> None:
    same, other = "the cat sat on the mat", "dogs run"
    assert all(measure(same, same) == pytest.approx(1) for name, measure in MEASURES.items())
    assert all(measure(other, same) < 0.35 for measure in MEASURES.values())
    assert MEASURES["rouge_1"]("the cat", same) == pytest.approx(2 * 1 * (2 / 6) / (1 + 2 / 6))
    assert MEASURES["rouge_l"]("cat mat the", same) == pytest.approx(2 * 2 / 9)
    assert MEASURES["fuzzy_match"]("kitten", "sitting") == pytest.approx(2 * 4 / 13)
    assert MEASURES["gleu"]("the cat", same) == pytest.approx(3 / (6 + 5 + 4 + 3))
    assert MEASURES["bleu"]("the cat sat", same) < MEASURES["bleu"]("the cat sat on the", same) < 1


def test_a_python_grader_runs_in_the_sandbox_and_cannot_name_its_own_number() -> None:
    try:
        open_sandbox()
    except RunFailed as error:
        pytest.skip(str(error))
    source = "def grade(sample, item):\n    return len(sample['output_text']) / item['most']\n"
    assert grade(python(source), "abc", {"most": 4}).reward == 0.75
    for body in ("raise AssertionError('1.0')", "return 'much'", "return float('inf')", "open('/etc/passwd')"):
        found = grade(python(f"def grade(sample, item):\n    {body}\n"), "abc", {})
        assert found.reward == 0 and found.program, body


def test_what_is_missing_is_told_apart() -> None:
    assert "item.want" in grade(string(), "x", {}).variable
    assert grade(multi("1 / a", a=string()), "x", {"want": "y"}).formula


@pytest.mark.parametrize(
    ("grader", "words"),
    [
        (5, "object"),
        ({"type": "guess", "name": "x"}, "grader.type"),
        ({"type": "score_model", "name": "x"}, "no model here"),
        (similar("cosine"), "embeddings"),
        (similar("meteor"), "synonyms"),
        (similar("guess"), "evaluation_metric"),
        ({**string(), "operation": "is"}, "operation"),
        ({**string(), "reference": 5}, "reference must be text"),
        ({"type": "string_check", "name": "x", "input": "a"}, "operation is missing"),
        (python("def judge(): pass"), "grade"),
        (python("def"), "no Python"),
        (multi("a +", a=string()), "no formula"),
        (multi("a.__class__", a=string()), "are known"),
        (multi("open(a)", a=string()), "are known"),
        (multi("b", a=string()), "are known"),
        (multi("a", a=multi("b", b=string())), "holds no other"),
    ],
)
def test_graders_that_cannot_be_followed_are_refused_in_words(grader: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(grader)
