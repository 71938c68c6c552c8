"""The thread that owns an engine: requests come in from any thread, events go out in this one."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from tessera.engine.engine import Engine
from tessera.engine.request import Event, Request, Stats

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Closed(Exception):
    """The service has ended, or does before it comes to what was asked."""


class Service:
    """Steps an engine for as long as there is work, and sleeps otherwise. A context, which closes it.

    Args:
        engine: touched by nobody else from now on.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._work = False
        self._closed = False
        self._errands: deque[tuple[Callable[[Engine], Any], Future[Any]]] = deque()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends after the step that is under way. Requests that are not done end with the reason `abort`; no new one is taken."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, request: Request) -> int:
        """As `Engine.submit`. A listener that raises is logged and its request aborted; the others do not notice.

        Raises:
            UserError: a request that cannot be served.
            Busy: the queue is full.
            Closed: the service is.
        """
        known: list[int] = []

        def hear(event: Event) -> None:
            try:
                request.on_event(event)
            except Exception:
                _log.exception("the listener of request %s failed", known)
                for id in known:
                    self._engine.abort(id)

        with self._changed:
            if self._closed:
                raise Closed
            known.append(self._engine.submit(replace(request, on_event=hear)))
            self._work = True
            self._changed.notify()
        return known[0]

    def abort(self, id: int) -> None:
        """As `Engine.abort`."""
        self._engine.abort(id)
        self._wake()

    def run(self, function: Callable[[Engine], T]) -> Future[T]:
        """Calls `function` with the engine between two steps, in the engine's thread; for embeddings and new weights.

        Returns:
            What it gives; `Closed` where the service ends before that.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                future.set_exception(Closed())
                return future
            self._errands.append((function, future))
            self._work = True
            self._changed.notify()
        return future

    def stats(self) -> Stats:
        """As `Engine.stats`."""
        return self._engine.stats()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def _wake(self) -> None:
        with self._changed:
            self._work = True
            self._changed.notify()

    def _run(self) -> None:
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._work or self._closed)
                self._work = False
            while self._step() and not self._closed:
                pass
        self._engine.abort_all()
        # Nothing is added to them any more.
        while self._errands:
            if (future := self._errands.popleft()[1]).set_running_or_notify_cancel():
                future.set_exception(Closed())

    def _step(self) -> bool:
        """One step and all errands; whether there is more to do."""
        while self._errands:
            function, future = self._errands.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(self._engine))
                except Exception as error:
                    future.set_exception(error)
        try:
            return self._engine.step()
        except Exception as error:
            _log.exception("a step of the engine failed")
            self._engine.fail(f"{type(error).__name__}: {error}")
            return True
