"""Spoken digits: one run of `speak`, what it hears, and whether what it says is understood.

The recordings are those of the data folder, six speakers, ten words; index 0 to 4 of each is never trained on (`--development`
keeps 5 to 9 aside too, and measures on them instead). A support vector machine on 20 bands x 20 moments, which knows nothing of
the model and is trained on the same real recordings, is asked first about real ones, then about real ones that went through the
quantizer, then about those the model made by their captions. The model itself writes down what it hears of the real ones.

    python benchmarks/speak.py                      # trains by the recipe and measures
    python benchmarks/speak.py --run runs/speak     # measures a run that is there
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import data_folder, facts, result_path, store, tessera_command
from digits import about
from sklearn.svm import SVC

from tessera.commands.generate import open_engine
from tessera.data.sounds import fitted_sound, read_sound
from tessera.device import prepare_process
from tessera.engine.engine import Engine
from tessera.engine.sampling import SamplingParams
from tessera.engine.scheduler import Limits
from tessera.engine.sounds import SoundWish, listen, make_sounds, sound_quantizer_of
from tessera.train.quantizer import measure

BARS = {"real_by_classifier": 0.95, "heard_right": 0.90, "spoken_right": 0.80}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TESTED, DEVELOPMENT = range(5), range(5, 10)
"""Indices of the recordings that are kept aside."""
RATE = 8000
MOMENTS, BANDS = 20, 20


def main() -> None:
    """Trains where no run is given, measures, prints and stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="measure this run of `speak` instead of training one")
    parser.add_argument("--budget", help="instead of the recipe's")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=5, help="sounds of each word and speaker that are made")
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0])
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--development", action="store_true", help="measure on indices 5 to 9, which are then not trained on")
    parser.add_argument("--keep", help="write what is made into this folder")
    parser.add_argument("--name", default="speak")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    folder = data_folder() / "audio" / "spoken-digits" / "recordings"
    if not folder.is_dir():
        parser.error(f"there is no {folder}; TESSERA_DATA names the data folder")
    aside = [*TESTED, *DEVELOPMENT] if asked.development else [*TESTED]
    named = [(path, path.stem.split("_")) for path in sorted(folder.glob("*.wav"))]
    learned = [(path, int(parts[0]), parts[1]) for path, parts in named if int(parts[2]) not in aside]
    measured = DEVELOPMENT if asked.development else TESTED
    tested = [(path, int(parts[0]), parts[1]) for path, parts in named if int(parts[2]) in measured]
    with tempfile.TemporaryDirectory(prefix="speak-") as scratch:
        run = Path(asked.run) if asked.run else train(Path(scratch), learned, asked)
        found = {"bars": BARS, "development": asked.development, **about(run), **judged(run, learned, tested, asked)}
    store(result_path(asked.name), {**facts(), **found})
    print(json.dumps(found, indent=None if asked.json else 1))


