"""Sources -> the documents that a run uses, in a folder of the cache.

`gather` reads every source once, drops repeats, holds out the validation split and writes what is left as JSON lines, one
document each, in memory that does not grow with the data but for a digest and a sketch per document. The corpus is named by
the hash of its content: the same documents, split alike, are the same corpus.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tessera import recipe
from tessera.data.captions import NOT_ASKED, Medium
from tessera.data.dedup import Deduplicator
from tessera.data.film_tasks import film_cut
from tessera.data.films import Shrink, captioned_film, cut_film, film_parts, fitted_film, resampled
from tessera.data.folders import aside, publish
from tessera.data.picture_tasks import picture_cut
from tessera.data.pictures import fitted
from tessera.data.sounds import captioned_sound, cut_sound, fitted_sound, sound_parts
from tessera.data.sources import FROM_FILES, Skipped, documents
from tessera.errors import UserError
from tessera.tokens.document import Document, Segment
from tessera.tokens.films import films_of, is_film
from tessera.tokens.pictures import is_picture, picture_segment, pictures_of
from tessera.tokens.sounds import is_sound, sounds_of
from tessera.tokens.text import scalar_text

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
_SAY_SECONDS = 10.0
PIECE = 8192
"""Characters of a long text that are held out together."""
FEW = 10
"""Documents that have to be held out, or long ones are split in pieces: a few books that happen to be drawn are another language
than the rest, and two runs that differ by noise come out in any order on them (docs/LOG.md, 2026-11-29, "Whole books")."""


@dataclass(frozen=True)
class SourceSummary:
    """What became of a source.

    Args:
        documents: kept, both splits.
        bytes: UTF-8 bytes of their text.
        exact_duplicates: dropped because an earlier document was equal.
        near_duplicates: dropped because an earlier document was nearly equal.
        skipped: files and rows that could not be read.
        pictures, films, sounds: in these documents.
    """

    uri: str
    documents: int
    bytes: int
    exact_duplicates: int
    near_duplicates: int
    skipped: tuple[Skipped, ...]
    pictures: int = 0
    films: int = 0
    sounds: int = 0


@dataclass(frozen=True)
class Corpus:
    """Gathered documents on disk.

    Args:
        hash: hex, of the documents, their order and their split.
        train_bytes, validation_bytes: UTF-8 bytes of text in each split.
    """

    folder: Path
    hash: str
    sources: tuple[SourceSummary, ...]
    train_bytes: int
    validation_bytes: int

    def documents(self, split: Split, source_index: int) -> Iterator[Document]:
        """One source's documents of one split, in the order in which they were read."""
        with (self.folder / _file(source_index, split)).open("rb") as file:
            for line in file:
                yield _parse(line)

    @property
    def pictures(self) -> int:
        """In all documents of both splits."""
        return sum(source.pictures for source in self.sources)

    @property
    def films(self) -> int:
        """In all documents of both splits."""
        return sum(source.films for source in self.sources)

    @property
    def sounds(self) -> int:
        """In all documents of both splits."""
        return sum(source.sounds for source in self.sources)

    def texts(self, split: Split) -> Iterator[str]:
        """The text of every document of a split, source after source."""
        for index in range(len(self.sources)):
            for document in self.documents(split, index):
                yield document.text


def gather(data: recipe.Data, cache: Path, say: Callable[[str], None]) -> Corpus:
    """Reads, deduplicates and splits the documents of a recipe.

    A document belongs to validation when the hash of its content and `data.seed` falls below `data.validation_fraction`, so that
    adding documents moves none. Each source has at least one document in either split. Where fewer than `FEW` documents would be
    held out, pieces of the long ones are drawn instead of whole ones; of a source that is one single document, the end of its
    text.

    Args:
        cache: folder of the caller's choice; the corpus lies in `cache/corpus-HASH`.
        say: told what was found, one line per source.

    Raises:
        UserError: a source that yields nothing or cannot be read, a full disk.
    """
    seen = Deduplicator(data.deduplicate)
    summaries: list[SourceSummary] = []
    text_bytes = {"train": 0, "validation": 0}
    with aside(cache) as folder:
        for index, source in enumerate(data.sources):
            summary = _spool(folder, index, source.uri, data, seen, say)
            say(_describe(summary))
            summaries.append(summary)
        digest = hashlib.blake2b(digest_size=16)
        for index in range(len(data.sources)):
            for split in ("train", "validation"):
                digest.update(f"{index} {split}\n".encode())
                with (folder / _file(index, split)).open("rb") as file:
                    for line in file:
                        digest.update(line)
                        text_bytes[split] += len(_parse(line).text.encode())
        target = cache / f"corpus-{digest.hexdigest()}"
        publish(folder, target, {"sources": [s.uri for s in data.sources], **{f"{k}_bytes": v for k, v in text_bytes.items()}})
    return Corpus(target, digest.hexdigest(), tuple(summaries), text_bytes["train"], text_bytes["validation"])


