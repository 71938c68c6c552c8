"""A picture's place in the stream: its geometry in tokens, and the order of caption, picture and question for each task.

A picture reads `<|image|>` height*width `<|begin_media|>`, then each row of pixels with `<|row|>` behind it, then `<|/image|>`
(as Emu3 does it, arXiv 2409.18869): any size and shape goes into one model, and the pixel above always lies the same number of
tokens back. With a quantizer patches stand in the place of pixels. A transparent pixel of a four-channel picture is hidden and
reads `<|mask|>`, and so does a patch with one. The frame before the pixels is given, never learned. Training (`data.shapes`) and
asking (`engine.pictures`) lay their documents out by the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tessera.errors import UserError
from tessera.tokens.document import Document, Segment
from tessera.tokens.media import MediaTokenizer

if TYPE_CHECKING:
    from tessera.tokens.vocabulary import Vocabulary

IMAGE, IMAGE_END, ROW, BEGIN, MASK, EDIT = (
    "<|image|>", "<|/image|>", "<|row|>", "<|begin_media|>", "<|mask|>", "<|edit|>",
)  # fmt: skip
GUIDED = "<|guided|>"
"""Before the prompt: make what guidance would, from one row; for models that have learned it (`posttrain distil`)."""
QUESTION = "What is in the picture?"
"""Answered with the caption; asked where the person asks nothing."""
ANOTHER = "Another one:"
"""Between a picture and its variation."""
MOST_SIDE = 4096
_OPAQUE = 128


def picture_segment(pixels: np.ndarray, learn: bool = True) -> Segment:
    """A picture, (H, W, 3) or (H, W, 4) uint8, as a segment."""
    return Segment("image", pixels, learn)


def is_picture(segment: Segment) -> bool:
    """Whether a segment holds the pixels of a picture, not ids."""
    return segment.kind == "image" and isinstance(segment.content, np.ndarray) and segment.content.dtype == np.uint8


def pictures_of(document: Document) -> list[np.ndarray]:
    """The pixels of each picture in a document."""
    return [np.asarray(s.content) for s in document.segments if is_picture(s)]


def to_draw(caption: str, pixels: np.ndarray) -> tuple[Segment, ...]:
    """Caption -> picture; without a caption the picture alone."""
    return (*given(caption), picture_segment(pixels))


def to_see(pixels: np.ndarray, questions: Sequence[tuple[str, str]], learn: bool) -> tuple[Segment, ...]:
    """Picture -> answers to questions about it; `learn`: the picture too, so that it is one without a caption as well."""
    asked = [part for question, answer in questions for part in (*given(question), Segment("text", answer))]
    return (picture_segment(pixels, learn), *asked)


def to_edit(caption: str, hidden: np.ndarray, pixels: np.ndarray) -> tuple[Segment, ...]:
    """Caption and picture with hidden pixels, (H, W, 4) -> the whole picture."""
    return (*given(caption), Segment("control", EDIT, False), picture_segment(hidden, False), picture_segment(pixels))


def to_vary(caption: str, source: np.ndarray, pixels: np.ndarray) -> tuple[Segment, ...]:
    """Caption and picture -> another picture with that caption."""
    return (*given(caption), picture_segment(source, False), *given(ANOTHER), picture_segment(pixels))


def prompt(vocabulary: Vocabulary, segments: Sequence[Segment], shape: tuple[int, int] | None = None) -> list[int]:
    """Ids of what a model is given: all but the last segment, which it is asked for; with `shape`, the frame of a picture."""
    ids = vocabulary.encode(Document(tuple(segments[:-1]))).ids.tolist()
    return ids + (frame(vocabulary, *shape) if shape else [])


def frame(vocabulary: Vocabulary, height: int, width: int) -> list[int]:
    """The ids that stand before the pixels of a picture."""
    if not (1 <= height <= MOST_SIDE and 1 <= width <= MOST_SIDE):
        raise UserError(
            f"a picture of {height}*{width} pixels is none that can be read or drawn; sides go from 1 to {MOST_SIDE}."
        )
    return [vocabulary.control(IMAGE), *vocabulary.encode_text(f"{height}*{width}"), vocabulary.control(BEGIN)]


def tokens_of(grid: tuple[int, ...], height: int, width: int) -> int:
    """Tokens of a picture whose ids have the shape `grid`, its frame with as many digits as a byte-level tokenizer may need."""
    return grid[0] * (grid[1] + 1) + len(f"{height}*{width}") + 3


def patches_of(places: np.ndarray, stride: int) -> np.ndarray:
    """(H, W) bool, some pixels -> (h, w), the patches in which one of them lies."""
    height, width = places.shape
    return np.asarray(places.reshape(height // stride, stride, width // stride, stride).any((1, 3)))


def known_size(vocabulary: Vocabulary) -> tuple[int, int]:
    """How many pixels most pictures have that a model learned from, and of what the sides of any have to be multiples."""
    tokenizer = vocabulary.media_tokenizer("image")
    return math.prod(tokenizer.shape), tokenizer.stride


def encode_picture(
    vocabulary: Vocabulary, pixels: np.ndarray, tokenizer: MediaTokenizer, offset: int, learn: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a picture with all of its geometry, int32, and which are learned: pixels, row ends and the end, if any.

    Args:
        pixels: (H, W, 3) or (H, W, 4) uint8.
        offset: of the tokenizer's block.
    """
    height, width = pixels.shape[:2]
    whole = pixels.shape[2] == 3
    hidden = np.zeros((height, width), bool) if whole else pixels[..., 3] < _OPAQUE
    # White in a hole: the ids of patches beside it would tell of what it hides.
    shown = np.ascontiguousarray(pixels) if whole else np.where(hidden[..., None], np.uint8(255), pixels[..., :3])
    places = tokenizer.encode(shown) + offset
    grid = np.full((places.shape[0], places.shape[1] + 1), vocabulary.control(ROW))
    grid[:, :-1] = np.where(patches_of(hidden, tokenizer.stride), vocabulary.control(MASK), places)
    head = frame(vocabulary, height, width)
    ids = np.concatenate([head, grid.ravel(), [vocabulary.control(IMAGE_END)]]).astype(np.int32)
    return ids, (np.arange(len(ids)) >= len(head)) & learn


