"""What labels of whole texts are learned by: for each category the logit of an id of its own, read at the text's last token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.model.decoder import Decoder
from tessera.train.objectives import Objective


def label_objective(ids: Sequence[int], recomputed: bool = False) -> Objective:
    """The objective for rows of one text each, with `places` and `labels` in `extras`; `ids`: of the K categories."""
    return Objective(partial(Labels, ids=ids, recomputed=recomputed), ("loss", "accuracy"))


class Labels(nn.Module):
    """Decoder and the cross-entropy of known labels in one module."""

    def __init__(self, decoder: Decoder, ids: Sequence[int], recomputed: bool = False) -> None:
        super().__init__()
        self.decoder = decoder
        self.ids = list(ids)
        self.recomputed = recomputed

    def forward(self, ids: Tensor, weights: Tensor, mask: Tensor | None, places: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over texts, in each of which all known labels count together as one.

        Args:
            ids: (B, T + 1) int64.
            weights: not used: nothing is predicted.
            mask: as in `Decoder.forward`.
            places: (B,) int64, where the last token of each text stands.
            labels: (B, K) float32, 1, 0, or NaN where it is not known.

        Returns:
            The sum to differentiate, and sums of the measures: loss; share of the known labels that are on the right side of 0.
        """
        logits_BK = label_logits(self.decoder, ids, mask, places, self.ids, self.recomputed)
        known_BK = ~labels.isnan()
        truth_BK = labels.nan_to_num()
        share_BK = known_BK / known_BK.sum(1, keepdim=True).clamp(min=1)
        loss = (F.binary_cross_entropy_with_logits(logits_BK, truth_BK, reduction="none") * share_BK).sum()
        right = (((logits_BK > 0) == (truth_BK > 0)) * share_BK).sum()
        return loss, torch.stack([part.detach().double() for part in (loss, right)])


def label_logits(
    decoder: Decoder, ids: Tensor, mask: Tensor | None, places: Tensor, categories: Sequence[int], recomputed: bool = False
) -> Tensor:
    """(B, K) float32: the logits of the ids `categories` at `places` (B,), ids that are never read or written, so that their rows
    of the head are the categories' own."""
    hidden_BTD = decoder(ids[:, :-1], mask, recomputed=recomputed)
    last_BD = hidden_BTD[torch.arange(len(ids), device=ids.device), places]
    return last_BD.float() @ decoder.head_weight[list(categories)].float().T
