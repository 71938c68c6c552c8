"""Reads back from frames what a drawn film shows: thing, colour, motion, style, and where the thing is in each frame.

It knows the forms and colours of `data.builtin_films` and nothing of how a film came about: the ground is the commonest tone,
the colour the one in whose direction most pixels lie from it, the form the template that explains most of what is left, wherever
it lies best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tessera.data.builtin_films import DARK, MOTIONS, ROOM, SIDE, SIZE, STYLES, THINGS, WHITE, Scene, outline, scene
from tessera.data.builtin_pictures import COLOURS
from tessera.engine.engine import Engine
from tessera.engine.films import TEMPERATURE, FilmWish, make_films, quantizer_of, tell
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.evals.score import Score, share

_HOPS, _STILL = 5, 2
"""Pixels that a thing that hops goes up and down at least, and one that goes straight at most sideways."""
_FAINT = 60
"""Sum over red, green and blue of a difference from the ground that may be noise."""
_TURNED = 2
"""Pixels that a thing has come back from a wall at least."""


@dataclass(frozen=True)
class Seen:
    """What a film shows.

    Args:
        motion: as in `builtin_films.MOTIONS`; empty where it is none of them.
        places: (T, 2) top and left of the thing.
    """

    colour: str
    thing: str
    motion: str
    style: str
    places: np.ndarray

    def agrees(self, scene: Scene) -> dict[str, bool]:
        """What is as a scene has it."""
        return {part: getattr(self, part) == getattr(scene, part) for part in ("thing", "colour", "motion", "style")}


def films(engine: Engine, count: int, seed: int) -> list[Score]:
    """Films made by captions that no source need hold: how many show all that was said, and each part of it; and how many drawn
    films are told in the words of their caption.

    Raises:
        UserError: the model knows no films, or makes them of another size than the checker reads.
    """
    if (shape := quantizer_of(engine).shape[1:]) != (SIDE, SIDE):
        raise UserError(f"its films are {shape[0]} x {shape[1]}, and the checker reads {SIDE} x {SIDE}.")
    rng = np.random.Generator(np.random.PCG64([77, seed]))
    scenes = [scene(rng) for _ in range(count)]
    made = make_films(engine, [FilmWish(s.caption) for s in scenes], SamplingParams(1, TEMPERATURE, seed=seed))
    marks = [see(film.frames).agrees(s) for film, s in zip(made, scenes, strict=True)]
    told = tell(engine, [s.film() for s in scenes], "", SamplingParams(max_tokens=32, temperature=0))
    chances = {"thing": len(THINGS), "colour": len(COLOURS), "motion": len(MOTIONS), "style": len(STYLES)}
    guess = 1 / math.prod(chances.values())
    found = {"all as the caption says": ([all(m.values()) for m in marks], guess)}
    found |= {f"{part} as the caption says": ([m[part] for m in marks], 1 / ways) for part, ways in chances.items()}
    found["told rightly"] = ([c.text.strip() == s.caption for c, s in zip(told, scenes, strict=True)], guess)
    return [
        share("films", name, each, chance, {"seed": seed, "temperature": TEMPERATURE}) for name, (each, chance) in found.items()
    ]


def see(frames: np.ndarray) -> Seen:
    """(T, 32, 32, 3) uint8 -> what is seen."""
    x = frames.astype(float)
    light = float(np.median(x.mean(-1))) > 128
    ground = np.array(WHITE if light else DARK, float)
    lines = {name: np.array(colour) - ground for name, colour in COLOURS.items()}
    # A blurred thing is paler, and of the same hue.
    whole = np.where(np.abs(x - ground).sum(-1, keepdims=True) > _FAINT, x - ground, 0).sum((0, 1, 2))
    colour = max(lines, key=lambda name: float(whole @ lines[name] / np.linalg.norm(lines[name])))
    line = lines[colour]
    alpha = np.clip((x - ground) @ line / (line @ line), 0, 1)
    windows = np.lib.stride_tricks.sliding_window_view(alpha, (SIZE, SIZE), axis=(1, 2))
    best: tuple[float, str, bool, np.ndarray] | None = None
    for thing in THINGS:
        for filled in (True, False):
            template = outline(thing, filled).astype(float)
            # Squared error of the whole frame with the template there, but for what does not depend on it.
            errors = template.sum() - 2 * np.einsum("tyxij,ij->tyx", windows, template)
            flat = errors.reshape(len(frames), -1)
            total = float(flat.min(1).sum())
            if best is None or total < best[0]:
                best = total, thing, filled, np.stack(np.divmod(flat.argmin(1), ROOM + 1), 1)
    assert best is not None
    _, thing, filled, places = best
    style = next(name for name, (of_ground, fill) in STYLES.items() if (of_ground == WHITE) == light and fill == filled)
    return Seen(colour, thing, motion_of(places), style, places)


def motion_of(places: np.ndarray) -> str:
    """(T, 2) top and left -> the motion, empty where it is none that is known."""
    tops, lefts = places[:, 0], places[:, 1]
    across, up_down = lefts[-1] - lefts[0], tops[-1] - tops[0]
    if np.ptp(lefts) <= _STILL:
        return f"moves {'up' if up_down < 0 else 'down'}" if abs(up_down) > _STILL else ""
    if np.ptp(tops) >= _HOPS:
        return f"bounces to the {'left' if across < 0 else 'right'}"
    if np.ptp(tops) > _STILL:
        return ""
    for wall, end in (("left", lefts.min()), ("right", lefts.max())):
        if min(abs(lefts[0] - end), abs(lefts[-1] - end)) >= _TURNED:
            return f"bounces off the {wall} wall"
    return f"moves to the {'left' if across < 0 else 'right'}"
