"""A critic beside the policy: what reward is still to come, learned by the loss that is clipped like the policy's (PPO).

The critic is a decoder of its own with a scalar head, so that what it learns never moves the policy. The policy's loss is that of
`train.policy`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from tessera.model.decoder import Decoder
from tessera.train.objectives import Objective
from tessera.train.policy import Policy, PolicySettings, objective


class Critic(nn.Module):
    """A decoder with a scalar head, which begins at zero.

    Args:
        decoder: read up to its last norm; nobody else may learn it.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        if not decoder.config.tied:
            decoder.lm_head.requires_grad_(False)  # it takes part in nothing here; whoever adds up gradients would wait for it
        place = decoder.model.norm.weight
        self.value = nn.Parameter(torch.zeros_like(place))
        self.bias = nn.Parameter(place.new_zeros(1))

    def forward(self, ids: Tensor, mask: Tensor | None = None, recomputed: bool = False) -> Tensor:
        """(B, T) float32, what is expected after each of the ids (B, T); the rest as in `Decoder.forward`."""
        return self.decoder(ids, mask, recomputed=recomputed).float() @ self.value + self.bias


def actor_critic(
    settings: PolicySettings, blocked: Tensor, value_clip: float | None = None, recomputed: bool = False
) -> Objective:
    """The objective of a policy and its `Critic`, for batches with `values` and `returns` in `extras` besides.

    Args:
        settings, blocked, recomputed: as in `policy.objective`.
        value_clip: as in `value_losses`.
    """
    measures = (*objective(settings, blocked).measures, "value_loss")
    build = partial(ActorCritic, settings=settings, blocked=blocked, value_clip=value_clip, recomputed=recomputed)
    return Objective(build, measures)


class ActorCritic(nn.Module):
    """Policy, critic and the losses of both in one module."""

    def __init__(
        self,
        decoder: Decoder,
        critic: Critic,
        settings: PolicySettings,
        blocked: Tensor,
        value_clip: float | None,
        recomputed: bool,
    ) -> None:
        super().__init__()
        self.policy = Policy(decoder, settings, blocked, recomputed)
        self.critic = critic
        self.value_clip = value_clip

    def forward(
        self,
        ids: Tensor,
        weights: Tensor,
        mask: Tensor | None,
        logprobs: Tensor,
        advantages: Tensor,
        values: Tensor,
        returns: Tensor,
        supervised: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sums over the sampled tokens.

        Args:
            ids, weights, mask, logprobs, advantages, supervised: as in `Policy.forward`.
            values: (B, T) float32, of the critic when the tokens were sampled, before each of them.
            returns: (B, T) float32, what it should have said.

        Returns:
            As `Policy.forward`, with the loss of the values among what is differentiated and last among the measures.
        """
        loss, sums = self.policy(ids, weights, mask, logprobs, advantages, supervised=supervised)
        rows = (weights > 0).any(1)
        if not rows.any():
            # Several processes meet in the gradients of all weights, whatever each has to learn.
            rows[:1] = True
        found = self.critic(ids[rows, :-1], None if mask is None else mask[rows], self.policy.recomputed)
        value_loss = (value_losses(found, values[rows], returns[rows], self.value_clip) * weights[rows]).sum()
        return loss + value_loss, torch.cat([sums, value_loss.detach().double()[None]])


def value_losses(found: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Half the squared errors of values; with `clip`, the larger of those of the values and of the values held within so much of
    the old ones, so that no batch moves a value farther (arXiv 2005.12729, section 3)."""
    error = (found - returns).square()
    if clip is not None:
        error = torch.maximum(error, (old + (found - old).clamp(-clip, clip) - returns).square())
    return 0.5 * error
