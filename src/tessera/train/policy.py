"""The policy-gradient objective of the GRPO family, token by token.

Sums over the tokens that the policy sampled, each with the advantage of its rollout: the loop divides by the number of such
tokens in the whole batch over all processes, so that neither short nor long rollouts weigh more (arXiv 2503.20783) and neither
micro-batches nor processes change the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tessera.model.decoder import Decoder
from tessera.train.objectives import Objective

RATIO_CAP = 2.0
"""Without clipping, p(train) / p(rollout) counts at most this much: rounding between the two is corrected, a fault is not fed."""
_LOGIT_BYTES = {"cpu": 1 << 24, "cuda": 1 << 29}


@dataclass(frozen=True)
class PolicySettings:
    """Options of the loss; as they stand by default, it is the plain on-policy gradient.

    Args:
        clip_low, clip_high: the ratio to the policy that sampled counts within [1 - low, 1 + high] (PPO, arXiv 1707.06347; a
            larger `high` is DAPO's clip-higher, arXiv 2503.14476); None: no clipping. Matters where a batch of rollouts makes
            several updates.
        dual_clip: where the advantage A is negative, the loss is at most -A times this (arXiv 1912.09729); None: unbounded.
        kl: factor of the k3 estimate of KL(policy || reference), per token (http://joschu.net/blog/kl-approx.html).
        supervised: whether batches also hold supervised rows (`ptx`, arXiv 2203.02155).
    """

    clip_low: float | None = None
    clip_high: float | None = None
    dual_clip: float | None = None
    kl: float = 0.0
    supervised: bool = False


def objective(settings: PolicySettings, blocked: Tensor, recomputed: bool = False) -> Objective:
    """The objective for batches whose `extras` are `logprobs`, `advantages` and, as the settings ask, `reference`, `supervised`.

    Args:
        settings: of the loss.
        blocked: ids, int64, that the engine never samples: they have no probability here either.
        recomputed: as in `Decoder.forward`.
    """
    measures: tuple[str, ...] = ("loss", "entropy", "mismatch", "clipped")
    measures += ("kl",) * bool(settings.kl) + ("supervised_loss",) * settings.supervised
    return Objective(partial(Policy, settings=settings, blocked=blocked, recomputed=recomputed), measures)


class Policy(nn.Module):
    """Decoder and policy-gradient loss in one module."""

    def __init__(self, decoder: Decoder, settings: PolicySettings, blocked: Tensor, recomputed: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.settings = settings
        self.recomputed = recomputed
        # No buffer: it would go into the weights that are saved and shared.
        self.blocked = blocked

    def forward(
        self,
        ids: Tensor,
        weights: Tensor,
        mask: Tensor | None,
        logprobs: Tensor,
        advantages: Tensor,
        reference: Tensor | None = None,
        supervised: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sums over the sampled tokens.

        Args:
            ids: (B, T + 1) int64.
            weights: (B, T) float32; 1 where the target was sampled and is learned from.
            mask: as in `Decoder.forward`.
            logprobs: (B, T) float32, of the targets under the policy that sampled them.
            advantages: (B, T) float32, of the rollouts.
            reference: (B, T) float32, log-probabilities under the reference.
            supervised: (B, T) float32, weights of the cross-entropy of targets that were not sampled.

        Returns:
            The sum to differentiate, and the sums of the measures: loss, entropy (nats) of the distribution sampled from,
            |log p(train) - log p(rollout)|, share of tokens whose ratio was clipped, KL, weighted cross-entropy.
        """
        hidden = self.decoder(ids[:, :-1], mask, recomputed=self.recomputed)
        counted = weights > 0 if supervised is None else (weights > 0) | (supervised > 0)
        logp, entropy = token_logprobs(hidden[counted], self.decoder.head_weight, ids[:, 1:][counted], self.blocked)
        weight, A, old = weights[counted], advantages[counted], logprobs[counted]
        # Targets that were not sampled have no old probability; a ratio of theirs could overflow.
        change = torch.where(weight > 0, logp - old, torch.zeros_like(logp))
        gain, clipped = self._gain(change, A)
        loss = -(gain * weight).sum()
        with torch.no_grad():
            sums = [(entropy * weight).sum(), (change.abs() * weight).sum(), (clipped * weight).sum()]
        if self.settings.kl:
            assert reference is not None
            away = torch.where(weight > 0, reference[counted] - logp, torch.zeros_like(logp))
            kl = ((away.exp() - away - 1) * weight).sum()
            loss = loss + self.settings.kl * kl
            sums.append(kl.detach())
        if supervised is not None:
            nats = -(logp * supervised[counted]).sum()
            loss = loss + nats
            sums.append(nats.detach())
        return loss, torch.stack([loss.detach(), *sums]).double()

    def _gain(self, change: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        """What is maximised for each token, and whether its ratio was clipped."""
        low, high, dual = self.settings.clip_low, self.settings.clip_high, self.settings.dual_clip
        if low is None and high is None and dual is None:
            correction = change.detach().exp().clamp(max=RATIO_CAP)
            # The first factor is 1 and has the slope of the log-probability.
            return (change - change.detach()).exp() * correction * A, correction == RATIO_CAP
        ratio = change.exp()
        least = 0.0 if low is None else 1 - low
        within = ratio.clamp(least, None if high is None else 1 + high)
        gain = torch.minimum(ratio * A, within * A)
        clipped = gain < ratio * A
        if dual is not None:
            floor = dual * A
            clipped = clipped | ((A < 0) & (gain < floor))
            gain = torch.where(A < 0, torch.maximum(gain, floor), gain)
        return gain, clipped


def token_logprobs(hidden_ND: Tensor, head: Tensor, targets_N: Tensor, blocked: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities of targets, differentiable, and entropies without gradient, (N,) float32 each.

    Logits are held for some rows at a time where they would be many, and are computed again for the gradient.

    Args:
        hidden_ND: after the last norm.
        head: (V, D) of the output head.
        targets_N: int64.
        blocked: int64, ids that have no probability; none of the targets.
    """

    def some(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(hidden, head.to(hidden.dtype)).float()
        if blocked is not None and len(blocked):
            logits = logits.index_fill(-1, blocked, float("-inf"))
        logp = logits.log_softmax(-1)
        with torch.no_grad():
            entropy = torch.special.entr(logp.exp()).sum(-1)
        return logp.gather(-1, targets[:, None])[:, 0], entropy

    rows = max(64, _LOGIT_BYTES[hidden_ND.device.type] // (4 * head.shape[0]))
    if len(hidden_ND) <= rows:
        return some(hidden_ND, targets_N)
    parts = [
        checkpoint(some, hidden, targets, use_reentrant=False)
        for hidden, targets in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
    ]
    return torch.cat([logp for logp, _ in parts]), torch.cat([entropy for _, entropy in parts])
