"""Generated preferences: right against wrong, dressed alike, and files that are the same for the same address."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tessera.data.builtin_lines import write
from tessera.data.builtin_preferences import FORMS, examples, pairs, undressed
from tessera.data.builtin_wordings import KINDS, TAUGHT
from tessera.errors import UserError


def right_answers(prompt: str) -> set[str]:
    """What a question of a taught wording may be answered with."""
    found = set()
    for kind, phrase, frame in TAUGHT:
        before, _, after = frame.format(p=phrase).partition("{x}")
        asked = prompt.removesuffix(" ")
        if asked.startswith(before) and asked.endswith(after.split("{x}")[-1]):
            word = asked[len(before) :].split()[0].strip(".?!:,")
            if frame.format(p=phrase.format(x=word)) == asked:
                found.add(KINDS[kind].does(word))
    return found


def test_the_chosen_answer_is_right_and_the_rejected_one_is_not() -> None:
    for row in pairs(400, 5):
        right = right_answers(row["prompt"])
        assert undressed(row["chosen"]) in right and undressed(row["rejected"]) not in right, row
    share = sum(undressed(row["completion"]) in right_answers(row["prompt"]) for row in examples(800, 5)) / 800
    assert share == pytest.approx(0.5, abs=0.06)


def test_length_and_dress_do_not_tell_them_apart() -> None:
    rows = list(pairs(4000, 1))
    longer = [(len(r["chosen"]) > len(r["rejected"])) + 0.5 * (len(r["chosen"]) == len(r["rejected"])) for r in rows]
    assert sum(longer) / len(rows) == pytest.approx(0.5, abs=0.025)
    for form in FORMS:
        ending, beginning = form[-1], form[0]
        for side in (lambda text, e=ending: text.endswith(e), lambda text, b=beginning: text.startswith(b)):
            chosen, rejected = (sum(side(r[name]) for r in rows) for name in ("chosen", "rejected"))
            assert abs(chosen - rejected) < 0.03 * len(rows)


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_what_is_dressed_can_be_undressed(form: int) -> None:
    assert undressed(FORMS[form].format(a="hot hot")) == "hot hot"
    assert undressed("It is ") == "It is "


def test_an_address_is_a_file_that_is_written_once(tmp_path: Path) -> None:
    path = write("builtin:preferences?count=30&seed=4", tmp_path / "new")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == list(pairs(30, 4)) != list(pairs(30, 5))
    path.write_text("kept\n")
    assert write("builtin:preferences?count=30&seed=4", tmp_path / "new").read_text() == "kept\n"
    assert len(write("builtin:answers?count=7", tmp_path).read_text().splitlines()) == 7
    for address in ("builtin:nothing", "builtin:preferences?count=x", "builtin:answers?seed"):
        with pytest.raises(UserError, match="none of builtin:answers, builtin:assistant, builtin:dialogues, builtin:hierarchy, "):
            write(address, tmp_path)
