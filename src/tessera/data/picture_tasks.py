"""Captioned pictures -> documents of tasks: draw, see, edit, vary.

One picture becomes several documents, each with a task of its own, chosen by its content and the seed alone. In a short corpus
a model soon knows every picture by heart; a share of the documents therefore shows them mirrored, turned or moved, and says so in
words before anything else, so that what is learned of pictures as they are stays exact (distribution augmentation, Jun et al.
2020). Held-out pictures become one document per task, as they are.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np

from tessera import recipe
from tessera.data.pictures import Parts, parts_of
from tessera.tokens.beside import find_tokenizer
from tessera.tokens.document import Document, Segment
from tessera.tokens.media import Cut
from tessera.tokens.pictures import QUESTION, hide, to_draw, to_edit, to_see, to_vary, tokens_of
from tessera.tokens.quantizer import QuantizerConfig

VIEW_TOKENS = 4_000_000
"""Where the recipe names no number of views, documents of pictures come to about so many tokens."""
MOST_VIEWS = 64
_RELATIVES = 32
"""Pictures of one caption that are remembered to be varied into each other."""
_REMEMBERED = 256 << 20
"""Bytes of pictures that are remembered; beyond, those of the caption that was met the longest ago are forgotten."""
_LEARNED_SIGHT = 0.5
"""Share of the pictures to see that are learned themselves; the others may be moved by a pixel, which names do not depend on."""
CHARACTERS_PER_TOKEN = 2.5

_Turn = Callable[[np.ndarray], np.ndarray]
TURNS: dict[str, _Turn] = {
    "": lambda p: p,
    "mirrored": lambda p: p[:, ::-1],
    "upside down": lambda p: p[::-1],
    "turned round": lambda p: p[::-1, ::-1],
    "turned left": lambda p: np.rot90(p),
    "turned right": lambda p: np.rot90(p, 3),
    "mirrored and turned left": lambda p: np.rot90(p[:, ::-1]),
    "mirrored and turned right": lambda p: np.rot90(p[:, ::-1], 3),
}
"""The eight symmetries of a square."""
_AS_IT_IS = TURNS[""]
BEND = 0.1
"""Standard deviation of what a bend adds to each number of the identity."""
_DOWN, _RIGHT = {-1: "up", 0: "", 1: "down"}, {-1: "left", 0: "", 1: "right"}


def picture_cut(settings: recipe.Pictures) -> Cut | None:
    """How the quantizer that a recipe asks for cuts a picture; None where it asks for a palette.

    Raises:
        UserError: as `find_tokenizer`.
    """
    if settings.trained:
        return find_tokenizer(settings.trained, "image").config
    return config_of("image", settings.quantizer) if settings.quantizer else None


def config_of(kind: Literal["image", "video"], q: recipe.Quantizer) -> QuantizerConfig:
    """Of a quantizer that is to be trained."""
    time_stride = q.time_stride if kind == "video" else 1
    return QuantizerConfig(kind, q.levels, q.stride, time_stride, q.width, q.encoder_layers, q.decoder_layers)


def views_of(asked: int | None, tokens: int) -> int:
    """Documents made of each picture or film: as asked for, or by how many tokens one of each comes to."""
    return asked or max(1, min(MOST_VIEWS, VIEW_TOKENS // max(1, tokens)))


def least_context(documents: Iterable[Document], settings: recipe.Pictures) -> int:
    """T that holds any task made of these documents, a multiple of 32; 0 where there is no picture."""
    longest, cut = 0, picture_cut(settings)
    for document in documents:
        if (parts := parts_of(document)) is not None:
            longest = max(longest, _tokens(parts, settings, cut))
    return -(-longest // 32) * 32


def task_documents(
    documents: Iterable[Document], settings: recipe.Pictures, seed: int, views: int, context: int | None
) -> Iterator[Document]:
    """Training documents: `views` of each captioned picture, all others as they are.

    Args:
        context: T; tasks that would not fit into a row are not set. None: all are.
    """
    relatives, cut = _Relatives(), picture_cut(settings)
    for document in documents:
        parts = parts_of(document)
        if parts is None:
            yield document
            continue
        rng = content_rng(parts, seed)
        known = relatives.of(parts.caption)
        for _ in range(views):
            yield Document(_task(parts, settings, rng, known, context, cut), document.source)
        # Pictures that nothing is said of have nothing in common.
        if settings.tasks.vary and parts.caption:
            relatives.add(parts.caption, parts.signal)


def held_out_documents(documents: Iterable[Document], settings: recipe.Pictures, seed: int) -> Iterator[Document]:
    """Documents to measure on: each picture drawn by its caption, and without one to be seen, as far as these are tasks."""
    for document in documents:
        parts = parts_of(document)
        if parts is None:
            yield document
            continue
        tasks = settings.tasks
        if tasks.draw or not tasks.see:
            caption = "" if settings.caption_dropout == 1 else parts.caption
            yield Document(to_draw(caption, parts.signal), document.source)
        if tasks.see:
            yield Document(to_see(parts.signal, _questions(parts), learn=True), document.source)


class _Relatives:
    """Pictures by their caption, as many as there is room for: a source may have as many captions as pictures."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, deque[np.ndarray]] = OrderedDict()
        self._bytes = 0

    def of(self, caption: str) -> deque[np.ndarray]:
        """Those that are remembered; none of a caption that is new."""
        return self._known.get(caption, deque())

    def add(self, caption: str, pixels: np.ndarray) -> None:
        known = self._known.setdefault(caption, deque())
        self._known.move_to_end(caption)
        known.append(pixels)
        self._bytes += pixels.nbytes
        if len(known) > _RELATIVES:
            self._bytes -= known.popleft().nbytes
        while self._bytes > _REMEMBERED and len(self._known) > 1:
            self._bytes -= sum(old.nbytes for old in self._known.popitem(last=False)[1])


