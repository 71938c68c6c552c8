"""Slots and prefixes: the numbers of a plain forward pass, in whatever pieces it is cut."""

from __future__ import annotations

import math

import pytest
import torch

from tessera.engine.cache import BLOCK, Prefixes, SlotCache
from tessera.model.decoder import Decoder


def new_cache(decoder: Decoder, rows: int = 3, tokens: int = 3 * 1200, kept: int = 640) -> SlotCache:
    return SlotCache(decoder.config, torch.float32, torch.device("cpu"), rows, tokens, kept)


def advance(decoder: Decoder, cache: SlotCache, ids: torch.Tensor, counts: list[int]) -> list[torch.Tensor]:
    """Feeds the next `counts` tokens of each row of `ids`; returns their logits."""
    new = [row[start : start + n] for row, start, n in zip(ids, cache.lengths, counts, strict=True)]
    positions = cache.begin(counts)
    logits = decoder.logits(decoder(torch.cat(new)[None], positions=positions, cache=cache))[0]
    cache.end(counts)
    return list(logits.split(counts))


@torch.inference_mode()
def test_passes_over_rows_of_any_length_equal_one_pass_without_a_cache(long_decoder: Decoder) -> None:
    ids = torch.randint(0, 256, (3, 700), generator=torch.Generator().manual_seed(0))
    whole = long_decoder.logits(long_decoder(ids))
    cache = new_cache(long_decoder)
    for _ in range(3):
        cache.open([])
    # Unequal pieces, single tokens, a row that waits, singles on both sides of a piece, growth past the first capacity.
    for counts in ([7, 3, 1], [1, 1, 1], [4, 9, 1], [1, 0, 1], [1, 300, 1], [20, 20, 20], [1, 1, 250], [0, 1, 0]):
        starts = list(cache.lengths)
        for row, logits in enumerate(advance(long_decoder, cache, ids, counts)):
            expected = whole[row, starts[row] : starts[row] + counts[row]]
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(whole.abs().max()))
    assert cache.lengths == [35, 335, 275]


@torch.inference_mode()
def test_the_last_slot_takes_the_place_of_a_closed_one(long_decoder: Decoder) -> None:
    ids = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(1))
    whole = long_decoder.logits(long_decoder(ids))
    cache = new_cache(long_decoder)
    for _ in range(3):
        cache.open([])
    advance(long_decoder, cache, ids, [10, 20, 30])
    cache.close(0, [])
    assert cache.lengths == [30, 20]
    last, middle = advance(long_decoder, cache, ids[[2, 1]], [1, 5])
    tolerance = 1e-5 * float(whole.abs().max())
    torch.testing.assert_close(last, whole[2, 30:31], rtol=0, atol=tolerance)
    torch.testing.assert_close(middle, whole[1, 20:25], rtol=0, atol=tolerance)


@torch.inference_mode()
def test_a_pass_that_failed_leaves_nothing_behind(long_decoder: Decoder) -> None:
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(1))
    cache = new_cache(long_decoder)
    cache.open([])
    first = advance(long_decoder, cache, ids, [10])[0]
    cache.begin([20])
    again = new_cache(long_decoder)
    again.open([])
    assert cache.lengths == [10] and torch.equal(first, advance(long_decoder, again, ids, [10])[0])
    torch.testing.assert_close(advance(long_decoder, cache, ids, [5])[0], advance(long_decoder, again, ids, [5])[0])


@torch.inference_mode()
def test_a_cache_stays_within_its_tokens(long_decoder: Decoder) -> None:
    ids = torch.randint(0, 256, (4, 600), generator=torch.Generator().manual_seed(1))
    cache = new_cache(long_decoder, rows=4, tokens=1000)
    cache.open([])
    advance(long_decoder, cache, ids[:1], [600])
    assert math.prod(cache.shape) <= 1000
    cache.close(0, [])
    for _ in range(4):
        cache.open([])
    for _ in range(5):
        advance(long_decoder, cache, ids, [50] * 4)
    assert math.prod(cache.shape) <= 1000 and cache.tokens == 1000


def test_hashes_depend_on_the_salt_and_on_all_that_is_before() -> None:
    ids = list(range(3 * BLOCK + 5))
    keys = Prefixes.keys(ids, "a")
    assert len(keys) == 3 and keys == Prefixes.keys(ids[: 3 * BLOCK], "a") and keys[:2] == Prefixes.keys(ids[: 2 * BLOCK], "a")
    changed = Prefixes.keys([7, *ids[1:]], "a")
    assert set(keys).isdisjoint(changed) and set(keys).isdisjoint(Prefixes.keys(ids, "b"))


def test_blocks_in_use_stay_and_the_least_recently_used_go_first() -> None:
    prefixes = Prefixes(4)
    a, b, c = (Prefixes.keys([n] * 2 * BLOCK, "") for n in range(3))
    held_a: list[int] = []
    assert [index for index, _ in prefixes.add(a, held_a)] == [0, 1] and len(held_a) == 2
    held_b = prefixes.match(b)
    prefixes.add(b, held_b)
    prefixes.release(held_b)
    held_c: list[int] = []
    assert len(prefixes.add(c, held_c)) == 2 and prefixes.match(b) == [], "b gave way, a is in use"
    assert prefixes.match(a) == held_a
    prefixes.release(held_a)
    prefixes.release(held_c)
    held: list[int] = []
    assert len(prefixes.add(b[:1], held)) == 1
    assert prefixes.match(c) == held_c[:1], "of a prefix the end goes first; a has still one user"
    prefixes.forget()
    assert prefixes.match(a) == [] and a[0] not in prefixes


def test_a_cache_without_room_keeps_what_it_can() -> None:
    prefixes = Prefixes(2)
    keys = Prefixes.keys(list(range(5 * BLOCK)), "")
    held: list[int] = []
    assert len(prefixes.add(keys, held)) == 2 and len(prefixes.match(keys)) == 2
    assert Prefixes(0).add(keys, []) == []


@pytest.mark.parametrize("kept", [0, 32, 640])
@torch.inference_mode()
def test_a_copied_prefix_is_the_computed_one(long_decoder: Decoder, kept: int) -> None:
    ids = torch.randint(0, 256, (2, 300), generator=torch.Generator().manual_seed(2))
    ids[1, :200] = ids[0, :200]
    whole = long_decoder.logits(long_decoder(ids))
    cache = new_cache(long_decoder, kept=kept)
    held = cache.open([])
    advance(long_decoder, cache, ids[:1], [250])
    cache.keep(0, Prefixes.keys(ids[0, :250].tolist(), ""), held)
    cache.open(Prefixes.keys(ids[1, :250].tolist(), ""))
    assert cache.lengths == [250, min(192, kept)]
    count = 300 - cache.lengths[1]
    found = advance(long_decoder, cache, ids, [1, count])[1]
    torch.testing.assert_close(found, whole[1, 300 - count :], rtol=0, atol=1e-5 * float(whole.abs().max()))
