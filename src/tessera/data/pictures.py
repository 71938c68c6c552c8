"""Picture files and their captions -> documents.

`read_picture` opens what a person or the network sent: PNG, JPEG, WebP and GIF by their content, whatever the file is called,
upright by EXIF, transparent parts on white, and refuses in one sentence what is broken, empty or a decompression bomb.
`captioned` and `parts_of` are both ends of the document of a captioned picture.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tessera.data.reasons import Unreadable, words
from tessera.errors import UserError
from tessera.tokens.document import Document, Segment
from tessera.tokens.pictures import is_picture, picture_segment

ENDINGS = frozenset({"png", "jpg", "jpeg", "webp", "gif"})
MOST_PIXELS = 50_000_000
"""Of a file that is opened, 200 MB unpacked: a photograph has fewer."""
MOST_BYTES = 200_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_DATA_URL = re.compile(r"data:image/[a-z0-9+.-]{1,20};base64,", re.IGNORECASE)


def read_picture(source: Path | bytes, alpha: bool = False) -> np.ndarray:
    """The pixels of a picture, of an animation its first frame.

    Args:
        source: a file, or what is in one.
        alpha: with the fourth channel as it is; else transparent parts are laid on white.

    Returns:
        (H, W, 3) uint8, or (H, W, 4).

    Raises:
        Unreadable: why it cannot be read.
    """
    try:
        if isinstance(source, Path) and (size := os.path.getsize(source)) > MOST_BYTES:
            raise Unreadable(f"a picture file of {size / 1e6:,.0f} MB, more than the {MOST_BYTES / 1e6:.0f} that are read")
        with warnings.catch_warnings():
            # Its size is checked below, before any pixel is unpacked; other warnings are of no use to anybody here.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as picture:
                width, height = picture.size
                if not width or not height:
                    raise Unreadable("a picture without pixels")
                if width * height > MOST_PIXELS:
                    raise Unreadable(f"a picture of {width} x {height} pixels, more than {MOST_PIXELS:,}")
                picture.load()
                # Without an orientation the same picture comes back, in a copy.
                pixels = _rgba(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError:
        raise Unreadable("not a PNG, JPEG, WebP or GIF picture") from None
    except Image.DecompressionBombError:
        raise Unreadable(f"a picture of more than {MOST_PIXELS:,} pixels") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError) as error:
        raise Unreadable(f"a damaged picture ({words(error)})") from None
    return pixels if alpha else on_white(pixels)


def in_url(url: str) -> bytes | None:
    """The bytes of a picture that stands in its own address, `data:image/png;base64,...`; None for any other address.

    Raises:
        ValueError: broken base64.
    """
    begin = _DATA_URL.match(url)
    return None if begin is None else base64.b64decode(re.sub(r"\s+", "", url[begin.end() :]), validate=True)


def on_white(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 -> (H, W, 3), transparent parts on white."""
    opaque = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * opaque + 255 * (255 - opaque) + 127) // 255).astype(np.uint8)


def _rgba(picture: Image.Image) -> np.ndarray:
    """(H, W, 4) uint8 of any mode; 16 bits a channel are scaled, where Pillow would cut them off."""
    if picture.mode.startswith(("I", "F")):
        levels = np.asarray(picture).astype(float)
        picture = Image.fromarray(np.clip(levels / 257, 0, 255).round().astype(np.uint8))
    return np.array(picture.convert("RGBA"))


