"""Files on disk -> documents.

`read_files` walks a folder, a glob or one file in sorted order and reads each by its ending: plain text (prose, any source
code), rows of JSON, CSV, TSV or Parquet, and gzip or zstd of these, streaming wherever the format allows it; and pictures,
films and recordings, with their captions (`captions`). What cannot be read never stops a run: it is left out and noted as
`Skipped` with its reason.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tessera.data.archives import is_archive, read_archive
from tessera.data.captions import NOT_ASKED, Captions, Medium, medium_of
from tessera.data.features import Columns, media_documents
from tessera.data.films import Shrink
from tessera.data.reasons import Skipped, Unreadable, words
from tessera.errors import UserError
from tessera.tokens.document import Document

IGNORED_FOLDERS = frozenset({"node_modules", "__pycache__", "venv", "env", "site-packages"})
TEXT_COLUMNS = ("text", "content")
# A longer text file becomes several documents, cut at line ends, so that memory stays bounded whatever its size.
PIECE_CHARACTERS = 16_000_000
# How many rows are looked at to choose a text column.
ROWS_SEEN = 50

Say = Callable[[str], None]


def read_files(
    pattern: str,
    column: str | None,
    skipped: list[Skipped],
    say: Say,
    wanted: frozenset[Medium] = frozenset({"image"}),
    shrink: Shrink | None = None,
) -> Iterator[Document]:
    """Documents of a file, of every file below a folder, or of every file that a glob matches, in sorted order.

    `**` matches any number of folders and `~` is the home folder. Hidden files and folders, `node_modules`, `__pycache__` and
    virtual environments are passed over. `Document.source` is the path relative to the folder, or to the part of the glob
    before its first wildcard, so that it does not depend on where the data lie. Pictures, films and recordings that are not
    `wanted` are left out unread; where films are, GIFs are films, whose frames go through `shrink` one by one.

    Raises:
        UserError: there is no such file or folder.
    """
    # Unlike `Path.expanduser`, this leaves the home of nobody as it stands.
    path = Path(os.path.expanduser(pattern))
    wild = [i for i, part in enumerate(path.parts) if re.search(r"[*?\[]", part)]
    # A folder may really be called `a[1]`.
    if wild and not os.path.exists(path):
        base = Path(*path.parts[: wild[0]])
        try:
            matches = _glob_matcher(path.parts[wild[0] :])
        except re.error as error:
            raise UserError(f"files:{pattern}: its brackets hold no set of characters ({error.msg}); write [a-z].") from None
    else:
        base, matches = path, lambda name: True
    if not os.path.exists(base):
        raise UserError(f"files:{pattern}: there is no file or folder {base}, or it may not be read.")
    if base == path and not (base.is_dir() or base.is_file()):
        raise UserError(f"files:{pattern}: {base} is neither a file nor a folder.")
    if base != path and not base.is_dir():
        raise UserError(f"files:{pattern}: {base} is no folder, so that nothing lies below it.")
    captions = Captions(column, skipped, say, shrink)
    whole = base.is_file()
    for name in [base.name] if whole else walk(base, skipped):
        file = base if whole else base / name
        if not (whole or matches(name)) or captions.is_list(file):
            continue
        medium = medium_of(name, wanted)
        if medium is not None and medium not in wanted:
            skipped.append(Skipped(name, NOT_ASKED[medium]))
        elif medium is not None:
            if (document := captions.document(medium, file, name)) is not None:
                yield document
        elif is_archive(name):
            yield from read_archive(file, name, column, skipped, wanted, shrink)
        else:
            yield from read_file(file, name, column, skipped, say, wanted, shrink)


def walk(base: Path, skipped: list[Skipped], ignored: frozenset[str] = IGNORED_FOLDERS) -> Iterator[str]:
    """Relative paths of the files below `base`, `/` between folders, sorted. Links are followed, each folder entered once."""
    entered: set[tuple[int, int]] = set()

    def inside(folder: Path, prefix: str) -> Iterator[str]:
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(Skipped(prefix or ".", words(error)))
            return
        # Links may form a loop.
        if (status.st_dev, status.st_ino) in entered:
            return
        entered.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # A link to itself cannot even be asked what it is; reading it as a file says so.
            is_folder = False
            with contextlib.suppress(OSError):
                is_folder = entry.is_dir()
            if is_folder:
                # A virtual environment can have any name, but always holds this file.
                if entry.name not in ignored and not os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
                    yield from inside(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name

    return inside(base, "")


def read_file(
    path: Path,
    name: str,
    column: str | None,
    skipped: list[Skipped],
    say: Say,
    wanted: frozenset[Medium] = frozenset(),
    shrink: Shrink | None = None,
) -> Iterator[Document]:
    """Documents of one file.

    Args:
        name: what they are called.
        column: of a table that holds the text, or the caption of a medium; None: one is chosen.
        wanted: media in a table's rows that are documents with their captions; the texts of other tables are.
        shrink: of the frames of a film, as `read_film` takes it.
    """
    kind, compression = _kind(path.name)
    try:
        if not os.path.exists(path):
            raise Unreadable("a broken link" if path.is_symlink() else "it is gone, or in a folder that may not be read")
        # Opening a pipe or a device would wait for ever.
        if not path.is_file():
            raise Unreadable("not a regular file")
        if path.stat().st_size == 0:
            raise Unreadable("empty")
        with _stream(path, compression) as stream:
            if kind == "text":
                yield from _texts(stream, name)
            elif kind == "json":
                yield from _json(stream.read(), name, column, skipped, say)
            elif kind == "parquet":
                yield from _parquet(stream, name, column, skipped, say, wanted, shrink)
            else:
                separator = "\t" if kind == "tsv" else ","
                rows = _json_lines(stream, name, skipped) if kind == "jsonl" else _separated(stream, separator, say)
                yield from rows_to_documents(rows, name, column, skipped, say)
    except Unreadable as error:
        skipped.append(Skipped(name, str(error)))
    except UnicodeDecodeError:
        skipped.append(Skipped(name, "not UTF-8"))
    # Arrow's errors are OSError, ValueError and NotImplementedError.
    except (OSError, ValueError, NotImplementedError, csv.Error) as error:
        skipped.append(Skipped(name, words(error)))


def rows_to_documents(
    rows: Iterable[tuple[int, Any]], name: str, column: str | None, skipped: list[Skipped], say: Say
) -> Iterator[Document]:
    """Numbered rows -> a document of each row's text: the row itself where it is a string, else its text column.

    The column is `column`, else `text`, else `content`, else the one with the longest strings in the first rows.
    """
    iterator = iter(rows)
    head = list(itertools.islice(iterator, ROWS_SEEN))
    tables = [row for _, row in head if isinstance(row, dict)]
    if tables:
        chosen = column or choose_column(tables)
        if chosen is None:
            raise Unreadable("none of its columns holds text")
        if column is None and chosen not in TEXT_COLUMNS:
            say(f"took the column {chosen!r} as the text; #column=NAME picks another")
    without = 0
    for number, row in itertools.chain(head, iterator):
        text = row.get(chosen) if tables and isinstance(row, dict) else row
        if isinstance(text, str) and text.strip():
            yield Document.of_text(text, f"{name}[{number}]")
        else:
            without += 1
    if without:
        skipped.append(Skipped(name, f"{without} rows without text" + (f" in the column {chosen!r}" if tables else "")))


def choose_column(rows: list[dict[str, Any]]) -> str | None:
    """`text`, else `content`, else the column with the longest strings (the first of equals); None where none holds words."""
    for name in TEXT_COLUMNS:
        if any(isinstance(row.get(name), str) for row in rows):
            return name
    lengths: dict[str, int] = {}
    for row in rows:
        for key, value in row.items():
            if isinstance(key, str) and isinstance(value, str) and re.search(r"[^\W\d_]", value):
                lengths[key] = lengths.get(key, 0) + len(value)
    return max(lengths, key=lambda key: lengths[key], default=None)


def _texts(stream: io.BufferedIOBase, name: str) -> Iterator[Document]:
    """A text file as one document, a very long one as several."""
    # utf-8-sig drops a byte order mark.
    decode = codecs.getincrementaldecoder("utf-8-sig")()
    buffer, number, rest = "", 0, True
    while rest:
        data = stream.read(PIECE_CHARACTERS)
        if b"\0" in data:
            raise Unreadable("binary")
        rest = bool(data)
        buffer += decode.decode(data, final=not rest)
        if len(buffer) >= PIECE_CHARACTERS and rest:
            cut = buffer.rfind("\n") + 1 or len(buffer)
            yield Document.of_text(buffer[:cut], f"{name}[{number}]")
            buffer, number = buffer[cut:], number + 1
    if buffer.strip():
        yield Document.of_text(buffer, f"{name}[{number}]" if number else name)
    elif not number:
        raise Unreadable("empty")


def _json(data: bytes, name: str, column: str | None, skipped: list[Skipped], say: Say) -> Iterator[Document]:
    """A list is a table; an object with a text column is one row; any other JSON (settings, notebooks) is text as it stands."""
    if b"\0" in data:
        raise Unreadable("binary")
    text = data.decode("utf-8-sig")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        tree = None
    wanted = (column,) if column else TEXT_COLUMNS
    if isinstance(tree, dict) and any(isinstance(tree.get(key), str) for key in wanted):
        tree = [tree]
    if isinstance(tree, list) and tree and all(isinstance(row, dict | str) for row in tree):
        yield from rows_to_documents(enumerate(tree), name, column, skipped, say)
    elif text.strip():
        yield Document.of_text(text, name)
    else:
        raise Unreadable("empty")


def _json_lines(stream: io.BufferedIOBase, name: str, skipped: list[Skipped]) -> Iterator[tuple[int, Any]]:
    bad: list[int] = []
    try:
        for number, line in enumerate(stream):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                bad.append(number + 1)
    finally:
        if bad:
            skipped.append(Skipped(name, f"{len(bad)} lines that are not JSON, the first is line {bad[0]}"))


def _separated(stream: Any, delimiter: str, say: Say) -> Iterator[tuple[int, Any]]:
    """Rows by the names of their columns, which the first row gives where it looks like names."""
    # The default limit of 128 kB per field is less than a long document.
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    first = next((row for row in csv.reader(text, delimiter=delimiter) if row), [])
    if all(map(_is_name, first)):
        yield from enumerate(csv.DictReader(text, first, delimiter=delimiter))
        return
    say("took the first row as data, since it does not look like names of columns")
    names = [f"column {number}" for number, _ in enumerate(first, 1)]
    yield 0, dict(zip(names, first, strict=True))
    yield from enumerate(csv.DictReader(text, names, delimiter=delimiter), 1)


def _is_name(cell: str) -> bool:
    """Whether a column may be called so: a few words, or nothing, as pandas calls an index; no number and no sentence."""
    number = re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?", cell.strip(), re.IGNORECASE)
    return number is None and "\n" not in cell and len(cell) <= _LONGEST_NAME and len(cell.split()) <= _WORDS_OF_A_NAME


def _parquet(
    stream: io.BufferedIOBase,
    name: str,
    column: str | None,
    skipped: list[Skipped],
    say: Say,
    wanted: frozenset[Medium],
    shrink: Shrink | None,
) -> Iterator[Document]:
    """Rows with media that are asked for, else the texts of the rows."""
    import pyarrow
    import pyarrow.parquet

    # A compressed stream cannot be read from its end, where Parquet keeps its index.
    seekable = stream if stream.seekable() else io.BytesIO(stream.read())
    table = pyarrow.parquet.ParquetFile(seekable)
    schema, types = table.schema_arrow, pyarrow.types
    columns = _columns(schema)
    medium = columns.first(wanted)
    texts = types.is_string, types.is_large_string, types.is_string_view, types.is_dictionary
    strings = [f.name for f in schema if any(holds(f.type) for holds in texts)]

    def rows(names: list[str]) -> Iterator[tuple[int, Any]]:
        return enumerate(row for batch in table.iter_batches(batch_size=256, columns=names) for row in batch.to_pylist())

    if medium is not None:
        yield from media_documents(rows([*strings, *columns.labels, medium]), columns, medium, column, name, skipped, shrink)
        return
    if not strings:
        left = next(iter(columns.media.values()), None)
        raise Unreadable(NOT_ASKED[left] if left else "none of its columns holds text")
    first = [name for name in ([column] if column else TEXT_COLUMNS) if name in strings][:1]
    yield from rows_to_documents(rows(first or strings), name, column, skipped, say)


def _columns(schema: Any) -> Columns:
    """What a Parquet file's columns hold, as Hugging Face wrote it into the file; nothing where somebody else wrote it."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return Columns.of(about["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return Columns()


