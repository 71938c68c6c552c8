"""Cached generation: prompts of ids in, completions out, many at once, each token computed once.

The engine runs the decoder's own forward pass with a cache. A batch is prefilled in one pass, then every pass adds one token to
each row; rows that are done leave the batch. A completion does not depend, up to rounding, on the others in its batch.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tessera.engine.cache import DenseCache
from tessera.engine.sampling import SamplingParams, sample, uniform
from tessera.engine.stream import TextStream
from tessera.errors import UserError
from tessera.model.decoder import Decoder
from tessera.tokens.document import TokenRecord
from tessera.tokens.vocabulary import END, END_TURN, PAD, Vocabulary

DEFAULT_PARAMS = SamplingParams()
FinishReason = Literal["stop", "length"]
OnToken = Callable[[int, int, str], None]
"""Called with the request's index, its new id, and the text that became certain by it."""


@dataclass(frozen=True)
class Completion:
    """What was made of one prompt.

    Args:
        record: prompt and sampled ids as the model saw them; `learn` is True for the sampled ones, which carry `logprobs`.
        prompt_tokens: how many ids of `record` are the prompt.
        cut_tokens: ids left off the start of a prompt that was longer than the context.
        finish_reason: `stop` (an end token or a stop string) or `length` (max_tokens or the context is full).
        text: what was sampled, as text: without control tokens, up to the stop string.
        seed: of the random numbers.
    """

    record: TokenRecord
    prompt_tokens: int
    cut_tokens: int
    finish_reason: FinishReason
    text: str
    seed: int

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
        """Log-probabilities of `ids`, float32; what they are relative to is said in `sampling.sample`."""
        assert self.record.logprobs is not None
        return self.record.logprobs[self.prompt_tokens :]


@dataclass
class _Request:
    """A prompt on its way."""

    index: int
    prompt: list[int]
    cut_tokens: int
    params: SamplingParams
    seed: int
    stop_ids: frozenset[int]
    stream: TextStream
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Engine:
    """Generates with one decoder.

    Args:
        decoder: computes in its `dtype`; parameters already in that dtype save a conversion in each pass.
        vocabulary: says which ids are text and how they read.
        rows: requests computed together; more wait their turn.
    """

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary, rows: int = 32) -> None:
        if vocabulary.size > decoder.config.vocab_size:
            raise UserError(
                f"the vocabulary has {vocabulary.size} ids, the model only {decoder.config.vocab_size} rows for them."
            )
        self.decoder = decoder
        self.vocabulary = vocabulary
        self.rows = rows
        self._device = decoder.head_weight.device
        controls = vocabulary.controls
        self._ends = frozenset(controls[name] for name in (END, END_TURN) if name in controls)
        # Ids beyond the vocabulary (Qwen3 pads its matrix), ids without a token, media ids and padding never come out as text.
        allowed_V = torch.zeros(decoder.config.vocab_size, dtype=torch.bool)
        allowed_V[: vocabulary.size] = torch.from_numpy(vocabulary.token_bytes > 0)
        allowed_V[list(vocabulary.control_ids - {controls.get(PAD)} | self._ends)] = True
        self._blocked_V = (~allowed_V).to(self._device)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] = DEFAULT_PARAMS,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        """Completes every prompt.

        A prompt that fills the context (`decoder.config.context` tokens) keeps its last tokens, so that `max_tokens`, or else
        half of the context, fits behind it; how many it lost is said in `cut_tokens`.

        Args:
            prompts: ids, at least one each.
            params: for all, or one each. With a seed, equal prompts have equal completions.
            on_token: is told about each token as it comes.

        Raises:
            UserError: a prompt is empty or has an id that the model does not know.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        requests = [self._request(index, prompt, p) for index, (prompt, p) in enumerate(zip(prompts, each, strict=True))]
        with torch.inference_mode():
            for start in range(0, len(requests), self.rows):
                self._run(requests[start : start + self.rows], on_token)
        return [_completion(request) for request in requests]

    def _request(self, index: int, prompt: Sequence[int], params: SamplingParams) -> _Request:
        context = self.decoder.config.context
        if len(prompt) == 0:
            raise UserError(f"prompt {index} is empty; begin it with at least one token.")
        if not 0 <= min(prompt) <= max(prompt) < self.decoder.config.vocab_size:
            raise UserError(f"prompt {index} has an id outside 0..{self.decoder.config.vocab_size - 1}.")
        cut = 0
        if len(prompt) >= context:
            cut = len(prompt) - (context - min(params.max_tokens, context // 2))
        return _Request(
            index=index,
            prompt=[int(token) for token in prompt[cut:]],
            cut_tokens=cut,
            params=params,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            stop_ids=self._ends if params.stop_ids is None else frozenset(params.stop_ids),
            stream=TextStream(params.stop),
        )

    def _run(self, active: list[_Request], on_token: OnToken | None) -> None:
        """One batch, from prefill until its last request is done."""
        cache = DenseCache(self.decoder.config, len(active), self.decoder.dtype, self._device)
        new = [request.prompt for request in active]
        while active:
            for request, token, logprob in zip(active, *self._step(active, new, cache), strict=True):
                self._take(request, token, logprob, on_token)
            going = [row for row, request in enumerate(active) if request.finish_reason is None]
            if len(going) < len(active):
                active = [active[row] for row in going]
                if active:
                    cache.keep(going)
            new = [request.ids[-1:] for request in active]

    def _step(self, active: list[_Request], new: list[list[int]], cache: DenseCache) -> tuple[list[int], list[float]]:
        """Feeds the new ids of each row to the model and samples the next id of each."""
        counts = [len(ids) for ids in new]
        width = max(counts)
        ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids in new], device=self._device)
        positions, mask = cache.begin(counts)
        hidden_BTD = self.decoder(ids_BT, mask=mask, positions=positions, cache=cache)
        last = torch.tensor(counts, device=self._device) - 1
        logits_BV: Tensor = self.decoder.logits(hidden_BTD[torch.arange(len(new), device=self._device), last])
        logits_BV = logits_BV.masked_fill(self._blocked_V, float("-inf"))
        uniforms = [uniform(request.seed, len(request.ids)) for request in active]
        ids, logprobs = sample(logits_BV, [request.params for request in active], uniforms)
        return ids.tolist(), logprobs.tolist()

    def _take(self, request: _Request, token: int, logprob: float, on_token: OnToken | None) -> None:
        """Adds a sampled token and sees whether it was the last."""
        request.ids.append(token)
        request.logprobs.append(logprob)
        text = "" if token in request.stop_ids else request.stream.feed(self.vocabulary.bytes_of([token]))
        if token in request.stop_ids or request.stream.stopped:
            request.finish_reason = "stop"
        elif (
            len(request.ids) >= request.params.max_tokens or len(request.prompt) + len(request.ids) >= self.decoder.config.context
        ):
            request.finish_reason = "length"
        if request.finish_reason is not None:
            text += request.stream.finish()
        if on_token is not None:
            on_token(request.index, token, text)


def _completion(request: _Request) -> Completion:
    given = len(request.prompt)
    record = TokenRecord(
        ids=np.array(request.prompt + request.ids, dtype=np.int32),
        learn=np.arange(given + len(request.ids)) >= given,
        logprobs=np.array([0.0] * given + request.logprobs, dtype=np.float32),
    )
    assert request.finish_reason is not None
    return Completion(record, given, request.cut_tokens, request.finish_reason, request.stream.text, request.seed)
