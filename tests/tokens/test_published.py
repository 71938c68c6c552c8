"""Published tokenizers with small random weights in their real layout: what the library says, in ids, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.errors import UserError
from tessera.tokens.beside import find_tokenizer, media_tokenizer
from tessera.tokens.document import Document
from tessera.tokens.published import FAMILIES, Published, find_published
from tessera.tokens.sounds import to_speak
from tessera.tokens.vocabulary import Vocabulary

BOOKS = {"mimi": 4, "encodec": 3, "dac": 3}
STEPS = {"mimi": 160, "encodec": 80, "dac": 80}
families = pytest.mark.parametrize("family", list(BOOKS))


def sound(samples: int = 4133, seed: int = 0) -> np.ndarray:
    """Tones over a little noise, about a second of the small codecs."""
    rng = np.random.default_rng(seed)
    tone = np.sin(2 * np.pi * 300 * np.arange(samples) / 4000 * (1 + np.arange(samples) / samples))
    return ((tone + rng.normal(0, 0.1, samples)) * 8000).astype(np.int16)


def found(codecs: dict[str, Path], family: str, more: str = "") -> Published:
    return find_published(f"published:{family}:{codecs[family]}{more}", "audio")


@families
def test_ids_are_the_librarys_codes_book_by_book_and_come_back_as_its_sound(codecs: dict[str, Path], family: str) -> None:
    import transformers

    tokenizer, signal, books, step = found(codecs, family), sound(), BOOKS[family], STEPS[family]
    ids = tokenizer.encode(signal)
    assert ids.shape == tokenizer.grid(signal.shape) == (-(-len(signal) // step), books) and ids.dtype == np.int64
    assert tokenizer.size == 16 * books and tokenizer.rate == 4000 / step * books and tokenizer.per_second == 4000
    assert (ids // 16 == np.arange(books)).all() and len(np.unique(ids[:, 0])) > 1
    network = getattr(transformers, f"{FAMILIES[family].name}Model").from_pretrained(codecs[family]).eval()
    padded = torch.zeros(1, 1, len(ids) * step)
    padded[0, 0, : len(signal)] = torch.from_numpy(signal.astype(np.float32)) / 32_768
    with torch.inference_mode():
        if family == "encodec":
            codes = network.encode(padded, bandwidth=0.6).audio_codes
            wanted = network.decode(codes, [None]).audio_values
        else:
            codes = network.encode(padded).audio_codes
            wanted = network.decode(audio_codes=codes).audio_values
    assert (ids % 16 == codes.reshape(books, -1).numpy().T).all()
    back = tokenizer.decode(ids)
    assert back.shape == (len(ids) * step,) and back.dtype == np.int16 and np.abs(back).max() > 0
    made = wanted.reshape(-1).numpy()
    assert len(back) - 8 <= len(made) <= len(back)
    assert np.abs(back[: len(made)] / 32_768 - np.clip(made, -1, 1)).max() < 1e-4


@families
def test_the_first_books_are_a_coarser_tokenizer_of_their_own(codecs: dict[str, Path], family: str) -> None:
    signal, whole, two = sound(), found(codecs, family), found(codecs, family, "?books=2")
    assert two.size == 32 and two.fingerprint != whole.fingerprint
    assert (two.encode(signal) == whole.encode(signal)[:, :2]).all()
    assert two.decode(two.encode(signal)).shape == whole.decode(whole.encode(signal)).shape
    with pytest.raises(UserError, match=rf"has {BOOKS[family]} books, so \?books= takes 1 to"):
        found(codecs, family, "?books=9")


@families
def test_sound_comes_while_its_ids_are_coming_and_is_the_whole_sound(codecs: dict[str, Path], family: str) -> None:
    tokenizer, signal = found(codecs, family), sound(80 * 40)
    ids = tokenizer.encode(signal)
    stream, parts = tokenizer.stream(signal.shape), []
    for row in ids:
        parts += [stream.feed(row[:1]), stream.feed(row[1:])]
    whole = tokenizer.decode(ids)
    assert sum(map(len, parts)) == len(whole)
    assert np.abs(np.concatenate(parts).astype(int) - whole).max() <= 2
    # The last step alone would mean that nothing was certain before.
    assert len(parts[-1]) <= (tokenizer.config.ahead + 1) * tokenizer.config.step < len(whole)
    with pytest.raises(UserError, match="ids more than the signal has"):
        stream.feed(ids[0])


def test_a_vocabulary_takes_configuration_and_weights_along(codecs: dict[str, Path], tmp_path: Path) -> None:
    own = Path(shutil.copytree(codecs["mimi"], tmp_path / "mimi"))
    tokenizer = find_tokenizer(f"published:mimi:{own}", "audio")
    vocabulary = Vocabulary.train(["a tone"], 257).add_media(tokenizer)
    document = Document(to_speak("a tone", sound(), 4000))
    ids = vocabulary.encode(document).ids
    for folder in (tmp_path / "model", tmp_path / "again"):
        vocabulary.save(folder)
        vocabulary.save(folder)
        vocabulary = Vocabulary.load(folder)
    shutil.rmtree(own)
    shutil.rmtree(tmp_path / "model")
    assert sorted(p.name for p in folder.iterdir() if "audio" in p.name) == [
        "audio_tokenizer.json",
        "audio_tokenizer.safetensors",
    ]
    assert vocabulary.block("audio").fingerprint == tokenizer.fingerprint
    assert (vocabulary.encode(document).ids == ids).all()
    assert find_tokenizer(folder, "audio").fingerprint == tokenizer.fingerprint
    # What belongs to text goes on without the weights; what does not, says so.
    weights = folder / "audio_tokenizer.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    bare = Vocabulary.load(folder)
    assert bare.encode_text("a tone") == vocabulary.encode_text("a tone")
    with pytest.raises(UserError, match="do not lie beside the model"):
        bare.encode(document)
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(UserError, match="is not what the model was trained with"):
        Vocabulary.load(folder).encode(document)
    page = json.loads((folder / "audio_tokenizer.json").read_text())
    (folder / "audio_tokenizer.json").write_text(json.dumps(page | {"layout": page["layout"] | {"books": 3}}))
    with pytest.raises(UserError, match="do not belong together"):
        Vocabulary.load(folder)
    with pytest.raises(ValueError, match="which this version does not know"):
        media_tokenizer(page | {"family": "lyra"}, folder)


def test_weights_under_their_names_of_before_open_the_same(codecs: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    own = Path(shutil.copytree(codecs["encodec"], tmp_path / "encodec"))
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    tensors = {}
    for name, tensor in load_file(own / "model.safetensors").items():
        for new, old in names.items():
            name = name.replace(new, old)
        tensors[name] = tensor
    assert any(name.endswith("weight_g") for name in tensors)
    save_file(tensors, own / "model.safetensors")
    old = find_published(f"published:encodec:{own}", "audio")
    assert (old.encode(sound()) == found(codecs, "encodec").encode(sound())).all()


def test_the_licence_is_the_cards_and_one_that_is_not_permissive_is_named_so(codecs: dict[str, Path], tmp_path: Path) -> None:
    assert "licence of its weights: cc-by-4.0" in found(codecs, "dac").notice
    own = Path(shutil.copytree(codecs["dac"], tmp_path / "dac"))
    for head, said in {
        "license: cc-by-nc-4.0": "under cc-by-nc-4.0, which is not a permissive licence",
        'license: other\nlicense_name: "nvidia-open-model-license"': "under nvidia-open-model-license, which is not",
        "tags:\n- license": "no licence is named",
    }.items():
        (own / "README.md").write_text(f"---\n{head}\n---\nlicense: mit\n")
        assert said in find_published(f"published:dac:{own}", "audio").notice


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("published:lyra:{mimi}", "FAMILY is one of mimi, encodec, dac"),
        ("published:mimi", "names no published tokenizer"),
        ("published:mimi:{mimi}?books=0", "takes 1 to 4, not 0"),
        ("published:mimi:{mimi}?rate=2", "takes ?books=N only"),
        ("published:mimi:{tmp}/none", "there is no folder"),
        ("published:mimi:{tmp}", "has no config.json"),
        ("published:mimi:{dac}", "holds a model of the type dac, not mimi"),
        ("published:dac:{pickled}", "has no model.safetensors"),
        ("published:dac:{other}", "no weights of a DacModel"),
        ("published:encodec:{stereo}", "of 2 channels"),
        ("published:encodec:{loud}", "keeps a loudness beside its ids"),
        ("published:dac:{strange}", "is no DacConfig"),
        ("{tmp}", "name a published one"),
    ],
)
def test_what_is_none_is_refused_in_a_sentence(codecs: dict[str, Path], tmp_path: Path, spec: str, sentence: str) -> None:
    places = {**codecs, "tmp": tmp_path}
    for name, family, change in (
        ("pickled", "dac", {}), ("other", "dac", {}), ("stereo", "encodec", {"audio_channels": 2}),
        ("loud", "encodec", {"normalize": True}), ("strange", "dac", {"codebook_size": "many"}),
    ):  # fmt: skip
        if name in spec:
            places[name] = Path(shutil.copytree(codecs[family], tmp_path / name))
            facts = json.loads((places[name] / "config.json").read_text()) | change
            (places[name] / "config.json").write_text(json.dumps(facts))
    if "pickled" in spec:
        (places["pickled"] / "model.safetensors").rename(places["pickled"] / "pytorch_model.bin")
    if "other" in spec:
        shutil.copyfile(codecs["mimi"] / "model.safetensors", places["other"] / "model.safetensors")
    with pytest.raises(UserError) as refusal:
        find_tokenizer(spec.format(**places), "audio").encode(sound())
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_codec_is_no_tokenizer_of_films_and_signals_are_checked(codecs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="mimi is a tokenizer for audio, not for video"):
        find_published(f"published:mimi:{codecs['mimi']}", "video")
    tokenizer = found(codecs, "mimi")
    with pytest.raises(UserError, match="expects sound"):
        tokenizer.encode(sound().astype(np.float32))
    with pytest.raises(UserError, match="without samples"):
        tokenizer.encode(np.empty(0, np.int16))
    with pytest.raises(UserError, match="lie outside of theirs"):
        tokenizer.decode(tokenizer.encode(sound())[:, ::-1])
    with pytest.raises(UserError, match="another shape"):
        tokenizer.decode(np.zeros((3, 2), int))


def test_without_the_package_one_sentence_names_the_command(codecs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'install it with `pip install "tessera\[published\]"`\.$'):
        found(codecs, "mimi")
