"""export: what it writes is opened by llama.cpp and transformers, and they compute what we do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tessera.commands.exporting import export_model
from tessera.commands.generate import open_engine
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.model import weights
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.tokens.vocabulary import Vocabulary

TEXTS = ["def add(a, b):\n    return a + b  # 1234 apples\n" * 20, "Grüße aus Köln, 它是一只猫, привет!\r\n\tit's IT'S\n" * 20]
PROMPT = "def add(it's,  123456):\r\n\n    Grüße 猫 привет <|endoftext|>!"
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32.0}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3 untied": {"tied": False, "kv_heads": 4, "rope_theta": 1000.0},
    "llama": {"qk_norm": False},
    "llama scaled": {"qk_norm": False, "tied": False, "rope_scaling": LLAMA3, "head_size": 24},
}


def make_model(folder: Path, vocabulary: Vocabulary, tuned: bool = False, rows: int = 0, **shape: Any) -> Path:
    """A random model whose distributions are far from uniform; `rows` of its embedding have no token."""
    size = {"width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 32, "mlp_width": 96, "context": 128}
    decoder = Decoder(DecoderConfig(vocabulary.size + rows, **size | shape))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(float(parameter.ndim == 1), 0.2, generator=generator)
    special = weights.SpecialIds(end=(vocabulary.end_id, *([vocabulary.end_turn_id] if tuned else [])))
    weights.save(decoder, folder, special=special, companions=vocabulary.save)
    return folder


@pytest.fixture(scope="module", params=["gpt-2", "qwen2"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return Vocabulary.train(TEXTS, 320, request.param)


@contextmanager
def llama(path: Path) -> Iterator[Any]:
    """The file in llama.cpp, keys and values in float32."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama.cpp: pip install llama-cpp-python (it compiles for a while)")
    model = llama_cpp.Llama(
        str(path), n_ctx=128, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False, type_k=0, type_v=0
    )
    try:
        yield model
    finally:
        model.close()


@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_computes_our_logits(tmp_path: Path, vocabulary: Vocabulary, shape: str) -> None:
    folder = make_model(tmp_path / "model", vocabulary, rows=7, **SHAPES[shape])
    export_model(str(folder), "gguf", str(tmp_path / "m.gguf"))
    ids = vocabulary.encode_text(PROMPT)
    with torch.inference_mode():
        decoder = weights.load(folder)
        ours = decoder.logits(decoder(torch.tensor([ids])))[0, :, : vocabulary.size].numpy()
    with llama(tmp_path / "m.gguf") as model:
        assert model.n_vocab() == vocabulary.size
        model.eval(ids)
        theirs = model.scores[: len(ids)]
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(ours).max()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_llama_cpp_writes_our_greedy_tokens(tmp_path: Path, vocabulary: Vocabulary, dtype: str) -> None:
    folder = make_model(tmp_path / "model", vocabulary)
    narrow = weights.load(folder)
    # Weights that every dtype holds exactly, so that only the arithmetic could differ.
    with torch.no_grad():
        for parameter in narrow.parameters():
            parameter.copy_(parameter.bfloat16().float())
    special = weights.SpecialIds(end=(vocabulary.end_id,))
    weights.save(narrow, folder, special=special, companions=vocabulary.save)
    export_model(str(folder), "gguf", str(tmp_path / "m.gguf"), dtype)
    engine = open_engine(str(folder), "float32")
    ids = vocabulary.encode_text(PROMPT)
    ours = engine.generate([ids], SamplingParams(40, 0.0))[0].ids.tolist()
    with llama(tmp_path / "m.gguf") as model:
        tokens = model.generate(ids, temp=0.0, repeat_penalty=1.0)
        theirs = [token for token, _ in zip(tokens, ours, strict=False)]
    assert theirs == ours


def test_llama_cpp_cuts_text_as_we_do(tmp_path: Path, vocabulary: Vocabulary) -> None:
    folder = make_model(tmp_path / "model", vocabulary)
    export_model(str(folder), "gguf", str(tmp_path / "m.gguf"))
    with llama(tmp_path / "m.gguf") as model:
        for text in (PROMPT, *TEXTS, "  two  \n\n\n lines\t", "'ll 'LL 12 345 6789", "\x00\x7f\u0301e\u0301"):
            assert model.tokenize(text.encode(), add_bos=True, special=False) == vocabulary.encode_text(text), text
        marked = model.tokenize(b"a<|end_turn|><|spare_0|>", add_bos=True, special=True)
        assert marked[-2:] == [vocabulary.end_turn_id, vocabulary.control("<|spare_0|>")]
        assert model.detokenize(vocabulary.encode_text(PROMPT)) == PROMPT.encode()