def train(scratch: Path, learned: list[tuple[Path, int, str]], asked: argparse.Namespace) -> Path:
    """One run of the recipe, by the command line, on a folder with a list of captions."""
    own = scratch / "recordings"
    own.mkdir()
    rows = ["file_name\ttext\tspeaker"]
    for path, word, who in learned:
        (own / path.name).symlink_to(path.resolve())
        rows.append(f"{path.name}\t{WORDS[word]}\t{who}")
    (own / "captions.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = [*tessera_command(), "train", "speak", "--out", str(scratch / "run"), "--no-forecast"]
    words += ["--budget", asked.budget] if asked.budget else []
    settings = [f'data.sources=["files:{own}"]', f"train.seed={asked.seed}", f"data.seed={asked.seed}", *asked.settings]
    for setting in settings:
        words += ["--set", setting]
    subprocess.run(words, check=True)
    return scratch / "run"


def judged(
    run: Path, learned: list[tuple[Path, int, str]], tested: list[tuple[Path, int, str]], asked: argparse.Namespace
) -> dict[str, Any]:
    """All that is measured."""
    engine = open_engine(str(run), "float32", Limits(rows=32, step_tokens=1024, queued_requests=4096, queued_tokens=1 << 22))
    quantizer = sound_quantizer_of(engine)
    real, wanted = [fitted_sound(*read_sound(path), RATE) for path, _, _ in tested], [word for _, word, _ in tested]
    judge = SVC(C=10.0, gamma="scale")
    judge.fit(np.stack([features(fitted_sound(*read_sound(path), RATE)) for path, _, _ in learned]), [w for _, w, _ in learned])

    def recognised(sounds: list[np.ndarray], words: list[int]) -> float:
        return float(np.mean(judge.predict(np.stack([features(sound) for sound in sounds])) == words))

    found: dict[str, Any] = {
        "learned_from": len(learned),
        "tested_on": len(tested),
        "real_by_classifier": recognised(real, wanted),
        "quantized_by_classifier": recognised([quantizer.decode(quantizer.encode(sound)) for sound in real], wanted),
        "quantizer": measure(quantizer, real),
        **heard(engine, real, tested),
    }
    speakers = sorted({who for _, _, who in tested})
    asked_for = [(word, who) for word in range(10) for who in speakers for _ in range(asked.each)]
    params = SamplingParams(max_tokens=1, temperature=asked.temperature, seed=1000 * asked.seed)
    for guidance in asked.guidance:
        wishes = [SoundWish(f"{WORDS[word]}, spoken by {who}", guidance=guidance) for word, who in asked_for]
        begin = time.perf_counter()
        made = make_sounds(engine, wishes, params)
        seconds = time.perf_counter() - begin
        share = recognised([sound.samples for sound in made], [word for word, _ in asked_for])
        lasting = sum(len(sound.samples) for sound in made) / RATE
        found[f"spoken_guidance_{guidance:g}"] = {
            "sounds": len(made), "right": share, "seconds_of_sound": lasting, "seconds_of_sound_per_second": lasting / seconds
        }  # fmt: skip
        if asked.keep:
            keep(Path(asked.keep), wishes, [sound.samples for sound in made])
    found["spoken_right"] = max(found[f"spoken_guidance_{guidance:g}"]["right"] for guidance in asked.guidance)
    return found


def heard(engine: Engine, real: list[np.ndarray], tested: list[tuple[Path, int, str]]) -> dict[str, Any]:
    """What the model writes down, and who it says it is."""
    greedy = SamplingParams(max_tokens=16, temperature=0)
    said = [completion.text.strip() for completion in listen(engine, real, "", greedy)]
    who = [completion.text.strip() for completion in listen(engine, real, "Who is it?", greedy)]
    right = [words == WORDS[word] for words, (_, word, _) in zip(said, tested, strict=True)]
    return {
        "heard_right": float(np.mean(right)),
        "heard_right_by_word": {
            name: float(np.mean([r for r, (_, w, _) in zip(right, tested, strict=True) if w == number]))
            for number, name in enumerate(WORDS)
        },
        "speaker_right": float(np.mean([name == spoken for name, (_, _, spoken) in zip(who, tested, strict=True)])),
        "heard": [[WORDS[word], words] for words, (_, word, _) in list(zip(said, tested, strict=True))[:: len(tested) // 10]],
    }


def features(sound: np.ndarray) -> np.ndarray:
    """(T,) int16 -> logarithms of 20 bands at 20 moments of the part that is not silent, of mean 0 and deviation 1.

    Frames of 25 ms every 10 ms; bands are triangles that are evenly wide in mel.
    """
    x = sound.astype(float) / 32_768
    loud = np.flatnonzero(np.abs(x) > 0.02 * np.abs(x).max(initial=1e-9))
    x = np.pad(x[loud[0] : loud[-1] + 1] if len(loud) else x, (0, 400))
    frames = np.lib.stride_tricks.sliding_window_view(x, 200)[::80] * np.hamming(200)
    power = np.abs(np.fft.rfft(frames, 256)) ** 2
    mel = np.linspace(2595 * np.log10(1 + 100 / 700), 2595 * np.log10(1 + 3800 / 700), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1) / (RATE / 256)
    at = np.arange(129)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    weights = np.clip(np.minimum((at - low) / (middle - low), (high - at) / (high - middle)), 0, None)
    logs = np.log(power @ weights + 1e-6)
    places = np.linspace(0, len(logs) - 1, MOMENTS)
    table = np.stack([np.interp(places, np.arange(len(logs)), band) for band in logs.T])
    return ((table - table.mean()) / (table.std() + 1e-9)).ravel()


def keep(folder: Path, wishes: list[SoundWish], sounds: list[np.ndarray]) -> None:
    """Writes what was made, each under its caption."""
    from tessera.data.sounds import sound_file

    folder.mkdir(parents=True, exist_ok=True)
    for number, (wish, sound) in enumerate(zip(wishes, sounds, strict=True)):
        name = wish.caption.replace(", spoken by ", "_")
        (folder / f"{name}_{wish.guidance:g}_{number}.wav").write_bytes(sound_file(sound, RATE, "wav"))


if __name__ == "__main__":
    prepare_process()
    main()
