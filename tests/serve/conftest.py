"""A tiny random model on disk, and a real server for it on a free port, talked to by the unmodified `openai` SDK."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import sqlalchemy as sa
import torch
import uvicorn
from openai import OpenAI

from tessera.commands.generate import open_engine
from tessera.engine.engine import DEFAULT_LIMITS, Engine, Limits
from tessera.engine.service import Service
from tessera.engine.thinking import budgets_of, speaks_dialogue
from tessera.model import weights
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.serve.app import Settings, build
from tessera.serve.door import Door
from tessera.serve.metrics import Log
from tessera.serve.models import Models, Served
from tessera.tokens.palette import Palette
from tessera.tokens.quantizer import Autoencoder, Quantizer, QuantizerConfig
from tessera.tokens.vocabulary import Vocabulary

CONTEXT = 1024


COLOURS = np.array([[v, v, 255 - v] for v in range(0, 250, 50)], np.uint8)
"""Of the pictures that `make_model` teaches nothing of; most of them are 4 pixels high and 6 wide."""


def make_model(
    folder: Path, tuned: bool = True, seed: int = 0, context: int = CONTEXT, draws: bool = False, films: bool = False,
    speaks: bool = False, thinking: Mapping[str, int] | None = None,
) -> Path:  # fmt: skip
    """A random model with a byte-level vocabulary, whose distributions are far from uniform."""
    vocabulary = Vocabulary.train(["a byte is enough"], 256)
    if draws:
        vocabulary = vocabulary.add_media(Palette(COLOURS, (4, 6)))
    if films:
        network = Autoencoder(QuantizerConfig("video", (4, 3), 4, 2, 8, 1, 1))
        network.initialise(0)
        vocabulary = vocabulary.add_media(Quantizer(network.eval(), (5, 8, 8), 8.0))
    if speaks:
        network = Autoencoder(QuantizerConfig("audio", (5, 4), 80, 4, 8, 1, 1, books=2))
        network.initialise(0)
        vocabulary = vocabulary.add_media(Quantizer(network.eval(), (1600,), 8000.0))
    config = DecoderConfig(vocabulary.size, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=48, context=context)
    decoder = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(float(parameter.ndim == 1), 0.3, generator=generator)
    ends = (vocabulary.end_id, vocabulary.end_turn_id) if tuned else (vocabulary.end_id,)
    weights.save(decoder, folder, special=weights.SpecialIds(end=ends, thinking=thinking or {}), companions=vocabulary.save)
    return folder


@dataclass
class Running:
    """A server in a thread of this process.

    Args:
        models: what it serves.
        door: its application.
        url: up to `/v1`.
        said: its log.
    """

    models: Models
    door: Door
    server: uvicorn.Server
    thread: threading.Thread
    said: io.StringIO
    url: str = ""
    clients: list[OpenAI] = field(default_factory=list)

    def client(self, key: str = "none", **settings: object) -> OpenAI:
        """The SDK, without retries."""
        client = OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=30, **settings)  # type: ignore[arg-type]
        self.clients.append(client)
        return client

    @property
    def engine_tokens(self) -> int:
        """Tokens that the engines have written."""
        return sum(served.service.stats().tokens for served in self.models)

    def idle(self, seconds: float = 5.0) -> bool:
        """Waits until no engine has anything to do; False where that takes too long."""
        return wait_for(lambda: not any(s.service.stats().running + s.service.stats().waiting for s in self.models), seconds)

    @contextlib.contextmanager
    def slowed(self, seconds: float = 0.003) -> Iterator[None]:
        """Lets every step of its engines take at least so long: a tiny model may fill its context between two looks at it."""
        services = [served.service for served in self.models]

        def slow(engine: Engine) -> None:
            quick = engine.step

            def step() -> bool:
                time.sleep(seconds)
                return quick()

            engine.step = step  # type: ignore[method-assign]

        def quicken(engine: Engine) -> None:
            del engine.step

        for service in services:
            service.run(slow).result()
        try:
            yield
        finally:
            for service in services:
                service.run(quicken).result()

    def stop(self) -> None:
        """As Ctrl-C does."""
        for client in self.clients:
            client.close()
        self.server.should_exit = True
        self.thread.join(15)


def script_of(name: str) -> ModuleType:
    """A script of `docs/`, imported."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", Path(__file__).parents[2] / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wait_for(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.01)
    return False


def database_for(data: Path) -> str | None:
    """URL of a database for what is kept in a folder, the same one for the same folder.

    None, which is SQLite, unless $TESSERA_TEST_POSTGRES is the URL of a PostgreSQL server whose user may make databases.
    """
    place = os.environ.get("TESSERA_TEST_POSTGRES")
    if not place:
        return None
    name = "tessera_" + hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:24]
    url = sa.make_url(place.replace("postgresql:", "postgresql+psycopg:"))
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if not connection.execute(sa.text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": name}).first():
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return url.set(database=name).render_as_string(hide_password=False)


def start_server(settings: Settings, *folders: Path, limits: Limits = DEFAULT_LIMITS) -> Running:
    """Serves model folders by their names."""
    settings = replace(settings, database_url=settings.database_url or database_for(settings.data))

    def load(name: str, folder: Path) -> Served:
        engine = open_engine(str(folder), "float32", limits)
        service = Service(engine)
        service.start()
        tuned = speaks_dialogue(str(folder), engine.vocabulary)
        context, thinking = engine.decoder.config.context, budgets_of(str(folder))
        return Served(name, folder, service, engine.vocabulary, context, tuned, 1_700_000_000, thinking=thinking)

    models = Models(load)
    for folder in folders:
        models.add(load(folder.name, folder))
    said = io.StringIO()
    door = build(models, settings, Log(said))
    config = uvicorn.Config(door, port=0, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert wait_for(lambda: server.started, 20)
    port = server.servers[0].sockets[0].getsockname()[1]
    return Running(models, door, server, thread, said, f"http://127.0.0.1:{port}/v1")


@contextlib.contextmanager
def serving(settings: Settings, *folders: Path, limits: Limits = DEFAULT_LIMITS) -> Iterator[Running]:
    """A server for the length of a block."""
    running = start_server(settings, *folders, limits=limits)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = make_model(tmp_path_factory.mktemp("models") / "tiny")
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows no dialogue."""
    return make_model(tmp_path_factory.mktemp("models") / "base", tuned=False, seed=1)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, base_folder: Path) -> Iterator[Running]:
    """The server that most tests share: two models, no keys."""
    with serving(Settings(tmp_path_factory.mktemp("data")), model_folder, base_folder) as server:
        yield server


@pytest.fixture(scope="session")
def client(running: Running) -> OpenAI:
    return running.client()
