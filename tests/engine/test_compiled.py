"""The compiled step: the same ids, never compiled again, with whatever weights there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tessera.device import can_compile, detect
from tessera.engine.engine import Engine, Limits
from tessera.engine.sampling import SamplingParams
from tessera.model.decoder import Decoder, join_weights
from tessera.tokens.vocabulary import Vocabulary


def test_compiled_steps_say_what_eager_ones_say_and_are_compiled_once(
    build_decoder: Callable[..., Decoder], vocabulary: Vocabulary
) -> None:
    if not can_compile(detect()):
        pytest.skip("needs a C++ compiler")
    decoder, other = build_decoder(100), build_decoder(100, seed=5)
    prompts = [[seed] * (1 + 9 * seed) for seed in range(5)]
    params = [SamplingParams(12 + 20 * seed, seed=seed, stop_ids=()) for seed in range(5)]
    eager = Engine(decoder, vocabulary, Limits(rows=5)).generate(prompts, params)
    eager_other = Engine(other, vocabulary, Limits(rows=5)).generate(prompts, params)
    join_weights(decoder)
    engine = Engine(decoder, vocabulary, Limits(rows=5))
    thread = engine.compile((4,))
    assert thread is not None
    thread.join()
    assert set(engine._compiled.ready) == {4}
    torch._dynamo.utils.counters.clear()
    calls = count_calls(engine)
    compiled = engine.generate(prompts, params)
    assert [c.ids.tolist() for c in compiled] == [c.ids.tolist() for c in eager] and calls[0] > 20
    engine.load_weights((name, tensor.detach()) for name, tensor in other.named_parameters())
    after = engine.generate(prompts, params)
    assert [c.ids.tolist() for c in after] == [c.ids.tolist() for c in eager_other]
    assert not torch._dynamo.utils.counters["stats"], "nothing was compiled meanwhile"


def count_calls(engine: Engine) -> list[int]:
    calls, step = [0], engine._compiled.ready[4]

    def counted(*arguments: Any) -> Any:
        calls[0] += 1
        return step(*arguments)

    engine._compiled.ready[4] = counted
    return calls


def test_without_room_for_all_rows_nothing_is_compiled(decoder: Decoder, vocabulary: Vocabulary) -> None:
    assert Engine(decoder, vocabulary, Limits(rows=4, cache_tokens=100)).compile() is None
