"""A `tessera serve` in a process of its own, and clients that speak HTTP over plain sockets, so that they cost next to nothing.

The SDK takes more of a core than a small model does; what is measured through it is the SDK. `Client` is one connection for one
request at a time; `streams` keeps many event streams going from one thread and says how much processor time that took.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import environment, tessera_command

PATIENCE_SECONDS = 120.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_END = b"\r\n0\r\n\r\n"
"""Of a body in chunks."""


class ServerFailed(Exception):
    """The server did not start; the text is what it said."""


class ServerProcess:
    """`tessera serve` on this machine.

    Args:
        model: folder.
        data: folder for what is kept.
        options: of `tessera serve`, beside those two.
        threads: that compute.
        port: 0: any that is free.
    """

    def __init__(self, model: Path, data: Path, options: tuple[str, ...] = (), threads: int = 1, port: int = 0) -> None:
        words = [*tessera_command(), "serve", str(model), "--data", str(data), "--port", str(port)]
        words += ["--threads", str(threads), *options]
        self.began = time.perf_counter()
        self._process = subprocess.Popen(
            words, env=environment(threads), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.said: deque[str] = deque(maxlen=200)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.said.append(line)
            if found := re.search(r"http://([\w.]+):(\d+)/v1", line):
                self.host, self.port = found[1], int(found[2])
                break
        else:
            raise ServerFailed(f"the server ended with code {self._process.wait()}: {''.join(self.said)[-2000:]}")
        self.tracebacks: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def client(self) -> Client:
        """A connection of its own."""
        return Client(self.host, self.port)

    def answer(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """One request by one connection; the parsed body.

        Raises:
            RuntimeError: an answer that is no success.
        """
        with self.client() as client:
            got = client.ask(method or ("GET" if body is None else "POST"), path, body)
        if got.status >= 400:
            raise RuntimeError(f"{path}: {got.status} {got.body[:300]!r}")
        return json.loads(got.body) if got.headers.get("content-type", "").startswith("application/json") else got.body

    def gauge(self, name: str) -> float:
        """The sum of a number of `/metrics` over its labels."""
        text = self.answer("/metrics").decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? ([-+.\deE]+)$", text, re.MULTILINE))

    def wait_idle(self, seconds: float = 30.0) -> bool:
        """Whether no request runs or waits any more, within some time."""
        end = time.monotonic() + seconds
        while self.gauge("tessera_running_requests") + self.gauge("tessera_waiting_requests"):
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    @property
    def resident_bytes(self) -> int:
        """Its memory now; 0 once it has ended."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_BYTES
        except OSError:
            return 0

    @property
    def cpu_seconds(self) -> float:
        """Processor time that it took so far, all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """As `kill -9`."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """As Ctrl-C; the exit code."""
        if self.alive:
            self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _listen(self) -> None:
        for line in self._process.stderr or ():
            self.said.append(line)
            if "Traceback" in line:
                self.tracebacks.append(line)
            elif self.tracebacks and not line.startswith("{"):  # what the log says is an object a line
                self.tracebacks[-1] += line


@dataclass
class Answer:
    """One answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Its body, parsed."""
        return json.loads(self.body)


class Broken(Exception):
    """The connection ended before the answer was complete."""


class Client:
    """One connection; a context, which closes it. Whatever goes wrong with the connection is `Broken`."""

    def __init__(self, host: str, port: int, seconds: float = PATIENCE_SECONDS) -> None:
        self._host = f"{host}:{port}"
        try:
            self.socket = socket.create_connection((host, port), timeout=seconds)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise Broken(f"no connection: {error}") from None
        self._read = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Sends a request and reads the whole answer. `body`: bytes as they are, anything else as JSON."""
        self.send(request_bytes(self._host, method, path, body, headers))
        return self.receive()

    def send(self, content: bytes) -> None:
        """Bytes as they are."""
        try:
            self.socket.sendall(content)
        except OSError as error:
            raise Broken(f"while sending: {error}") from None

    def upload(self, path: str, name: str, content: bytes, **fields: str) -> Answer:
        """A multipart form with one file."""
        kind, body = multipart(name, content, **fields)
        return self.ask("POST", path, body, {"content-type": kind})

    def receive(self) -> Answer:
        """An answer to its end."""
        status, headers = self.head()
        return Answer(status, headers, b"".join(self.pieces(headers)))

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the answer that comes."""
        while b"\r\n\r\n" not in self._read:
            self._more()
        head, self._read = self._read.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        return int(first.split()[1]), {name.strip().lower(): value.strip() for name, value in pairs}

    def pieces(self, headers: dict[str, str]) -> Iterator[bytes]:
        """The body as it comes."""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(self._line(), 16):
                yield self._exactly(size + 2)[:-2]
            self._line()
        elif "content-length" in headers:
            yield self._exactly(int(headers["content-length"]))

    def take(self, most: int) -> bytes:
        """What comes first of an answer, at most so much of it."""
        while not self._read:
            self._more()
        return self._read[:most]

    def _line(self) -> bytes:
        while b"\r\n" not in self._read:
            self._more()
        line, self._read = self._read.split(b"\r\n", 1)
        return line

    def _exactly(self, size: int) -> bytes:
        while len(self._read) < size:
            self._more()
        taken, self._read = self._read[:size], self._read[size:]
        return taken

    def _more(self) -> None:
        try:
            piece = self.socket.recv(1 << 16)
        except OSError as error:
            raise Broken(f"while reading: {error}") from None
        if not piece:
            raise Broken("closed before the answer was complete")
        self._read += piece


def request_bytes(host: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> bytes:
    """A request as it goes over the wire."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"host": host, "content-length": str(len(content))}
    lines |= {} if body is None else {"content-type": "application/json"}
    lines |= headers or {}
    return (
        f"{method} {path} HTTP/1.1\r\n".encode()
        + b"".join(f"{k}: {v}\r\n".encode() for k, v in lines.items())
        + b"\r\n"
        + content
    )


