"""A corpus and a vocabulary -> token files.

`tokenise` writes, for each source and split, the ids of all documents end to end, each followed by `<|endoftext|>`, and where
each document begins; which tokens are learned is written only where some are not. The folder is named by a hash of all that
went into it and is reused as it stands.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tessera import recipe
from tessera.data.corpus import SPLITS, Corpus, Split
from tessera.data.film_tasks import film_documents, held_out_films
from tessera.data.folders import aside, publish, read_manifest
from tessera.data.picture_tasks import held_out_documents, task_documents, views_of
from tessera.data.shapes import fill_in_the_middle, pieces
from tessera.data.sound_tasks import held_out_sounds, sound_documents
from tessera.errors import UserError
from tessera.tokens.document import Document, TokenRecord
from tessera.tokens.films import films_of
from tessera.tokens.media import MediaTokenizer
from tessera.tokens.pictures import pictures_of
from tessera.tokens.sounds import sounds_of
from tessera.tokens.vocabulary import Vocabulary

# Part of the name: token files of another layout are not found.
_LAYOUT = 1
_CUTS = 2
"""How `data.shapes` cuts gaps: changed with it, so that token files of another way are not taken for these."""
# On the low side for code and a small vocabulary, so that a piece and its frame fit into a row.
_CHARACTERS_PER_TOKEN = 2.5
# Text encoded at once: enough to keep all cores busy, little enough to be held in memory.
_BATCH_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class Tokens:
    """One split of one source.

    Args:
        ids: (N,) uint16 or uint32, memory-mapped.
        offsets: (documents + 1,) int64; document i is ids[offsets[i]:offsets[i + 1]] and ends with `<|endoftext|>`, where no
            other token closes it.
        learn: (N,) bool, or None where every token is learned.
    """

    ids: np.ndarray
    offsets: np.ndarray
    learn: np.ndarray | None

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.ids)


@dataclass(frozen=True)
class SourceShards:
    """The token files of one source."""

    uri: str
    train: Tokens
    validation: Tokens

    @property
    def tokens(self) -> int:
        """Training tokens."""
        return self.train.tokens


@dataclass(frozen=True)
class Shards:
    """All token files of a run; `hash` names corpus, vocabulary and shapes."""

    folder: Path
    hash: str
    sources: tuple[SourceShards, ...]
    pad_id: int

    @property
    def train_tokens(self) -> int:
        """In all sources, `<|endoftext|>` included."""
        return sum(source.train.tokens for source in self.sources)

    @property
    def validation_tokens(self) -> int:
        """In all sources, `<|endoftext|>` included."""
        return sum(source.validation.tokens for source in self.sources)


def tokenise(
    corpus: Corpus,
    vocabulary: Vocabulary,
    data: recipe.Data,
    cache: Path,
    say: Callable[[str], None],
    context: int | None = None,
) -> Shards:
    """Writes a corpus as token files, or finds the ones written before.

    Args:
        data: `fill_in_the_middle` is the share of training documents that are reshaped, `seed` chooses them.
        context: T; a document that is reshaped is first cut into pieces that fit into a row, since a model that never sees
            both sides of a gap at once cannot learn to fill it, and one with other media that does not fit is
            left out. None: documents are reshaped whole.
        cache: the folder is `cache/tokens-HASH`.

    Raises:
        UserError: the disk is full.
    """
    shape: tuple[object, ...] = (data.fill_in_the_middle, data.seed, context, _CUTS) if data.fill_in_the_middle else ()
    if data.pictures is not None and corpus.pictures:
        shape = (*shape, data.pictures.model_dump_json(), data.seed, context)
    if data.films is not None and corpus.films:
        shape = (*shape, data.films.model_dump_json(), data.seed, context)
    if data.sounds is not None and corpus.sounds:
        shape = (*shape, data.sounds.model_dump_json(), data.seed, context)
    settings = (_LAYOUT, corpus.hash, vocabulary.hash, *shape)
    name = hashlib.blake2b(repr(settings).encode(), digest_size=16).hexdigest()
    target = cache / f"tokens-{name}"
    if read_manifest(target) is not None:
        shards = open_shards(target)
        say(f"tokens: {shards.train_tokens:,} for training, {shards.validation_tokens:,} held out, written before")
        return shards
    dtype = np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.uint32)
    with aside(cache) as folder:
        left_out = 0
        for index, source in enumerate(corpus.sources):
            for split in ("train", "validation"):
                documents: Iterable[Document] = corpus.documents(split, index)
                if split == "train" and data.fill_in_the_middle:
                    documents = _reshape(documents, data.fill_in_the_middle, data.seed, context)
                most = None
                if data.pictures is not None and source.pictures:
                    documents = _tasks(documents, corpus, split, index, data, vocabulary, context)
                    most = context
                if data.films is not None and source.films:
                    documents = _film_tasks(documents, corpus, split, index, data, vocabulary)
                    most = context
                if data.sounds is not None and source.sounds:
                    documents = _sound_tasks(documents, corpus, split, index, data, vocabulary)
                    most = context
                left_out += _write(folder / f"{index}-{split}", documents, vocabulary, dtype, most)
        if left_out:
            say(f"left out {left_out:,} documents with pictures, films or sound that are longer than train.context={context}")
        uris = [source.uri for source in corpus.sources]
        publish(folder, target, {"hash": name, "sources": uris, "dtype": dtype.name, "pad_id": vocabulary.pad_id})
    shards = open_shards(target)
    say(f"tokens: {shards.train_tokens:,} for training, {shards.validation_tokens:,} held out")
    return shards


def write_records(
    target: Path, sources: Mapping[str, tuple[Iterable[TokenRecord], Iterable[TokenRecord]]], vocabulary: Vocabulary
) -> Shards:
    """Writes sequences that have their ids already, as they are, into a folder of their own.

    Args:
        target: the folder; what is there already is replaced.
        sources: where they came from -> those for training, and those that are held out.
    """
    dtype = np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.uint32)
    folder = target.with_name(f".{target.name}")
    for left in (folder, target):
        shutil.rmtree(left, ignore_errors=True)
    folder.mkdir(parents=True)
    digest = hashlib.blake2b(f"{_LAYOUT} {vocabulary.hash}".encode(), digest_size=16)
    parts_of = [
        (f"{i}-{split}", part) for i, pair in enumerate(sources.values()) for split, part in zip(SPLITS, pair, strict=True)
    ]
    for stem, records in parts_of:
        lengths = [0]
        with (folder / f"{stem}.ids").open("wb") as ids_file, (folder / f"{stem}.learn").open("wb") as learn_file:
            for record in records:
                parts = record.ids.astype(dtype).tobytes(), record.learn.tobytes()
                for file, part in zip((ids_file, learn_file), parts, strict=True):
                    file.write(part)
                    digest.update(part)
                lengths.append(len(record))
        np.cumsum(lengths).tofile(folder / f"{stem}.offsets")
        digest.update(np.array(lengths).tobytes())
    manifest = {"hash": digest.hexdigest(), "sources": list(sources), "dtype": dtype.name, "pad_id": vocabulary.pad_id}
    publish(folder, target, manifest)
    return open_shards(target)


def open_shards(folder: Path) -> Shards:
    """Token files that were written before, memory-mapped.

    Raises:
        UserError: the folder is missing or a file in it has another size than was written.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"the token files in {folder} are missing or damaged; delete the folder and run again to write them anew."
        )
    sources = tuple(
        SourceShards(uri, _open(folder, manifest, f"{i}-train"), _open(folder, manifest, f"{i}-validation"))
        for i, uri in enumerate(manifest["sources"])
    )
    return Shards(folder, manifest["hash"], sources, manifest["pad_id"])


