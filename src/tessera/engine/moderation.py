"""What a moderation model says of texts: in which categories of harm they are, as probabilities, and whether that is enough.

It is a model like any other; of a category the logit of an id speaks that is never written, read at the token that ends the text.
`moderation.json` beside the weights says which id stands for which category, how a logit becomes a probability, and from which
probability on a text is flagged. Of categories that are not in that file the model knows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tessera.model.decoder import Decoder
from tessera.tokens.vocabulary import Vocabulary

HEAD = "moderation.json"
CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
"""As OpenAI's moderation route names them, in its order."""
_TOKENS_AT_ONCE = 4_096


@dataclass(frozen=True)
class Category:
    """What a moderation model knows of one category.

    Args:
        id: whose logit speaks of it.
        scale, shift: probability = sigmoid(scale logit + shift).
        threshold: probability from which on a text is flagged.
        calibrated: these three come from texts that were held out; otherwise too few of the category were.
    """

    id: int
    scale: float = 1.0
    shift: float = 0.0
    threshold: float = 0.5
    calibrated: bool = False

    def probability(self, logits: np.ndarray) -> np.ndarray:
        """float64, of the same shape."""
        return np.asarray(1 / (1 + np.exp(-(self.scale * logits + self.shift))))


Head = Mapping[str, Category]
"""Covered category -> what is known of it, in the order of CATEGORIES."""


def read_head(folder: Path) -> Head | None:
    """What a model's folder says of moderation; None: it is no moderation model."""
    file = folder / HEAD
    if not file.is_file():
        return None
    return {name: Category(**fields) for name, fields in json.loads(file.read_text(encoding="utf-8")).items()}


def windows(text: str, vocabulary: Vocabulary, context: int) -> list[list[int]]:
    """The ids of a text in pieces that a model reads at once, each closed by the token that ends a text; neighbours share half of
    their tokens, so that nothing short is cut in every piece."""
    ids, size = vocabulary.encode_text(text), context - 1
    starts = [0] if len(ids) <= size else [*range(0, len(ids) - size, max(1, size // 2)), len(ids) - size]
    return [[*ids[start : start + size], vocabulary.end_id] for start in starts]


@torch.inference_mode()
def logits_of(decoder: Decoder, vocabulary: Vocabulary, head: Head, texts: Sequence[str]) -> np.ndarray:
    """(n, K) float64 logits of the covered categories; of a text of several pieces the highest."""
    pieces = [(at, piece) for at, text in enumerate(texts) for piece in windows(text, vocabulary, decoder.config.context)]
    # Neighbours in length fill each other up least.
    pieces.sort(key=lambda piece: len(piece[1]))
    rows_KD = decoder.head_weight[[category.id for category in head.values()]].float()
    found = np.full((len(texts), len(head)), -np.inf)
    while pieces:
        width = len(pieces[-1][1])
        count = max(1, _TOKENS_AT_ONCE // width)
        taken, pieces = pieces[-count:], pieces[:-count]
        # Causal: what fills a row up on its right changes nothing to its left.
        ids = torch.tensor([[*piece, *[vocabulary.pad_id] * (width - len(piece))] for _, piece in taken], device=rows_KD.device)
        last = torch.tensor([len(piece) - 1 for _, piece in taken], device=rows_KD.device)
        hidden_BD = decoder(ids)[torch.arange(len(taken), device=rows_KD.device), last]
        for (at, _), row in zip(taken, (hidden_BD.float() @ rows_KD.T).double().cpu().numpy(), strict=True):
            found[at] = np.maximum(found[at], row)
    return found


def probabilities(head: Head, logits: np.ndarray) -> dict[str, np.ndarray]:
    """For each covered category (n,) float64, from (n, K) logits."""
    return {name: category.probability(logits[:, place]) for place, (name, category) in enumerate(head.items())}
