"""`tessera export`: a model for other programs, as one GGUF file (llama.cpp, Ollama) or as a Hugging Face folder (vLLM,
transformers), in the dtype in which it is stored or in another."""

from __future__ import annotations

from pathlib import Path

import torch

from tessera.commands.importing import copies, refuse_occupied
from tessera.errors import UserError
from tessera.model import gguf, weights
from tessera.model.decoder import Decoder
from tessera.run import writing
from tessera.tokens.ggml import tokenizer_fields
from tessera.tokens.vocabulary import Vocabulary

_TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_DTYPES = {"gguf": gguf.DTYPES, "hf": tuple(_TORCH)}


def export_model(model: str, to: str, out: str, dtype: str | None = None) -> None:
    """Writes a model and says what it wrote.

    Args:
        model: a run's folder or a Hugging Face folder.
        to: `gguf` or `hf`.
        out: the file or folder to write; it must not exist, but may be an empty folder for `hf`.
        dtype: f32, f16, bf16, or q8_0 for gguf; None: as stored.

    Raises:
        UserError: no such format, dtype or model; one that the format cannot hold; an `out` that exists or cannot be written.
    """
    if to not in _DTYPES:
        raise UserError(f"--to takes gguf or hf, not {to!r}.")
    if dtype is not None and dtype not in _DTYPES[to]:
        raise UserError(f"--dtype takes {', '.join(_DTYPES[to])} with --to {to}, not {dtype!r}.")
    target = Path(out)
    if to == "hf":
        refuse_occupied(target)
    elif target.exists():
        raise UserError(f"{out} exists already; give a file that is new.")
    folder = weights.resolve_model(model)
    decoder = weights.load(folder)
    vocabulary = Vocabulary.load(folder, decoder.config.vocab_size)
    if dtype is None:
        stored = weights.stored_dtype(folder)
        dtype = next(name for name, wanted in _TORCH.items() if wanted == stored)
    _check_range(decoder, dtype)
    with writing(target):
        if to == "hf":
            weights.save(decoder, target, _TORCH[dtype], weights.read_special(folder), copies(vocabulary, folder))
            notes = []
        else:
            notes = _write_gguf(decoder, vocabulary, folder, target, dtype)
    bytes_written = sum(file.stat().st_size for file in (target.iterdir() if target.is_dir() else [target]))
    millions = decoder.config.parameters / 1e6
    print(f"{out}: {millions:,.1f}M parameters ({dtype}), {bytes_written / 1e6:,.1f} MB")
    for note in notes:
        print(f"note: {note}")


def _write_gguf(decoder: Decoder, vocabulary: Vocabulary, folder: Path, target: Path, dtype: str) -> list[str]:
    """Writes the file; returns what a person should know about it."""
    special = weights.read_special(folder)
    fields = {"general.name": weights.home(folder).name}
    fields |= tokenizer_fields(vocabulary, special.begin, special.end)
    target.parent.mkdir(parents=True, exist_ok=True)
    coarser = gguf.write(decoder, target, dtype, fields)
    notes = []
    if coarser:
        notes.append(f"{coarser} matrices are f16; q8_0 needs rows of a multiple of 32.")
    if padding := vocabulary.size - len(fields["tokenizer.ggml.tokens"]):
        notes.append(f"{padding:,} rows without a token are left out.")
    if "tokenizer.chat_template" not in fields:
        notes.append("no chat template: the model was not tuned for dialogue and continues text.")
    return notes


def _check_range(decoder: Decoder, dtype: str) -> None:
    """Refuses a weight that f16, whose largest number is 65504, would make infinite."""
    if dtype in ("f16", "q8_0"):
        for name, tensor in decoder.state_dict().items():
            if tensor.abs().max() > torch.finfo(torch.float16).max:
                raise UserError(f"{name} has weights that {dtype} cannot hold; use --dtype bf16 or f32.")