def hide(pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """(H, W, 4): a picture whose pixels are transparent where `hidden` (H, W) is true."""
    alpha = np.where(hidden, 0, 255).astype(np.uint8)
    return np.concatenate([pixels[..., :3], alpha[..., None]], -1)


def find_pictures(vocabulary: Vocabulary, ids: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """The whole pictures in a stretch of ids, (H, W, 3) uint8 each. Pictures with hidden pixels or of a broken form are left out.

    Raises:
        UserError: the vocabulary has no tokenizer for pictures.
    """
    tokenizer, block = vocabulary.media_tokenizer("image"), vocabulary.block("image")
    array = np.asarray(ids, np.int64)
    row, begin = vocabulary.control(ROW), vocabulary.control(BEGIN)
    found = []
    for start in np.flatnonzero(array == vocabulary.control(IMAGE)).tolist():
        head = array[start + 1 : start + 32]
        at = np.flatnonzero(head == begin)
        if not len(at):
            continue
        height, star, width = vocabulary.decode_text(head[: at[0]]).partition("*")
        if not (star and height.isascii() and height.isdigit() and width.isascii() and width.isdigit()):
            continue
        h, w = int(height), int(width)
        body = start + 2 + int(at[0])
        if not (1 <= h <= MOST_SIDE and 1 <= w <= MOST_SIDE) or h % tokenizer.stride or w % tokenizer.stride:
            continue
        h, w = tokenizer.grid((h, w))
        if body + h * (w + 1) > len(array):
            continue
        grid = array[body : body + h * (w + 1)].reshape(h, w + 1)
        pixels = grid[:, :-1] - block.offset
        if (grid[:, -1] == row).all() and 0 <= pixels.min() <= pixels.max() < block.size:
            found.append(tokenizer.decode(pixels))
    return found


def given(text: str) -> tuple[Segment, ...]:
    """A text that is read, not learned; nothing where there is none."""
    return (Segment("text", text, learn=False),) if text else ()
