"""Generation with a cache: the same numbers as without, the same completion in any company, and nothing that leaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tessera.engine.engine import Completion, Engine, Limits
from tessera.engine.request import Busy, Failed, Finished, Token
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.model.decoder import Decoder
from tessera.tokens.vocabulary import Vocabulary

CONTEXT = 64
PROMPTS = [[5, 6, 7], [9] * 17, [200], [30, 31, 32, 33, 34], list(range(40, 70))]


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


Ask = Callable[..., tuple[int, Any]]
Greedy = Callable[[Decoder, Sequence[int], int], list[int]]


def run(engine: Engine) -> None:
    while engine.step():
        pass


def greedy(tokens: int, **others: Any) -> SamplingParams:
    return SamplingParams(tokens, temperature=0, stop_ids=(), **others)


def text_ids(count: int, seed: int) -> list[int]:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_prompts_that_come_at_different_steps_are_answered_as_if_nothing_were_cached(
    long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask, greedy_without_cache: Greedy
) -> None:
    engine = Engine(long_decoder, vocabulary, Limits(rows=4, step_tokens=24))
    lengths = [3, 90, 1, 40, 33, 200, 64, 5]
    prompts = [text_ids(length, seed) for seed, length in enumerate(lengths)]
    heard = []
    for number, prompt in enumerate(prompts):
        heard.append(ask(engine, prompt, greedy(4 + 3 * number))[1])
        engine.step()
        engine.step()
    run(engine)
    for number, prompt in enumerate(prompts):
        assert heard[number].ids == greedy_without_cache(long_decoder, prompt, 4 + 3 * number), number


def test_what_is_sampled_does_not_depend_on_who_else_is_there(decoder: Decoder, vocabulary: Vocabulary, ask: Ask) -> None:
    params = SamplingParams(20, seed=11, top_p=0.9, stop_ids=(), presence_penalty=0.5)
    alone = Engine(decoder, vocabulary).generate([[5, 6, 7]], params)[0]
    engine = Engine(decoder, vocabulary, Limits(rows=5, step_tokens=16))
    others = [SamplingParams(7, temperature=2.0), greedy(30), SamplingParams(12, top_k=3, repetition_penalty=1.5)]
    for seed, other in enumerate(others):
        ask(engine, text_ids(10 + seed, seed), other)
    engine.step()
    _, heard = ask(engine, [5, 6, 7], params)
    for seed, other in enumerate(others):
        ask(engine, text_ids(20 + seed, seed), other)
    run(engine)
    assert same(heard.end.completion, alone)


def test_a_long_prompt_is_read_in_pieces_while_others_go_on(long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask) -> None:
    engine = Engine(long_decoder, vocabulary, Limits(rows=3, step_tokens=32))
    _, short = ask(engine, [1, 2], greedy(40))
    engine.step()
    _, long = ask(engine, text_ids(600, 0), greedy(2))
    for _ in range(10):
        before = len(short.events)
        engine.step()
        assert len(short.events) == before + 1 and not long.events
    assert engine.stats().prefill_tokens == 2 + 10 * 31
    run(engine)
    assert len(long.ids) == 2


def test_an_aborted_request_frees_its_place_and_says_what_it_had(decoder: Decoder, vocabulary: Vocabulary, ask: Ask) -> None:
    engine = Engine(decoder, vocabulary, Limits(rows=2))
    first, gone = ask(engine, [1], greedy(40))
    _, second = ask(engine, [2], greedy(40))
    waiting, never = ask(engine, [3], greedy(40))
    _, third = ask(engine, [4], greedy(3))
    for _ in range(5):
        engine.step()
    engine.abort(first)
    engine.abort(waiting)
    engine.abort(10**6)
    engine.step()
    assert gone.end.reason == never.end.reason == "abort"
    assert len(gone.ids) == 5 and never.ids == []
    assert engine.stats().running == 2 and engine.stats().waiting == 0
    run(engine)
    assert len(third.ids) == 3 and len(second.ids) == 40
    assert engine.stats().aborted == 2 and engine.stats().finished == 2 and engine.stats().cache_tokens == 0


def test_a_slot_that_is_used_again_shows_nothing_of_before(long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask) -> None:
    engine = Engine(long_decoder, vocabulary, Limits(rows=3, prefix_tokens=0))
    fresh = [Engine(long_decoder, vocabulary).generate([text_ids(9, seed)], greedy(20))[0] for seed in range(6)]
    for seed in range(3):
        ask(engine, text_ids(300, 50 + seed), greedy(5 + 10 * seed))
    heard = [ask(engine, text_ids(9, seed), greedy(20))[1] for seed in range(6)]
    run(engine)
    assert all(same(h.end.completion, f) for h, f in zip(heard, fresh, strict=True))


def test_a_prefix_that_comes_again_is_not_computed_again(long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask) -> None:
    engine = Engine(long_decoder, vocabulary, Limits(rows=4))
    prompt = text_ids(1024, 0)
    _, first = ask(engine, prompt, greedy(40))
    run(engine)
    computed = engine.stats().prefill_tokens
    _, second = ask(engine, prompt, greedy(40))
    run(engine)
    assert second.ids == first.ids and second.end.completion.cached_tokens == 992
    assert engine.stats().prefill_tokens - computed == 32 and engine.stats().cached_tokens == 992
    # What was generated is found too, as the next turn of a dialogue needs it.
    _, third = ask(engine, prompt + first.ids + [7], greedy(5))
    _, other = ask(engine, [*prompt[:500], 255, 254, *prompt[502:700]], greedy(5))
    run(engine)
    assert third.end.completion.cached_tokens == 1056 and other.end.completion.cached_tokens == 480
    fresh = Engine(long_decoder, vocabulary, Limits(prefix_tokens=0))
    for heard in (third, other):
        assert same(heard.end.completion, fresh.generate([heard.end.completion.prompt_ids.tolist()], greedy(5))[0])
    assert fresh.stats().cached_tokens == 0


def test_prompts_that_come_together_share_their_prefix(long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask) -> None:
    engine = Engine(long_decoder, vocabulary, Limits(rows=8))
    prompt = text_ids(300, 0)
    heard = [ask(engine, [*prompt, seed], SamplingParams(5, seed=seed))[1] for seed in range(6)]
    _, unrelated = ask(engine, text_ids(20, 9), greedy(2))
    engine.step()
    assert engine.stats().running == 2, "the first of the six, and the one that has nothing to wait for"
    run(engine)
    assert engine.stats().prefill_tokens == 301 + 5 * (301 - 288) + 20 and len(unrelated.ids) == 2
    fresh = Engine(long_decoder, vocabulary, Limits(prefix_tokens=0))
    for seed, h in enumerate(heard):
        assert same(h.end.completion, fresh.generate([[*prompt, seed]], SamplingParams(5, seed=seed))[0])


def test_prefixes_are_not_shared_between_salts(long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask) -> None:
    engine = Engine(long_decoder, vocabulary)
    prompt = text_ids(200, 0)
    for salt, cached in (("a", 0), ("b", 0), ("a", 192), ("", 0), ("b", 192)):
        _, heard = ask(engine, prompt, greedy(2), salt=salt)
        run(engine)
        assert heard.end.completion.cached_tokens == cached


def test_logprobs_of_the_prompt_are_those_of_the_plain_forward(long_decoder: Decoder, vocabulary: Vocabulary, ask: Ask) -> None:
    prompt = text_ids(150, 0)
    with torch.inference_mode():
        expected = long_decoder.logits(long_decoder(torch.tensor([prompt])))[0].log_softmax(-1)
    engine = Engine(long_decoder, vocabulary, Limits(step_tokens=40))
    engine.generate([prompt], greedy(2))
    _, heard = ask(engine, prompt, SamplingParams(0, top_logprobs=3), prompt_logprobs=True)
    _, without = ask(engine, prompt, greedy(2), prompt_logprobs=True)
    run(engine)
    completion = heard.end.completion
    assert heard.end.reason == "length" and heard.ids == [] and completion.cached_tokens == 0
    found = completion.prompt_logprobs
    assert found is not None and len(found) == 150 and np.isnan(found[0])
    np.testing.assert_allclose(found[1:], expected[torch.arange(149), prompt[1:]], atol=2e-3)
    assert completion.prompt_top[0] == () and [len(top) for top in completion.prompt_top[1:]] == [3] * 149
    assert [top[0][0] for top in completion.prompt_top[1:]] == expected[:-1].argmax(-1).tolist()
    assert len(without.ids) == 2 and without.end.completion.prompt_top == ()


def test_the_most_likely_tokens_are_told_beside_each_sampled_one(engine: Engine, ask: Ask) -> None:
    _, heard = ask(engine, [1, 2, 3], SamplingParams(10, seed=0, stop_ids=(), top_logprobs=4))
    _, plain = ask(engine, [1, 2, 3], SamplingParams(10, seed=0, stop_ids=()))
    run(engine)
    tokens = [event for event in heard.events if isinstance(event, Token)]
    assert heard.ids == plain.ids and heard.end.completion.top == tuple(t.top for t in tokens)
    assert plain.end.completion.top == () and all(e.top == () for e in plain.events if isinstance(e, Token))
    for token in tokens:
        ids, logprobs = zip(*token.top, strict=True)
        assert len(ids) == 4 and list(logprobs) == sorted(logprobs, reverse=True)
        assert token.logprob <= logprobs[0] + 1e-6
        if token.id in ids:
            assert token.logprob == pytest.approx(logprobs[ids.index(token.id)], abs=1e-6)


def test_a_full_queue_is_refused_with_a_time_to_come_back(decoder: Decoder, vocabulary: Vocabulary, ask: Ask) -> None:
    engine = Engine(decoder, vocabulary, Limits(rows=1, queued_requests=3, queued_tokens=100))
    for _ in range(3):
        ask(engine, [1, 2], greedy(20))
    with pytest.raises(Busy) as refusal:
        ask(engine, [1, 2], greedy(20))
    assert refusal.value.retry_after >= 1
    engine.step()
    ask(engine, [1, 2], greedy(5))
    run(engine)
    for length in (40, 40):
        ask(engine, [1, 2], greedy(length))
    with pytest.raises(Busy):
        ask(engine, [1, 2], greedy(40))
    assert len(engine.generate([[1, 2]] * 9, greedy(3))) == 9, "generate waits its turn"


def test_more_tokens_than_the_cache_holds_wait_or_are_refused(decoder: Decoder, vocabulary: Vocabulary, ask: Ask) -> None:
    engine = Engine(decoder, vocabulary, Limits(rows=8, cache_tokens=50))
    heard = [ask(engine, text_ids(8, seed), greedy(12))[1] for seed in range(5)]
    most = 0
    while engine.step():
        stats = engine.stats()
        most = max(most, stats.running)
        assert stats.cache_tokens <= stats.cache_limit == 50
    assert most == 2 and all(len(h.ids) == 12 for h in heard)
    with pytest.raises(UserError, match="the cache holds 50"):
        ask(engine, [1], greedy(60))


def test_new_weights_change_the_answers_and_the_version_and_forget_the_prefixes(
    build_decoder: Callable[..., Decoder], vocabulary: Vocabulary, ask: Ask
) -> None:
    ours, other = build_decoder(200, seed=1), build_decoder(200, seed=2)
    engine = Engine(ours, vocabulary)
    prompt = text_ids(100, 0)
    before = engine.generate([prompt], greedy(8))[0]
    _, across = ask(engine, prompt, greedy(30))
    engine.step()
    engine.load_weights((name, tensor.detach()) for name, tensor in other.named_parameters())
    run(engine)
    after = engine.generate([prompt], greedy(8))[0]
    assert (before.version, across.end.completion.version, after.version) == (0, 1, 1)
    assert after.cached_tokens == 0 and after.ids.tolist() != before.ids.tolist()
    assert same(after, Engine(other, vocabulary).generate([prompt], greedy(8))[0])
    with pytest.raises(UserError, match="no tensor"):
        engine.load_weights([("model.nothing", torch.zeros(1))])
    with pytest.raises(UserError, match="shape"):
        engine.load_weights([("model.norm.weight", torch.zeros(1))])


def test_nothing_of_a_generation_that_was_interrupted_stays(engine: Engine) -> None:
    def interrupt(index: int, token: int, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        # Of several streams, so that the last one's keys and values have to move into the first one's place.
        engine.generate([[1], [2], [3]], greedy(5), interrupt)
    assert not engine.step() and engine.stats().cache_tokens == 0
    assert len(engine.generate([[1]], greedy(5))[0].ids) == 5


def test_a_request_that_bans_every_token_fails_alone(engine: Engine, vocabulary: Vocabulary, ask: Ask) -> None:
    _, other = ask(engine, [1], greedy(5))
    _, banned = ask(engine, [2], SamplingParams(5, bias={i: -100.0 for i in range(vocabulary.size)}))
    run(engine)
    assert isinstance(banned.events[-1], Failed) and "no token is left" in banned.events[-1].message
    assert len(other.ids) == 5 and isinstance(other.events[-1], Finished) and engine.stats().cache_tokens == 0


def test_a_step_that_failed_can_be_answered_and_the_engine_goes_on(
    engine: Engine, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, running = ask(engine, [1], greedy(5))
    with monkeypatch.context() as broken:
        broken.setattr(engine, "_forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    _, waiting = ask(engine, [2], greedy(5))
    engine.fail("ZeroDivisionError")
    assert running.events == [Failed("ZeroDivisionError")] and engine.stats().failed == 1
    run(engine)
    assert len(waiting.ids) == 5 and isinstance(waiting.events[-1], Finished)


def test_a_step_that_fails_before_it_admits_any_ends_the_next_one_only(engine: Engine, ask: Ask) -> None:
    _, first = ask(engine, [1], greedy(5))
    _, second = ask(engine, [2], greedy(5))
    engine.fail("broken")
    assert first.events == [Failed("broken")] and engine.stats().failed == 1
    run(engine)
    assert len(second.ids) == 5 and isinstance(second.events[-1], Finished)


def test_a_request_that_cannot_be_served_is_refused_in_one_sentence(engine: Engine, ask: Ask) -> None:
    for prompt, params, said in (
        ([], greedy(3), "empty"),
        ([-1], greedy(3), "outside"),
        ([1], greedy(3, bias={10**6: 1.0}), "bias"),
        ([1], greedy(0), "max_tokens"),
    ):
        with pytest.raises(UserError, match=said):
            ask(engine, prompt, params)
