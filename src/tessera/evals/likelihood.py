"""Suites that only read: which of two sentences a model finds likelier (BLiMP), and how it foresees the last word (LAMBADA)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.evals.score import Score
from tessera.evals.suites import rows
from tessera.model.decoder import Decoder
from tessera.posttrain.verifiers.measures import mean_and_error
from tessera.tokens.vocabulary import END, Vocabulary

_TOKENS_AT_ONCE = 8192


def blimp(decoder: Decoder, vocabulary: Vocabulary, count: int, seed: int) -> list[Score]:
    """Share of minimal pairs whose grammatical sentence is likelier (Warstadt et al. 2020): over all, and by field.

    Args:
        count: pairs at most, from all 67 sets in turn.

    Raises:
        UserError: the data is not there.
    """
    sets: dict[str, list[dict[str, str]]] = {}
    for row in rows("text/lm/blimp/blimp.jsonl.gz"):
        # One set spells its field with a slash.
        sets.setdefault(row["UID"], []).append({**row, "field": row["field"].replace("/", "_")})
    each = -(-count // len(sets))
    dice = random.Random(f"blimp {seed}")
    chosen = [dice.sample(sets[name], min(each, len(sets[name]))) for name in sorted(sets)]
    pairs = [row for turn in zip(*chosen, strict=False) for row in turn][:count]
    texts = [row[which] for row in pairs for which in ("sentence_good", "sentence_bad")]
    logprobs = text_logprobs(decoder, vocabulary, [("", text) for text in texts])
    right = [_likelier(good, bad) for good, bad in zip(logprobs[::2], logprobs[1::2], strict=True)]
    shorter = [_likelier(-len(row["sentence_good"].encode()), -len(row["sentence_bad"].encode())) for row in pairs]
    settings = {"seed": seed, "sets": len({row["UID"] for row in pairs})}
    scores = []
    for field in ("all", *sorted({row["field"] for row in pairs})):
        where = [i for i, row in enumerate(pairs) if field in ("all", row["field"])]
        value, error = mean_and_error([right[i] for i in where])
        baseline = sum(shorter[i] for i in where) / len(where)
        scores.append(Score("blimp", field, value, error, len(where), 0.5, baseline, "always the shorter sentence", settings))
    return scores


def lambada(decoder: Decoder, vocabulary: Vocabulary, count: int, seed: int) -> list[Score]:
    """Perplexity of the last word of a passage (Paperno et al. 2016), its tokens together: exp of the mean -log p(word).

    Chance is a uniform choice among all ids for each token of the word.

    Raises:
        UserError: the data is not there.
    """
    texts = [row["text"] for row in rows("text/lm/lambada/lambada_test_openai.jsonl.gz")]
    if count < len(texts):
        texts = [texts[i] for i in sorted(random.Random(f"lambada {seed}").sample(range(len(texts)), count))]
    parts = [text.rsplit(" ", 1) for text in texts]
    pairs = [(before, f" {word}") for before, word in parts]
    nats = [-logprob for logprob in text_logprobs(decoder, vocabulary, pairs)]
    mean, error = mean_and_error(nats)
    alone, _ = mean_and_error([-logprob for logprob in text_logprobs(decoder, vocabulary, [("", word) for _, word in pairs])])
    tokens = sum(len(_split(vocabulary, before, word)[1]) for before, word in pairs) / len(pairs)
    chance = math.exp(min(700.0, tokens * math.log(vocabulary.size)))
    # The error of exp(x) is exp(x) times that of x, to the first order.
    value = math.exp(min(700.0, mean))
    baseline = math.exp(min(700.0, alone))
    name = "the same model without the passage"
    return [
        Score("lambada", "perplexity of the last word", value, value * error, len(nats), chance, baseline, name, {"seed": seed})
    ]


def _likelier(good: float, bad: float) -> float:
    """1, 0, or a half for equals."""
    return float(good > bad) if good != bad else 0.5


@torch.inference_mode()
def text_logprobs(decoder: Decoder, vocabulary: Vocabulary, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """log p(text | context) for each (context, text), in nats, summed over the text's tokens; float64.

    What the tokenizer puts before every text stands first, or else a document's end, as before every document in training.
    Context and text are cut into tokens together. What does not fit into the model's context is left off at the start.
    """
    end = vocabulary.begin_ids or ([vocabulary.controls[END]] if END in vocabulary.controls else [])
    context = decoder.config.context
    device = decoder.head_weight.device
    sequences = []
    for before, text in pairs:
        head, tail = _split(vocabulary, before, text)
        ids = (end + head + tail)[-(context + 1) :]
        sequences.append((ids, min(len(tail), len(ids) - 1)))
    results = [0.0] * len(pairs)
    # Rows of about equal length together.
    waiting = sorted(range(len(pairs)), key=lambda i: len(sequences[i][0]), reverse=True)
    while waiting:
        rows_at_once = max(1, _TOKENS_AT_ONCE // len(sequences[waiting[0]][0]))
        batch, waiting = waiting[:rows_at_once], waiting[rows_at_once:]
        width = len(sequences[batch[0]][0]) - 1
        if width < 1:
            continue
        x_BT = torch.stack([_padded(sequences[i][0][:-1], width) for i in batch]).to(device)
        y_BT = torch.stack([_padded(sequences[i][0][1:], width) for i in batch]).to(device)
        nats_BT = F.cross_entropy(decoder.logits(decoder(x_BT)).float().flatten(0, 1), y_BT.flatten(), reduction="none")
        for i, nats_T in zip(batch, nats_BT.view(len(batch), width).double(), strict=True):
            length, scored = len(sequences[i][0]) - 1, sequences[i][1]
            results[i] = -float(nats_T[length - scored : length].sum())
    return results


def _padded(ids: Sequence[int], width: int) -> Tensor:
    # What fills the row stands behind, where no counted token looks at it.
    return F.pad(torch.tensor(ids), (0, width - len(ids)))


def _split(vocabulary: Vocabulary, before: str, text: str) -> tuple[list[int], list[int]]:
    """Ids of the context and of the text, cut together where a token border falls between them."""
    whole, head = vocabulary.encode_text(before + text), vocabulary.encode_text(before)
    if whole[: len(head)] == head:
        return head, whole[len(head) :]
    return head, vocabulary.encode_text(text)
