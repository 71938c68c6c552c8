"""`tessera generate` with pictures: drawn, edited, varied, or looked at."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tessera.commands import terminal
from tessera.data.pictures import hole, on_white, png, read_picture, sized
from tessera.data.reasons import Unreadable
from tessera.engine.engine import Engine
from tessera.engine.pictures import GUIDANCE, MOST_WORDS, Drawing, Wish, draw, look, named, pasted, run
from tessera.engine.request import Completion
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.provenance import marked
from tessera.run import write_bytes, writing
from tessera.tokens.pictures import known_size


@dataclass(frozen=True)
class Asked:
    """The options of `generate` that speak of pictures, films and sound; see `tessera generate --help`."""

    out: str | None = None
    image: str | None = None
    mask: str | None = None
    variation: bool = False
    guidance: float | None = None
    best_of: int | None = None
    size: str | None = None
    video: str | None = None
    frames: int | None = None
    audio: str | None = None
    seconds: float | None = None
    guidance_interval: str | None = None
    loop: bool = False
    learned: frozenset[str] = frozenset()
    """Media that the model has learned to guide by itself; no option."""

    @property
    def interval(self) -> tuple[float, float]:
        """Shares of the tokens between which they are guided.

        Raises:
            UserError: it is written in another way.
        """
        if self.guidance_interval is None:
            return 0.0, 1.0
        found = re.fullmatch(r"(0|1|0?\.\d{1,6})-(0|1|1\.0|0?\.\d{1,6})", self.guidance_interval.strip())
        if found is None or float(found[1]) >= float(found[2]):
            raise UserError(f"--guidance-interval {self.guidance_interval}: write BEGIN-END, shares of the whole, like 0-0.5.")
        return float(found[1]), float(found[2])

    def distilled(self, medium: str) -> bool:
        """Whether the model guides itself: it has learned to, and nothing else is asked for."""
        return medium in self.learned and self.guidance is None and self.guidance_interval is None

    @property
    def any(self) -> bool:
        """Whether one of them was given."""
        return self != Asked()


def generate_picture(engine: Engine, prompt: str, asked: Asked, params: SamplingParams, as_json: bool, model: str) -> None:
    """Draws into a file, or answers about a picture.

    Raises:
        UserError: options that contradict each other, a file that cannot be read or written, a model without pictures.
    """
    refuse_contradictions(asked)
    engine.vocabulary.media_tokenizer("image")
    size = None if asked.size is None else read_size(asked.size)
    picture = None if asked.image is None else _read(asked.image)
    start = time.perf_counter()
    if asked.out is None:
        assert picture is not None
        short = replace(params, max_tokens=min(params.max_tokens, MOST_WORDS))
        completion = look(engine, [on_white(_prepared(engine, picture, size))], prompt, short)[0]
        if as_json:
            report(completion, [], start)
        else:
            terminal.write(completion.text.strip(), end="\n")
        return
    wish = run(engine, named(engine, _wish(engine, prompt, asked, picture, size)))
    drawing = draw(engine, [wish], params)[0]
    pixels = pasted(wish, drawing.pixels)
    path = Path(asked.out)
    with writing(path):
        write_bytes(path, marked(png(pixels), "png", model, composite=wish.known is not None))
    if as_json:
        report(drawing.completion, [str(path)], start, drawing)
    else:
        height, width = pixels.shape[:2]
        what = f" of {wish.caption!r}" if wish.caption else ""
        print(f"{path}: {height} x {width}{what}, seed {drawing.completion.seed}, {time.perf_counter() - start:.1f} s")


def refuse_contradictions(asked: Asked) -> None:
    """Raises UserError where options do not belong together."""
    if asked.out is None and asked.image is None:
        raise UserError(
            "--mask, --variation, --guidance, --best-of and --size are for pictures: give --out FILE.png to draw one."
        )
    if asked.out is None and (asked.mask or asked.variation):
        raise UserError("an edited picture or a variation goes into a file: give --out FILE.png.")
    if asked.out is not None and Path(asked.out).suffix.lower() != ".png":
        raise UserError(
            f"--out {asked.out}: pictures are written as PNG, films as GIF, MP4 or WebM, sound as WAV, FLAC, OGG or MP3; give a "
            "name that ends in .png, .gif or .wav."
        )
    if asked.image is None and (asked.mask or asked.variation):
        raise UserError("--mask and --variation need the picture that they speak of: give --image FILE.")
    if asked.mask and asked.variation:
        raise UserError("--mask edits a part of the picture, --variation draws another one; give one of them.")
    if asked.best_of is not None and asked.best_of < 1:
        raise UserError(f"--best-of must be at least 1, not {asked.best_of}.")


def read_size(text: str) -> tuple[int, int]:
    """Height and width of `32x24`; UserError where it is not like that."""
    found = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text.strip().lower())
    if found is None or not int(found[1]) or not int(found[2]):
        raise UserError(f"--size {text} is not HEIGHTxWIDTH in pixels, like 32x32.")
    return int(found[1]), int(found[2])


def _wish(engine: Engine, prompt: str, asked: Asked, picture: np.ndarray | None, size: tuple[int, int] | None) -> Wish:
    """What is to be drawn."""
    guidance = GUIDANCE if asked.guidance is None else asked.guidance
    by_itself, best_of = asked.distilled("image"), asked.best_of or 1
    wish = Wish(prompt.strip(), size, guidance=guidance, interval=asked.interval, distilled=by_itself, best_of=best_of)
    if picture is None:
        return wish
    if asked.variation:
        return replace(wish, source=on_white(_prepared(engine, picture, size)))
    mask = None if asked.mask is None else _read(asked.mask)
    known, hidden = hole(picture, mask, size, *known_size(engine.vocabulary))
    return replace(wish, shape=None, known=known, hidden=hidden)


def _prepared(engine: Engine, picture: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """(H, W, 4) at the size that was asked for, or no larger than most pictures that the model knows."""
    return sized(picture, size, *known_size(engine.vocabulary))


def _read(path: str) -> np.ndarray:
    """(H, W, 4) uint8."""
    if not Path(path).is_file():
        raise UserError(f"there is no picture {path}.")
    try:
        return read_picture(Path(path), alpha=True)
    except Unreadable as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


def report(completion: Completion, files: list[str], start: float, drawing: Drawing | None = None) -> None:
    """Prints what was made as one JSON object; `start` is the `time.perf_counter()` of its beginning."""
    scores = {} if drawing is None else {"scores": [round(score, 4) for score in drawing.scores]}
    report = {
        "prompt_ids": completion.prompt_ids.tolist(),
        "ids": completion.ids.tolist(),
        "logprobs": [round(float(p), 6) for p in completion.logprobs],
        "text": completion.text.strip(),
        "files": files,
        "seconds": round(time.perf_counter() - start, 4),
        "seed": completion.seed,
        "finish_reason": completion.finish_reason,
        **scores,
    }
    json.dump(report, sys.stdout, ensure_ascii=False)
    print()


def ending_of(name: str) -> str:
    """Of a file's name, in small letters and without its dot."""
    return Path(name).suffix.lower().removeprefix(".")
