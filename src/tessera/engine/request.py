"""What goes into the engine and what comes out: plain values, nothing of how they are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from tessera.engine.constraints import Constraint
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.tokens.document import TokenRecord

FinishReason = Literal["stop", "length", "abort"]

Top = tuple[tuple[int, float], ...]
"""The most likely ids at one place with their log-probabilities, most likely first."""


@dataclass(frozen=True)
class Completion:
    """What was made of one prompt.

    Args:
        record: prompt and sampled ids as the model saw them; `learn` is True for those that the model chose. They carry
            `logprobs`; prompt and forced tokens have 0 there.
        prompt_tokens: how many ids of `record` are the prompt.
        cached_tokens: how many of those were found in the prefix cache.
        cut_tokens: ids left off the start of a prompt that was longer than the context.
        finish_reason: `stop` (an end token, a stop string or the end of a grammar), `length` (max_tokens or the context is
            full) or `abort`.
        text: what was sampled, as text: without control tokens and a thought that was asked for, up to the stop string.
        seed: of the random numbers.
        version: of the weights when it ended, see `Engine.load_weights`.
        top: the most likely ids at each sampled token, where they were asked for.
        prompt_logprobs: (prompt_tokens,) float32 under the plain model, NaN for the first; None if not asked for.
        prompt_top: the most likely ids at each token of the prompt, `top_logprobs` of them; the first has none.
    """

    record: TokenRecord
    prompt_tokens: int
    cached_tokens: int
    cut_tokens: int
    finish_reason: FinishReason
    text: str
    seed: int
    version: int
    top: tuple[Top, ...] = ()
    prompt_logprobs: np.ndarray | None = None
    prompt_top: tuple[Top, ...] = ()

    @property
    def prompt_ids(self) -> np.ndarray:
        """(prompt_tokens,) int32."""
        return self.record.ids[: self.prompt_tokens]

    @property
    def ids(self) -> np.ndarray:
        """Sampled ids, int32, the end token included."""
        return self.record.ids[self.prompt_tokens :]

    @property
    def logprobs(self) -> np.ndarray:
        """Log-probabilities of `ids`, float32; what they are relative to is said in `sampling.Sampled`."""
        assert self.record.logprobs is not None
        return self.record.logprobs[self.prompt_tokens :]


@dataclass(frozen=True)
class Token:
    """A new token of a request.

    Args:
        id: of the token.
        logprob: see `sampling.Sampled`; 0 for a forced token.
        top: the most likely ids in its place, if `top_logprobs` asked for them.
        text: what became certain by it: nothing while a character is incomplete or a stop string may have begun.
    """

    id: int
    logprob: float
    top: Top
    text: str


@dataclass(frozen=True)
class Finished:
    """The last event of a request that ended."""

    reason: FinishReason
    completion: Completion


@dataclass(frozen=True)
class Failed:
    """The last event of a request that could not be finished.

    Args:
        message: why. It is for the log, not for a stranger, unless it is
        asked: what was asked for cannot be had; the engine is well.
    """

    message: str
    asked: bool = False


Event = Token | Finished | Failed


def ignore(event: Event) -> None:
    """For requests that nobody listens to."""


class Wished(Protocol):
    """What wishes for pictures, films and sounds have in common."""

    @property
    def guidance(self) -> float:
        """Scale."""
        ...

    @property
    def interval(self) -> tuple[float, float]:
        """Shares of the tokens between which it is guided."""
        ...

    @property
    def distilled(self) -> bool:
        """The model guides itself."""
        ...


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (arXiv 2207.12598): tokens are sampled from l_u + scale (l_c - l_u), where l_c are the logits
    after the request's prompt and l_u those after `prompt`, which says less.

    Args:
        scale: 1 leaves the request as it is, more follows its prompt more closely.
        prompt: ids, at least one.
        first, last: only the tokens from the one on and before the other are guided, counted from the first that is made; None:
            to the end. (An interval of the steps does diffusion good, arXiv 2404.07724.) Behind it the second row is let go.
    """

    scale: float
    prompt: tuple[int, ...]
    first: int = 0
    last: int | None = None

    @classmethod
    def of(
        cls, scale: float, interval: tuple[float, float], asked: Sequence[int], bare: Sequence[int], tokens: int
    ) -> Guidance | None:
        """For what is made of `tokens` tokens after the prompt `asked`; None where there is nothing to guide.

        Args:
            interval: shares of the tokens, between 0 and 1: where guidance begins and where it ends.
            bare: the prompt that says less.
        """
        begin, end = interval
        if scale == 1 or list(asked) == list(bare) or begin >= end:
            return None
        return cls(scale, tuple(bare), round(begin * tokens), None if end >= 1 else max(1, round(end * tokens)))

    @classmethod
    def asking(
        cls, wish: Wished, asked: list[int], bare: list[int], tokens: int, guided: int | None
    ) -> tuple[list[int], Guidance | None]:
        """The prompt of what somebody wishes, and its guidance: none where the model has learned to guide itself.

        Args:
            asked, bare, tokens: as in `of`.
            guided: the id that asks the model to, where it has learned that for such prompts.
        """
        if wish.distilled and guided is not None and asked != bare:
            return [guided, *asked], None
        return asked, cls.of(wish.guidance, wish.interval, asked, bare, tokens)

    def mixed(self, asked_V: Tensor, bare_V: Tensor) -> Tensor:
        """The logits to sample from, of those after either prompt."""
        return bare_V + self.scale * (asked_V - bare_V)

    def holds(self, made: int) -> bool:
        """Whether the next token is guided, after so many."""
        return self.first <= made and (self.last is None or made < self.last)


