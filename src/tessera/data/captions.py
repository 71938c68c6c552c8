"""Captions of picture, film and sound files: from the lists beside them, else the names of their folders.

A list is `captions.tsv`, or the `metadata.jsonl` or `metadata.csv` of a Hugging Face `imagefolder`, `videofolder` or
`audiofolder`; without any, a file's folder says what is in it, as it does there.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tessera.data import films, sounds
from tessera.data.pictures import ENDINGS, captioned, read_picture
from tessera.data.reasons import Skipped, Unreadable, words
from tessera.tokens.document import Document
from tessera.tokens.sounds import QUESTION, WHO

_LISTS = ("captions.tsv", "metadata.jsonl", "metadata.csv")
_FILE_COLUMNS = ("file_name", "file", "path")
_CAPTION_COLUMNS = ("text", "caption", "transcription", "sentence", "name", "title", "label", "description")
_LEVELS_UP = 3
"""A list of captions may lie in the folder of a picture or up to so many above it."""
_Found = TypeVar("_Found")


class Captions:
    """Captions of pictures, films and recordings, from the lists that lie beside them; each list is read once.

    Args:
        column: that holds the caption; None: `text`, `caption`, `transcription`, `sentence`, `name`, `title`, `label` or
            `description`, the first there is.
        skipped: what cannot be read is appended here.
    """

    def __init__(self, column: str | None, skipped: list[Skipped]) -> None:
        self._column = column
        self._skipped = skipped
        self._lists: dict[Path, dict[str, dict[str, Any]] | None] = {}

    def is_picture(self, name: str) -> bool:
        """Whether a file's ending is that of a picture."""
        return name.rpartition(".")[2].lower() in ENDINGS

    def is_film(self, name: str, wanted: bool) -> bool:
        """Whether a file's ending is that of a film; where some are `wanted`, a GIF is one."""
        ending = name.rpartition(".")[2].lower()
        return ending in films.ENCODED or (wanted and ending == "gif")

    def is_sound(self, name: str) -> bool:
        """Whether a file's ending is that of a recording."""
        return name.rpartition(".")[2].lower() in sounds.ENDINGS

    def is_list(self, path: Path) -> bool:
        """Whether a file lists captions, and so is no document itself."""
        return path.name in _LISTS and self._rows(path.parent) is not None

    def document(self, path: Path, name: str) -> Document | None:
        """The picture of a file with its caption, if it has one; None where it cannot be read, which is noted."""
        pixels = self._read_file(path, name, read_picture)
        if pixels is None:
            return None
        caption, asked = self._said(path, name)
        return captioned(pixels, caption, asked, name)

    def film(self, path: Path, name: str) -> Document | None:
        """The same of a film."""
        found = self._read_file(path, name, films.read_film)
        if found is None:
            return None
        return films.captioned_film(found[0], self._said(path, name)[0], found[1], name)

    def sound(self, path: Path, name: str) -> Document | None:
        """The same of a recording. A column `speaker` says who it is, which its caption then names and a question asks for."""
        found = self._read_file(path, name, sounds.read_sound)
        if found is None:
            return None
        samples = sounds.fitted_sound(*found, found[1])
        said, asked = self._said(path, name)
        speaker = str(self._row(path)[0].get("speaker") or "").strip()
        if said:
            asked = [(QUESTION, said), *asked]
        if speaker:
            said, asked = f"{said}, spoken by {speaker}" if said else f"spoken by {speaker}", [*asked, (WHO, speaker)]
        return sounds.captioned_sound(samples, said, asked, found[1], name)

    def _read_file(self, path: Path, name: str, read: Callable[[Path], _Found]) -> _Found | None:
        try:
            if not path.is_file():
                raise Unreadable("a broken link" if path.is_symlink() else "not a regular file")
            if path.stat().st_size == 0:
                raise Unreadable("empty")
            return read(path)
        except (Unreadable, OSError) as error:
            self._skipped.append(Skipped(name, words(error)))
            return None

    def _said(self, path: Path, name: str) -> tuple[str, list[tuple[str, str]]]:
        """Caption of a file, empty where it has none, and questions about it with their answers."""
        row, listed = self._row(path)
        if not listed:
            # Without any list, a folder below the one that was named says what is in its files.
            return (name.split("/")[-2].replace("_", " ") if "/" in name else ""), []
        caption = next((str(row[c]).strip() for c in self._columns(row) if row.get(c)), "")
        asked = [(str(row["question"]), str(row["answer"]))] if row.get("question") and row.get("answer") else []
        return caption, asked

    def _columns(self, row: dict[str, Any]) -> tuple[str, ...]:
        return (self._column,) if self._column else _CAPTION_COLUMNS

    def _row(self, path: Path) -> tuple[dict[str, Any], bool]:
        """What the lists say of a file, and whether there is a list at all."""
        folder, listed = path.parent, False
        for _ in range(_LEVELS_UP + 1):
            if (rows := self._rows(folder)) is not None:
                listed = True
                relative = path.relative_to(folder).as_posix()
                row = rows.get(relative) or rows.get(path.name)
                if row is not None:
                    return row, True
            folder = folder.parent
        return {}, listed

    def _rows(self, folder: Path) -> dict[str, dict[str, Any]] | None:
        """Rows of a folder's list by the file they speak of."""
        if folder not in self._lists:
            self._lists[folder] = None
            for name in _LISTS:
                if (folder / name).is_file() and (rows := self._read_list(folder / name)):
                    self._lists[folder] = rows
                    break
        return self._lists[folder]

    def _read_list(self, path: Path) -> dict[str, dict[str, Any]]:
        try:
            text = path.read_text(encoding="utf-8-sig")
            if path.suffix == ".jsonl":
                table = [json.loads(line) for line in text.splitlines() if line.strip()]
            else:
                table = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ","))
        except (OSError, ValueError, csv.Error) as error:
            self._skipped.append(Skipped(path.name, words(error)))
            return {}
        rows = [row for row in table if isinstance(row, dict)]
        column = next((c for c in _FILE_COLUMNS if rows and isinstance(rows[0].get(c), str)), None)
        return {} if column is None else {str(row[column]): row for row in rows if row.get(column)}