def _task(
    parts: Parts,
    settings: recipe.Pictures,
    rng: np.random.Generator,
    known: deque[np.ndarray],
    context: int | None,
    cut: Cut | None,
) -> tuple[Segment, ...]:
    """One document of one picture."""
    pixels, tasks = parts.signal, settings.tasks
    fits = context is None or _double_tokens(parts, settings, cut) <= context
    shares = {
        "draw": tasks.draw,
        "see": tasks.see if parts.caption or parts.questions else 0.0,
        "edit": tasks.edit if fits else 0.0,
        "vary": tasks.vary if fits and known else 0.0,
    }
    total = sum(shares.values())
    task = "draw" if not total else list(shares)[int(rng.choice(len(shares), p=np.array(list(shares.values())) / total))]
    said, change = "", TURNS[""]
    if rng.random() < settings.transformed:
        said, change = _transformation(rng, settings)
    caption = "" if rng.random() < settings.caption_dropout else parts.caption
    if task == "draw":
        segments = to_draw(caption, change(pixels))
    elif task == "see":
        asked = _questions(parts)
        order = rng.permutation(len(asked))
        learn = bool(rng.random() < _LEARNED_SIGHT)
        if not learn:
            # What a picture shows does not change by a pixel; it is not learned here, so nothing false is.
            step = _moved(int(rng.integers(-1, 2)), int(rng.integers(-1, 2)))
            said, change = "", _then(_bend(rng, settings), step)
        segments = to_see(change(pixels), [asked[i] for i in order], learn)
    elif task == "edit":
        whole = change(pixels)
        segments = to_edit(caption, hide(whole, _hole(rng, *whole.shape[:2])), whole)
    else:
        segments = to_vary(caption, change(known[int(rng.integers(len(known)))]), change(pixels))
    return (Segment("text", f"{said}:", learn=False), *segments) if said else segments


def _questions(parts: Parts) -> list[tuple[str, str]]:
    return ([(QUESTION, parts.caption)] if parts.caption else []) + parts.questions


