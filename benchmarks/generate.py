"""Tokens per second of generation: tessera's engine against transformers' `generate`, the same checkpoint, 1, 4 and 16 streams.

    python benchmarks/generate.py [--shapes 8M,75M] [--streams 1,4,16] [--rounds 5] [--threads 1] [--stored bfloat16]

A folder is written by tessera's own weights writer and opened by both. Each peer has a process of its own and answers all streams
of one round before the other takes its turn, in a new order every round. Both are float32 and greedy, and their ids are
compared. Prompts have 32 tokens, completions 128; the prompt's time counts. transformers is eager, as `generate` is by default;
tessera's step is compiled before the first round. A folder in bfloat16 gives both the same numbers, which tessera then
also keeps in 16 bits. Where `llama_cpp` can be imported (`pip install llama-cpp-python`), llama.cpp answers one stream beside
them, from the same weights in f16 and, told apart, q8_0; its loop picks the greatest logit in NumPy, without its own sampler.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import WorkerFailed, environment, facts, result_path, spread, store

# layers, width, heads, key heads, width of the feed-forward, ids
SHAPES = {
    "tiny": (2, 64, 2, 1, 192, 1024),
    "8M": (8, 256, 4, 2, 768, 8192),
    "75M": (12, 640, 10, 5, 1920, 24_576),
}
PEERS = ("tessera", "transformers")
NARROW = "transformers, bfloat16"
"""Computes in it too, where the folder is stored so; the faster of the two counts."""
LLAMA = {"llama.cpp, f16": "f16", "llama.cpp, q8_0": "q8_0"}
"""One stream each."""
PROMPT = 32
CONTEXT = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="8M")
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="of each completion")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stored", default="float32", choices=("float32", "bfloat16"), help="dtype of the folder's weights")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        answer(options)
        return
    streams = [int(n) for n in options.streams.split(",")]
    clock = "cpu" if options.threads == 1 else "wall"
    result: dict[str, Any] = {
        **facts(),
        "threads": options.threads,
        "clock": clock,
        "dtype": "float32",
        "stored": options.stored,
        "shapes": {},
    }
    for name in options.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            write_model(name, Path(folder), stored=options.stored)
            if importlib.util.find_spec("llama_cpp"):
                write_gguf(Path(folder))
            result["shapes"][name] = measure(name, folder, streams, clock, options)
    store(result_path("generate"), result)
    if options.json:
        print(json.dumps(result))


def write_model(name: str, folder: Path, context: int = CONTEXT, stored: str = "float32") -> None:
    """A random checkpoint with its tokenizer."""
    import torch

    from tessera.data.sources import documents
    from tessera.model import weights
    from tessera.model.decoder import Decoder, DecoderConfig
    from tessera.tokens.vocabulary import CONTROLS, Vocabulary

    layers, width, heads, kv_heads, mlp_width, size = SHAPES[name]
    texts = (document.text for document in documents("builtin:stdlib", []))
    vocabulary = Vocabulary.train(texts, size - len(CONTROLS))
    decoder = Decoder(
        DecoderConfig(vocabulary.size, width, layers, heads, kv_heads, 64, mlp_width, context=context, rope_theta=10_000.0)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.1, generator=generator)
    end = weights.SpecialIds(end=(vocabulary.end_id,))
    weights.save(decoder, folder, getattr(torch, stored), end, companions=vocabulary.save)
    (folder / "facts.json").write_text(json.dumps({"parameters": decoder.config.parameters, "vocabulary": vocabulary.size}))


def write_gguf(folder: Path) -> None:
    """The checkpoint once more for llama.cpp."""
    from tessera.commands.exporting import export_model

    for kind in LLAMA.values():
        export_model(str(folder), "gguf", str(folder / f"{kind}.gguf"), kind)


def measure(name: str, folder: str, streams: list[int], clock: str, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds in turn; prints one line per number of streams."""
    theirs_too = [NARROW] if options.stored == "bfloat16" else []
    llamas = [label for label, kind in LLAMA.items() if (Path(folder) / f"{kind}.gguf").is_file()]
    labels = [*PEERS, *theirs_too, *llamas]
    transformers = [*PEERS[1:], *theirs_too]

    def asked(n: int) -> list[str]:
        return [label for label in labels if n == 1 or label not in llamas]

    workers = {label: Process(label, folder, options) for label in labels}
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {str(n): {label: [] for label in asked(n)} for n in streams}
    order = random.Random(0)
    for number in range(options.rounds + 1):
        for label in order.sample(labels, len(labels)):
            for n in (n for n in streams if label in asked(n)):
                taken = workers[label].ask(n)
                # The first round warms up.
                if number:
                    samples[str(n)][label].append(taken)
        print(f"  round {number} of {options.rounds}", file=sys.stderr, flush=True)
    found: dict[str, Any] = {**json.loads((Path(folder) / "facts.json").read_text()), "streams": {}}
    for label in labels:
        found.setdefault("ready_seconds", {})[label] = workers[label].close()
    print(f"{name}: {found['parameters']:,} parameters, tokens per second of {clock} time ({options.threads} threads)")
    for n in streams:
        rates = {label: spread([n * options.tokens / s[clock] for s in taken]) for label, taken in samples[str(n)].items()}
        theirs = [min(s[clock] for s in both) for both in zip(*(samples[str(n)][p] for p in transformers), strict=True)]

        def ratio(label: str, against: list[float], n: int = n) -> dict[str, float]:
            return spread([b / a[clock] for a, b in zip(samples[str(n)][label], against, strict=True)])

        ratios = {label: ratio(label, theirs) for label in asked(n)}
        to_llama = {p: ratio(PEERS[0], [s[clock] for s in samples[str(n)][p]]) for p in llamas if p in asked(n)}
        same = agreement(*(samples[str(n)][peer][0]["ids"] for peer in PEERS))
        for by_label in samples[str(n)].values():
            for sample in by_label:
                del sample["ids"]
        found["streams"][str(n)] = {
            "tokens_per_second": rates,
            "ratio_to_transformers": ratios,
            "ratio_to_llama_cpp": to_llama,
            "equal_ids": same,
            "samples": samples[str(n)],
        }
        for label in asked(n):
            rate, times = rates[label], ratios[label]
            print(
                f"  {n:>3} streams  {label:<22} {rate['median']:>8.0f} ({rate['min']:.0f}..{rate['max']:.0f})"
                f"   ratio {times['median']:.2f} ({times['min']:.2f}..{times['max']:.2f})   equal ids {same:.3f}"
            )
        for label, times in to_llama.items():
            print(f"      tessera against {label}: {times['median']:.2f} ({times['min']:.2f}..{times['max']:.2f})")
    return found


def agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Share of the tokens up to which the completions are the same."""
    same = 0
    for a, b in zip(ours, theirs, strict=True):
        same += next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
    return same / sum(map(len, ours))


class Process:
    """A peer in a process of its own."""

    def __init__(self, label: str, folder: str, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--peer", label, "--folder", folder]
        command += ["--tokens", str(options.tokens), "--threads", str(options.threads), "--streams", options.streams]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(options.threads), text=True
        )
        self.ready = self._read()

    def ask(self, streams: int) -> dict[str, Any]:
        """cpu, wall, ids of one batch."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{streams}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> float:
        """Ends it; returns the seconds that it took to be ready."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        return float(self.ready["seconds"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise WorkerFailed(f"a peer ended with code {self._process.wait()}")


def answer(options: argparse.Namespace) -> None:
    """In the peer's process: one batch for every line that comes in."""
    began = time.perf_counter()
    if options.peer in LLAMA:
        complete = llama_peer(options)
    elif options.peer == "tessera":
        complete = tessera_peer(options)
    else:
        complete = transformers_peer(options)
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
    for line in sys.stdin:
        prompts = prompts_for(int(line), options)
        cpu, wall = time.process_time(), time.perf_counter()
        ids = complete(prompts)
        taken = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "ids": ids}
        print(json.dumps(taken), flush=True)


def prompts_for(streams: int, options: argparse.Namespace) -> list[list[int]]:
    """Random, so that no prefix is found again by chance; new ones with every call would hide whether the peers agree."""
    numbers = random.Random(streams)
    return [[numbers.randrange(256) for _ in range(PROMPT)] for _ in range(streams)]


Complete = Callable[[list[list[int]]], list[list[int]]]


def tessera_peer(options: argparse.Namespace) -> Complete:
    from tessera import device

    device.prepare_process()
    import torch

    torch.set_num_threads(options.threads)
    from tessera.engine.engine import Engine, Limits
    from tessera.engine.sampling import SamplingParams
    from tessera.model import weights
    from tessera.model.decoder import join_weights
    from tessera.tokens.vocabulary import Vocabulary

    decoder = weights.load(options.folder)
    join_weights(decoder)
    vocabulary = Vocabulary.load(options.folder, decoder.config.vocab_size)
    most = max(int(n) for n in options.streams.split(","))
    # Without the prefix cache: the same prompts come in every round.
    engine = Engine(decoder.eval(), vocabulary, Limits(rows=most, step_tokens=max(256, 2 * most), prefix_tokens=0))
    if (thread := engine.compile()) is not None:
        thread.join()
    params = SamplingParams(options.tokens, temperature=0, stop_ids=())
    return lambda prompts: [c.ids.tolist() for c in engine.generate(prompts, params)]


def transformers_peer(options: argparse.Namespace) -> Complete:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if options.peer == NARROW else torch.float32
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=dtype).eval()

    def complete(prompts: list[list[int]]) -> list[list[int]]:
        with torch.inference_mode():
            made = model.generate(
                torch.tensor(prompts),
                attention_mask=torch.ones(len(prompts), PROMPT, dtype=torch.long),
                max_new_tokens=options.tokens,
                min_new_tokens=options.tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return made[:, PROMPT:].tolist()

    return complete


def llama_peer(options: argparse.Namespace) -> Complete:
    import llama_cpp
    import numpy as np

    path = str(Path(options.folder) / f"{LLAMA[options.peer]}.gguf")
    threads = {"n_threads": options.threads, "n_threads_batch": options.threads}
    model = llama_cpp.Llama(path, n_ctx=PROMPT + options.tokens, n_batch=PROMPT, verbose=False, **threads)

    def complete(prompts: list[list[int]]) -> list[list[int]]:
        (prompt,) = prompts
        context, size = model._ctx.ctx, model.n_vocab()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        made: list[int] = []
        given = prompt
        while len(made) < options.tokens:
            ids = (llama_cpp.llama_token * len(given))(*given)
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, len(given))):
                raise WorkerFailed("llama.cpp refused a batch")
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (size,))
            made.append(int(logits.argmax()))
            given = made[-1:]
        return [made]

    return complete


if __name__ == "__main__":
    main()
