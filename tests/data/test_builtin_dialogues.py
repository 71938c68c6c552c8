"""Built-in conversations: each answer judged by a rule that is written here, not by the one that made it."""

from __future__ import annotations

import calendar
import re

import pytest

from tessera.data.builtin_dialogues import KINDS, MOST_TURNS, examples
from tessera.tokens import chat

COUNT = 3000
TURNS = [
    (messages[at]["content"], messages[at + 1]["content"], messages[at - 1]["content"] if at else "")
    for row in examples(COUNT)
    for messages in [row["messages"]]
    for at in range(0, len(messages), 2)
]


def asked(pattern: str) -> list[tuple[re.Match[str], str, str]]:
    found = [(match, answer, before) for question, answer, before in TURNS if (match := re.fullmatch(pattern, question))]
    assert len(found) > 10, pattern
    return found


def test_they_are_conversations_of_a_few_turns_and_the_same_for_a_seed() -> None:
    rows = list(examples(400))
    assert rows == list(examples(400)) != list(examples(400, seed=1))
    lengths = {len(row["messages"]) // 2 for row in rows}
    # A turn that goes on from another may come beyond the most.
    assert lengths == set(range(1, MOST_TURNS + 2))
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2)
        assert all(message["content"].strip() == message["content"] != "" for message in row["messages"])
        chat.render(chat.read(row["messages"]))


def test_lists_are_sorted_and_turned_round() -> None:
    for match, answer, _ in asked(r"(?:Sort these \w+|Put in order|Sort by the alphabet|From small to large): (.*)\."):
        given = match[1].split(", ")
        assert answer == ", ".join(sorted(given, key=lambda x: int(x) if x.isdigit() else x)) + "."
    for _, answer, before in asked(r"And the other way round\?|Now backwards, please\."):
        assert answer[:-1].split(", ") == before[:-1].split(", ")[::-1]


def test_letters_and_words_are_counted_and_spelled() -> None:
    for match, answer, _ in asked(r"(?:How many letters (?:has|are in)|Count the letters of) (\w+)[?.]"):
        assert int(answer[:-1]) == len(match[1])
    for match, answer, _ in asked(r"(?:How many words are these|Count the words): (.*)[?.]"):
        assert int(answer[:-1]) == match[1].count(" ") + 1
    for match, answer, _ in asked(r"(?:Spell|Write) (\w+) backwards\."):
        assert list(answer[:-1]) == list(reversed(match[1]))
    for match, answer, _ in asked(r"(?:Spell (\w+)\.|How is (\w+) spelled\?)"):
        assert answer[:-1].replace(" ", "") == (match[1] or match[2])


def test_sums_and_units_are_right() -> None:
    for match, answer, _ in asked(r"What is (\d+) (plus|minus) (\d+)\?"):
        assert int(answer[:-1]) == int(match[1]) + (1 if match[2] == "plus" else -1) * int(match[3]) >= 0
    seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
    metres = {"millimetre": 0.001, "centimetre": 0.01, "metre": 1, "kilometre": 1000}
    for match, answer, _ in asked(r"How many (\w+)s are (?:in )?(\d+) (\w+?)s?\?"):
        for sizes in (seconds, metres):
            if match[1] in sizes:
                found = re.fullmatch(r"(\d+) \w+ (?:is|are) (\d+) \w+\.", answer)
                assert found is not None and found[1] == match[2]
                assert int(found[2]) * sizes[match[1]] == pytest.approx(int(match[2]) * sizes[match[3]])


def test_the_calendar_is_right() -> None:
    days, months = list(calendar.day_name), list(calendar.month_name)[1:]
    for match, answer, _ in asked(r"Which day (comes after|is before) (\w+)\?"):
        step = 1 if match[1] == "comes after" else -1
        assert answer[:-1] == days[(days.index(match[2]) + step) % 7]
    for match, answer, _ in asked(r"How many days has (\w+)\?"):
        assert int(answer.split(",")[0].rstrip(".")) == calendar.monthrange(2026, months.index(match[1]) + 1)[1]


def test_it_says_what_it_cannot_know() -> None:
    answers = {answer for question, answer, _ in TURNS if "weather" in question or "news" in question or "my mother" in question}
    assert len(answers) == 1 and "cannot" in answers.pop()


def test_every_kind_comes() -> None:
    assert len(KINDS) == 12 and len({question for question, _, _ in TURNS}) > COUNT // 2
