"""Bits per byte: how well a model predicts text, in a unit that does not depend on its tokenizer.

Documents go in; out comes the cross-entropy over all their tokens divided by all their bytes, with its standard error over
documents. Each document is read by itself, from its beginning, in windows of the model's context that do not overlap.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from tessera.errors import UserError
from tessera.model.decoder import Decoder
from tessera.tokens.document import Document
from tessera.tokens.vocabulary import END, Vocabulary

_ROWS = 8
"""Windows per forward pass."""


@dataclass(frozen=True)
class Measure:
    """Cross-entropy on documents.

    Args:
        nats_per_token: mean over `tokens`, the end of each document included.
        bits_per_byte: all bits over all UTF-8 bytes.
        standard_error: of bits_per_byte, with documents as the sample; NaN for a single one.
    """

    nats_per_token: float
    bits_per_byte: float
    standard_error: float
    documents: int
    tokens: int
    bytes: int


def sample_documents(documents: Iterable[Document], count: int) -> list[Document]:
    """`count` documents with text, chosen by the hash of their text: always the same ones, in whatever order they come."""
    with_text = (document for document in documents if document.text)
    return heapq.nsmallest(count, with_text, key=lambda d: hashlib.blake2b(d.text.encode(), digest_size=16).digest())


def measure(decoder: Decoder, vocabulary: Vocabulary, documents: Iterable[Document], max_tokens: int = 4096) -> Measure:
    """Measures a model on the text of documents.

    Args:
        max_tokens: of each document, its beginning; the bytes of the rest are not counted.

    Raises:
        UserError: there is no document with text.
    """
    end = vocabulary.controls.get(END)
    nats: list[float] = []
    bytes_: list[int] = []
    tokens = 0
    for document in documents:
        ids = vocabulary.encode_text(document.text)
        if not ids:
            continue
        if vocabulary.begin_ids:
            ids = [*vocabulary.begin_ids, *ids]
        elif end is not None:
            # The model meets a document after the end of another; this also makes its first token one that is predicted.
            ids = [end, *ids, end]
        ids = ids[: max_tokens + 1]
        nats.append(_nats(decoder, ids))
        bytes_.append(int(vocabulary.token_bytes[ids[1:]].sum()))
        tokens += len(ids) - 1
    if not sum(bytes_):
        raise UserError("there is no document with text to measure on.")
    bits_per_byte = sum(nats) / math.log(2) / sum(bytes_)
    # Standard error of a ratio of two sums, by linearisation (Cochran, Sampling Techniques, section 2.11).
    residuals = np.array(nats) / math.log(2) - bits_per_byte * np.array(bytes_)
    n = len(nats)
    error = float(residuals.std(ddof=1) * math.sqrt(n) / sum(bytes_)) if n > 1 else math.nan
    return Measure(sum(nats) / tokens, bits_per_byte, error, n, tokens, sum(bytes_))


@torch.inference_mode()
def _nats(decoder: Decoder, ids: list[int]) -> float:
    """Sum of -log p over ids[1:], each given those before it in its window."""
    context, device = decoder.config.context, decoder.head_weight.device
    inputs, targets = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
    total = 0.0
    for x, y in zip(torch.split(inputs, context * _ROWS), torch.split(targets, context * _ROWS), strict=True):
        width = min(context, len(x))
        filling = -len(x) % width
        # Filling stands at the end of the last row, where no counted token looks at it.
        x_BT, y_BT = F.pad(x, (0, filling)).view(-1, width), F.pad(y, (0, filling), value=-100).view(-1, width)
        logits = decoder.logits(decoder(x_BT.to(device)))
        total += float(F.cross_entropy(logits.flatten(0, 1), y_BT.flatten().to(device), reduction="sum"))
    return total
