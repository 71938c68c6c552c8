"""Advantages by a critic: rewards -> what each token was worth, beside what the critic had expected (PPO, arXiv 1707.06347).

The outcome pays at the last token; on the way each token can cost its estimate of the KL to the reference (arXiv 2203.02155).
Where the critic knows how an answer will end, a token's advantage says what that very token changed, which the mean of a group,
the same for all tokens of an answer, cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tessera.data.loader import Batch
from tessera.engine.request import Completion
from tessera.model.decoder import Decoder
from tessera.posttrain.rollouts import ROWS_AT_ONCE, VALUES, finite, learnable, logprobs_under, rows_of
from tessera.tokens.document import TokenRecord
from tessera.train.critic import Critic


@dataclass(frozen=True)
class Settings:
    """How advantages are estimated.

    Args:
        gamma: by how much a reward counts less one token earlier.
        lam: lambda of `advantages`: 1, all that came is counted, and the critic is a baseline; 0, what the critic expects next.
        kl: what a token costs for each nat of log-probability that the policy gives it above the reference.
        whiten: advantages of a batch are shifted and scaled to mean 0 and deviation 1.
        warmup: batches of rollouts from which the critic learns alone.
        punish: answers that were cut off are learned from as wrong ones, instead of not at all.
    """

    gamma: float = 1.0
    lam: float = 1.0
    kl: float = 0.0
    whiten: bool = True
    warmup: int = 0
    punish: bool = False


def advantages(rewards_BT: np.ndarray, values_BT: np.ndarray, learn_BT: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """(B, T) float64, generalized advantage estimates (arXiv 1506.02438, equation 16); 0 where a token was not sampled.

    Args:
        rewards_BT: that a token earned.
        values_BT: that were expected before it.
        learn_BT: whether it was sampled; others, such as the forced end of a thought, are no steps.
        gamma, lam: as in `Settings`.
    """
    found = np.zeros(learn_BT.shape)
    after_B, carried_B = np.zeros(len(learn_BT)), np.zeros(len(learn_BT))
    for t in reversed(range(learn_BT.shape[1])):
        value_B = values_BT[:, t].astype(np.float64)
        advantage_B = rewards_BT[:, t] + gamma * after_B - value_B + gamma * lam * carried_B
        found[:, t] = np.where(learn_BT[:, t], advantage_B, 0.0)
        after_B = np.where(learn_BT[:, t], value_B, after_B)
        carried_B = np.where(learn_BT[:, t], advantage_B, carried_B)
    return found


class Valued:
    """Credit by a critic; a `rollouts.Credit`.

    Args:
        critic: as it is when a batch is settled.
        settings: of the estimate.
        pad: id of padding.
        reference: the model that the policy is held to; None: to none.
        blocked: ids that are never sampled.
    """

    def __init__(
        self, critic: Critic, settings: Settings, pad: int, reference: Decoder | None = None, blocked: torch.Tensor | None = None
    ) -> None:
        self.critic = critic
        self.settings = settings
        self.pad = pad
        self.reference = reference
        self.blocked = torch.zeros(0, dtype=torch.int64) if blocked is None else blocked

    @property
    def names(self) -> tuple[str, ...]:
        """What its records have."""
        return VALUES

    def keep(self, group: Sequence[Completion], rewards: Sequence[float]) -> list[TokenRecord] | None:
        """The records, in whose `advantages` stands the reward at the last sampled token until they are settled."""
        kept = []
        for record, reward in learnable(group, finite(rewards).tolist(), self.settings.punish):
            earned = np.zeros(len(record), np.float32)
            earned[np.flatnonzero(record.learn)[-1]] = reward
            kept.append(replace(record, advantages=earned))
        return kept or None

    def settle(self, kept: list[list[TokenRecord]], number: int) -> tuple[list[list[TokenRecord]], dict[str, float]]:
        """Values, returns and advantages of the groups. Told are the share of the returns' variance that the values foretold, the
        mean value, and the mean of the KL's k1 estimate per token where there is a reference."""
        records = [record for group in kept for record in group]
        batch, told = rows_of(records, self.pad), dict[str, float]()
        learn, rewards = batch.learn, batch.extras["advantages"].astype(np.float64)
        if self.reference is not None:
            away = np.where(learn, batch.extras["logprobs"] - logprobs_under(self.reference, batch, self.blocked), 0.0)
            rewards = rewards - self.settings.kl * away
            told["kl"] = float(away.sum() / max(1, learn.sum()))
        values = values_of(self.critic, batch)
        gained = advantages(rewards, values, learn, self.settings.gamma, self.settings.lam)
        returns = np.where(learn, gained + values, 0.0)
        told |= {"explained_variance": explained_variance(values[learn], returns[learn]), "value": _mean(values[learn])}
        if self.settings.whiten:
            gained = np.where(learn, (gained - _mean(gained[learn])) / (_deviation(gained[learn]) or 1.0), 0.0)
        if number <= self.settings.warmup:
            gained = np.zeros_like(gained)
        rows = iter(range(len(records)))

        def settled(record: TokenRecord) -> TokenRecord:
            row, count = next(rows), len(record) - 1
            named = {"advantages": gained, "values": values, "returns": returns}
            # What stands at place t of a row speaks of the token at t + 1.
            return replace(
                record, **{name: np.append(np.float32(0), a[row, :count].astype(np.float32)) for name, a in named.items()}
            )

        return [[settled(record) for record in group] for group in kept], told


@torch.no_grad()
def values_of(critic: Critic, batch: Batch) -> np.ndarray:
    """(B, T) float32, what the critic expects before each learned token; 0 elsewhere."""
    device = critic.value.device
    parts = [
        critic(torch.as_tensor(batch.ids[row : row + ROWS_AT_ONCE, :-1]).to(device)).cpu().numpy()
        for row in range(0, len(batch.ids), ROWS_AT_ONCE)
    ]
    return np.where(batch.learn, np.concatenate(parts), np.float32(0))


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns): 1 where the critic knows all, 0 where it knows no more than a constant; 0 where
    there is nothing to explain."""
    spread = float(returns.var()) if len(returns) else 0.0
    return 1 - float((returns - values).var()) / spread if spread > 0 else 0.0


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _deviation(values: np.ndarray) -> float:
    return float(values.std()) if len(values) else 0.0
