"""Pictures as tokens by a palette: each pixel is the id of its nearest colour, as in Image GPT (Chen et al. 2020).

A `Palette` is up to so many colours, found by k-means among the pixels of the pictures that a model learns from. Where these have
no more colours than that, as drawings in a few grey levels do, the palette is exactly theirs and nothing is lost. It lies beside
the model's weights as a JSON file of its own, and its fingerprint in the vocabulary's hash.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from tessera.errors import UserError
from tessera.tokens.document import Kind
from tessera.tokens.media import StreamingDecoder

MOST_COLOURS = 4096
_ROUNDS = 30
"""Of k-means at most; on 3,403 emoji the last gain above 0.01 dB came before."""
_SAMPLED_COLOURS = 1 << 15
"""Of more different colours than this only so many, drawn by how often they occur, take part in k-means."""
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Palette:
    """Colours by number.

    Args:
        colours: (K, 3) uint8, dark ones first.
        shape: height and width that most of the pictures had which it was made for: the size to draw when none is named.
    """

    colours: np.ndarray
    shape: tuple[int, int]

    name = "palette"
    kind: ClassVar[Kind] = "image"
    expects = "pictures, (height, width, 3) uint8"
    rate = 1.0

    @classmethod
    def fit(cls, pictures: Iterable[np.ndarray], colours: int, seed: int = 0) -> Palette:
        """The palette of these pictures: exactly their colours where they have no more than `colours`, else by k-means.

        Args:
            pictures: (H, W, 3) or, with the transparent pixels left out, (H, W, 4) uint8; read once.
            colours: K at most.
            seed: of the first means (k-means++, Arthur and Vassilvitskii 2007).

        Raises:
            UserError: no picture, or no such number of colours.
        """
        if not 2 <= colours <= MOST_COLOURS:
            raise UserError(f"a palette has 2 to {MOST_COLOURS} colours, not {colours}.")
        counts = np.zeros(1 << 24, np.int64)  # of each colour there is; pages that nothing is written to take no memory
        shapes: Counter[tuple[int, int]] = Counter()
        for picture in pictures:
            shapes[picture.shape[0], picture.shape[1]] += 1
            values, times = np.unique(_packed(picture), return_counts=True)
            counts[values] += times
        packed = np.flatnonzero(counts)
        if not len(packed):
            raise UserError("there is no picture to make a palette from.")
        points = _unpacked(packed)
        if len(points) > colours:
            points = _means(points, counts[packed].astype(float), colours, seed)
        # Commonest size; of equals the smallest.
        shape = min(shapes, key=lambda s: (-shapes[s], s))
        return cls(points[np.lexsort((*points.T, _luminance(points)))], shape)

    @classmethod
    def from_json(cls, page: dict[str, Any]) -> Palette:
        """The way back from `to_json`; ValueError or KeyError where it is damaged."""
        colours = np.array(page["colours"], np.uint8).reshape(-1, 3)
        height, width = map(int, page["shape"])
        if not len(colours) or height < 1 or width < 1:
            raise ValueError("a palette without colours or size")
        return cls(colours, (height, width))

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "colours": self.colours.tolist(), "shape": list(self.shape)}

    @property
    def size(self) -> int:
        return len(self.colours)

    @cached_property
    def fingerprint(self) -> str:
        # The usual size decides no id.
        return hashlib.sha256(json.dumps([self.name, self.colours.tolist()]).encode()).hexdigest()

    stride = 1

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One id for each pixel."""
        return shape

    def encode(self, signal: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (H, W) int64, the nearest colour of each pixel; of equally near ones the darkest."""
        if signal.ndim != 3 or signal.shape[2] != 3 or signal.dtype != np.uint8 or not signal.size:
            raise UserError(f"a palette expects {self.expects}, not {signal.shape} {signal.dtype}.")
        values, inverse = np.unique(_packed(signal), return_inverse=True)
        return _nearest(_unpacked(values), self.colours)[inverse].reshape(signal.shape[:2])

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """(...) ids -> (..., 3) uint8."""
        array = np.asarray(ids, np.int64)
        if array.size and not 0 <= array.min() <= array.max() < self.size:
            raise UserError(f"a palette of {self.size} colours has no colour {array.min()} or {array.max()}.")
        return self.colours[array]

    def stream(self, shape: tuple[int, ...]) -> StreamingDecoder:
        """Gives whole rows of a (height, width) picture: (rows, width, 3) uint8, none while a row is unfinished."""
        return _Rows(self, *shape)


class _Rows:
    def __init__(self, palette: Palette, height: int, width: int) -> None:
        self._palette = palette
        self._width = width
        self._left = height * width
        self._open = np.empty(0, np.int64)

    def feed(self, ids: np.ndarray) -> np.ndarray:
        self._left -= len(ids)
        if self._left < 0:
            raise UserError(f"these are {-self._left} ids more than the picture has pixels.")
        waiting = np.concatenate([self._open, np.asarray(ids, np.int64)])
        whole = len(waiting) // self._width * self._width
        self._open = waiting[whole:]
        return self._palette.decode(waiting[:whole].reshape(-1, self._width))


def psnr(picture: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures of one shape in decibels; infinite where they are equal."""
    error = float(np.mean((picture.astype(float) - other.astype(float)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def _packed(picture: np.ndarray) -> np.ndarray:
    """One number for the colour of each pixel, flat; transparent pixels are left out."""
    parts = picture.reshape(-1, picture.shape[2]).astype(np.int64)
    packed = parts[:, 0] << 16 | parts[:, 1] << 8 | parts[:, 2]
    return packed[parts[:, 3] >= 128] if picture.shape[2] == 4 else packed


def _unpacked(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1).astype(np.uint8)


def _luminance(colours: np.ndarray) -> np.ndarray:
    """Rec. 601."""
    return colours.astype(float) @ np.array([0.299, 0.587, 0.114])


def _nearest(points: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Index of the nearest colour of each point, by squared distance in whole numbers: the same on every machine."""
    wide = colours.astype(np.int32)
    found = [
        ((points[start : start + _CHUNK, None].astype(np.int32) - wide) ** 2).sum(-1).argmin(-1)
        for start in range(0, len(points), _CHUNK)
    ]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _means(points: np.ndarray, weights: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Weighted k-means of colours, (count, 3) uint8 or fewer where two means round to one colour."""
    rng = np.random.Generator(np.random.PCG64(seed))
    if len(points) > _SAMPLED_COLOURS:
        chosen = np.sort(rng.choice(len(points), _SAMPLED_COLOURS, replace=False, p=weights / weights.sum()))
        points, weights = points[chosen], weights[chosen]
    x = points.astype(float)
    first = x[rng.choice(len(x), p=weights / weights.sum())]
    means, distance = [first], ((x - first) ** 2).sum(-1)
    while len(means) < count:
        odds = weights * distance
        means.append(x[rng.choice(len(x), p=odds / odds.sum())])
        distance = np.minimum(distance, ((x - means[-1]) ** 2).sum(-1))
    centres = np.array(means)
    nearest = np.full(len(x), -1)
    for _ in range(_ROUNDS):
        # |x|^2 is the same for all centres.
        before, nearest = nearest, np.argmin((centres**2).sum(-1) - 2 * x @ centres.T, -1)
        if (before == nearest).all():
            break
        mass = np.bincount(nearest, weights, count)
        sums = np.stack([np.bincount(nearest, weights * x[:, c], count) for c in range(3)], -1)
        centres = np.where(mass[:, None] > 0, sums / np.maximum(mass, 1e-9)[:, None], centres)
    return np.unique(np.rint(centres).astype(np.uint8), axis=0)
