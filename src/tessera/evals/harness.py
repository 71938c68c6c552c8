"""A model for lm-evaluation-harness, in process: `lm_eval.simple_evaluate(Harness(engine), tasks=[...])`.

What its `local-completions` asks `tessera serve` for goes here through the same engine without HTTP, with the same windows, so
that both give the same scores. Needs the extra `[evals]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tessera.engine.engine import Engine
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError

_NEW_TOKENS = 256
"""Where a task does not say how long an answer may be; `local-completions` has the same."""


class Harness(TemplateLM):
    """A base model on its text; no chat template is applied.

    Args:
        engine: nobody else steps it meanwhile.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        # One token less than the model reads, as `local-completions` always leaves room for one.
        self.max_length = engine.decoder.config.context - 1

    @property
    def eot_token_id(self) -> int:
        """What stands before a text that has no context."""
        return self._engine.vocabulary.end_id

    @property
    def tokenizer_name(self) -> str:
        """For caches and chat templates."""
        return self._engine.vocabulary.hash

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids; nothing is put before them."""
        return self._engine.vocabulary.encode_text(string)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """For each of (cache key, context, continuation): log-probability of the continuation, and whether it is greedy."""
        return [self._score([*context, *continuation], len(continuation)) for _, context, continuation in requests]

    def _score(self, ids: list[int], count: int) -> tuple[float, bool]:
        """Of the last `count` of `ids`, as many as fit into the context."""
        ids = ids[-self.max_length :]
        count = min(count, len(ids) - 1)
        decoder = self._engine.decoder
        row = torch.tensor([ids], device=decoder.head_weight.device)
        with torch.inference_mode():
            logits_TV = decoder.logits(decoder(row[:, :-1]))[0, len(ids) - 1 - count :]
        wanted = row[0, len(ids) - count :]
        logprobs = logits_TV.log_softmax(-1).gather(1, wanted[:, None])
        return float(logprobs.double().sum()), bool((logits_TV.argmax(-1) == wanted).all())

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows that do not overlap."""
        results = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(ids, self.eot_token_id, max_seq_len=self.max_length - 1, context_len=1)
            scores = self._loglikelihood_tokens([("", *make_disjoint_window(window)) for window in windows])
            results.append(sum(score for score, _ in scores))
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Completions up to a stop string. UserError where a task's answers leave no room for a question."""
        end = self._engine.vocabulary.decode([self.eot_token_id]).segments[0].content
        prompts, each = [], []
        for request in requests:
            context, settings = request.args[0], dict(request.args[1])
            count = int(settings.get("max_gen_toks", _NEW_TOKENS))
            if count >= self.max_length:
                raise UserError(
                    f"a task wants {count:,} new tokens of a model that reads {self.max_length + 1:,}; set max_gen_toks."
                )
            stop = [text for text in handle_stop_sequences(settings.get("until"), str(end)) if text]
            prompts.append(self.tok_encode(context)[-(self.max_length - count) :])
            each.append(SamplingParams(count, float(settings.get("temperature", 0.0)), stop=tuple(stop), seed=0))
        return [completion.text for completion in self._engine.generate(prompts, each)]
