"""Colours by number: exact where there are few, near where there are many, the same on every machine."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tessera.errors import UserError
from tessera.tokens import palette as colours
from tessera.tokens.beside import media_tokenizer
from tessera.tokens.palette import Palette, psnr

GREYS = Palette(np.repeat(np.arange(0, 256, 15, dtype=np.uint8)[:, None], 3, 1), (8, 8))


@given(st.data(), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_ids_come_back_through_pixels(data: st.DataObject, height: int, width: int) -> None:
    ids = data.draw(arrays(np.int64, (height, width), elements=st.integers(0, GREYS.size - 1)))
    pixels = GREYS.decode(ids)
    assert pixels.shape == (height, width, 3) and pixels.dtype == np.uint8
    assert (GREYS.encode(pixels) == ids).all()


@given(arrays(np.uint8, (5, 7, 3)))
@settings(max_examples=50, deadline=None)
def test_each_pixel_becomes_its_nearest_colour(pixels: np.ndarray) -> None:
    found = GREYS.decode(GREYS.encode(pixels)).astype(int)
    distances = ((pixels[:, :, None].astype(int) - GREYS.colours.astype(int)) ** 2).sum(-1)
    assert (((found - pixels.astype(int)) ** 2).sum(-1) == distances.min(-1)).all()


def test_few_colours_are_kept_exactly_with_the_dark_ones_first() -> None:
    pictures = [np.array([[[255, 255, 255], [0, 0, 0]], [[9, 200, 3], [0, 0, 0]]], np.uint8)] * 2
    palette = Palette.fit([*pictures, np.zeros((1, 5, 3), np.uint8)], 16)
    assert palette.colours.tolist() == [[0, 0, 0], [9, 200, 3], [255, 255, 255]]
    assert palette.shape == (2, 2)  # the commonest
    assert psnr(palette.decode(palette.encode(pictures[0])), pictures[0]) == np.inf


def test_more_colours_bring_a_picture_nearer_and_the_same_pictures_give_the_same_palette() -> None:
    ramp = np.linspace(0, 255, 48 * 48 * 3).reshape(48, 48, 3).astype(np.uint8)
    noisy = ramp ^ np.random.default_rng(0).integers(0, 16, ramp.shape, dtype=np.uint8)
    palettes = [Palette.fit([noisy], count) for count in (4, 16, 64)]
    near = [psnr(p.decode(p.encode(noisy)), noisy) for p in palettes]
    assert near[0] + 3 < near[1] and near[1] + 3 < near[2]
    assert (Palette.fit([noisy], 16).colours == palettes[1].colours).all()


def test_colours_weigh_as_much_as_there_are_pixels_of_them_in_all_pictures() -> None:
    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 24, (20, 30, 3), np.uint8) * 10 for _ in range(9)]
    counts = Counter(tuple(pixel) for picture in pictures for pixel in picture.reshape(-1, 3).tolist())
    points = np.array(sorted(counts), np.uint8)
    means = colours._means(points, np.array([counts[p] for p in sorted(counts)], float), 12, 5)
    assert sorted(Palette.fit(pictures, 12, 5).colours.tolist()) == sorted(means.tolist())


def test_millions_of_colours_are_counted_in_bounded_memory() -> None:
    number = np.arange(1 << 22) * 4
    picture = np.stack([number >> 16, number >> 8 & 255, number & 255], -1).astype(np.uint8).reshape(2048, 2048, 3)
    tracemalloc.start()
    try:
        Palette.fit([picture], 2)
        assert tracemalloc.get_traced_memory()[1] < 500e6
    finally:
        tracemalloc.stop()


def test_transparent_pixels_do_not_count() -> None:
    picture = np.zeros((2, 2, 4), np.uint8)
    picture[0, 0] = (10, 20, 30, 255)
    picture[1, 1] = (200, 0, 0, 255)
    assert Palette.fit([picture], 8).colours.tolist() == [[10, 20, 30], [200, 0, 0]]


def test_its_page_brings_it_back_with_the_same_fingerprint() -> None:
    again = media_tokenizer(GREYS.to_json())
    assert again.fingerprint == GREYS.fingerprint and again.size == GREYS.size and again.kind == "image"
    other = Palette(GREYS.colours[1:], GREYS.shape)
    assert other.fingerprint != GREYS.fingerprint
    with pytest.raises(ValueError, match="does not know"):
        media_tokenizer({"name": "oracle"})


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_streamed_rows_are_those_of_the_whole_whatever_the_pieces(cuts: list[int], height: int, width: int) -> None:
    ids = np.random.default_rng(height * width).integers(0, GREYS.size, (height, width))
    stream, flat = GREYS.stream((height, width)), ids.ravel()
    ends = sorted({min(c, len(flat)) for c in cuts} | {0, len(flat)})
    pieces = [stream.feed(flat[a:b]) for a, b in itertools.pairwise(ends)]
    for end, so_far in zip(ends[1:], np.cumsum([len(p) for p in pieces]), strict=True):
        assert so_far == end // width
    assert (np.concatenate(pieces) == GREYS.decode(ids)).all()
    with pytest.raises(UserError, match="1 ids more"):
        stream.feed(np.zeros(1, np.int64))


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: Palette.fit([], 4), "no picture"),
        (lambda: Palette.fit([np.zeros((1, 1, 3), np.uint8)], 1), "2 to 4096"),
        (lambda: GREYS.encode(np.zeros((2, 2), np.uint8)), r"expects pictures, \(height, width, 3\)"),
        (lambda: GREYS.encode(np.zeros((2, 2, 3))), "float64"),
        (lambda: GREYS.decode(np.array([99])), "no colour 99"),
    ],
)
def test_what_it_cannot_do_is_said(act: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        act()  # type: ignore[operator]
