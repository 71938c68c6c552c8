"""A chat as a tree of turns: edits and new answers are branches, several models answer one question side by side.

A turn of the user comes after the answers that it goes on from (none: it begins the chat), an answer comes after one turn of the
user. Turns are the plain objects that `/tessera/chats` shows. What a person sees is one way down the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Turn = Mapping[str, Any]
Voice = tuple[str, str]
"""Who answers: a model, and the effort that it was asked for by name, if any. Several may answer side by side."""
GAP = "<gap>"
"""In a text that is to go on: what belongs here is asked for, and not what follows."""


@dataclass(frozen=True)
class Exchange:
    """A turn of the user and its answers.

    Args:
        turn: of the user.
        siblings: all turns that stand at its place, itself among them, oldest first.
        answers: per voice, in the order in which they first answered, all its answers, oldest first.
    """

    turn: Turn
    siblings: tuple[Turn, ...]
    answers: dict[Voice, tuple[Turn, ...]]

    def shown(self, picked: Mapping[str, str]) -> list[Turn]:
        """One answer per voice: the one that was picked, else the last."""
        return [_pick(answers, picked) for answers in self.answers.values()]


def way(turns: Sequence[Turn], picked: Mapping[str, str]) -> list[Exchange]:
    """The exchanges that are shown, from the first on.

    Args:
        turns: of the chat, oldest first.
        picked: by the id of any turn the id of the one to show at its place; where nothing was picked it is the last.
    """
    exchanges: list[Exchange] = []
    here = [turn for turn in turns if turn["role"] == "user" and not turn["after"]]
    while here:
        turn = _pick(here, picked)
        answers: dict[Voice, tuple[Turn, ...]] = {}
        for answer in turns:
            if answer["role"] == "assistant" and turn["id"] in answer["after"]:
                answers[voice(answer)] = (*answers.get(voice(answer), ()), answer)
        exchanges.append(Exchange(turn, tuple(here), answers))
        shown = {answer["id"] for answer in exchanges[-1].shown(picked)}
        here = [turn for turn in turns if turn["role"] == "user" and shown & set(turn["after"])]
    return exchanges


def voice(answer: Turn) -> Voice:
    """Who gave an answer."""
    return answer["model"], answer.get("effort", "")


def pick(siblings: Iterable[Turn], chosen: str) -> dict[str, str]:
    """What makes `way` show one of the siblings, the turn with the id `chosen`."""
    return {sibling["id"]: chosen for sibling in siblings}


def failures(turns: Sequence[Turn]) -> dict[tuple[str, Voice], str]:
    """Why turns were not answered, by the id of the turn and who was asked; nothing of those who answered it after all."""
    answered = {(turn["after"][0], voice(turn)) for turn in turns if turn["role"] == "assistant"}
    kept = {(turn["id"], voice(f)): str(f["message"]) for turn in turns for f in turn.get("failures", [])}
    return {key: message for key, message in kept.items() if key not in answered}


def before(turns: Sequence[Turn], last: Turn, model: str) -> list[Turn]:
    """The turns up to and with `last`, a turn of the user, as `model` remembers them: its own answers where it gave some."""
    by_id = {turn["id"]: turn for turn in turns}
    found, at = [last], last
    while at["after"]:
        answers = [by_id[id] for id in at["after"] if id in by_id]
        if not answers:
            break
        answer = next((a for a in answers if a["model"] == model), answers[0])
        at = by_id[answer["after"][0]]
        found += [answer, at]
    return found[::-1]


def messages(turns: Iterable[Turn], instructions: str = "") -> list[dict[str, Any]]:
    """Turns as the messages of a request to `/v1/chat/completions`."""
    said: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for turn in turns:
        content: Any = turn["text"]
        if turn["images"]:
            pictures = [{"type": "image_url", "image_url": {"url": url}} for url in turn["images"]]
            content = [*pictures, {"type": "text", "text": turn["text"]}]
        said.append({"role": turn["role"], "content": content})
    return said


def text_of(turns: Iterable[Turn]) -> tuple[str, str | None]:
    """Turns as one text that goes on: what is before the place where that is, and behind it, where the last turn has a gap.

    A gap that was filled already is part of the text.
    """
    text, behind = "", None
    for turn in turns:
        head, gap, rest = turn["text"].partition(GAP) if turn["role"] == "user" else (turn["text"], "", "")
        text, behind = text + head + (behind or ""), rest if gap else None
    return text, behind


def pairs(turns: Sequence[Turn], asked: Turn, mode: str, instructions: str = "") -> list[tuple[Turn, Turn, dict[str, Any]]]:
    """What the thumbs under one question say: each liked answer against each disliked one.

    Returns:
        the liked answer, the disliked one, and the row of a preference job: `prompt`, `chosen`, `rejected`. They are lists of
        messages for a dialogue and plain texts for a completion. What fills a gap makes no pair, as a job learns what follows,
        nor do pictures and what is said of them, as a job reads words.
    """
    answers = [turn for turn in turns if turn["role"] == "assistant" and asked["id"] in turn["after"]]
    found: list[tuple[Turn, Turn, dict[str, Any]]] = []
    if mode == "complete" and GAP in asked["text"]:
        return found
    for liked in (turn for turn in answers if turn["rating"] == "up"):
        history = before(turns, asked, liked["model"])
        for disliked in (turn for turn in answers if turn["rating"] == "down" and turn["text"] != liked["text"]):
            if any(turn["images"] for turn in (*history, liked, disliked)):
                continue
            row: dict[str, Any]
            if mode == "complete":
                row = {"prompt": text_of(history)[0], "chosen": liked["text"], "rejected": disliked["text"]}
            else:
                row = {"prompt": messages(history, instructions), "chosen": messages([liked]), "rejected": messages([disliked])}
            found.append((liked, disliked, row))
    return found


def _pick(siblings: Sequence[Turn], picked: Mapping[str, str]) -> Turn:
    wanted = picked.get(siblings[-1]["id"])
    return next((turn for turn in siblings if turn["id"] == wanted), siblings[-1])
