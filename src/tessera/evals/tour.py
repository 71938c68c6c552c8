"""Measures the tour: each of its steps asked with many seeds, and what comes back judged by a checker of its own.

Functions are run against tests, sums are compared as numbers, a drawn digit is named by a classifier, a film is read from its
frames and a melody from its spectra; what is said of a picture and of two answers has to be the right word. A step that a model
cannot do is left out with its reason. `judged` takes what came back from anywhere, also over the API (`docs/tour.py`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tessera.data.builtin_films import MOTIONS, SIDE, STYLES, THINGS, Scene
from tessera.data.builtin_pictures import COLOURS, NUMBERS
from tessera.data.builtin_sounds import NOTES, PER_SECOND
from tessera.engine.engine import Engine
from tessera.engine.films import FilmWish, make_films, quantizer_of
from tessera.engine.pictures import Wish, draw, seeing
from tessera.engine.request import Request
from tessera.engine.sampling import SamplingParams
from tessera.engine.sounds import SoundWish, make_sounds, sound_quantizer_of
from tessera.engine.thinking import refusal, thought
from tessera.errors import UserError
from tessera.evals.digits import digit_judge, read_digits
from tessera.evals.films import see
from tessera.evals.melodies import heard
from tessera.evals.score import Score
from tessera.posttrain.verifiers.measures import mean_and_error
from tessera.sandbox.box import Sandbox
from tessera.tokens import chat
from tessera.tokens.prompts import fill_prompt
from tessera.tour import STEPS, Asking, Step, askings

STOP = ("\ndef ", "\nclass ", "\n#", "\nif ", "\nprint")
"""Ends a function that is completed."""
_DIGIT_SIDE = 8
_FILM = Scene("red", "ball", "bounces to the left", "", 0, 0)
_MELODY = ("C", "E", "G")
_DOES: Mapping[str, Callable[[list[int]], int]] = {
    "complete": lambda values: sum(x * x for x in values if x % 2 == 0),
    "fill": lambda values: max((2 * x for x in values if x % 2 == 1), default=0),
}
"""What the functions of these steps have to return."""
CHANCE: Mapping[str, float] = {
    "complete": 0.0,
    "fill": 0.0,
    "chat": 1 / len(range(2 * 10, 2 * 99 + 1)),
    "draw": 1 / len(NUMBERS),
    "look": 1 / len(NUMBERS),
    "film": 1 / (len(COLOURS) * len(THINGS) * len(MOTIONS) * len(STYLES)),
    "play": 1 / (4 * len(NOTES) ** len(_MELODY)),
    "judge": 0.5,
}
"""Kind of a step -> how often a blind guess is right: any sum of two numbers of two digits, any digit, film or melody."""


@dataclass(frozen=True)
class LeftOut:
    """A step that was not measured, and why."""

    step: Step
    reason: str


@dataclass(frozen=True)
class Trial:
    """One answer of the tour: what was asked, what came back as `judged` takes it, and whether it is right."""

    step: Step
    asked: Asking
    made: str | np.ndarray
    right: bool


@dataclass(frozen=True)
class Model:
    """What is asked.

    Args:
        engine: with its weights.
        dialogue: it knows the turns of a dialogue.
        budgets: effort -> tokens of thought that it was trained with.
        guided: media that it has learned to guide by itself.
    """

    engine: Engine
    dialogue: bool
    budgets: Mapping[str, int]
    guided: frozenset[str] = frozenset()


def measure_tour(
    model: Model,
    seeds: int,
    sandbox: Sandbox,
    first: int = 0,
    steps: Sequence[Step] = STEPS,
    told: Callable[[Trial], object] = lambda trial: None,
) -> tuple[list[Score], list[LeftOut]]:
    """Each step with `seeds` seeds from `first` on; the share of those that came out right, and the steps left out.

    Where two answers are compared, a seed counts by the share of the two orders that came out right. `told` gets every answer.
    """
    scores, left_out = [], []
    for step in steps:
        asked = [askings(step, seed) for seed in range(first, first + seeds)]
        flat = [one for many in asked for one in many]
        try:
            made = _made(model, step, flat, first)
        except UserError as error:
            left_out.append(LeftOut(step, str(error)))
            continue
        marks = judged(step, flat, made, sandbox)
        for trial in zip(flat, made, marks, strict=True):
            told(Trial(step, *trial))
        right = iter(marks)
        value, error_of = mean_and_error([float(np.mean([next(right) for _ in many])) for many in asked])
        settings = {
            "seed": first,
            "temperature": step.temperature,
            **({"isolation": sandbox.isolation} if step.name in _DOES else {}),
        }
        scores.append(Score("tour", step.title, value, error_of, seeds, CHANCE[step.kind], None, "", settings))
    return scores, left_out


def judged(step: Step, asked: Sequence[Asking], made: Sequence[str | np.ndarray], sandbox: Sandbox) -> list[bool]:
    """Whether each thing that was made of a step is right.

    Args:
        made: what came back for each of `asked`: a text without its thought, of functions what was completed or filled in alone;
            a picture (H, W, 3) uint8; a film (T, H, W, 3) uint8; or a melody, (T,) int16 at 8000 a second.
    """
    if step.name in _DOES:
        programs = [f"{step.prompt}{text}{step.suffix}" for text in made]
        return [result.passed for result in sandbox.run_all([(text, assertions(step), "answer") for text in programs])]
    if step.kind == "draw":
        return _sevens([np.asarray(picture) for picture in made])
    if step.kind == "film":
        return [_is_film(np.asarray(frames)) for frames in made]
    if step.kind == "play":
        return [heard(np.asarray(samples), PER_SECOND) == _MELODY for samples in made]
    says = {"chat": _says_sum, "look": _says_digit, "judge": _says}[step.kind]
    return [says(one, str(text)) for one, text in zip(asked, made, strict=True)]


def assertions(step: Step) -> str:
    """Assertions about the function of a step, one a line."""
    dice = random.Random(f"tour {step.name}")
    lists = [[], [2], [3], *([dice.randint(-20, 20) for _ in range(size)] for size in range(2, 10))]
    return "".join(f"assert answer({values}) == {_DOES[step.name](values)}\n" for values in lists)


def _says_sum(_: Asking, text: str) -> bool:
    """The last number is the sum."""
    return (re.findall(r"\d+", text) or [""])[-1] == str(37 + 58)


def _says_digit(asking: Asking, text: str) -> bool:
    """The digit is named, and no other one."""
    return [word for word in re.findall(r"[a-z]+", text.lower()) if word in NUMBERS] == [asking.right]


def _says(asking: Asking, text: str) -> bool:
    return text.strip().rstrip(".") == asking.right


def _sevens(pictures: Sequence[np.ndarray]) -> list[bool]:
    fits = [picture.shape[:2] == (_DIGIT_SIDE, _DIGIT_SIDE) for picture in pictures]
    if not any(fits):
        return fits
    named = iter(read_digits(digit_judge(), np.stack([p for p, fit in zip(pictures, fits, strict=True) if fit])))
    return [fit and NUMBERS[next(named)] == "seven" for fit in fits]


def _is_film(frames: np.ndarray) -> bool:
    return frames.shape[1:3] == (SIDE, SIDE) and all(see(frames).agrees(_FILM).values())


def _made(model: Model, step: Step, asked: Sequence[Asking], first: int) -> list[str | np.ndarray]:
    """What the model makes of each.

    Raises:
        UserError: it cannot, and why.
    """
    engine = model.engine
    params = SamplingParams(step.max_tokens, step.temperature, seed=first)
    if step.kind == "draw":
        height, width = map(int, step.size.split("x")[::-1])
        wishes = [Wish(one.prompt, (height, width), distilled="image" in model.guided) for one in asked]
        return [drawing.pixels for drawing in draw(engine, wishes, params)]
    if step.kind == "film":
        if (shape := quantizer_of(engine).shape[1:]) != (SIDE, SIDE):
            raise UserError(f"its films are {shape[0]} x {shape[1]}, and the checker reads {SIDE} x {SIDE}.")
        return [
            film.frames
            for film in make_films(engine, [FilmWish(one.prompt, distilled="video" in model.guided) for one in asked], params)
        ]
    if step.kind == "play":
        if (rate := round(sound_quantizer_of(engine).per_second)) != PER_SECOND:
            raise UserError(f"its sounds have {rate} samples a second, and the checker reads {PER_SECOND}.")
        return [
            sound.samples
            for sound in make_sounds(engine, [SoundWish(one.prompt, distilled="audio" in model.guided) for one in asked], params)
        ]
    prompts = [_prompt(model, step, one) for one in asked]
    effort = _effort(step)
    think = thought(engine.vocabulary, model.budgets, effort) if effort else None
    tokens = step.max_tokens + (think.tokens if think else 0)
    stop = STOP if step.kind == "complete" else ()
    requests = [
        Request(tuple(prompt), SamplingParams(tokens, step.temperature, seed=first + number, stop=stop), think)
        for number, prompt in enumerate(prompts)
    ]
    return [completion.text for completion in engine.complete(requests)]


def _prompt(model: Model, step: Step, asking: Asking) -> list[int]:
    """Ids of what is asked in words."""
    vocabulary = model.engine.vocabulary
    if step.kind == "complete":
        return vocabulary.encode_text(asking.prompt)
    if step.kind == "fill":
        return fill_prompt(vocabulary, asking.prompt, step.suffix, model.engine.context - step.max_tokens)
    if asking.picture is not None:
        vocabulary.media_tokenizer("image")
        if not model.dialogue:
            return seeing(model.engine, asking.picture, asking.prompt)
    if not model.dialogue:
        raise UserError("this model knows no dialogue; tune it first (docs/tuning.md).")
    if (effort := _effort(step)) and effort not in model.budgets:
        raise UserError(refusal(model.budgets, effort))
    pictures = () if asking.picture is None else (asking.picture,)
    turns = [chat.Message("user", asking.prompt, pictures=pictures)]
    ids: list[int] = vocabulary.encode(chat.render(turns, add_generation_prompt=True, effort=effort)).ids.tolist()
    return ids


def _effort(step: Step) -> str:
    return "" if step.effort == "none" else step.effort