def _transformation(rng: np.random.Generator, settings: recipe.Pictures) -> tuple[str, _Turn]:
    """A turn, a step of one pixel, a bend, or some of them, with their words; seldom none."""
    name = list(TURNS)[int(rng.integers(len(TURNS)))]
    down, right = (int(v) for v in rng.integers(-1, 2, size=2))
    steps = [word for word in (_DOWN[down], _RIGHT[right]) if word]
    bend = _bend(rng, settings)
    said = ("bent" if bend is not _AS_IT_IS else "", name, f"moved {' and '.join(steps)}" if steps else "")
    words = [word for word in said if word]
    return ", ".join(words), _then(bend, TURNS[name], _moved(down, right))


def _then(*turns: _Turn) -> _Turn:
    """One after the other."""

    def change(pixels: np.ndarray) -> np.ndarray:
        for turn in turns:
            pixels = turn(pixels)
        return pixels

    return change


def _bend(rng: np.random.Generator, settings: recipe.Pictures) -> _Turn:
    """A small turn, stretch and slant about the middle, of `settings.bent` of the pictures that are changed at all."""
    if not settings.bent or rng.random() >= settings.bent:
        return _AS_IT_IS
    matrix = np.eye(2) + rng.normal(0, BEND, (2, 2))
    shift = rng.uniform(-0.5, 0.5, 2)

    def bent(pixels: np.ndarray) -> np.ndarray:
        from scipy.ndimage import affine_transform  # a server, which bends nothing, need not wait for it

        middle = (np.array(pixels.shape[:2]) - 1) / 2
        begin = middle + shift - matrix @ middle
        made = np.empty(pixels.shape)
        for channel in range(pixels.shape[2]):
            affine_transform(pixels[..., channel], matrix, begin, output=made[..., channel], order=1, mode="nearest")
        return np.asarray(np.rint(made).astype(np.uint8))

    return bent


def _moved(down: int, right: int) -> _Turn:
    """A picture moved by so many pixels, what leaves one side coming in at the other."""
    return lambda pixels: np.roll(pixels, (down, right), (0, 1))


def _hole(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W) bool: a rectangle of a quarter to all of each side."""
    h, w = (int(rng.integers(max(1, side // 4), side + 1)) for side in (height, width))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    hidden = np.zeros((height, width), bool)
    hidden[top : top + h, left : left + w] = True
    return hidden


def _tokens(parts: Parts, settings: recipe.Pictures, cut: Cut | None) -> int:
    """Of the longest task, roughly and on the high side."""
    tasks = settings.tasks
    asked = sum(len(q) + len(a) for q, a in _questions(parts)) if tasks.see else 0
    words = round(max(asked, len(parts.caption)) / CHARACTERS_PER_TOKEN)
    single = _of_picture(parts, cut) + words + _others(settings)
    return max(single, _double_tokens(parts, settings, cut)) if tasks.edit or tasks.vary else single


def _double_tokens(parts: Parts, settings: recipe.Pictures, cut: Cut | None) -> int:
    """Of a task with two pictures."""
    words = round(len(parts.caption) / CHARACTERS_PER_TOKEN)
    return 2 * _of_picture(parts, cut) + words + _others(settings)


def _of_picture(parts: Parts, cut: Cut | None) -> int:
    height, width = parts.signal.shape[:2]
    return tokens_of(cut.grid((height, width)) if cut else (height, width), height, width)


def _others(settings: recipe.Pictures) -> int:
    """Tokens beside pictures, caption and questions: marks, and the words of a transformation, which occur so often that they are
    few."""
    return 16 if settings.transformed else 4


def content_rng(parts: Parts, seed: int) -> np.random.Generator:
    """Random numbers that depend on the picture, its caption and the seed, whatever stands around it."""
    content = hashlib.blake2b(parts.caption.encode(), digest_size=16)
    content.update(repr(parts.signal.shape).encode() + parts.signal.tobytes())
    return np.random.Generator(np.random.PCG64([seed, int.from_bytes(content.digest(), "little")]))
