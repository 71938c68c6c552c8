"""Films from an engine: exact lengths, given ids kept, only the quantizer's ids, and what cannot be made is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tessera.engine import native
from tessera.engine.engine import Engine
from tessera.engine.films import FilmWish, make_films, tell
from tessera.engine.request import Request, Token
from tessera.engine.sampling import SamplingParams
from tessera.engine.scheduler import Limits
from tessera.errors import UserError
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.tokens.document import Document
from tessera.tokens.films import to_film
from tessera.tokens.quantizer import Autoencoder, Quantizer, QuantizerConfig
from tessera.tokens.vocabulary import Vocabulary

SEEDED = SamplingParams(max_tokens=1, seed=7)
BEGINNING = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return build((5, 4), Limits())


def build(levels: tuple[int, ...], limits: Limits) -> Engine:
    network = Autoencoder(QuantizerConfig("video", levels, 4, 2, 8, 1, 1))
    network.initialise(0)
    vocabulary = Vocabulary.train(["a byte is enough"], 256).add_media(Quantizer(network.eval(), (5, 8, 12), 8.0))
    config = DecoderConfig(
        vocabulary.size, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=48, context=96, tied=False
    )
    decoder = Decoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(float(parameter.ndim == 1), 0.3, generator=generator)
    return Engine(decoder, vocabulary, limits)


@pytest.mark.parametrize("rows", [2, 16])
def test_guesses_change_nothing_but_the_number_of_steps(rows: int) -> None:
    """Of four ids a frame often has the same one as before; pairs and single rows of several lengths, beside a text."""
    if native.library() is None:
        pytest.skip("needs a C++ compiler")
    wishes = [
        FilmWish("a dot", guidance=2.0), FilmWish("a line of some length", (3, 8, 4), guidance=1.0),
        FilmWish("a dot", beginning=BEGINNING[:3], guidance=3.0, interval=(0.0, 0.7)), FilmWish(guidance=1.0),
    ]  # fmt: skip
    text = Request((1, 2, 3), SamplingParams(max_tokens=20, seed=1, stop_ids=()))
    found, steps, guessed = [], [], []
    for guesses in (0, 8, 3):
        engine = build((2, 2), Limits(rows=rows, guess_tokens=guesses))
        heard: list[int] = []
        engine.submit(replace(text, on_event=lambda event: heard.append(event.id) if isinstance(event, Token) else None))  # noqa: B023
        films = make_films(engine, wishes, SEEDED)
        while engine.step():
            pass
        assert len(heard) == 20
        found.append([heard, *(film.completion.ids.tolist() for film in films)])
        steps.append(engine.stats().steps)
        guessed.append(engine.stats().guessed_tokens)
        assert engine.stats().running == engine.stats().cache_tokens == 0 and engine.stats().finished == 5
    assert found[0] == found[1] == found[2]
    assert guessed[0] == 0 < guessed[2] <= guessed[1] and steps[1] < steps[0]


def test_films_of_any_size_have_exactly_their_tokens(engine: Engine) -> None:
    shapes = [(1, 4, 4), (3, 8, 4), None]
    for made, shape in zip(make_films(engine, [FilmWish("a dot", s) for s in shapes], SEEDED), shapes, strict=True):
        frames, height, width = shape or (5, 8, 12)
        assert made.frames.shape == (frames, height, width, 3) and made.per_second == 8
        steps = (frames - 1) // 2 + 1
        assert len(made.completion.ids) == steps * (height * width // 16 + 1) + 1
        assert made.completion.finish_reason == "stop" and 0 <= made.ids.min() <= made.ids.max() < 20


@pytest.mark.parametrize("given", [1, 3])
def test_the_ids_of_what_is_given_are_kept_and_not_counted_as_chosen(engine: Engine, given: int) -> None:
    quantizer = engine.vocabulary.media_tokenizer("video")
    made = make_films(engine, [FilmWish("a dot", beginning=BEGINNING[:given], guidance=2.0)], SEEDED)[0]
    ids = quantizer.encode(BEGINNING[:given])
    assert (made.ids[: len(ids)] == ids).all()
    assert (made.frames[:given] == quantizer.decode(ids)).all()
    assert made.completion.record.learn.sum() == made.ids.size - ids.size


def test_what_is_asked_for_is_laid_out_as_what_was_learned(engine: Engine) -> None:
    """The beginning of a document of training is the prompt and the forced ids."""
    learned = engine.vocabulary.encode(Document(to_film("a dot", np.zeros((5, 8, 12, 3), np.uint8), 8.0))).ids
    zeros = np.zeros((3, 8, 12, 3), np.uint8)
    made = make_films(engine, [FilmWish("a dot", beginning=zeros)], SEEDED)[0].completion
    same = len(made.prompt_ids) + 2 * 7
    assert made.record.ids[:same].tolist() == learned[:same].tolist() and len(made.record.ids) == len(learned)


def test_a_film_is_told(engine: Engine) -> None:
    asked = tell(engine, [BEGINNING], "", SamplingParams(max_tokens=4, temperature=0))[0]
    assert engine.vocabulary.decode_text(asked.prompt_ids).endswith("What happens in the film?")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (FilmWish(shape=(4, 8, 12)), r"k x 2 \+ 1"),
        (FilmWish(shape=(5, 9, 12)), "multiples of 4"),
        (FilmWish(shape=(99, 8, 12)), "reads 96"),
        (FilmWish(shape=(1, 8, 12), beginning=BEGINNING), "cannot begin"),
        (FilmWish(beginning=BEGINNING[:2]), r"k x 2 \+ 1"),
    ],
)
def test_wishes_that_cannot_be_granted_are_refused(engine: Engine, wish: FilmWish, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_films(engine, [wish], SEEDED)
