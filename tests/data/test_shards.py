"""Token files: their content, fill-in-the-middle, re-use."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera import recipe
from tessera.data.shapes import fill_in_the_middle, pieces
from tessera.data.shards import open_shards, tokenise
from tessera.errors import UserError
from tessera.tokens.document import Document

from .conftest import ByteVocabulary, prepare, quiet, write_documents


def unfold(document: Document) -> str:
    """The text as it was before it was filled in."""
    parts: dict[str, str] = {}
    name = ""
    for segment in document.segments:
        if segment.kind == "control":
            name = str(segment.content)
        else:
            parts[name] = str(segment.content)
    return parts.get("<|fim_prefix|>", "") + parts.get("<|fim_middle|>", "") + parts.get("<|fim_suffix|>", "")


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=3), st.integers(0, 2**32))
def test_fill_in_the_middle_keeps_the_text(text: str, seed: int) -> None:
    folded = fill_in_the_middle(Document.of_text(text, "s"), np.random.default_rng(seed))
    parts = [str(s.content) for s in folded.segments if s.kind == "text"]
    controls = [s.content for s in folded.segments if s.kind == "control"]
    assert controls == ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    assert all(s.learn == (s.kind == "text") for s in folded.segments)
    assert sorted("".join(parts)) == sorted(text)
    # Suffix first: the middle part holds prefix and middle.
    assert unfold(folded) == text


def test_half_of_the_gaps_end_where_a_line_does() -> None:
    text = "".join(f"line {'x' * n}\n" for n in range(8))
    ended = 0
    for seed in range(200):
        folded = fill_in_the_middle(Document.of_text(text), np.random.default_rng(seed))
        behind = [str(s.content) for s in folded.segments]
        suffix = "".join(behind[behind.index("<|fim_suffix|>") + 1 : behind.index("<|fim_middle|>")])
        ended += text.removesuffix(suffix).endswith("\n")
    assert 90 <= ended <= 140, "the other half ends so by chance, once in ten letters"


@settings(max_examples=50, deadline=None)
@given(st.text(), st.integers(1, 30))
def test_pieces_join_to_the_text(text: str, characters: int) -> None:
    parts = [piece.text for piece in pieces(Document.of_text(text), characters)]
    assert "".join(parts) == text
    assert all(len(part) <= characters for part in parts)


def test_documents_stand_end_to_end(tmp_path: Path) -> None:
    _, corpus, shards = prepare(tmp_path, sources=(write_documents(tmp_path / "a", list(range(5, 60))),))
    for split in ("train", "validation"):
        tokens = getattr(shards.sources[0], split)
        assert tokens.ids.dtype == np.uint16 and tokens.learn is None
        documents = [tokens.ids[a:b] for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)]
        assert [bytes(d[:-1].astype(np.uint8)).decode() for d in documents] == list(corpus.texts(split))
        assert all(d[-1] == ByteVocabulary.end_id for d in documents)
    assert shards.train_tokens == corpus.train_bytes + shards.sources[0].train.offsets.size - 1


def test_a_share_of_the_documents_is_filled_in_and_its_frame_is_not_learned(stdlib: SimpleNamespace) -> None:
    train, validation = stdlib.shards.sources[0].train, stdlib.shards.sources[0].validation
    frame = train.ids >= 256
    frame &= train.ids < 259
    assert train.learn is not None and validation.learn is None
    assert np.array_equal(frame, ~train.learn)
    assert frame.sum() / 3 / (train.offsets.size - 1) == pytest.approx(0.3, abs=0.06)
    assert validation.ids[validation.ids >= 256].tolist() == [ByteVocabulary.end_id] * (validation.offsets.size - 1)


def test_with_a_context_most_gaps_fit_into_a_row(tmp_path: Path, stdlib: SimpleNamespace) -> None:
    shards = tokenise(stdlib.corpus, ByteVocabulary(), stdlib.data, tmp_path, quiet, context=512)
    tokens = shards.sources[0].train
    starts = np.flatnonzero(tokens.ids == 256)
    ends = tokens.offsets[1:][np.searchsorted(tokens.offsets[1:], starts, side="right")]
    assert len(starts) > 1000
    # A byte is a token here, and a piece has up to 2.5 characters per token of the row.
    assert (ends - starts).max() < 2.5 * 512 * 4


def test_token_files_are_written_once_and_checked(tmp_path: Path) -> None:
    data, corpus, shards = prepare(tmp_path, sources=(write_documents(tmp_path / "a", [50, 60, 70]),))
    path = shards.folder / "0-train.ids"
    written = path.stat().st_mtime_ns
    again = tokenise(corpus, ByteVocabulary(), data, tmp_path / "cache", quiet)
    assert (again.hash, path.stat().st_mtime_ns) == (shards.hash, written)
    filled = tokenise(corpus, ByteVocabulary(), data.model_copy(update={"fill_in_the_middle": 1.0}), tmp_path / "cache", quiet)
    assert filled.hash != shards.hash
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="missing or damaged"):
        open_shards(shards.folder)
    assert tokenise(corpus, ByteVocabulary(), data, tmp_path / "cache", quiet).train_tokens == shards.train_tokens


def test_one_document_of_two_halves_works(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("abc\n" * 100)
    _, _, shards = prepare(tmp_path, sources=(recipe.Source(uri=f"files:{tmp_path}/one.txt"),))
    assert shards.train_tokens > 300 and shards.validation_tokens > 4
