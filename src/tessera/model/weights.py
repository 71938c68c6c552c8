"""Hugging Face model folders in and out.

A decoder goes in and a folder comes out that transformers and vLLM open as it is: `config.json`, `generation_config.json` and
safetensors, in one file or in shards with an index. The other way round, a Qwen3 or Llama-shaped folder that anyone wrote
becomes a `Decoder`. Everything else is refused in one sentence: a model that loads but computes something slightly different
is worse than none. Tokenizer files are the business of `tokens.vocabulary`; `companions` of `save` puts them into the folder.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tessera.errors import UserError
from tessera.model import starter
from tessera.model.decoder import Decoder, DecoderConfig

_ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_INDEX = "model.safetensors.index.json"
_THINKING, _GUIDED = "thinking_tokens", "guided_by_itself"
"""Of `generation_config.json`; other tools pass over what they do not know there."""
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class SpecialIds:
    """What a model's config files say of its tokens: ids that other tools look up there, and how long it was taught to think.

    Args:
        begin: put before every prompt by the tokenizer, or None.
        end: ids that end a completion.
        pad: fills short rows, or None.
        thinking: effort -> tokens of thought that it was trained with, from little to much; empty: it does not think.
        guided: medium -> scale of the guidance that it has learned to do without, behind `<|guided|>`; empty: none.
    """

    begin: int | None = None
    end: tuple[int, ...] = ()
    pad: int | None = None
    thinking: Mapping[str, int] = field(default_factory=dict)
    guided: Mapping[str, float] = field(default_factory=dict)


def resolve_model(path: str | Path) -> Path:
    """The Hugging Face folder meant by `path`: that folder, a run's folder with `model/` inside, or for `starter` the model in
    the box.

    Raises:
        UserError: there is no model.
    """
    if starter.is_meant(path):
        return starter.model_folder()
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if (path / "checkpoints").is_dir():
        raise UserError(f"{path} is a run without model/ yet; wait for its first save or go on with its training by --resume.")
    what = "has no config.json and no model/ folder" if path.is_dir() else "is not a folder"
    raise UserError(f"{path} {what}; give the folder of a run or of a Hugging Face model, or {starter.NAME}.")


def home(model: Path) -> Path:
    """The folder that a model goes by: its run's where it is `model/` of a run (or of the box), else its own; absolute."""
    folder = model.resolve()
    return folder.parent if folder.name == "model" else folder


