"""`tessera generate` with films: made by a caption, from a first frame, gone on with, or told."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from tessera.commands import terminal
from tessera.commands.pictures import Asked, ending_of, read_size, report
from tessera.data.films import WRITTEN, film_file, find_loop, read_film, resampled
from tessera.data.pictures import on_white, read_picture, resized
from tessera.data.reasons import Unreadable
from tessera.engine.engine import Engine
from tessera.engine.films import GUIDANCE, FilmWish, half, long_film, quantizer_of, tell
from tessera.engine.pictures import MOST_WORDS, run
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.provenance import marked
from tessera.run import write_bytes, writing

_LOOKED_THROUGH = 4
"""Times as many frames as most films have are made to find a loop in."""


def speaks_of_films(asked: Asked) -> bool:
    """Whether what is asked for is a film, not a picture."""
    written = asked.out is not None and ending_of(asked.out) in WRITTEN
    return written or asked.video is not None or asked.frames is not None or asked.loop


def generate_film(engine: Engine, prompt: str, asked: Asked, params: SamplingParams, as_json: bool, model: str) -> None:
    """Makes a film into a file, or answers about one.

    Raises:
        UserError: options that contradict each other, a file that cannot be read or written, a model without films.
    """
    refuse_contradictions(asked)
    quantizer = quantizer_of(engine)
    frames, height, width = quantizer.shape
    height, width = (height, width) if asked.size is None else read_size(asked.size)
    quantizer.grid((1, height, width))
    start = time.perf_counter()
    if asked.out is None:
        assert asked.video is not None
        film = _whole_steps(_read(asked.video, quantizer.per_second, height, width), quantizer.config.time_stride)
        completion = tell(engine, [film[:frames]], prompt, replace(params, max_tokens=min(params.max_tokens, MOST_WORDS)))[0]
        if as_json:
            report(completion, [], start)
        else:
            terminal.write(completion.text.strip(), end="\n")
        return
    if params.seed is None:
        # One for all rounds of a long film, so that it can be made again.
        params = replace(params, seed=secrets.randbits(31))
    given = np.empty((0, height, width, 3), np.uint8)
    if asked.image is not None:
        given = _first_frame(asked.image, height, width)[None]
    elif asked.video is not None:
        given = _read(asked.video, quantizer.per_second, height, width)
    usual = _LOOKED_THROUGH * frames if asked.loop else half(quantizer) if asked.video is not None else frames
    total = (len(given) if asked.video is not None else 0) + (asked.frames or usual)
    guidance = GUIDANCE if asked.guidance is None else asked.guidance
    wish = FilmWish(prompt.strip(), guidance=guidance, interval=asked.interval, distilled=asked.distilled("video"))
    if asked.loop and total < max(frames, len(given)) + 2:
        raise UserError(f"--frames {asked.frames} is too few to find a loop in; give {max(frames, len(given)) + 2} or more.")
    made = run(engine, long_film(engine, wish, given, total, params))
    shown, completion = made.frames, made.completion
    seam = ""
    if asked.loop:
        # What was given begins the loop and stays in it.
        loop = find_loop(shown, max(half(quantizer), len(given)), 0 if len(given) else None)
        shown = shown[loop.first : loop.last]
        seam = f", a loop whose ends differ by {loop.seam:.1f} levels of 255 (frame to frame {loop.step:.1f})"
    path = Path(asked.out)
    with writing(path):
        ending = ending_of(asked.out)
        write_bytes(path, marked(film_file(shown, quantizer.per_second, ending), ending, model, composite=bool(len(given))))
    if as_json:
        report(completion, [str(path)], start)
    else:
        what = f" of {prompt.strip()!r}" if prompt.strip() else ""
        new = f", {len(shown) - len(given)} of them new" if len(given) else ""
        print(
            f"{path}: {len(shown)} frames of {height} x {width}{what}{new}{seam}, seed {params.seed}, "
            f"{time.perf_counter() - start:.1f} s"
        )


def refuse_contradictions(asked: Asked) -> None:
    """Raises UserError where options do not belong together."""
    if asked.out is None and (asked.video is None or asked.loop):
        raise UserError("--frames and --loop are for films: give --out FILE.gif to make one.")
    if asked.out is not None and ending_of(asked.out) not in WRITTEN:
        endings = ", ".join(f".{ending}" for ending in WRITTEN)
        raise UserError(f"--out {asked.out}: films are written as {endings}; give a name that ends in one of them.")
    if asked.image is not None and asked.video is not None:
        raise UserError("--image is the first frame of a film, --video a film to go on with; give one of them.")
    if asked.mask or asked.variation or asked.best_of is not None:
        raise UserError("--mask, --variation and --best-of are for pictures, not for films.")
    if asked.frames is not None and asked.frames < 1:
        raise UserError(f"--frames must be at least 1, not {asked.frames}.")


def _whole_steps(film: np.ndarray, stride: int) -> np.ndarray:
    return film[: (len(film) - 1) // stride * stride + 1]


def _first_frame(path: str, height: int, width: int) -> np.ndarray:
    if not Path(path).is_file():
        raise UserError(f"there is no picture {path}.")
    try:
        return resized(on_white(read_picture(Path(path), alpha=True)), height, width)
    except Unreadable as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


def _read(path: str, per_second: float, height: int, width: int) -> np.ndarray:
    """A film's frames at the rate and the size of the model's."""
    if not Path(path).is_file():
        raise UserError(f"there is no film {path}.")
    try:
        frames, rate = read_film(Path(path), shrink=lambda frame: resized(frame, height, width))
    except Unreadable as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    return resampled(frames, rate, per_second)
