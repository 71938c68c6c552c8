"""Films with the frame before as a guess of the next, and without: the same ids, and how much faster.

    python benchmarks/film_speed.py [--run runs/film] [--budget 6m] [--films 8] [--rounds 6]

A run of `film`, and two engines with its weights, one of which computes up to 8 guessed tokens beside the last one of each film.
They make the same films from the same seeds in turn, by captions with guidance 2 and one by one as `generate` does, or several
together; process time, one thread. Random numbers belong to tokens, so that both make the same ids but for roundings.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import about, facts, result_path, spread, store, train

BAR = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="of `film`, instead of training one")
    parser.add_argument("--budget", default="6m", help="of the run")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="of the run")
    parser.add_argument("--films", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()
    from tessera.device import prepare_process

    prepare_process()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="film-speed-") as scratch:
        run = Path(options.run or train("film", Path(scratch) / "film", 0, options.budget, options.settings))
        result: dict[str, Any] = {**facts(), "options": vars(options), "bar": BAR, **about(run), **measure(run, options)}
    for name, found in result["ways"].items():
        faster, share = found["faster"], found["guessed_share"]
        verdict = "held" if faster["median"] >= BAR else "MISSED"
        print(
            f"{name}: {faster['median']:.2f} times as fast ({faster['q1']:.2f} to {faster['q3']:.2f}; bar {BAR}, {verdict}), "
            f"{share:.0%} of the tokens guessed, {found['equal']:.1%} of the ids equal"
        )
    store(result_path("film-speed"), result)
    if options.json:
        print(json.dumps(result))


def measure(run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both engines in turn, one film at a time and all together."""
    from tessera.commands.generate import open_engine
    from tessera.data.builtin_films import scene
    from tessera.engine.films import FilmWish, make_films
    from tessera.engine.sampling import SamplingParams
    from tessera.engine.scheduler import Limits

    dice = np.random.Generator(np.random.PCG64(1))
    wishes = [FilmWish(scene(dice).caption, guidance=options.guidance) for _ in range(options.films)]
    engines = {guesses: open_engine(str(run), "float32", Limits(rows=32, guess_tokens=guesses)) for guesses in (0, 8)}
    ways: dict[str, Any] = {}
    for name, size in (("one at a time", 1), (f"{options.films} together", options.films)):
        seconds: dict[int, list[float]] = {guesses: [] for guesses in engines}
        equal, before = [], {guesses: engine.stats() for guesses, engine in engines.items()}
        for turn in range(options.rounds + 1):
            ids = {}
            for guesses, engine in engines.items():
                start = time.process_time()
                parts = [wishes[at : at + size] for at in range(0, len(wishes), size)]
                made = [film for part in parts for film in make_films(engine, part, SamplingParams(1, seed=100 * turn))]
                # The first round compiles and warms up.
                if turn:
                    seconds[guesses].append(time.process_time() - start)
                ids[guesses] = np.concatenate([film.ids.ravel() for film in made])
            equal.append(float((ids[0] == ids[8]).mean()))
        after = engines[8].stats()
        guessed, tokens = (getattr(after, key) - getattr(before[8], key) for key in ("guessed_tokens", "tokens"))
        faster = [a / b for a, b in zip(seconds[0], seconds[8], strict=True)]
        ways[name] = {
            "faster": spread(faster), "seconds": {str(key): value for key, value in seconds.items()},
            "equal": float(np.mean(equal)), "guessed_share": guessed / tokens,
        }  # fmt: skip
    return {"ways": ways}


if __name__ == "__main__":
    main()
