"""A picture's place in the stream: geometry, what is learned, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from tessera.errors import UserError
from tessera.model import weights
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.tokens.document import Document, Segment
from tessera.tokens.palette import Palette
from tessera.tokens.pictures import find_pictures, hide, picture_segment, prompt, to_draw, to_edit, to_see, tokens_of
from tessera.tokens.quantizer import Autoencoder, Quantizer, QuantizerConfig
from tessera.tokens.vocabulary import CONTROLS, Vocabulary

COLOURS = np.array([[0, 0, 0], [200, 30, 30], [250, 250, 250]], np.uint8)
PALETTE = Palette(COLOURS, (2, 3))


@pytest.fixture(scope="module")
def seeing() -> Vocabulary:
    return Vocabulary.train(["a red dot on white, nothing else"], 256).add_media(PALETTE)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return COLOURS[np.random.default_rng(seed).integers(0, 3, (height, width))]


def test_the_stream_reads_frame_rows_end_and_only_pixels_rows_and_end_are_learned(seeing: Vocabulary) -> None:
    record = seeing.encode(Document((picture_segment(picture(2, 3)),)))
    names = [s.content if s.kind in ("control", "text") else len(np.ravel(s.content)) for s in seeing.decode(record.ids).segments]
    assert names == ["<|image|>", "2*3", "<|begin_media|>", 3, "<|row|>", 3, "<|row|>", "<|/image|>"]
    assert record.learn.tolist() == [False] * 5 + [True] * 9
    assert len(record) == tokens_of((2, 3), 2, 3)
    assert not seeing.encode(Document((picture_segment(picture(2, 3), learn=False),))).learn.any()


@given(st.integers(1, 40), st.integers(1, 40), st.text(max_size=20))
@settings(max_examples=40, deadline=None)
def test_any_size_and_shape_comes_back(height: int, width: int, caption: str) -> None:
    vocabulary = Vocabulary.train([], 256).add_media(PALETTE)
    there = [picture(height, width), picture(width, height, 1)]
    record = vocabulary.encode(Document((*to_draw(caption, there[0]), *to_draw("", there[1]))))
    found = find_pictures(vocabulary, record.ids)
    assert len(found) == 2 and all((a == b).all() for a, b in zip(found, there, strict=True))


def test_hidden_pixels_read_as_mask_and_such_a_picture_is_not_found(seeing: Vocabulary) -> None:
    hidden = np.array([[True, False, False], [False, False, True]])
    whole = picture(2, 3)
    record = seeing.encode(Document(to_edit("a dot", hide(whole, hidden), whole)))
    assert (record.ids == seeing.control("<|mask|>")).sum() == 2
    assert [f.tolist() for f in find_pictures(seeing, record.ids)] == [whole.tolist()]


@pytest.mark.parametrize("spoil", ["cut", "row", "text", "size"])
def test_a_broken_picture_is_left_out(seeing: Vocabulary, spoil: str) -> None:
    ids = seeing.encode(Document((picture_segment(picture(2, 3)),))).ids.tolist()
    if spoil == "cut":
        ids = ids[:10]
    elif spoil == "row":
        ids[8] = ids[7]
    elif spoil == "text":
        ids[6] = seeing.encode_text("a")[0]
    else:
        ids[1:4] = seeing.encode_text("2*x")
    assert find_pictures(seeing, ids) == []


def test_a_prompt_is_all_but_what_is_asked_for(seeing: Vocabulary) -> None:
    drawn = seeing.encode(Document(to_draw("a dot", picture(2, 3)))).ids.tolist()
    asked = prompt(seeing, to_draw("a dot", picture(1, 1)), (2, 3))
    assert drawn[: len(asked)] == asked and len(drawn) == len(asked) + 9
    seen = seeing.encode(Document(to_see(picture(2, 3), [("what?", "a dot")], learn=True)))
    question = prompt(seeing, to_see(picture(2, 3), [("what?", "")], learn=False))
    assert seen.ids[: len(question)].tolist() == question
    assert seen.learn[len(question) :].all() and seeing.decode_text(seen.ids[len(question) :]) == "a dot"


def test_the_block_comes_after_all_old_ids_and_a_folder_brings_everything_back(seeing: Vocabulary, tmp_path: Path) -> None:
    old = Vocabulary.train(["a red dot on white, nothing else"], 256)
    assert seeing.block("image").offset == old.size == old.text_size + len(CONTROLS) and seeing.size == old.size + 3
    assert seeing.ids_of("image") == range(old.size, old.size + 3) and old.ids_of("image") == range(0)
    seeing.save(tmp_path)
    again = Vocabulary.load(tmp_path)
    record = Document((picture_segment(picture(4, 5)), Segment("text", "a dot")))
    assert again.hash == seeing.hash != old.hash
    assert (again.encode(record).ids == seeing.encode(record).ids).all()
    page = json.loads((tmp_path / "image_tokenizer.json").read_text())
    page["colours"][0] = [1, 2, 3]
    (tmp_path / "image_tokenizer.json").write_text(json.dumps(page))
    with pytest.raises(UserError, match="do not belong together"):
        Vocabulary.load(tmp_path)
    (tmp_path / "image_tokenizer.json").unlink()
    with pytest.raises(UserError, match="does not lie beside the model"):
        Vocabulary.load(tmp_path).encode(record)


def test_a_model_that_never_saw_pictures_says_so() -> None:
    with pytest.raises(UserError, match="not learned that medium"):
        Vocabulary.train([], 256).encode(Document((picture_segment(picture(1, 1)),)))


def test_the_folder_loads_in_transformers_with_the_same_logits(seeing: Vocabulary, tmp_path: Path) -> None:
    shape = DecoderConfig(seeing.size, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=48, context=128)
    decoder = Decoder(shape)
    decoder.initialise(0)
    special = weights.SpecialIds(None, (seeing.end_id,), seeing.pad_id)
    weights.save(decoder, tmp_path / "model", special=special, companions=lambda f: seeing.save(f, 128))
    ids = torch.tensor([seeing.encode(Document(to_draw("a dot", picture(5, 4)))).ids.tolist()])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.inference_mode():
        assert torch.allclose(decoder.logits(decoder(ids)), theirs(ids).logits, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").encode("a dot") == seeing.encode_text("a dot")


@pytest.fixture(scope="module")
def patched() -> Vocabulary:
    """With patches of 4 x 4 pixels in the place of pixels."""
    network = Autoencoder(QuantizerConfig("image", (4, 3), 4, 1, 8, 1, 1))
    network.initialise(0)
    return Vocabulary.train(["a dot"], 256).add_media(Quantizer(network.eval(), (8, 12)))


def test_a_picture_in_patches_has_a_row_of_ids_for_four_rows_of_pixels(patched: Vocabulary) -> None:
    pixels, tokenizer = picture(8, 12), patched.media_tokenizer("image")
    record = patched.encode(Document((picture_segment(pixels),)))
    names = [
        s.content if s.kind in ("control", "text") else len(np.ravel(s.content)) for s in patched.decode(record.ids).segments
    ]
    assert names == ["<|image|>", "8*12", "<|begin_media|>", 3, "<|row|>", 3, "<|row|>", "<|/image|>"]
    assert len(record) == tokens_of((2, 3), 8, 12)
    (found,) = find_pictures(patched, record.ids)
    assert (found == tokenizer.decode(tokenizer.encode(pixels))).all()
    with pytest.raises(UserError, match="multiples of 4"):
        patched.encode(Document((picture_segment(picture(8, 10)),)))


def test_what_is_hidden_in_a_patch_is_told_by_no_id(patched: Vocabulary) -> None:
    hidden = np.zeros((8, 12), bool)
    hidden[5, 6] = True
    ids = []
    for colour in ((0, 0, 0), (250, 250, 250)):
        pixels = picture(8, 12)
        pixels[hidden] = colour
        ids.append(patched.encode(Document((picture_segment(hide(pixels, hidden)),))).ids)
    grid = ids[0][-9:-1].reshape(2, 4)
    assert (grid == patched.control("<|mask|>")).tolist() == [[False] * 4, [False, True, False, False]]
    assert (ids[0] == ids[1]).all()
