"""Batches: nothing lost, nothing twice, the same for any number of processes, and resumed exactly."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tessera import recipe
from tessera.data.loader import Batch, Loader, validation_batches
from tessera.data.shards import Tokens
from tessera.errors import UserError

from .conftest import ByteVocabulary, prepare, write_documents

LENGTHS = [1, 2, 7, 8, 9, 15, 16, 17, 18, 31, 32, 33, 34, 120, 500, *range(1, 90)]


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("ids", "learn", "documents", "tokens"))


def drain(loader: Loader) -> list[Batch]:
    batches = []
    with pytest.raises(UserError, match="epochs allow"):
        while True:
            batches.append(loader.next())
    return batches


@pytest.mark.parametrize("packing", ["best_fit", "stream"])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("context", [8, 16, 64])
def test_every_token_is_a_target_once_per_epoch_but_for_the_first_of_a_row(
    tmp_path: Path, packing: str, mask: bool, context: int
) -> None:
    source = recipe.Source(uri=write_documents(tmp_path / "a", LENGTHS), epochs=2)
    data, _, shards = prepare(tmp_path, sources=(source,), packing=packing, document_mask=mask, deduplicate="exact")
    train = shards.sources[0].train
    batches = drain(Loader(shards, data, context, 4, seed=3))
    targets, row_starts = Counter[int](), Counter[int]()
    for batch in batches:
        assert batch.ids.shape == (4, context + 1) and batch.ids.dtype == np.int64 and batch.learn.shape == (4, context)
        targets.update(batch.ids[:, 1:][batch.learn].tolist())
        row_starts.update(batch.ids[:, 0].tolist())
        if mask:
            assert batch.documents is not None
            borders = np.diff(batch.documents, axis=1) != 0
            # The last token of a document is not asked for the first of the next.
            assert not batch.learn[:, :-1][borders].any()
    ids = Counter(train.ids.tolist())
    documents = train.offsets.size - 1
    for token, count in ids.items():
        assert targets[token] <= 2 * count
        if not mask:
            assert targets[token] + row_starts[token] >= 2 * count
    learned = targets.total()
    if mask:
        assert learned <= 2 * (train.tokens - documents)
    assert learned >= 2 * (train.tokens - documents) - 2 * train.tokens // context
    assert sum(batch.tokens for batch in batches) >= learned


def test_each_target_follows_its_own_document(tmp_path: Path) -> None:
    # Distinct words: each stretch of a row can be found in exactly one place.
    source = recipe.Source(uri=write_documents(tmp_path / "a", LENGTHS), epochs=1)
    data, corpus, shards = prepare(tmp_path, sources=(source,), document_mask=True, deduplicate="exact")
    whole = "\0".join(corpus.texts("train")) + "\0"
    for batch in drain(Loader(shards, data, 32, 4, seed=0)):
        for ids, learn, documents in zip(batch.ids, batch.learn, batch.documents, strict=True):
            for number in range(documents.max() + 1):
                at = np.flatnonzero((documents == number) & learn)
                if at.size:
                    assert np.array_equal(at, np.arange(at[0], at[-1] + 1))
                    stretch = "".join("\0" if i == ByteVocabulary.end_id else chr(i) for i in ids[at[0] : at[-1] + 2])
                    assert stretch in whole


@pytest.mark.parametrize("packing", ["best_fit", "stream"])
def test_a_restored_loader_goes_on_with_the_same_batches(tmp_path: Path, packing: str) -> None:
    sources = (
        recipe.Source(uri=write_documents(tmp_path / "a", LENGTHS), weight=2.0),
        recipe.Source(uri=write_documents(tmp_path / "b", [40] * 30, "b"), weight=1.0, epochs=1.5),
    )
    data, _, shards = prepare(tmp_path, sources=sources, packing=packing, deduplicate="exact")
    loader = Loader(shards, data, 16, 4, seed=5)
    for skipped in (0, 1, 7, 60, 301):
        for _ in range(skipped):
            loader.next()
        state = json.dumps(loader.state())
        assert len(state) < 1000
        other = Loader(shards, data, 16, 4, seed=5)
        other.restore(json.loads(state))
        assert other.padding == loader.padding
        for _ in range(5):
            assert same(loader.next(), other.next())
        assert other.state() == loader.state()
    with pytest.raises(UserError, match="belongs to other"):
        Loader(shards, data, 32, 4, seed=5).restore(json.loads(state))


def test_processes_share_the_batch_of_one(stdlib: SimpleNamespace) -> None:
    data = stdlib.data.model_copy(update={"document_mask": True})
    alone = Loader(stdlib.shards, data, 128, 8, seed=1)
    pairs = [Loader(stdlib.shards, data, 128, 8, seed=1, process=p, processes=2) for p in range(2)]
    fours = [Loader(stdlib.shards, data, 128, 8, seed=1, process=p, processes=4) for p in range(4)]
    for _ in range(20):
        whole = alone.next()
        for group in (pairs, fours):
            parts = [loader.next() for loader in group]
            for name in ("ids", "learn", "documents"):
                assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
            assert all(part.tokens == whole.tokens for part in parts)
    assert alone.state() == pairs[1].state() == fours[2].state()
    with pytest.raises(UserError, match="cannot be shared"):
        Loader(stdlib.shards, data, 128, 6, seed=1, process=0, processes=4)


@pytest.mark.parametrize("context", [128, 1024])
def test_packing_wastes_less_than_three_percent_of_the_library(stdlib: SimpleNamespace, context: int) -> None:
    loader = Loader(stdlib.shards, stdlib.data, context, 64, seed=1)
    for _ in range(loader.shards.train_tokens // context // 64):
        loader.next()
    assert loader.padding < 0.03


def test_orders_differ_by_epoch_and_seed_and_rows_of_a_document_are_apart(stdlib: SimpleNamespace) -> None:
    def rows(seed: int) -> np.ndarray:
        return Loader(stdlib.shards, stdlib.data, 256, 64, seed).next().ids

    assert np.array_equal(rows(1), rows(1))
    assert not np.array_equal(rows(1), rows(2))
    first = rows(1)
    # Neighbouring rows of a cut document share the token at the cut, and most of them whatever stands around.
    follows = [np.array_equal(a[-1:], b[:1]) for a, b in itertools.pairwise(first)]
    assert np.mean(follows) < 0.3


def test_rows_are_shared_by_weight_at_any_time(tmp_path: Path) -> None:
    sources = tuple(
        recipe.Source(uri=write_documents(tmp_path / letter, [60] * 40, letter), weight=weight)
        for letter, weight in (("p", 5.0), ("q", 3.0), ("r", 2.0))
    )
    data, _, shards = prepare(tmp_path, sources=sources, deduplicate="exact")
    loader = Loader(shards, data, 16, 4, seed=0)
    for step in range(1, 100):
        loader.next()
        served = [source["served"] for source in loader.state()["sources"]]
        assert np.abs(np.array(served) - 4 * step * np.array([0.5, 0.3, 0.2])).max() < 1.5


def test_without_weights_sources_are_read_by_their_size(tmp_path: Path) -> None:
    sources = (write_documents(tmp_path / "p", [90] * 30, "p"), write_documents(tmp_path / "q", [90] * 10, "q"))
    data, _, shards = prepare(tmp_path, sources=sources, deduplicate="exact")
    loader = Loader(shards, data, 16, 4, seed=0)
    for _ in range(100):
        loader.next()
    p, q = (source["served"] for source in loader.state()["sources"])
    assert p / q == pytest.approx(shards.sources[0].tokens / shards.sources[1].tokens, rel=0.05)


def test_a_source_at_its_limit_leaves_its_share_to_the_others(tmp_path: Path) -> None:
    sources = (
        recipe.Source(uri=write_documents(tmp_path / "p", [90] * 30, "p"), epochs=0.5),
        recipe.Source(uri=write_documents(tmp_path / "q", [90] * 30, "q"), epochs=3),
    )
    data, _, shards = prepare(tmp_path, sources=sources, deduplicate="exact")
    batches = drain(Loader(shards, data, 16, 4, seed=0))
    letters = Counter(
        "p" if ord("p") in row else "q" for batch in batches for row in batch.ids if row[0] != ByteVocabulary.pad_id
    )
    assert letters["q"] / letters["p"] == pytest.approx(6, rel=0.1)
    assert batches[-1].tokens > 0


def test_frames_are_not_learned_in_batches(stdlib: SimpleNamespace) -> None:
    batch = Loader(stdlib.shards, stdlib.data, 1024, 256, seed=1).next()
    targets = batch.ids[:, 1:]
    frame = (targets >= 256) & (targets < 259)
    assert frame.any() and not batch.learn[frame].any()
    assert batch.learn[targets == ByteVocabulary.end_id].all()


def test_validation_rows_are_fixed_and_from_every_source(tmp_path: Path) -> None:
    sources = (write_documents(tmp_path / "p", [200] * 60, "p"), write_documents(tmp_path / "q", [20, 30], "q"))
    _, _, shards = prepare(tmp_path, sources=sources, deduplicate="exact", validation_fraction=0.2)
    batches = validation_batches(shards, 16, 8, 10**6)
    assert all(same(a, b) for a, b in zip(batches, validation_batches(shards, 16, 8, 10**6), strict=True))
    assert sum(int(b.learn.sum()) for b in batches) == sum(b.tokens for b in batches) == shards.validation_tokens - 2
    assert all(b.ids.shape == (8, 17) for b in batches)
    few = validation_batches(shards, 16, 8, 100)
    assert sum(b.tokens for b in few) <= 116
    assert any(ord("q") in b.ids for b in few) and any(ord("p") in b.ids for b in few)
    assert not few[-1].learn[-1].any() and (few[-1].ids[-1] == shards.pad_id).all()


@pytest.mark.parametrize("mask", [False, True])
def test_rows_cut_into_pieces_have_the_same_inputs_and_targets_in_the_same_order(tmp_path: Path, mask: bool) -> None:
    source = recipe.Source(uri=write_documents(tmp_path / "a", LENGTHS))
    data, _, shards = prepare(tmp_path, sources=(source,), document_mask=mask, deduplicate="exact")
    whole = Loader(shards, data, 16, 4, seed=3).next()
    pieces = whole.cut(4)
    assert pieces.ids.shape == (16, 5) and pieces.learn.shape == (16, 4) and pieces.tokens == whole.tokens
    for take in (lambda batch: batch.ids[:, :-1], lambda batch: batch.ids[:, 1:], lambda batch: batch.learn):
        assert np.array_equal(take(pieces).ravel(), take(whole).ravel())
    assert (pieces.documents is None) is not mask
    assert not mask or np.array_equal(pieces.documents.ravel(), whole.documents.ravel())
    assert same(whole.cut(16), whole)


@pytest.mark.parametrize("packing", ["best_fit", "stream"])
def test_a_short_run_sees_its_part_of_every_long_document_among_many_short_ones(packing: str) -> None:
    lengths = np.array([20_000] * 3 + [20] * 20_000)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    tokens = Tokens(np.repeat(np.arange(len(lengths)), lengths).astype(np.uint16), offsets, None)
    source = SimpleNamespace(uri="files:none", train=tokens, tokens=tokens.tokens)
    shards = SimpleNamespace(hash="hash", sources=(source,), train_tokens=tokens.tokens, pad_id=65_535)
    data = recipe.Data(sources=(recipe.Source(uri="files:none"),), packing=packing)
    for seed in range(3):
        loader = Loader(shards, data, 128, 8, seed)  # type: ignore[arg-type]
        seen = np.concatenate([loader.next().ids.ravel() for _ in range(90)])
        # A fifth of the tokens: of each long document about a fifth.
        parts = np.bincount(seen[seen < 3], minlength=3) / 20_000
        assert ((parts > 0.1) & (parts < 0.3)).all(), parts
