"""Films: one run of `film`, and what its films show; and how near a quantizer brings 32 px emoji back.

A checker reads thing, colour, motion and style from frames (`tessera.evals.films`); it is asked first about real films, whose
scenes are known. Then: films by captions that say all four; films from a first frame, whose ids have to come back as they went
in; and films that are gone on with from their first 5 frames, compared with where the thing really goes.

    python benchmarks/film.py                     # trains by the recipe and measures
    python benchmarks/film.py --run runs/film     # measures a run that is there
    python benchmarks/film.py --only emoji        # the quantizer on emoji alone
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import about, data_folder, facts, result_path, store, train

from tessera import recipe
from tessera.commands.generate import open_engine
from tessera.data.builtin_films import Scene, scene
from tessera.data.picture_tasks import config_of
from tessera.data.pictures import read_picture
from tessera.device import detect, prepare_process
from tessera.engine.engine import Engine
from tessera.engine.films import GUIDANCE, TEMPERATURE, FilmWish, make_films, quantizer_of, tell
from tessera.engine.sampling import SamplingParams
from tessera.engine.scheduler import Limits
from tessera.evals.films import see
from tessera.train.quantizer import measure, train_quantizer

BARS = {"all_right": 0.90, "position_error": 1.0, "emoji_psnr": 22.5}
GIVEN = 5
"""Frames of a film that is gone on with."""
EMOJI_HELD_OUT = 300


def main() -> None:
    """Trains where no run is given, measures, prints and stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="measure this run of `film` instead of training one")
    parser.add_argument("--budget", help="instead of the recipe's")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--films", type=int, default=200, help="of each kind that are made")
    parser.add_argument("--guidance", type=float, nargs="+", default=[GUIDANCE])
    parser.add_argument("--temperature", type=float, default=TEMPERATURE)
    parser.add_argument("--only", choices=["films", "emoji"])
    parser.add_argument("--emoji-steps", type=int, default=2500)
    parser.add_argument("--emoji", help="folder of 32 px PNG files; by default those of the data folder")
    parser.add_argument("--strip", help="write some of the films into this PNG file, a film a row")
    parser.add_argument("--name", default="film")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found: dict[str, Any] = {"bars": BARS}
    if asked.only != "emoji":
        with tempfile.TemporaryDirectory(prefix="film-") as scratch:
            run = Path(asked.run) if asked.run else train("film", Path(scratch) / "run", asked.seed, asked.budget, asked.settings)
            found |= {**about(run), **films(run, asked)}
    if asked.only != "films":
        found["emoji"] = emoji(asked)
    store(result_path(asked.name), {**facts(), **found})
    print(json.dumps(found, indent=None if asked.json else 1))