def _open(folder: Path, manifest: dict[str, Any], stem: str) -> Tokens:
    def map_file(suffix: str, dtype: Any) -> np.ndarray:
        path = folder / f"{stem}.{suffix}"
        # An empty file cannot be mapped. The plain view of a map is faster to slice than the map.
        return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.empty(0, dtype)

    learn = map_file("learn", np.bool_) if f"{stem}.learn" in manifest["files"] else None
    return Tokens(map_file("ids", np.dtype(manifest["dtype"])), map_file("offsets", np.int64), learn)


def _reshape(documents: Iterable[Document], share: float, seed: int, context: int | None) -> Iterator[Document]:
    """Puts a share of the documents into prefix-suffix-middle, each by its own content, whatever stands around it."""
    for document in documents:
        digest = hashlib.blake2b(document.text.encode(), digest_size=16).digest()
        rng = np.random.Generator(np.random.PCG64([seed, int.from_bytes(digest, "little")]))
        if rng.random() >= share:
            yield document
            continue
        for piece in pieces(document, round(_CHARACTERS_PER_TOKEN * context) if context else None):
            yield fill_in_the_middle(piece, rng)


def _tasks(
    documents: Iterable[Document], corpus: Corpus, split: Split, index: int, data: recipe.Data, vocabulary: Vocabulary,
    context: int | None,
) -> Iterator[Document]:  # fmt: skip
    """A source's captioned pictures as what they are to teach."""
    assert data.pictures is not None
    if split == "validation":
        return held_out_documents(documents, data.pictures, data.seed)
    once = task_documents(corpus.documents(split, index), data.pictures, data.seed, 1, context)
    # Counted on the first view of each: what all of them take decides how many there are.
    tokens = 0 if data.pictures.views else sum(len(vocabulary.encode(document)) for document in once)
    return task_documents(documents, data.pictures, data.seed, views_of(data.pictures.views, tokens), context)


