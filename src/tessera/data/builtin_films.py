"""Captioned films that every machine has, drawn here: a thing of one colour that moves, hops, or comes back from a wall.

"a red ball bounces to the left, at night": thing, colour, motion with its direction, and style are all in the caption; where it
begins is not. The physics goes on beyond the last frame as it was before: a thing keeps its speed, hops under gravity, and comes
back from a wall as from a mirror, so that any later stretch of a film is what must follow from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tessera.data.builtin_pictures import COLOURS
from tessera.data.films import captioned_film
from tessera.tokens.document import Document

FILMS = 20_000
"""That `builtin:films` yields where no count is named."""
SIDE, FRAMES, PER_SECOND = 32, 9, 8.0
SIZE = 12
ROOM = SIDE - SIZE
"""Where the upper left corner of a thing may be: 0 to this."""
THINGS = ("ball", "square", "triangle", "cross")
WHITE, DARK = (255, 255, 255), (16, 20, 40)
STYLES = {"": (WHITE, True), "sketched": (WHITE, False), "at night": (DARK, True), "in neon": (DARK, False)}
"""Ground, and whether things are filled or only outlined; of each style, the words behind the comma."""
MOVES = {"moves": ("to the left", "to the right", "up", "down"), "bounces": ("to the left", "to the right"),
         "bounces off": ("the left wall", "the right wall")}  # fmt: skip
MOTIONS = tuple(f"{verb} {where}" for verb, places in MOVES.items() for where in places)
SPEED = 2
"""Pixels from frame to frame. All places are multiples of it: with two frames and four pixels to an id, what moves comes to lie
in its patches as before, which a small quantizer learns in minutes (docs/LOG.md, 2026-11-29, "Films")."""
HOP_FRAMES, HOP_HEIGHT = 8, 12
"""Of one hop from the ground to the ground."""
_LINE = 2
"""Pixels of an outline."""


@dataclass(frozen=True)
class Scene:
    """All that decides a film.

    Args:
        left, top: of the thing in the first frame; `top` counts for nothing where it hops.
        phase: of the hop in the first frame, in frames.
    """

    colour: str
    thing: str
    motion: str
    style: str
    left: int
    top: int
    phase: int = 0

    @property
    def caption(self) -> str:
        """What is said of it."""
        return f"a {self.colour} {self.thing} {self.motion}" + (f", {self.style}" if self.style else "")

    def place(self, frame: int) -> tuple[int, int]:
        """(top, left) of the thing in a frame, the first being 0; any later one follows."""
        along = SPEED * frame
        if self.motion.endswith((" up", " down")):
            return _mirrored(self.top + (along if self.motion.endswith("down") else -along)), self.left
        left = _mirrored(self.left + (along if "right" in self.motion else -along))
        if not self.motion.startswith("bounces to"):
            return self.top, left
        part = (self.phase + frame) % HOP_FRAMES / HOP_FRAMES
        return ROOM - SPEED * round(HOP_HEIGHT / SPEED * 4 * part * (1 - part)), left

    def film(self, frames: int = FRAMES, first: int = 0) -> np.ndarray:
        """(T, 32, 32, 3) uint8 from frame `first` on."""
        ground, filled = STYLES[self.style]
        film = np.empty((frames, SIDE, SIDE, 3), np.uint8)
        film[:] = ground
        shape = outline(self.thing, filled)
        for number, picture in enumerate(film):
            top, left = self.place(first + number)
            picture[top : top + SIZE, left : left + SIZE][shape] = COLOURS[self.colour]
        return film


def scene(rng: np.random.Generator, frames: int = FRAMES) -> Scene:
    """Any one whose film of so many frames shows what its caption says: only what bounces off a wall reaches one."""
    colour, thing, motion, style = (
        options[int(rng.integers(len(options)))] for options in (tuple(COLOURS), THINGS, MOTIONS, tuple(STYLES))
    )
    steps = ROOM // SPEED
    across = SPEED * int(rng.integers(steps + 1))
    if "off" in motion:
        # The wall is met between the third frame and the third last.
        near = SPEED * int(rng.integers(2, frames - 3))
        left = near if "left" in motion else ROOM - near
        return Scene(colour, thing, motion, style, left, across)
    along = SPEED * int(rng.integers(min(frames - 1, steps), steps + 1))
    begin = along if motion.endswith(("left", "up")) else ROOM - along
    if motion.endswith((" up", " down")):
        return Scene(colour, thing, motion, style, across, begin)
    phase = int(rng.integers(HOP_FRAMES)) if motion.startswith("bounces") else 0
    return Scene(colour, thing, motion, style, begin, across, phase)


def films(count: int, seed: int = 0) -> Iterator[Document]:
    """`count` films of 9 frames of 32 x 32; one of another seed are others."""
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    for number in range(count):
        drawn = scene(rng)
        yield captioned_film(drawn.film(), drawn.caption, PER_SECOND, f"films[{number}]")


def outline(thing: str, filled: bool) -> np.ndarray:
    """(SIZE, SIZE) bool: the pixels of a thing."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    if thing == "ball":
        inside = x**2 + y**2 <= (SIZE / 2) ** 2
    elif thing == "square":
        inside = np.ones((SIZE, SIZE), bool)
    elif thing == "triangle":
        inside = 2 * np.abs(x) <= y + SIZE / 2
    else:
        inside = (np.abs(x) < SIZE / 4) | (np.abs(y) < SIZE / 4)
    core = inside
    for _ in range(0 if filled else _LINE):
        around = np.pad(core, 1)
        core = core & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return inside if filled else inside & ~core


def _mirrored(place: int) -> int:
    """A place beyond the walls, as it is after coming back from them."""
    place %= 2 * ROOM
    return min(place, 2 * ROOM - place)
