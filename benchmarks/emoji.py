"""Emoji drawn by their names: one run of `draw` whose pictures are 64 patches, and whether what it draws is what was asked for.

Held out are combinations of tone, gender and job (each of the three, and each pair of job and gender, is seen with others), and
whole emoji. A judge that knows all real pictures (principal components, then a linear discriminant over shifted, scaled and
blurred copies of each) says which of 100 names a drawn one belongs to: its own and 99 others, drawn at random. It is asked first
about the real pictures as they come back from the quantizer.

    python benchmarks/emoji.py                      # trains, 20 minutes, and measures
    python benchmarks/emoji.py --seeds 0 1 2
    python benchmarks/emoji.py --run runs/emoji     # measures a run that is there
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import about, data_folder, facts, result_path, store, train
from PIL import Image, ImageFilter
from sklearn.decomposition import PCA

from tessera.commands.generate import open_engine
from tessera.data.pictures import read_picture
from tessera.device import prepare_process
from tessera.engine.engine import Limits
from tessera.engine.pictures import Wish, draw
from tessera.engine.sampling import SamplingParams

BARS = {"seen": 0.60, "combinations": 0.30}
CANDIDATES = 100
HELD_OUT_COMBINATIONS, HELD_OUT_EMOJI = 150, 60
SETTINGS = (
    "data.pictures.quantizer.width=64", "data.pictures.quantizer.encoder_layers=1", "data.pictures.quantizer.decoder_layers=4",
    "data.pictures.quantizer.batch=24", "data.pictures.tasks.draw=0.8",
    "data.pictures.tasks.see=0.2", "data.pictures.tasks.edit=0", "data.pictures.tasks.vary=0", "data.pictures.transformed=0",
    "data.pictures.bent=0", "data.document_mask=true",
)  # fmt: skip
_PERSON = re.compile(r"(man|woman|person) ([^:]+): ([a-z-]+ skin tone)")


@dataclass(frozen=True)
class Emoji:
    """One of the data folder.

    Args:
        pixels: (32, 32, 3) uint8, transparent parts on white.
    """

    file: Path
    name: str
    pixels: np.ndarray

    @property
    def parts(self) -> tuple[str, str, str] | None:
        """Gender, job and tone, where its name has all three."""
        found = _PERSON.fullmatch(self.name)
        return None if found is None else (found[1], found[2], found[3])


def main() -> None:
    """Trains where no run is given, measures, prints and stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of weights, data and samples; one split")
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--run", help="measure this run instead of training one")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--best-of", type=int, default=4, help="pictures drawn for each name; the model keeps the likeliest")
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--pictures", type=int, default=200, help="of each kind that are drawn, as far as there are so many")
    parser.add_argument("--strip", help="write some of the drawn pictures into this PNG file, each under the real one")
    parser.add_argument("--name", default="emoji")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    learned, combinations, others = split(read())
    judge = Judge([*learned, *combinations, *others])
    results = []
    with tempfile.TemporaryDirectory(prefix="emoji-") as scratch:
        for seed in asked.seeds:
            run = Path(asked.run) if asked.run else trained(Path(scratch) / f"{seed}", learned, seed, asked)
            results.append({"seed": seed, **about(run), **measured(run, seed, learned, combinations, others, judge, asked)})
            print(json.dumps(results[-1]), file=sys.stderr)
    found = {"bars": BARS, "learned": len(learned), "seeds": results}
    found["mean"] = {key: statistics.fmean(r[key]["right"] for r in results) for key in BARS}
    store(result_path(asked.name), {**facts(), **found})
    if asked.json:
        print(json.dumps(found))
        return
    for key in ("judge_on_real", "seen", "combinations", "whole_emoji"):
        shown = "  ".join(f"{r[key]['right']:.1%} of {r[key]['pictures']}" for r in results)
        bar = f"   bar {BARS[key]:.0%}: {'held' if found['mean'][key] >= BARS[key] else 'missed'}" if key in BARS else ""
        print(f"{key:<16} {shown}{bar}")


