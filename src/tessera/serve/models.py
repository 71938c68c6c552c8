"""The models that are served, by name, each with its own engine and thread; and the routes `/v1/models`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tessera.engine.constraints import Grammars
from tessera.engine.service import Service
from tessera.serve.errors import ApiError
from tessera.tokens.vocabulary import Vocabulary


@dataclass(frozen=True)
class Served:
    """One model.

    Args:
        name: by which requests ask for it.
        folder: of its weights.
        service: its engine, running in a thread of its own.
        vocabulary: its ids.
        context: tokens it can look at.
        tuned: it knows the turns of a dialogue.
        created: seconds since 1970.
        owner: who may use it; empty: everybody.
    """

    name: str
    folder: Path
    service: Service
    vocabulary: Vocabulary
    context: int
    tuned: bool
    created: int
    owner: str = ""

    @cached_property
    def grammars(self) -> Grammars:
        """Compiles what constrains its answers."""
        return Grammars(self.vocabulary, self.end_of_answer)

    @property
    def end_of_answer(self) -> int:
        """The id that closes what the model says."""
        return self.vocabulary.end_turn_id if self.tuned else self.vocabulary.end_id

    def token_text(self, id: int) -> str:
        """A token as people read it; bytes that are no whole character read U+FFFD."""
        entry = self.vocabulary.bytes_of([id])
        return entry.decode("utf-8", "replace") if entry else str(self.vocabulary.decode([id]).segments[0].content)


class Models:
    """What is served; models may come and go while the server runs."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}
        self._lock = threading.Lock()

    def add(self, served: Served) -> None:
        """Serves one more; its service is started already."""
        with self._lock:
            self._served[served.name] = served

    def get(self, name: str, owner: str) -> Served:
        """The model of that name.

        Raises:
            ApiError: 404 `model_not_found`, also where it belongs to somebody else.
        """
        served = self._served.get(name)
        if served is None or served.owner not in ("", owner):
            known = ", ".join(sorted(s.name for s in self.of(owner)))
            message = f"The model '{name[:100]}' does not exist or you do not have access to it; there is: {known}."
            raise ApiError(404, message, "model", "model_not_found")
        return served

    def of(self, owner: str) -> Iterator[Served]:
        """Those that an owner may use."""
        return (served for served in list(self._served.values()) if served.owner in ("", owner))

    def remove(self, name: str) -> None:
        """Stops serving one."""
        with self._lock:
            served = self._served.pop(name, None)
        if served is not None:
            served.service.close()

    def close(self) -> None:
        """Stops all."""
        for name in list(self._served):
            self.remove(name)

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self._served.values()))


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
