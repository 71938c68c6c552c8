"""A model that is loaded when it is first asked for: one request waits for it, all others go on."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tessera.errors import UserError
from tessera.serve.models import Kept, Served

from .conftest import CONTEXT, Running

ROUTES = {
    "/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    "/completions": {"prompt": "hi", "max_tokens": 1},
    "/responses": {"input": "hi", "max_output_tokens": 1},
    "/responses/input_tokens": {"input": "hi"},
    "/embeddings": {"input": "hi"},
}


def test_whoever_asks_first_waits_and_nobody_else(running: Running, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, may_go_on, loads = running.models._load, threading.Event(), []
    assert load is not None

    def slowly(name: str, folder: Path) -> Served:
        loads.append(name)
        assert may_go_on.wait(30)
        return load(name, folder)

    monkeypatch.setattr(running.models, "_load", slowly)
    running.models.keep(Kept("kept", model_folder, "", 1, CONTEXT, True))
    try:
        with ThreadPoolExecutor(len(ROUTES)) as pool:
            asked = [
                pool.submit(httpx2.post, running.url + path, json={"model": "kept"} | body, timeout=60)
                for path, body in ROUTES.items()
            ]
            try:
                for path in ("/models", "/files"):
                    assert httpx2.get(running.url + path, timeout=10).status_code == 200
                other = {"model": "tiny"} | ROUTES["/completions"]
                assert httpx2.post(running.url + "/completions", json=other, timeout=10).status_code == 200
                assert not any(answer.done() for answer in asked)
            finally:
                may_go_on.set()
            assert [answer.result().status_code for answer in asked] == [200] * len(asked)
        assert loads == ["kept"], "it was loaded once"
    finally:
        running.models.remove("kept")


def test_a_kept_model_that_cannot_be_read_is_said(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, folder: Path) -> Served:
        raise UserError(f"{folder} is damaged.")

    monkeypatch.setattr(running.models, "_load", fail)
    running.models.keep(Kept("broken", tmp_path, "", 1, CONTEXT, True))
    try:
        answer = httpx2.post(running.url + "/completions", json={"model": "broken", "prompt": "x"}, timeout=30)
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "model_not_loaded"
        assert str(tmp_path) not in answer.text
    finally:
        running.models.remove("broken")
