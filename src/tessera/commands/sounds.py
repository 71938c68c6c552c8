"""`tessera generate` with sound: made by a caption, gone on with, or listened to."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np

from tessera.commands import terminal
from tessera.commands.pictures import Asked, ending_of, report
from tessera.data.reasons import Unreadable
from tessera.data.sounds import WRITTEN, fitted_sound, read_sound, sound_file
from tessera.engine.engine import Engine
from tessera.engine.sampling import SamplingParams
from tessera.engine.sounds import GUIDANCE, SoundWish, listen, make_sounds, sound_quantizer_of
from tessera.errors import UserError
from tessera.provenance import marked
from tessera.run import write_bytes, writing


def speaks_of_sounds(asked: Asked) -> bool:
    """Whether what is asked for is sound, not a picture or a film."""
    return asked.audio is not None or asked.seconds is not None or (asked.out is not None and ending_of(asked.out) in WRITTEN)


def generate_sound(engine: Engine, prompt: str, asked: Asked, params: SamplingParams, as_json: bool, model: str) -> None:
    """Makes a sound into a file, or answers about one.

    Raises:
        UserError: options that contradict each other, a file that cannot be read or written, a model without sound.
    """
    refuse_contradictions(asked)
    rate = round(sound_quantizer_of(engine).per_second)
    heard = None if asked.audio is None else _read(asked.audio, rate)
    start = time.perf_counter()
    if asked.out is None:
        assert heard is not None
        completion = listen(engine, [heard], prompt, params)[0]
        if as_json:
            report(completion, [], start)
        else:
            terminal.write(completion.text.strip(), end="\n")
        return
    guidance = GUIDANCE if asked.guidance is None else asked.guidance
    wish = SoundWish(prompt.strip(), heard, asked.seconds, guidance, asked.interval, asked.distilled("audio"))
    made = make_sounds(engine, [wish], params)[0]
    # What was given stays as it was; what is new begins where the last whole step of it ends.
    kept = np.empty(0, np.int16) if heard is None else heard[: len(made.samples)]
    samples = np.concatenate([kept, made.samples[len(kept) :]])
    path = Path(asked.out)
    with writing(path):
        ending = ending_of(asked.out)
        write_bytes(path, marked(sound_file(samples, rate, ending), ending, model, composite=bool(len(kept))))
    if as_json:
        report(made.completion, [str(path)], start)
    else:
        what = f" of {prompt.strip()!r}" if prompt.strip() else ""
        new = f", {(len(samples) - len(kept)) / rate:.2f} s of them new" if len(kept) else ""
        print(f"{path}: {len(samples) / rate:.2f} s{what}{new}, seed {made.completion.seed}, {time.perf_counter() - start:.1f} s")


def refuse_contradictions(asked: Asked) -> None:
    """Raises UserError where options do not belong together."""
    if asked.out is None and asked.audio is None:
        raise UserError("--seconds is for sound: give --out FILE.wav to make some.")
    if asked.out is not None and ending_of(asked.out) not in WRITTEN:
        endings = ", ".join(f".{ending}" for ending in WRITTEN)
        raise UserError(f"--out {asked.out}: sound is written as {endings}; give a name that ends in one of them.")
    if asked.image is not None or asked.video is not None or asked.frames is not None or asked.size is not None:
        raise UserError("--image, --video, --frames and --size do not go with sound.")
    if asked.mask or asked.variation or asked.best_of is not None or asked.loop:
        raise UserError("--mask, --variation and --best-of are for pictures and --loop is for films, not for sound.")
    if asked.seconds is not None and not 0 < asked.seconds < math.inf:
        raise UserError(f"--seconds must be a number above 0, not {asked.seconds:g}.")


def _read(path: str, rate: int) -> np.ndarray:
    """A recording as the model knows them."""
    if not Path(path).is_file():
        raise UserError(f"there is no recording {path}.")
    try:
        return fitted_sound(*read_sound(Path(path)), rate)
    except (Unreadable, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
