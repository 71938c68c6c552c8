"""The server end to end: how much of the engine's speed HTTP leaves, how long the first token takes, what slows whom down.

    python benchmarks/serve.py [--shape 8M] [--threads 1] [--only start,http,first,tuning,prefix,steps]

One random checkpoint, one `tessera serve` in a process of its own, and clients that speak HTTP over plain sockets from one thread
(`served.py`), whose processor time is reported. Parts:

* start: from `tessera serve` to the first answer
* http: tokens per second of streams through HTTP against the bare engine in another process, in turn, same threads
* first: time to first token with streams in a closed loop, prompts of 32, 256 and 1,024 tokens mixed, and each length alone
* tuning: time between tokens of chats with and without a fine-tuning job beside them, in turn (the job is paused)
* prefix: what a repeated prefix of 1,024 tokens saves
* steps: time of one step of the bare engine as streams grow from 1 to 64, and as the context grows from 128 to 4,096
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import HERE, WorkerFailed, environment, facts, result_path, spread, store
from generate import SHAPES, write_model
from served import ServerProcess, streams

CONTEXT = 8192
BARS = {
    "http": "at 75M >= 0.85 of the engine",
    "first": "32 tokens mixed <= 3 x alone",
    "tuning": "<= 3 x without",
    "prefix": ">= 0.95 saved",
    "start": "<= 5 s",
    "steps": "no worse than linear",
}
PARTS = tuple(BARS)
NAME = "random"
_EXAMPLES = 400
_TIMED_STEPS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="8M", choices=SHAPES)
    parser.add_argument("--threads", type=int, default=1, help="of the engine, in the server and bare")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="of each completion in the parts http and tuning")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase of the parts first and tuning")
    parser.add_argument("--largest", type=int, default=4096, help="context in the part steps; at most 4,096")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run")
    parser.add_argument("--out", default=None, help="where the result goes; default: results/DATE-serve-SHAPE.json")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(options)
        return
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    result: dict[str, Any] = facts() | {"shape": options.shape, "threads": options.threads, "streams": options.streams}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / NAME
        write_model(options.shape, model, CONTEXT)
        options.ends = end_ids(model)
        result["bars"] = BARS
        place = Path(scratch) / "data"
        measured: dict[str, Callable[[], dict[str, Any]]] = {
            "start": lambda: start(model, Path(scratch), options),
            "http": lambda: http(model, place, options),
            "first": lambda: first_token(model, place, options),
            "tuning": lambda: tuning(model, place, options),
            "prefix": lambda: prefix(model, place, options),
            "steps": lambda: steps(model, options),
        }
        for part in wanted:
            began = time.perf_counter()
            result[part] = measured[part]()
            result[part]["took_seconds"] = round(time.perf_counter() - began, 1)
    store(Path(options.out) if options.out else result_path(f"serve-{options.shape}"), result)
    if options.json:
        print(json.dumps(result))


def start(model: Path, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the start of the process to the first answer, each time with an empty data folder."""
    found = []
    for number in range(options.rounds):
        with ServerProcess(model, scratch / f"start-{number}", (), options.threads) as server:
            server.answer("/v1/completions", {"model": NAME, "prompt": "def", "max_tokens": 1})
            found.append(time.perf_counter() - server.began)
    told = spread(found)
    print(f"start to first answer: {told['median']:.2f} s ({told['min']:.2f}..{told['max']:.2f})")
    return {"seconds": told, "samples": found}


