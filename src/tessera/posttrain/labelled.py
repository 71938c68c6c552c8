"""A file of labelled texts -> texts, and what is known of each: in which categories of harm it is, and in which not.

One JSON object a line: `{"text", "labels": {"hate": 1, "violence": 0}}`, with the categories of OpenAI's moderation route; or as
OpenAI's public test set has it, `{"prompt", "H": 1, "V": 0}` (arXiv 2208.03274). What a line does not name is not known of its
text, and is neither learned from nor measured on. Every mistake is one sentence with the number of its line.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.engine.moderation import CATEGORIES
from tessera.errors import UserError

SHORT = {
    "S": "sexual", "H": "hate", "V": "violence", "HR": "harassment", "SH": "self-harm", "S3": "sexual/minors",
    "H2": "hate/threatening", "V2": "violence/graphic",
}  # fmt: skip
"""The public test set's names of its eight categories."""


@dataclass(frozen=True)
class Labelled:
    """A text and its labels.

    Args:
        text: of at least one character.
        labels: for each of CATEGORIES 1.0 in it, 0.0 not in it, NaN not known.
    """

    text: str
    labels: tuple[float, ...]

    @property
    def digest(self) -> int:
        """Uniform in [0, 2^64), from the text alone."""
        return int.from_bytes(hashlib.blake2b(self.text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")

    def known(self, category: str) -> bool:
        """Whether it is said of the text if it is in that category."""
        return not math.isnan(self.labels[CATEGORIES.index(category)])


def read_labelled(path: Path, say: Callable[[str], None] = lambda line: None) -> list[Labelled]:
    """The texts of a file, each once, in the order of their first lines; a text that stands there again adds what it names.

    Args:
        say: told how many labels contradict an earlier one of the same text, of which nothing is known then.

    Raises:
        UserError: the file cannot be read, holds nothing, or a line is no labelled text.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file with one JSON object a line.") from None
    found: dict[str, list[float]] = {}
    disputed: set[tuple[str, int]] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text, named = _fields(line)
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        labels = found.setdefault(text, [math.nan] * len(CATEGORIES))
        for category, value in named.items():
            place = CATEGORIES.index(category)
            if labels[place] == 1 - value:
                disputed.add((text, place))
            labels[place] = value
    if not found:
        raise UserError(f"{path} holds no labelled text; write one JSON object a line.")
    for text, place in disputed:
        found[text][place] = math.nan
    if disputed:
        say(f"{len(disputed):,} labels in {path} are contradicted by others of the same text, and count as not known")
    return [Labelled(text, tuple(labels)) for text, labels in found.items()]


def write_labelled(path: Path, texts: Sequence[Labelled]) -> None:
    """Writes texts as `read_labelled` reads them."""
    rows = [
        {"text": one.text, "labels": {name: one.labels[at] for at, name in enumerate(CATEGORIES) if one.known(name)}}
        for one in texts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _fields(line: bytes) -> tuple[str, dict[str, float]]:
    """Text and named labels."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error}).") from None
    if isinstance(row, dict) and "prompt" in row and row.keys() & SHORT.keys():
        row = {"text": row["prompt"], "labels": {SHORT[key]: value for key, value in row.items() if key in SHORT}}
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not isinstance(row.get("labels"), dict):
        raise UserError('a labelled text is {"text": ..., "labels": {"hate": 1, ...}}.')
    if not row["text"].strip():
        raise UserError("the text is empty.")
    if not row["labels"]:
        raise UserError("no label is given.")
    return row["text"], {_category(name): _label(name, value) for name, value in row["labels"].items()}


def _category(name: str) -> str:
    if name not in CATEGORIES:
        raise UserError(f"there is no category {name!r}; the categories are {', '.join(CATEGORIES)}.")
    return name


def _label(name: str, value: Any) -> float:
    if value not in (0, 1):
        raise UserError(f"the label of {name} is {json.dumps(value)}; write 1 or true, 0 or false, or leave it out.")
    return float(value)
