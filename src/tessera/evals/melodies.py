"""Reads back from samples which notes a melody has, by the spectrum of each of its notes.

It knows the names of the notes and the two tempi, and nothing of how a sound came about: how many notes there are and how long
each is follow from the length of the sound, a note is the strongest tone in the octave of the scale.
"""

from __future__ import annotations

import numpy as np

from tessera.data.builtin_sounds import NOTES, PER_SECOND, TEMPI, melody
from tessera.engine.engine import Engine
from tessera.engine.sampling import SamplingParams
from tessera.engine.sounds import TEMPERATURE, SoundWish, listen, make_sounds, sound_quantizer_of
from tessera.errors import UserError
from tessera.evals.score import Score, share

_MOST_NOTES = 4
_OFF = 0.5
"""Semitones from the nearest note beyond which a tone is none of the scale."""
_QUIET = 0.05
"""Of the loudest note's strength: what is fainter is silence."""
_EDGE = 0.12
"""Part of a note left out at both of its ends, where the next one may have begun."""
_WIDE = 2.0
"""Of the window's main lobe: half its width, in units of one over its length."""
_LATE = 0.06
"""Seconds by which a melody may be longer or shorter than its notes."""
_ANOTHER = 0.01
"""What one more note has to make purer; less than the seconds by which melodies of one note more differ."""
UNKNOWN = "?"


def melodies(engine: Engine, count: int, seed: int) -> list[Score]:
    """Melodies played by captions, of which all notes have to be right; and played ones that are written down rightly.

    Raises:
        UserError: the model knows no sound, or has another rate than the checker reads.
    """
    if (rate := round(sound_quantizer_of(engine).per_second)) != PER_SECOND:
        raise UserError(f"its sounds have {rate} samples a second, and the checker reads {PER_SECOND}.")
    rng = np.random.Generator(np.random.PCG64([78, seed]))
    wanted = [melody(rng) for _ in range(count)]
    played = make_sounds(engine, [SoundWish(m.caption) for m in wanted], SamplingParams(1, TEMPERATURE, seed=seed))
    written = listen(engine, [m.sound(rng) for m in wanted], "", SamplingParams(max_tokens=16, temperature=0))
    chance = float(np.mean([1 / (_MOST_NOTES * len(NOTES) ** len(m.notes)) for m in wanted]))
    found = {
        "played as the caption says": [heard(s.samples, rate) == m.notes for s, m in zip(played, wanted, strict=True)],
        "written down rightly": [c.text.strip() == m.words for c, m in zip(written, wanted, strict=True)],
    }
    return [share("melodies", name, marks, chance, {"seed": seed, "temperature": TEMPERATURE}) for name, marks in found.items()]


def heard(samples: np.ndarray, per_second: int) -> tuple[str, ...]:
    """The notes of a melody.

    Args:
        samples: (T,) int16 or float.

    Returns:
        names of notes, `?` for a tone that is none and for silence; nothing where it lasts as long as no melody does.
    """
    seconds = len(samples) / per_second
    best: tuple[float, tuple[str, ...]] = (np.inf, ())
    for count in range(1, _MOST_NOTES + 1):
        for tempo in TEMPI.values():
            # A step too many or too few is still the same melody: the purer notes decide, then the fewer ones.
            off = abs(seconds - count * tempo)
            if off <= _LATE and len(samples):
                pure, notes = _read(np.array_split(np.asarray(samples, np.float64), count), per_second)
                best = min(best, (1 - pure + off + _ANOTHER * count, notes))
    return best[1]


def _read(parts: list[np.ndarray], per_second: int) -> tuple[float, tuple[str, ...]]:
    """How pure the tones of the parts are, 0 to 1, and what notes they are."""
    tones = [_tone(part, per_second) for part in parts]
    loudest = max(strength for _, strength, _ in tones)
    notes = (_nearest(hertz) if strength > _QUIET * loudest > 0 else UNKNOWN for hertz, strength, _ in tones)
    return float(np.mean([pure for _, _, pure in tones])), tuple(notes)


def _tone(part: np.ndarray, per_second: int) -> tuple[float, float, float]:
    """Hertz and strength of the strongest tone in the octave of the scale, which an overtone never lies in, and its share."""
    edge = round(len(part) * _EDGE)
    inner = part[edge : len(part) - edge]
    size = 1 << 15
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner)), size))
    hertz = np.arange(len(spectrum)) * per_second / size
    semitone = 2 ** (1 / 12)
    octave = np.where((hertz > min(NOTES.values()) / semitone) & (hertz < max(NOTES.values()) * semitone), spectrum, 0.0)
    at = int(octave.argmax())
    near = np.abs(hertz - hertz[at]) < _WIDE / (len(inner) / per_second)
    power = float((octave**2).sum())
    return float(hertz[at]), float(octave[at]), float((octave[near] ** 2).sum()) / power if power else 0.0


def _nearest(hertz: float) -> str:
    """The note of a tone."""
    off = {name: abs(12 * np.log2(hertz / note)) for name, note in NOTES.items()}
    name = min(off, key=lambda name: off[name])
    return name if off[name] <= _OFF else UNKNOWN
