"""The compiled steps, in C++ and by torch: the same ids as the eager one, never compiled again, for any weights."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tessera.device import can_compile, detect
from tessera.engine import native
from tessera.engine.cache import SlotCache
from tessera.engine.compiled import decode
from tessera.engine.engine import Engine, Limits
from tessera.engine.sampling import SamplingParams
from tessera.model.decoder import Decoder, DecoderConfig, join_weights, rotary_table
from tessera.tokens.vocabulary import Vocabulary

needs_compiler = pytest.mark.skipif(not can_compile(detect()), reason="needs a C++ compiler")

PROMPTS = [[seed] * (1 + 9 * seed) for seed in range(5)]
PARAMS = [SamplingParams(12 + 20 * seed, seed=seed, stop_ids=()) for seed in range(5)]


def eager_ids(decoder: Decoder, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What torch alone says."""
    with monkeypatch.context() as patch:
        patch.setattr(native, "fits", lambda decoder: False)
        return [c.ids.tolist() for c in Engine(decoder, vocabulary, Limits(rows=5)).generate(PROMPTS, PARAMS)]


@needs_compiler
@pytest.mark.parametrize("native_step", [True, False], ids=["native", "torch"])
def test_compiled_steps_say_what_eager_ones_say_and_are_compiled_once(
    build_decoder: Callable[..., Decoder], vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, native_step: bool
) -> None:
    decoder, other = build_decoder(100), build_decoder(100, seed=5)
    eager, eager_other = (eager_ids(d, vocabulary, monkeypatch) for d in (decoder, other))
    if not native_step:
        monkeypatch.setattr(native, "fits", lambda decoder: False)
    join_weights(decoder)
    engine = Engine(decoder, vocabulary, Limits(rows=5))
    thread = engine.compile((4,))
    assert thread is not None
    # What engines of other tests have begun is counted by torch together with ours.
    for running in threading.enumerate():
        if running.name == thread.name:
            running.join()
    calls = count_calls(engine)
    torch._dynamo.utils.counters.clear()
    # As a server does, in a thread of its own: torch compiles again where a thread's settings are not those of the one that
    # compiled, and other tests may have changed this thread's.
    with ThreadPoolExecutor(1) as stepping:
        assert [c.ids.tolist() for c in stepping.submit(engine.generate, PROMPTS, PARAMS).result()] == eager and calls[0] > 20
        stepping.submit(engine.load_weights, [(name, tensor.detach()) for name, tensor in other.named_parameters()]).result()
        assert [c.ids.tolist() for c in stepping.submit(engine.generate, PROMPTS, PARAMS).result()] == eager_other
    assert not torch._dynamo.utils.counters["stats"], "nothing was compiled meanwhile"


