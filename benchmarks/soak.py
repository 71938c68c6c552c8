"""A server under clients that behave badly: does anything leak, get stuck or get lost?

    python benchmarks/soak.py [--seconds 600] [--clients 64] [--model DIR]

Clients speak HTTP over plain sockets. They ask for all kinds of answers, leave in the middle of streams and of their own
requests, send what is no JSON, no UTF-8 or far too large, store objects, look after those that were stored and delete some. Half
way the server is killed with `kill -9` and started again on the same data. What must hold:

* every request that was accepted is answered, or fails in the error envelope, unless the kill cut it off
* what was acknowledged as stored is there at the end, byte by byte, and what was deleted is not
* background responses and batches come to an end, those that the kill interrupted too
* no slot is held when everybody has gone
* resident memory is flat: in each life of the server, the median of its last part is at most 5 % above that after its warm-up
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import facts, result_path, store
from served import Answer, Broken, Client, ServerProcess, multipart, request_bytes

ALLOWED_GROWTH = 0.05
WARM_UP = 1 / 3
"""Of a life: caches fill, and background responses are remembered for a minute."""
_MIB = 1 << 20
_MOST_BODY = 32 * _MIB
_MOST_TOLD = 50
_LOOKERS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="of load, the time that the server is down included")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--model", default=None, help="folder; default: a random one of --shape")
    parser.add_argument("--shape", default="8M", help="of benchmarks/generate.py")
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    parser.add_argument("--growth", type=float, default=ALLOWED_GROWTH, help="of memory that counts as flat")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="where the result goes; default: results/DATE-soak.json")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(options.model) if options.model else Path(scratch) / "random"
        if options.model is None:
            from generate import write_model

            write_model(options.shape, model)
        soak = Soak(model, Path(scratch) / "data", options)
        try:
            result = facts() | soak.run()
        finally:
            soak.server.kill()
    print(f"{result['requests']:,} requests of {options.clients} clients in {options.seconds:.0f} s, {result['cut']} cut off")
    for life in result["lives"]:
        print(f"memory {life['after_warm_up_mb']:.0f} -> {life['last_mb']:.0f} MB ({life['growth']:+.1%})")
    print(f"{result['stored']['checked']} stored objects looked after at the end, {result['stored']['lost']} lost")
    print(f"slots held at the end: {result['slots_held']}")
    for told in result["violations"]:
        print(f"VIOLATION {told}")
    store(Path(options.out) if options.out else result_path("soak"), result)
    if options.json:
        print(json.dumps(result))
    sys.exit(0 if result["passed"] else 1)


class Violation(Exception):
    """The server did what it must not."""


@dataclass
class Kept:
    """What the server said that it stored.

    Args:
        path: where it is.
        holds: whether an answer has it unchanged.
    """

    path: str
    holds: Callable[[Answer], bool]


@dataclass
class Soak:
    """One run: the server, what it has promised, and what went wrong."""

    model: Path
    data: Path
    options: argparse.Namespace
    kept: dict[str, Kept] = field(default_factory=dict)
    """By path."""
    gone: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    batches: list[tuple[str, int]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    violations: list[str] = field(default_factory=list)
    lives: list[list[tuple[float, int]]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    up: threading.Event = field(default_factory=threading.Event)
    life: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    large: threading.Lock = field(default_factory=threading.Lock)
    """Held by the only client that sends what is too large: more at a time would measure the size of bodies, not leaks."""

    def __post_init__(self) -> None:
        self.server = self.start()
        self.name = self.server.answer("/v1/models")["data"][0]["id"]
        self.context = self.server.answer("/v1/models")["data"][0]["context_length"]

    def start(self, port: int = 0) -> ServerProcess:
        """The server, its memory watched from now on."""
        server = ServerProcess(self.model, self.data, ("--no-compile",), self.options.threads, port)
        self.lives.append([])
        threading.Thread(target=self.watch, args=(server, self.lives[-1]), daemon=True).start()
        self.up.set()
        return server

    def watch(self, server: ServerProcess, series: list[tuple[float, int]]) -> None:
        """Notes its memory until the load is over or it has ended."""
        began, every = time.monotonic(), max(0.25, self.options.seconds / 600)
        while not self.stopping.wait(every) and (size := server.resident_bytes):
            series.append((time.monotonic() - began, size))

    def run(self) -> dict[str, Any]:
        """The load with the kill in its middle, and what is looked at afterwards."""
        began = time.monotonic()
        workers = [threading.Thread(target=Worker(self, number).run, daemon=True) for number in range(self.options.clients)]
        for worker in workers:
            worker.start()
        self.stopping.wait(self.options.seconds / 2)
        down = self.kill_and_restart()
        self.look_after_everything("after the restart")
        self.stopping.wait(max(0.0, began + self.options.seconds - time.monotonic()))
        self.stopping.set()
        for worker in workers:
            worker.join(180)
        if any(worker.is_alive() for worker in workers):
            self.tell("a client still waits for its answer three minutes after the end")
        held = self.slots_held()
        self.finish()
        checked, lost = self.look_after_everything("at the end")
        if self.server.stop() != 0:
            self.tell("Ctrl-C did not end the server in order")
        for traceback in self.server.tracebacks:
            self.tell(f"in the server's log: {traceback[-3000:]}")
        lives = [self.summary_of(life) for life in self.lives]
        for life in lives:
            if life["growth"] > self.options.growth:
                self.tell(f"memory grew by {life['growth']:.1%}, from {life['after_warm_up_mb']} to {life['last_mb']} MB")
        return {
            "clients": self.options.clients,
            "seconds": self.options.seconds,
            "seed": self.options.seed,
            "threads": self.options.threads,
            "requests": sum(n for name, n in self.counts.items() if name != "cut"),
            "cut": self.counts.pop("cut", 0),
            "down_seconds": down,
            "counts": dict(sorted(self.counts.items())),
            "latency_seconds": {
                name: {"median": statistics.median(taken), "p95": sorted(taken)[int(0.95 * len(taken))], "max": max(taken)}
                for name, taken in sorted(self.seconds.items())
            },
            "stored": {"checked": checked, "lost": lost},
            "slots_held": held,
            "lives": lives,
            "violations": self.violations[:_MOST_TOLD],
            "passed": not self.violations,
        }

    def kill_and_restart(self) -> float:
        """Seconds for which there was no server."""
        port, began = self.server.port, time.monotonic()
        with self.lock:
            self.life += 1
        self.up.clear()
        self.server.kill()
        for traceback in self.server.tracebacks:
            self.tell(f"in the server's log before the kill: {traceback[-3000:]}")
        self.server = self.start(port)
        return time.monotonic() - began

    def slots_held(self) -> int:
        """Requests that the engine still has when everybody has gone and what runs in the background is done."""
        names = ("tessera_running_requests", "tessera_waiting_requests", "tessera_cache_tokens")
        idle = self.server.wait_idle(60)
        left = {name: int(self.server.gauge(name)) for name in names}
        if not idle or any(left.values()):
            self.tell(f"slots are held with nobody there: {left}")
        return left["tessera_running_requests"] + left["tessera_waiting_requests"]

    def finish(self) -> None:
        """Waits for what goes on in the background."""
        end = time.monotonic() + 120
        for path in self.unfinished:
            while (status := self.server.answer(path)["status"]) in ("queued", "in_progress") and time.monotonic() < end:
                time.sleep(0.1)
            if status not in ("completed", "incomplete", "cancelled"):
                self.tell(f"{path} ended as {status}")
        for path, rows in self.batches:
            while (batch := self.server.answer(path))["status"] not in ("completed", "failed") and time.monotonic() < end:
                time.sleep(0.1)
            if batch["status"] != "completed" or batch["request_counts"]["completed"] != rows:
                self.tell(f"{path} of {rows} rows ended as {batch['status']}: {batch['request_counts']}")

    def look_after_everything(self, when: str) -> tuple[int, int]:
        """How many stored objects there should be, and how many of them are not."""
        with self.lock:
            kept, gone = list(self.kept.values()), list(self.gone)

        def look(part: int) -> int:
            client, lost = self.server.client(), 0

            def get(path: str) -> Answer:
                nonlocal client
                try:
                    return client.ask("GET", path)
                except Broken:  # the server waits a few seconds for the next request of a connection, then closes it
                    client.socket.close()
                    client = self.server.client()
                    return client.ask("GET", path)

            for thing in kept[part::_LOOKERS]:
                answer = get(thing.path)
                if thing.path in self.kept and not (answer.status == 200 and thing.holds(answer)):
                    lost += 1
                    self.tell(f"{thing.path} was lost {when}: {answer.status} {answer.body[:200]!r}")
            for path in gone[part::_LOOKERS]:
                if get(path).status != 404:
                    self.tell(f"{path} was deleted and came back {when}")
            client.socket.close()
            return lost

        with ThreadPoolExecutor(_LOOKERS) as pool:
            return len(kept), sum(pool.map(look, range(_LOOKERS)))

    def tell(self, violation: str) -> None:
        """Notes what must not be."""
        with self.lock:
            self.violations.append(violation)
        print(f"  {violation[:300]}", file=sys.stderr, flush=True)

    def summary_of(self, life: list[tuple[float, int]]) -> dict[str, Any]:
        """Memory after the warm-up and at the end of a life of the server."""
        settled = life[int(len(life) * WARM_UP) :] or life
        fifth = max(1, len(settled) // 5)
        first, last = (statistics.median(size for _, size in part) / 1e6 for part in (settled[:fifth], settled[-fifth:]))
        return {
            "after_warm_up_mb": round(first, 1),
            "last_mb": round(last, 1),
            "growth": last / first - 1,
            "series_mb": [[round(at, 1), round(size / 1e6, 1)] for at, size in life[:: max(1, len(life) // 100)]],
        }


@dataclass
class Worker:
    """One client after another, each with a connection of its own."""

    soak: Soak
    number: int

    def run(self) -> None:
        """Until the load is over."""
        soak, draw = self.soak, random.Random(self.soak.options.seed * 1000 + self.number)
        names = list(ACTIONS)
        weights = [ACTIONS[name][0] for name in names]
        while not soak.stopping.is_set():
            name = draw.choices(names, weights)[0]
            soak.up.wait(60)
            life, began = soak.life, time.perf_counter()
            try:
                outcome = ACTIONS[name][1](soak, draw)
            except Broken as broken:
                outcome = "cut"
                if soak.life == life:
                    soak.tell(f"{name}: {broken}")
            except Exception as error:  # a client must not stop for what it did not expect: that is what is looked for
                outcome = "violation"
                soak.tell(f"{name}: {type(error).__name__}: {error}")
            with soak.lock:
                soak.counts["cut" if outcome == "cut" else f"{name}: {outcome}"] += 1
                if outcome != "cut":
                    soak.seconds[name].append(time.perf_counter() - began)


def checked(answer: Answer, *expected: int) -> str:
    """The status, if it is one that may be; what is no success must be in the envelope."""
    if "x-request-id" not in answer.headers:
        raise Violation(f"no request id: {answer}")
    if answer.status >= 400:
        error = answer.json["error"]
        if set(error) != {"message", "type", "param", "code"} or not error["message"]:
            raise Violation(f"not the envelope: {answer.body[:200]!r}")
    if answer.status == 429 and "retry-after" in answer.headers:
        return "429"
    if answer.status not in expected:
        raise Violation(f"{answer.status} instead of {expected}: {answer.body[:300]!r}")
    return str(answer.status)


def client_of(soak: Soak) -> Client:
    """A new connection."""
    return soak.server.client()


def host_of(soak: Soak) -> str:
    """As the header names it."""
    return f"{soak.server.host}:{soak.server.port}"


def words(draw: random.Random, most: int = 12) -> str:
    """A prompt that nobody had before."""
    return " ".join(str(draw.randrange(10**6)) for _ in range(draw.randint(1, most)))


def chat_body(soak: Soak, draw: random.Random, most: int = 24) -> dict[str, Any]:
    """A chat with all sorts of settings."""
    body: dict[str, Any] = {"model": soak.name, "messages": [{"role": "user", "content": words(draw)}]}
    body |= {"max_tokens": draw.randint(1, most), "temperature": draw.choice((0, 0.7, 1.0))}
    extras: list[dict[str, Any]] = [
        {"n": 2}, {"stop": ["e"]}, {"logprobs": True, "top_logprobs": 3}, {"seed": 1}, {"frequency_penalty": 0.5},
        {"store": True},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}},
    ]  # fmt: skip
    return body | (draw.choice(extras) if draw.random() < 0.5 else {})


def chat(soak: Soak, draw: random.Random) -> str:
    with client_of(soak) as client:
        return checked(client.ask("POST", "/v1/chat/completions", chat_body(soak, draw)), 200)


def chat_stream(soak: Soak, draw: random.Random) -> str:
    body = chat_body(soak, draw) | {"stream": True, "stream_options": {"include_usage": True}}
    with client_of(soak) as client:
        client.send(request_bytes(host_of(soak), "POST", "/v1/chat/completions", body))
        status, headers = client.head()
        content = b"".join(client.pieces(headers))
    if status != 200:
        return checked(Answer(status, headers, content), 200)
    events = [part[6:] for part in content.split(b"\n\n") if part.startswith(b"data: ")]
    parsed = [json.loads(part) for part in events if part != b"[DONE]"]
    if any("error" in event for event in parsed):
        raise Violation(f"a stream failed: {parsed[-1]}")
    if events[-1] != b"[DONE]" or parsed[-1]["usage"]["completion_tokens"] < 1:
        raise Violation(f"a stream without its end: {content[-300:]!r}")
    return "200"


def completion(soak: Soak, draw: random.Random) -> str:
    body = {"model": soak.name, "prompt": words(draw, 40), "max_tokens": draw.randint(0, 16), "echo": True, "logprobs": 1}
    with client_of(soak) as client:
        return checked(client.ask("POST", "/v1/completions", body), 200)


def embedding(soak: Soak, draw: random.Random) -> str:
    body = {"model": soak.name, "input": [words(draw, 30) for _ in range(draw.randint(1, 4))]}
    with client_of(soak) as client:
        return checked(client.ask("POST", "/v1/embeddings", body), 200)


def response(soak: Soak, draw: random.Random) -> str:
    body = {"model": soak.name, "input": words(draw), "max_output_tokens": draw.randint(1, 16)}
    with client_of(soak) as client:
        made = client.ask("POST", "/v1/responses", body)
    status = checked(made, 200)
    if status == "200":
        output = made.json["output"]
        keep(soak, f"/v1/responses/{made.json['id']}", lambda answer: answer.json["output"] == output)
    return status


def background(soak: Soak, draw: random.Random) -> str:
    body = {"model": soak.name, "input": words(draw), "max_output_tokens": draw.randint(1, 60), "background": True}
    with client_of(soak) as client:
        made = client.ask("POST", "/v1/responses", body)
    if (status := checked(made, 200)) != "200":
        return status
    path = f"/v1/responses/{made.json['id']}"
    with soak.lock:
        soak.unfinished.append(path)
    if draw.random() < 0.5:
        time.sleep(draw.random() * 0.05)
        with client_of(soak) as client:
            done = client.ask("POST", f"{path}/cancel")
        if checked(done, 200, 400) == "200":
            keep(soak, path, lambda answer: answer.json["status"] == "cancelled")
            return "cancelled"
    return "200"


def file(soak: Soak, draw: random.Random) -> str:
    content = draw.randbytes(draw.choice((1, 1000, 100_000, 3_000_000)))
    with client_of(soak) as client:
        made = client.upload("/v1/files", "a.bin", content, purpose="user_data")
    if checked(made, 200) == "200":
        digest = hashlib.sha256(content).digest()
        keep(soak, f"/v1/files/{made.json['id']}/content", lambda answer: hashlib.sha256(answer.body).digest() == digest)
    return str(made.status)


def conversation(soak: Soak, draw: random.Random) -> str:
    items = [{"role": "user", "content": words(draw)} for _ in range(draw.randint(1, 5))]
    with client_of(soak) as client:
        made = client.ask("POST", "/v1/conversations", {"items": items, "metadata": {"n": words(draw, 1)}})
    if checked(made, 200) == "200":
        metadata, wanted = made.json["metadata"], [item["content"] for item in items]
        path = f"/v1/conversations/{made.json['id']}"
        keep(soak, path, lambda answer: answer.json["metadata"] == metadata)
        keep(soak, f"{path}/items?order=asc", lambda a: [item["content"][0]["text"] for item in a.json["data"]] == wanted)
    return str(made.status)


def batch(soak: Soak, draw: random.Random) -> str:
    rows = draw.randint(1, 6)
    body = {"model": soak.name, "prompt": words(draw), "max_tokens": 4}
    lines = [{"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": body} for n in range(rows)]
    with client_of(soak) as client:
        sent = client.upload("/v1/files", "in.jsonl", "\n".join(map(json.dumps, lines)).encode(), purpose="batch")
    if (status := checked(sent, 200)) != "200":
        return status
    wanted = {"input_file_id": sent.json["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    with client_of(soak) as client:
        made = client.ask("POST", "/v1/batches", wanted)
    if (status := checked(made, 200)) == "200":
        with soak.lock:
            soak.batches.append((f"/v1/batches/{made.json['id']}", rows))
    return status


def keep(soak: Soak, path: str, holds: Callable[[Answer], bool]) -> None:
    """Remembers what was acknowledged."""
    with soak.lock:
        soak.kept[path] = Kept(path, holds)


def look_after(soak: Soak, draw: random.Random) -> str:
    with soak.lock:
        thing = draw.choice(list(soak.kept.values())) if soak.kept else None
    if thing is None:
        return "none yet"
    with client_of(soak) as client:
        answer = client.ask("GET", thing.path)
    if thing.path in soak.kept and checked(answer, 200) == "200" and not thing.holds(answer):
        raise Violation(f"{thing.path} has changed: {answer.body[:200]!r}")
    return str(answer.status)


def delete(soak: Soak, draw: random.Random) -> str:
    with soak.lock:
        found = [path for path in soak.kept if not path.startswith("/v1/conversations")]
        if not found:
            return "none yet"
        chosen = draw.choice(found)
        # What the kill cuts off may be there or not.
        del soak.kept[chosen]
        soak.unfinished[:] = [path for path in soak.unfinished if path != chosen]
    path = chosen.removesuffix("/content")
    with client_of(soak) as client:
        status = checked(client.ask("DELETE", path), 200)
    if status == "200":
        with soak.lock:
            soak.gone.append(path)
    return status


def leave_stream(soak: Soak, draw: random.Random) -> str:
    body = chat_body(soak, draw) | {"stream": True, "max_tokens": min(400, soak.context // 2)}
    with client_of(soak) as client:
        client.send(request_bytes(host_of(soak), "POST", "/v1/chat/completions", body))
        client.take(draw.randint(1, 3000))
    return "left"


def leave_silently(soak: Soak, draw: random.Random) -> str:
    path, body = draw.choice(
        (
            ("/v1/chat/completions", chat_body(soak, draw, 400)),
            ("/v1/responses", {"model": soak.name, "input": words(draw), "max_output_tokens": 200}),
            ("/v1/embeddings", {"model": soak.name, "input": [words(draw, 100)] * 8}),
        )
    )
    with client_of(soak) as client:
        client.send(request_bytes(host_of(soak), "POST", path, body))
        time.sleep(draw.random() * 0.3)
    return "left"


def leave_half_sent(soak: Soak, draw: random.Random) -> str:
    kind, form = multipart("half.bin", draw.randbytes(200_000), purpose="user_data")
    whole = draw.choice(
        (
            request_bytes(host_of(soak), "POST", "/v1/chat/completions", chat_body(soak, draw)),
            request_bytes(host_of(soak), "POST", "/v1/files", form, {"content-type": kind}),
        )
    )
    with client_of(soak) as client:
        client.send(whole[: draw.randrange(1, len(whole))])
    return "left"


def malformed(soak: Soak, draw: random.Random) -> str:
    good = chat_body(soak, draw)
    contents: list[tuple[bytes, str]] = [
        (b"{nope", "application/json"),
        (b"", "application/json"),
        (b"[" * 50_000, "application/json"),
        (draw.randbytes(draw.randint(1, 2000)), "application/json"),
        (json.dumps(good).encode()[:-1], "application/json"),
        (json.dumps(good).encode(), "text/plain"),
        (json.dumps(good | {"model": words(draw, 1)}).encode(), "application/json"),
        (json.dumps(good | {"temperature": "hot"}).encode(), "application/json"),
        (json.dumps(good | {"unheard": 1}).encode(), "application/json"),
        (json.dumps(good | {"messages": []}).encode(), "application/json"),
        (json.dumps(good | {"stop": ["x"] * 1000}).encode(), "application/json"),
        (json.dumps(good | {"messages": [{"role": "user", "content": "x " * 20_000}]}).encode(), "application/json"),
        (json.dumps(good | {"max_tokens": -1}).encode(), "application/json"),
        (b"--x\r\nno form", "multipart/form-data; boundary=x"),
    ]
    content, kind = draw.choice(contents)
    path = draw.choice(("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/files", "/v1/batches"))
    with client_of(soak) as client:
        return checked(client.ask("POST", path, content, {"content-type": kind}), 400, 404)


def unknown(soak: Soak, draw: random.Random) -> str:
    method, path = draw.choice(
        (("GET", "/v1/nothing"), ("PATCH", "/v1/models"), ("GET", "/v1/files/file-none"), ("GET", "/v1/files/..%2f..%2fetc"))
    )
    with client_of(soak) as client:
        return checked(client.ask(method, path), 404, 405, 400)


def announced_too_large(soak: Soak, draw: random.Random) -> str:
    path = draw.choice(("/v1/files", "/v1/chat/completions"))
    head = f"POST {path} HTTP/1.1\r\nhost: {host_of(soak)}\r\ncontent-length: {2 << 30}\r\n"
    with client_of(soak) as client:
        client.send(f"{head}content-type: multipart/form-data; boundary=x\r\n\r\n--x".encode())
        return checked(client.receive(), 413)


def sent_too_large(soak: Soak, draw: random.Random) -> str:
    """In chunks, so that nothing announces how large it is."""
    with soak.large:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host_of(soak)}\r\ntransfer-encoding: chunked\r\n"
        with client_of(soak) as client:
            client.send(f"{head}content-type: application/json\r\n\r\n".encode())
            chunk = f"{_MIB:x}\r\n".encode() + b" " * _MIB + b"\r\n"
            # It may hang up on who goes on sending, and what it said is lost then.
            with contextlib.suppress(Broken):
                for _ in range(_MOST_BODY // _MIB + 1):
                    client.send(chunk)
                return checked(client.receive(), 413)
    return "hung up"


def look_in(soak: Soak, draw: random.Random) -> str:
    path = draw.choice(("/health", "/ready", "/metrics", "/v1/models", "/v1/files?limit=20", "/openapi.json"))
    with client_of(soak) as client:
        return checked(client.ask("GET", path), 200)


ACTIONS: dict[str, tuple[float, Callable[[Soak, random.Random], str]]] = {
    "chat": (8, chat),
    "chat stream": (14, chat_stream),
    "completion": (6, completion),
    "embedding": (4, embedding),
    "response": (5, response),
    "background": (4, background),
    "file": (3, file),
    "conversation": (3, conversation),
    "batch": (0.4, batch),
    "look after": (8, look_after),
    "delete": (2, delete),
    "leave stream": (10, leave_stream),
    "leave silently": (6, leave_silently),
    "leave half sent": (4, leave_half_sent),
    "malformed": (12, malformed),
    "unknown": (3, unknown),
    "announced too large": (2, announced_too_large),
    "sent too large": (0.2, sent_too_large),
    "look in": (3, look_in),
}
"""What clients do, and how often, relative to each other."""


if __name__ == "__main__":
    main()
