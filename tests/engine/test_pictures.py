"""Pictures from an engine: exact lengths, only the palette, known pixels untouched, guidance as two passes would give it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tessera.engine.constraints import PictureGrid
from tessera.engine.engine import Engine
from tessera.engine.pictures import Wish, draw, look, pasted, unfinished
from tessera.engine.request import Guidance, Request
from tessera.engine.sampling import SamplingParams, uniform
from tessera.engine.scheduler import Limits
from tessera.errors import UserError
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.tokens.palette import Palette
from tessera.tokens.pictures import find_pictures, frame
from tessera.tokens.quantizer import Autoencoder, Quantizer, QuantizerConfig
from tessera.tokens.vocabulary import Vocabulary

COLOURS = np.array([[v, v, 255 - v] for v in range(0, 250, 50)], np.uint8)
SEEDED = SamplingParams(max_tokens=1, seed=7)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(["a byte is enough"], 256).add_media(Palette(COLOURS, (4, 5)))


@pytest.fixture(scope="module")
def decoder(vocabulary: Vocabulary) -> Decoder:
    config = DecoderConfig(
        vocabulary.size + 8, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=48, context=96, tied=False
    )
    decoder = Decoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(float(parameter.ndim == 1), 0.3, generator=generator)
    return decoder


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return COLOURS[np.random.default_rng(seed).integers(0, len(COLOURS), (height, width))]


def test_pictures_of_any_size_have_exactly_their_tokens_and_only_colours(decoder: Decoder, vocabulary: Vocabulary) -> None:
    shapes = [(1, 1), (3, 7), (7, 3), None]
    made = draw(Engine(decoder, vocabulary), [Wish("a dot", shape) for shape in shapes], SEEDED)
    for drawing, shape in zip(made, shapes, strict=True):
        height, width = shape or (4, 5)
        assert drawing.pixels.shape == (height, width, 3) and len(drawing.completion.ids) == height * (width + 1) + 1
        assert {tuple(c) for c in drawing.pixels.reshape(-1, 3).tolist()} <= {tuple(c) for c in COLOURS.tolist()}
        assert drawing.completion.finish_reason == "stop" and drawing.completion.ids[-1] == vocabulary.control("<|/image|>")
        (found,) = find_pictures(vocabulary, drawing.completion.record.ids)
        assert (found == drawing.pixels).all()


@pytest.mark.parametrize(("rows", "first", "last"), [(2, 0, None), (3, 0, None), (16, 0, None), (2, 2, 6), (16, 0, 4)])
def test_guidance_is_what_two_passes_without_a_cache_give(
    decoder: Decoder, vocabulary: Vocabulary, rows: int, first: int, last: int | None
) -> None:
    """Pairs whose prompts differ in length, beside plain requests, in as few rows as two; guided all the way or in part of it."""
    block, grid = vocabulary.block("image"), np.full((2, 3), -1)
    limits = Limits(rows=rows, step_tokens=24)
    frames = frame(vocabulary, 2, 3)
    prompts = [vocabulary.encode_text(text) + frames for text in ("a dot", "a much longer caption, of a dot")]
    constraint = PictureGrid(block.offset, block.size, vocabulary.control("<|row|>"), vocabulary.control("<|/image|>"), grid)
    params = SamplingParams(max_tokens=constraint.tokens, seed=3, stop_ids=())
    plain = Request(tuple(vocabulary.encode_text("some text beside them")), replace(params, max_tokens=5))
    requests = [Request(tuple(p), params, constraint, guidance=Guidance(2.5, tuple(frames), first, last)) for p in prompts]
    engine = Engine(decoder, vocabulary, limits)
    found = engine.complete([requests[0], plain, requests[1]])
    assert engine.stats().running == 0 and engine.stats().finished == 3

    def reference(prompt: list[int]) -> tuple[list[int], list[float]]:
        asked, bare, logprobs, drawn = list(prompt), list(frames), [], 0
        wanted = constraint.begin(decoder.config.vocab_size)
        while True:
            for token in wanted.forced():
                asked.append(token)
                bare.append(token)
                logprobs.append(0.0)
                if wanted.accept(token):
                    return asked[len(prompt) :], logprobs
            with torch.inference_mode():
                c, u = (decoder.logits(decoder(torch.tensor([ids])))[0, -1] for ids in (asked, bare))
            made = len(asked) - len(prompt)
            scale = 2.5 if first <= made and (last is None or made < last) else 1.0
            guided = (u + scale * (c - u)).masked_fill(~wanted.allowed(), float("-inf")).softmax(-1).double()
            token = int(torch.searchsorted(guided.cumsum(0), uniform(3, drawn) * guided.sum(), right=True))
            drawn += 1
            asked.append(token)
            bare.append(token)
            logprobs.append(float(guided[token].log()))
            wanted.accept(token)

    for completion, prompt in zip((found[0], found[2]), prompts, strict=True):
        ids, logprobs = reference(prompt)
        assert completion.ids.tolist() == ids
        assert np.allclose(completion.logprobs, logprobs, atol=1e-4)
    alone = Engine(decoder, vocabulary, limits).complete([plain])[0]
    assert found[1].ids.tolist() == alone.ids.tolist()


def test_a_scale_of_one_changes_nothing_and_one_row_cannot_hold_a_pair(decoder: Decoder, vocabulary: Vocabulary) -> None:
    engine = Engine(decoder, vocabulary)
    prompt, bare = tuple(vocabulary.encode_text("a dot")), tuple(vocabulary.encode_text("b"))
    params = SamplingParams(max_tokens=8, seed=1)
    guided, plain = engine.complete([Request(prompt, params, guidance=Guidance(1.0, bare)), Request(prompt, params)])
    assert guided.ids.tolist() == plain.ids.tolist()
    with pytest.raises(UserError, match="two rows"):
        Engine(decoder, vocabulary, Limits(rows=1)).complete([Request(prompt, params, guidance=Guidance(2.0, bare))])
    with pytest.raises(UserError, match="0 or more"):
        engine.complete([Request(prompt, params, guidance=Guidance(float("nan"), bare))])


def test_behind_its_interval_a_pair_is_one_row(decoder: Decoder, vocabulary: Vocabulary) -> None:
    engine = Engine(decoder, vocabulary, Limits(rows=2))
    prompt, bare = tuple(vocabulary.encode_text("a dot")), tuple(vocabulary.encode_text("b"))
    params = SamplingParams(max_tokens=12, seed=1, stop_ids=())
    engine.submit(Request(prompt, params, guidance=Guidance(3.0, bare, 0, 4)))
    held = []
    while engine.step():
        held.append(engine.stats().cache_tokens)
    # Both prompts and what was made, then one of them.
    assert max(held[:5]) > len(prompt) + len(bare) + 3 and held[6] < len(prompt) + 8 and engine.stats().finished == 1
    # In two rows the next one can begin as soon as the pair is over.
    ids = [Request(prompt, params, guidance=Guidance(3.0, bare, 0, 4)), Request(prompt, params)]
    alone = Engine(decoder, vocabulary).complete(ids)
    assert [c.ids.tolist() for c in engine.complete(ids)] == [c.ids.tolist() for c in alone]


def test_guided_streams_that_are_interrupted_leave_nothing(decoder: Decoder, vocabulary: Vocabulary) -> None:
    engine = Engine(decoder, vocabulary)

    def interrupt(index: int, token: int, text: str) -> None:
        raise KeyboardInterrupt

    requests = [Request((1, 2, 3), SamplingParams(8), guidance=Guidance(2.0, (1,))) for _ in range(2)]
    with pytest.raises(KeyboardInterrupt):
        engine.complete(requests, interrupt)
    assert not engine.step() and engine.stats().cache_tokens == 0


def test_shares_of_a_picture_become_tokens() -> None:
    assert Guidance.of(2.0, (0.0, 1.0), [1, 2], [2], 100) == Guidance(2.0, (2,), 0, None)
    assert Guidance.of(2.0, (0.25, 0.5), [1, 2], [2], 100) == Guidance(2.0, (2,), 25, 50)
    for scale, interval, asked in ((1.0, (0.0, 1.0), [1, 2]), (2.0, (0.5, 0.5), [1, 2]), (2.0, (0.0, 1.0), [2])):
        assert Guidance.of(scale, interval, asked, [2], 100) is None


def test_an_aborted_pair_leaves_both_rows(decoder: Decoder, vocabulary: Vocabulary) -> None:
    engine = Engine(decoder, vocabulary)
    prompt = tuple(vocabulary.encode_text("a dot"))
    ids = [engine.submit(Request(prompt, SamplingParams(max_tokens=40), guidance=Guidance(2.0, prompt[:1]))) for _ in range(2)]
    engine.step()
    assert engine.stats().running == 2 and engine.stats().cache_tokens > 0
    engine.abort(ids[0])
    engine.step()
    assert engine.stats().running == 1
    engine.fail("the step failed")
    assert engine.stats().running == 0 and engine.stats().cache_tokens == 0 and engine.stats().failed == 1


def test_known_pixels_stay_and_the_hole_is_filled(decoder: Decoder, vocabulary: Vocabulary) -> None:
    known = picture(4, 5)
    hidden = np.zeros((4, 5), bool)
    hidden[1:3, 1:4] = True
    made = draw(Engine(decoder, vocabulary), [Wish("a dot", known=known, hidden=hidden)], SEEDED)[0]
    assert (made.pixels[~hidden] == known[~hidden]).all()
    # Not only as pixels: what was given is marked as not chosen, and costs nothing.
    assert made.completion.record.learn.sum() == hidden.sum()


def test_of_several_the_one_after_which_the_known_rest_is_likeliest_is_kept(decoder: Decoder, vocabulary: Vocabulary) -> None:
    known, hidden = picture(4, 5), np.zeros((4, 5), bool)
    hidden[0] = True
    wish = Wish("a dot", known=known, hidden=hidden, guidance=1.0, best_of=4)
    engine = Engine(decoder, vocabulary)
    best = draw(engine, [wish], SEEDED)[0]
    each = [draw(engine, [replace(wish, best_of=1)], replace(SEEDED, seed=7 + i))[0] for i in range(4)]
    totals = []
    for drawing in each:
        ids = torch.tensor([drawing.completion.record.ids.tolist()])
        with torch.inference_mode():
            logprobs = decoder.logits(decoder(ids[:, :-1]))[0].log_softmax(-1)
        told = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        rest = told[len(drawing.completion.prompt_ids) - 1 + 6 :]  # behind the first row and its end
        totals.append(float(sum(rest[i] for i in range(len(rest)) if i % 6 != 5 and i < 18)))
    assert np.allclose(best.scores, totals, atol=1e-3)
    assert (best.pixels == each[int(np.argmax(totals))].pixels).all()


def test_without_a_rest_the_caption_decides(decoder: Decoder, vocabulary: Vocabulary) -> None:
    made = draw(Engine(decoder, vocabulary), [Wish("a dot", (2, 2), best_of=3), Wish("", (2, 2), best_of=3)], SEEDED)
    assert len(made[0].scores) == 3 and max(made[0].scores) < 0 and made[1].scores == ()


def test_an_empty_question_asks_what_is_in_the_picture(decoder: Decoder, vocabulary: Vocabulary) -> None:
    engine, params = Engine(decoder, vocabulary), SamplingParams(max_tokens=4, temperature=0)
    bare, asked = (look(engine, [picture(2, 2)], question, params)[0] for question in (" ", "What is in the picture?"))
    assert bare.prompt_ids.tolist() == asked.prompt_ids.tolist()
    assert vocabulary.decode_text(bare.prompt_ids).endswith("What is in the picture?")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(shape=(30, 30)), "reads 96"),
        (Wish(shape=(0, 3)), "is none"),
        (Wish(best_of=0), "at least 1"),
        (Wish(known=picture(2, 2), hidden=np.ones((3, 3), bool)), "size of the picture"),
    ],
)
def test_wishes_that_cannot_be_granted_are_refused(decoder: Decoder, vocabulary: Vocabulary, wish: Wish, words: str) -> None:
    with pytest.raises(UserError, match=words):
        draw(Engine(decoder, vocabulary), [wish], SEEDED)


def test_a_model_without_pictures_says_so(decoder: Decoder) -> None:
    bare = Vocabulary.train(["a byte is enough"], 256)
    with pytest.raises(UserError, match="not learned that medium"):
        draw(Engine(decoder, bare), [Wish("a dot")], SEEDED)


def test_pictures_in_patches_are_drawn_edited_varied_and_looked_at() -> None:
    network = Autoencoder(QuantizerConfig("image", (4, 3), 4, 1, 8, 1, 1))
    network.initialise(0)
    vocabulary = Vocabulary.train(["a byte is enough"], 256).add_media(Quantizer(network.eval(), (8, 12)))
    decoder = Decoder(
        DecoderConfig(vocabulary.size, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=48, context=128)
    )
    decoder.initialise(0)
    engine, tokenizer = Engine(decoder, vocabulary), vocabulary.media_tokenizer("image")
    (drawing,) = draw(engine, [Wish("a dot")], SEEDED)
    assert drawing.pixels.shape == (8, 12, 3) and len(drawing.completion.ids) == 2 * 4 + 1
    (wide,) = draw(engine, [Wish("a dot", (4, 20), best_of=2)], SEEDED)
    assert wide.pixels.shape == (4, 20, 3) and len(wide.scores) == 2
    known, hidden = picture(16, 16), np.zeros((16, 16), bool)
    hidden[13, 14] = True
    wish = Wish("a dot", known=known, hidden=hidden, best_of=2)
    (edited,) = draw(engine, [wish], SEEDED)
    # The patch with the hole and those around it are drawn, the others are as they were.
    ids = edited.completion.ids[:-1].reshape(4, 5)[:, :-1] - vocabulary.block("image").offset
    same = np.ones((4, 4), bool)
    same[2:, 2:] = False
    assert (ids[same] == tokenizer.encode(known)[same]).all()
    assert (pasted(wish, edited.pixels)[~hidden] == known[~hidden]).all()
    (varied,) = draw(engine, [Wish("a dot", source=known)], SEEDED)
    assert varied.pixels.shape == (16, 16, 3)
    assert look(engine, [known], "", replace(SEEDED, max_tokens=3))[0].prompt_tokens > 4 * 5
    row, end = vocabulary.control("<|row|>"), vocabulary.control("<|/image|>")
    grid = PictureGrid(vocabulary.block("image").offset, 12, row, end, np.full((2, 3), -1))
    part = unfinished(engine, grid, drawing.completion.ids[:4])
    assert part.shape == (8, 12, 3) and (part[4:] == 255).all() and (part[:4] != 255).any()
    odd = picture(8, 10)
    for wish in (Wish("a dot", (8, 10)), Wish("a dot", known=odd, hidden=np.ones((8, 10), bool)), Wish("a dot", source=odd)):
        with pytest.raises(UserError, match="multiples of 4"):
            draw(engine, [wish], SEEDED)