def read() -> list[Emoji]:
    """All that have a name, each once."""
    folder = data_folder() / "image" / "emoji"
    found: dict[str, Emoji] = {}
    with (folder / "captions.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            path = folder / "png" / "32" / row["file"]
            if path.is_file() and (pixels := read_picture(path)).shape == (32, 32, 3):
                found.setdefault(row["name"], Emoji(path, row["name"], pixels))
    return [found[name] for name in sorted(found)]


def split(emoji: list[Emoji]) -> tuple[list[Emoji], list[Emoji], list[Emoji]]:
    """Learned from; held out as combinations of parts that are seen in others; held out whole, with all that looks the same."""
    rng = np.random.Generator(np.random.PCG64(20261201))
    jobs: dict[str, list[Emoji]] = {}
    for one in emoji:
        if one.parts:
            jobs.setdefault(one.parts[1], []).append(one)
    combined = [one for job in sorted(jobs) for one in jobs[job] if len(jobs[job]) >= 10]
    combinations: list[Emoji] = []
    left: dict[tuple[str, str], int] = {}
    for one in combined:
        assert one.parts
        left[one.parts[:2]] = left.get(one.parts[:2], 0) + 1
    for i in rng.permutation(len(combined)):
        parts = combined[i].parts
        assert parts
        # At least three tones of each gender at each job stay.
        if len(combinations) < HELD_OUT_COMBINATIONS and left[parts[:2]] > 3:
            combinations.append(combined[i])
            left[parts[:2]] -= 1
    plain = [one for one in emoji if ":" not in one.name and "skin tone" not in one.name]
    kept = {id(one) for one in combinations}
    alike: dict[bytes, int] = {}
    for one in emoji:
        alike[one.pixels.tobytes()] = alike.get(one.pixels.tobytes(), 0) + 1
    single = [one for one in plain if alike[one.pixels.tobytes()] == 1]
    others = [single[i] for i in rng.permutation(len(single))[:HELD_OUT_EMOJI]]
    kept |= {id(one) for one in others}
    unseen = {one.pixels.tobytes() for one in (*combinations, *others)}
    learned = [one for one in emoji if id(one) not in kept and one.pixels.tobytes() not in unseen]
    return learned, combinations, others


def trained(folder: Path, learned: list[Emoji], seed: int, asked: argparse.Namespace) -> Path:
    """One run, by the command line, on a folder with a list of captions."""
    own = folder / "emoji"
    own.mkdir(parents=True)
    rows = ["file\tname"]
    for one in learned:
        (own / one.file.name).symlink_to(one.file.resolve())
        rows.append(f"{one.file.name}\t{one.name}")
    (own / "captions.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return train("draw", folder / "run", seed, asked.budget, (f'data.sources=["files:{own}"]', *SETTINGS, *asked.settings))


class Judge:
    """Tells real emoji apart: a class for each, of copies that are moved, scaled, blurred and brightened a little."""

    COPIES, COMPONENTS = 12, 96

    def __init__(self, known: list[Emoji]) -> None:
        rng = np.random.Generator(np.random.PCG64(0))
        self.place = {one.name: number for number, one in enumerate(known)}
        copies = np.stack([_features(_changed(one.pixels, rng)) for one in known for _ in range(self.COPIES)])
        labels = np.repeat(np.arange(len(known)), self.COPIES)
        self.components = PCA(self.COMPONENTS, random_state=0).fit(copies)
        reduced = self.components.transform(copies)
        self.means = reduced.reshape(len(known), self.COPIES, -1).mean(1)
        within = reduced - self.means[labels]
        # A discriminant whose classes share one covariance: distances in the space in which it is the identity.
        values, vectors = np.linalg.eigh(within.T @ within / len(within) + 1e-3 * np.eye(self.COMPONENTS))
        self.whiten = vectors / np.sqrt(values)

    def right(self, pictures: np.ndarray, wanted: list[Emoji], seed: int) -> dict[str, Any]:
        """How many are nearest to their own name among `CANDIDATES`."""
        rng = np.random.Generator(np.random.PCG64([seed, 100]))
        seen = self.components.transform(np.stack([_features(picture) for picture in pictures])) @ self.whiten
        means = self.means @ self.whiten
        marks = []
        for features, one in zip(seen, wanted, strict=True):
            own = self.place[one.name]
            others = rng.choice(np.delete(np.arange(len(means)), own), CANDIDATES - 1, replace=False)
            distances = np.square(means[others] - features).sum(1)
            marks.append(bool(np.square(means[own] - features).sum() < distances.min()))
        share = float(np.mean(marks))
        return {"right": share, "standard_error": math.sqrt(share * (1 - share) / len(marks)), "pictures": len(marks)}


def _changed(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    picture = Image.fromarray(pixels)
    scale, (dx, dy) = float(np.exp(rng.normal(0, 0.04))), rng.normal(0, 0.7, 2)
    middle = 15.5
    turned = picture.transform(
        (32, 32), Image.Transform.AFFINE, (scale, 0, middle * (1 - scale) + dx, 0, scale, middle * (1 - scale) + dy),
        Image.Resampling.BILINEAR, fillcolor=(255, 255, 255),
    )  # fmt: skip
    blurred = turned.filter(ImageFilter.GaussianBlur(float(abs(rng.normal(0, 0.6)))))
    return np.clip(np.asarray(blurred).astype(float) * (1 + rng.normal(0, 0.03, 3)), 0, 255).astype(np.uint8)


def _features(pixels: np.ndarray) -> np.ndarray:
    """(16 * 16 * 3,) means of 2 x 2 pixels."""
    return pixels.reshape(16, 2, 16, 2, 3).mean((1, 3)).ravel() / 255


def measured(
    run: Path,
    seed: int,
    learned: list[Emoji],
    combinations: list[Emoji],
    others: list[Emoji],
    judge: Judge,
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """All of the numbers for one run."""
    engine = open_engine(str(run), "float32", Limits(rows=64, step_tokens=512, queued_requests=8192, queued_tokens=1 << 22))
    rng = np.random.Generator(np.random.PCG64([seed, 7]))
    some = [learned[i] for i in rng.permutation(len(learned))[: asked.pictures]]
    tokenizer = engine.vocabulary.media_tokenizer("image")
    back = np.stack([tokenizer.decode(tokenizer.encode(one.pixels)) for one in (*some, *combinations)])
    found: dict[str, Any] = {"judge_on_real": judge.right(back, [*some, *combinations], seed)}
    drawn = {}
    for kind, wanted in {"seen": some, "combinations": combinations[: asked.pictures], "whole_emoji": others}.items():
        wishes = [Wish(one.name, guidance=asked.guidance, best_of=asked.best_of) for one in wanted]
        made = draw(engine, wishes, SamplingParams(max_tokens=1, seed=1000 * seed, temperature=asked.temperature))
        drawn[kind] = np.stack([one.pixels for one in made])
        found[kind] = judge.right(drawn[kind], wanted, seed)
    if asked.strip:
        rows = []
        for kind, wanted in {"seen": some, "combinations": combinations, "whole_emoji": others}.items():
            rows += [np.concatenate([one.pixels for one in wanted[:16]], 1), np.concatenate(list(drawn[kind][:16]), 1)]
        Image.fromarray(np.concatenate(rows, 0).repeat(2, 0).repeat(2, 1)).save(asked.strip, "PNG", optimize=True)
    return found


if __name__ == "__main__":
    prepare_process()
    main()
