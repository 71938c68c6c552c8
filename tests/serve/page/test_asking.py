"""As much of a conversation as a model has room for: what is left out, as the server counts."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from tessera.data.pictures import png
from tessera.serve.app import Settings
from tessera.serve.page.asking import Asking
from tessera.serve.page.client import Client
from tests.serve.conftest import COLOURS, Running, make_model, serving

_CONTEXT = 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("asked")
    with serving(Settings(folder / "data"), make_model(folder / "small", context=_CONTEXT, draws=True)) as running:
        yield running


def asking(turns: int, mode: str = "chat", text: str = "0123456789" * 3, **given: Any) -> Asking:
    """So many turns of the user, with answers between them, each of 30 bytes, which are as many tokens."""
    roles = ["user", "assistant"] * turns
    said: list[dict[str, Any]] = [{"id": str(i), "role": role, "text": text, "images": []} for i, role in enumerate(roles[:-1])]
    return replace(Asking(mode, "small", _CONTEXT, said, "Be kind.", {}), **given)


def fitted(server: Running, asked: Asking) -> Asking:
    async def fit() -> Asking:
        url = httpx.URL(server.url)
        client = Client((url.host, url.port or 0))
        try:
            return await asked.fitted(client)
        finally:
            await client.close()

    # In a thread of its own: a browser of other tests has an event loop in this one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, fit()).result()


@pytest.mark.parametrize("mode", ["chat", "complete"])
@pytest.mark.parametrize("turns", [1, 2, 3, 12])
def test_no_more_is_left_out_than_it_takes_for_the_prompt_and_an_answer(server: Running, mode: str, turns: int) -> None:
    found = fitted(server, asking(turns, mode))
    path, body = found.request()
    assert httpx.post(f"{server.url}{path.removeprefix('/v1')}", json=body | {"max_tokens": 1}).status_code == 200
    assert len(found.told) == min(2 * turns - 1, 3)
    if mode == "chat":
        assert body["messages"][0] == {"role": "system", "content": "Be kind."} and body["messages"][1]["role"] == "user"


def test_less_is_kept_for_an_answer_that_may_have_few_tokens(server: Running) -> None:
    assert fitted(server, asking(3, text="0123456789" * 2)).left_out == 0
    assert fitted(server, asking(4, text="0123456789" * 2)).left_out == 1
    assert fitted(server, asking(4, text="0123456789" * 2, settings={"max_completion_tokens": 5})).left_out == 0


def test_pictures_count_as_well(server: Running) -> None:
    url = "data:image/png;base64," + base64.b64encode(png(np.resize(COLOURS, (4, 6, 3)))).decode()
    asked = asking(3, text="?")
    found = fitted(
        server, replace(asked, turns=[{**turn, "images": [url] * 2 * (turn["role"] == "user")} for turn in asked.turns])
    )
    assert found.left_out > 0
    assert httpx.post(f"{server.url}/chat/completions", json=found.request()[1] | {"max_tokens": 1}).status_code == 200
