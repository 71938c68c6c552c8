"""The quantizer: ids are arithmetic, nothing depends on a later frame, a page brings it back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.errors import UserError
from tessera.tokens.beside import media_tokenizer
from tessera.tokens.quantizer import Autoencoder, Quantizer, QuantizerConfig
from tessera.tokens.vocabulary import Vocabulary

CONFIG = QuantizerConfig("video", (5, 4, 3), stride=4, time_stride=2, width=12, encoder_layers=1, decoder_layers=2)


def quantizer(config: QuantizerConfig = CONFIG, shape: tuple[int, ...] = (5, 8, 12)) -> Quantizer:
    network = Autoencoder(config)
    network.initialise(0)
    return Quantizer(network.eval(), shape, 8.0 if config.kind == "video" else 0.0)


def film(frames: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 8, 12, 3), dtype=np.uint8)


def test_every_id_stands_for_its_own_code() -> None:
    network = quantizer().network
    every = torch.arange(60).reshape(1, 1, 6, 10)
    codes = network.codes_of(every)
    assert (network.ids(codes) == every).all()
    assert len({tuple(c) for c in codes[0, 0].flatten(1).T.tolist()}) == 60
    for digit, levels in enumerate(CONFIG.levels):
        assert codes[:, :, digit].unique().numel() == levels


def test_what_the_network_says_is_always_an_id_and_uses_all_levels() -> None:
    network = quantizer().network
    with torch.inference_mode():
        codes = network.codes(torch.randn(4, 9, 32, 32, 3) * 3)
    assert (network.codes_of(network.ids(codes)) - codes).abs().max() < 1e-5
    assert [codes[:, :, d].round().unique().numel() for d in range(3)] == list(CONFIG.levels)


def test_no_id_and_no_frame_depends_on_what_comes_later() -> None:
    whole = quantizer()
    ids = whole.encode(film(9))
    assert ids.shape == (5, 2, 3)
    frames = whole.decode(ids)
    assert frames.shape == (9, 8, 12, 3)
    for count in (1, 3, 5, 7):
        steps = (count - 1) // 2 + 1
        assert (whole.encode(film(9)[:count]) == ids[:steps]).all()
        assert (whole.decode(ids[:steps]) == frames[:count]).all()
    other = film(9)
    other[6:] = 0
    assert (whole.encode(other)[:3] == ids[:3]).all() and (whole.encode(other)[3:] != ids[3:]).any()


def test_streamed_frames_are_those_of_the_whole_whatever_the_pieces() -> None:
    whole, ids = quantizer(), np.random.default_rng(1).integers(0, 60, (3, 2, 3))
    stream, flat = whole.stream((5, 8, 12)), ids.ravel()
    pieces = [stream.feed(flat[a:b]) for a, b in ((0, 2), (2, 7), (7, 7), (7, 17), (17, 18))]
    assert [len(p) for p in pieces] == [0, 1, 0, 2, 2]
    assert (np.concatenate(pieces) == whole.decode(ids)).all()
    with pytest.raises(UserError, match="1 ids more"):
        stream.feed(np.zeros(1, np.int64))


def test_pictures_are_quantized_alone() -> None:
    pictures = quantizer(QuantizerConfig("image", (4, 4), 4, 1, 8, 1, 1), (8, 12))
    picture = film()[0]
    ids = pictures.encode(picture)
    assert ids.shape == (2, 3) and pictures.decode(ids).shape == (8, 12, 3)
    stream = pictures.stream((8, 12))
    assert not len(stream.feed(ids.ravel()[:5])) and (stream.feed(ids.ravel()[5:]) == pictures.decode(ids)).all()


def test_its_page_brings_it_back_and_its_hash_is_in_the_vocabulary(tmp_path) -> None:  # type: ignore[no-untyped-def]
    one, other = quantizer(), quantizer()
    again = media_tokenizer(one.to_json())
    assert again.fingerprint == one.fingerprint and again.shape == one.shape
    assert (again.encode(film()) == one.encode(film())).all()
    with torch.no_grad():
        other.network.close.bias[0] += 1e-3
    assert other.fingerprint != one.fingerprint
    bare = Vocabulary.train(["a byte is enough"], 256)
    grown, changed = bare.add_media(one), bare.add_media(other)
    assert grown.hash != changed.hash and grown.size == bare.size + 60
    grown.save(tmp_path)
    assert Vocabulary.load(tmp_path).media_tokenizer("video").fingerprint == one.fingerprint
    (tmp_path / "video_tokenizer.json").write_text('{"name": "quantizer"}')
    with pytest.raises(UserError, match="is damaged"):
        Vocabulary.load(tmp_path)


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        (np.zeros((4, 8, 12, 3), np.uint8), r"k x 2 \+ 1"),
        (np.zeros((5, 9, 12, 3), np.uint8), "multiples of 4"),
        (np.zeros((8, 12, 3), np.uint8), "expects films"),
        (np.zeros((5, 8, 12, 3)), "expects films"),
    ],
)
def test_what_cannot_be_cut_is_refused(signal: np.ndarray, words: str) -> None:
    with pytest.raises(UserError, match=words):
        quantizer().encode(signal)


def test_ids_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match="no id"):
        quantizer().decode(np.full((1, 2, 3), 60))
