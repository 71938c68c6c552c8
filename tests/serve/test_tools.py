"""docs/tools.py writes examples that tuning takes, and its loop runs the tool for a served model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tessera.posttrain.examples import read_examples
from tessera.serve.app import Settings
from tests.serve.conftest import Running, make_model, script_of, serving


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_of("tools")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = make_model(tmp_path_factory.mktemp("models") / "clerk")
    with serving(Settings(tmp_path_factory.mktemp("data")), model) as running:
        yield running


def test_calls_and_answers_are_learned_and_results_only_read(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(["write", str(tmp_path / "tools.jsonl"), "--count", "40"]) == 0
    plain = 0
    for line, example in zip(
        (tmp_path / "tools.jsonl").read_text().splitlines(), read_examples(tmp_path / "tools.jsonl"), strict=True
    ):
        turns = json.loads(line)["messages"]
        learned = "".join(str(s.content) for s in example.document.segments if s.learn and s.kind == "text")
        assert turns[-1]["content"] in learned and turns[0]["content"] not in learned
        plain += len(turns) == 2
        if len(turns) == 4:
            assert '"name": "stock"' in learned and turns[2]["content"] in turns[3]["content"]
    assert 0 < plain < 20


class Scripted:
    """Answers as they are listed, and remembers what it was sent."""

    def __init__(self, *answers: str | dict[str, str]) -> None:
        self.answers, self.sent = list(answers), []
        self.chat = SimpleNamespace(completions=self)

    def create(self, **request: Any) -> Any:
        from openai.types.chat import ChatCompletionMessage

        self.sent.append(json.loads(json.dumps(request["messages"])))
        answer = self.answers.pop(0)
        said: dict[str, Any] = {"role": "assistant", "content": answer if isinstance(answer, str) else None}
        if isinstance(answer, dict):
            said["tool_calls"] = [{"id": "call_9", "type": "function", "function": answer}]
        return SimpleNamespace(choices=[SimpleNamespace(message=ChatCompletionMessage.model_validate(said))])


def test_the_loop_runs_the_tool_and_hands_its_result_back(script: ModuleType) -> None:
    client = Scripted({"name": "stock", "arguments": '{"goods": "pens"}'}, "There are 31 pens.")
    assert script.answered(client, "clerk", "How many pens are there?", lambda goods: "31") == ("There are 31 pens.", ["pens"])
    assert client.sent[1][-1] == {"role": "tool", "tool_call_id": "call_9", "content": "31"}
    assert client.sent[1][-2]["tool_calls"][0]["id"] == "call_9"


def test_the_loop_ends_with_a_model_that_only_calls_and_with_a_call_that_was_cut(script: ModuleType) -> None:
    client = Scripted(*[{"name": "stock", "arguments": '{"goods": "pens"}'}] * 5)
    assert script.answered(client, "clerk", "Do we have pens?", lambda goods: "31", most=3) == ("", ["pens"] * 3)
    client = Scripted(*[{"name": "stock", "arguments": '{"goods": "pe'}] * 5)
    assert script.answered(client, "clerk", "Do we have pens?", lambda goods: "31") == ("", ['{"goods": "pe'])
    assert len(client.sent) == 1


def test_a_served_model_that_knows_nothing_gets_nothing_right(
    script: ModuleType, server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "ASKED", script.ASKED[:1])
    monkeypatch.setattr(script, "GOODS", script.GOODS[:2])
    assert script.main(["ask", "--base-url", server.url, "--model", "clerk"]) == 1
    assert capsys.readouterr().out.endswith(f"0 of {2 + len(script.PLAIN)} right\n")
