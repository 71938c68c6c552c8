"""A model small enough to be computed many times, and what it says when nothing is cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from tessera.engine.engine import Engine
from tessera.engine.request import Event, Finished, Request
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.tokens.vocabulary import Vocabulary

CONTEXT = 64


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(["a byte is enough"], 256).add_block("pixels", "image", 40, "test")


@pytest.fixture(scope="session")
def build_decoder(vocabulary: Vocabulary) -> Callable[..., Decoder]:
    """A function from a context to a model.

    It is untrained, but has large weights, so that its distributions are far from uniform; the matrix has 8 rows too many.
    """

    def build(context: int, seed: int = 0) -> Decoder:
        config = DecoderConfig(
            vocabulary.size + 8, width=64, layers=2, heads=4, kv_heads=2, head_size=16, mlp_width=96, context=context, tied=False
        )
        decoder = Decoder(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.normal_(float(parameter.ndim == 1), 0.3, generator=generator)
        return decoder

    return build


@pytest.fixture(scope="session")
def decoder(build_decoder: Callable[..., Decoder]) -> Decoder:
    return build_decoder(CONTEXT)


@pytest.fixture(scope="session")
def long_decoder(build_decoder: Callable[..., Decoder]) -> Decoder:
    """Reads up to 1,200 tokens."""
    return build_decoder(1200)


@pytest.fixture
def engine(decoder: Decoder, vocabulary: Vocabulary) -> Engine:
    return Engine(decoder, vocabulary)


@pytest.fixture(scope="session")
def greedy_without_cache(vocabulary: Vocabulary) -> Callable[[Decoder, Sequence[int], int], list[int]]:
    """A function from model, prompt and count to the most likely ids, each by a full forward pass."""

    def continue_(decoder: Decoder, prompt: Sequence[int], count: int) -> list[int]:
        blocked = Engine(decoder, vocabulary)._blocked
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(count):
                logits = decoder.logits(decoder(torch.tensor([ids])))[0, -1]
                ids.append(int(logits.index_fill(0, blocked, float("-inf")).argmax()))
        return ids[len(prompt) :]

    return continue_


class Heard:
    """Keeps the events of a request."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def end(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last

    @property
    def ids(self) -> list[int]:
        return self.end.completion.ids.tolist()


@pytest.fixture
def ask() -> Callable[..., tuple[int, Heard]]:
    """Submits a prompt; returns the request's id and its events."""

    def submit(engine: Engine, prompt: Sequence[int], params: object, **others: object) -> tuple[int, Heard]:
        heard = Heard()
        request = Request(tuple(prompt), params, on_event=heard, **others)  # type: ignore[arg-type]
        return engine.submit(request), heard

    return submit