def _film_tasks(
    documents: Iterable[Document], corpus: Corpus, split: Split, index: int, data: recipe.Data, vocabulary: Vocabulary
) -> Iterator[Document]:
    """A source's captioned films as what they are to teach."""
    assert data.films is not None
    if split == "validation":
        return held_out_films(documents, data.films)
    tokens = 0 if data.films.views else _ids(corpus.documents(split, index), vocabulary.media_tokenizer("video"))
    return film_documents(documents, data.films, data.seed, tokens)


def _sound_tasks(
    documents: Iterable[Document], corpus: Corpus, split: Split, index: int, data: recipe.Data, vocabulary: Vocabulary
) -> Iterator[Document]:
    """A source's captioned recordings as what they are to teach."""
    assert data.sounds is not None
    if split == "validation":
        return held_out_sounds(documents, data.sounds)
    tokens = 0 if data.sounds.views else _ids(corpus.documents(split, index), vocabulary.media_tokenizer("audio"))
    return sound_documents(documents, data.sounds, data.seed, tokens)


def _ids(documents: Iterable[Document], tokenizer: MediaTokenizer) -> int:
    """How many a tokenizer makes of the films or the recordings in documents."""
    signals_of = films_of if tokenizer.kind == "video" else sounds_of
    # All but the colours of a pixel.
    return sum(math.prod(tokenizer.grid(signal.shape[:3])) for document in documents for signal in signals_of(document))


def _write(stem: Path, documents: Iterable[Document], vocabulary: Vocabulary, dtype: np.dtype, most: int | None) -> int:
    """The three files of one split of one source; returns how many documents with other media were longer than `most` + 1
    tokens, which are left out: half of a picture teaches little, and is no measure."""
    left_out = 0
    lengths = [np.zeros(1, np.int64)]
    paths = {suffix: stem.with_name(f"{stem.name}.{suffix}") for suffix in ("ids", "learn", "offsets")}
    all_learned = True
    with paths["ids"].open("wb") as ids_file, paths["learn"].open("wb") as learn_file:
        for batch in _batches(documents):
            lengths_of_batch, learned, dropped = _write_batch(batch, vocabulary, dtype, ids_file, learn_file, most)
            lengths.append(lengths_of_batch)
            all_learned &= learned
            left_out += dropped
    if all_learned:
        paths["learn"].unlink()
    np.cumsum(np.concatenate(lengths)).tofile(paths["offsets"])
    return left_out


def _write_batch(
    batch: list[Document], vocabulary: Vocabulary, dtype: np.dtype, ids_file: BinaryIO, learn_file: BinaryIO, most: int | None
) -> tuple[np.ndarray, bool, int]:
    """Appends documents; returns the lengths of those that are kept, whether all is learned, and how many were left out."""
    # All stretches of text go to the tokenizer in one call, which is parallel; the rest needs no tokenizer.
    encoded = iter(vocabulary.encode_texts([str(s.content) for d in batch for s in d.segments if s.kind == "text"]))
    ids: list[np.ndarray] = []
    learn: list[np.ndarray] = []
    lengths: list[int] = []
    dropped = 0
    for document in batch:
        first = len(ids)
        for segment in document.segments:
            if segment.kind == "text":
                part, flags = next(encoded), None
            else:
                record = vocabulary.encode(Document((segment,)))
                part, flags = record.ids, record.learn
            ids.append(part)
            learn.append(np.full(len(part), segment.learn) if flags is None else flags)
        ids.append(np.array([vocabulary.end_id]))
        learn.append(np.ones(1, np.bool_))
        length = sum(map(len, ids[first:]))
        if most is not None and length > most + 1 and _signals(document):
            del ids[first:], learn[first:]
            dropped += 1
        else:
            lengths.append(length)
    joined = np.concatenate([np.empty(0, np.bool_), *learn])
    np.concatenate([np.empty(0, np.int64), *ids]).astype(dtype).tofile(ids_file)
    joined.tofile(learn_file)
    return np.array(lengths, np.int64), bool(joined.all()), dropped


def _signals(document: Document) -> list[np.ndarray]:
    """Pixels and samples of all that is not text."""
    return [*pictures_of(document), *films_of(document), *sounds_of(document)]


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text) + 8 * sum(signal.size for signal in _signals(document))
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
