"""A file of examples: what of each is learned, and what is wrong with a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera.errors import UserError
from tessera.posttrain.examples import read_examples
from tessera.serve.chat import ChatRequest, form_of
from tessera.tokens import chat

Write = Callable[..., str]
HI: dict[str, Any] = {"role": "user", "content": "hi"}
CALL = {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}}]}


def shown(path: str) -> list[list[tuple[str, bool]]]:
    return [[(str(s.content), s.learn) for s in example.document.segments] for example in read_examples(Path(path))]


def test_an_answer_of_weight_0_is_read_and_not_learned(write: Write) -> None:
    answers = [{"role": "assistant", "content": text, "weight": weight} for text, weight in (("no", 0), ("yes", 1))]
    (segments,) = shown(write([{"messages": [HI, answers[0], HI, answers[1]]}]))
    assert segments[4:6] == [("no", False), ("<|end_turn|>", False)]
    assert segments[-2:] == [("yes", True), ("<|end_turn|>", True)]
    assert sum(learn for _, learn in segments) == 2


def test_calls_are_learned_and_their_results_are_not(write: Write) -> None:
    row = {
        "messages": [HI, CALL, {"role": "tool", "tool_call_id": "a", "content": "noon"}, {"role": "assistant", "content": "12"}]
    }
    (segments,) = shown(write([row]))
    learned = [text for text, learn in segments if learn]
    assert learned[:2] == ["<|tool_call|>", '{"name": "now", "arguments": {}}'] and learned[-2:] == ["12", "<|end_turn|>"]
    assert ("noon", False) in segments


def test_tools_are_described_as_the_server_describes_them(write: Write) -> None:
    tool = {"type": "function", "function": {"name": "now", "description": "The time."}}
    document = next(read_examples(Path(write([{"messages": [HI, CALL], "tools": [tool]}])))).document
    asked = ChatRequest.model_validate({"model": "m", "messages": [HI], "tools": [tool]})
    described = chat.describe_tools(map(vars, form_of(asked).tools))
    assert document.segments[:3] == chat.render([described]).segments


def test_a_completion_is_learned_with_its_end_and_its_prompt_is_not(write: Write) -> None:
    assert shown(write([{"prompt": "2+2=", "completion": "4"}])) == [[("2+2=", False), ("4", True), ("<|endoftext|>", True)]]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "an example is"),
        ('{"text": "x"}', "an example is"),
        ({"messages": "hi"}, "must be a list"),
        ({"messages": ["hi"]}, "a message is an object"),
        ({"messages": [HI]}, "no assistant message"),
        ({"messages": [HI, {"role": "assistant", "content": "x", "weight": 0}]}, "weight 0"),
        ({"messages": [HI, {"role": "assistant", "content": "x", "weight": 0.5}]}, "weight is 0 or 1"),
        ({"messages": [HI | {"weight": 1}, {"role": "assistant", "content": "x"}]}, "weight is 0 or 1"),
        ({"messages": [HI, {"role": "assistant", "content": ""}]}, "no content"),
        ({"messages": [{"role": "robot", "content": "x"}, {"role": "assistant", "content": "x"}]}, "unknown role"),
        ({"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "x"}]}, "no assistant message before"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "x"}]}, "text"),
        ({"messages": [HI, CALL], "tools": [{"name": "now"}]}, "tools are a list"),
        ({"prompt": "x", "completion": ""}, "completion"),
        ("\udcff", "UTF-8"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, write: Write, line: Any, words: str) -> None:
    good = {"prompt": "a", "completion": "b"}
    if line == "\udcff":
        path = write([good, ""])
        with open(path, "ab") as file:
            file.write(b'{"prompt": "\xff"}\n')
    else:
        path = write([good, "", line])
    with pytest.raises(UserError, match=rf"line 3: .*{words}"):
        list(read_examples(Path(path)))


def test_an_empty_or_missing_file_is_refused(tmp_path: Path, write: Write) -> None:
    for path in (Path(write(["", " "])), tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match=r"holds no example|cannot be read"):
            list(read_examples(path))


@pytest.mark.parametrize(
    ("url", "role", "wrong"),
    [
        ("https://example.org/a.png", "user", "has to stand in the line itself"),
        ("data:image/png;base64,!!!", "user", "cannot be read"),
        ("data:image/png;base64,aGVsbG8=", "user", "cannot be read"),
        ("data:image/png;base64,aGVsbG8=", "system", "only the user shows pictures"),
    ],
)
def test_a_picture_that_is_none_is_named_with_its_line(write: Write, url: str, role: str, wrong: str) -> None:
    message = {"role": role, "content": [{"type": "image_url", "image_url": {"url": url}}]}
    path = write([{"messages": [message, {"role": "assistant", "content": "a seven"}]}])
    with pytest.raises(UserError, match=rf"line 1: .*{wrong}"):
        list(read_examples(Path(path)))
