"""What preferences are learned by: DPO on the policy itself, and the score of a reward model.

A row holds the answers to one prompt side by side, as documents that see nothing of each other, so that what is compared is
computed in one pass and a micro-batch never parts it. Sums over pairs or prompts come out; the loop divides by their number in
the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.model.decoder import Decoder
from tessera.train.objectives import Objective
from tessera.train.policy import token_logprobs


@dataclass(frozen=True)
class PreferenceSettings:
    """Options of DPO.

    Args:
        beta: how strongly the policy is held to the reference (arXiv 2305.18290, equation 7).
        normalised: log-probabilities are means over the tokens of an answer, so that long ones have no advantage.
        anchor: weight of the chosen answer's negative log-likelihood per token, which keeps its probability from falling
            (arXiv 2404.19733, equation 1).
    """

    beta: float = 0.1
    normalised: bool = False
    anchor: float = 0.0


def preference_objective(settings: PreferenceSettings, recomputed: bool = False) -> Objective:
    """The objective for rows of a chosen and a rejected answer, with `documents` and `reference` in `extras`."""
    measures = ("loss", "accuracy", "margin", "chosen_change", "rejected_change", "chosen_loss")
    return Objective(partial(Preference, settings=settings, recomputed=recomputed), measures)


def reward_objective(score_id: int, recomputed: bool = False) -> Objective:
    """The objective for rows of all answers to a prompt, with `places` and `better` in `extras`."""
    return Objective(partial(Reward, score_id=score_id, recomputed=recomputed), ("loss", "accuracy", "gap", "score"))


class Preference(nn.Module):
    """Decoder and the DPO loss in one module."""

    def __init__(self, decoder: Decoder, settings: PreferenceSettings, recomputed: bool = False) -> None:
        super().__init__()
        self.decoder = decoder
        self.settings = settings
        self.recomputed = recomputed

    def forward(
        self, ids: Tensor, weights: Tensor, mask: Tensor | None, documents: Tensor, reference: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums over pairs.

        Args:
            ids: (B, T + 1) int64; each row a chosen answer with its prompt, then the rejected one with the same prompt.
            weights: (B, T) float32; 1 at the targets that belong to an answer.
            mask: as in `Decoder.forward`; the two see nothing of each other.
            documents: (B, T) int64; 0 in the chosen one, 1 in the rejected one.
            reference: (B, 2) float32 log-probabilities of the answers under the reference.

        Returns:
            The sum to differentiate, and sums of the measures: loss; 1 where the margin is positive, a half where it is zero;
            margin; the change of either answer's log-probability since the reference; the chosen answer's loss per token.
        """
        logp_B2, count_B2 = answer_logprobs(self.decoder, ids, weights, mask, documents, self.recomputed)
        change_B2 = logp_B2 - reference
        if self.settings.normalised:
            change_B2 = change_B2 / count_B2
        margin_B = self.settings.beta * (change_B2[:, 0] - change_B2[:, 1])
        chosen_B = -logp_B2[:, 0] / count_B2[:, 0]
        loss_B = -F.logsigmoid(margin_B) + self.settings.anchor * chosen_B
        # A tie, as all are before the first step, is as good as a guess.
        right_B = (margin_B.sign() + 1) / 2
        parts = (loss_B, right_B, margin_B, change_B2[:, 0], change_B2[:, 1], chosen_B)
        return loss_B.sum(), torch.stack([part.detach().double().sum() for part in parts])


def answer_logprobs(
    decoder: Decoder, ids: Tensor, weights: Tensor, mask: Tensor | None, documents: Tensor, recomputed: bool = False
) -> tuple[Tensor, Tensor]:
    """(B, 2) float32 summed log-probabilities of the two answers of each row, and how many tokens they have."""
    hidden = decoder(ids[:, :-1], mask, recomputed=recomputed)
    learned = weights > 0
    logp_N, _ = token_logprobs(hidden[learned], decoder.head_weight, ids[:, 1:][learned])
    answer_N = (2 * torch.arange(len(ids), device=ids.device)[:, None] + documents)[learned]
    zeros = torch.zeros(2 * len(ids), device=ids.device)
    sums = zeros.index_add(0, answer_N, logp_N)
    return sums.view(-1, 2), zeros.index_add(0, answer_N, torch.ones_like(logp_N)).view(-1, 2)


class Reward(nn.Module):
    """Decoder and the loss of pairwise comparisons in one module (arXiv 2203.02155, equation 1)."""

    def __init__(self, decoder: Decoder, score_id: int, recomputed: bool = False) -> None:
        super().__init__()
        self.decoder = decoder
        self.score_id = score_id
        self.recomputed = recomputed

    def forward(self, ids: Tensor, weights: Tensor, mask: Tensor | None, places: Tensor, better: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over prompts, in each of which all pairs count together as one.

        Args:
            ids: (B, T + 1) int64; each row the answers to one prompt, each with the prompt before it.
            weights: not used: nothing is predicted.
            mask: as in `Decoder.forward`; answers see nothing of each other.
            places: (B, K) int64, where the last token of each answer stands; -1 where a row has fewer.
            better: (B, P, 2) int64, pairs of answers, the better one first; -1 where a row has fewer.

        Returns:
            The sum to differentiate, and sums of the measures: loss; share of the pairs in the right order; mean difference;
            mean score.
        """
        scores_BK = answer_scores(self.decoder, ids, mask, places, self.score_id, self.recomputed)
        real_BP, there_BK = better[..., 0] >= 0, places >= 0
        first, second = (scores_BK.gather(1, better[..., side].clamp(min=0)) for side in (0, 1))
        gap_BP = first - second
        share_BP = real_BP / real_BP.sum(1, keepdim=True).clamp(min=1)
        loss = -(F.logsigmoid(gap_BP) * share_BP).sum()
        mean_B = (scores_BK * there_BK).sum(1) / there_BK.sum(1).clamp(min=1)
        parts = (loss, ((gap_BP > 0) * share_BP).sum(), (gap_BP * share_BP).sum(), mean_B.sum())
        return loss, torch.stack([part.detach().double() for part in parts])


def answer_scores(
    decoder: Decoder, ids: Tensor, mask: Tensor | None, places: Tensor, score_id: int, recomputed: bool = False
) -> Tensor:
    """(B, K) float32: the logit of `score_id` at the last token of each answer, an id that is never read or written, so that its
    row of the head is the reward model's own. Where there is no answer, that of the first token."""
    hidden_BTD = decoder(ids[:, :-1], mask, recomputed=recomputed)
    last_BKD = hidden_BTD.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, hidden_BTD.shape[-1]))
    return last_BKD.float() @ decoder.head_weight[score_id].float()
