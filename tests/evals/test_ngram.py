"""The n-gram baseline is a proper distribution, learns what counting can learn, and measures as the trained model is measured."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.evals.ngram import likeliest, ngram_bits_per_byte, ngram_probabilities

V = 20


def zipf(length: int, seed: int = 0) -> np.ndarray:
    return np.minimum(np.random.default_rng(seed).zipf(1.4, length) - 1, V - 1).astype(np.int32)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("length", [5, 60, 5000])
def test_probabilities_of_all_next_tokens_sum_to_one(order: int, length: int) -> None:
    train = zipf(length)
    histories = [train[:4], train[-4:], np.array([V - 1, V - 2, V - 1, V - 2]), np.concatenate((train[:1], train[-3:]))]
    for history in histories:
        # Every history stands before every next token; longer contexts cannot reach over it.
        stream = np.concatenate([np.append(history, token) for token in range(V)])
        p = ngram_probabilities(train, stream, V, order)[4::5]
        assert p.min() > 0
        assert p.sum() == pytest.approx(1, abs=1e-12)


def test_matches_kneser_ney_worked_by_hand() -> None:
    # The ring 0 1 0 2 has the bigrams 01, 10, 02, 20, each once. Bigram discount .5 (too few counts to estimate). Unigrams
    # are counted by their left neighbours: 0 after {1, 2}, 1 after {0}, 2 after {0}; 4 in all, discounts 1, .5, .5.
    unigram = {0: (2 - 1 + 2 * 0.25) / 4, 1: (1 - 0.5 + 2 * 0.25) / 4, 3: 2 * 0.25 / 4}
    p = ngram_probabilities(np.array([0, 1, 0, 2]), np.array([0, 1, 3, 0]), vocab_size=4, order=2)
    after_0 = {1: (0.5 + 1.0 * unigram[1]) / 2}
    after_1 = {3: (0.5 * unigram[3]) / 1}
    assert p == pytest.approx([unigram[0], after_0[1], after_1[3], unigram[0]])


def test_a_first_order_source_costs_its_entropy() -> None:
    rng = np.random.default_rng(1)
    # From each of 8 states two of equal chance: 1 bit per token whatever the history.
    choices, stream = rng.integers(0, 2, 60_000), np.zeros(60_000, np.int64)
    for t in range(1, len(stream)):
        stream[t] = (3 * stream[t - 1] + 1 + choices[t]) % 8
    bits = ngram_bits_per_byte(stream[:50_000], stream[50_000:], 8, np.ones(8, np.int32), order=3)
    assert bits == pytest.approx(1, abs=0.01)


def test_longer_contexts_pay_on_repetitive_text() -> None:
    text = np.tile(zipf(40, seed=3), 50)
    first, third = (ngram_bits_per_byte(text, text[:400], V, np.ones(V, np.int32), order) for order in (1, 3))
    assert third < 0.4 * first


def test_control_tokens_count_neither_bits_nor_bytes() -> None:
    train, held_out = zipf(3000), zipf(300, seed=9)
    token_bytes = np.full(V, 3, np.int32)
    token_bytes[0] = 0
    p = ngram_probabilities(train, held_out, V, 3)[held_out != 0]
    assert ngram_bits_per_byte(train, held_out, V, token_bytes, 3) == pytest.approx(-np.log2(p).sum() / (3 * len(p)))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="order 4 needs at least 4"):
        ngram_probabilities(np.array([1, 2]), np.array([1]), V, 4)
    with pytest.raises(ValueError, match="no bytes"):
        ngram_bits_per_byte(zipf(50), np.array([1]), V, np.zeros(V, np.int32))


@pytest.mark.parametrize("order", [2, 3, 5])
def test_the_likeliest_continuation_is_that_of_the_probabilities(order: int) -> None:
    train = zipf(2000)
    contexts = [train[at : at + 7].tolist() for at in (3, 400, 900)]
    found = likeliest(train, contexts, 3, V, order)
    assert found.shape == (3, 3)
    for context, written in zip(contexts, found, strict=True):
        for at, token in enumerate(written):
            history = [*context, *written[:at]][-(order - 1) :]
            stream = np.concatenate([[*history, candidate] for candidate in range(V)])
            assert token == ngram_probabilities(train, stream, V, order)[order - 1 :: order].argmax()
    with pytest.raises(ValueError, match="fewer than"):
        likeliest(train, [[1]], 3, V, 3)
