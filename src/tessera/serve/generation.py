"""From a route to the engine and back: requests go in, their events come out in the event loop, and who leaves frees the slot.

The engine calls back from its own thread; events are collected and the event loop is woken once for all that came meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from fastapi import Request
from starlette.types import Receive

from tessera.engine import request as requests
from tessera.engine.constraints import Constraint
from tessera.engine.engine import Engine
from tessera.engine.request import Busy, Event, Failed, Finished, Guidance, Token
from tessera.engine.sampling import SamplingParams
from tessera.engine.service import Closed
from tessera.serve.errors import ApiError, invalid, sentence, too_busy
from tessera.serve.metrics import Metrics
from tessera.serve.models import Served

Result = TypeVar("Result")


@dataclass(frozen=True)
class Order:
    """One completion that is wanted."""

    prompt: Sequence[int]
    params: SamplingParams
    constraint: Constraint | None = None
    prompt_logprobs: bool = False
    guidance: Guidance | None = None


@dataclass(frozen=True)
class Caller:
    """On whose behalf something is generated.

    Args:
        owner: keeps the prefix caches of owners apart.
        state: of the request; what was generated is noted in it, for the log.
        metrics: where tokens are counted.
        spend: counts an owner's tokens against its limit.
        priority: more is later.
    """

    owner: str
    state: dict[str, Any]
    metrics: Metrics
    spend: Callable[[str, int], None]
    priority: int = 0


@dataclass
class Usage:
    """Tokens of a generation."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    def of_chat(self) -> dict[str, Any]:
        """As chat and text completions show it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def add(self, other: Usage) -> None:
        """Counts what another generation took too."""
        self.prompt += other.prompt
        self.cached += other.cached
        self.completion += other.completion
        self.reasoning += other.reasoning

    def of_response(self) -> dict[str, Any]:
        """As responses and decisions show it."""
        return {
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": 0},
            "output_tokens": self.completion,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.prompt + self.completion,
        }


@dataclass
class Generation:
    """Several completions under way. Use it in `async with`: leaving the block aborts what is unfinished."""

    served: Served
    caller: Caller
    usage: Usage = field(default_factory=Usage)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _came: deque[tuple[int, Event]] = field(default_factory=deque)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _waking: bool = False
    _running: dict[int, Any] = field(default_factory=dict)
    _later: deque[tuple[int, Order]] = field(default_factory=deque)
    _samples: int = 1
    _cached: dict[int, int] = field(default_factory=dict)

    @classmethod
    def start(cls, served: Served, orders: Sequence[Order], caller: Caller, samples: int = 1) -> Self:
        """Hands the orders to the engine; of many, those that its queue has no room for when others are done.

        Args:
            samples: so many orders, one behind the other, share a prompt, whose tokens are counted once.

        Raises:
            ApiError: 429, there is no room for the first.
        """
        generation = cls(served, caller, _later=deque(enumerate(orders)), _samples=samples)
        try:
            busy = generation._submit_more()
        except BaseException:
            generation.abort()
            raise
        if busy is not None and not generation._running:
            raise too_busy("The model's queue is full; try again later.", busy.retry_after, "queue_full")
        return generation

    async def events(self) -> AsyncIterator[tuple[int, Token | Finished]]:
        """(which order, event) as they come, until all are finished.

        Raises:
            ApiError: 500, the engine failed; 400, what was asked for cannot be had.
        """
        last: dict[int, float] = {}
        while self._running or self._came or self._later:
            if not self._running and not self._came and (busy := self._submit_more()) is not None and not self._running:
                await asyncio.sleep(busy.retry_after)
                continue
            while not self._came:
                self._woken.clear()
                self._waking = False
                if self._came:
                    break
                await self._woken.wait()
            index, event = self._came.popleft()
            if isinstance(event, Failed):
                self._running.pop(index, None)
                if event.asked:
                    raise invalid(sentence(event.message))
                cause = RuntimeError(event.message)
                raise ApiError(500, "The model failed to generate an answer.", code="engine_error") from cause
            if isinstance(event, Finished):
                self._running.pop(index, None)
                if event.reason == "abort":
                    raise _stopping()
                prompt = index // self._samples
                self._cached[prompt] = max(self._cached.get(prompt, 0), event.completion.cached_tokens)
                self.usage.cached = sum(self._cached.values())
                self._submit_more()
            else:
                self._measure(index, last)
                self.usage.completion += 1
            yield index, event

    def abort(self) -> None:
        """Stops all orders; the engine drops them at its next step."""
        self._later.clear()
        for handle in self._running.values():
            self.served.service.abort(handle)
        self._running.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.abort()
        name, metrics = self.served.name, self.caller.metrics
        metrics.prompt_tokens.labels(name).inc(self.usage.prompt)
        metrics.cached_tokens.labels(name).inc(self.usage.cached)
        metrics.completion_tokens.labels(name).inc(self.usage.completion)
        self.caller.spend(self.caller.owner, self.usage.prompt + self.usage.completion)
        facts = {"model": name, "prompt_tokens": self.usage.prompt, "completion_tokens": self.usage.completion}
        self.caller.state["usage"] = facts

    def _submit_more(self) -> Busy | None:
        """Submits what waits here, as far as the engine has room; what it said if it has none."""
        while self._later:
            try:
                self._submit(*self._later[0])
            except Busy as busy:
                return busy
            self._later.popleft()
        return None

    def _submit(self, index: int, order: Order) -> None:
        def on_event(event: Event) -> None:
            self._came.append((index, event))
            if not self._waking:
                self._waking = True
                self._loop.call_soon_threadsafe(self._woken.set)

        request = requests.Request(
            tuple(order.prompt),
            order.params,
            constraint=order.constraint,
            prompt_logprobs=order.prompt_logprobs,
            guidance=order.guidance,
            priority=self.caller.priority,
            salt=self.caller.owner,
            on_event=on_event,
        )
        try:
            self._running[index] = self.served.service.submit(request)
        except Closed:
            raise _stopping() from None

    def _measure(self, index: int, last: dict[int, float]) -> None:
        now, metrics, name = time.perf_counter(), self.caller.metrics, self.served.name
        if index in last:
            metrics.between_tokens.labels(name).observe(now - last[index])
        else:
            metrics.first_token.labels(name).observe(now - self.caller.state["started"])
        last[index] = now


async def errand(served: Served, function: Callable[[Engine], Result]) -> Result:
    """What `function` gives, called with the model's engine in its thread.

    Raises:
        ApiError: 503, the model was let go of meanwhile.
    """
    try:
        return await asyncio.wrap_future(served.service.run(function))
    except Closed:
        raise _stopping() from None


def _stopping() -> ApiError:
    return ApiError(503, "The model is let go of: it was deleted, or the server is stopping.", code="stopping")


async def when_there_is_room(start: Callable[[], Generation]) -> Generation:
    """What `start` gives, tried again for as long as the queue is full; for what nobody waits for at the other end."""
    while True:
        try:
            return start()
        except ApiError as error:
            if error.status != 429:
                raise
            await asyncio.sleep(float(error.headers["retry-after"]))


async def unless_left(request: Request, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves.

    Raises:
        ApiError: 499, it left; nobody reads that answer.
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(until_left(request.receive))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "The client left.", code="client_left")
        return task.result()
    finally:
        left.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def until_left(receive: Receive) -> None:
    """Returns when the client has closed its connection; its request has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
