"""From logits to the next token of each request in a batch.

Every request has its own settings and its own random numbers, which are a function of its seed and of how many tokens it has
sampled: who else is in the batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.errors import UserError

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class SamplingParams:
    """How one completion is sampled. The order is temperature, top_k, top_p, min_p.

    Args:
        max_tokens: sampled at most, the end token included.
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: only the k most likely tokens; 0: all.
        top_p: only the most likely tokens whose probabilities reach this sum (arXiv 1904.09751); 1: all.
        min_p: only tokens at least this many times as likely as the most likely one (arXiv 2407.01082); 0: all.
        seed: of the random numbers; None: a fresh one, found in `Completion.seed`.
        stop: the completion ends before the first of these strings, which is not part of its text.
        stop_ids: tokens that end it; None: the end of a document and the end of a turn.

    Raises:
        UserError: a value that is out of range.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for holds, rule in (
            (self.max_tokens >= 1, f"max_tokens must be at least 1, not {self.max_tokens}"),
            (0 <= self.temperature < float("inf"), f"temperature must be 0 or more, not {self.temperature}"),
            (self.top_k >= 0, f"top_k must be 0 (all) or more, not {self.top_k}"),
            (0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, not {self.top_p}"),
            (0 <= self.min_p <= 1, f"min_p must be from 0 to 1, not {self.min_p}"),
            (all(self.stop), "a stop string must not be empty"),
        ):
            if not holds:
                raise UserError(f"{rule}.")


def uniform(seed: int, step: int) -> float:
    """Random number `step` of `seed`, in [0, 1): splitmix64 (Steele, Lea, Flood 2014) as a counter-based generator."""
    return (_mix(_mix(seed) + _GOLDEN * (step + 1)) >> 11) * 2.0**-53


def sample(logits_BV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Samples one token per row by inverting the cumulative distribution at `uniforms`.

    Args:
        logits_BV: (B, V) float32; -inf where a token is not allowed, and finite somewhere in each row.
        params: B of them.
        uniforms: B numbers in [0, 1).

    Returns:
        ids, (B,) int64, and logprobs, (B,) float32: log-probability of each under softmax(logits / temperature) over the
        allowed tokens, before top_k, top_p and min_p cut it; at temperature 0 that of temperature 1.
    """
    device = logits_BV.device
    greedy_B = torch.tensor([p.temperature == 0 for p in params], device=device)
    temperature_B1 = torch.tensor([[p.temperature or 1.0] for p in params], device=device)
    logprobs_BV = torch.log_softmax(logits_BV / temperature_B1, dim=-1)
    ids = logits_BV.argmax(dim=-1)
    if not greedy_B.all():
        drawn = _invert(_cut(logprobs_BV.double().exp(), params), uniforms)
        ids = torch.where(greedy_B, ids, drawn)
    return ids, logprobs_BV.gather(1, ids[:, None])[:, 0]


def _cut(p_BV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Sets the probabilities to zero that top_k, top_p and min_p leave out."""
    if all(p.top_k == 0 and p.top_p == 1 and p.min_p == 0 for p in params):
        return p_BV
    vocabulary = p_BV.shape[1]
    top_k, top_p, min_p = (
        torch.tensor(column, device=p_BV.device, dtype=torch.float64)[:, None]
        for column in ([p.top_k or vocabulary for p in params], [p.top_p for p in params], [p.min_p for p in params])
    )
    sorted_BV, order_BV = p_BV.sort(dim=-1, descending=True, stable=True)
    sorted_BV = sorted_BV * (torch.arange(vocabulary, device=p_BV.device) < top_k)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    total_B1 = sorted_BV.sum(-1, keepdim=True)
    # top_p = 1 means all; comparing a rounded sum with 1 would cut the far tail.
    kept_BV = ((before_BV < top_p * total_B1) | (top_p == 1)) & (sorted_BV >= min_p * sorted_BV[:, :1])
    # Back into id order, so that a row draws the same token whether or not a neighbour brought it here.
    return torch.zeros_like(p_BV).scatter_(1, order_BV, sorted_BV * kept_BV)


def _invert(p_BV: Tensor, uniforms: Sequence[float]) -> Tensor:
    """First id at which the cumulative sum of p exceeds uniform * total."""
    cumulative_BV = p_BV.cumsum(-1)
    total_B1 = cumulative_BV[:, -1:]
    target_B1 = torch.tensor(uniforms, device=p_BV.device, dtype=torch.float64)[:, None] * total_B1
    # Rounding may lift the target onto the total, beyond which there is no token.
    target_B1 = torch.minimum(target_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0]


def _mix(word: int) -> int:
    word = (word + _GOLDEN) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
