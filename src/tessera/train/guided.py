"""What guidance is learned by: the distribution that two passes give together, taught to one pass behind a control token."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from tessera.model.decoder import Decoder
from tessera.train.objectives import Objective


def guided_objective(teacher: Decoder, scale: float, block: range, end: int | None = None, recomputed: bool = False) -> Objective:
    """The objective for rows of one signal each, with `bare`, `places`, `bare_places` and `chosen` in `extras`.

    Args:
        teacher: the model as it was; nothing is learned in it.
        scale: of its guidance.
        block: ids of the medium, from which it is sampled.
        end: id that ends a signal where its length is sampled too, as that of a sound; None: it is known.
    """
    build = partial(Guided, teacher=teacher, scale=scale, block=block, end=end, recomputed=recomputed)
    return Objective(build, ("loss", "divergence", "accuracy"))


class Guided(nn.Module):
    """Decoder and the cross-entropy to the guided distribution in one module."""

    def __init__(
        self, decoder: Decoder, teacher: Decoder, scale: float, block: range, end: int | None = None, recomputed: bool = False
    ) -> None:
        super().__init__()
        self.decoder = decoder
        # In a list: no part of what is learned, moved or saved.
        self._teacher = [teacher]
        self.scale = scale
        self.among = [*block, *([] if end is None else [end])]
        self.recomputed = recomputed

    def forward(
        self, ids: Tensor, weights: Tensor, mask: Tensor | None, bare: Tensor, places: Tensor, bare_places: Tensor, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums over signals, in each of which all tokens count together as one.

        Args:
            ids: (B, T + 1) int64; each row the control token, the prompt, and what the teacher made.
            weights: not used: what is learned stands in `places`.
            mask: None: rows hold one document.
            bare: (B, T' + 1) int64; the prompt that says less, and the same.
            places: (B, K) int64, from which of the T inputs each of the made tokens is predicted; -1 where a row has fewer.
            bare_places: the same in `bare`.
            chosen: (B, K) bool, which of them were sampled; the others could not have been anything else.

        Returns:
            The sum to differentiate, and sums of the measures: loss; divergence from the guided distribution where there is a
            choice; share of the tokens whose likeliest id is the same.
        """
        there_BK = places >= 0
        known_BK = ids.gather(1, (places + 1).clamp(min=0))
        student_BKV = self._logits(self.decoder, ids, places).log_softmax(-1)
        with torch.no_grad():
            full_BKV = self._logits(self._teacher[0], ids[:, 1:], places - 1)
            bare_BKV = self._logits(self._teacher[0], bare, bare_places)
            among = torch.tensor(self.among, device=ids.device)
            guided_BKC = (bare_BKV + self.scale * (full_BKV - bare_BKV))[..., among].log_softmax(-1)
        forced_BK = -student_BKV.gather(2, known_BK[..., None])[..., 0]
        entropy_BK = -(guided_BKC.exp() * guided_BKC).sum(-1)
        crossed_BK = -(guided_BKC.exp() * student_BKV[..., among]).sum(-1)
        share_BK = there_BK / there_BK.sum(1, keepdim=True).clamp(min=1)
        loss = (torch.where(chosen, crossed_BK, forced_BK) * share_BK).sum()
        choice_BK = chosen & there_BK
        chosen_share_BK = choice_BK / choice_BK.sum(1, keepdim=True).clamp(min=1)
        divergence = ((crossed_BK - entropy_BK) * chosen_share_BK).sum()
        same_BK = student_BKV.argmax(-1) == among[guided_BKC.argmax(-1)]
        parts = (loss, divergence, (same_BK * chosen_share_BK).sum())
        return loss, torch.stack([part.detach().double() for part in parts])

    def _logits(self, decoder: Decoder, ids: Tensor, places: Tensor) -> Tensor:
        """(B, K, V) float32 logits behind the inputs at `places`; where there is none, those behind the first."""
        recomputed = self.recomputed and decoder is self.decoder
        hidden_BTD = decoder(ids[:, :-1], recomputed=recomputed)
        at_BKD = places.clamp(min=0)[..., None].expand(-1, -1, hidden_BTD.shape[-1])
        return decoder.logits(hidden_BTD.gather(1, at_BKD))
