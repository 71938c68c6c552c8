"""What the tests of this room share: a vocabulary of bytes, small corpora, a cache of their own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tessera import recipe
from tessera.data.corpus import Corpus, gather
from tessera.data.shards import Shards, tokenise
from tessera.tokens.document import Document, TokenRecord

FRAME = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]


class ByteVocabulary:
    """One id per byte: what comes out of the token files can be read without a trained tokenizer."""

    size, hash, end_id, pad_id = 300, "bytes", 299, 298

    def encode_texts(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def encode(self, document: Document) -> TokenRecord:
        (segment,) = document.segments
        ids = np.array(
            [256 + FRAME.index(str(segment.content))] if segment.kind == "control" else segment.content, np.int32
        ).ravel()
        return TokenRecord(ids, np.full(len(ids), segment.learn))


def quiet(line: str) -> None:
    """For the tests that do not look at what is said."""


@pytest.fixture(scope="session")
def stdlib(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The library of the running Python, gathered and tokenised once for all tests."""
    cache = tmp_path_factory.mktemp("stdlib")
    data = recipe.Data(sources=("builtin:stdlib",), fill_in_the_middle=0.3)
    corpus = gather(data, cache, quiet)
    return SimpleNamespace(data=data, corpus=corpus, shards=tokenise(corpus, ByteVocabulary(), data, cache, quiet), cache=cache)


def write_documents(folder: Path, lengths: list[int], letter: str = "a") -> str:
    """A folder with a text of each length; the address of the source."""
    folder.mkdir(parents=True)
    for i, length in enumerate(lengths):
        words = f"{letter}{i} " + " ".join(f"{letter}{i}x{j}" for j in range(length))
        (folder / f"{i:05}.txt").write_text(words[: max(length, len(f"{letter}{i}"))])
    return f"files:{folder}"


def prepare(tmp_path: Path, **settings: object) -> tuple[recipe.Data, Corpus, Shards]:
    """Data settings -> corpus and token files."""
    data = recipe.Data(**settings)
    corpus = gather(data, tmp_path / "cache", quiet)
    return data, corpus, tokenise(corpus, ByteVocabulary(), data, tmp_path / "cache", quiet)
