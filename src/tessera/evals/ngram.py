"""An n-gram model as a baseline: what counting alone reaches on the same tokens, in the same bits per byte.

Training ids go in as one stream, held-out ids as another; out comes the probability that interpolated modified Kneser-Ney
gives each held-out token (Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling",
Harvard TR-10-98, the section on modified Kneser-Ney). It is a proper distribution over the whole vocabulary, so its bits per
byte may stand beside a transformer's. An n-gram is named by its rank among the n-grams seen, so an order costs one sort of
the stream and no n-gram is ever hashed, or packed into a word that it might not fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Where the counts of counts are too few to estimate discounts; KenLM's `--discount_fallback` uses the same.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


def ngram_bits_per_byte(
    train_ids: np.ndarray, validation_ids: np.ndarray, vocab_size: int, token_bytes: np.ndarray, order: int = 4
) -> float:
    """Bits per byte of the held-out stream under an n-gram model of the training stream.

    Args:
        train_ids: (D,) integers below `vocab_size`; documents one after another with their end tokens.
        validation_ids: (T,) the same for the held-out documents.
        vocab_size: V.
        token_bytes: (V,) bytes of each id. Tokens of 0 bytes (controls) are read as context but counted in neither
            bits nor bytes, as in the trained model's own measure.
        order: n, tokens of an n-gram, the predicted one included.

    Raises:
        ValueError: the held-out stream has no bytes, or as `ngram_probabilities`.
    """
    scored_bytes = np.asarray(token_bytes, np.int64)[np.asarray(validation_ids)]
    if scored_bytes.sum() == 0:
        raise ValueError("the held-out tokens have no bytes to measure")
    probabilities = ngram_probabilities(train_ids, validation_ids, vocab_size, order)
    return float(-np.log2(probabilities[scored_bytes > 0]).sum() / scored_bytes.sum())


def ngram_probabilities(train_ids: np.ndarray, validation_ids: np.ndarray, vocab_size: int, order: int = 4) -> np.ndarray:
    """(T,) float64: the probability of each held-out token after the up to `order - 1` tokens before it; never 0.

    Raises:
        ValueError: `order` is below 1, or the training stream is shorter than `order`.
    """
    return _probabilities(_counted(train_ids, vocab_size, order), np.asarray(validation_ids, np.int64), vocab_size)


def likeliest(
    train_ids: np.ndarray, contexts: Sequence[Sequence[int]], tokens: int, vocab_size: int, order: int = 4
) -> np.ndarray:
    """(contexts, tokens) int64: what the model goes on with behind each context, the likeliest token each time.

    Raises:
        ValueError: a context has fewer than `order - 1` tokens, or as `ngram_probabilities`.
    """
    if min(map(len, contexts)) < order - 1:
        raise ValueError(f"a context has fewer than the {order - 1} tokens that an n-gram model of order {order} looks back at")
    written = np.array([list(context)[len(context) - order + 1 :] for context in contexts], np.int64)
    levels, candidates = _counted(train_ids, vocab_size, order), np.arange(vocab_size)
    for _ in range(tokens):
        # Each context with each candidate behind it, one after another; only the last of every such piece is looked at.
        ends, which = np.unique(written[:, written.shape[1] - order + 1 :], axis=0, return_inverse=True)
        pieces = np.concatenate([np.repeat(ends, vocab_size, axis=0), np.tile(candidates, len(ends))[:, None]], axis=1)
        found = _probabilities(levels, pieces.ravel(), vocab_size).reshape(pieces.shape)[:, -1]
        chosen = found.reshape(len(ends), vocab_size).argmax(axis=1)
        written = np.concatenate([written, chosen[which.ravel()][:, None]], axis=1)
    return written[:, order - 1 :]


def _counted(train_ids: np.ndarray, vocab_size: int, order: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each order from 1 up: sorted keys of the n-grams seen (`_rank`) and their counts.

    Raises:
        ValueError: `order` is below 1, or the training stream is shorter than `order`.
    """
    if order < 1 or len(train_ids) < order:
        raise ValueError(f"an n-gram model of order {order} needs at least {max(order, 1)} training tokens, got {len(train_ids)}")
    tokens = np.asarray(train_ids, np.int64)
    # The stream is closed to a ring: every n-gram has a left neighbour then, and no continuation count is 0.
    # `grams[t]` names the n-gram that ends at t of the ring; order 0 is the empty one, the same everywhere.
    grams = np.zeros_like(tokens)
    keys, _, grams, counts = _rank(grams, tokens, vocab_size)
    levels = []
    for _ in range(order - 1):
        longer = _rank(np.roll(grams, 1), tokens, vocab_size)
        # Below the highest order Kneser-Ney counts in how many contexts an n-gram is seen, not how often.
        levels.append((keys, np.bincount(grams[longer[1]], minlength=len(keys))))
        keys, _, grams, counts = longer
    return [*levels, (keys, counts)]


def _probabilities(levels: Sequence[tuple[np.ndarray, np.ndarray]], held_out: np.ndarray, vocab_size: int) -> np.ndarray:
    """(T,) float64 of held-out tokens, one order on top of the one below."""
    contexts = np.zeros_like(held_out)
    probabilities = np.full(len(held_out), 1.0 / vocab_size)
    for keys, counts in levels:
        probabilities, ends = _interpolate(probabilities, contexts, held_out, keys, counts, vocab_size)
        contexts = np.concatenate(([-1], ends[:-1])) if len(ends) else ends
    return probabilities


def _rank(contexts: np.ndarray, tokens: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Names pairs (context, token): sorted keys (U,), where each first occurs (U,), rank at each position (D,), counts (U,)."""
    return np.unique(contexts * vocab_size + tokens, return_index=True, return_inverse=True, return_counts=True)


def _interpolate(
    lower: np.ndarray, contexts: np.ndarray, tokens: np.ndarray, keys: np.ndarray, counts: np.ndarray, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """One order on top of the one below.

    Args:
        lower: (T,) probabilities of the order below.
        contexts: (T,) rank of the context, -1 where it was never seen: there the order below speaks alone.
        tokens: (T,) the tokens to predict.
        keys: (U,) sorted context * V + token of the n-grams seen.
        counts: (U,) their counts, all positive.

    Returns:
        (T,) probabilities, and (T,) rank of the n-gram made of context and token, -1 where it was never seen.
    """
    discounts = _discounts(counts)
    seen_contexts = keys // vocab_size
    totals = np.bincount(seen_contexts, counts)
    freed = np.bincount(seen_contexts, discounts[np.minimum(counts, 3)])

    wanted = contexts * vocab_size + tokens
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = (contexts >= 0) & (keys[at] == wanted)
    kept = np.where(found, counts[at] - discounts[np.minimum(counts[at], 3)], 0.0)
    # Every context has a total: on the ring every (n-1)-gram is followed by something.
    known = np.maximum(contexts, 0)
    mixed = (kept + freed[known] * lower) / totals[known]
    return np.where(contexts >= 0, mixed, lower), np.where(found, at, -1)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """(4,) what is taken from a count of 0, 1, 2, and 3 or more (Chen and Goodman's D_1, D_2, D_3+)."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) > 0:
        y = n1 / (n1 + 2 * n2)
        estimated = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        # A discount of 0 would leave nothing for unseen tokens, one above the count would give negative probabilities.
        if all(0 < d <= k for k, d in enumerate(estimated, start=1)):
            return np.array((0.0, *estimated))
    return np.array((0.0, *FALLBACK_DISCOUNTS))