def wanted_media(data: recipe.Data) -> frozenset[Medium]:
    """What a recipe has a use for beside text."""
    asked: dict[Medium, object] = {"image": data.pictures, "video": data.films, "audio": data.sounds}
    return frozenset(medium for medium, settings in asked.items() if settings is not None)


def _spool(
    folder: Path, index: int, uri: str, data: recipe.Data, seen: Deduplicator, say: Callable[[str], None]
) -> SourceSummary:
    """Writes one source's two files."""
    skipped: list[Skipped] = []
    dropped = {"exact": 0, "near": 0}
    # Each document's place between 0 and 1: those below the fraction are held out.
    places: dict[Split, list[float]] = {"train": [], "validation": []}
    cut = picture_cut(data.pictures) if data.pictures else None
    multiple = cut.stride if cut else 1
    total_bytes, pictures, films, sounds, next_line = 0, 0, 0, 0, time.monotonic() + _SAY_SECONDS
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context((folder / _file(index, split)).open("wb")) for split in places}
        read_from_files = uri.startswith(FROM_FILES)
        found = documents(uri, skipped, say, wanted_media(data), _shrink(data.films))
        for document in _fit_sounds(_fit_films(found, data.films, read_from_files), data.sounds, skipped):
            there = pictures_of(document)
            if there and data.pictures is None:
                skipped.append(Skipped(document.source, NOT_ASKED["image"]))
                continue
            if films_of(document) and data.films is None:
                skipped.append(Skipped(document.source, NOT_ASKED["video"]))
                continue
            if sounds_of(document) and data.sounds is None:
                skipped.append(Skipped(document.source, NOT_ASKED["audio"]))
                continue
            if data.pictures is not None:
                document = _fit_pictures(document, data.pictures.most_pixels, multiple)
            tree = _tree(document)
            line = _line(tree, document.source)
            # Where a picture came from does not make it another one; captions alone do not make two alike.
            content = tree["text"] if "text" in tree else _line(tree).decode()
            if repeat := seen.seen(content, alike=not (there or films_of(document) or sounds_of(document))):
                dropped[repeat] += 1
                continue
            pictures += len(there)
            films += len(films_of(document))
            sounds += len(sounds_of(document))
            place = _place(content, data.seed)
            split: Split = "validation" if place < data.validation_fraction else "train"
            places[split].append(place)
            files[split].write(line)
            total_bytes += len(document.text.encode())
            if time.monotonic() > next_line:
                say(f"{uri}: {len(places['train']) + len(places['validation']):,} documents, {total_bytes / 1e6:,.1f} MB so far")
                next_line = time.monotonic() + _SAY_SECONDS
    count = len(places["train"]) + len(places["validation"])
    if not count and not sum(dropped.values()):
        raise UserError(_nothing_left(uri, skipped))
    if not count:
        raise UserError(
            f"source {uri} only repeats documents of the sources before it; leave it out, or set data.deduplicate=none."
        )
    if count == 1:
        _hold_out_end(folder, index, data.validation_fraction)
        say(f"{uri}: one document, so the last {data.validation_fraction:.0%} of its text is held out")
    elif 0 < count * data.validation_fraction < FEW and _hold_out_pieces(folder, index, data):
        say(f"{uri}: few documents, so pieces of {PIECE:,} characters are held out from all over them")
    elif not places["validation"]:
        _move(folder, index, "train", "validation", int(np.argmin(places["train"])))
    elif not places["train"]:
        _move(folder, index, "validation", "train", int(np.argmax(places["validation"])))
    return SourceSummary(uri, count, total_bytes, dropped["exact"], dropped["near"], tuple(skipped), pictures, films, sounds)


