"""Film files -> frames, frames -> film files, and both ends of a captioned film's document.

`read_film` opens what a person or the network sent: GIF, WebP and PNG animations by Pillow; MP4, WebM and MOV by PyAV, which is
an extra (`pip install "tessera[film]"`). What is broken, empty or too large is refused in one sentence.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from tessera.data.pictures import MOST_BYTES, Parts, fitted, on_white, parts_of, with_words
from tessera.data.reasons import Unreadable, words
from tessera.errors import UserError
from tessera.tokens.document import Document
from tessera.tokens.films import film_segment, is_film

ANIMATED = frozenset({"gif", "webp", "png", "apng"})
"""What Pillow reads, all of its frames."""
ENCODED = frozenset({"mp4", "webm", "mov", "m4v", "mkv"})
"""What PyAV reads."""
ENDINGS = ANIMATED | ENCODED
WRITTEN = ("gif", "mp4", "webm")
MOST_FRAMES_READ = 4096
MOST_PIXELS_READ = 1 << 30
"""Over all frames of a file, as they are kept."""
MOST_PIXELS_DECODED = 1 << 33
"""Over all frames of a file that are shrunk one by one: more than MOST_FRAMES_READ of 1920 x 1080."""
Shrink = Callable[[np.ndarray], np.ndarray]
"""What is done to each frame, (H, W, 3) uint8, as it is decoded."""
NO_READER = 'films other than GIF need PyAV; install it with `pip install "tessera[film]"`'
_CHANGES = "a film whose frames change their size"
_USUAL_PER_SECOND = 10.0
"""Of an animation that does not say how long its frames stay: what browsers take."""
_CODECS = {"mp4": "libx264", "webm": "libvpx-vp9"}


def read_film(
    source: Path | bytes, most_frames: int = MOST_FRAMES_READ, shrink: Shrink | None = None
) -> tuple[np.ndarray, float]:
    """The frames of a film, (T, H, W, 3) uint8, upright, transparent parts on white, and how many there are in a second.

    Args:
        source: a file, whatever it is called, or what is in one.
        most_frames: what comes after so many is not read.
        shrink: brings a frame to the size that is wanted, so that no more than one is ever kept as large as it came.

    Raises:
        Unreadable: why it cannot be read.
    """
    if isinstance(source, Path) and (size := source.stat().st_size) > MOST_BYTES:
        raise Unreadable(f"a film file of {size / 1e6:,.0f} MB, more than the {MOST_BYTES / 1e6:.0f} that are read")
    with open(source, "rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        frames, per_second = (_encoded if _is_encoded(file) else _animated)(file, most_frames, shrink)
    if not frames:
        raise Unreadable("a film without frames")
    return np.stack(frames), per_second


def _is_encoded(file: BinaryIO) -> bool:
    """By what is in the file, whatever it is called: ISO media (`ftyp` behind a length) and Matroska."""
    head = file.read(12)
    file.seek(0)
    return head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free") or head[:4] == b"\x1a\x45\xdf\xa3"


def _animated(file: BinaryIO, most_frames: int, shrink: Shrink | None) -> tuple[list[np.ndarray], float]:
    frames: list[np.ndarray] = []
    milliseconds: list[float] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=("GIF", "WEBP", "PNG")) as film:
                _refuse_large(*film.size, min(getattr(film, "n_frames", 1), most_frames), shrink)
                size = film.size
                for frame in ImageSequence.Iterator(film):
                    # A damaged GIF may have a frame that is larger than the film.
                    if frame.size != size:
                        raise Unreadable(_CHANGES)
                    frames.append(_kept(on_white(np.array(frame.convert("RGBA"))), shrink, len(frames)))
                    milliseconds.append(float(frame.info.get("duration") or 0))
                    if len(frames) == most_frames:
                        break
    except UnidentifiedImageError:
        raise Unreadable("not a GIF, WebP, PNG, MP4, WebM or MOV film") from None
    except Image.DecompressionBombError:
        raise Unreadable("a film of more pixels than are read") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError) as error:
        raise Unreadable(f"a damaged film ({words(error)})") from None
    shown = [m if m > 0 else 1000 / _USUAL_PER_SECOND for m in milliseconds]
    if not shown:
        return [], 0.0
    # A frame may stay as long as several: what writes such files puts frames that are equal together.
    least, ends = min(shown), np.cumsum(shown)
    count = min(round(ends[-1] / least), most_frames)
    _refuse_large(frames[0].shape[1], frames[0].shape[0], count)
    timeline = np.searchsorted(ends, (np.arange(count) + 0.5) * least, side="right")
    # Half of a moment more than there is counts as one.
    return [frames[min(at, len(frames) - 1)] for at in timeline], round(1000 / least, 3)


def _encoded(file: BinaryIO, most_frames: int, shrink: Shrink | None) -> tuple[list[np.ndarray], float]:
    av = library()
    if av is None:
        raise Unreadable(NO_READER)
    frames: list[np.ndarray] = []
    shapes: set[tuple[int, ...]] = set()
    try:
        with av.open(file) as container:
            if not container.streams.video:
                raise Unreadable("a file without a film in it")
            stream = container.streams.video[0]
            times: list[float | None] = []
            for frame in container.decode(stream):
                _refuse_large(frame.width, frame.height, len(frames) + 1, shrink)
                # A telephone films as it is held and writes down how it was.
                upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                shapes.add(upright.shape)
                frames.append(_kept(upright, shrink, len(frames)))
                times.append(frame.time)
                if len(frames) == most_frames:
                    break
            rate = float(stream.average_rate or stream.guessed_rate or 0)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise Unreadable(f"a damaged film ({words(error)})") from None
    if len(shapes) > 1:
        raise Unreadable(_CHANGES)
    return _even(frames, [time for time in times if time is not None], rate if rate > 0 else _USUAL_PER_SECOND)


def _even(frames: list[np.ndarray], times: list[float], per_second: float) -> tuple[list[np.ndarray], float]:
    """As many frames, one as long after the other, of those that came at any times, as screens and telephones film.

    Args:
        times: in seconds, of each frame; fewer: not all have one.
        per_second: as the file has it.
    """
    count = len(frames)
    begins = np.maximum.accumulate(times) - times[0] if len(times) == count > 1 else np.arange(count) / per_second
    if (np.abs(begins * per_second - np.arange(count)) < 0.5).all() or not begins[-1]:
        return frames, round(per_second, 3)
    mean = (count - 1) / float(begins[-1])
    timeline = np.searchsorted(begins, (np.arange(count) + 0.5) / mean, side="right") - 1
    return [frames[at] for at in timeline], round(mean, 3)


def library() -> Any:
    """PyAV, which reads sound too; None where it is not installed."""
    try:
        import av
    except ImportError:
        return None
    return av


def _kept(frame: np.ndarray, shrink: Shrink | None, before: int) -> np.ndarray:
    """What is kept of a frame that comes behind so many."""
    if shrink is not None:
        frame = shrink(frame)
        _refuse_large(frame.shape[1], frame.shape[0], before + 1)
    return frame


def _refuse_large(width: int, height: int, frames: int, shrink: Shrink | None = None) -> None:
    """Raises Unreadable where frames of this size are too many to be kept or, if they are shrunk, to be decoded."""
    if not width or not height:
        raise Unreadable("a film without pixels")
    if width * height * frames > (MOST_PIXELS_READ if shrink is None else MOST_PIXELS_DECODED):
        raise Unreadable(f"a film of {frames} frames of {width} x {height} pixels, more than are read")


@dataclass(frozen=True)
class Loop:
    """A part of a film that can be shown again and again.

    Args:
        first, last: its frames, the last one not counted in.
        seam: how far the frame behind its last is from its first, root mean square in levels of 255.
        step: the same of a frame and the next, on average.
    """

    first: int
    last: int
    seam: float
    step: float


def find_loop(frames: np.ndarray, least: int, first: int | None = None) -> Loop:
    """The part of a film that best ends where it begins: what would come next is nearest to how it begins, as is the frame after
    that, so that things also move on as they did (Schödl et al. 2000, "Video textures"). Of parts that are equal, the longest.

    Args:
        frames: (T, H, W, 3) uint8, T at least `least` + 2.
        least: frames of the part.
        first: where it begins; None: anywhere.
    """
    flat = frames.reshape(len(frames), -1).astype(np.float64)
    squares = (flat**2).sum(1)
    apart = np.maximum(squares[:, None] + squares[None] - 2 * flat @ flat.T, 0.0) / flat.shape[1]
    # Rounded, so that of equal ones the order decides and not the last bit.
    cost = np.round(apart[:-1, :-1] + apart[1:, 1:], 6)
    begins = range(len(cost)) if first is None else [first]
    _, _, begin, end = min((cost[i, j], i - j, i, j) for i in begins for j in range(i + least, len(cost)))
    steps = np.sqrt(np.diagonal(apart, 1))
    return Loop(begin, end, float(np.sqrt(apart[begin, end])), float(steps.mean()))


def film_file(frames: np.ndarray, per_second: float, ending: str) -> bytes:
    """A film as a file.

    Args:
        frames: (T, H, W, 3) uint8.
        ending: one of WRITTEN. A GIF has the very frames as long as they have 256 colours or fewer each.

    Raises:
        UserError: PyAV is needed and not installed, or cannot write a film of this size.
    """
    file = io.BytesIO()
    if ending == "gif":
        first, *rest = (Image.fromarray(f).quantize(256, dither=Image.Dither.NONE) for f in frames)
        # In hundredths of a second, as the format counts.
        duration = max(20, round(100 / per_second) * 10)
        first.save(file, "GIF", save_all=True, append_images=rest, duration=duration, loop=0, optimize=False)
        return file.getvalue()
    if (av := library()) is None:
        raise UserError(f"{NO_READER}, or give a name that ends in .gif.")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise UserError(f".{ending} needs even sides, not {height} x {width}; give a name that ends in .gif.")
    try:
        with av.open(file, "w", format=ending) as container:
            stream = container.add_stream(_CODECS[ending], rate=Fraction(per_second).limit_denominator(1000))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
    except av.error.FFmpegError as error:
        raise UserError(f"a .{ending} file cannot be written here ({words(error)}); give a name that ends in .gif.") from None
    return file.getvalue()


def resampled(frames: np.ndarray, per_second: float, wanted: float) -> np.ndarray:
    """A film at another rate: at each new moment the frame that is shown then. Of one whose frames stay so long that there would
    be more than MOST_FRAMES_READ, what comes after so many is left out: a file of a few bytes may claim to last for years."""
    if not per_second or per_second == wanted:
        return frames
    count = min(max(1, round(len(frames) * wanted / per_second)), max(MOST_FRAMES_READ, len(frames)))
    moments = np.floor((np.arange(count) + 0.5) * per_second / wanted).astype(int)
    return frames[np.minimum(moments, len(frames) - 1)]


def fitted_film(frames: np.ndarray, most_pixels: int, multiple: int) -> np.ndarray:
    """A film whose frames are `fitted`."""
    if fitted(frames[0], most_pixels, multiple).shape == frames.shape[1:]:
        return frames
    return np.stack([fitted(frame, most_pixels, multiple) for frame in frames])


def cut_film(frames: np.ndarray, most_frames: int, time_stride: int) -> Iterator[np.ndarray]:
    """Films of k x `time_stride` + 1 frames, as many as there are to `most_frames`; of a long one several, end to end."""
    longest = (most_frames - 1) // time_stride * time_stride + 1
    for start in range(0, max(1, len(frames) - longest + 1), longest):
        piece = frames[start : start + longest]
        yield piece[: (len(piece) - 1) // time_stride * time_stride + 1]


def captioned_film(
    film: np.ndarray, caption: str, per_second: float, source: str, questions: Sequence[tuple[str, str]] = ()
) -> Document:
    """The document of a film: its caption, if it has one, the film, then each question about it with its answer."""
    return with_words(film_segment(film, per_second), caption, list(questions), source)


def film_parts(document: Document) -> tuple[Parts, float] | None:
    """The parts and the rate of what `captioned_film` put together; None where a document is none such."""
    parts = parts_of(document, is_film)
    return None if parts is None else (parts, next(s.per_second for s in document.segments if is_film(s)))
