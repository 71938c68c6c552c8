"""Hugging Face folders: the same logits on both sides, whatever was written is read, and what is not understood is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tessera.errors import UserError
from tessera.model import weights
from tessera.model.decoder import Decoder, DecoderConfig

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
IDS = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(1))

EVERY_SHAPE = pytest.mark.parametrize(
    "tied,kv_heads,qk_norm,scaling",
    [
        pytest.param(tied, kv_heads, qk_norm, scaling, id=f"{'tied' if tied else 'untied'}-{kv_heads}-{name}")
        for tied in (True, False)
        for kv_heads in (4, 2, 1)
        for name, qk_norm, scaling in (("qwen3", True, None), ("llama", False, None), ("llama3-rope", False, LLAMA3))
    ],
)


def make(**changes: Any) -> Decoder:
    """A small decoder in which every weight matters: nothing is zero, no norm is one."""
    shape: dict[str, Any] = dict(vocab_size=96, width=64, layers=2, heads=4, kv_heads=2, head_size=16, mlp_width=96)
    decoder = Decoder(DecoderConfig(**(shape | dict(context=128, rope_theta=5000.0) | changes)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(float(parameter.ndim == 1), 0.15, generator=generator)
    return decoder


def logits_of(decoder: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.logits(decoder(IDS))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, bound: float = 1e-5) -> None:
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= bound


@EVERY_SHAPE
def test_transformers_computes_our_logits(tmp_path: Path, tied: bool, kv_heads: int, qk_norm: bool, scaling: Any) -> None:
    decoder = make(tied=tied, kv_heads=kv_heads, qk_norm=qk_norm, rope_scaling=scaling)
    weights.save(decoder, tmp_path / "m")
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    theirs, report = opened
    assert type(theirs) is (Qwen3ForCausalLM if qk_norm else LlamaForCausalLM)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.inference_mode():
        assert_close(logits_of(decoder), theirs(IDS).logits)
    again = weights.load(tmp_path / "m")
    assert again.config == decoder.config
    assert torch.equal(logits_of(again), logits_of(decoder))


@EVERY_SHAPE
def test_we_compute_transformers_logits(tmp_path: Path, tied: bool, kv_heads: int, qk_norm: bool, scaling: Any) -> None:
    rope = {"rope_theta": 20_000.0, "rope_type": "llama3" if scaling else "default"} | (scaling or {})
    shape: dict[str, Any] = dict(
        vocab_size=96,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        intermediate_size=96,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        rope_parameters=rope,
        initializer_range=0.15,
    )
    torch.manual_seed(0)
    # Qwen3's heads here are wider than hidden_size / heads, Llama's follow from it: both rules are read.
    theirs: Any = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=32)) if qk_norm else LlamaForCausalLM(LlamaConfig(**shape))
    theirs.eval().save_pretrained(tmp_path / "m")
    with torch.inference_mode():
        assert_close(logits_of(weights.load(tmp_path / "m")), theirs(IDS).logits)


def rewrite(folder: Path, **changes: Any) -> None:
    """Edits config.json; a value of None removes the key."""
    page = json.loads((folder / "config.json").read_text())
    page = {k: v for k, v in (page | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(page))


def test_a_config_of_transformers_4_means_the_same(tmp_path: Path) -> None:
    decoder = make(qk_norm=False, rope_scaling=LLAMA3)
    weights.save(decoder, tmp_path / "m")
    page = json.loads((tmp_path / "m/config.json").read_text())
    assert page["rope_theta"] == 5000.0 and page["rope_scaling"]["rope_type"] == "llama3"
    rewrite(tmp_path / "m", rope_parameters=None)
    assert weights.read_config(tmp_path / "m") == decoder.config
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    with torch.inference_mode():
        assert_close(logits_of(decoder), theirs(IDS).logits)


def test_shards_are_written_and_read(tmp_path: Path) -> None:
    decoder = make(tied=False)
    weights.save(decoder, tmp_path / "m", shard_bytes=40_000)
    assert len(list((tmp_path / "m").glob("model-*-of-*.safetensors"))) > 2
    assert not (tmp_path / "m/model.safetensors").exists()
    # Who may read one file of a model may read the others: a server often runs as another user than the training.
    assert len({file.stat().st_mode & 0o777 for file in (tmp_path / "m").iterdir()}) == 1
    assert torch.equal(logits_of(weights.load(tmp_path / "m")), logits_of(decoder))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    with torch.inference_mode():
        assert_close(logits_of(decoder), theirs(IDS).logits)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    assert (tmp_path / "theirs/model.safetensors.index.json").exists()
    assert torch.equal(logits_of(weights.load(tmp_path / "theirs")), logits_of(decoder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    decoder = make()
    weights.save(decoder, tmp_path / "m", dtype=dtype)
    assert json.loads((tmp_path / "m/config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert weights.stored_dtype(tmp_path / "m") == dtype
    loaded = weights.load(tmp_path / "m", dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    for ours, theirs in zip(loaded.parameters(), decoder.parameters(), strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs.to(dtype).float())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto").dtype == dtype


def test_special_ids_reach_both_config_files(tmp_path: Path) -> None:
    special = weights.SpecialIds(begin=3, end=(90, 91), pad=92)
    weights.save(make(), tmp_path / "m", special=special)
    assert weights.read_special(tmp_path / "m") == special
    assert GenerationConfig.from_pretrained(tmp_path / "m").eos_token_id == [90, 91]


def test_a_failed_save_leaves_the_old_folder(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError("disk is full")

    decoder = make()
    weights.save(decoder, tmp_path / "m", companions=lambda folder: (folder / "note").write_text("old"))
    with pytest.raises(OSError, match="disk is full"):
        weights.save(make(width=32), tmp_path / "m", companions=fail)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m/note").read_text() == "old"
    assert torch.equal(logits_of(weights.load(tmp_path / "m")), logits_of(decoder))
    weights.save(make(width=32), tmp_path / "m")
    assert weights.read_config(tmp_path / "m").width == 32 and not (tmp_path / "m/note").exists()


@pytest.mark.parametrize(
    "changes,names",
    [
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "Qwen3MoeForCausalLM"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM"),
        ({"architectures": None, "model_type": "gpt2"}, "architecture unknown"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True, "sliding_window": 64}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope type yarn"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0}}, "low_freq_factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": None, "rope_theta": None}, "rope_theta"),
        ({"num_key_value_heads": None}, "num_key_value_heads"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], names: str) -> None:
    weights.save(make(), tmp_path / "m")
    rewrite(tmp_path / "m", **changes)
    with pytest.raises(UserError, match=names) as refusal:
        weights.load(tmp_path / "m")
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)


def test_a_window_that_is_switched_off_is_no_window(tmp_path: Path) -> None:
    weights.save(make(), tmp_path / "m")
    rewrite(tmp_path / "m", use_sliding_window=False, sliding_window=64)
    assert weights.read_config(tmp_path / "m") == make().config


def test_wrong_tensors_are_named(tmp_path: Path) -> None:
    weights.save(make(), tmp_path / "m")
    path = tmp_path / "m/model.safetensors"
    good = load_file(path)

    def refusal(tensors: dict[str, torch.Tensor]) -> str:
        save_file(tensors, path)
        with pytest.raises(UserError) as error:
            weights.load(tmp_path / "m")
        return str(error.value)

    norm, bias = "model.layers.1.self_attn.q_norm.weight", "model.layers.0.self_attn.q_proj.bias"
    assert f"{norm} is missing" in refusal({k: v for k, v in good.items() if k != norm})
    assert bias in refusal(good | {bias: torch.zeros(64)})
    assert "model.norm.weight has shape [65]" in refusal(good | {"model.norm.weight": torch.ones(65)})
    assert "lm_head.weight differs" in refusal(good | {"lm_head.weight": torch.zeros(96, 64)})
    assert "torch.int8" in refusal(good | {norm: torch.ones(16, dtype=torch.int8)})
    # A tied head that is stored twice, and the rotary table of old Llamas, are what the decoder computes anyway.
    twice = {"lm_head.weight": good["model.embed_tokens.weight"].clone()}
    save_file(good | twice | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, path)
    weights.load(tmp_path / "m")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        weights.load(tmp_path / "m")
    path.rename(tmp_path / "m/pytorch_model.bin")
    with pytest.raises(UserError, match=r"\.bin"):
        weights.load(tmp_path / "m")


def test_a_model_is_found_in_its_run_or_refused(tmp_path: Path) -> None:
    weights.save(make(), tmp_path / "run/model")
    assert weights.resolve_model(tmp_path / "run") == tmp_path / "run/model" == weights.resolve_model(str(tmp_path / "run/model"))
    with pytest.raises(UserError, match="not a folder"):
        weights.resolve_model(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no config\.json"):
        weights.resolve_model(tmp_path)
    (tmp_path / "young/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="without model/"):
        weights.resolve_model(tmp_path / "young")