def _nothing_left(uri: str, skipped: Sequence[Skipped]) -> str:
    """Why none of a source's documents can be used."""
    reasons = {s.reason for s in skipped}
    media: dict[Medium, tuple[str, str]] = {
        "video": ("films", "film"), "audio": ("sounds", "speak"), "image": ("pictures", "draw, see or pixels")
    }  # fmt: skip
    for medium, (what, use) in media.items():
        if NOT_ASKED[medium] in reasons:
            return f"source {uri} has nothing but {what}, and the recipe has no data.{what}; train {use}."
    first = skipped[0]
    return f"none of the {len(skipped):,} documents of source {uri} can be used; the first, {first.path}: {first.reason}."


def _describe(summary: SourceSummary) -> str:
    return (
        f"{summary.uri}: {summary.documents:,} documents, {summary.bytes / 1e6:,.1f} MB"
        + (f", {summary.pictures:,} pictures" if summary.pictures else "")
        + (f", {summary.films:,} films" if summary.films else "")
        + (f", {summary.sounds:,} recordings" if summary.sounds else "")
        + f"; dropped {summary.exact_duplicates:,} exact and {summary.near_duplicates:,} near duplicates; "
        f"skipped {len(summary.skipped):,}"
    )


def _place(content: str, seed: int) -> float:
    """Uniform in [0, 1), from the content and the seed alone."""
    digest = hashlib.blake2b(content.encode(), digest_size=8, salt=seed.to_bytes(16, "little", signed=True)).digest()
    return int.from_bytes(digest, "little") / 2**64


def _move(folder: Path, index: int, origin: Split, to: Split, position: int) -> None:
    """Moves one document to the other, empty split."""
    rest = folder / "rest"
    with (
        (folder / _file(index, origin)).open("rb") as lines,
        rest.open("wb") as kept,
        (folder / _file(index, to)).open("wb") as moved,
    ):
        for number, line in enumerate(lines):
            (moved if number == position else kept).write(line)
    rest.replace(folder / _file(index, origin))


def _hold_out_end(folder: Path, index: int, fraction: float) -> None:
    """Cuts a source's only document in two, at the line end nearest before the fraction, or mid-line in a text of one line."""
    lines = [
        line
        for split in ("train", "validation")
        for line in (folder / _file(index, split)).read_bytes().splitlines(keepends=True)
    ]
    document = _parse(lines[0])
    text = document.text
    if "text" not in _tree(document) or len(text) < 2:
        raise UserError(
            f"source {index + 1} is one document that cannot be split for validation; give it at least two documents."
        )
    cut = max(1, round(len(text) * (1 - fraction)))
    cut = text.rfind("\n", 0, cut) + 1 or cut
    for split, part in (("train", text[:cut]), ("validation", text[cut:])):
        (folder / _file(index, split)).write_bytes(_line({"text": part}, document.source))


def _hold_out_pieces(folder: Path, index: int, data: recipe.Data) -> bool:
    """Splits a source anew, long texts piece by piece; False, and nothing done, where none is long or one split would be empty.

    What lies between two pieces that are held out stays together.
    """
    fresh = {split: folder / f"fresh-{split}" for split in SPLITS}
    written, cut = dict.fromkeys(SPLITS, 0), False
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(path.open("wb")) for split, path in fresh.items()}

        def write(split: Split, line: bytes) -> None:
            files[split].write(line)
            written[split] += 1

        for origin in SPLITS:
            for line in stack.enter_context((folder / _file(index, origin)).open("rb")):
                document = _parse(line)
                if "text" not in _tree(document) or len(document.text) < 2 * PIECE:
                    write(origin, line)
                    continue
                cut = True
                places = ((_place(piece, data.seed) < data.validation_fraction, piece) for piece in _pieces(document.text))
                for held_out, group in itertools.groupby(places, key=lambda pair: pair[0]):
                    for text in (piece for _, piece in group) if held_out else ["".join(piece for _, piece in group)]:
                        write("validation" if held_out else "train", _line({"text": text}, document.source))
    done = cut and all(written.values())
    for split, path in fresh.items():
        if done:
            path.replace(folder / _file(index, split))
        else:
            path.unlink()
    return done


def _pieces(text: str) -> Iterator[str]:
    """Stretches of at least `PIECE` characters that end with a line, or where there is none for as long again."""
    begin = 0
    while len(text) - begin >= 2 * PIECE:
        end = text.find("\n", begin + PIECE, begin + 2 * PIECE) + 1 or begin + PIECE
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _file(index: int, split: str) -> str:
    return f"{index}-{split}.jsonl"


