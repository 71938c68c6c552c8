"""`tessera tokenizer`: from documents to a folder, and what a folder says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tessera.commands.tokenizer import inspect, train
from tessera.errors import UserError
from tessera.tokens.vocabulary import Vocabulary


@pytest.fixture
def folder(tiny_corpus_folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out of words"
    train([f"files:{tiny_corpus_folder}"], 300, "qwen2", str(out))
    return out


def test_training_writes_a_folder_that_loads(folder: Path) -> None:
    assert Vocabulary.load(folder).text_size == 300


def test_training_refuses_an_occupied_folder_and_an_empty_source(folder: Path, tmp_path: Path) -> None:
    before = (folder / "tokenizer.json").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        train(["builtin:stdlib"], 300, "qwen2", str(folder))
    assert (folder / "tokenizer.json").read_bytes() == before
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="yields no document"):
        train([f"files:{tmp_path / 'nothing'}"], 300, "qwen2", str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match=r"below cannot be written: .*tokenizer\.json is a file, not a folder\.$"):
        train([f"files:{folder}"], 300, "qwen2", str(folder / "tokenizer.json" / "below"))


def test_inspecting_counts_the_bytes_of_each_token(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    text = "boats left, 漢 <|pad|>"
    inspect(str(folder), text, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["text_entries"] == 300 and found["control_tokens"] == 64 and found["ids"] == 364
    assert found["bytes"] == len(text.encode()) and found["tokens"] == len(found["token_ids"]) == len(found["pieces"])
    assert max(found["token_ids"]) < 300
    inspect(str(folder), text, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["text", "entries", "300"] and "b'\\xe6'" in lines[-1]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="and no model/ folder"):
        inspect(str(tmp_path), None, as_json=False)
