"""The engine's thread: from any thread, never stuck, never silent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tessera.engine.engine import Engine, Limits
from tessera.engine.request import Busy, Event, Failed, Finished, Request, Token
from tessera.engine.sampling import SamplingParams
from tessera.engine.service import Closed, Service
from tessera.model.decoder import Decoder
from tessera.tokens.vocabulary import Vocabulary

SECONDS = 20


class Answer:
    """Events of a request, and a wait for its end."""

    def __init__(self, on_token: Callable[[], object] = lambda: None) -> None:
        self.events: list[Event] = []
        self.threads: set[str] = set()
        self.ended = threading.Event()
        self._on_token = on_token

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.threads.add(threading.current_thread().name)
        if isinstance(event, Token):
            self._on_token()
        else:
            self.ended.set()

    def wait(self) -> Any:
        assert self.ended.wait(SECONDS)
        return self.events[-1]


def request(answer: Callable[[Event], None], tokens: int = 20, seed: int = 0) -> Request:
    return Request((1, 2, 3), SamplingParams(tokens, seed=seed, stop_ids=()), on_event=answer)


@pytest.fixture
def service(long_decoder: Decoder, vocabulary: Vocabulary) -> Iterator[Service]:
    with Service(Engine(long_decoder, vocabulary, Limits(rows=4, queued_requests=50))) as service:
        yield service


def test_many_threads_are_answered_as_by_the_bare_engine(service: Service, long_decoder: Decoder, vocabulary: Vocabulary) -> None:
    answers = [Answer() for _ in range(24)]

    def client(numbers: range) -> None:
        for number in numbers:
            service.submit(request(answers[number], seed=number))

    threads = [threading.Thread(target=client, args=(range(start, start + 6),)) for start in range(0, 24, 6)]
    for thread in threads:
        thread.start()
    params = [SamplingParams(20, seed=seed, stop_ids=()) for seed in range(24)]
    expected = Engine(long_decoder, vocabulary).generate([[1, 2, 3]] * 24, params)
    for number, answer in enumerate(answers):
        end = answer.wait()
        assert isinstance(end, Finished) and end.completion.ids.tolist() == expected[number].ids.tolist()
        assert answer.threads == {"engine"}
    assert service.stats().finished == 24


def test_an_abort_from_another_thread_ends_a_request(service: Service) -> None:
    started = threading.Event()
    answer = Answer(started.set)
    id = service.submit(request(answer, tokens=1000))
    assert started.wait(SECONDS)
    service.abort(id)
    assert answer.wait().reason == "abort"


def test_a_crash_answers_the_running_requests_and_the_thread_goes_on(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    crashed = Answer()
    whole = Engine._forward

    def crash(*_: object) -> None:
        monkeypatch.setattr(Engine, "_forward", whole)
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(Engine, "_forward", crash)
    service.submit(request(crashed))
    assert crashed.wait() == Failed("ZeroDivisionError: on purpose")
    well = Answer()
    service.submit(request(well))
    assert isinstance(well.wait(), Finished)
    assert "a step of the engine failed" in caplog.text and service.stats().failed == 1


def test_a_listener_that_raises_ends_its_own_request_only(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    def fall_over() -> None:
        raise RuntimeError("client gone")

    bad, good = Answer(fall_over), Answer()
    service.submit(request(bad, tokens=1000))
    service.submit(request(good))
    assert isinstance(good.wait(), Finished) and bad.wait().reason == "abort"
    assert "client gone" in caplog.text


def test_errands_run_between_steps_and_bring_back_what_they_find(service: Service) -> None:
    assert service.run(lambda engine: (threading.current_thread().name, engine.version)).result(SECONDS) == ("engine", 0)
    with pytest.raises(ZeroDivisionError):
        service.run(lambda engine: 1 / 0).result(SECONDS)
    assert service.run(lambda engine: 5).result(SECONDS) == 5


def test_a_full_queue_is_refused_at_once(long_decoder: Decoder, vocabulary: Vocabulary) -> None:
    service = Service(Engine(long_decoder, vocabulary, Limits(queued_requests=2)))
    answers = [Answer() for _ in range(2)]
    for answer in answers:
        service.submit(request(answer))
    with pytest.raises(Busy):
        service.submit(request(Answer()))
    with service:
        assert all(isinstance(answer.wait(), Finished) for answer in answers)


def test_closing_ends_what_is_open_and_takes_nothing_more(long_decoder: Decoder, vocabulary: Vocabulary) -> None:
    started = threading.Event()
    answers = [Answer(started.set), Answer()]
    with Service(Engine(long_decoder, vocabulary, Limits(rows=1))) as service:
        for answer in answers:
            service.submit(request(answer, tokens=1000))
        assert started.wait(SECONDS)
    assert [answer.wait().reason for answer in answers] == ["abort", "abort"]
    with pytest.raises(Closed):
        service.submit(request(Answer()))
    with pytest.raises(Closed):
        service.run(lambda engine: 1).result(SECONDS)


def test_an_errand_that_is_not_reached_any_more_says_so(long_decoder: Decoder, vocabulary: Vocabulary) -> None:
    reached, go_on = threading.Event(), threading.Event()
    with Service(Engine(long_decoder, vocabulary)) as service:
        first = service.run(lambda engine: (reached.set(), go_on.wait(SECONDS)))
        assert reached.wait(SECONDS)
        service._closed = True  # as `close` does first, while an errand runs
        second = service.run(lambda engine: 2)
        go_on.set()
        first.result(SECONDS)
    with pytest.raises(Closed):
        second.result(SECONDS)
