"""Every kind of instruction: an answer that follows it, and one that only nearly does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera.errors import UserError
from tessera.posttrain.verifiers import Task
from tessera.posttrain.verifiers.instructions import KINDS, followed, instructions, instructions_loosely, is_covered, sentences

EXAMPLES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["Red", "c++"]}, "a red C++ book", "a red c book"),
    ("keywords:frequency", {"keyword": "ha", "relation": "at least", "frequency": 3}, "Ha ha ha", "ha ha"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rocket", "Rock!"),
    ("keywords:letter_frequency", {"letter": "#", "let_relation": "less than", "let_frequency": 2}, "a # b", "## b"),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, "It is. So it is!", "Mr. Brown is."),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 4}, "one two three", "one two three four"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb\n***", "a\n***\n***\nb"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\nThen, more.",
        "First.\n\nAnd then.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [place]", "[name] at place"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Thanks. **P. S.** Bring tea.", "P.Smith wrote"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye\nP.P.S. one more", "Bye\nP.S. one more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n- b\n- c"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "My answer is perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "**a** and b"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1\na\nPart 2\nb",
        "Part 1\nPart",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', '{"a": 1,}'),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<< >>\ntext"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. Yes", "I say it."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So. "the end."', "The end. So."),
    ("startend:quotation", {}, '"all of it"', '"all" of it'),
    ("change_case:english_capital", {}, "LOUD, 3!", "LOUd"),
    ("change_case:english_lowercase", {}, "quiet, 3!", "Quiet"),
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 2}, "BIG A dog", "BIG dog"),
    ("punctuation:no_comma", {}, "a b", "a, b"),
]


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), EXAMPLES, ids=[example[0] for example in EXAMPLES])
def test_each_kind_tells_following_from_nearly_following(kind: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    task = Task("Do it.", data={"instruction_id_list": [kind], "kwargs": [arguments]})
    assert (instructions(task, good), instructions(task, bad)) == (1, 0)


def test_no_kind_is_without_an_example_and_nothing_is_no_answer() -> None:
    assert {example[0] for example in EXAMPLES} == set(KINDS) and len(KINDS) == 24
    for kind, arguments, _, _ in EXAMPLES:
        task = Task("write it without that", data={"instruction_id_list": [kind], "kwargs": [arguments]})
        assert instructions(task, "") == instructions(task, " \n") == instructions(task, task.prompt) == 0


def test_loosely_forgives_a_first_line_and_asterisks() -> None:
    kinds = ["change_case:english_lowercase", "startend:quotation"]
    task = Task("Do it.", data={"instruction_id_list": kinds, "kwargs": [{}, {}]})
    answer = 'Sure! Here it is:\n**"all of it"**'
    assert (instructions(task, answer), instructions_loosely(task, answer)) == (0, 1)
    assert followed(task, '"All of it"') == [False, True]


def test_sentences_are_counted_as_a_reader_would() -> None:
    assert sentences("Dr. Who came at 3.5 p.m. and left. Did he? Yes!\n\nNo full stop") == 4


def test_what_is_not_known_or_lacks_an_argument_is_refused() -> None:
    for names, arguments, words in (
        (["language:response_language"], [{"language": "kn"}], "no instruction 'language:response_language'"),
        (["keywords:existence"], [{}], "lacks its argument 'keywords'"),
        (["keywords:existence"], [], "equal length"),
    ):
        with pytest.raises(UserError, match=words):
            followed(Task("?", data={"instruction_id_list": names, "kwargs": arguments}), "text")


def test_every_public_prompt_but_those_about_languages_is_covered(shared_data: Callable[[str], Path]) -> None:
    rows = [json.loads(line) for line in (shared_data("text/instruct/ifeval") / "input_data.jsonl").open()]
    tasks = [Task(row["prompt"], data={k: row[k] for k in ("instruction_id_list", "kwargs")}) for row in rows]
    covered = [task for task in tasks if is_covered(task)]
    assert (len(tasks), len(covered)) == (541, 510)
    assert all(isinstance(value, bool) for task in covered for value in followed(task, "some text"))
