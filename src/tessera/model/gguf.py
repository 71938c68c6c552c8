"""A decoder as a GGUF file, the one file from which llama.cpp, Ollama and their kin run a model.

The weights go in under llama.cpp's names, beside the shape of the model and the fields of its tokenizer (`tokens.ggml`). Norms
stay float32, as llama.cpp wants them; matrices are written as f32, f16, bf16 or q8_0 (32 bytes and a scale), one at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.errors import UserError
from tessera.model.decoder import Decoder, DecoderConfig, rotary_frequencies

DTYPES = ("f32", "f16", "bf16", "q8_0")
"""Formats of the matrices."""

_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_BLOCK = 32
"""Weights of a row that share a scale in q8_0."""


def write(decoder: Decoder, path: Path, dtype: str, fields: Mapping[str, Any]) -> int:
    """Writes a file, aside and renamed.

    Args:
        decoder: Qwen3 or Llama-shaped, on the CPU.
        path: of the file; replaced if it exists.
        dtype: of `DTYPES`.
        fields: further metadata by name: the tokenizer's, `general.name`. Rows of the embedding beyond
            `tokenizer.ggml.tokens` are padding and left out.

    Returns:
        Matrices that are f16 instead of q8_0, because their rows are no multiple of 32.

    Raises:
        UserError: the `gguf` package is absent, or llama.cpp does not compute this shape.
    """
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise UserError("GGUF files need the package gguf: pip install 'tessera[gguf]'.") from None
    config = decoder.config
    if config.qk_norm and config.rope_scaling:
        raise UserError("llama.cpp does not scale the positions of a Qwen3-shaped model; use --to hf.")
    architecture = "qwen3" if config.qk_norm else "llama"
    vocab_size = len(fields["tokenizer.ggml.tokens"])
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    writer = GGUFWriter(aside, architecture)
    for name, value in (_shape(config, architecture, vocab_size) | _numerics(dtype) | dict(fields)).items():
        _add(writer, name, value)
    coarser = 0
    for name, tensor in _tensors(decoder, vocab_size):
        kind = _kind(tensor, dtype)
        coarser += kind == "f16" != dtype
        array = _bytes_shape(tensor.shape, kind)
        writer.add_tensor_info(name, array, np.dtype(np.uint8), int(np.prod(array)), raw_dtype=_quantization(kind))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor in _tensors(decoder, vocab_size):
            writer.write_tensor_data(_converted(tensor, _kind(tensor, dtype)))
        assert writer.fout is not None
        for file in writer.fout:
            file.flush()
            os.fsync(file.fileno())
        writer.close()
        aside.replace(path)
    finally:
        writer.close()
        aside.unlink(missing_ok=True)
    return coarser


def _shape(config: DecoderConfig, architecture: str, vocab_size: int) -> dict[str, Any]:
    shape = {
        "vocab_size": vocab_size,
        "context_length": config.context,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.mlp_width,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.head_size,
        "rope.freq_base": float(config.rope_theta),
    }
    return {f"{architecture}.{name}": value for name, value in shape.items()}


def _numerics(dtype: str) -> dict[str, Any]:
    return {"general.file_type": _FILE_TYPES[dtype]} | ({"general.quantization_version": 2} if dtype == "q8_0" else {})


def _add(writer: Any, name: str, value: Any) -> None:
    """One field, with the type that llama.cpp reads it by."""
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def _tensors(decoder: Decoder, vocab_size: int) -> Iterator[tuple[str, Tensor]]:
    """Name and float32 tensor, in the order of the file."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    config = decoder.config
    names = get_tensor_name_map(MODEL_ARCH.QWEN3 if config.qk_norm else MODEL_ARCH.LLAMA, config.layers)
    for name, tensor in decoder.state_dict().items():
        written = names.get_name(name, try_suffixes=(".weight",))
        assert written is not None, name
        tensor = tensor.detach().float()
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensor = tensor[:vocab_size]
        elif not config.qk_norm and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = _neighbours(tensor, config.head_size)
        yield written, tensor
    if config.rope_scaling:
        plain, scaled = (rotary_frequencies(config, scaled=wanted) for wanted in (False, True))
        yield "rope_freqs.weight", plain / scaled


def _neighbours(weight: Tensor, head_size: int) -> Tensor:
    """Rows of a head so ordered that those that are turned together stand side by side, as llama.cpp's Llama has them.

    Hugging Face's stand half a head apart.
    """
    heads = weight.view(-1, 2, head_size // 2, weight.shape[1])
    return heads.transpose(1, 2).reshape(weight.shape)


def _kind(tensor: Tensor, dtype: str) -> str:
    """The format of one tensor."""
    if tensor.ndim == 1:
        return "f32"
    return "f16" if dtype == "q8_0" and tensor.shape[-1] % _BLOCK else dtype


def _quantization(kind: str) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[kind.upper()]


def _bytes_shape(shape: torch.Size, kind: str) -> tuple[int, ...]:
    """Shape of the tensor with its last axis in bytes."""
    from gguf import quant_shape_to_byte_shape

    return tuple(quant_shape_to_byte_shape(tuple(shape), _quantization(kind)))


def _converted(tensor: Tensor, kind: str) -> np.ndarray:
    from gguf.quants import quantize

    array: np.ndarray = quantize(tensor.contiguous().numpy(), _quantization(kind))
    return array
