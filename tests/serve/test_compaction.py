"""Compaction by the SDK: what is kept, in which order, that it can be given back, and that nobody else can read it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tessera.serve.app import Settings
from tessera.serve.compaction import compacted, expanded
from tessera.serve.dialogue import prompt_ids
from tessera.serve.items import conversation_of
from tessera.serve.keys import read_keys
from tessera.serve.models import Served
from tessera.serve.vault import Vault

from .conftest import CONTEXT, Running, serving

Item = dict[str, Any]


@pytest.fixture(scope="module")
def served(running: Running) -> Served:
    return running.models.get("tiny", "local")


def said(role: str, text: str) -> Item:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"id": f"msg_{role}{text[:8]}", "type": "message", "role": role, "content": [{"type": kind, "text": text}]}


def text_of(item: Any) -> str:
    return item["content"][0]["text"] if isinstance(item, dict) else item.content[0].text


def count(client: OpenAI, items: Any) -> int:
    return client.responses.input_tokens.count(model="tiny", input=items).input_tokens


def test_a_long_conversation_becomes_short_and_goes_on(client: OpenAI) -> None:
    turns: list[Any] = [{"role": "system", "content": "be kind"}]
    for i in range(30):
        turns += [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i} " + "x" * 40}]
    made: Any = client.responses.compact(model="tiny", input=turns)
    assert made.object == "response.compaction" and made.id.startswith("resp_") and made.created_at
    assert made.usage.input_tokens == count(client, turns) and made.usage.output_tokens == 0
    *shown, last = made.output
    assert last.type == "compaction" and last.id.startswith("cmp_")
    assert [item.role for item in shown] == ["user"] * len(shown) and text_of(shown[-1]) == "question 29"
    given = [item.to_dict(warnings=False) for item in made.output]
    assert 0 < count(client, given) <= CONTEXT // 2 < count(client, turns)
    assert count(client, given) == count(client, [given[-1]])
    answer = client.responses.create(model="tiny", input=[*given, {"role": "user", "content": "and now?"}], max_output_tokens=2)
    then = client.responses.create(model="tiny", input="go on", previous_response_id=answer.id, max_output_tokens=2)
    assert then.usage and answer.usage and then.usage.input_tokens > answer.usage.input_tokens
    items = client.responses.input_items.list(answer.id, order="asc").data
    assert [item.type for item in items].count("compaction") == 1
    again: Any = client.responses.compact(model="tiny", previous_response_id=then.id)
    assert text_of(again.output[-2]) == "go on"


def test_what_is_kept_keeps_its_order_and_calls_keep_their_results(served: Served) -> None:
    call = {"id": "fc_1", "type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}
    result = {"id": "fco_1", "type": "function_call_output", "call_id": "c", "output": "1"}
    thought = {"id": "rs_1", "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    before, after = [said("system", "s"), said("user", "a")], [call, result, said("assistant", "c"), said("user", "d")]
    items = [*before, thought, *after]
    kept = compacted(served, items)
    assert kept == before + after
    long = said("assistant", "x" * CONTEXT)
    assert compacted(served, [said("user", "a"), long, said("user", "b")]) == [said("user", "a"), said("user", "b")]
    assert compacted(served, [said("user", "a" * CONTEXT)]) == [said("user", "a" * CONTEXT)]
    assert (
        compacted(served, [said("user", "a"), said("user", "b" * (CONTEXT // 3)), said("user", "c" * (CONTEXT // 3))])[0]
        != items[1]
    )
    assert len(prompt_ids(served, conversation_of(kept, None))) < CONTEXT // 2


def test_a_compaction_stands_for_what_it_holds_once(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "key")
    first, second, third = said("user", "one"), said("assistant", "two"), said("user", "three")
    sealed = {"id": "cmp_1", "type": "compaction", "encrypted_content": vault.seal("me", [first, second])}
    assert expanded(vault, "me", [first, sealed, third]) == expanded(vault, "me", [sealed, third]) == [first, second, third]


def test_only_this_server_opens_it_for_its_owner(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "key")
    text = vault.seal("me", [said("user", "a secret " * 50)])
    assert b"secret" not in base64.urlsafe_b64decode(text)
    assert Vault(tmp_path / "key").open("me", text)[0]["role"] == "user"
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0 and not list(tmp_path.glob(".*"))
    changed = text[:40] + ("A" if text[40] != "A" else "B") + text[41:]
    for other, owner, content in (
        (vault, "you", text),
        (Vault(tmp_path / "other"), "me", text),
        (vault, "me", changed),
        (vault, "me", text[:20]),
        (vault, "me", ""),
        (vault, "me", "grüße"),
    ):
        with pytest.raises(ValueError):
            other.open(owner, content)


def test_it_opens_after_a_restart_and_not_for_another_key(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "keys").write_text("sk-alice name=alice\nsk-bobby name=bob\n")
    settings = Settings(tmp_path / "data", keys=read_keys(tmp_path / "keys"))
    with serving(settings, model_folder) as server:
        made: Any = server.client("sk-alice").responses.compact(model="tiny", input="remember")
        given = [item.to_dict(warnings=False) for item in made.output]
        with pytest.raises(openai.BadRequestError) as refused:
            server.client("sk-bobby").responses.create(model="tiny", input=given[-1:])
        assert refused.value.code == "invalid_encrypted_content"
    with serving(settings, model_folder) as server:
        alice = server.client("sk-alice")
        assert alice.responses.create(model="tiny", input=given, max_output_tokens=2, temperature=0).status == "incomplete"


@pytest.mark.parametrize(
    "body,status,param",
    [
        ({"model": "tiny"}, 400, "input"),
        ({"model": "none", "input": "a"}, 404, "model"),
        ({"input": "a"}, 400, "model"),
        ({"model": "tiny", "input": "a", "previous_response_id": "resp_none"}, 400, "previous_response_id"),
        ({"model": "tiny", "input": [{"type": "compaction", "encrypted_content": "AQ=="}]}, 400, "input"),
        ({"model": "tiny", "input": [{"type": "compaction"}]}, 400, "input[0].encrypted_content"),
        ({"model": "tiny", "input": "a", "stream": True}, 400, "stream"),
    ],
)
def test_bad_input_is_an_error_that_names_the_field(running: Running, body: Any, status: int, param: str) -> None:
    answer = httpx2.post(running.url + "/responses/compact", json=body, timeout=30)
    assert answer.status_code == status, answer.text
    assert json.loads(answer.text)["error"]["param"] == param


def test_other_routes_take_compactions_and_refuse_references(client: OpenAI, running: Running) -> None:
    made: Any = client.responses.compact(model="tiny", input="is it raining?")
    given = [item.to_dict(warnings=False) for item in made.output]
    conversation = client.conversations.create(items=given[-1:])
    answer = client.responses.create(model="tiny", input="well?", conversation=conversation.id, max_output_tokens=2)
    assert answer.usage and answer.usage.input_tokens > count(client, "well?")
    question = {"type": "predicate", "name": "rain", "instructions": "It rains."}
    for items, status in ((given, 200), ([{"type": "item_reference", "id": "msg_1"}], 400)):
        body = {"model": "tiny", "input": items, "questions": [question]}
        asked = httpx2.post(running.url + "/decisions", json=body, timeout=30)
        assert asked.status_code == status, asked.text
