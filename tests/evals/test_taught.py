"""Suites that go with built-in sources: nothing of them stands in a document, and what counts as right is right."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import torch

from tessera.data.builtin_functions import HELD_OUT, function
from tessera.data.builtin_functions import TAUGHT as COMBINATIONS
from tessera.data.builtin_mappings import HELD_OUT_WORDS, WORDS
from tessera.data.builtin_wordings import NEW, OPPOSITES
from tessera.data.builtin_wordings import TAUGHT as WORDINGS
from tessera.data.sources import documents
from tessera.engine.engine import Engine
from tessera.errors import UserError
from tessera.evals import answers, taught
from tessera.evals.answers import Settings
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.tokens.vocabulary import Vocabulary


@pytest.mark.parametrize("name", sorted(taught.TAUGHT))
def test_tasks_repeat_by_seed_and_stand_in_no_document(name: str) -> None:
    suite = taught.TAUGHT[name]()
    tasks = suite.make(60, 3)
    assert tasks == suite.make(60, 3) != suite.make(60, 4)
    assert len({task.id for task in tasks}) == 60
    source = {"mapping": "mappings"}.get(name, name)
    seen = "".join(document.text for document in documents(f"builtin:{source}?count=2000", []))
    assert not [task.prompt for task in tasks if task.prompt in seen]


def test_mappings_hold_out_words_and_every_line_of_a_document_agrees_with_the_others() -> None:
    assert len(HELD_OUT_WORDS) == 20**2 // 5 and not set(HELD_OUT_WORDS) & set(WORDS)
    # Their letters are known, or nobody could read them.
    assert set("".join(HELD_OUT_WORDS)) <= set("".join(WORDS))
    for document in documents("builtin:mappings?count=200", []):
        pairs = re.findall(r"(\w\w) (\w\w)\n", document.text)
        assert len(dict(pairs)) == len(set(pairs)) <= 8 and {pairs.count(pair) for pair in pairs} <= {2, 3, 4, 6, 12}
        assert {word for pair in pairs for word in pair} <= set(WORDS)
    tasks = taught.mapping().make(50, 0)
    for task in tasks:
        shown = taught.mapping().own_examples(task, 8)  # type: ignore[misc]
        assert {e.prompt + e.answer for e in shown} >= {task.prompt + task.answer} and len({e.prompt for e in shown}) == 8
        assert {word for e in shown for word in (e.prompt, e.answer.strip())} <= set(HELD_OUT_WORDS)


def test_each_task_is_shown_examples_of_its_own_and_no_more_than_there_are() -> None:
    vocabulary = Vocabulary.train(["a byte is enough"], 256)
    shape = DecoderConfig(vocabulary.size, width=16, layers=1, heads=1, kv_heads=1, head_size=16, mlp_width=16, context=96)
    decoder = Decoder(shape)
    decoder.initialise(0)
    suite, (first, second) = taught.mapping(), taught.mapping().make(2, 0)
    shown = answers._examples(suite, [first, second], Settings(shots=4))
    told = [{e.prompt: e.answer.strip() for e in examples} for examples in shown]
    assert [len(pairs) for pairs in told] == [4, 4] and told[0] != told[1]
    assert told[0].items() <= first.data["mapping"].items()
    with torch.inference_mode():
        engine = Engine(decoder.eval(), vocabulary)
        (score,) = answers.measure(engine, suite, Settings(tasks=5, shots=8))
        assert score.n == 5 and score.chance == 1 / len(HELD_OUT_WORDS) and score.settings["shots"] == 8
        with pytest.raises(UserError, match="mapping has 8 examples to show, not 9"):
            answers.measure(engine, suite, Settings(tasks=5, shots=9))


GATHERS = {
    "sum|total": sum,
    "number": lambda found: len({*found}),
    "largest|maximum": lambda found: sorted(found)[-1] if found else 0,
    "smallest|minimum": lambda found: sorted(found)[0] if found else 0,
    "first": lambda found: [*found, 0][0],
    "sorted list": sorted,
    "reversed list": lambda found: list(reversed(found)),
    "list": list,
}
MAKES = {
    "the squares of": lambda x, k: x**2,
    "(?:the doubles of|twice)": lambda x, k: x + x,
    "the opposites of": lambda x, k: 0 - x,
    "the (?:sizes|absolute values) of": lambda x, k: max(x, -x),
    "the last digits of": lambda x, k: int(str(x)[-1]),
    r"(\d) more than": lambda x, k: x + k,
    r"(\d) less than": lambda x, k: x - k,
    r"(\d) times": lambda x, k: sum([x] * k),
}
KEEPS = {
    "the even numbers": lambda x, k: not x & 1,
    "the odd numbers": lambda x, k: x & 1,
    "the (?:positive numbers|numbers above zero)": lambda x, k: x >= 1,
    "the (?:negative numbers|numbers below zero)": lambda x, k: x <= -1,
    r"the numbers (?:above|greater than) (\d)": lambda x, k: x >= k + 1,
    r"the numbers (?:below|less than) (\d)": lambda x, k: x <= k - 1,
    r"the (?:multiples of|numbers divisible by) (\d)": lambda x, k: x // k * k == x,
    r"the numbers other than (\d)": lambda x, k: x < k or x > k,
    "the numbers": lambda x, k: True,
}


def by_docstring(text: str, numbers: list[int]) -> object:
    """What a docstring of `builtin:functions` asks for, read from left to right, independently of how the functions are made."""
    head, _, rest = text.removeprefix("Return ").replace("of different values of", "of").partition(" of ")
    (gathered,) = (does for words, does in GATHERS.items() if re.fullmatch(f"(?:a|the) (?:{words})", head))
    made, one = next(((d, m) for words, d in MAKES.items() if (m := re.match(f"{words} ", rest))), (lambda x, k: x, None))
    rest = rest[one.end() if one else 0 :]
    kept, other = next((d, m) for words, d in KEEPS.items() if (m := re.fullmatch(rf"{words} in \w+\.", rest)))
    first, second = (int((match.groups() or ("0",))[0]) if match else 0 for match in (one, other))
    return gathered([made(x, first) for x in numbers if kept(x, second)])


def test_functions_and_their_tests_agree_with_what_their_docstrings_say() -> None:
    assert not set(HELD_OUT) & set(COMBINATIONS) and len(HELD_OUT) > 100
    for met, asked in zip(zip(*COMBINATIONS, strict=True), zip(*HELD_OUT, strict=True), strict=True):
        # Each part was met, only not with these others.
        assert set(asked) <= set(met)
    dice = random.Random(1)
    for combination in (*HELD_OUT, *COMBINATIONS):
        made = function(combination, dice)
        there: dict[str, Any] = {}
        exec(made.prompt + made.body, there)
        text = there[made.name].__doc__
        for numbers in ([], [3], [4, -7, 12, 5, 9, 2, -8, 6, 7, 3, 8, 4]):
            assert there[made.name](numbers) == by_docstring(text, numbers), text
        exec(made.tests, there)


def test_a_function_without_its_condition_or_its_change_fails() -> None:
    dice = random.Random(2)
    for combination in [c for c in COMBINATIONS if c[0] == "list"]:
        made = function(combination, dice)
        other = function(("list", "same", "all"), random.Random(dice.random()))
        there: dict[str, Any] = {}
        exec(other.prompt + other.body, there)
        there[made.name] = there[other.name]
        if combination[1:] == ("same", "all"):
            exec(made.tests, there)
        else:
            with pytest.raises(AssertionError):
                exec(made.tests, there)


SAID = {
    r"(?:opposite|contrary) of (\w+)|what is not (\w+) at all|other end from (\w+)": lambda x: OPPOSITES[x],
    r"letters of (\w+) in order|(\w+) sorted by the|(\w+) with its letters from a": lambda x: "".join(sorted(x)),
    r"(\w+) twice|(\w+) two times|(\w+) and once more|a pair of (\w+)": lambda x: " ".join([x, x]),
    r"(\w+) backwards|(\w+) in reverse|(\w+) from its end": lambda x: "".join(reversed(x)),
    r"first letter of (\w+)|letter that (\w+) begins|initial of (\w+)": lambda x: x[:1],
    r"last letter of (\w+)|letter that (\w+) ends|final letter of (\w+)": lambda x: x[-1:],
    r"(\w+) in capitals|(\w+) in upper|(\w+) with large": lambda x: "".join(chr(ord(letter) - 32) for letter in x),
    r"number of letters in (\w+)|how long (\w+) is|length of (\w+)": lambda x: str(sum(1 for _ in x)),
}


def by_wording(text: str) -> str:
    """The answer to a question of `builtin:wordings`, read from its words, independently of how questions are made."""
    (said,) = [does(max(filter(None, match.groups()))) for form, does in SAID.items() if (match := re.search(form, text))]
    return said


def test_wordings_hold_out_frames_and_pairs_and_their_answers_are_right() -> None:
    pairs, frames = (set(NEW[name]) for name in ("new pair", "new frame"))
    assert not pairs & set(WORDINGS) and not {frame for _, _, frame in frames} & {frame for _, _, frame in WORDINGS}
    # Each phrase was met in some frame, and each frame with some phrase.
    assert {phrase for _, phrase, _ in pairs | frames} <= {phrase for _, phrase, _ in WORDINGS}
    assert {frame for _, _, frame in pairs} <= {frame for _, _, frame in WORDINGS}
    seen = {d.text for d in documents("builtin:wordings?count=3000", [])}
    for text in seen:
        asked, said = re.fullmatch(r"(.*[?:.!]) ([^?:.!]+)\n", text).groups()  # type: ignore[union-attr]
        assert by_wording(asked) == said, text
    tasks = taught.wordings().make(200, 1)
    assert all(by_wording(task.prompt) == task.answer for task in tasks)
    assert not {task.prompt + task.answer + "\n" for task in tasks} & seen
    assert 0.12 < (taught.wordings().chance or 0) < 0.16
