"""What a model makes, good and bad as it comes, as a page with pictures: `docs/gallery.md`.

    python benchmarks/gallery.py starter

Nothing is chosen: the prompts stand below, the seeds count up from 0, and a checker that does not know the model says what
is right. What the model cannot make is left out, and the page says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from common import facts
from PIL import Image

from tessera.commands.generate import open_engine
from tessera.data.builtin_films import SIDE, scene
from tessera.data.builtin_pictures import NUMBERS, digit_arrays, digit_pixels
from tessera.data.builtin_sounds import PER_SECOND, melody
from tessera.engine.engine import Engine
from tessera.engine.films import TEMPERATURE as FILM_TEMPERATURE
from tessera.engine.films import FilmWish, make_films, quantizer_of
from tessera.engine.pictures import Wish, draw
from tessera.engine.request import Request
from tessera.engine.sampling import SamplingParams
from tessera.engine.sounds import TEMPERATURE as SOUND_TEMPERATURE
from tessera.engine.sounds import SoundWish, make_sounds, sound_quantizer_of
from tessera.engine.thinking import budgets_of, speaks_dialogue, thought
from tessera.errors import UserError
from tessera.evals.digits import digit_judge, name_digits, read_digits
from tessera.evals.films import see
from tessera.evals.melodies import heard
from tessera.evals.tour import STOP
from tessera.model import weights
from tessera.tokens import chat

HERE = Path(__file__).parents[1] / "docs"
CALM = 0.2
CODE = (
    'def answer(values):\n    """Return the number of the odd numbers in values."""\n',
    'def answer(values):\n    """Return the largest of the squares of the even numbers in values."""\n',
    "def read_lines(path):\n",
    "def fibonacci(n):\n",
)
TALK = (
    "Hello!",
    "Who are you?",
    "What is the opposite of hot?",
    "Sort these words: pear, apple, fig.",
    "What will the weather be tomorrow?",
)
SUMS = ("What is 37 + 58?", "What is 412 + 89?", "What is 64 - 27?")
RIGHT, WRONG = (46, 160, 67), (207, 34, 46)
"""Colours of frames."""


def framed(picture: np.ndarray, right: bool, scale: int) -> np.ndarray:
    """(H, W, 3) -> larger, in a frame that says what a checker found."""
    large = picture.repeat(scale, 0).repeat(scale, 1)
    padded = np.pad(large, ((3, 3), (3, 3), (0, 0)))
    padded[:3] = padded[-3:] = padded[:, :3] = padded[:, -3:] = RIGHT if right else WRONG
    return np.pad(padded, ((3, 3), (3, 3), (0, 0)), constant_values=255)


def sheet(path: Path, rows: Sequence[Sequence[np.ndarray]]) -> str:
    """Writes rows of pictures of one size as a PNG; how a page of `docs/` shows it."""
    Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in rows], 0)).save(path, optimize=True)
    return f"images/{path.name}"


def digits(engine: Engine, images: Path, seeds: int) -> list[str]:
    wishes = [Wish(f"a {name}", (8, 8)) for name in NUMBERS] * seeds
    drawn = np.stack([one.pixels for one in draw(engine, wishes, SamplingParams(max_tokens=1, seed=0))])
    read = read_digits(digit_judge(), drawn)
    right = [digit == place % len(NUMBERS) for place, digit in enumerate(read)]
    cells = [framed(picture, good, 6) for picture, good in zip(drawn, right, strict=True)]
    rows = [cells[place : place + len(NUMBERS)] for place in range(0, len(cells), len(NUMBERS))]
    shown = sheet(images / "gallery-digits.png", rows)
    levels, labels = digit_arrays("test")
    asked = digit_pixels(levels[: 2 * len(NUMBERS)])
    said = name_digits(engine, asked)
    known = [word == NUMBERS[label] for word, label in zip(said, labels, strict=False)]
    cells = [framed(picture, good, 6) for picture, good in zip(asked, known, strict=True)]
    seen = sheet(images / "gallery-seen.png", [cells[: len(NUMBERS)], cells[len(NUMBERS) :]])
    words = [", ".join(said[row : row + len(NUMBERS)]) for row in (0, len(NUMBERS))]
    return [
        "## Digits",
        f"`a zero` to `a nine`, {seeds} seeds; a classifier of handwritten ones reads {sum(right)} of {len(right)} as meant.",
        f"![Handwritten digits, a seed a row]({shown})",
        f"Looked at, {len(known)} that no source yields: *{words[0]}*; *{words[1]}*. {sum(known)} are named rightly.",
        f"![Digits that were looked at]({seen})",
    ]


def films(engine: Engine, images: Path, seeds: int) -> list[str]:
    if quantizer_of(engine).shape[1:] != (SIDE, SIDE):
        raise UserError(f"its films are not {SIDE} x {SIDE}")
    rng = np.random.Generator(np.random.PCG64([79, 0]))
    scenes = [scene(rng) for _ in range(seeds)]
    made = make_films(engine, [FilmWish(one.caption) for one in scenes], SamplingParams(1, FILM_TEMPERATURE, seed=0))
    parts = [see(film.frames).agrees(one) for film, one in zip(made, scenes, strict=True)]
    rows = [[framed(frame, all(p.values()), 2) for frame in film.frames] for film, p in zip(made, parts, strict=True)]
    lines = [
        f"{number}. `{one.caption}`: "
        + ("all right" if all(p.values()) else "not the " + ", ".join(k for k, v in p.items() if not v))
        for number, (one, p) in enumerate(zip(scenes, parts, strict=True), 1)
    ]
    shown = sheet(images / "gallery-films.png", rows)
    return ["## Films", f"Nine frames, a film a row, {seeds} captions as they come:", f"![Films]({shown})", "\n".join(lines)]


def melodies(engine: Engine, _: Path, seeds: int) -> list[str]:
    if (rate := round(sound_quantizer_of(engine).per_second)) != PER_SECOND:
        raise UserError(f"its sounds have {rate} samples a second")
    rng = np.random.Generator(np.random.PCG64([79, 1]))
    wanted = [melody(rng) for _ in range(seeds)]
    made = make_sounds(engine, [SoundWish(one.caption) for one in wanted], SamplingParams(1, SOUND_TEMPERATURE, seed=0))
    lines = ["| asked | seconds | notes that are heard | |", "|---|---|---|---|"]
    for one, sound in zip(wanted, made, strict=True):
        notes = heard(sound.samples, rate)
        mark = "right" if notes == one.notes else "wrong"
        lines.append(f"| {one.caption} | {len(sound.samples) / rate:.2f} | {' '.join(notes)} | {mark} |")
    return ["## Melodies", "The strongest tone of each note, as a checker hears it:", "\n".join(lines)]


def code(engine: Engine, _: Path, seeds: int) -> list[str]:
    asked = [tuple(engine.vocabulary.encode_text(prompt)) for prompt in CODE]
    params = [SamplingParams(96, CALM, seed=number, stop=STOP) for number in range(len(CODE))]
    made = engine.complete([Request(ids, one) for ids, one in zip(asked, params, strict=True)])
    blocks = [f"```python\n{prompt}{one.text.rstrip()}\n```" for prompt, one in zip(CODE, made, strict=True)]
    return ["## Code", f"The beginning is given; temperature {CALM}.", *blocks]


def talk(engine: Engine, model: str) -> list[str]:
    if not speaks_dialogue(model, engine.vocabulary):
        raise UserError("it knows no dialogue")
    budgets = budgets_of(model)
    lines = []
    asked = [(question, "") for question in TALK] + [(question, effort) for question in SUMS for effort in budgets]
    for number, (question, effort) in enumerate(asked):
        turns = [chat.Message("user", question)]
        ids = engine.vocabulary.encode(chat.render(turns, add_generation_prompt=True, effort=effort)).ids.tolist()
        think = thought(engine.vocabulary, budgets, effort) if effort else None
        room = SamplingParams(64 + (think.tokens if think else 0), CALM, seed=number)
        (made,) = engine.complete([Request(tuple(ids), room, think)])
        said = chat.parse(engine.vocabulary.decode(made.ids))
        hidden = f"*{said.reasoning.strip()}* " if said.reasoning else ""
        lines.append(f"- **{question}**" + (f" (effort {effort})" if effort else "") + f" {hidden}{said.content.strip()}")
    return ["## Talk and sums", f"Thoughts in italics; temperature {CALM}.", "\n".join(lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, default=6, help="of each digit; and how many films and melodies")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the page")
    given = parser.parse_args()
    engine = open_engine(given.model, "float32")
    images = given.out / "images"
    images.mkdir(parents=True, exist_ok=True)
    folder = str(weights.resolve_model(given.model))
    parts: dict[str, Callable[[], list[str]]] = {
        "talk": lambda: talk(engine, folder),
        "code": lambda: code(engine, images, given.seeds),
        "digits": lambda: digits(engine, images, given.seeds),
        "films": lambda: films(engine, images, given.seeds),
        "melodies": lambda: melodies(engine, images, given.seeds),
    }
    now = facts()
    page = [
        "# Gallery",
        f"What `{given.model}` made on {now['when'][:10]} (commit {now['commit']}): `{now['command']}`. Nothing is chosen; seeds "
        "count up from 0, and green and *right* are a checker's words. How often each comes out right stands in its card.",
    ]
    for name, make in parts.items():
        try:
            page += make()
        except UserError as error:
            page.append(f"No {name}: {error}")
        print(f"{name}: done", flush=True)
    (given.out / "gallery.md").write_text("\n\n".join(page) + "\n")
    print(f"written {given.out / 'gallery.md'}")


if __name__ == "__main__":
    main()
