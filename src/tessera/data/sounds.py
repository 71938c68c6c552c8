"""Sound files -> samples, samples -> sound files, and both ends of a captioned recording's document.

`read_sound` opens what a person or the network sent: WAV by SciPy; FLAC, OGG, MP3, M4A and compressed WAV by PyAV, an extra
(`pip install "tessera[sound]"`). What is broken, empty, silent or too long is refused in one sentence.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tessera.data.films import library
from tessera.data.pictures import MOST_BYTES, Parts, parts_of, with_words
from tessera.data.reasons import Unreadable, words
from tessera.errors import UserError
from tessera.tokens.document import Document
from tessera.tokens.quantizer import FULL_SCALE
from tessera.tokens.sounds import is_sound, sound_segment

ENDINGS = frozenset({"wav", "flac", "ogg", "oga", "opus", "mp3", "m4a"})
WRITTEN = ("wav", "flac", "ogg", "mp3")
MOST_SAMPLES = 1 << 26
"""Of a file, all channels: 23 minutes at 48 kHz."""
NO_READER = 'sound other than plain WAV needs PyAV; install it with `pip install "tessera[sound]"`'
RATES = range(1000, 384_001)
"""Samples in a second that are believed: a header may say anything, and another rate takes memory by what it says."""
LOUDEST = 0.6
"""Of full scale: what the loudest sample of every recording is brought to."""
SILENT = 1e-4
"""Of full scale, 80 dB below: nothing that is heard."""
_CODECS = {"flac": "flac", "ogg": "libopus", "mp3": "libmp3lame"}
_PLAIN = (1, 3)
"""Formats of a WAV file that SciPy reads: whole numbers and floats."""
_EXTENSIBLE = 0xFFFE
"""The format then stands further behind."""
_NO_LENGTH = 0x7FFF_0000
"""What programs write as the length of a WAV file that they pipe is as large or larger, and the file is not (MOST_BYTES)."""
_MARKS = (b"fLaC", b"OggS", b"ID3")
_CONTAINERS = "flac,ogg,mp3,mov,matroska,aac,aiff,w64,wav"
"""What a recording may come in. FFmpeg knows lists of other files too, which it would open on this machine."""


def read_sound(source: Path | bytes) -> tuple[np.ndarray, int]:
    """The samples of a file, all channels mixed, (T,) float32 in -1 ... 1, and how many there are in a second.

    Args:
        source: a file, whatever it is called, or what is in one.

    Raises:
        Unreadable: why it cannot be read.
    """
    if isinstance(source, Path) and (size := source.stat().st_size) > MOST_BYTES:
        raise Unreadable(f"a sound file of {size / 1e6:,.0f} MB, more than the {MOST_BYTES / 1e6:.0f} that are read")
    data = source if isinstance(source, bytes) else source.read_bytes()
    samples, rate = _wav(data) if data[:4] == b"RIFF" else _encoded(data)
    if not len(samples):
        raise Unreadable("a recording without samples")
    if rate not in RATES:
        raise Unreadable(f"a recording of {rate:,} samples in a second; {RATES.start:,} to {RATES.stop - 1:,} are read")
    if not np.isfinite(samples).all():
        raise Unreadable("a recording with samples that are no numbers")
    if np.abs(samples).max() < SILENT:
        raise Unreadable("a silent recording")
    return samples, rate


def _wav(data: bytes) -> tuple[np.ndarray, int]:
    from scipy.io import wavfile

    kind, data = _header(data)
    if kind not in _PLAIN:
        return _encoded(data)
    try:
        with warnings.catch_warnings():
            # Chunks that it does not know are no harm, samples that are missing are.
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message="Reached EOF prematurely")
            rate, samples = wavfile.read(io.BytesIO(data))
    except (ValueError, OSError, struct.error, EOFError, ArithmeticError, TypeError, LookupError, NameError, Warning):
        raise Unreadable("a damaged WAV recording") from None
    if samples.size > MOST_SAMPLES:
        raise Unreadable(f"a recording of {samples.size:,} samples, more than are read")
    if samples.dtype == np.uint8:
        samples = samples.astype(np.float32) / 128 - 1
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / float(np.iinfo(samples.dtype).max)
    mixed = samples.astype(np.float32)
    return mixed.mean(1) if mixed.ndim == 2 and mixed.shape[1] else mixed.ravel(), int(rate)


def _header(data: bytes) -> tuple[int, bytes]:
    """The format of a WAV file and the file with the length of its samples, where a program that piped it did not know that."""
    kind, at = _PLAIN[0], 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"fmt ":
            kind = int.from_bytes(data[at + 8 : at + 10], "little")
            if kind == _EXTENSIBLE:
                kind = int.from_bytes(data[at + 32 : at + 34], "little")
        if name == b"data":
            if size >= _NO_LENGTH:
                rest = len(data) - at - 8
                whole = data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:at]
                data = whole + b"data" + rest.to_bytes(4, "little") + data[at + 8 :]
            break
        at += 8 + size + size % 2
    return kind, data


def _encoded(data: bytes) -> tuple[np.ndarray, int]:
    compressed = data[:4] == b"RIFF"
    if (av := library()) is None:
        if compressed:
            raise Unreadable(f"a WAV recording that is compressed; {NO_READER}")
        known = data[:4] in _MARKS or data[:3] in _MARKS or data[:1] == b"\xff" or data[4:8] == b"ftyp"
        raise Unreadable(NO_READER if known else "not a WAV, FLAC, OGG or MP3 recording")
    parts: list[np.ndarray] = []
    count = 0
    try:
        with av.open(io.BytesIO(data), options={"format_whitelist": _CONTAINERS}) as container:
            if not container.streams.audio:
                raise Unreadable("a file without sound in it")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise ValueError("of a kind that nobody knows")
            rate = int(stream.rate or 0)
            mono = av.AudioResampler(format="flt", layout="mono", rate=rate)
            for frame in (piece for decoded in container.decode(stream) for piece in mono.resample(decoded)):
                parts.append(frame.to_ndarray().ravel())
                count += len(parts[-1])
                if count > MOST_SAMPLES:
                    raise Unreadable(f"a recording of more than {MOST_SAMPLES:,} samples")
    except (av.error.FFmpegError, ValueError, OSError):
        if compressed:
            raise Unreadable("a WAV recording that is damaged, or compressed in a way that is not read") from None
        known = data[:4] in _MARKS or data[:3] in _MARKS
        raise Unreadable("a damaged recording" if known else "not a WAV, FLAC, OGG or MP3 recording") from None
    return np.concatenate(parts) if parts else np.empty(0, np.float32), rate


def sound_file(samples: np.ndarray, per_second: int, ending: str) -> bytes:
    """Sound as a file.

    Args:
        samples: (T,) int16.
        ending: one of WRITTEN. WAV and FLAC have the very samples.

    Raises:
        UserError: PyAV is needed and not installed, or cannot write such a file here.
    """
    file = io.BytesIO()
    if ending == "wav":
        with wave.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(per_second)
            out.writeframes(samples.astype("<i2").tobytes())
        return file.getvalue()
    if (av := library()) is None:
        raise UserError(f"{NO_READER}, or give a name that ends in .wav.")
    try:
        with av.open(file, "w", format=ending) as container:
            stream = container.add_stream(_CODECS[ending], rate=per_second, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = per_second
            # Codecs want other kinds of samples, and as many of them at once as they name.
            fitted = av.AudioResampler(stream.format.name, "mono", per_second, frame_size=stream.codec_context.frame_size or None)
            for piece in (*fitted.resample(frame), *fitted.resample(None)):
                container.mux(stream.encode(piece))
            container.mux(stream.encode())
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(f"a .{ending} file cannot be written here ({words(error)}); give a name that ends in .wav.") from None
    return file.getvalue()


def fitted_sound(samples: np.ndarray, per_second: float, wanted: int) -> np.ndarray:
    """A recording at another rate, (T,) int16, as loud as all others; without the tones that the new rate cannot hold."""
    at_rate = resampled(samples.astype(np.float64), per_second, wanted)
    peak = float(np.abs(at_rate).max(initial=0.0))
    return np.round(at_rate * (LOUDEST * (FULL_SCALE - 1) / peak if peak else 0.0)).astype(np.int16)


def resampled(samples: np.ndarray, per_second: float, wanted: float) -> np.ndarray:
    """(T,) floats at another rate, by a polyphase filter."""
    if per_second == wanted:
        return samples
    from scipy.signal import resample_poly

    divisor = math.gcd(round(per_second), round(wanted))
    return np.asarray(resample_poly(samples, round(wanted) // divisor, round(per_second) // divisor))


def cut_sound(samples: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Stretches of `most` samples, end to end; what is left behind the last one is dropped unless it is all there is."""
    for start in range(0, max(1, len(samples) - most + 1), most):
        yield samples[start : start + most]


def captioned_sound(
    samples: np.ndarray, caption: str, questions: list[tuple[str, str]], per_second: float, source: str
) -> Document:
    """The document of a recording: its caption, if it has one, the sound, then each question about it with its answer."""
    return with_words(sound_segment(samples, per_second), caption, questions, source)


def sound_parts(document: Document) -> tuple[Parts, float] | None:
    """The parts and the rate of what `captioned_sound` put together; None where a document is none such."""
    parts = parts_of(document, is_sound)
    return None if parts is None else (parts, next(s.per_second for s in document.segments if is_sound(s)))
