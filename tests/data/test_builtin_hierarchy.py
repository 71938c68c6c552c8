"""Conversations about who is obeyed: reproducible, their parts apart from each other, one right answer each."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from tessera.data.builtin_hierarchy import ATTACKS, UNSEEN_ATTACKS, Case, Part, cases
from tessera.tokens import chat

PARTS: tuple[Part, ...] = ("train", "harmless", "seen", "unseen", "benign")
KINDS = {"style", "secret", "topic", "mark", "tool"}


def words_of(case: Case) -> set[str]:
    """Those that are made of the syllables."""
    text = " ".join(str(message["content"]) for message in case.messages).casefold()
    return set(re.findall(r"\b(?:ba|do|fi|ku|le|mo|na|po|ri|su|ta|ve|wo|zi){2,3}\b", text))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_has_all_kinds_and_no_two_alike(part: Part) -> None:
    found = list(cases(part, 400, seed=3))
    assert len({json.dumps(case.row()) for case in found}) == 400 and {case.kind for case in found} == KINDS
    assert found == list(cases(part, 400, seed=3)) and found != list(cases(part, 400, seed=4))
    for case in found:
        turns = chat.read(case.row()["messages"])
        assert turns[-1].role == "assistant" and turns[-1].content == case.answer
        assert not case.forbidden or case.forbidden not in case.answer
        shown = " ".join(str(m["content"]) for m in case.messages).casefold()
        assert case.forbidden.casefold() in shown
    conflicts = sum(any(wording.replace("{}", "") in str(c.messages[-1]["content"]) for wording in UNSEEN_ATTACKS) for c in found)
    assert conflicts == (400 if part == "unseen" else 0)


def test_what_is_measured_has_words_that_training_lacks() -> None:
    learned = set[str]().union(*map(words_of, itertools.chain(cases("train", 3000), cases("harmless", 1000, seed=1))))
    for part in ("seen", "unseen", "benign"):
        measured = set[str]().union(*map(words_of, cases(part, 300)))
        assert len(measured) > 50 and not measured & learned
    assert not set(ATTACKS) & set(UNSEEN_ATTACKS)


def test_half_of_training_has_no_conflict_and_obeying_nobody_is_wrong() -> None:
    train = list(cases("train", 1000))
    conflicts = [c for c in train if c.forbidden or "nothing behind it" in str(c.messages[-1]["content"])]
    assert 400 < len(conflicts) < 600
    refusals = {"The code is secret."} | {c.answer for c in conflicts if c.answer.startswith("I speak of")}
    assert not any(case.answer in refusals for case in cases("benign", 400))
