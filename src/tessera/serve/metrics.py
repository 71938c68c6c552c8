"""What the server counts, for Prometheus, and the log: one JSON line per request, without prompts."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The numbers of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self.requests = Counter("tessera_requests", "Answered requests.", ["route", "method", "status"], registry=registry)
        self.seconds = Histogram("tessera_request_seconds", "From request to last byte.", ["route"], registry=registry)
        self.errors = Counter("tessera_errors", "Answers in the error envelope.", ["code"], registry=registry)
        self.prompt_tokens = Counter("tessera_prompt_tokens", "Tokens read.", ["model"], registry=registry)
        self.cached_tokens = Counter("tessera_cached_tokens", "Of them, found in the prefix cache.", ["model"], registry=registry)
        self.completion_tokens = Counter("tessera_completion_tokens", "Tokens written.", ["model"], registry=registry)
        self.first_token = Histogram(
            "tessera_time_to_first_token_seconds", "From request to first token.", ["model"], buckets=_SECONDS, registry=registry
        )
        self.between_tokens = Histogram(
            "tessera_inter_token_seconds", "Between two tokens of a request.", ["model"], buckets=_SECONDS, registry=registry
        )

    def watch(self, name: str, what: str, model: str, read: Callable[[], float]) -> None:
        """A number of a model's engine that is read whenever it is asked for."""
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = self._gauges[name] = Gauge(f"tessera_{name}", what, ["model"], registry=self._registry)
        gauge.labels(model).set_function(read)

    def unwatch(self, model: str) -> None:
        """Forgets the numbers of a model that is gone, and its engine with them."""
        for gauge in self._gauges.values():
            gauge.remove(model)

    def text(self) -> bytes:
        """All numbers as Prometheus reads them."""
        return generate_latest(self._registry)


class Log:
    """JSON lines.

    Args:
        stream: where to; None: standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()

    def write(self, event: str, **facts: object) -> None:
        """One line. Never hand it what a user wrote."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        line = json.dumps({"time": now + "Z", "event": event} | facts, default=str)
        with self._lock:
            print(line, file=self._stream, flush=True)
