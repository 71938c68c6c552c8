"""A small trained vocabulary and, from the data folder, text in many languages."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path

import pytest

from tessera.tokens.vocabulary import Vocabulary

DATA = Path(os.environ.get("TESSERA_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


@pytest.fixture(scope="session", params=["gpt-2", "qwen2"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    texts = [inspect.getsource(module) for module in (inspect, json, os)]
    return Vocabulary.train(texts, 600, request.param)


@pytest.fixture(scope="session")
def languages() -> list[str]:
    folder = DATA / "text" / "lm" / "udhr2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set TESSERA_DATA to the folder of test data")
    return [path.read_bytes().decode("utf-8") for path in sorted(folder.glob("*.txt"))]