@pytest.mark.parametrize("rule", ["llama-bpe", "smollm"])
def test_tokenizers_of_other_families_are_cut_alike(tmp_path: Path, rule: str) -> None:
    folder = tmp_path / "model"
    tokenizer = Tokenizer(models.BPE(ignore_merges=rule == "llama-bpe"))
    llama3 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    first = pre_tokenizers.Split(Regex(llama3), "isolated") if rule == "llama-bpe" else pre_tokenizers.Digits(True)
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule == "smollm")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, last])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    )
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end_of_text|>"}')
    vocabulary = Vocabulary.load(folder)
    decoder = Decoder(DecoderConfig(vocabulary.size, 32, 1, 2, 1, 16, 48, qk_norm=False))
    decoder.initialise(0)
    weights.save(decoder, folder, special=weights.SpecialIds(begin, (begin + 1,)), companions=vocabulary.save)
    export_model(str(folder), "gguf", str(tmp_path / "m.gguf"), "f16")
    assert all(vocabulary.encode_prompt(text) == tokenizer.encode(text).ids for text in (PROMPT, "", *TEXTS))
    assert GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.add_bos_token"].contents() is True
    with llama(tmp_path / "m.gguf") as model:
        for text in (PROMPT, *TEXTS):
            assert model.tokenize(text.encode(), add_bos=False, special=False) == vocabulary.encode_text(text)
            assert model.tokenize(text.encode(), add_bos=True, special=False) == tokenizer.encode(text).ids


