"""A file of preferences -> the answers to each prompt, which of them is better, and rows that hold them side by side.

One JSON object a line, as the page keeps thumbs: `{"prompt", "chosen", "rejected"}`, lists of messages for a dialogue and plain
texts for a completion; or as OpenAI's files have it, `{"input": {"messages"}, "preferred_output", "non_preferred_output"}`. Lines
with the same prompt belong together. Every mistake is one sentence with the number of its line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.loader import Batch
from tessera.errors import UserError
from tessera.tokens import chat
from tessera.tokens.document import Document, Segment, TokenRecord
from tessera.tokens.vocabulary import END, Vocabulary

ROW_UNIT = 8
PROBES = ("empty", "repeated", "echo", "long")
"""Answers that must not beat a chosen one: nothing, the chosen one four times over, the question, and the chosen one with three
answers to other questions behind it."""


@dataclass
class Question:
    """A prompt and what was said of answers to it.

    Args:
        prompt: messages, or a text.
        answers: messages or texts, each once.
        better: pairs of indexes of answers, the better one first.
        lines: on which they stand.
    """

    prompt: Any
    answers: list[Any] = field(default_factory=list)
    better: list[tuple[int, int]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    @property
    def digest(self) -> int:
        """Uniform in [0, 2^64), from the prompt alone."""
        return int.from_bytes(
            hashlib.blake2b(_canonical(self.prompt).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
        )

    @property
    def dialogue(self) -> bool:
        """Whether it is a conversation."""
        return isinstance(self.prompt, list)

    def encode(self, answer: Any, vocabulary: Vocabulary) -> TokenRecord:
        """Prompt and answer; exactly the answer and the token that ends it are to be learned.

        Raises:
            UserError: it is no conversation, or there is nothing in the prompt or the answer.
        """
        if not self.dialogue:
            segments = (Segment("text", self.prompt, learn=False), Segment("text", answer), Segment("control", END))
            return checked(vocabulary.encode(Document(segments)), vocabulary)
        before = [replace(message, learn=False) for message in chat.read(self.prompt)]
        mine = chat.read(answer)
        if not mine or any(message.role != "assistant" or not message.learn for message in mine):
            raise UserError("an answer is a list of the assistant's messages, without weights.")
        return checked(vocabulary.encode(chat.render([*before, *mine])), vocabulary)

    def say(self, text: str) -> Any:
        """An answer of that text."""
        return [{"role": "assistant", "content": text}] if self.dialogue else text

    def text(self, answer: Any) -> str:
        """The words of an answer."""
        return "".join(message.content for message in chat.read(answer)) if self.dialogue else str(answer)

    @property
    def asked(self) -> str:
        """The words of the question: those of its last message."""
        return chat.read(self.prompt)[-1].content if self.dialogue else str(self.prompt)

    def best(self) -> list[int]:
        """Answers that were preferred to some other, and to which none was preferred."""
        worse = {loser for _, loser in self.better}
        return sorted({winner for winner, _ in self.better} - worse)


def checked(record: TokenRecord, vocabulary: Vocabulary) -> TokenRecord:
    """The record, if it can be learned from.

    Raises:
        UserError: nothing or everything in it is to be learned, or it does not end with a learned token that ends an answer.
    """
    if not record.learn.any():
        raise UserError("nothing in it is to be learned.")
    if record.learn.all():
        raise UserError("everything in it is to be learned; a prompt must not be empty.")
    ends = {vocabulary.controls.get(name) for name in (END, "<|end_turn|>")}
    if not record.learn[-1] or int(record.ids[-1]) not in ends:
        raise UserError("it does not end with the token that ends a turn, or that token is not learned.")
    return record


def read_questions(path: Path, vocabulary: Vocabulary) -> list[Question]:
    """The questions of a file, in the order of their first lines.

    Raises:
        UserError: it cannot be read, holds nothing, or a line is no preference.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file with one JSON object a line.") from None
    found: dict[str, Question] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt, *answers = _fields(line)
            question = found.setdefault(_canonical(prompt), Question(prompt))
            for answer in answers:
                question.encode(answer, vocabulary)
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        places = []
        for answer in answers:
            if answer not in question.answers:
                question.answers.append(answer)
            places.append(question.answers.index(answer))
        question.better.append((places[0], places[1]))
        question.lines.append(number)
    if not found:
        raise UserError(f"{path} holds no preference; write one JSON object a line.")
    return list(found.values())


def write_questions(path: Path, questions: Sequence[Question]) -> None:
    """Writes questions as `read_questions` reads them."""
    rows = []
    for q in questions:
        rows += [{"prompt": q.prompt, "chosen": q.answers[one], "rejected": q.answers[other]} for one, other in q.better]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def probe(kind: str, question: Question, answer: Any, others: Sequence[str]) -> Any:
    """A bad answer made of a good one.

    Args:
        kind: one of PROBES.
        answer: the good one.
        others: texts of answers to other questions.
    """
    text = question.text(answer)
    # An answer of one word is no worse four times over by its length alone, but it is no answer either.
    made = {"empty": "", "repeated": " ".join([text] * 4), "echo": question.asked, "long": " ".join([text, *others[:3]])}
    return question.say(made[kind])


def rows_of(rows: Sequence[Sequence[TokenRecord]], pad: int) -> Batch:
    """Each row holds records side by side, and one token of padding at least, so that the last token of each is read.

    The batch's `documents` are the numbers of the records in their row; its `units` are the rows.
    """
    T = max(-(-sum(map(len, row)) // ROW_UNIT) * ROW_UNIT for row in rows)
    ids = np.full((len(rows), T + 1), pad, np.int64)
    learn, documents = np.zeros((len(rows), T), np.bool_), np.zeros((len(rows), T), np.int32)
    for place, row in enumerate(rows):
        at = 0
        for number, record in enumerate(row):
            ids[place, at : at + len(record)] = record.ids
            learn[place, at : at + len(record) - 1] = record.learn[1:]
            documents[place, at:] = number
            at += len(record)
    tokens = sum(len(record) - 1 for row in rows for record in row)
    return Batch(ids, learn, documents, tokens, units=float(len(rows)))


def _fields(line: bytes) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected answer."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error}).") from None
    if isinstance(row, dict) and "preferred_output" in row:
        given = row.get("input")
        row = {
            "prompt": given.get("messages") if isinstance(given, dict) else None,
            "chosen": row["preferred_output"],
            "rejected": row.get("non_preferred_output"),
        }
    if not isinstance(row, dict) or not {"prompt", "chosen", "rejected"} <= row.keys():
        raise UserError('a preference is {"prompt": ..., "chosen": ..., "rejected": ...}, texts or lists of messages.')
    parts = (row["prompt"], row["chosen"], row["rejected"])
    if not (all(isinstance(part, str) for part in parts) or all(isinstance(part, list) for part in parts)):
        raise UserError("prompt, chosen and rejected are all texts, or all lists of messages.")
    if not row["prompt"]:
        raise UserError("the prompt is empty.")
    if row["chosen"] == row["rejected"]:
        raise UserError("chosen and rejected are the same answer.")
    return parts


def _canonical(prompt: Any) -> str:
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False)