def _tree(document: Document) -> dict[str, Any]:
    """What a document says, for JSON; media ids as a list with their shape, pixels and samples packed."""
    if len(document.segments) == 1 and document.segments[0].kind == "text" and document.segments[0].learn:
        return {"text": document.text}
    segments = []
    for s in document.segments:
        content: Any = s.content
        if isinstance(s.content, np.ndarray):
            kept = "samples" if is_sound(s) else "pixels" if is_picture(s) or is_film(s) else ""
            packed = base64.b64encode(zlib.compress(s.content.tobytes(), 1)).decode() if kept else ""
            body: dict[str, Any] = {kept: packed} if kept else {"ids": s.content.ravel().tolist()}
            content = {**body, "shape": list(s.content.shape)}
            if s.per_second:
                content["per_second"] = s.per_second
        segments.append([s.kind, content, s.learn])
    return {"segments": segments}


def _line(tree: dict[str, Any], source: str = "") -> bytes:
    """A document as one line of JSON."""
    # A file's name may be no UTF-8.
    return json.dumps({**tree, "source": scalar_text(source)}, ensure_ascii=False).encode() + b"\n"


_PACKED = {"pixels": np.uint8, "samples": np.int16}


def _parse(line: bytes) -> Document:
    tree = json.loads(line)
    if "text" in tree:
        return Document.of_text(tree["text"], tree["source"])
    segments = []
    for kind, content, learn in tree["segments"]:
        per_second = content.get("per_second", 0.0) if isinstance(content, dict) else 0.0
        packed = next((key for key in _PACKED if isinstance(content, dict) and key in content), None)
        if packed is not None:
            raw = zlib.decompress(base64.b64decode(content[packed]))
            content = np.frombuffer(raw, _PACKED[packed]).reshape(content["shape"])
        elif isinstance(content, dict):
            content = np.array(content["ids"], dtype=np.int64).reshape(content["shape"])
        segments.append(Segment(kind, content, learn, per_second))
    return Document(tuple(segments), tree["source"])


def _shrink(settings: recipe.Films | None) -> Shrink | None:
    """Brings frames to the size that a recipe wants."""
    if settings is None:
        return None
    stride = film_cut(settings).stride
    return lambda frame: fitted(frame, settings.most_pixels, stride)


def _fit_films(documents: Iterable[Document], settings: recipe.Films | None, shrunk: bool) -> Iterator[Document]:
    """The documents with films at the rate, the size and of the length that a recipe wants; a long one becomes several.

    Args:
        shrunk: their size is right already. To bring it there twice would not give the same: sides are rounded up too.
    """
    if settings is None:
        yield from documents
        return
    cut = film_cut(settings)
    for document in documents:
        found = film_parts(document)
        if found is None:
            yield document
            continue
        parts, per_second = found
        # Small ones first: at another rate there may be many more of them.
        frames = parts.signal if shrunk else fitted_film(parts.signal, settings.most_pixels, cut.stride)
        frames = resampled(frames, per_second, settings.per_second)
        for film in cut_film(frames, settings.most_frames, cut.time_stride):
            yield captioned_film(film, parts.caption, settings.per_second, document.source, parts.questions)


def _fit_sounds(documents: Iterable[Document], settings: recipe.Sounds | None, skipped: list[Skipped]) -> Iterator[Document]:
    """The documents with recordings at the rate that a recipe wants, all as loud; one that is too long is left out, or cut if it
    has no words."""
    if settings is None:
        yield from documents
        return
    most = round(settings.most_seconds * settings.per_second)
    for document in documents:
        found = sound_parts(document)
        if found is None:
            yield document
            continue
        parts, per_second = found
        samples = fitted_sound(parts.signal, per_second, settings.per_second)
        if len(samples) > most and (parts.caption or parts.questions):
            skipped.append(Skipped(document.source, f"longer than {settings.most_seconds:g} s (data.sounds.most_seconds)"))
            continue
        for piece in cut_sound(samples, most):
            yield captioned_sound(piece, parts.caption, parts.questions, settings.per_second, document.source)


def _fit_pictures(document: Document, most_pixels: int, multiple: int) -> Document:
    """The document with pictures of at most so many pixels, whose sides are multiples."""
    segments = (
        picture_segment(fitted(np.asarray(s.content), most_pixels, multiple), s.learn) if is_picture(s) else s
        for s in document.segments
    )
    return Document(tuple(segments), document.source)
