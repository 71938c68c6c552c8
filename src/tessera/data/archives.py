"""Tar files of samples, as WebDataset writes them -> documents.

Files that stand one after the other and share a name up to its first dot are one sample: `0007.jpg` and `0007.json`. One of them
is a picture, a film or a recording; `.txt` and `.caption` are its caption, `.json` what else is known of it, with the columns
that a list of captions has. A sample without a medium is the text that `.txt` or `.json` holds. An archive is read as a stream,
from its beginning to its end, and nothing is ever unpacked to disk.
"""

from __future__ import annotations

import itertools
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tessera.data.captions import NOT_ASKED, Medium, medium_document, medium_of
from tessera.data.films import Shrink
from tessera.data.pictures import MOST_BYTES
from tessera.data.reasons import Skipped, Unreadable, words
from tessera.tokens.document import Document

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_WORDS = ("txt", "caption")
_TEXT_COLUMNS = ("text", "content")


def is_archive(name: str) -> bool:
    """Whether a file's ending is that of a tar file."""
    return name.lower().endswith(ENDINGS)


def read_archive(
    path: Path, name: str, column: str | None, skipped: list[Skipped], wanted: frozenset[Medium], shrink: Shrink | None = None
) -> Iterator[Document]:
    """Documents of the samples of a tar file, in its order.

    Args:
        name: what it is called.
        column: of `.json` that holds the caption or the text; None: as in a list of captions.
        skipped: what is left out is appended here; what an archive has no use for in one line for all its samples.
        wanted: media that are asked for; others are left out.
        shrink: of the frames of a film, as `read_film` takes it.
    """
    why: Counter[str] = Counter()
    # Opening a pipe would wait for ever.
    if path.exists() and not path.is_file():
        skipped.append(Skipped(name, "not a regular file"))
        return
    try:
        with tarfile.open(path, "r|*", tarinfo=_Member) as archive:
            for key, members in itertools.groupby(_files(archive), lambda member: _key(member.name)):
                try:
                    yield _document(archive, members, f"{name}/{key}", column, wanted, shrink)
                except _NotAsked as left:
                    why[str(left)] += 1
                except (Unreadable, UnicodeDecodeError) as error:
                    reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else words(error)
                    skipped.append(Skipped(f"{name}/{key}", reason))
    # What breaks off in the middle of a member, or of what packs it, says so in many ways.
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        skipped.append(Skipped(name, f"a damaged archive ({words(error)})"))
    skipped += [Skipped(name, f"{count} samples: {reason}") for reason, count in why.items()]


class _Member(tarfile.TarInfo):
    """A header, without which an archive is not whole: tarfile takes one that breaks off for one that ends."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        """As in `TarInfo`."""
        if len(buf) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it breaks off")
        return super().frombuf(buf, encoding, errors)


class _NotAsked(Exception):
    """A sample is whole and of no use."""


def _files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members that can be parts of samples: no folders, links, devices, nor what hides."""
    while (member := archive.next()) is not None:
        # Else the archive remembers every one of millions.
        archive.members.clear()  # type: ignore[attr-defined]
        if member.isfile() and not member.name.rpartition("/")[2].startswith("."):
            yield member


def _key(name: str) -> str:
    """What the files of a sample share: the folder and the name up to its first dot."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    return folder + slash + last.partition(".")[0]


def _document(
    archive: tarfile.TarFile,
    members: Iterator[tarfile.TarInfo],
    name: str,
    column: str | None,
    wanted: frozenset[Medium],
    shrink: Shrink | None,
) -> Document:
    """The document of one sample.

    Raises:
        Unreadable, UnicodeDecodeError: it is damaged.
        _NotAsked: it holds nothing that is asked for.
    """
    said: dict[str, Any] = {}
    media: list[tuple[Medium, bytes]] = []
    unwanted = ""
    # A stream knows its members only until the next one: each is read before that.
    for member in members:
        ending = member.name.rpartition(".")[2].lower()
        medium = medium_of(member.name, wanted)
        if medium is not None and medium not in wanted:
            unwanted = NOT_ASKED[medium]
        elif medium is not None or ending in _WORDS or ending == "json":
            if member.size > MOST_BYTES:
                size, most = member.size / 1e6, MOST_BYTES / 1e6
                raise Unreadable(f"{member.name} has {size:,.0f} MB, more than the {most:.0f} that are read")
            opened = archive.extractfile(member)
            assert opened is not None
            data = opened.read()
            if medium is not None:
                media.append((medium, data))
            elif ending == "json":
                said = {**_fields(data), **said}
            else:
                said["text"] = data.decode("utf-8-sig").strip()
    if media:
        return medium_document(*media[0], said, column, name, shrink=shrink)
    texts = (said.get(key) for key in ((column,) if column else _TEXT_COLUMNS))
    text = next((text for text in texts if isinstance(text, str) and text.strip()), "")
    if unwanted or not text:
        raise _NotAsked(unwanted or "no picture, film, recording, .txt or .json with a text")
    return Document.of_text(text, name)


def _fields(data: bytes) -> dict[str, Any]:
    try:
        row = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"its .json is none ({error})") from None
    return row if isinstance(row, dict) else {}
