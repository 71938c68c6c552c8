"""Speed of tokenizer training and encoding on the interpreter's own library, against transformers on the saved files.

    python benchmarks/tokenizer.py [--entries 8192] [--rounds 5] [--megabytes 16]

Speeds are MB/s (10^6 bytes of UTF-8) of wall time and of process time (all threads of this process added up); the ratio is the
wall speed of `Vocabulary.encode_texts` over transformers' on the same folder, the two measured in turn. The bars are 3 MB/s for
training at 8k entries and 2 MB/s for encoding, on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import facts, result_path, spread, store
from transformers import AutoTokenizer

from tessera.tokens.vocabulary import Vocabulary


def library_texts(megabytes: float) -> list[str]:
    """Python files of the standard library in the order of their paths, up to `megabytes`."""
    texts, left = [], megabytes * 1e6
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        left -= len(text.encode())
        if left < 0:
            break
        texts.append(text)
    return texts


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and process time of one call."""
    wall, process = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - process


def speeds(times: list[tuple[float, float]], megabytes: float) -> dict[str, dict[str, float]]:
    return {
        "wall_mb_per_second": spread([megabytes / wall for wall, _ in times]),
        "process_mb_per_second": spread([megabytes / process for _, process in times]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=16)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()

    texts = library_texts(options.megabytes)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    result: dict[str, Any] = {**facts(), "megabytes": megabytes, "documents": len(texts), "entries": options.entries}
    for pretokenizer in ("qwen2", "gpt-2"):
        result[pretokenizer] = found = measure(texts, megabytes, pretokenizer, options)
        for what in ("training", "encoding", "encoding_transformers"):
            wall, process = (found[what][f"{clock}_mb_per_second"]["median"] for clock in ("wall", "process"))
            print(f"{pretokenizer:<6} {what.replace('_', ' '):<23} {wall:6.2f} MB/s wall, {process:6.2f} process")
        print(f"{pretokenizer:<6} ratio to transformers   {found['ratio']['median']:6.2f}")
    store(result_path("tokenizer"), result)
    if options.json:
        print(json.dumps(result))


def measure(texts: list[str], megabytes: float, pretokenizer: str, options: argparse.Namespace) -> dict[str, Any]:
    """Training some times over, then encoding by us and by transformers in turn."""
    trained: list[Vocabulary] = []
    training = [
        seconds(lambda: trained.append(Vocabulary.train(texts, options.entries, pretokenizer))) for _ in range(options.rounds)
    ]
    vocabulary = trained[-1]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary.save(folder)
        theirs = AutoTokenizer.from_pretrained(folder)
    ours_times, their_times = [], []
    for _ in range(options.rounds):
        ours_times.append(seconds(lambda: vocabulary.encode_texts(texts)))
        their_times.append(seconds(lambda: theirs(texts, return_attention_mask=False)))
    return {
        "training": speeds(training, megabytes),
        "encoding": speeds(ours_times, megabytes),
        "encoding_transformers": speeds(their_times, megabytes),
        "bytes_per_token": megabytes * 1e6 / sum(map(len, vocabulary.encode_texts(texts))),
        "ratio": spread([other[0] / mine[0] for mine, other in zip(ours_times, their_times, strict=True)]),
    }


if __name__ == "__main__":
    main()
