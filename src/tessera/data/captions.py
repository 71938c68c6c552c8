"""Pictures, films and recordings, and what is said of them -> documents.

`medium_document` joins the two wherever they come from. For files on disk `Captions` finds what is said in the lists beside them,
`captions.tsv`, or the `metadata.jsonl` or `metadata.csv` of a Hugging Face `imagefolder`, `videofolder` or `audiofolder`; without
any, a file's folder says what is in it, as it does there.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from tessera.data import films, pictures, sounds
from tessera.data.reasons import Skipped, Unreadable, words
from tessera.tokens.document import Document
from tessera.tokens.sounds import QUESTION, WHO

Medium = Literal["image", "video", "audio"]

NOT_ASKED: Mapping[Medium, str] = {
    "image": "a picture, and none are asked for (data.pictures)",
    "video": "a film, and none are asked for (data.films)",
    "audio": "a recording, and none are asked for (data.sounds)",
}
"""Why a medium is left out that a recipe has no use for."""
_LISTS = ("captions.tsv", "metadata.jsonl", "metadata.csv")
_FILE_COLUMNS = ("file_name", "file", "path")
_CAPTION_COLUMNS = ("text", "caption", "transcription", "sentence", "name", "title", "label", "description")
_LEVELS_UP = 3
"""A list of captions may lie in the folder of a picture or up to so many above it."""


def medium_of(name: str, wanted: frozenset[Medium]) -> Medium | None:
    """What a file is by its ending; None: no medium. Where films are wanted, a GIF is one."""
    ending = name.rpartition(".")[2].lower()
    if ending in films.ENCODED or (ending == "gif" and "video" in wanted):
        return "video"
    if ending in sounds.ENDINGS:
        return "audio"
    return "image" if ending in pictures.ENDINGS else None


def medium_document(
    medium: Medium,
    source: Path | bytes,
    said: Mapping[str, Any],
    column: str | None,
    name: str,
    otherwise: str = "",
    shrink: films.Shrink | None = None,
) -> Document:
    """A medium with its caption, if it has one, and the question about it, if there is one with its answer.

    Args:
        source: a file, or what is in one.
        said: what is known of it, by column. `speaker` says who is recorded, whom the caption then names and a question asks for.
        column: that holds the caption; None: `text`, `caption`, `transcription`, `sentence`, `name`, `title`, `label` or
            `description`, the first there is.
        name: of the document.
        otherwise: the caption where no column holds one.
        shrink: of the frames of a film, as `read_film` takes it.

    Raises:
        Unreadable, OSError: why it cannot be read.
    """
    columns = (column,) if column else _CAPTION_COLUMNS
    caption = next((str(said[c]).strip() for c in columns if said.get(c)), otherwise)
    asked = [(str(said["question"]), str(said["answer"]))] if said.get("question") and said.get("answer") else []
    if medium == "image":
        return pictures.captioned(pictures.read_picture(source), caption, asked, name)
    if medium == "video":
        frames, per_second = films.read_film(source, shrink=shrink)
        return films.captioned_film(frames, caption, per_second, name, asked)
    found, rate = sounds.read_sound(source)
    samples = sounds.fitted_sound(found, rate, rate)
    if caption:
        asked = [(QUESTION, caption), *asked]
    if speaker := str(said.get("speaker") or "").strip():
        caption, asked = f"{caption}, spoken by {speaker}" if caption else f"spoken by {speaker}", [*asked, (WHO, speaker)]
    return sounds.captioned_sound(samples, caption, asked, rate, name)


class Captions:
    """What is said of pictures, films and recordings in the lists that lie beside them; each list is read once.

    Args:
        column: as in `medium_document`.
        skipped: what cannot be read is appended here.
        say: told of a list that captions were looked for in and that cannot be used.
        shrink: as in `medium_document`.
    """

    def __init__(
        self,
        column: str | None,
        skipped: list[Skipped],
        say: Callable[[str], None] = lambda line: None,
        shrink: films.Shrink | None = None,
    ) -> None:
        self._shrink = shrink
        self._column = column
        self._skipped = skipped
        self._say = say
        self._useless: dict[Path, str] = {}
        self._lists: dict[Path, dict[str, dict[str, Any]] | None] = {}

    def is_list(self, path: Path) -> bool:
        """Whether a file lists captions, and so is no document itself."""
        return path.name in _LISTS and self._rows(path.parent) is not None

    def document(self, medium: Medium, path: Path, name: str) -> Document | None:
        """The medium in a file with its caption, if it has one; None where it cannot be read, which is noted."""
        try:
            if not path.is_file():
                raise Unreadable("a broken link" if path.is_symlink() else "not a regular file")
            if path.stat().st_size == 0:
                raise Unreadable("empty")
            said, listed = self._row(path)
            # Without any list, a folder below the one that was named says what is in its files.
            otherwise = name.split("/")[-2].replace("_", " ") if "/" in name and not listed else ""
            return medium_document(medium, path, said, self._column, name, otherwise, self._shrink)
        except (Unreadable, OSError) as error:
            self._skipped.append(Skipped(name, words(error)))
            return None

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
            elif why := self._useless.pop(folder, ""):
                self._say(why)
            folder = folder.parent
        return {}, listed

    def _rows(self, folder: Path) -> dict[str, dict[str, Any]] | None:
        """Rows of a folder's list by the file they speak of."""
        if folder not in self._lists:
            self._lists[folder] = None
            for name in _LISTS:
                if not (folder / name).is_file():
                    continue
                if rows := self._read_list(folder / name):
                    self._lists[folder] = rows
                    break
        return self._lists[folder]

    def _read_list(self, path: Path) -> dict[str, dict[str, Any]]:
        try:
            text = path.read_text(encoding="utf-8-sig")
            if path.suffix == ".jsonl":
                table = [json.loads(line) for line in text.split("\n") if line.strip()]
            else:
                table = self._table(text, path)
        except (OSError, ValueError, RecursionError, csv.Error) as error:
            why = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else words(error)
            self._skipped.append(Skipped(path.name, why))
            self._useless[path.parent] = f"no captions are taken from {path}: {why}"
            return {}
        rows = [row for row in table if isinstance(row, dict)]
        column = next((c for c in _FILE_COLUMNS if rows and isinstance(rows[0].get(c), str)), None)
        if column is None:
            needed = f"{', '.join(_FILE_COLUMNS[:-1])} or {_FILE_COLUMNS[-1]}"
            self._useless[path.parent] = f"no captions are taken from {path}: it has no column {needed}"
            return {}
        return {str(row[column]): row for row in rows if row.get(column)}

    def _table(self, text: str, path: Path) -> list[dict[str, Any]]:
        """Rows of a list with a first line of names, or, where that begins with a file that is there, of files and captions."""
        delimiter = "\t" if path.suffix == ".tsv" else ","
        cells = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        first = next(cells, [])
        if len(first) == 2 and first[0] not in _FILE_COLUMNS and (path.parent / first[0]).is_file():
            return [{"file": row[0], self._column or "text": row[1]} for row in (first, *cells) if len(row) == 2]
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
