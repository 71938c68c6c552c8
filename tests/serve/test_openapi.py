"""What schemathesis makes up from our OpenAPI document: nothing it sends is answered by a 5xx or by what is not documented.

A short run belongs to the suite. A long one, with the boundary values of every field:
`TESSERA_FUZZ_EXAMPLES=50 TESSERA_FUZZ_SECONDS=900 python -m pytest tests/serve/test_openapi.py -s`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tessera.serve.app import Settings

from .conftest import Running, make_model, serving

_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
_EXAMPLES = int(os.environ.get("TESSERA_FUZZ_EXAMPLES", "0"))
_SECONDS = int(os.environ.get("TESSERA_FUZZ_SECONDS", "60"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A model that is done soon, whatever it is asked for: it reads 64 tokens."""
    folder = tmp_path_factory.mktemp("fuzz")
    with serving(Settings(folder / "data"), make_model(folder / "tiny", context=64)) as running:
        yield running


def real_ids(server: Running) -> dict[str, list[str]]:
    """Objects of each kind, so that not every request ends at 404; some are deleted on the way."""
    client = server.client()
    ids: dict[str, list[str]] = {"model": ["tiny"]}
    for _ in range(5):
        chat = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}], max_tokens=2, store=True)
        answer = client.responses.create(model="tiny", input="a", max_output_tokens=2)
        conversation = client.conversations.create(items=[{"role": "user", "content": "a"}])
        item = client.conversations.items.list(conversation.id).data[0]
        row = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "tiny", "input": "a"}}
        file = client.files.create(file=("rows.jsonl", json.dumps(row).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
        upload = client.uploads.create(filename="a.jsonl", bytes=3, mime_type="application/jsonl", purpose="batch")
        made = {"completion": chat, "response": answer, "conversation": conversation, "item": item}
        for name, thing in (made | {"file": file, "batch": batch, "upload": upload}).items():
            ids.setdefault(f"{name}_id", []).append(str(thing.id))
    return ids | {"input_file_id": ids["file_id"], "previous_response_id": [*ids["response_id"], "resp_none"]}


def with_real_ids(page: Any, ids: dict[str, list[str]]) -> Any:
    """The document, in which fields and parameters that name an object take the ids of those that are there, or any others."""
    if isinstance(page, list):
        return [with_real_ids(one, ids) for one in page]
    if not isinstance(page, dict):
        return page
    page = {key: with_real_ids(value, ids) for key, value in page.items()}
    for name, field in page.get("properties", {}).items():
        if name in ids and isinstance(field, dict):
            page["properties"][name] = {"anyOf": [{"enum": ids[name]}, field]}
    if page.get("in") == "path" and page.get("name") in ids:
        page["schema"] = {"anyOf": [{"enum": ids[page["name"]]}, page["schema"]]}
    return page


def test_nothing_made_up_is_answered_by_what_is_not_documented(server: Running, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="needs schemathesis: pip install -e '.[test]'")
    page = httpx2.get(server.url.removesuffix("/v1") + "/openapi.json", timeout=60).json()
    (tmp_path / "openapi.json").write_text(json.dumps(with_real_ids(page, real_ids(server))))
    phases = ["--phases", "coverage,fuzzing"] if _EXAMPLES else ["--phases", "fuzzing"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", server.url.removesuffix("/v1")]
    command += [*phases, "--checks", _CHECKS, "--max-examples", str(_EXAMPLES or 3), "--seed", "1", "--continue-on-failure"]
    command += ["--no-color", "--generation-database", "none", "--request-timeout", "60", "--warnings", "off"]
    command += ["--no-shrink", "--max-time", str(_SECONDS)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3600)
    print(ended.stdout[-3000:])
    assert ended.returncode == 0, ended.stdout[-20_000:] + ended.stderr[-2000:]
    assert server.idle(30)