def http(model: Path, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of wall time through HTTP, streamed and whole, and of the bare engine; the same prompts in each round."""
    draw = random.Random(1)
    samples: dict[str, list[dict[str, float]]] = {"streamed": [], "bare": []}
    with server_for(model, data, options) as server, Bare(model, options) as engine:
        for number in range(options.rounds + 1):
            prompts = [prompt_ids(draw, 32) for _ in range(options.streams)]
            for name in draw.sample(list(samples), len(samples)):
                if name == "bare":
                    taken = engine.ask({"prompts": prompts, "tokens": options.tokens})
                else:
                    before, began = server.cpu_seconds, time.perf_counter()
                    _, client = streams(
                        server,
                        "/v1/completions",
                        once([body(prompt, options.tokens, options) for prompt in prompts]),
                        options.streams,
                    )
                    seconds = time.perf_counter() - began
                    taken = {"seconds": seconds, "client_cpu_seconds": client, "server_cpu_seconds": server.cpu_seconds - before}
                if number:  # the first round warms up
                    samples[name].append(taken)
    total = options.streams * options.tokens
    rates = {name: spread([total / one["seconds"] for one in taken]) for name, taken in samples.items()}
    ratio = spread([b["seconds"] / h["seconds"] for h, b in zip(samples["streamed"], samples["bare"], strict=True)])
    client = statistics.median(one["client_cpu_seconds"] / one["seconds"] for one in samples["streamed"])
    print(
        f"HTTP at {options.streams} streams: {rates['streamed']['median']:.0f} tokens/s, bare {rates['bare']['median']:.0f}; "
        f"ratio {ratio['median']:.2f} ({ratio['min']:.2f}..{ratio['max']:.2f}); the client took {client:.1%} of a core"
    )
    return {"tokens_per_second": rates, "ratio_to_bare": ratio, "client_cpu_share": client, "samples": samples}


def first_token(model: Path, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time to first token by the length of the prompt, lengths mixed and each alone; 64 tokens out, closed loop.

    The first request of each stream does not count: they all begin at once, which is no closed loop yet.
    """
    lengths = (32, 256, 1024)
    found: dict[str, dict[str, Any]] = {}
    client = 0.0
    with server_for(model, data, options) as server:
        for phase in (lengths, *((length,) for length in lengths)):
            draw = random.Random(2)
            end = time.perf_counter() + options.seconds

            def ask(slot: int, draw: random.Random = draw, end: float = end, phase: tuple[int, ...] = phase) -> Any:
                return None if time.perf_counter() > end else body(prompt_ids(draw, draw.choice(phase)), 64, options)

            done, cpu = streams(server, "/v1/completions", ask, options.streams)
            client += cpu
            done = sorted(done, key=lambda stream: stream.sent)[options.streams :]
            name = "mixed" if len(phase) > 1 else "alone"
            for length in phase:
                times = [stream.first for stream in done if len(stream.body["prompt"]) == length]
                if times:
                    found.setdefault(name, {})[str(length)] = percentiles(times)
    ratios = {
        length: found["mixed"][length]["p95"] / found["alone"][length]["p95"]
        for length in found.get("mixed", {})
        if length in found.get("alone", {})
    }
    for length, ratio in ratios.items():
        mixed, alone = found["mixed"][length], found["alone"][length]
        print(
            f"first token, prompt of {length}: p95 mixed {mixed['p95']:.3f} s, alone {alone['p95']:.3f} s, ratio {ratio:.2f} "
            f"({mixed['n']} and {alone['n']} requests)"
        )
    return {"seconds": found, "ratio_of_p95": ratios, "client_cpu_seconds": client}


def tuning(model: Path, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time between tokens of four chats, a fine-tuning job paused and running in turn."""
    draw = random.Random(3)
    gaps: dict[str, list[float]] = {"without": [], "with": []}
    steps_taken = 0
    with server_for(model, data, options) as server:
        job = start_job(server, data, draw)
        for running in (False, True) * 2:
            path = f"/v1/fine_tuning/jobs/{job}"
            if running:
                server.answer(f"{path}/resume", {})
                before = wait_for_steps(server, data, job)
            end = time.perf_counter() + options.seconds / 2

            def ask(slot: int, end: float = end) -> Any:
                if time.perf_counter() > end:
                    return None
                chat = body([], options.tokens, options) | {"messages": [{"role": "user", "content": str(draw.random())}]}
                del chat["prompt"]
                return chat

            done, _ = streams(server, "/v1/chat/completions", ask, 4)
            gaps["with" if running else "without"] += [gap for stream in done for gap in stream.gaps]
            if running:
                steps_taken += steps_of(data, job) - before
                server.answer(f"{path}/pause", {})
        server.answer(f"/v1/fine_tuning/jobs/{job}/cancel", {})
    told = {name: percentiles(values) for name, values in gaps.items()}
    ratio = told["with"]["p95"] / told["without"]["p95"]
    print(
        f"between tokens: p95 {told['without']['p95'] * 1000:.1f} ms, beside a tuning job ({steps_taken} steps meanwhile) "
        f"{told['with']['p95'] * 1000:.1f} ms, ratio {ratio:.2f}"
    )
    return {"seconds": told, "ratio_of_p95": ratio, "job_steps_meanwhile": steps_taken}


def prefix(model: Path, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A prompt of 1,024 tokens, the same again, the same with another end: what was computed, and how long it took."""
    draw = random.Random(4)
    shares: dict[str, list[float]] = {"again": [], "another end": []}
    times: dict[str, list[float]] = {"new": [], "again": [], "another end": []}
    with server_for(model, data, options) as server:
        for _ in range(options.rounds):
            ids = prompt_ids(draw, 1024)
            for name, prompt in (("new", ids), ("again", ids), ("another end", ids + prompt_ids(draw, 32))):
                began = time.perf_counter()
                usage = server.answer("/v1/completions", body(prompt, 1, options))["usage"]
                times[name].append(time.perf_counter() - began)
                if name in shares:
                    shares[name].append(usage["prompt_tokens_details"]["cached_tokens"] / 1024)
    saved = {name: spread(values) for name, values in shares.items()}
    seconds = {name: spread(values) for name, values in times.items()}
    print(
        f"prefix of 1,024 tokens: {saved['again']['median']:.1%} saved, {saved['another end']['median']:.1%} with another end; "
        f"{seconds['new']['median'] * 1000:.0f} -> {seconds['again']['median'] * 1000:.0f} ms"
    )
    return {"saved": saved, "seconds": seconds}


def steps(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a decoding step of the bare engine: by streams at a context of 128, by context at 4 streams."""
    counts = [1, 2, 4, 8, 16, 32, 64]
    contexts = [size for size in (128, 256, 512, 1024, 2048, 4096) if size <= options.largest]
    with Bare(model, options) as engine:
        by_streams = {n: engine.ask({"step": n, "context": 128})["seconds"] for n in counts}
        by_context = {size: engine.ask({"step": 4, "context": size})["seconds"] for size in contexts}
    found: dict[str, Any] = {}
    for name, curve in (("streams", by_streams), ("context", by_context)):
        pairs = list(itertools.pairwise(curve.items()))
        (low, fastest), (high, slowest) = min(curve.items()), max(curve.items())
        exponent = math.log(slowest / fastest) / math.log(high / low) if high > low else 0.0
        worst = max((b / a for (_, a), (_, b) in pairs), default=1.0)
        found[name] = {
            "seconds": {str(k): v for k, v in curve.items()},
            "exponent": exponent,
            "largest_ratio_of_a_doubling": worst,
        }
        told = ", ".join(f"{k}: {v * 1000:.2f}" for k, v in curve.items())
        print(f"ms a step by {name}: {told}; grows with power {exponent:.2f}, at most {worst:.2f} x for a doubling")
    return found


def server_for(model: Path, data: Path, options: argparse.Namespace) -> ServerProcess:
    """So that torch compiles nothing while something is measured."""
    return ServerProcess(model, data, ("--no-compile",), options.threads)


def start_job(server: ServerProcess, data: Path, draw: random.Random) -> str:
    """A fine-tuning job that goes on for long, paused; its id."""
    lines = []
    for _ in range(_EXAMPLES):
        a, b = draw.randrange(1000), draw.randrange(1000)
        asked, said = {"role": "user", "content": f"{a} + {b}?"}, {"role": "assistant", "content": f"That is {a + b}."}
        lines.append(json.dumps({"messages": [asked, said]}))
    with server.client() as client:
        file = client.upload("/v1/files", "sums.jsonl", "\n".join(lines).encode(), purpose="fine-tune").json["id"]
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 100, "batch_size": 4}}}
    job: str = server.answer("/v1/fine_tuning/jobs", {"model": NAME, "training_file": file, "method": method})["id"]
    wait_for_steps(server, data, job)
    server.answer(f"/v1/fine_tuning/jobs/{job}/pause", {})
    return job


def wait_for_steps(server: ServerProcess, data: Path, job: str) -> int:
    """Steps that a job has taken, once there is one more than now."""
    before, end = steps_of(data, job), time.perf_counter() + 120
    while (now := steps_of(data, job)) <= before:
        status = server.answer(f"/v1/fine_tuning/jobs/{job}")
        if status["status"] in ("failed", "succeeded") or time.perf_counter() > end:
            raise RuntimeError(f"the fine-tuning job does not go on: {status['status']}, {status['error']}")
        time.sleep(0.2)
    return now


def steps_of(data: Path, job: str) -> int:
    """Steps in the record of a job's run; its events tell only every so many."""
    record = data / "tuning" / job / "run" / "metrics.jsonl"
    return record.read_text(encoding="utf-8").count('"event": "step"') if record.exists() else 0


def prompt_ids(draw: random.Random, length: int) -> list[int]:
    """Random bytes as ids, so that no prefix is found again by chance."""
    return [draw.randrange(256) for _ in range(length)]


def body(prompt: list[int], tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """Of a greedy completion of exactly so many tokens: the ids that would end it are forbidden."""
    ends = {str(id): -100 for id in options.ends}
    return {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logit_bias": ends}


def once(given: Sequence[dict[str, Any]]) -> Callable[[int], dict[str, Any] | None]:
    """Each slot sends one of them."""
    left = dict(enumerate(given))
    return lambda slot: left.pop(slot, None)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Median, p95, maximum and count."""
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"median": statistics.median(ordered), "p95": p95, "max": ordered[-1], "n": len(ordered)}


class Bare:
    """The engine without a server, in a process of its own, that answers one line with one line. A context, which ends it."""

    def __init__(self, model: Path, options: argparse.Namespace) -> None:
        words = [sys.executable, str(HERE / "serve.py"), "--bare", str(model), "--threads", str(options.threads)]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(options.threads), text=True
        )

    def ask(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """What came of it.

        Raises:
            WorkerFailed: the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise WorkerFailed(f"the engine ended with code {self._process.wait()}")

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def bare(options: argparse.Namespace) -> None:
    """In the engine's process."""
    from tessera import device

    device.prepare_process()
    from tessera.commands.generate import open_engine
    from tessera.engine.engine import Limits
    from tessera.engine.sampling import SamplingParams

    engine = open_engine(options.bare)
    wide = open_engine(options.bare, limits=Limits(rows=64, cache_tokens=64 * 512, prefix_tokens=0))
    device.detect(threads=options.threads)
    ends = dict.fromkeys(end_ids(Path(options.bare)), -100.0)
    for line in sys.stdin:
        wanted = json.loads(line)
        if "step" in wanted:
            print(json.dumps({"seconds": step_seconds(wide, wanted["step"], wanted["context"], options.threads)}), flush=True)
            continue
        params = SamplingParams(wanted["tokens"], temperature=0, bias=ends)
        began = time.perf_counter()
        made = engine.generate(wanted["prompts"], params)
        seconds = time.perf_counter() - began
        assert all(len(one.ids) == wanted["tokens"] for one in made)
        print(json.dumps({"seconds": seconds}), flush=True)


def step_seconds(engine: Any, count: int, context: int, threads: int) -> float:
    """Median seconds of a step in which so many streams go on, each at about so long a context."""
    from tessera.engine.request import Request, Token
    from tessera.engine.sampling import SamplingParams

    clock = time.process_time if threads == 1 else time.perf_counter
    draw, heard = random.Random(count), [0] * count

    def listener(index: int) -> Callable[[Any], None]:
        def hear(event: Any) -> None:
            heard[index] += isinstance(event, Token)

        return hear

    params = SamplingParams(_TIMED_STEPS * 3, temperature=0, stop_ids=())
    length = context - _TIMED_STEPS // 2
    ids = [engine.submit(Request(tuple(prompt_ids(draw, length)), params, on_event=listener(n))) for n in range(count)]
    while min(heard) < 5:
        engine.step()
    taken = []
    for _ in range(_TIMED_STEPS):
        began = clock()
        engine.step()
        taken.append(clock() - began)
    for id in ids:
        engine.abort(id)
    while engine.step():
        pass
    return statistics.median(taken)


def end_ids(model: Path) -> list[int]:
    """Those that would end a completion before its length is reached."""
    from tessera.tokens.vocabulary import END, END_TURN, Vocabulary

    controls = Vocabulary.load(model).controls
    return [controls[name] for name in (END, END_TURN) if name in controls]


if __name__ == "__main__":
    main()
