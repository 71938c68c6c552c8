"""generate, chat, import and eval, from a folder on disk to what a person reads."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tessera.commands.chat import Dialogue, chat
from tessera.commands.evaluate import evaluate
from tessera.commands.generate import generate
from tessera.commands.importing import import_model
from tessera.engine.thinking import speaks_dialogue
from tessera.errors import UserError
from tessera.model import weights
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.tokens.prompts import fill_prompt
from tessera.tokens.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(["def add(a, b):\n    return a + b\n" * 20], 280)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    """A run's folder with an untrained base model."""
    return write_model(tmp_path_factory.mktemp("run"), vocabulary, (vocabulary.end_id,))


def write_model(folder: Path, vocabulary: Vocabulary, end: tuple[int, ...], thinking: dict[str, int] | None = None) -> Path:
    config = DecoderConfig(vocabulary.size, width=32, layers=1, heads=2, kv_heads=1, head_size=16, mlp_width=48, context=64)
    decoder = Decoder(config)
    decoder.initialise(0)
    special = weights.SpecialIds(end=end, pad=vocabulary.pad_id, thinking=thinking or {})
    weights.save(decoder, folder / "model", special=special, companions=vocabulary.save)
    return folder


def test_generate_prints_the_prompt_and_its_completion(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(str(run), "def add(", max_tokens=10, seed=1, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert set(report) >= {"prompt_ids", "ids", "logprobs", "text", "files", "seconds"}
    assert len(report["ids"]) == len(report["logprobs"]) <= 10 and max(report["logprobs"]) < 0
    generate(str(run / "model"), "def add(", max_tokens=10, seed=1)
    assert capsys.readouterr().out == "def add(" + report["text"] + "\n"


def test_generate_thinks_as_long_as_the_effort_says(
    tmp_path: Path, vocabulary: Vocabulary, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(write_model(tmp_path, vocabulary, (vocabulary.end_id,), {"low": 2, "high": 9}))
    for effort, most in (("low", 2), ("high", 9)):
        generate(model, "2+2", max_tokens=5, seed=3, as_json=True, effort=effort)
        report = json.loads(capsys.readouterr().out)
        marks = [report["ids"].index(vocabulary.control(mark)) for mark in ("<|think|>", "<|/think|>")]
        assert marks[0] == 0 and marks[1] <= most + 1
        assert report["reasoning"] == vocabulary.decode_text(report["ids"][1 : marks[1]])
        generate(model, "2+2", max_tokens=5, seed=3, effort=effort)
        assert capsys.readouterr().out == report["text"] + "\n"
    generate(model, "2+2", max_tokens=5, seed=3, as_json=True, effort="none")
    assert "reasoning" not in json.loads(capsys.readouterr().out)
    with pytest.raises(UserError, match="no effort 'medium'; write one of low, high, or none"):
        generate(model, "2+2", effort="medium")
    with pytest.raises(UserError, match="leave --effort out"):
        generate(model, "2+2", suffix="4", effort="low")


def test_generate_reads_standard_input_and_says_what_it_cut(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("x = 1\n" * 100))
    generate(str(run), "-", max_tokens=4, seed=1)
    printed = capsys.readouterr()
    assert printed.out.startswith("x = 1\n") and "note: the model reads 64 tokens" in printed.err
    assert "empty" not in printed.err
    generate(str(run), "", max_tokens=4, as_json=True)
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["prompt_ids"]) == 1
    assert printed.err == "note: the prompt is empty, so the model begins a text of its own.\n"


def test_filling_keeps_what_is_next_to_the_gap(vocabulary: Vocabulary, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def text(part: list[int]) -> str:
        return vocabulary.decode_text(part)

    control = vocabulary.control
    short = fill_prompt(vocabulary, "abc", "xyz", room=100)
    frame = [short.index(control(f"<|fim_{part}|>")) for part in ("prefix", "suffix", "middle")]
    assert frame == [0, 1, 5] and text(short) == "xyzabc"
    for before, after, kept in (("a" * 50 + "bc", "yz", "bcyz"), ("bc", "yz" + "x" * 50, "bcyz"), ("a" * 50, "x" * 50, "aaaxxx")):
        prompt = fill_prompt(vocabulary, before, after, room=20)
        at = prompt.index(control("<|fim_middle|>"))
        assert len(prompt) == 20 and kept in text(prompt[at:] + prompt[:at])
        assert before.endswith(text(prompt[at:])) and after.startswith(text(prompt[:at]))
    generate(str(run), "a = ", suffix="# end", max_tokens=3, seed=0)
    printed = capsys.readouterr().out
    assert printed.startswith("a = ") and printed.endswith("# end\n")


def test_chat_continues_text_with_a_base_model_and_leaves_cleanly(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("def f(\n\nand then\n"))
    chat(str(run), max_tokens=5, seed=0)
    printed = capsys.readouterr()
    assert "continues your text" in printed.err and printed.out.count("\n") >= 2
    assert "longer than" not in printed.err


def test_chat_says_when_a_line_was_cut(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("word " * 2000 + "\n"))
    chat(str(run), max_tokens=5, seed=0)
    assert "was longer than what this model reads at once; its first " in capsys.readouterr().err


@pytest.fixture
def hostile(tmp_path: Path, vocabulary: Vocabulary) -> Path:
    """A model that says nothing but the beginning of escape sequences."""
    write_model(tmp_path, vocabulary, (vocabulary.end_id,))
    decoder = weights.load(tmp_path / "model")
    with torch.no_grad():
        decoder.head_weight.fill_(0.01)
        decoder.head_weight[vocabulary.encode_text("\x1b")[0]] = 1.0
    weights.save(decoder, tmp_path / "model", companions=vocabulary.save)
    return tmp_path


class Terminal(io.StringIO):
    """What was printed on it can be read back."""

    def isatty(self) -> bool:
        return True


def test_what_a_model_says_cannot_steer_the_terminal(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (
        lambda: generate(str(hostile), "a\x1b", suffix=None, max_tokens=3, temperature=0),
        lambda: chat(str(hostile), max_tokens=3, temperature=0),
    ):
        screen = Terminal()
        monkeypatch.setattr("sys.stdin", io.StringIO("a\n"))
        monkeypatch.setattr("sys.stdout", screen)
        command()
        assert "\u241b" * 3 in screen.getvalue() and "\x1b" not in screen.getvalue()
    # A program gets what was said.
    page = io.StringIO()
    monkeypatch.setattr("sys.stdout", page)
    generate(str(hostile), "a", max_tokens=3, temperature=0, as_json=True)
    generate(str(hostile), "a", max_tokens=3, temperature=0)
    first, second = page.getvalue().splitlines()
    assert json.loads(first)["text"] == "\x1b" * 3 and second == "a" + "\x1b" * 3


def test_a_dialogue_is_the_rendered_conversation_and_forgets_its_oldest_turns(vocabulary: Vocabulary) -> None:
    dialogue = Dialogue(vocabulary, tuned=True, room=40)
    end = vocabulary.end_turn_id
    dialogue.ask("Hi")
    dialogue.answer(vocabulary.encode_text("yes"))
    document = vocabulary.decode(dialogue.ask("you"))
    names = "".join(str(s.content) for s in document.segments)
    assert names == "<|user|>Hi<|end_turn|><|assistant|>yes<|end_turn|><|user|>you<|end_turn|><|assistant|>"
    dialogue.answer([end])
    prompt = dialogue.ask("z" * 30)
    assert len(prompt) <= 40 and prompt[0] == vocabulary.control("<|user|>") and prompt.count(end) >= 1
    assert len(dialogue.ask("z" * 90)) > 40 and len(dialogue.turns) <= 2


def test_a_tuned_model_is_known_by_its_end_ids(tmp_path: Path, run: Path, vocabulary: Vocabulary) -> None:
    tuned = write_model(tmp_path, vocabulary, (vocabulary.end_id, vocabulary.end_turn_id))
    assert speaks_dialogue(str(tuned), vocabulary) and not speaks_dialogue(str(run), vocabulary)


def test_an_imported_llama_computes_the_same_and_opens_everywhere(
    tmp_path: Path, vocabulary: Vocabulary, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        vocab_size=vocabulary.size + 7,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        rope_parameters=rope | {"original_max_position_embeddings": 32},
    )
    theirs: Any = LlamaForCausalLM(config)
    theirs.to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    vocabulary.save(tmp_path / "theirs")
    (tmp_path / "theirs/vocabulary.json").unlink()
    import_model(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert "2 layers, width 32" in capsys.readouterr().out
    assert weights.stored_dtype(tmp_path / "ours") == torch.bfloat16 and (tmp_path / "ours/vocabulary.json").is_file()
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "ours")("def add(a").input_ids])
    with torch.inference_mode():
        ours, expected = weights.load(tmp_path / "ours"), theirs.float()(ids).logits
        assert (ours.logits(ours(ids)) - expected).abs().max() <= 1e-5 * expected.abs().max()
    generate(str(tmp_path / "ours"), "def", max_tokens=30, temperature=3.0)
    with pytest.raises(UserError, match="exists already"):
        import_model(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    with pytest.raises(UserError, match=r"below cannot be written: .*config\.json is a file, not a folder\.$"):
        import_model(str(tmp_path / "theirs"), str(tmp_path / "ours/config.json/below"))


def test_import_refuses_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source in (str(tmp_path / "nothing"), "no-such/model-here"):
        with pytest.raises(UserError) as refusal:
            import_model(source, str(tmp_path / "out"))
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_eval_reports_bits_per_byte_with_n_and_error(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text(f"document number {i}, and some words\n" * (i + 1))
    evaluate(str(run), [f"files:{tmp_path}"], as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["documents"] == 5 and report["standard_error"] > 0 and report["bits_per_byte"] > 1
    evaluate(str(run), [f"files:{tmp_path}"], samples=3)
    assert "n = 3 documents" in capsys.readouterr().out
