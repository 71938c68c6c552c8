"""One server with a page for all tests of the page, since a process can have one only, and a browser that looks at it."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from tessera.serve.app import Settings
from tessera.serve.keys import Key
from tests.serve.conftest import Running, make_model, serving

KEY = "sk-page-test"
LONG = 1 << 15
"""Tokens of a context that is not full before a browser has done something."""
SHORT = 256
"""Of one that a few turns fill."""
_CHROMIUM = os.environ.get("TESSERA_TEST_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, base_folder: Path) -> Iterator[Running]:
    """Six models behind a key: three know dialogue, of them one for long and one for short, one only goes on, one draws, one does
    all; and a run."""
    runs = tmp_path_factory.mktemp("runs")
    (runs / "one").mkdir()
    (runs / "one" / "recipe.yaml").write_text("summary: A run.\n")
    steps = [{"event": "step", "step": n, "tokens": n * 10, "loss": 4 - n / 100, "seconds": n} for n in range(1, 200)]
    (runs / "one" / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    keys = (Key(sha256(KEY.encode()).digest(), "me", operator=True),)
    settings = Settings(tmp_path_factory.mktemp("data"), keys=keys, runs=runs, page=True)
    painter = make_model(tmp_path_factory.mktemp("models") / "painter", tuned=False, draws=True)
    able = make_model(
        tmp_path_factory.mktemp("models") / "able", draws=True, films=True, speaks=True, thinking={"low": 4, "high": 8}
    )
    endless = make_model(tmp_path_factory.mktemp("models") / "endless", context=LONG)
    short = make_model(tmp_path_factory.mktemp("models") / "short", context=SHORT)
    with serving(settings, model_folder, base_folder, painter, able, endless, short) as running:
        yield running


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Closed behind these tests: as long as it is open, its event loop runs in this thread, where no other can be begun."""
    if _CHROMIUM is None:
        pytest.skip("no Chromium here: put one on the path, or set TESSERA_TEST_CHROMIUM")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    """A tab whose mistakes fail the test: errors in scripts, and whatever is fetched from elsewhere."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(60_000)
    wrong: list[str] = []
    own = (home(server), "data:", "blob:")
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
    yield page
    page.close()
    assert not wrong


@pytest.fixture
def inside(page: Any, server: Running) -> Any:
    """The page, with the key."""
    page.add_init_script(f"sessionStorage.setItem('tessera-key', '{KEY}')")
    page.goto(home(server))
    page.get_by_text("What shall we talk about?").wait_for()
    return page


@pytest.fixture(scope="session")
def api(server: Running) -> httpx.Client:
    return httpx.Client(base_url=home(server), headers={"authorization": f"Bearer {KEY}"})


def home(server: Running) -> str:
    return server.url.removesuffix("v1")


def settings(page: Any, **given: object) -> None:
    page.get_by_label("Settings").click()
    for name, value in given.items():
        page.get_by_label(name.replace("_", " ").capitalize()).fill(str(value))
    page.keyboard.press("Escape")


def choose(page: Any, *names: str) -> None:
    """These models instead of the first one."""
    page.get_by_label("Models").click()
    for name in (*names, "tiny"):
        page.get_by_role("option", name=name, exact=True).click()
    page.keyboard.press("Escape")


def ask(page: Any, text: str) -> None:
    box = page.get_by_label("Message")
    box.fill(text)
    box.press("Enter")


def rate(page: Any, thumb: str, said: str) -> None:
    page.get_by_label(thumb).click()
    page.get_by_text(said).wait_for()


def dot(path: Path) -> Path:
    """A picture of one red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0\xff\0\0"))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b""))
    return path


def pick(page: Any, *pictures: Path) -> None:
    """Chooses pictures for the message."""
    with page.expect_file_chooser() as chooser:
        page.get_by_label("Add a picture").click()
    chooser.value.set_files(pictures)