def films(run: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """All that is measured on films."""
    engine = open_engine(str(run), "float32", Limits(rows=32, step_tokens=1024, queued_requests=4096, queued_tokens=1 << 22))
    quantizer = quantizer_of(engine)
    rng = np.random.Generator(np.random.PCG64([77, asked.seed]))
    scenes = [scene(rng) for _ in range(asked.films)]
    real = np.stack([s.film() for s in scenes])
    back = quantizer.decode_all(quantizer.encode_all(real))
    params = SamplingParams(max_tokens=1, temperature=asked.temperature, seed=1000 * asked.seed)
    found: dict[str, Any] = {
        "films": len(scenes),
        "checker_on_real_films": right(list(real), scenes),
        "checker_on_quantized_films": right(list(back), scenes),
        "quantizer": measure(quantizer, list(real)),
    }
    made = []
    for guidance in asked.guidance:
        begin = time.perf_counter()
        made = make_films(engine, [FilmWish(s.caption, guidance=guidance) for s in scenes], params)
        seconds = time.perf_counter() - begin
        found[f"by_caption_guidance_{guidance:g}"] = {
            **right([m.frames for m in made], scenes), "films_per_second": len(made) / seconds
        }  # fmt: skip
    found["all_right"] = max(found[f"by_caption_guidance_{g:g}"]["all"] for g in asked.guidance)
    if asked.strip:
        strip(Path(asked.strip), [m.frames for m in made[:6]])
    found["from_first_frame"] = from_beginnings(engine, scenes, real, 1, asked, params)
    found["gone_on_with"] = from_beginnings(engine, scenes, real, GIVEN, asked, params)
    found["position_error"] = found["gone_on_with"]["position_error"]
    greedy = SamplingParams(max_tokens=32, temperature=0)
    said = [completion.text.strip() for completion in tell(engine, list(real), "", greedy)]
    found["told_right"] = float(np.mean([words == s.caption for words, s in zip(said, scenes, strict=True)]))
    found["told"] = [[s.caption, words] for words, s in list(zip(said, scenes, strict=True))[:8]]
    return found


def from_beginnings(
    engine: Engine, scenes: list[Scene], real: np.ndarray, given: int, asked: argparse.Namespace, params: SamplingParams
) -> dict[str, Any]:
    """Films whose first frames and captions are given: whether these ids stayed, what is right, and where the thing is."""
    quantizer = quantizer_of(engine)
    wishes = [
        FilmWish(s.caption, beginning=film[:given], guidance=asked.guidance[0]) for s, film in zip(scenes, real, strict=True)
    ]
    made = make_films(engine, wishes, params)
    kept, errors = [], []
    for film, one, s in zip(real, made, scenes, strict=True):
        ids = quantizer.encode(film[:given])
        kept.append(bool((one.ids[: len(ids)] == ids).all()))
        # Where it is 4 frames later, the real frames before it being seen as they are.
        place = see(np.concatenate([film[:given], one.frames[given:]])).places[given + 3]
        errors.append(math.dist(place, s.place(given + 3)))
    return {
        "given_frames": given,
        "ids_kept": float(np.mean(kept)),
        **right([one.frames for one in made], scenes),
        "position_error": statistics.fmean(errors),
        "position_error_median": statistics.median(errors),
        "within_one_pixel": float(np.mean([e <= 1 for e in errors])),
    }


def right(frames: list[np.ndarray], scenes: list[Scene]) -> dict[str, float]:
    """Share of films that show what their scene says, in all and by part."""
    marks = [see(f).agrees(s) for f, s in zip(frames, scenes, strict=True)]
    shares = {part: float(np.mean([m[part] for m in marks])) for part in marks[0]}
    return {"all": float(np.mean([all(m.values()) for m in marks])), **shares}


def strip(path: Path, films_: list[np.ndarray]) -> None:
    """A film a row, its frames side by side, twice as large."""
    from PIL import Image

    rows = [np.concatenate([np.pad(f, ((1, 1), (1, 1), (0, 0)), constant_values=128) for f in film], 1) for film in films_]
    pixels = np.concatenate(rows, 0).repeat(2, 0).repeat(2, 1)
    Image.fromarray(pixels).save(path, "PNG", optimize=True)


def emoji(asked: argparse.Namespace) -> dict[str, Any]:
    """A quantizer with 64 ids for a 32 px picture: PSNR on emoji that it never saw."""
    folder = Path(asked.emoji) if asked.emoji else data_folder() / "image" / "emoji" / "png" / "32"
    if not folder.is_dir():
        return {"left_out": f"there is no {folder}"}
    pictures = [read_picture(path) for path in sorted(folder.rglob("*.png"))]
    pictures = [p for p in pictures if p.shape == (32, 32, 3)]
    # Equal pictures under two names must not stand on both sides.
    pictures = list({p.tobytes(): p for p in pictures}.values())
    order = np.random.Generator(np.random.PCG64(asked.seed)).permutation(len(pictures))
    test, learned = ([pictures[i] for i in part] for part in (order[:EMOJI_HELD_OUT], order[EMOJI_HELD_OUT:]))
    settings = recipe.Quantizer(width=64, encoder_layers=2, decoder_layers=4, batch=24, steps=asked.emoji_steps)
    begin, cpu = time.perf_counter(), time.process_time()

    def show(event: dict[str, Any]) -> None:
        if event["event"] == "exam":
            print(
                f"emoji: step {event['step']}, {event['psnr']:.2f} dB, {time.process_time() - cpu:.0f} s of CPU", file=sys.stderr
            )

    quantizer = train_quantizer(config_of("image", settings), settings, learned, test, detect(), asked.seed, observers=(show,))
    return {
        "learned_from": len(learned), "held_out": len(test), "settings": settings.model_dump(),
        "ids_per_picture": math.prod(quantizer.grid((32, 32))), "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu, **measure(quantizer, test),
    }  # fmt: skip


if __name__ == "__main__":
    prepare_process()
    main()