@dataclass(frozen=True)
class Request:
    """A prompt to complete.

    Args:
        prompt: ids, at least one.
        params: how to sample.
        constraint: what may be said; None: text and control tokens.
        prompt_logprobs: also find the log-probability of every token of the prompt. Such a prompt is computed in full.
        priority: lower is served first; see `scheduler.Scheduler` for how far others may be passed.
        salt: requests with equal salts share computed prefixes, others never do.
        guidance: takes a second row of the batch, which is given the same tokens.
        on_event: is told every token and then how it ended, in the thread that steps the engine. It must not block.
    """

    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    constraint: Constraint | None = None
    prompt_logprobs: bool = False
    priority: int = 0
    salt: str = ""
    guidance: Guidance | None = None
    on_event: Callable[[Event], None] = ignore

    def check(self, ids: int, rows: int, name: str = "the prompt") -> None:
        """Raises UserError where an engine of a model of so many ids, which computes so many rows at a time, cannot take it.

        Args:
            name: what it is called in the sentence.
        """
        if not self.prompt:
            raise UserError(f"{name} is empty; begin it with at least one token.")
        if not 0 <= min(self.prompt) <= max(self.prompt) < ids:
            raise UserError(f"{name} has an id outside 0..{ids - 1}.")
        if self.params.bias and not 0 <= min(self.params.bias) <= max(self.params.bias) < ids:
            raise UserError(f"{name}: bias has an id outside 0..{ids - 1}.")
        if self.guidance is not None:
            if not 0 <= self.guidance.scale < math.inf:
                raise UserError(f"{name}: guidance must be 0 or more, not {self.guidance.scale}.")
            if rows < 2:
                raise UserError(f"{name}: guidance takes two rows, and this engine computes one at a time.")
            replace(self, prompt=self.guidance.prompt, guidance=None).check(ids, rows, name)
        if self.params.max_tokens == 0 and not self.prompt_logprobs:
            raise UserError(f"{name}: max_tokens must be at least 1 where no logprobs of the prompt are asked for.")


class Busy(Exception):
    """The queue is full.

    Args:
        retry_after: seconds after which there should be room.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after:.0f} seconds")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Stats:
    """What an engine has done since it was made, and what it is doing.

    Args:
        running, waiting: requests now.
        cache_tokens: in the slots of the running requests now, of `cache_limit`.
        steps: forward passes.
        prompt_tokens: of all requests that began; `cached_tokens` of them were found in the prefix cache.
        prefill_tokens: computed of prompts (and of forced stretches).
        tokens: sampled or forced.
        guessed_tokens: of these, how many were guessed before and so needed no step of their own.
        finished, aborted, failed: requests that ended, by how.
        tokens_per_second: prefilled and generated, a running mean.
        version: of the weights.
    """

    running: int = 0
    waiting: int = 0
    cache_tokens: int = 0
    cache_limit: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill_tokens: int = 0
    tokens: int = 0
    guessed_tokens: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0
    tokens_per_second: float = 0.0
    version: int = 0
