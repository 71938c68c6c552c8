"""Gathering: duplicates, the split, the cache."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tessera import recipe
from tessera.data.corpus import PIECE, Corpus, gather
from tessera.data.folders import aside, publish, read_manifest
from tessera.errors import UserError

from .conftest import quiet, write_documents


def texts(corpus: Corpus) -> dict[str, list[str]]:
    return {split: list(corpus.texts(split)) for split in ("train", "validation")}


def test_the_library_is_gathered_without_repeats(stdlib: SimpleNamespace) -> None:
    (summary,) = stdlib.corpus.sources
    assert summary.documents > 400
    assert summary.near_duplicates > 0
    assert stdlib.corpus.train_bytes + stdlib.corpus.validation_bytes == summary.bytes
    assert 0.005 < stdlib.corpus.validation_bytes / summary.bytes < 0.08


def test_planted_repeats_are_dropped_and_the_first_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in rng.integers(0, 500, 400)]
    near = words.copy()
    near[200] = "changed"
    other = [f"w{i}" for i in rng.integers(0, 500, 400)]
    for name, content in {"a": words, "b": words, "c": near, "d": other}.items():
        (tmp_path / f"{name}.txt").write_text(" ".join(content))
    kept = {}
    for mode in ("none", "exact", "near"):
        data = recipe.Data(sources=(f"files:{tmp_path}/*.txt",), deduplicate=mode)
        corpus = gather(data, tmp_path / "cache", quiet)
        kept[mode] = sorted(d.source for split in ("train", "validation") for d in corpus.documents(split, 0))
    assert kept == {
        "none": ["a.txt", "b.txt", "c.txt", "d.txt"],
        "exact": ["a.txt", "c.txt", "d.txt"],
        "near": ["a.txt", "d.txt"],
    }
    assert (corpus.sources[0].exact_duplicates, corpus.sources[0].near_duplicates) == (1, 1)


def test_short_texts_are_only_dropped_when_equal(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"{i}!")
    corpus = gather(recipe.Data(sources=(f"files:{tmp_path}/*.txt",)), tmp_path / "cache", quiet)
    assert corpus.sources[0].documents == 20


def test_a_source_of_repeats_alone_stops(tmp_path: Path) -> None:
    uri = write_documents(tmp_path / "a", [30, 40])
    with pytest.raises(UserError, match="only repeats"):
        gather(recipe.Data(sources=(uri, uri)), tmp_path / "cache", quiet)
    assert not list((tmp_path / "cache").iterdir())


def test_the_split_does_not_move_when_documents_are_added(tmp_path: Path) -> None:
    uri = write_documents(tmp_path / "a", list(range(20, 220)))
    data = recipe.Data(sources=(uri,), validation_fraction=0.2, deduplicate="exact")
    before = texts(gather(data, tmp_path / "cache", quiet))
    for i in range(100):
        (tmp_path / "a" / f"0-{i}.txt").write_text(f"new {i}")
    after = texts(gather(data, tmp_path / "cache", quiet))
    assert set(before["validation"]) < set(after["validation"])
    assert set(before["train"]) < set(after["train"])
    assert 20 <= len(before["validation"]) <= 60
    reseeded = texts(gather(data.model_copy(update={"seed": 1}), tmp_path / "cache", quiet))
    assert set(reseeded["validation"]) != set(after["validation"])


def test_two_documents_are_one_of_each(tmp_path: Path) -> None:
    for seed in range(4):
        data = recipe.Data(sources=(write_documents(tmp_path / str(seed), [50, 60]),), validation_fraction=0.001, seed=seed)
        split = texts(gather(data, tmp_path / "cache", quiet))
        assert [len(split["train"]), len(split["validation"])] == [1, 1]


def test_of_one_document_the_end_is_held_out_at_a_line(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "one.txt").write_text(text)
    said: list[str] = []
    corpus = gather(recipe.Data(sources=(f"files:{tmp_path}/one.txt",), validation_fraction=0.1), tmp_path / "cache", said.append)
    split = texts(corpus)
    (train,), (validation,) = split["train"], split["validation"]
    assert train + validation == text and train.endswith("\n")
    assert len(validation) == pytest.approx(0.1 * len(text), abs=12)
    assert any("held out" in line for line in said)


def test_the_same_documents_are_written_once(tmp_path: Path) -> None:
    uri = write_documents(tmp_path / "a", [30, 40, 50])
    data = recipe.Data(sources=(uri,))
    first = gather(data, tmp_path / "cache", quiet)
    written = (first.folder / "0-train.jsonl").stat().st_ino
    second = gather(data, tmp_path / "cache", quiet)
    assert (first.hash, first.folder) == (second.hash, second.folder)
    assert (second.folder / "0-train.jsonl").stat().st_ino == written
    (first.folder / "0-train.jsonl").write_bytes(b"")
    assert read_manifest(first.folder) is None
    third = gather(data, tmp_path / "cache", quiet)
    assert third.folder == first.folder and read_manifest(third.folder, checksums=True) is not None
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [first.folder.name]


def test_two_writers_of_the_same_folder_leave_one(tmp_path: Path) -> None:
    with aside(tmp_path) as one, aside(tmp_path) as other:
        for folder in (one, other):
            (folder / "x").write_text("same")
            publish(folder, tmp_path / "result", {})
    assert [p.name for p in tmp_path.iterdir()] == ["result"]
    assert read_manifest(tmp_path / "result", checksums=True) is not None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full to stand for a full disk")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="disk is full"), aside(tmp_path) as folder:
        (folder / "half").write_text("written")
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="TESSERA_CACHE"):
        gather(recipe.Data(sources=("builtin:stdlib",)), tmp_path / "file", quiet)


def test_documents_of_many_segments_survive_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "captions.py").write_text(
        "import numpy as np\nfrom tessera.tokens.document import Document, Segment\n"
        "def pairs():\n    for i in range(4):\n"
        "        ids = np.arange(6).reshape(2, 3) + i\n"
        "        yield Document((Segment('text', f'picture {i}', False), Segment('image', ids)), 'p')\n"
    )
    monkeypatch.chdir(tmp_path)
    corpus = gather(recipe.Data(sources=("python:captions.pairs",)), tmp_path / "cache", quiet)
    found = [d for split in ("train", "validation") for d in corpus.documents(split, 0)]
    assert len(found) == 4
    for document in found:
        caption, picture = document.segments
        assert not caption.learn and picture.learn
        assert isinstance(picture.content, np.ndarray) and picture.content.shape == (2, 3)


def test_of_a_few_long_texts_pieces_are_held_out_from_all_over(tmp_path: Path) -> None:
    for book in range(4):
        lines = "".join(f"Book {book}, line {line}: nothing is said twice here.\n" for line in range(12_000))
        (tmp_path / f"{book}.txt").write_text(lines)
    (tmp_path / "note.txt").write_text("A short note.\n")
    data = recipe.Data(sources=(f"files:{tmp_path}/*.txt",), validation_fraction=0.1)
    corpus = gather(data, tmp_path / "cache", quiet)
    found = texts(corpus)
    whole = sum(path.stat().st_size for path in tmp_path.glob("*.txt"))
    assert corpus.train_bytes + corpus.validation_bytes == whole
    assert 0.05 < corpus.validation_bytes / whole < 0.15
    assert {text[: len("Book 0")] for text in found["validation"]} >= {f"Book {book}" for book in range(4)}
    pieces = [text for text in found["validation"] if text.startswith("Book")]
    assert all(PIECE <= len(text) <= 2 * PIECE and text.endswith("\n") for text in pieces)
    assert gather(data, tmp_path / "cache", quiet).hash == corpus.hash
