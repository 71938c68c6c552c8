"""Reads back from a picture which shapes it shows, and whether that is what a caption says.

It knows forms and colours of `data.builtin_pictures` and nothing of how a picture came about: each pixel is of the nearest
colour, and of each colour the form that explains most is taken away until nothing of any size is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tessera.data.builtin_pictures import COLOURS, FORMS, NUMBERS, PLACES, RELATIONS, SIDE, SIZES, plural, template
from tessera.data.builtin_pictures import shapes as drawn_shapes
from tessera.data.pictures import parts_of
from tessera.engine.engine import Engine
from tessera.engine.pictures import Wish, draw, look
from tessera.engine.sampling import SamplingParams
from tessera.evals.score import Score, share

_ENOUGH = 0.75
"""Share of a form's pixels, less those beside it, from which a form is seen."""
_NOISE = 3
"""Pixels of a colour that may be left over."""
_SEEDS = 1_000
"""Where seeds of the captions begin: sources have lower ones."""
_THING = rf"an? (?P<size>{'|'.join(SIZES)}) (?P<colour>{'|'.join(COLOURS)}) (?P<form>{'|'.join(FORMS)})"
_ONE = re.compile(rf"{_THING} (?P<place>{'|'.join(PLACES)})")
_MANY = re.compile(rf"(?P<count>{'|'.join(NUMBERS)}) small (?P<colour>{'|'.join(COLOURS)}) (?P<forms>\w+)")
_TWO = re.compile(rf"(?P<first>.+) (?P<relation>{'|'.join(RELATIONS)}) (?P<second>.+)")
KINDS = ("place", "number", "relation")
"""What a caption says beside colour, form and size."""


@dataclass(frozen=True)
class Shape:
    """One that is seen, or that a caption speaks of, then without `top` and `left`.

    Args:
        top, left: of the square of pixels in which it lies.
    """

    size: str
    colour: str
    form: str
    top: int = 0
    left: int = 0

    @property
    def kind(self) -> tuple[str, str, str]:
        """What it is, wherever it is."""
        return self.size, self.colour, self.form


def shapes(engine: Engine, count: int, seed: int) -> list[Score]:
    """Pictures drawn by captions like those of the source, and by others with pairs of colour and form that it never yields: how
    many show all that was said; and of how many drawn here all that is told is so.

    Raises:
        UserError: the model has learned no pictures.
    """
    found: dict[str, list[float]] = {}
    for name, held_out in (("drawn", False), ("drawn, pairs held out", True)):
        captions = [caption for _, caption in _examples(count, held_out, seed)]
        params = SamplingParams(max_tokens=1, seed=seed)
        made = draw(engine, [Wish(caption, (SIDE, SIDE)) for caption in captions], params)
        marks = [agrees(m.pixels, c) for m, c in zip(made, captions, strict=True)]
        found[f"{name}, as the caption says"] = marks
        if not held_out:
            for kind in KINDS:
                each = [mark for mark, caption in zip(marks, captions, strict=True) if kind_of(caption) == kind]
                found |= {f"{name}, a {kind} among what is said": each} if each else {}
    for name, held_out in (("told", False), ("told, pairs held out", True)):
        pictures = [picture for picture, _ in _examples(count, held_out, seed)]
        said = look(engine, pictures, "", SamplingParams(max_tokens=32, temperature=0))
        found[f"{name}, all as it is"] = [agrees(p, c.text.strip()) for p, c in zip(pictures, said, strict=True)]
    return [share("shapes", name, each, None, {"seed": seed}) for name, each in found.items()]


def agrees(picture: np.ndarray, caption: str) -> float:
    """1 where a picture, (H, W, 3) uint8, shows what a caption says and nothing else, 0 otherwise, also where it says nothing."""
    if picture.shape != (SIDE, SIDE, 3) or (seen := see(picture)) is None:
        return 0.0
    if one := _ONE.fullmatch(caption):
        kind = (one["size"], one["colour"], one["form"])
        return float(len(seen) == 1 and seen[0].kind == kind and _place(seen[0]) == one["place"])
    if many := _MANY.fullmatch(caption):
        wanted = {("small", many["colour"], form) for form in FORMS if plural(form) == many["forms"]}
        return float(len(seen) == NUMBERS.index(many["count"]) and {shape.kind for shape in seen} == wanted)
    if two := _TWO.fullmatch(caption):
        first, second = (re.fullmatch(_THING, two[part]) for part in ("first", "second"))
        if len(seen) == 2 and first and second:
            kinds = [(name["size"], name["colour"], name["form"]) for name in (first, second)]
            return float(any([a.kind, b.kind] == kinds and _relates(a, b, two["relation"]) for a, b in (seen, reversed(seen))))
    return 0.0


def see(picture: np.ndarray) -> list[Shape] | None:
    """The shapes of a picture; None where there is something that is none."""
    tones = np.array([(255, 255, 255), *COLOURS.values()], float)
    nearest = ((picture[:, :, None].astype(float) - tones) ** 2).sum(-1).argmin(-1)
    found: list[Shape] = []
    for number, colour in enumerate(COLOURS, 1):
        left_over = nearest == number
        while left_over.sum() > _NOISE:
            shape = _best(left_over, colour)
            if shape is None:
                return None
            found.append(shape)
            side = SIZES[shape.size]
            left_over[shape.top : shape.top + side, shape.left : shape.left + side] &= ~template(shape.form, side)
    return found


def _best(mask: np.ndarray, colour: str) -> Shape | None:
    """The form that explains most of the pixels of one colour; None where none explains enough."""
    best, most = None, 0.0
    for size, side in SIZES.items():
        windows = np.lib.stride_tricks.sliding_window_view(mask, (side, side))
        for form in FORMS:
            inside = template(form, side)
            # Pixels that are there and should, less those that are missing, less those that should not be there.
            gain = (windows & inside).sum((2, 3)) - (~windows & inside).sum((2, 3)) - (windows & ~inside).sum((2, 3))
            top, left = np.unravel_index(gain.argmax(), gain.shape)
            share = gain[top, left] / inside.sum()
            if share >= _ENOUGH and gain[top, left] > most:
                best, most = Shape(size, colour, form, int(top), int(left)), float(gain[top, left])
    return best


def _place(shape: Shape) -> str:
    """The nearest of PLACES."""
    room = SIDE - SIZES[shape.size]
    return min(PLACES, key=lambda name: (PLACES[name][0] * room - shape.top) ** 2 + (PLACES[name][1] * room - shape.left) ** 2)


def _relates(first: Shape, second: Shape, relation: str) -> bool:
    """Whether the first lies so, all of it."""
    if relation in ("right of", "below"):
        first, second = second, first
    if relation in ("left of", "right of"):
        return first.left + SIZES[first.size] <= second.left
    return first.top + SIZES[first.size] <= second.top


def _examples(count: int, held_out: bool, seed: int) -> Iterator[tuple[np.ndarray, str]]:
    """Pictures that no source has, with their captions."""
    for document in drawn_shapes(count, held_out, _SEEDS + seed):
        parts = parts_of(document)
        assert parts is not None
        yield parts.signal, parts.caption


def kind_of(caption: str) -> str:
    """Which of KINDS a caption says; empty where it is none of the source's."""
    patterns = zip(KINDS, (_ONE, _MANY, _TWO), strict=True)
    return next((name for name, pattern in patterns if pattern.fullmatch(caption)), "")
