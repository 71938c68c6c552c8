"""Bits per byte on tinyshakespeare after five minutes: `tessera train text` against a nanoGPT-style loop with AdamW.

    python benchmarks/shakespeare.py [--minutes 5] [--seeds 3]

The last tenth of the text is held out and neither side sees it. Both have one thread and equal time: tessera's budget covers all
it does (tokenizer, planning, evaluation, saving), the loop's minutes are process time of training steps alone. The loop reads
characters, as nanoGPT does, once with nanoGPT's published CPU setting and once larger, compiled, with a longer context and a
higher rate. Each model reads the held-out text in windows of its own context that overlap by half, so that every byte but the
first few is predicted from at least half a context.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import data_folder, environment, facts, result_path, spread, store, tessera_command

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Loop:
    """A nanoGPT-style training: cosine to a tenth, warm-up of 100 steps, clipping to 1, no dropout."""

    layers: int
    width: int
    heads: int
    context: int
    rows: int
    rate: float
    betas: tuple[float, float]
    compiled: bool


LOOPS = {
    # "I only have a macbook" of nanoGPT's README, which uses 2000 steps; here as many as fit into the time.
    "published": Loop(4, 128, 4, 64, 12, 1e-3, (0.9, 0.99), compiled=False),
    "stronger": Loop(4, 192, 3, 128, 16, 2e-3, (0.9, 0.99), compiled=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="tessera,published,stronger")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    parser.add_argument("--out", default=None)
    parser.add_argument("--worker", nargs=3, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, seed, folder = options.worker
        print(json.dumps(train_loop(LOOPS[name], int(seed), Path(folder), 60 * options.minutes)))
        return

    source = data_folder() / "text/lm/tinyshakespeare/input.txt"
    if not source.is_file():
        sys.exit(f"{source} is not there; point TESSERA_DATA to the folder with the small real data.")
    text = source.read_bytes()
    cut = len(text) * 9 // 10
    path = Path(options.out) if options.out else result_path("shakespeare")
    result: dict[str, Any] = {
        **facts(),
        "minutes": options.minutes,
        "loops": {n: asdict(v) for n, v in LOOPS.items()},
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "train.txt").write_bytes(text[:cut])
        (folder / "held-out.txt").write_bytes(text[cut:])
        # Seed by seed, one contestant after the other, so that a change in the machine meets all.
        for seed in range(options.seeds):
            for name in options.only.split(","):
                run = (
                    tessera_run(seed, folder, options.minutes)
                    if name == "tessera"
                    else loop_run(name, seed, folder, options.minutes)
                )
                result["runs"].append({"who": name, "seed": seed, **run})
                bits, cpu = run["bits_per_byte"], run["cpu_seconds"]
                print(f"seed {seed}  {name:<10} {bits:.4f} bits per byte, {cpu:.0f} s of process time", flush=True)
                store(path, result)
    result["bits_per_byte"] = {
        name: spread([r["bits_per_byte"] for r in result["runs"] if r["who"] == name]) for name in options.only.split(",")
    }
    for name, found in result["bits_per_byte"].items():
        print(f"{name:<10} {found['median']:.4f} ({found['min']:.4f}..{found['max']:.4f})")
    store(path, result)
    if options.json:
        print(json.dumps(result))


def tessera_run(seed: int, folder: Path, minutes: float) -> dict[str, Any]:
    """The command as a person types it, with one thread."""
    from tessera.model import weights
    from tessera.tokens.vocabulary import Vocabulary

    out = folder / f"tessera-{seed}"
    command = [*tessera_command(), "train", "text", "--no-forecast", "--budget", f"{minutes * 60:.0f}s", "--out", str(out)]
    sources = json.dumps([f"files:{folder / 'train.txt'}"])
    for setting in (
        f"data.sources={sources}",
        "train.threads=1",
        f"train.seed={seed}",
        f"data.seed={seed}",
        "train.sample_prompts=[]",
    ):
        command += ["--set", setting]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    # Its own cache: nothing that an earlier seed has prepared may save time.
    subprocess.run(command, env={**environment(1), "TESSERA_CACHE": str(folder / f"cache-{seed}")}, check=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    decoder, vocabulary = weights.load(out / "model"), Vocabulary.load(out / "model")
    held_out = (folder / "held-out.txt").read_text(encoding="utf-8")
    ids = [vocabulary.end_id, *vocabulary.encode_text(held_out)]
    bits = bits_per_byte(lambda x: decoder.logits(decoder(x)), ids, len(held_out.encode()), decoder.config.context)
    return {
        "bits_per_byte": bits,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall_seconds": wall,
        "recipe": (out / "recipe.yaml").read_text(encoding="utf-8"),
    }


def loop_run(name: str, seed: int, folder: Path, minutes: float) -> dict[str, Any]:
    """The loop in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--minutes", str(minutes), "--worker", name, str(seed), str(folder)]
    done = subprocess.run(command, env=environment(1), stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def train_loop(loop: Loop, seed: int, folder: Path, seconds: float) -> dict[str, Any]:
    """Steps of one thread until the process time is used up; the schedule's length comes from the speed of its first steps."""
    from tessera import device

    device.prepare_process()
    import torch
    from plain_gpt import PlainGPT

    torch.set_num_threads(1)
    text = (folder / "train.txt").read_text(encoding="utf-8")
    held_out = (folder / "held-out.txt").read_text(encoding="utf-8")
    number = {c: i for i, c in enumerate(sorted(set(text + held_out)))}
    data = torch.tensor([number[c] for c in text])
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = PlainGPT(len(number), loop.width, loop.layers, loop.heads, loop.context)
    fast = torch.compile(model) if loop.compiled else model
    optimizer = model.optimizer(loop.rate, loop.betas)

    def step(rate: float) -> None:
        starts = torch.randint(len(data) - loop.context - 1, (loop.rows,), generator=generator)
        rows = torch.stack([data[s : s + loop.context + 1] for s in starts])
        for group in optimizer.param_groups:
            group["lr"] = rate
        fast(rows[:, :-1], rows[:, 1:].contiguous()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step(0.0)  # compiles and touches memory; takes no part in the training and is not counted
    begin = time.process_time()
    for done in range(20):
        step(loop.rate * (done + 1) / 100)
    steps = max(21, round(seconds / (time.process_time() - begin) * 20))
    done = 20
    while time.process_time() - begin < seconds and done < steps:
        # nanoGPT ends at a tenth of the rate; a run that turns out slower than its first steps ends by the clock.
        used = max(done / steps, (time.process_time() - begin) / seconds)
        step(loop.rate * min(1.0, (done + 1) / 100) * (0.1 + 0.45 * (1 + math.cos(math.pi * used))))
        done += 1
    cpu = time.process_time() - begin
    ids = [number[c] for c in held_out]
    bits = bits_per_byte(model, ids, len(held_out[1:].encode()), loop.context)
    return {"bits_per_byte": bits, "cpu_seconds": cpu, "steps": done, "parameters": sum(p.numel() for p in model.parameters())}


def bits_per_byte(logits_of: Callable[[torch.Tensor], torch.Tensor], ids: list[int], length: int, context: int) -> float:
    """Bits of ids[1:], each read once with at least half a context before it, over the bytes they stand for."""
    import torch
    from torch.nn import functional as F

    nats, half, known = 0.0, context // 2, 1
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, half):
            window = torch.tensor(ids[start : start + context + 1])
            fresh = len(window) - (known - start)
            if fresh <= 0:
                break
            scores = logits_of(window[None, :-1])[0, -fresh:].float()
            nats += float(F.cross_entropy(scores, window[-fresh:], reduction="sum"))
            known += fresh
    return nats / math.log(2) / length


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
