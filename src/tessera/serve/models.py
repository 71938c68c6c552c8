"""The models that are served, by name, each with its own engine and thread; and the routes `/v1/models`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tessera.engine.constraints import Grammars
from tessera.engine.moderation import Head, read_head
from tessera.engine.service import Service
from tessera.errors import UserError
from tessera.model import weights
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
        thinking: effort -> tokens of thought that it was trained with; empty: it does not think.
    """

    name: str
    folder: Path
    service: Service
    vocabulary: Vocabulary
    context: int
    tuned: bool
    created: int
    owner: str = ""
    thinking: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def grammars(self) -> Grammars:
        """Compiles what constrains its answers."""
        return Grammars(self.vocabulary, self.end_of_answer)

    @cached_property
    def moderates(self) -> Head | None:
        """What it knows of moderation; None: it is no moderation model."""
        return read_head(self.folder)

    @cached_property
    def guided(self) -> Mapping[str, float]:
        """Media that it has learned to guide by itself."""
        return weights.read_special(self.folder).guided

    @cached_property
    def most_characters(self) -> int:
        """Of a text that may fit the context: each token its longest, and four characters composed to one before (NFC)."""
        return 4 * self.context * int(self.vocabulary.token_bytes.max())

    @property
    def draws(self) -> bool:
        """Whether it has learned pictures."""
        return "image" in self.vocabulary.media

    @property
    def abilities(self) -> dict[str, Any]:
        """What it can do beside going on with a text."""
        return abilities_of(self.vocabulary, self.thinking)

    @property
    def end_of_answer(self) -> int:
        """The id that closes what the model says."""
        return self.vocabulary.end_turn_id if self.tuned else self.vocabulary.end_id

    def token_text(self, id: int) -> str:
        """A token as people read it; bytes that are no whole character read U+FFFD."""
        entry = self.vocabulary.bytes_of([id])
        return entry.decode("utf-8", "replace") if entry else str(self.vocabulary.decode([id]).segments[0].content)


@dataclass(frozen=True)
class Kept:
    """A model on disk that is loaded when somebody asks for it; fields and abilities as in `Served`."""

    name: str
    folder: Path
    owner: str
    created: int
    context: int
    tuned: bool
    abilities: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def moderates(self) -> Head | None:
        """As in `Served`."""
        return read_head(self.folder)


class Models:
    """What is served; models may come and go while the server runs.

    Args:
        load: opens a model's folder under a name, its service started; None: none is kept for later.
    """

    def __init__(self, load: Callable[[str, Path], Served] | None = None) -> None:
        self._load = load
        self._served: dict[str, Served] = {}
        self._kept: dict[str, Kept] = {}
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self.on_add: Callable[[Served], object] = lambda served: None
        self.on_remove: Callable[[Served], object] = lambda served: None

    def add(self, served: Served) -> None:
        """Serves one more; its service is started already."""
        with self._lock:
            self._served[served.name] = served
            self._kept.pop(served.name, None)
        self.on_add(served)

    def keep(self, kept: Kept) -> None:
        """Serves one more, from the first request for it on."""
        with self._lock:
            self._kept[kept.name] = kept

    def get(self, name: str, owner: str) -> Served:
        """The model of that name.

        Raises:
            ApiError: 404 `model_not_found`, also where it belongs to somebody else; 500, its folder cannot be read.
        """
        found = self.find(name, owner)
        return found if isinstance(found, Served) else self._open(found)

    def find(self, name: str, owner: str) -> Served | Kept:
        """The same, loaded or not."""
        found = self._served.get(name) or self._kept.get(name)
        if found is None or found.owner not in ("", owner):
            known = ", ".join(sorted(model.name for model in self.of(owner)))
            message = f"The model '{name[:100]}' does not exist or you do not have access to it; there is: {known}."
            raise ApiError(404, message, "model", "model_not_found")
        return found

    def of(self, owner: str) -> Iterator[Served | Kept]:
        """Those that an owner may use, loaded or not."""
        with self._lock:
            every: list[Served | Kept] = [*self._served.values(), *self._kept.values()]
        return (model for model in every if model.owner in ("", owner))

    def remove(self, name: str) -> None:
        """Stops serving one."""
        with self._lock:
            self._kept.pop(name, None)
            served = self._served.pop(name, None)
        if served is not None:
            served.service.close()
            self.on_remove(served)

    def _open(self, kept: Kept) -> Served:
        """Loads one, which takes about as long as reading its file; whoever else asks for it meanwhile waits."""
        with self._loading:
            if (there := self._served.get(kept.name)) is not None:
                return there
            assert self._load is not None
            try:
                served = replace(self._load(kept.name, kept.folder), owner=kept.owner, created=kept.created)
            except UserError as error:
                raise ApiError(500, f"The model '{kept.name}' cannot be loaded.", "model", "model_not_loaded") from error
            self.add(served)
            return served

    def close(self) -> None:
        """Stops all."""
        for name in list(self._served):
            self.remove(name)

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self._served.values()))


def abilities_of(vocabulary: Vocabulary, thinking: Mapping[str, int]) -> dict[str, Any]:
    """What `/v1/models` tells of a model: the media that it has learned, whether it has tokens for gaps, its efforts
    with their tokens of thought."""
    return {
        "pictures": "image" in vocabulary.media,
        "films": "video" in vocabulary.media,
        "sounds": "audio" in vocabulary.media,
        "fills": "<|fim_middle|>" in vocabulary.controls,
        "thinking": dict(thinking),
    }


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
