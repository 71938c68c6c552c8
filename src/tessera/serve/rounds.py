"""What takes several rounds of the engine, as `engine.pictures` has it, in a server: beside everybody else's requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Generic, Literal, TypeVar

from tessera.engine.pictures import Steps
from tessera.engine.request import Completion, Finished, Request, Token
from tessera.serve.context import Call, in_thread
from tessera.serve.errors import invalid
from tessera.serve.generation import Caller, Generation, Order, Usage, when_there_is_room
from tessera.serve.models import Served

T = TypeVar("T")

_MAKERS = {"image": ("pictures", "draw"), "video": ("films", "film"), "audio": ("sound", "speak")}
"""Medium -> what a model makes of it, and the recipe that brings such models."""


async def maker(here: Call, name: str | None, kind: Literal["image", "video", "audio"]) -> Served:
    """The model that makes pictures, films or sound; without a name the first that can.

    Raises:
        ApiError: 404, there is none of that name; 400, it makes none.
    """
    things, recipe = _MAKERS[kind]
    if name is not None:
        served = await here.model(name)
        if kind in served.vocabulary.media:
            return served
        said = f"The model '{name[:100]}' makes no {things}"
    else:
        for served in here.server.models:
            if served.owner in ("", here.owner) and kind in served.vocabulary.media:
                return served
        said = f"None of the models here makes {things}"
    raise invalid(f"{said}; train one by the recipe `{recipe}` (`tessera train {recipe}`).", "model", "unsupported_modality")


class Rounds(Generic[T]):
    """Steps on a served model. The result is there when `tokens` has come to its end.

    Args:
        served: the model.
        steps: that ask it.
        caller: on whose behalf.
        patient: the first round waits for room in the queue; later ones always do, so that what is made is not lost.
    """

    def __init__(self, served: Served, steps: Steps[T], caller: Caller, patient: bool = False) -> None:
        self.usage = Usage()
        self.completions: list[Completion] = []
        """Of all rounds so far."""
        self._served = served
        self._steps = steps
        self._caller = caller
        self._patient = patient
        self._requests: Sequence[Request] = ()
        self._generation: Generation | None = None
        self._results: list[T] = []

    @property
    def result(self) -> T:
        """What came of it."""
        return self._results[0]

    async def start(self) -> None:
        """Begins the first round.

        Raises:
            UserError: the steps cannot be taken.
            ApiError: 429, there is no room, and it is not patient.
        """
        await self._go_on(None)

    async def tokens(self) -> AsyncGenerator[tuple[int, Request, Token]]:
        """Every token as it comes, with its request and the number of that in its round.

        Raises:
            ApiError: 500, the engine failed.
        """
        while self._generation is not None:
            done: dict[int, Completion] = {}
            async with self._generation as generation:
                async for index, happened in generation.events():
                    if isinstance(happened, Finished):
                        done[index] = happened.completion
                    else:
                        yield index, self._requests[index], happened
            self.usage.add(generation.usage)
            # The log tells of the request as a whole, not of its last round.
            counts = {"prompt_tokens": self.usage.prompt, "completion_tokens": self.usage.completion}
            self._caller.state["usage"] = {"model": self._served.name, **counts}
            made = [done[index] for index in range(len(self._requests))]
            self.completions += made
            await self._go_on(made)

    async def finish(self) -> T:
        """The result, whatever comes on the way."""
        async for _ in self.tokens():
            pass
        return self.result

    async def _go_on(self, made: list[Completion] | None) -> None:
        self._generation = None
        requests = await in_thread(self._advance, made)
        if requests is not None:
            self._requests = requests
            orders = [Order(r.prompt, r.params, r.constraint, r.prompt_logprobs, r.guidance) for r in requests]

            def begin() -> Generation:
                return Generation.start(self._served, orders, self._caller)

            self._generation = await when_there_is_room(begin) if self._patient or made is not None else begin()
            self._generation.usage.prompt = sum(len(request.prompt) for request in requests)

    def _advance(self, made: list[Completion] | None) -> list[Request] | None:
        """The requests of the next round; None: there is a result. A `StopIteration` would not get out of a thread."""
        try:
            return next(self._steps) if made is None else self._steps.send(made)
        except StopIteration as done:
            self._results.append(done.value)
            return None
