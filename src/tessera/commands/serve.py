"""`tessera serve`: models answer behind the OpenAI API until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from tessera.commands.generate import open_engine
from tessera.device import can_compile, detect
from tessera.engine import native
from tessera.engine.scheduler import Limits
from tessera.engine.service import Service
from tessera.engine.thinking import budgets_of, speaks_dialogue
from tessera.errors import UserError
from tessera.model import starter, weights
from tessera.run import KEPT, RunFolder, writing
from tessera.serve.app import Settings, build
from tessera.serve.door import Door
from tessera.serve.keys import is_loopback, read_keys
from tessera.serve.models import Models, Served

HOST, PORT = "127.0.0.1", 8000
"""Where it listens unless told otherwise."""
STEP_SECONDS = 0.1
"""What a step with pieces of prompts takes at most: who asks something short waits for two of them."""
_RUNS = Path("runs")
"""Of the working directory, where runs lie unless told otherwise; what goes with the model in the box lies there too."""
_PATIENCE_SECONDS = 3
"""For requests that are being answered when the server is asked to stop."""


def serve(
    models: Sequence[str],
    host: str = HOST,
    port: int = PORT,
    api_key_file: str | None = None,
    database_url: str | None = None,
    data: str | None = None,
    threads: int | None = None,
    without_keys: bool = False,
    compiled: bool = True,
    page: bool = True,
) -> None:
    """Serves models until it is stopped.

    Args:
        models: runs' folders or Hugging Face folders; each goes by its folder's name.
        host: address to listen at.
        port: 0: any that is free.
        api_key_file: see `serve.keys.read_keys`; None: no key is needed.
        database_url: None: SQLite in `data`.
        data: folder for what is kept; None: `serve-data` in the first model's run, and of the model in the box below
            `runs/starter`.
        threads: that compute.
        without_keys: other machines may come in without a key.
        compiled: compile the step of running streams in the background, where this machine can.
        page: show a page to browsers.

    Raises:
        UserError: no such model, two of one name, a port that is taken, an open door that nobody asked for.
    """
    keys = read_keys(Path(api_key_file)) if api_key_file else ()
    if not keys and not is_loopback(host) and not without_keys:
        raise UserError(f"whoever reaches {host} could use this server; give --api-key-file, or --without-keys if that is meant.")
    place = listen(host, port)
    served = _open(models, threads, compiled)
    folder = Path(data) if data else kept_beside(models[0])
    lock = _own(folder)
    settings = Settings(folder, database_url, keys, runs=runs_of(models[0]), page=page)
    application = build(served, settings)
    names = ", ".join(model.name for model in served)
    address = f"[{host}]" if ":" in host else host
    url = f"http://{address}:{place.getsockname()[1]}"
    print(f"{names}: {url}/v1 (Ctrl-C ends)", file=sys.stderr, flush=True)
    if page:
        print(f"page: {url}/", file=sys.stderr, flush=True)
    config = uvicorn.Config(
        application, log_config=None, access_log=False, timeout_graceful_shutdown=_PATIENCE_SECONDS, lifespan="on"
    )
    # Both signals end the server in order, after which uvicorn raises them once more.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    asyncio.run(_Server(config, application).serve(sockets=[place]))
    lock.unlock()


class _Server(uvicorn.Server):
    """Tells those who are still being answered that it ends, where uvicorn would wait for them and then cut them off."""

    def __init__(self, config: uvicorn.Config, application: Door) -> None:
        super().__init__(config)
        self._application = application

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._application.stop()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """The socket, before a model is loaded: a taken port is known at once.

    Raises:
        UserError: it is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = socket.socket(family, socket.SOCK_STREAM)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((host, port))
        place.listen(2048)
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}:{port}: {os.strerror(error.errno or 0)}; give another --port or --host."
        ) from None
    return place


def kept_beside(model: str) -> Path:
    """The folder for what is kept with a model; never within the package."""
    home = _RUNS / starter.NAME if starter.is_meant(model) else weights.resolve_model(model).parent
    return home / KEPT


def runs_of(model: str) -> Path | None:
    """The folder with the run that a model came from, where other runs lie too; None where it came from no run."""
    if starter.is_meant(model):
        return _RUNS
    run = weights.home(weights.resolve_model(model))
    return run.parent if (run / "recipe.yaml").is_file() else None


def _own(folder: Path) -> RunFolder:
    """The folder of what is kept, for this server alone: two would both take up the same jobs."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    owned = RunFolder(folder)
    try:
        owned.lock()
    except UserError as error:
        raise UserError(f"{folder} is used by another server, or cannot be written; give another --data.") from error
    return owned


def _open(models: Sequence[str], threads: int | None, compiled: bool) -> Models:
    """Every model with an engine in a thread of its own; those that are tuned here later are opened alike."""

    def load(name: str, folder: Path) -> Served:
        engine = open_engine(str(folder), limits=Limits(step_seconds=STEP_SECONDS))
        machine = detect(threads=threads)
        if native.fits(engine.decoder) or (compiled and can_compile(machine)):
            engine.compile()
        service = Service(engine)
        service.start()
        tuned = speaks_dialogue(str(folder), engine.vocabulary)
        created = int((folder / "config.json").stat().st_mtime)
        context, thinking = engine.decoder.config.context, budgets_of(str(folder))
        return Served(name, folder, service, engine.vocabulary, context, tuned, created, thinking=thinking)

    found = Models(load)
    for model in models:
        folder = weights.resolve_model(model)
        name = weights.home(folder).name
        if any(other.name == name for other in found):
            raise UserError(f"two models are called {name}; rename one folder.")
        found.add(load(name, folder))
    return found