_LONGEST_NAME, _WORDS_OF_A_NAME = 64, 6
"""Characters and words that the name of a column may have."""
_KINDS = {"jsonl": "jsonl", "ndjson": "jsonl", "json": "json", "csv": "csv", "tsv": "tsv", "parquet": "parquet", "pq": "parquet"}


def _kind(name: str) -> tuple[str, str | None]:
    """What a file's ending says: the reader, and the compression or None."""
    stem, _, ending = name.lower().rpartition(".")
    compression = {"gz": "gzip", "zst": "zstd"}.get(ending)
    if compression:
        ending = stem.rpartition(".")[2]
    return _KINDS.get(ending, "text"), compression


def _stream(path: Path, compression: str | None) -> Any:
    """The file's bytes, unpacked as they are read; a truncated archive raises OSError where it breaks off."""
    if compression is None:
        return open(path, "rb")
    import pyarrow

    return io.BufferedReader(_Readable(pyarrow.input_stream(str(path), compression=compression)))


class _Readable(io.RawIOBase):
    """An Arrow stream as Python's own kind of stream, which knows lines."""

    def __init__(self, arrow: Any) -> None:
        self.arrow = arrow

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return int(self.arrow.readinto(buffer))


def _glob_matcher(parts: tuple[str, ...]) -> Callable[[str], bool]:
    """Tells whether a relative path matches a glob's parts: `*` and `?` stay within a name, `**` spans folders."""
    pattern = ""
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if part == "**":
            pattern += ".*" if last else "(?:.*/)?"
            continue
        for token in re.findall(r"\[!?[^\]]+\]|.", part):
            if token[0] == "[" and len(token) > 1:
                pattern += token.replace("[!", "[^", 1)
            else:
                pattern += {"*": "[^/]*", "?": "[^/]"}.get(token, re.escape(token))
        pattern += "" if last else "/"
    compiled = re.compile(pattern, re.DOTALL)
    return lambda name: compiled.fullmatch(name) is not None
