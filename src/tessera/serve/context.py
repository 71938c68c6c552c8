"""What routes work with: the server's parts, and for each request who asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Depends, Query, Request
from fastapi import Path as PathPart

from tessera.serve.errors import ApiError, invalid, not_found
from tessera.serve.generation import Caller
from tessera.serve.keys import Limits
from tessera.serve.metrics import Log, Metrics
from tessera.serve.models import Models, Served
from tessera.serve.store import Blobs, Page, Record, Store, Unknown
from tessera.serve.vault import Vault

P = ParamSpec("P")
T = TypeVar("T")

Id = Annotated[str, PathPart(max_length=128, pattern=r"^[\w.:-]+$")]
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Annotated[str, Query(pattern="^(asc|desc)$")]


@dataclass(frozen=True)
class Server:
    """The parts of one server.

    Args:
        models: what is served.
        store: objects.
        blobs: contents of files.
        metrics, log: what is counted and said.
        limits: of the keys.
        data: folder for everything else.
        most_file_bytes: of one uploaded file.
        runs: folder of the training runs beside the models; None: there is none.
        operators: owners who may look at what concerns the server as a whole; None: everybody, as there are no keys.
    """

    models: Models
    store: Store
    blobs: Blobs
    metrics: Metrics
    log: Log
    limits: Limits
    data: Path
    most_file_bytes: int
    runs: Path | None = None
    operators: frozenset[str] | None = None
    live: dict[str, Any] = field(default_factory=dict)
    """Background responses that can be followed, by id."""
    tuning: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    """Held by the fine-tuning job that runs; the others wait in the order in which they came."""
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a model is loaded, so that those who wait for one take no thread from the others."""
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    @cached_property
    def vault(self) -> Vault:
        """Seals what clients keep."""
        return Vault(self.data / "secret.key")

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Does something while requests go on; it ends with the server."""
        task = self._tasks[name] = asyncio.ensure_future(work)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.pop(name, None)
            if not done.cancelled() and done.exception() is not None:
                self.log.write("crash", task=name, error=repr(done.exception()))

        task.add_done_callback(ended)

    async def stop(self) -> None:
        """Ends jobs, which the next start takes up again, and then the engines: what still runs is told that the server stops."""
        for name in list(self._tasks):
            await self.cancel(name)
        await in_thread(self.models.close)

    async def cancel(self, name: str) -> bool:
        """Cancels a task and waits for its end; False where there is none."""
        task = self._tasks.get(name)
        if task is None:
            return False
        task.cancel()
        await asyncio.wait({task})
        return True

    def caller(self, owner: str, state: dict[str, Any]) -> Caller:
        """For generations on behalf of an owner."""
        return Caller(owner, state, self.metrics, self.limits.spend, state.get("priority", 0))


@dataclass(frozen=True)
class Desk:
    """An owner's view of the server.

    Args:
        server: the whole of it.
        owner: only whose objects are seen.
    """

    server: Server
    owner: str

    async def model(self, name: str) -> Served:
        """The model that the owner asks for. The first to ask for one that was kept for later waits until it is loaded.

        Raises:
            ApiError: 404, there is none of that name for this owner; 500, its folder cannot be read.
        """
        found = self.server.models.find(name, self.owner)
        if isinstance(found, Served):
            return found
        async with self.server.loading:
            return await in_thread(self.server.models.get, name, self.owner)

    async def find(self, kind: str, id: str, what: str, parent: str | None = None, param: str | None = None) -> Record:
        """An object of the owner.

        Raises:
            ApiError: 404.
        """
        record = await in_thread(self.server.store.get, self.owner, kind, id, parent)
        if record is None:
            raise not_found(what, id, param)
        return record

    async def delete(self, kind: str, id: str, what: str, parent: str | None = None) -> None:
        """Forgets an object of the owner.

        Raises:
            ApiError: 404.
        """
        if not await in_thread(self.server.store.delete, self.owner, kind, id, parent):
            raise not_found(what, id)

    async def update(
        self,
        kind: str,
        id: str,
        what: str,
        change: Callable[[dict[str, Any], dict[str, Any]], object],
        more_words: str = "",
    ) -> Record:
        """Changes an object of the owner in one transaction.

        Raises:
            ApiError: 404.
        """
        record = await in_thread(self.server.store.update, self.owner, kind, id, change, more_words)
        if record is None:
            raise not_found(what, id)
        return record

    async def page(
        self,
        kind: str,
        after: str | None,
        limit: int,
        order: str = "desc",
        parent: str | None = None,
        where: Mapping[str, str] | None = None,
        before: str | None = None,
        words: str = "",
    ) -> dict[str, Any]:
        """A list of the owner's objects as the API shows it.

        Raises:
            ApiError: 400, `after` or `before` is not there.
        """
        try:
            page = await in_thread(self.server.store.page, self.owner, kind, parent, after, before, limit, order, where, words)
        except Unknown as mark:
            raise invalid(f"No object with id '{mark}' is in this list.", "after") from None
        return as_list(page)


@dataclass(frozen=True)
class Call(Desk):
    """One request, at its owner's desk.

    Args:
        request: as it came.
    """

    request: Request

    @property
    def state(self) -> dict[str, Any]:
        """What the door and the routes note about it."""
        state: dict[str, Any] = self.request.scope["state"]
        return state

    @property
    def caller(self) -> Caller:
        """For generations."""
        return self.server.caller(self.owner, self.state)


async def here(request: Request) -> Call:
    """The dependency of every route."""
    return Call(request.app.state.server, request.scope["state"]["owner"], request)


async def operating(request: Request) -> Call:
    """The dependency of routes that show the server as a whole, whatever belongs to whom.

    Raises:
        ApiError: 403, the key does not have this right.
    """
    call = await here(request)
    if call.server.operators is not None and call.owner not in call.server.operators:
        message = "This key may not look at the runs and numbers of the whole server; `operator=yes` in the key file allows it."
        raise ApiError(403, message, code="not_an_operator")
    return call


Here = Annotated[Call, Depends(here)]
Operating = Annotated[Call, Depends(operating)]


def as_list(page: Page) -> dict[str, Any]:
    """A page as the API shows it."""
    return {
        "object": "list",
        "data": [record.body for record in page.records],
        "first_id": page.records[0].id if page.records else None,
        "last_id": page.records[-1].id if page.records else None,
        "has_more": page.has_more,
    }


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of something that blocks, without keeping the other requests waiting."""
    return await asyncio.to_thread(work, *args, **kwargs)


async def side_by_side(worker: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Runs `worker` so often at once. One that fails ends the others, who would go on unseen.

    Raises:
        ExceptionGroup: what failed.
    """
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(worker())


async def wholly(work: Awaitable[T]) -> T:
    """The result of `work`, which is done to its end even where it is cancelled: whoever cancels waits for that.

    A thread cannot be stopped; without this it would write to the store after the cancellation that is meant to be the last word.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
