"""Sound from an engine: whole steps of ids in the order of their books, an end that comes in time, given ids kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.engine.engine import Engine
from tessera.engine.sampling import SamplingParams
from tessera.engine.sounds import LONGEST, SoundWish, listen, make_sounds
from tessera.errors import UserError
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.tokens.document import Document
from tessera.tokens.quantizer import Autoencoder, Quantizer, QuantizerConfig
from tessera.tokens.sounds import to_speak
from tessera.tokens.vocabulary import Vocabulary

SEEDED = SamplingParams(max_tokens=1, seed=7)
STEP = 320
BEGINNING = (np.random.default_rng(0).normal(0, 3000, 2 * STEP + 100)).astype(np.int16)


def quantizer() -> Quantizer:
    network = Autoencoder(QuantizerConfig("audio", (5, 4), 80, 4, 8, 1, 1, books=2))
    network.initialise(0)
    return Quantizer(network.eval(), (5 * STEP,), 8000.0)


@pytest.fixture(scope="module")
def engine() -> Engine:
    vocabulary = Vocabulary.train(["a byte is enough"], 256).add_media(quantizer())
    config = DecoderConfig(
        vocabulary.size, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=48, context=96, tied=False
    )
    decoder = Decoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(float(parameter.ndim == 1), 0.3, generator=generator)
    return Engine(decoder, vocabulary)


def test_a_sound_is_whole_steps_of_each_book_and_ends_in_time(engine: Engine) -> None:
    wishes = [SoundWish("a tone", most_seconds=seconds, guidance=guidance) for seconds in (0.04, 0.4) for guidance in (1.0, 2.0)]
    for made, wish in zip(make_sounds(engine, wishes, SEEDED), wishes, strict=True):
        steps = len(made.ids)
        assert wish.most_seconds and 1 <= steps <= round(wish.most_seconds * 25)
        assert (made.ids // 20 == [0, 1]).all() and len(made.samples) == steps * STEP and made.per_second == 8000
        assert made.completion.finish_reason == "stop" and len(made.completion.ids) == 2 * steps + 1


def test_the_model_may_end_a_sound_behind_any_step(engine: Engine) -> None:
    lengths = {len(s.ids) for s in make_sounds(engine, [SoundWish("a tone", guidance=1.0)] * 40, SEEDED)}
    assert len(lengths) > 2 and max(lengths) <= LONGEST * 5


def test_the_ids_of_what_is_given_are_kept(engine: Engine) -> None:
    made = make_sounds(engine, [SoundWish("a tone", BEGINNING)], SEEDED)[0]
    assert (made.ids[:2] == quantizer().encode(BEGINNING[: 2 * STEP])).all()


def test_what_is_asked_for_is_laid_out_as_what_was_learned(engine: Engine) -> None:
    learned = engine.vocabulary.encode(Document(to_speak("a tone", BEGINNING[: 2 * STEP], 8000))).ids
    made = make_sounds(engine, [SoundWish("a tone", BEGINNING)], SEEDED)[0].completion
    assert made.record.ids[: len(learned) - 1].tolist() == learned[:-1].tolist()


def test_what_is_heard_is_asked_about(engine: Engine) -> None:
    asked = listen(engine, [BEGINNING], "", SamplingParams(max_tokens=4, temperature=0))[0]
    assert engine.vocabulary.decode_text(asked.prompt_ids) == "Write down what you hear."


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (SoundWish(most_seconds=9), "reads 96"),
        (SoundWish(beginning=BEGINNING, most_seconds=0.08), "0.12 s at least"),
        (SoundWish(most_seconds=0.001), "0.04 s at least"),
    ],
)
def test_wishes_that_cannot_be_granted_are_refused(engine: Engine, wish: SoundWish, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_sounds(engine, [wish], SEEDED)


def test_a_recording_that_is_too_long_is_refused(engine: Engine) -> None:
    with pytest.raises(UserError, match="give a shorter one"):
        listen(engine, [np.resize(BEGINNING, 60 * STEP)], "", SEEDED)
