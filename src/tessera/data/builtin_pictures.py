"""Captioned pictures that every machine has: scikit-learn's handwritten digits, and shapes that are drawn here.

`digits` are 1,797 pictures of 8 x 8 pixels in 17 grey levels. A stratified random split with seed 0 keeps 300 of them for
measuring; as a source they are never yielded. `shapes` have a colour, a form, a size, and a place, a number or a relation, all
said in the caption; some pairs of colour and form never occur as a source, so that a model can be asked for what it never saw.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal

import numpy as np

from tessera.data.pictures import captioned
from tessera.tokens.document import Document

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GREY_LEVELS = 17
TEST_DIGITS = 300
_DIGIT_CAPTIONS = ("a {}", "a {}", "a hand-drawn {}", "the digit {}")
DIGIT_QUESTION = "Which digit is it?"

SHAPES = 20_000
"""Pictures that `builtin:shapes` yields where no count is named."""
SIDE = 16
COLOURS = {
    "red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 90, 200), "yellow": (250, 210, 30), "purple": (140, 60, 180),
    "orange": (255, 127, 14),
}  # fmt: skip
FORMS = ("circle", "square", "triangle", "cross", "ring")
HELD_OUT = frozenset({("red", "triangle"), ("green", "ring"), ("blue", "circle"), ("yellow", "square"), ("purple", "cross")})
"""Pairs of colour and form that the source never yields."""
SIZES = {"small": 5, "large": 7}
PLACES = {
    "in the upper left": (0.0, 0.0), "in the upper right": (0.0, 1.0), "in the lower left": (1.0, 0.0),
    "in the lower right": (1.0, 1.0), "in the middle": (0.5, 0.5),
}  # fmt: skip
RELATIONS = ("left of", "right of", "above", "below")


def digit_arrays(split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 8, 8) int64 with levels 0 to 16, and which digit each is, (N,)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    levels, labels = load_digits(return_X_y=True)
    parts = train_test_split(levels, labels, test_size=TEST_DIGITS, random_state=0, stratify=labels)
    x, y = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
    return x.reshape(-1, 8, 8).astype(np.int64), y.astype(np.int64)


def digit_pixels(levels: np.ndarray) -> np.ndarray:
    """(..., H, W) levels 0 to 16 -> (..., H, W, 3) uint8."""
    grey = np.rint(levels * (255 / (GREY_LEVELS - 1))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)


def digits() -> Iterator[Document]:
    """The 1,497 digits to learn from, captioned in a few ways."""
    levels, labels = digit_arrays("train")
    for number, (picture, label) in enumerate(zip(digit_pixels(levels), labels.tolist(), strict=True)):
        caption = _DIGIT_CAPTIONS[number % len(_DIGIT_CAPTIONS)].format(NUMBERS[label])
        yield captioned(picture, caption, [(DIGIT_QUESTION, NUMBERS[label])], f"digits[{number}]")


def shapes(count: int, held_out: bool = False, seed: int = 0) -> Iterator[Document]:
    """`count` pictures of shapes on white, 16 x 16; one of another seed are others.

    Args:
        held_out: only such as the source never yields: single shapes of the pairs in HELD_OUT.
    """
    pairs = sorted((c, f) for c in COLOURS for f in FORMS if ((c, f) in HELD_OUT) == held_out)
    rng = np.random.Generator(np.random.PCG64([seed, held_out]))
    for number in range(count):
        kind = 0 if held_out else int(rng.integers(3))
        drawn, caption, questions = (_placed, _counted, _related)[kind](rng, pairs)
        yield captioned(drawn, caption, questions, f"shapes[{number}]")


_Drawn = tuple[np.ndarray, str, list[tuple[str, str]]]
_Pairs = list[tuple[str, str]]


def _placed(rng: np.random.Generator, pairs: _Pairs) -> _Drawn:
    """One shape somewhere."""
    (colour, form), size = pairs[rng.integers(len(pairs))], _pick(rng, SIZES)
    place = _pick(rng, PLACES)
    room = SIDE - SIZES[size]
    top, left = (round(part * room + (0 if part != 0.5 else rng.integers(-1, 2))) for part in PLACES[place])
    # Near its corner, not always in it.
    top, left = (int(np.clip(v + (rng.integers(0, 2) if v < room / 2 else -rng.integers(0, 2)), 0, room)) for v in (top, left))
    canvas = _canvas()
    _draw(canvas, form, colour, SIZES[size], top, left)
    caption = f"a {size} {colour} {form} {place}"
    return canvas, caption, [_colour(colour), _form(form), ("Where is it?", place), ("How large is it?", size)]


def _counted(rng: np.random.Generator, pairs: _Pairs) -> _Drawn:
    """Two to four small shapes of one kind, each in its own quarter."""
    colour, form = pairs[rng.integers(len(pairs))]
    count, size = int(rng.integers(2, 5)), SIZES["small"]
    canvas = _canvas()
    for quarter in rng.permutation(4)[:count]:
        room = SIDE // 2 - size
        top, left = (int(v) * SIDE // 2 + int(rng.integers(room + 1)) for v in divmod(int(quarter), 2))
        _draw(canvas, form, colour, size, top, left)
    return canvas, f"{NUMBERS[count]} small {colour} {plural(form)}", [("How many are there?", NUMBERS[count]), _colour(colour)]


def _related(rng: np.random.Generator, pairs: _Pairs) -> _Drawn:
    """Two shapes beside or above each other."""
    first, second = rng.choice(len(pairs), 2, replace=False)
    relation, canvas = _pick(rng, RELATIONS), _canvas()
    names = []
    for (colour, form), leads in ((pairs[first], True), (pairs[second], False)):
        size = _pick(rng, SIZES)
        names.append(f"a {size} {colour} {form}")
        # The first of a pair that is left of or above the other lies in the lower half of the axis.
        along = int(rng.integers(SIDE // 2 - SIZES[size] + 1)) + (0 if leads == (relation in ("left of", "above")) else SIDE // 2)
        across = int(rng.integers(SIDE - SIZES[size] + 1))
        top, left = (across, along) if relation in ("left of", "right of") else (along, across)
        _draw(canvas, form, colour, SIZES[size], top, left)
    where = f"{relation} {names[1]}"
    return canvas, f"{names[0]} {where}", [(f"Where is {names[0].replace('a ', 'the ', 1)}?", where)]


def plural(form: str) -> str:
    """Of the name of a form."""
    return form + ("es" if form == "cross" else "s")


def _canvas() -> np.ndarray:
    return np.full((SIDE, SIDE, 3), 255, np.uint8)


def _draw(canvas: np.ndarray, form: str, colour: str, size: int, top: int, left: int) -> None:
    canvas[top : top + size, left : left + size][template(form, size)] = COLOURS[colour]


def template(form: str, size: int) -> np.ndarray:
    """(size, size) bool: the pixels of a form."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = size / 2
    if form == "circle":
        inside = x**2 + y**2 <= radius**2
    elif form == "ring":
        inside = (x**2 + y**2 <= radius**2) & (x**2 + y**2 > (radius - 1.5) ** 2)
    elif form == "square":
        inside = np.ones((size, size), bool)
    elif form == "triangle":
        inside = np.abs(x) <= (y + (size - 1) / 2) / 2
    else:
        inside = (np.abs(x) < size / 5) | (np.abs(y) < size / 5)
    return np.asarray(inside)


def _colour(colour: str) -> tuple[str, str]:
    return "What colour is it?", colour


def _form(form: str) -> tuple[str, str]:
    return "What shape is it?", form


def _pick(rng: np.random.Generator, table: Collection[str]) -> str:
    return list(table)[int(rng.integers(len(table)))]