def multipart(name: str, content: bytes, **fields: str) -> tuple[str, bytes]:
    """Content type and body of a form with one file."""
    mark = "----tessera-benchmark"
    parts = [f'--{mark}\r\ncontent-disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    head = f'--{mark}\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return f"multipart/form-data; boundary={mark}", b"".join(parts) + head + content + f"\r\n--{mark}--\r\n".encode()


@dataclass
class Stream:
    """One event stream while it comes.

    Args:
        body: of its request.
        sent: when it was sent, seconds of `time.perf_counter`.
        times: when each piece of events came, and how many events were in it.
    """

    body: dict[str, Any]
    sent: float
    times: list[tuple[float, int]] = field(default_factory=list)
    left: bytes = b""

    @property
    def first(self) -> float:
        """Seconds to its first event."""
        return self.times[0][0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between its events; events that came in one piece have no gap between them."""
        gaps: list[float] = []
        for (before, _), (at, count) in zip(self.times, self.times[1:], strict=False):
            gaps += [at - before] + [0.0] * (count - 1)
        return gaps


def streams(
    server: ServerProcess, path: str, next_body: Callable[[int], dict[str, Any] | None], slots: int
) -> tuple[list[Stream], float]:
    """Keeps `slots` streams going, closed loop: whoever is done asks for the next body.

    Args:
        next_body: of the slot's next request; None: the slot is done.

    Returns:
        all finished streams, and the processor seconds that this client took.

    Raises:
        RuntimeError: a stream that is no success.
    """
    done: list[Stream] = []
    cpu = time.thread_time()
    host = f"{server.host}:{server.port}"
    with selectors.DefaultSelector() as waiting:

        def begin(slot: int, place: socket.socket) -> None:
            body = next_body(slot)
            if body is None:
                waiting.unregister(place)
                place.close()
                return
            stream = Stream(body, time.perf_counter())
            place.sendall(request_bytes(host, "POST", path, body | {"stream": True}))
            waiting.modify(place, selectors.EVENT_READ, (slot, stream))

        for slot in range(slots):
            place = socket.create_connection((server.host, server.port), timeout=PATIENCE_SECONDS)
            place.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            waiting.register(place, selectors.EVENT_READ, None)
            begin(slot, place)
        while waiting.get_map():
            ready = waiting.select(PATIENCE_SECONDS)
            if not ready:
                raise RuntimeError(f"no event for {PATIENCE_SECONDS:.0f} s")
            for key, _ in ready:
                place: Any = key.fileobj
                slot, stream = key.data
                piece = place.recv(1 << 16)
                now = time.perf_counter()
                begins = not stream.left
                stream.left = stream.left[-len(_END) :] + piece
                if not piece or (begins and not piece.startswith(b"HTTP/1.1 200")):
                    raise RuntimeError(f"a stream failed: {stream.left[:500]!r}")
                events = piece.count(b"data: {")
                if events:
                    stream.times.append((now, events))
                if stream.left.endswith(_END):
                    done.append(stream)
                    begin(slot, place)
    return done, time.thread_time() - cpu