def test_the_file_holds_what_other_programs_ask_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = Vocabulary.train(TEXTS, 300)
    folder = make_model(tmp_path / "run" / "model", vocabulary, tuned=True, rows=3, tied=False, width=72)
    export_model(str(tmp_path / "run"), "gguf", str(tmp_path / "new" / "m.gguf"), "q8_0")
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "m.gguf"]
    reader = GGUFReader(tmp_path / "new" / "m.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "qwen3" and fields["general.name"] == "run"
    assert fields["qwen3.context_length"] == 128 and fields["qwen3.rope.freq_base"] == 10_000
    assert fields["qwen3.attention.key_length"] == fields["qwen3.attention.value_length"] == 32
    assert fields["tokenizer.ggml.pre"] == "qwen2" and fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.ggml.eos_token_id"] == vocabulary.end_id
    assert fields["tokenizer.ggml.eot_token_id"] == vocabulary.end_turn_id
    assert fields["tokenizer.ggml.fim_mid_token_id"] == vocabulary.control("<|fim_middle|>")
    assert fields["tokenizer.chat_template"] == (folder / "chat_template.jinja").read_text()
    assert len(fields["tokenizer.ggml.tokens"]) == vocabulary.size
    assert fields["tokenizer.ggml.token_type"] == [1] * vocabulary.text_size + [3] * 64
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["output_norm.weight"] == "F32" and types["output.weight"] == "F16" and types["blk.0.ffn_down.weight"] == "Q8_0"
    printed = capsys.readouterr().out
    assert "matrices are f16" in printed and "3 rows without a token" in printed and "no chat template" not in printed


def test_of_a_model_with_media_the_text_is_written(
    tmp_path: Path, vocabulary: Vocabulary, capsys: pytest.CaptureFixture[str]
) -> None:
    seeing = make_model(tmp_path / "seeing", vocabulary.add_block("p", "image", 16, "f").add_block("q", "audio", 8, "g"))
    export_model(str(seeing), "gguf", str(tmp_path / "m.gguf"), "f32")
    printed = capsys.readouterr().out
    assert "ids for image (16), audio (8) are left out" in printed and "without a token" not in printed
    reader = GGUFReader(tmp_path / "m.gguf")
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == vocabulary.size
    table = next(tensor.data for tensor in reader.tensors if tensor.name == "token_embd.weight")
    assert np.array_equal(table, weights.load(seeing).model.embed_tokens.weight.detach().numpy()[: vocabulary.size])


def test_llama_cpp_answers_in_turns(tmp_path: Path) -> None:
    vocabulary = Vocabulary.train(TEXTS, 300)
    export_model(str(make_model(tmp_path / "m", vocabulary, tuned=True)), "gguf", str(tmp_path / "m.gguf"))
    with llama(tmp_path / "m.gguf") as model:
        answer = model.create_chat_completion([{"role": "user", "content": "add"}], max_tokens=8, temperature=0.0)
        assert answer["usage"]["prompt_tokens"] == len(vocabulary.encode_text("add")) + 3


@pytest.mark.parametrize("dtype", [None, "f16", "bf16"])
def test_transformers_opens_the_folder(tmp_path: Path, vocabulary: Vocabulary, dtype: str | None) -> None:
    folder = make_model(tmp_path / "model", vocabulary)
    (folder / "LICENSE").write_text("ours")
    export_model(str(folder), "hf", str(tmp_path / "out"), dtype)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert str(theirs.dtype) == {None: "torch.float32", "f16": "torch.float16", "bf16": "torch.bfloat16"}[dtype]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(TEXTS[0]).input_ids == vocabulary.encode_text(TEXTS[0])
    assert (tmp_path / "out" / "LICENSE").read_text() == "ours"
    assert Vocabulary.load(tmp_path / "out").hash == vocabulary.hash


def test_what_cannot_be_written_is_refused_in_a_sentence(tmp_path: Path, vocabulary: Vocabulary) -> None:
    folder = str(make_model(tmp_path / "model", vocabulary))
    occupied = tmp_path / "there.gguf"
    occupied.write_text("mine")
    for model, to, out, dtype, words in (
        (folder, "onnx", "x", None, "takes gguf, hf, box"),
        (folder, "gguf", "x", "q4_0", "f32, f16, bf16, q8_0"),
        (folder, "hf", "x", "q8_0", "f32, f16, bf16"),
        (folder, "gguf", str(occupied), None, "exists already"),
        (folder, "hf", str(tmp_path), None, "exists already"),
        (str(tmp_path / "nothing"), "gguf", "x", None, "is not a folder"),
        (folder, "gguf", str(occupied / "x"), None, r"x cannot be written: .*there\.gguf is a file, not a folder\.$"),
        (folder, "hf", str(occupied / "below" / "x"), None, r"x cannot be written: .*there\.gguf is a file, not a folder\.$"),
    ):
        with pytest.raises(UserError, match=words):
            export_model(model, to, out, dtype)
    assert occupied.read_text() == "mine" and not list(tmp_path.glob(".*"))


def test_what_makes_a_model_a_judge_goes_along_and_the_widest_dtype_is_kept(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model(tmp_path / "judge", vocabulary)
    tensors = load_file(folder / "model.safetensors")
    mixed = {name: t.to(torch.bfloat16) if t.ndim > 1 else t for name, t in tensors.items()}
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("moderation.json", "reward.json"):
        (folder / name).write_text('{"mine": 1}')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_model(str(folder), "hf", ".")
    assert weights.stored_dtype(tmp_path / "here") == torch.float32
    assert all((tmp_path / "here" / name).read_text() == '{"mine": 1}' for name in ("moderation.json", "reward.json"))


def test_a_model_that_llama_cpp_cannot_hold_is_refused(tmp_path: Path) -> None:
    vocabulary = Vocabulary.train(TEXTS, 300)
    scaled = make_model(tmp_path / "scaled", vocabulary, rope_scaling=LLAMA3)
    other = make_model(tmp_path / "other", vocabulary)
    tree = json.loads((other / "tokenizer.json").read_text())
    tree["pre_tokenizer"] = {"type": "Whitespace"}
    (other / "tokenizer.json").write_text(json.dumps(tree))
    (other / "vocabulary.json").unlink()
    large = make_model(tmp_path / "large", vocabulary)
    decoder = weights.load(large)
    with torch.no_grad():
        decoder.head_weight[0, 0] = 1e5
    weights.save(decoder, large, companions=vocabulary.save)
    for folder, words in (
        (scaled, "does not scale"),
        (other, "no name for the rule"),
        (large, "f16 cannot hold"),
    ):
        with pytest.raises(UserError, match=words):
            export_model(str(folder), "gguf", str(tmp_path / "x.gguf"), "f16")
    assert not (tmp_path / "x.gguf").exists()
