"""The quantizer of sound: causal in time, whole steps, a page that brings it back; spectra; the place in the stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.errors import UserError
from tessera.tokens.beside import media_tokenizer
from tessera.tokens.document import Document, Segment
from tessera.tokens.quantizer import Autoencoder, Quantizer, QuantizerConfig, as_sound
from tessera.tokens.sounds import to_listen, to_speak
from tessera.tokens.spectrum import bands, magnitudes, magnitudes_of, samples_of, spectra, window_of
from tessera.tokens.vocabulary import Vocabulary

CONFIG = QuantizerConfig("audio", (5, 4), stride=80, time_stride=4, width=12, encoder_layers=1, decoder_layers=2, books=3)
STEP, TAIL = 320, 256 - 80


def quantizer(config: QuantizerConfig = CONFIG) -> Quantizer:
    network = Autoencoder(config)
    network.initialise(0)
    return Quantizer(network.eval(), (4 * STEP,), 8000.0)


def sound(samples: int = 6 * STEP, seed: int = 0) -> np.ndarray:
    """A few tones, each in a part of it."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / 8000
    tones = [np.sin(2 * np.pi * rng.uniform(200, 3000) * time) * (time > rng.uniform(0, time[-1] / 2)) for _ in range(4)]
    return (np.sum(tones, 0) * 6000).astype(np.int16)


def test_samples_found_again_have_the_spectra_they_came_from() -> None:
    real = magnitudes(as_sound(sound())[None], 80, 256)[0].double().numpy()
    back = samples_of(real, 80)
    again = magnitudes(torch.from_numpy(back).float()[None], 80, 256)[0].double().numpy()
    assert 20 * np.log10(np.linalg.norm(real) / np.linalg.norm(real - again)) > 12
    assert (samples_of(real[:12], 80)[:-TAIL] == back[: 12 * 80 - TAIL]).all()


def test_spectra_and_their_logarithms_are_each_others_way_back() -> None:
    signal = as_sound(sound())[None]
    assert window_of(80) == 256 and spectra(signal, 80).shape == (1, 24, 129)
    assert torch.allclose(magnitudes_of(spectra(signal, 80)), magnitudes(signal, 80, 256), atol=1e-5)
    assert torch.allclose(bands(129).sum(0), torch.ones(24), atol=1e-5)


@pytest.mark.parametrize("samples", [1, STEP - 1, STEP, STEP + 1, 6 * STEP])
def test_a_sound_becomes_whole_steps_with_an_id_of_each_book(samples: int) -> None:
    whole = quantizer()
    ids = whole.encode(sound()[:samples])
    steps = -(-samples // STEP)
    assert ids.shape == (steps, 3) == whole.grid((samples,))
    assert (ids // 20 == [0, 1, 2]).all() and whole.size == 60
    assert whole.decode(ids).shape == (steps * STEP,) and whole.decode(ids).dtype == np.int16
    assert whole.rate == 75


def test_no_id_depends_on_what_comes_later_and_samples_only_within_a_window() -> None:
    whole = quantizer()
    ids = whole.encode(sound())
    other = sound()
    other[3 * STEP :] = 0
    assert (whole.encode(other)[:3] == ids[:3]).all() and (whole.encode(other)[3:] != ids[3:]).any()
    samples = whole.decode(ids)
    for steps in (1, 3, 5):
        assert (whole.encode(sound()[: steps * STEP]) == ids[:steps]).all()
        first = whole.decode(ids[:steps])[:-TAIL].astype(int)
        # Phases are searched in float64 from what a network says in float32, a few more rows at a time.
        assert np.abs(first - samples[: len(first)]).max() <= 64


def test_streamed_samples_are_those_of_the_whole_whatever_the_pieces() -> None:
    whole, ids = quantizer(), quantizer().encode(sound()).ravel()
    stream = whole.stream((6 * STEP,))
    pieces = [stream.feed(ids[a:b]) for a, b in ((0, 2), (2, 4), (4, 4), (4, 11), (11, 18))]
    assert [len(p) for p in pieces] == [0, STEP - TAIL, 0, 2 * STEP, 3 * STEP + TAIL]
    assert np.abs(np.concatenate(pieces).astype(int) - whole.decode(ids.reshape(-1, 3))).max() <= 64


def test_every_id_stands_for_its_own_code() -> None:
    network = quantizer().network
    every = torch.arange(60).reshape(1, 3, 20).mT[..., None]
    codes = network.codes_of(every)
    assert (network.ids(codes) == every).all()
    assert len({tuple(c) for c in codes[0, :, :, 0, 0].tolist()}) == 20


def test_its_page_brings_it_back_and_it_lies_beside_one_for_films(tmp_path) -> None:  # type: ignore[no-untyped-def]
    one = quantizer()
    again = media_tokenizer(one.to_json())
    assert again.fingerprint == one.fingerprint and (again.encode(sound()) == one.encode(sound())).all()
    network = Autoencoder(QuantizerConfig("video", (4, 4), 4, 2, 8, 1, 1))
    network.initialise(0)
    vocabulary = Vocabulary.train(["a byte is enough"], 256).add_media(Quantizer(network.eval(), (5, 8, 12), 8.0)).add_media(one)
    vocabulary.save(tmp_path)
    loaded = Vocabulary.load(tmp_path)
    assert loaded.media_tokenizer("audio").fingerprint == one.fingerprint and loaded.hash == vocabulary.hash
    assert loaded.block("audio").size == 60 and loaded.block("audio").offset == loaded.block("video").offset + 16


def test_what_is_made_is_learned_with_its_end_and_what_is_heard_is_not() -> None:
    vocabulary = Vocabulary.train(["a byte is enough"], 256).add_media(quantizer())
    offset = vocabulary.block("audio").offset
    made = vocabulary.encode(Document(to_speak("a tone", sound(), 8000)))
    ids = quantizer().encode(sound()).ravel() + offset
    assert made.ids[-len(ids) - 1 : -1].tolist() == ids.tolist()
    assert made.learn.sum() == len(ids) + 1 and vocabulary.decode(made.ids[-1:]).segments[0].content == "<|/audio|>"
    heard = vocabulary.encode(Document(to_listen(sound(), 8000, [("What?", "tone")])))
    assert vocabulary.decode_text(heard.ids[heard.learn]) == "tone"


@pytest.mark.parametrize("signal", [np.zeros(0, np.int16), np.zeros(640, np.float32), np.zeros((2, 640), np.int16)])
def test_what_is_no_sound_is_refused(signal: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"expects sound|without samples"):
        quantizer().encode(signal)


def test_ids_of_sound_that_came_as_ids_are_still_ids() -> None:
    vocabulary = Vocabulary.train(["a byte is enough"], 256).add_media(quantizer())
    kept = vocabulary.encode(Document((Segment("audio", np.array([3, 25, 41])),))).ids
    assert (kept - vocabulary.block("audio").offset).tolist() == [3, 25, 41]