def fitted(pixels: np.ndarray, most_pixels: int, multiple: int = 1) -> np.ndarray:
    """A picture scaled down, in its proportions, to at most so many pixels; a smaller one as it is.

    Args:
        multiple: the sides become multiples of it, up or down, whichever is nearer.
    """
    h, w = height, width = pixels.shape[:2]
    if height * width > most_pixels:
        scale = math.sqrt(most_pixels / (height * width))
        h = min(max(1, round(height * scale)), most_pixels)
        w = max(1, min(round(width * scale), most_pixels // h))
    return resized(pixels, *(max(multiple, round(side / multiple) * multiple) for side in (h, w)))


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture at another size: means of areas where it shrinks, whole pixels where it grows, each side by itself."""
    if pixels.shape[:2] == (height, width):
        return pixels
    picture = Image.fromarray(pixels)
    smaller = min(width, picture.width), min(height, picture.height)
    if smaller != picture.size:
        picture = picture.resize(smaller, Image.Resampling.BOX)
    return np.asarray(picture.resize((width, height), Image.Resampling.NEAREST))


def hole(
    picture: np.ndarray, mask: np.ndarray | None, size: tuple[int, int] | None, most_pixels: int, multiple: int = 1
) -> tuple[Any, Any]:
    """What is kept of a picture that is to be edited, at the size at which that is done.

    Args:
        picture: (H, W, 4) uint8; without a mask its transparent pixels are to be drawn.
        mask: (H, W, 4): as in OpenAI's API its transparent pixels are to be drawn; in one without any, the white ones.
        size: height and width to work at; None: the picture's own, `fitted` by the next two.

    Returns:
        (h, w, 3) uint8 pixels, and (h, w) bool, which of them are to be drawn.

    Raises:
        UserError: the mask has another size; nothing is to be drawn.
    """
    hidden = picture[..., 3] < 128
    if mask is not None:
        if mask.shape != picture.shape:
            raise UserError(
                f"the mask is {mask.shape[0]} x {mask.shape[1]} pixels and the picture {picture.shape[0]} x {picture.shape[1]}; "
                "a mask has the size of its picture."
            )
        hidden = mask[..., 3] < 128 if (mask[..., 3] < 128).any() else mask[..., :3].mean(-1) >= 128
    if not hidden.any():
        raise UserError("nothing is to be drawn: give a mask with the region white or transparent, or ask for a variation.")
    known = np.concatenate([picture[..., :3], np.where(hidden, 0, 255).astype(np.uint8)[..., None]], -1)
    known = sized(known, size, most_pixels, multiple)
    return np.ascontiguousarray(known[..., :3]), known[..., 3] < 255


def sized(pixels: np.ndarray, size: tuple[int, int] | None, most_pixels: int, multiple: int = 1) -> np.ndarray:
    """A picture at a size, height and width, or without one `fitted`."""
    return resized(pixels, *size) if size is not None else fitted(pixels, most_pixels, multiple)


def png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) or (H, W, 4) uint8 as a PNG file."""
    return encoded(pixels, "png")


def encoded(pixels: np.ndarray, kind: str, quality: int = 100) -> bytes:
    """(H, W, 3) or (H, W, 4) uint8 as a file.

    Args:
        kind: `png`, `jpeg` (three channels) or `webp`.
        quality: of 100; a WebP of the highest loses nothing.
    """
    file = io.BytesIO()
    options: dict[str, Any] = {} if kind == "png" else {"quality": quality}
    if kind == "jpeg":
        options["subsampling"] = 0 if quality > 90 else 2
    elif kind == "webp":
        options["lossless"] = quality == 100
    Image.fromarray(pixels).save(file, kind.upper(), **options)
    return file.getvalue()


def captioned(pixels: np.ndarray, caption: str, questions: list[tuple[str, str]], source: str) -> Document:
    """The document of a picture: its caption, the picture, then each question about it with its answer."""
    return with_words(picture_segment(pixels), caption, questions, source)


def with_words(segment: Segment, caption: str, questions: list[tuple[str, str]], source: str) -> Document:
    """The document of any medium: its caption, if it has one, the medium, then each question about it with its answer."""
    asked = [part for q, a in questions for part in (Segment("text", q, learn=False), Segment("text", a))]
    first = [Segment("text", caption)] if caption else []
    return Document((*first, segment, *asked), source)


@dataclass(frozen=True)
class Parts:
    """What `with_words` put together; `signal` is pixels or samples."""

    caption: str
    signal: np.ndarray
    questions: list[tuple[str, str]]


def parts_of(document: Document, is_medium: Callable[[Segment], bool] = is_picture) -> Parts | None:
    """The parts of a captioned picture or other medium; None where a document is none, but text, or laid out by its author."""
    segments = list(document.segments)
    caption = str(segments.pop(0).content) if segments and segments[0].kind == "text" else ""
    if not segments or not is_medium(segments[0]):
        return None
    signal, rest = np.asarray(segments[0].content), segments[1:]
    if len(rest) % 2 or any(s.kind != "text" or s.learn != i % 2 for i, s in enumerate(rest)):
        return None
    texts = [str(s.content) for s in rest]
    return Parts(caption, signal, list(zip(texts[::2], texts[1::2], strict=True)))