def save(
    decoder: Decoder,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    special: SpecialIds = SpecialIds(),
    companions: Callable[[Path], object] | None = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes `decoder` as a Hugging Face folder; an existing folder is replaced as a whole, after all is on disk.

    Args:
        decoder: its parameters are written, not its compute dtype.
        folder: is made, parents too.
        dtype: of the tensors in the file; None: as they are in memory.
        special: ids for the two config files.
        companions: writes further files (tokenizer, chat template) into the folder that it is handed.
        shard_bytes: a shard holds at most this much, but at least one tensor.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        tensors = {name: t.detach().to("cpu", dtype or t.dtype).contiguous() for name, t in decoder.state_dict().items()}
        _write_tensors(tensors, aside, shard_bytes)
        written = next(iter(tensors.values())).dtype
        _write_json(aside / "config.json", _to_hugging_face(decoder.config, written, special))
        _write_json(aside / "generation_config.json", _generation_config(special))
        if companions is not None:
            companions(aside)
        _flush_to_disk(aside)
        # A folder cannot be renamed over a full one, so the old one steps aside first; a crash in between leaves it readable.
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(folder: str | Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """Reads a Hugging Face folder.

    Args:
        folder: Qwen3 or Llama-shaped, safetensors in float32, bfloat16 or float16.
        dtype: the decoder's compute dtype; its parameters are float32.

    Raises:
        UserError: unsupported architecture or option; a tensor that is missing, unexpected or of the wrong shape.
    """
    folder = Path(folder)
    config = read_config(folder)
    # Built without memory and filled with the file's tensors: no time is spent on random weights.
    with torch.device("meta"), _NoRandomWeights():
        decoder = Decoder(config, dtype)
    wanted = {name: tensor.shape for name, tensor in decoder.state_dict().items()}
    tensors = _read_tensors(folder)
    tensors = {name: t for name, t in tensors.items() if not name.endswith("rotary_emb.inv_freq")}  # old Llamas keep this table
    if config.tied and "lm_head.weight" in tensors:
        head = tensors.pop("lm_head.weight")
        if not torch.equal(head, tensors.get("model.embed_tokens.weight", head)):
            raise UserError(f"{folder}: config.json ties the embedding to the head, but lm_head.weight differs from it.")
    for name, shape in wanted.items():
        if name not in tensors:
            raise UserError(f"{folder}: tensor {name} is missing.")
        if tensors[name].shape != shape:
            raise UserError(f"{folder}: tensor {name} has shape {list(tensors[name].shape)}, config.json asks for {list(shape)}.")
    if unexpected := sorted(tensors.keys() - wanted.keys()):
        raise UserError(f"{folder}: tensor {unexpected[0]} has no place in this architecture ({len(unexpected)} such).")
    decoder.load_state_dict({name: t.float() for name, t in tensors.items()}, assign=True)
    for parameter in decoder.parameters():
        parameter.requires_grad_(True)
    return decoder


class _NoRandomWeights(TorchFunctionMode):
    """Leaves out what `torch.nn.init` does. Without memory it does nothing anyway, but loads torch's compiler for it: 0.7 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return (
            given["tensor"] if getattr(func, "__module__", "") == "torch.nn.init" and "tensor" in given else func(*args, **given)
        )


def stored_dtype(folder: str | Path) -> torch.dtype:
    """The dtype that holds all of a folder's weights as they are kept."""
    found: set[torch.dtype] = set()
    for path in _tensor_files(Path(folder)):
        with _open(path) as file:
            names = {file.get_slice(name).get_dtype(): name for name in file.keys()}  # noqa: SIM118 - the handle is not a mapping
            found |= {file.get_tensor(name).dtype for name in names.values()}
    return functools.reduce(torch.promote_types, found)


def read_special(folder: str | Path) -> SpecialIds:
    """The special ids that a folder's config files name; `generation_config.json` goes before `config.json`."""
    folder = Path(folder)
    page = _read_json(folder / "config.json")
    if (folder / "generation_config.json").is_file():
        page |= {k: v for k, v in _read_json(folder / "generation_config.json").items() if v is not None}
    end = page.get("eos_token_id")
    ends = () if end is None else tuple(end) if isinstance(end, list) else (end,)
    own = (dict(page.get(name) or {}) for name in (_THINKING, _GUIDED))
    return SpecialIds(page.get("bos_token_id"), ends, page.get("pad_token_id"), *own)


def read_config(folder: str | Path) -> DecoderConfig:
    """The shape of the model in a Hugging Face folder.

    Raises:
        UserError: no config.json, or it asks for something that the decoder does not compute.
    """
    folder = Path(folder)
    page = _read_json(folder / "config.json")
    architecture = next(iter(page.get("architectures") or []), _ARCHITECTURES.get(page.get("model_type", ""), "unknown"))
    if architecture not in _ARCHITECTURES.values():
        raise UserError(f"{folder}: architecture {architecture} is not supported; {' and '.join(_ARCHITECTURES.values())} are.")
    qwen = architecture == _ARCHITECTURES["qwen3"]
    for refused, why in _unsupported(page):
        if refused:
            raise UserError(f"{folder}: {why} is not supported; {architecture} is read in its plain shape only.")

    def field(name: str, fallback: Any = None) -> Any:
        value = page.get(name)
        if value is None and fallback is None:
            raise UserError(f"{folder}: config.json has no {name}.")
        return fallback if value is None else value

    width, heads = field("hidden_size"), field("num_attention_heads")
    theta, scaling = _rope(page, folder, default_theta=None if qwen else 10_000.0)
    return DecoderConfig(
        vocab_size=field("vocab_size"),
        width=width,
        layers=field("num_hidden_layers"),
        heads=heads,
        kv_heads=field("num_key_value_heads", None if qwen else heads),
        head_size=field("head_dim", 128 if qwen else width // heads),
        mlp_width=field("intermediate_size"),
        tied=field("tie_word_embeddings", False),
        context=field("max_position_embeddings"),
        qk_norm=qwen,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=field("rms_norm_eps", 1e-6),
    )


def _unsupported(page: dict[str, Any]) -> Iterable[tuple[bool, str]]:
    """What a Qwen3 or Llama config can ask for and the decoder does not do."""
    yield bool(page.get("attention_bias")), "attention_bias (biases in attention)"
    yield bool(page.get("mlp_bias")), "mlp_bias (biases in the feed-forward)"
    # Qwen3 keeps a window in its config that counts only where use_sliding_window switches it on.
    sliding = page.get("use_sliding_window", page.get("model_type") != "qwen3") and page.get("sliding_window") is not None
    yield bool(sliding) or any(kind != "full_attention" for kind in page.get("layer_types") or []), "sliding-window attention"
    yield page.get("hidden_act", "silu") != "silu", f"hidden_act {page.get('hidden_act')}"
    yield page.get("quantization_config") is not None, "quantization_config (quantized weights)"
    yield any(page.get(key) for key in ("num_experts", "num_local_experts")), "a mixture of experts"


def _rope(page: dict[str, Any], folder: Path, default_theta: float | None) -> tuple[float, dict[str, float] | None]:
    """Base and Llama 3 scaling, from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling` (4 and older)."""
    rope = dict(page.get("rope_parameters") or page.get("rope_scaling") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in {"default", "llama3"}:
        raise UserError(f"{folder}: rope type {kind} is not supported; default and llama3 are.")
    if rope.get("partial_rotary_factor", page.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"{folder}: partial_rotary_factor is not supported; all of a head is rotated.")
    theta = rope.get("rope_theta", page.get("rope_theta", default_theta))
    if theta is None:
        raise UserError(f"{folder}: config.json has no rope_theta.")
    if kind == "default":
        return float(theta), None
    if missing := [key for key in _LLAMA3_KEYS if key not in rope]:
        raise UserError(f"{folder}: llama3 rope scaling has no {missing[0]}.")
    return float(theta), {key: float(rope[key]) for key in _LLAMA3_KEYS}


def _to_hugging_face(config: DecoderConfig, dtype: torch.dtype, special: SpecialIds) -> dict[str, Any]:
    """`config.json` for transformers 4 and 5 and vLLM; where these spell a field differently, both spellings."""
    name = str(dtype).removeprefix("torch.")
    model_type = "qwen3" if config.qk_norm else "llama"
    scaling: dict[str, Any] | None = None
    if config.rope_scaling:
        scaling = {"rope_type": "llama3"} | dict(config.rope_scaling)
        # vLLM and transformers type this one as an integer.
        scaling["original_max_position_embeddings"] = int(scaling["original_max_position_embeddings"])
    page = {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_width,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": special.begin,
        "eos_token_id": _one_or_many(special.end),
        "pad_token_id": special.pad,
        "dtype": name,
        "torch_dtype": name,
    }
    return page | ({"use_sliding_window": False, "sliding_window": None} if config.qk_norm else {"mlp_bias": False})


def _generation_config(special: SpecialIds) -> dict[str, Any]:
    """How other tools sample by default: as `engine` does, from the model's own distribution."""
    ids = {"bos_token_id": special.begin, "eos_token_id": _one_or_many(special.end), "pad_token_id": special.pad}
    page = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0} | {k: v for k, v in ids.items() if v is not None}
    own = {_THINKING: dict(special.thinking), _GUIDED: dict(special.guided)}
    return page | {name: value for name, value in own.items() if value}


def _one_or_many(ids: tuple[int, ...]) -> int | list[int] | None:
    return list(ids) if len(ids) > 1 else ids[0] if ids else None


def _write_tensors(tensors: dict[str, Tensor], folder: Path, shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        write_tensors(shards[0], folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(shard, folder / file)
        places |= dict.fromkeys(shard, file)
    _write_json(folder / _INDEX, {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": places})


def write_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Writes a safetensors file that whoever may read its folder may read: the library makes one for its owner alone."""
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(file.parent.stat().st_mode & 0o666)


def _tensor_files(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        files = [folder / name for name in sorted(set(_read_json(folder / _INDEX).get("weight_map", {}).values()))]
    else:
        files = [folder / "model.safetensors"]
    if missing := [file for file in files if not file.is_file()]:
        if any(folder.glob("*.bin")):
            raise UserError(f"{folder}: .bin weights are not supported, they can run code; convert them to safetensors.")
        raise UserError(f"{folder}: {missing[0].name} is missing.")
    return files


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in _tensor_files(folder):
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118 - the handle is not a mapping
                tensor = tensors[name] = file.get_tensor(name)
                if tensor.dtype not in _DTYPES:
                    raise UserError(f"{folder}: tensor {name} is {tensor.dtype}; float32, bfloat16 and float16 are supported.")
    return tensors


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or not safetensors ({error}).") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from None
    if not isinstance(page, dict):
        raise UserError(f"{path} is not a JSON object.")
    return page


def _write_json(path: Path, page: dict[str, Any]) -> None:
    path.write_text(json.dumps(page, indent=2) + "\n", encoding="utf-8")


def _flush_to_disk(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
