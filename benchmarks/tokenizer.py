"""Speed of tokenizer training and encoding on the interpreter's own library, against transformers on the saved files.

    python benchmarks/tokenizer.py [--entries 8192] [--rounds 5] [--megabytes 16]

Prints one JSON object per line: `training` and `encoding` in MB/s (10^6 bytes of UTF-8) of wall time and of process time (all
threads of this process added up), each the median over rounds with the lowest and highest; then `ratio`, the wall speed of
`Vocabulary.encode_texts` over transformers' on the same folder, the two measured in turn. The bars are 3 MB/s for training at
8k entries and 2 MB/s for encoding, on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers
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


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "low": round(min(values), 3), "high": round(max(values), 3)}


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
    options = parser.parse_args()

    texts = library_texts(options.megabytes)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    corpus = {"megabytes": round(megabytes, 3), "documents": len(texts), "entries": options.entries, "rounds": options.rounds}
    print(json.dumps({"event": "setting", **machine, "tokenizers": tokenizers.__version__, **corpus}))

    for pretokenizer in ("qwen2", "gpt-2"):
        trained: list[Vocabulary] = []
        training = [
            seconds(lambda rule=pretokenizer, into=trained: into.append(Vocabulary.train(texts, options.entries, rule)))
            for _ in range(options.rounds)
        ]
        print(json.dumps({"event": "training", "pretokenizer": pretokenizer, **speeds(training, megabytes)}), flush=True)
        vocabulary = trained[-1]
        with tempfile.TemporaryDirectory() as folder:
            vocabulary.save(folder)
            theirs = AutoTokenizer.from_pretrained(folder)
        ours_times, their_times = [], []
        for _ in range(options.rounds):
            ours_times.append(seconds(lambda mine=vocabulary: mine.encode_texts(texts)))
            their_times.append(seconds(lambda other=theirs: other(texts, return_attention_mask=False)))
        tokens = sum(map(len, vocabulary.encode_texts(texts)))
        encoding = {"pretokenizer": pretokenizer, "bytes_per_token": round(megabytes * 1e6 / tokens, 3)}
        print(json.dumps({"event": "encoding", "who": "tessera", **encoding, **speeds(ours_times, megabytes)}))
        print(json.dumps({"event": "encoding", "who": "transformers", **encoding, **speeds(their_times, megabytes)}))
        ratios = [other[0] / mine[0] for mine, other in zip(ours_times, their_times, strict=True)]
        print(json.dumps({"event": "ratio", "pretokenizer": pretokenizer, **spread(ratios)}), flush=True)


if __name__ == "__main__":
    main()
