"""Generation with a cache: the same numbers as without, the same completion in any company, and text that never leaks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tessera.engine.engine import Completion, Engine, Limits
from tessera.engine.sampling import SamplingParams
from tessera.engine.stream import TextStream
from tessera.errors import UserError
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.tokens.vocabulary import Vocabulary

CONTEXT = 64
PROMPTS = [[5, 6, 7], [9] * 17, [200], [30, 31, 32, 33, 34], list(range(40, 70))]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(["a byte is enough"], 256).add_block("pixels", "image", 40, "test")


@pytest.fixture(scope="module")
def decoder(vocabulary: Vocabulary) -> Decoder:
    """Untrained, but with large weights, so that its distributions are far from uniform; the matrix has 8 rows too many."""
    config = DecoderConfig(
        vocabulary.size + 8, width=64, layers=2, heads=4, kv_heads=2, head_size=16, mlp_width=96, context=CONTEXT
    )
    decoder = Decoder(dataclasses.replace(config, tied=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(float(parameter.ndim == 1), 0.3, generator=generator)
    return decoder


@pytest.fixture(scope="module")
def engine(decoder: Decoder, vocabulary: Vocabulary) -> Engine:
    return Engine(decoder, vocabulary)


def same(a: Completion, b: Completion) -> bool:
    return a.ids.tolist() == b.ids.tolist() and np.allclose(a.logprobs, b.logprobs, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_completion_is_the_same_alone_and_in_a_batch(decoder: Decoder, vocabulary: Vocabulary, temperature: float) -> None:
    lengths_and_cuts = [(20, 0), (5, 3), (33, 0), (1, 0), (60, 9)]
    each = [SamplingParams(max_tokens=n, temperature=temperature, seed=n, top_k=k) for n, k in lengths_and_cuts]
    together = Engine(decoder, vocabulary).generate(PROMPTS, each)
    alone = [Engine(decoder, vocabulary).generate([prompt], p)[0] for prompt, p in zip(PROMPTS, each, strict=True)]
    in_pairs = Engine(decoder, vocabulary, Limits(rows=2)).generate(PROMPTS, each)
    for a, b, c in zip(together, alone, in_pairs, strict=True):
        assert same(a, b) and same(a, c)
    assert len({tuple(c.ids.tolist()) for c in together}) == len(PROMPTS)


def test_greedy_completions_and_their_logprobs_are_those_of_the_plain_forward(engine: Engine, decoder: Decoder) -> None:
    completion = engine.generate([PROMPTS[1]], SamplingParams(max_tokens=12, temperature=0))[0]
    with torch.inference_mode():
        logits = decoder.logits(decoder(torch.tensor(completion.record.ids[None], dtype=torch.long)))[0]
    before = logits.index_fill(1, engine._blocked, float("-inf"))[completion.prompt_tokens - 1 : -1]
    assert before.argmax(-1).tolist() == completion.ids.tolist()
    expected = before.log_softmax(-1).gather(1, torch.tensor(completion.ids, dtype=torch.long)[:, None])[:, 0]
    np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
    assert completion.prompt_ids.tolist() == PROMPTS[1]
    assert completion.record.learn.tolist() == [False] * 17 + [True] * 12


def test_media_padding_and_ids_beyond_the_vocabulary_are_never_sampled(engine: Engine, vocabulary: Vocabulary) -> None:
    params = [SamplingParams(max_tokens=40, temperature=5.0, seed=s, stop_ids=()) for s in range(20)]
    ids = np.concatenate([c.ids for c in engine.generate([[1]] * 20, params)])
    assert ids.max() < vocabulary.base_size and vocabulary.pad_id not in ids
    assert set(ids.tolist()) & vocabulary.control_ids


def test_a_completion_ends_at_a_stop_id_at_max_tokens_or_at_the_context(engine: Engine) -> None:
    free = engine.generate([[1, 2]], SamplingParams(max_tokens=30, temperature=0, stop_ids=()))[0]
    assert free.finish_reason == "length" and len(free.ids) == 30
    end = int(free.ids[7])
    first = free.ids.tolist().index(end)
    stopped = engine.generate([[1, 2]], SamplingParams(max_tokens=30, temperature=0, stop_ids=(end,)))[0]
    assert stopped.finish_reason == "stop" and stopped.ids.tolist() == free.ids[: first + 1].tolist()
    full = engine.generate([[1, 2]], SamplingParams(max_tokens=500, temperature=0, stop_ids=()))[0]
    assert full.finish_reason == "length" and len(full.record) == CONTEXT


def test_a_prompt_beyond_the_context_keeps_its_end_and_says_so(engine: Engine) -> None:
    prompt = [i % 256 for i in range(100)]
    completion = engine.generate([prompt], SamplingParams(max_tokens=10, temperature=0, stop_ids=()))[0]
    assert completion.cut_tokens == 46 and completion.prompt_ids.tolist() == prompt[46:] and len(completion.ids) == 10
    long = engine.generate([prompt], SamplingParams(max_tokens=1000, temperature=0, stop_ids=()))[0]
    assert long.prompt_tokens == len(long.ids) == CONTEXT // 2
    fits = engine.generate([prompt[:63]], SamplingParams(max_tokens=10, temperature=0))[0]
    assert fits.cut_tokens == 0 and len(fits.ids) == 1


def test_streamed_text_is_the_completion_without_its_stop_string(engine: Engine, vocabulary: Vocabulary) -> None:
    greedy = SamplingParams(max_tokens=40, temperature=1.5, seed=3, stop_ids=())
    free = engine.generate(PROMPTS, greedy)
    assert [c.text for c in free] == [vocabulary.bytes_of(c.ids).decode("utf-8", "replace") for c in free]
    stop = free[0].text[10:13]
    shown = [""] * len(PROMPTS)
    told: list[list[int]] = [[] for _ in PROMPTS]

    def on_token(index: int, token: int, text: str) -> None:
        shown[index] += text
        told[index].append(token)

    params = SamplingParams(max_tokens=40, temperature=1.5, seed=3, stop_ids=(), stop=(stop, "never said"))
    completions = engine.generate(PROMPTS, params, on_token)
    assert completions[0].finish_reason == "stop" and completions[0].text == free[0].text[: free[0].text.find(stop)]
    assert shown == [c.text for c in completions] and told == [c.ids.tolist() for c in completions]


@pytest.mark.parametrize("prompt", [[], [-1], [10**6]])
def test_a_prompt_the_model_cannot_read_is_refused(engine: Engine, prompt: list[int]) -> None:
    with pytest.raises(UserError, match="prompt 0"):
        engine.generate([prompt])


def test_a_vocabulary_larger_than_the_model_is_refused(decoder: Decoder, vocabulary: Vocabulary) -> None:
    with pytest.raises(UserError, match="rows"):
        Engine(decoder, vocabulary.add_block("sounds", "audio", 100, "test"))


def test_a_stream_splits_no_character_and_leaks_no_stop_string() -> None:
    text = "naïve 🙂 text, 1\n2\n\nEND and more"
    for size in (1, 2, 3, 7):
        data = text.encode()
        stream = TextStream(("\n\nEND", "\n\n\n"))
        given = [stream.feed(data[at : at + size]) for at in range(0, len(data), size)] + [stream.finish()]
        assert "".join(given) == stream.text == "naïve 🙂 text, 1\n2" and stream.stopped
        assert not any("\ufffd" in piece for piece in given)
    open_end = TextStream(("stop",))
    pieces = [open_end.feed(b"a sto"), open_end.feed(b"ne, a s"), open_end.feed(b"\xf0\x9f"), open_end.finish()]
    assert pieces == ["a ", "stone, a ", "", "s\ufffd"]