def count_calls(engine: Engine) -> list[int]:
    calls = [0]
    step: Any = engine._native or engine._compiled.ready[4]

    class Counted:
        def __call__(self, *arguments: Any) -> Any:
            calls[0] += 1
            return step(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(step, name)

    if engine._native is None:
        engine._compiled.ready[4] = Counted()
    else:
        engine._native = Counted()  # type: ignore[assignment]
    return calls


@needs_compiler
@pytest.mark.parametrize(
    "shape",
    [
        {"head_size": 16, "heads": 6, "kv_heads": 2},
        {"head_size": 48, "heads": 2, "kv_heads": 1, "qk_norm": False, "tied": False},
        {"head_size": 64, "heads": 2, "kv_heads": 2, "width": 70, "mlp_width": 101},
        {"head_size": 128, "heads": 3, "kv_heads": 1, "halves": True},
    ],
    ids=["grouped", "llama", "odd", "bfloat16"],
)
def test_the_native_step_computes_what_the_decoder_does(shape: dict[str, Any]) -> None:
    code = native.library()
    assert code is not None
    shape = {"width": 64, "mlp_width": 96, **shape}
    halves = shape.pop("halves", False)
    config = DecoderConfig(vocab_size=133, layers=2, context=96, **shape)
    decoder = Decoder(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for parameter in decoder.parameters():
            parameter.normal_(float(parameter.ndim == 1), 0.3, generator=generator)
            parameter.copy_(parameter.bfloat16() if halves else parameter)
        join_weights(decoder)
        table = rotary_table(config, torch.arange(config.context))
        step = native.NativeStep(code, decoder, table)
        assert bool(step._model.halves) == halves
        for lengths in ([1], [40, 3], [7, 1, 64, 33, 20, 5, 11]):
            slots = [slot for slot, length in enumerate(lengths) for _ in range(length)]
            ends = [sum(lengths[: slot + 1]) - 1 for slot in range(len(lengths))]
            caches = [SlotCache(config, torch.float32, torch.device("cpu"), 8, 8 * 96, 0) for _ in range(2)]
            theirs, ours = caches
            for cache in caches:
                for _ in lengths:
                    cache.open([])
            # Prompts at once, of which only the ends are scored ...
            positions = theirs.begin(lengths)
            ids = torch.arange(sum(lengths)) % 133
            hidden = decoder(ids[None], positions=positions, cache=theirs, rotary=(table[0][positions], table[1][positions]))[0]
            found, wanted = step(ids.tolist(), slots, ours, ends), decoder.logits(hidden[ends])
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
            for cache in caches:
                cache.end(lengths)
            # ... and one token more of each.
            for token in (5, 60):
                new = [token + row for row in range(len(lengths))]
                at, places, mask = theirs.begin_decode(len(new))
                rotary = (table[0][at], table[1][at])
                wanted = decode(decoder, torch.tensor([new]), rotary, theirs.slots, places, mask, theirs.shape[1])
                found = step(new, range(len(new)), ours, range(len(new)))
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
                for cache in caches:
                    cache.end([1] * len(new))


def test_the_faster_number_of_threads_is_kept_and_tried_again_later() -> None:
    threads = native.Threads(4)

    def run(steps: int, seconds: dict[int, float]) -> list[int]:
        used = []
        for _ in range(steps):
            used.append(threads.now)
            threads.took(seconds[threads.now])
        return used

    alone, beside_others = {1: 2.0, 4: 1.0}, {1: 2.0, 4: 50.0}
    assert run(12, alone) == [1, 4] * 6 and threads.better == 4
    assert run(500, alone) == [4] * 500
    assert set(run(12, beside_others)) == {1, 4}
    assert run(500, beside_others) == [1] * 500 and threads.better == 1
    single = native.Threads(1)
    single.took(1.0)
    assert single.now == 1


def test_without_a_compiler_decoding_stays_in_torch(
    decoder: Decoder, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = eager_ids(decoder, vocabulary, monkeypatch)
    monkeypatch.setattr(native, "library", lambda: None)
    engine = Engine(decoder, vocabulary, Limits(rows=5))
    assert [c.ids.tolist() for c in engine.generate(PROMPTS, PARAMS)] == eager
    assert engine._native is None


def test_without_room_for_all_rows_nothing_is_compiled_by_torch(
    decoder: Decoder, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "fits", lambda decoder: False)
    assert Engine(decoder, vocabulary, Limits(rows=4, cache_tokens=100)).compile() is None


def test_blocks_that_are_compiled_for_training_are_not_compiled_for_samples(
    build_decoder: Callable[..., Decoder], vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose blocks are compiled takes its samples from the same blocks, with a cache that grows from step to step."""
    torch._dynamo.reset()  # what other tests compiled counts against how often one function is
    decoder, seen = build_decoder(100), []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        seen.append(graph)
        return graph.forward

    for block in decoder.model.layers:
        block.compile(backend=count)
    said = eager_ids(decoder, vocabulary, monkeypatch)
    assert not seen and said == eager_ids(build_decoder(100), vocabulary, monkeypatch)
    decoder(torch.tensor([[1, 2, 3]]))
    assert seen  # what trains still is compiled
