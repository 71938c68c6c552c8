"""Melodies that every machine has, played here: one to four notes in words, on one of four instruments, slowly or quickly.

"C E G, played on a flute, slowly": notes, instrument and tempo are in the caption, or the notes alone; where the tuning lies
within a small range, and how loudly each note is struck, are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tessera.data.sounds import captioned_sound, fitted_sound
from tessera.tokens.document import Document
from tessera.tokens.quantizer import FULL_SCALE
from tessera.tokens.sounds import QUESTION

MELODIES = 3_000
"""That `builtin:melodies` yields where no count is named."""
PER_SECOND = 8000
NOTES = {"C": 523.25, "D": 587.33, "E": 659.26, "F": 698.46, "G": 783.99, "A": 880.0, "B": 987.77}
"""Hertz, the octave above middle C's."""
INSTRUMENTS = {
    "flute": (1.0, 0.15, 0.05), "organ": (1.0, 0.7, 0.5, 0.35), "bell": (1.0, 0.0, 0.6), "string": (1.0, 0.6, 0.4, 0.3),
}  # fmt: skip
"""Strength of each overtone, the first being the tone itself."""
_FADING = {"bell": 8.0, "string": 4.0}
"""Of struck ones: by how many e-foldings a note fades in a second."""
TEMPI = {"slowly": 0.28, "quickly": 0.16}
"""Seconds from note to note."""
_MOST_NOTES = 4
_SAID = (0.6, 0.15, 0.25)
"""Shares of the captions that say all, leave the tempo out, or give the notes alone."""
QUESTION_INSTRUMENT = "What is it played on?"


@dataclass(frozen=True)
class Melody:
    """All that decides a recording but for how it is struck."""

    notes: tuple[str, ...]
    instrument: str
    tempo: str

    @property
    def words(self) -> str:
        """Its notes."""
        return " ".join(self.notes)

    @property
    def caption(self) -> str:
        """What is said of it."""
        return f"{self.words}, played on a {self.instrument}, {self.tempo}"

    @property
    def said(self) -> tuple[str, str, str]:
        """What may be said of it: all, less, and its notes alone."""
        return self.caption, f"{self.words}, played on a {self.instrument}", self.words

    def sound(self, rng: np.random.Generator) -> np.ndarray:
        """(T,) int16 at `PER_SECOND`."""
        seconds = TEMPI[self.tempo]
        time = np.arange(round(seconds * PER_SECOND)) / PER_SECOND
        tuning = 2 ** (rng.uniform(-0.2, 0.2) / 12)
        played = [self._note(NOTES[note] * tuning, time, rng) * rng.uniform(0.7, 1.0) for note in self.notes]
        return fitted_sound(np.concatenate(played) * FULL_SCALE, PER_SECOND, PER_SECOND)

    def _note(self, hertz: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        waves = [
            strength * np.sin(2 * np.pi * hertz * (number + 1) * time + rng.uniform(0, 2 * np.pi))
            for number, strength in enumerate(INSTRUMENTS[self.instrument])
            if hertz * (number + 1) < PER_SECOND / 2
        ]
        # Struck at once, blown within 20 ms; every note lets go within the last 20.
        rise = np.minimum(1, time / (0.004 if self.instrument in _FADING else 0.02))
        fall = np.minimum(1, (time[-1] - time) / 0.02)
        return np.sum(waves, 0) * rise * fall * np.exp(-_FADING.get(self.instrument, 0.0) * time)


def melody(rng: np.random.Generator) -> Melody:
    """Any one."""
    count = int(rng.integers(1, _MOST_NOTES + 1))
    notes, instrument, tempo = (
        [options[int(i)] for i in rng.integers(len(options), size=size)]
        for options, size in ((tuple(NOTES), count), (tuple(INSTRUMENTS), 1), (tuple(TEMPI), 1))
    )
    return Melody(tuple(notes), instrument[0], tempo[0])


def melodies(count: int, seed: int = 0) -> Iterator[Document]:
    """`count` recordings; those of another seed are others."""
    rng = np.random.Generator(np.random.PCG64([seed, 2]))
    for number in range(count):
        played = melody(rng)
        asked = [(QUESTION, played.words), (QUESTION_INSTRUMENT, played.instrument)]
        sound, said = played.sound(rng), played.said[int(rng.choice(len(played.said), p=_SAID))]
        yield captioned_sound(sound, said, asked, PER_SECOND, f"melodies[{number}]")
