"""From logits to the next token of each request in a batch.

Every request has its own settings and its own random numbers, which are a function of its seed and of how many tokens it has
sampled: who else is in the batch changes nothing. What a row does not ask for costs it nothing: penalties, bias, masks and cuts
touch only the rows that have them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.errors import UserError

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

# The cumulative distribution is searched in two strides, of sums and then of single ids: half the time of one running sum
# over the vocabulary (docs/LOG.md, 2026-11-25, "sampling").
_STRIDE = 64
_COLD = 1e-5
"""Temperatures below are 0: logits divided by less are no float32 any more."""
NOTHING = -1
"""Stands for the id of a row that has none to choose from."""


@dataclass(frozen=True)
class SamplingParams:
    """How one completion is sampled. The order is penalties, bias, temperature, top_k, top_p, min_p.

    Args:
        max_tokens: sampled at most, the end token included; 0 only reads the prompt, for its logprobs.
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: only the k most likely tokens; 0: all.
        top_p: only the most likely tokens whose probabilities reach this sum (arXiv 1904.09751); 1: all.
        min_p: only tokens at least this many times as likely as the most likely one (arXiv 2407.01082); 0: all.
        presence_penalty: taken from the logits of tokens that were sampled already.
        frequency_penalty: taken once for each time that they were.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens in the prompt or sampled
            (arXiv 1909.05858); 1: none.
        bias: added to the logits of these ids; -100 or less bans the id.
        seed: of the random numbers; None: a fresh one, found in `Completion.seed`.
        stop: the completion ends before the first of these strings, which is not part of its text; in the tool calls and thoughts
            that a constraint asks for they are nothing special.
        stop_ids: tokens that end it; None: the end of a document and the end of a turn.
        top_logprobs: how many of the most likely tokens are told beside each sampled one; None: only the sampled one.

    Raises:
        UserError: a value that is out of range.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] | None = None
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        for holds, rule in (
            (self.max_tokens >= 0, f"max_tokens must be 0 or more, not {self.max_tokens}"),
            (0 <= self.temperature < math.inf, f"temperature must be 0 or more, not {self.temperature}"),
            (self.top_k >= 0, f"top_k must be 0 (all) or more, not {self.top_k}"),
            (0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, not {self.top_p}"),
            (0 <= self.min_p <= 1, f"min_p must be from 0 to 1, not {self.min_p}"),
            (math.isfinite(self.presence_penalty), f"presence_penalty must be a number, not {self.presence_penalty}"),
            (math.isfinite(self.frequency_penalty), f"frequency_penalty must be a number, not {self.frequency_penalty}"),
            (0 < self.repetition_penalty < math.inf, f"repetition_penalty must be above 0, not {self.repetition_penalty}"),
            (all(map(math.isfinite, self.bias.values())), "bias must hold finite numbers"),
            (all(self.stop), "a stop string must not be empty"),
            ((self.top_logprobs or 0) >= 0, f"top_logprobs must be 0 or more, not {self.top_logprobs}"),
        ):
            if not holds:
                raise UserError(f"{rule}.")

    @property
    def penalised(self) -> bool:
        """Whether the logits depend on the tokens so far."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)


class History:
    """Which ids a penalised request has met: `sampled_V` counts those it sampled, `met_V` those of the prompt too."""

    def __init__(self, prompt: Sequence[int], vocabulary: int, device: torch.device) -> None:
        self.sampled_V = torch.zeros(vocabulary, device=device)
        self.met_V = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self.met_V[torch.tensor(prompt, dtype=torch.long, device=device)] = True

    def add(self, token: int) -> None:
        """Counts a sampled token."""
        self.sampled_V[token] += 1
        self.met_V[token] = True


@dataclass(frozen=True)
class Draw:
    """What one row of a batch asks for.

    Args:
        params: its settings.
        uniform: its random number, in [0, 1).
        history: what its penalties count; None where it has none.
        allowed_V: bool, the ids that a constraint leaves; None: all but the batch's blocked ones.
    """

    params: SamplingParams
    uniform: float
    history: History | None = None
    allowed_V: Tensor | None = None


@dataclass(frozen=True)
class Sampled:
    """One token per row.

    Args:
        ids: (B,) of them; `NOTHING` for a row in which bias and masks leave no token, or whose logits are no finite numbers.
        logprobs: (B,) log-probability of each under softmax(logits / temperature) over the allowed tokens, penalties and bias
            included, before top_k, top_p and min_p cut it; at temperature 0 that of temperature 1.
        top: for each row the most likely ids with their log-probabilities, as many as it asked for.
    """

    ids: list[int]
    logprobs: list[float]
    top: list[tuple[tuple[int, float], ...]]


def uniform(seed: int, step: int) -> float:
    """Random number `step` of `seed`, in [0, 1): splitmix64 (Steele, Lea, Flood 2014) as a counter-based generator."""
    return (_mix(_mix(seed) + _GOLDEN * (step + 1)) >> 11) * 2.0**-53


def sample(logits_BV: Tensor, draws: Sequence[Draw], blocked: Tensor | None = None) -> Sampled:
    """Samples one token per row by inverting the cumulative distribution at `Draw.uniform`.

    Args:
        logits_BV: (B, V) float32, written over.
        draws: B of them.
        blocked: int64, ids that rows without a mask of their own never sample.
    """
    _adjust(logits_BV, draws, blocked)
    none = (~logits_BV.amax(-1).isfinite()).nonzero()[:, 0].tolist()
    if none:
        logits_BV[none] = 0.0  # drawn like the others, and then left
    heats = [draw.params.temperature if draw.params.temperature >= _COLD else 0.0 for draw in draws]
    greedy = [heat == 0 for heat in heats]
    if any(heat not in (0, 1) for heat in heats):
        logits_BV.div_(_column([heat or 1.0 for heat in heats], logits_BV))
    p_BV = torch.softmax(logits_BV, dim=-1)
    if not all(greedy):
        cut_BV = p_BV
        if cut := [row for row, draw in enumerate(draws) if _cuts(draw.params)]:
            cut_BV = p_BV.clone()
            cut_BV[cut] = _cut(p_BV[cut], [draws[row].params for row in cut])
        ids_B = _invert(cut_BV, [draw.uniform for draw in draws])
    if any(greedy):
        likeliest_B = logits_BV.argmax(-1)
        ids_B = likeliest_B if all(greedy) else torch.where(torch.tensor(greedy, device=p_BV.device), likeliest_B, ids_B)
    logprobs_B = p_BV.gather(1, ids_B[:, None])[:, 0].log()
    top = [
        most_likely(logits_BV[row].log_softmax(-1), draw.params.top_logprobs) if draw.params.top_logprobs else ()
        for row, draw in enumerate(draws)
    ]
    ids = ids_B.tolist()
    for row in none:
        ids[row] = NOTHING
    return Sampled(ids, logprobs_B.tolist(), top)


def refuse_nothing(token: int) -> None:
    """Raises UserError for `NOTHING`."""
    if token == NOTHING:
        raise UserError("no token is left to choose from: what is asked for, logit_bias and penalties leave none.")


def most_likely(logprobs_V: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` most likely ids with their log-probabilities, those left out that cannot come."""
    values, ids = logprobs_V.topk(min(count, len(logprobs_V)))
    return tuple((i, value) for i, value in zip(ids.tolist(), values.tolist(), strict=True) if value > -math.inf)


def _adjust(logits_BV: Tensor, draws: Sequence[Draw], blocked: Tensor | None) -> None:
    """Penalties, bias and masks, in place."""
    masked = [row for row, draw in enumerate(draws) if draw.allowed_V is not None]
    for row, draw in enumerate(draws):
        logits_V, params = logits_BV[row], draw.params
        if draw.history is not None:
            if params.repetition_penalty != 1:
                punished_V = torch.where(logits_V > 0, logits_V / params.repetition_penalty, logits_V * params.repetition_penalty)
                logits_V.copy_(torch.where(draw.history.met_V, punished_V, logits_V))
            sampled_V = draw.history.sampled_V
            logits_V -= sampled_V * params.frequency_penalty + (sampled_V > 0) * params.presence_penalty
        if params.bias:
            ids = torch.tensor(list(params.bias), device=logits_V.device)
            values = [-math.inf if value <= -100 else value for value in params.bias.values()]
            logits_V.index_add_(0, ids, torch.tensor(values, dtype=logits_V.dtype, device=logits_V.device))
        if draw.allowed_V is not None:
            logits_V.masked_fill_(~draw.allowed_V, -math.inf)
    if blocked is not None and not masked:
        logits_BV.index_fill_(1, blocked, -math.inf)
    elif blocked is not None:
        for row in set(range(len(draws))).difference(masked):
            logits_BV[row].index_fill_(0, blocked, -math.inf)


def _cuts(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


def _cut(p_BV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Sets the probabilities to zero that top_k, top_p and min_p leave out."""
    vocabulary = p_BV.shape[1]
    top_k, top_p, min_p = (
        torch.tensor(column, device=p_BV.device, dtype=torch.float64)[:, None]
        for column in ([p.top_k or vocabulary for p in params], [p.top_p for p in params], [p.min_p for p in params])
    )
    sorted_BV, order_BV = p_BV.sort(dim=-1, descending=True, stable=True)
    sorted_BV = sorted_BV * (torch.arange(vocabulary, device=p_BV.device) < top_k)
    total_B1 = sorted_BV.sum(-1, keepdim=True, dtype=torch.float64)
    before_BV = sorted_BV.cumsum(-1, dtype=torch.float64) - sorted_BV
    # top_p = 1 means all; comparing a rounded sum with 1 would cut the far tail.
    kept_BV = ((before_BV < top_p * total_B1) | (top_p == 1)) & (sorted_BV >= min_p * sorted_BV[:, :1])
    return torch.zeros_like(p_BV).scatter_(1, order_BV, sorted_BV * kept_BV)


def _invert(p_BV: Tensor, uniforms: Sequence[float]) -> Tensor:
    """First id at which the cumulative sum of p exceeds uniform * total."""
    if p_BV.shape[1] % _STRIDE:
        p_BV = F.pad(p_BV, (0, -p_BV.shape[1] % _STRIDE))
    strides_BNS = p_BV.view(len(p_BV), -1, _STRIDE)
    sums_BN = strides_BNS.sum(-1).double()
    ends_BN = sums_BN.cumsum(-1)
    target_B1 = _column(uniforms, ends_BN) * ends_BN[:, -1:]
    stride_B1 = _first_above(ends_BN, target_B1)
    rest_B1 = target_B1 - (ends_BN - sums_BN).gather(1, stride_B1)
    inside_BS = strides_BNS[torch.arange(len(p_BV), device=p_BV.device), stride_B1[:, 0]]
    return (stride_B1 * _STRIDE + _first_above(inside_BS.cumsum(-1, dtype=torch.float64), rest_B1))[:, 0]


def _first_above(ends_BN: Tensor, target_B1: Tensor) -> Tensor:
    """(B, 1) first place where the running sums exceed the target."""
    # Rounding may lift the target onto the total, beyond which there is nothing.
    total_B1 = ends_BN[:, -1:]
    target_B1 = torch.minimum(target_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.searchsorted(ends_BN, target_B1, right=True)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _mix(word: int) -> int:
    word = (word + _GOLDEN) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
