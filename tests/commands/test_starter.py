"""The model in the box goes wherever a model is asked for, by its name alone, and nothing is ever written beside it."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.commands.chat import chat
from tessera.commands.evaluate import evaluate
from tessera.commands.exporting import export_model
from tessera.commands.generate import generate
from tessera.commands.serve import kept_beside, runs_of
from tessera.engine.thinking import speaks_dialogue
from tessera.errors import UserError
from tessera.model import starter, weights
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.posttrain import supervised
from tessera.tokens.vocabulary import Vocabulary


def write_chain(folder: Path, **shape: int) -> Path:
    """What a chain leaves, with an untrained model that knows the turns of a dialogue."""
    vocabulary = Vocabulary.train(["def add(a, b):\n    return a + b\n" * 20], 280)
    size = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_size": 16, "mlp_width": 48, "context": 96} | shape
    decoder = Decoder(DecoderConfig(vocabulary.size, **size))  # type: ignore[arg-type]
    decoder.initialise(0)
    special = weights.SpecialIds(end=(vocabulary.end_id, vocabulary.end_turn_id), pad=vocabulary.pad_id)
    weights.save(decoder, folder / "model", special=special, companions=vocabulary.save)
    (folder / "chain.json").write_text(json.dumps({"recipe": "starter", "stages": []}))
    row = {"suite": "sums", "measure": "pass@1", "value": 0.5, "n": 10, "of": "starter", "model": "/somewhere/starter"}
    (folder / "evaluations.json").write_text(json.dumps([row]))
    samples = [{"step": "draw", "prompt": "a seven", "answer": "", "right": True, "file": "samples/seven.png"}]
    (folder / "samples.json").write_text(json.dumps(samples))
    (folder / "samples").mkdir()
    (folder / "samples" / "seven.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    box = tmp_path_factory.mktemp("package") / "starter"
    export_model(str(write_chain(tmp_path_factory.mktemp("chain"))), "box", str(box))
    return box


@pytest.fixture
def box(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A box in the package, an empty working directory, and in the end nothing that was changed."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(starter, "FOLDER", shipped)
    starter.model_folder.cache_clear()
    before = sorted(shipped.rglob("*"))
    yield shipped
    starter.model_folder.cache_clear()
    assert starter.model_folder() == shipped / "model" and sorted(shipped.rglob("*")) == before
    starter.model_folder.cache_clear()


def test_a_box_holds_bf16_weights_the_card_and_nothing_of_this_machine(box: Path) -> None:
    assert weights.stored_dtype(box / "model") == torch.bfloat16
    assert (box / "CARD.md").read_text().startswith("---\nlicense: apache-2.0")
    assert (box / "samples" / "seven.png").is_file() and "samples/seven.png" in (box / "SUMS").read_text()
    assert "somewhere" not in (box / "evaluations.json").read_text()


def test_a_box_is_made_of_a_chain_only_and_not_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = write_chain(tmp_path / "chain")
    with pytest.raises(UserError, match="bf16"):
        export_model(str(chain), "box", str(tmp_path / "box"), "f32")
    monkeypatch.setattr("tessera.commands.exporting._MOST_BOX_BYTES", 1000)
    with pytest.raises(UserError, match="a box has room for"):
        export_model(str(chain), "box", str(tmp_path / "box"))
    (chain / "chain.json").unlink()
    with pytest.raises(UserError, match="not the folder of a chain"):
        export_model(str(chain), "box", str(tmp_path / "box"))
    assert not (tmp_path / "box").exists()


def test_a_box_that_is_broken_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = write_chain(tmp_path / "chain")
    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as stopped:
        stopped.setattr(starter, "write_sums", lambda box: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export_model(str(chain), "box", str(tmp_path / "box"))
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "box").mkdir()
    export_model(str(chain), "box", str(tmp_path / "box"))
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "box"]) and (tmp_path / "box" / "SUMS").is_file()


def test_it_generates_talks_and_is_measured(
    box: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate("starter", "def add(", max_tokens=8, seed=1, as_json=True)
    assert len(json.loads(capsys.readouterr().out)["ids"]) <= 8
    assert speaks_dialogue("starter", Vocabulary.load(weights.resolve_model("starter")))
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello!\n"))
    chat("starter", max_tokens=4)
    Path("text").mkdir()
    for name in "ab":
        Path("text", name).write_text(f"{name} text of some length\n" * 20)
    capsys.readouterr()
    evaluate("starter", ["files:text"], as_json=True)
    assert json.loads(capsys.readouterr().out)["model"] == "starter"


@pytest.mark.parametrize(("to", "out"), [("hf", "theirs"), ("gguf", "starter.gguf")])
def test_it_is_exported_as_it_is_stored(box: Path, to: str, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    export_model("starter", to, out)
    assert Path(out).exists() and "bf16" in capsys.readouterr().out


def test_what_its_server_keeps_lies_in_the_working_directory(box: Path) -> None:
    assert kept_beside("starter") == Path("runs/starter/serve-data")
    assert runs_of("starter") == Path("runs")


def test_tuning_begins_from_it(box: Path) -> None:
    question = {"role": "user", "content": "hi"}
    examples = ({"messages": [question, {"role": "assistant", "content": f"a{n}"}]} for n in range(20))
    Path("examples.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    wish = supervised.Wish("starter", "examples.jsonl", epochs=1.0, settings=("train.threads=1",))
    supervised.prepare(wish, Path("runs/starter-sft"), lambda line: None)
    info = json.loads(Path("runs/starter-sft/run.json").read_text())
    assert info["init"] == str((box / "model").resolve()) and info["dialogue"]


def test_training_begins_from_it(box: Path, corner: Any) -> None:
    code, said = corner.call(*corner.words(Path("runs/code").resolve(), budget="4ktok"), "--init", "starter")
    assert code == 0, said
    assert (Path("runs/code/model") / "model.safetensors").is_file()


def test_thirty_million_parameters_in_bf16_load_in_two_seconds(tmp_path: Path) -> None:
    chain = write_chain(tmp_path / "chain", width=512, layers=9, heads=8, kv_heads=4, head_size=64, mlp_width=1536)
    export_model(str(chain), "box", str(tmp_path / "box"))
    start = time.process_time()
    assert not starter._damaged(tmp_path / "box")
    decoder = weights.load(tmp_path / "box" / "model")
    assert 25e6 < decoder.config.parameters < 30e6
    assert time.process_time() - start < 2
