"""`tessera export`: a model for other programs, as one GGUF file (llama.cpp, Ollama) or as a Hugging Face folder (vLLM,
transformers), in the dtype in which it is stored or in another; or as the box that ships with the package."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from tessera.commands.importing import copies, refuse_occupied
from tessera.errors import UserError
from tessera.model import gguf, starter, weights
from tessera.model.decoder import Decoder
from tessera.report.card import CARD, read_chain, sample_files, write_card
from tessera.report.measured import SCORES
from tessera.report.record import read_json
from tessera.run import write_text, writing
from tessera.tokens.ggml import tokenizer_fields
from tessera.tokens.vocabulary import Vocabulary

_TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_DTYPES = {"gguf": gguf.DTYPES, "hf": tuple(_TORCH), "box": ("bf16",)}
_MOST_BOX_BYTES = 60_000_000
"""Of a box: everybody who installs Tessera loads it down."""


def export_model(model: str, to: str, out: str, dtype: str | None = None) -> None:
    """Writes a model and says what it wrote.

    Args:
        model: a run's folder or a Hugging Face folder.
        to: `gguf`, `hf` or, of the folder of a chain (docs/starter.md), `box`.
        out: the file or folder to write; it must not exist, but may be an empty folder for `hf` and `box`.
        dtype: f32, f16, bf16, or q8_0 for gguf; None: as stored, and bf16 for a box.

    Raises:
        UserError: no such format, dtype or model; one that the format cannot hold, for a box one that no chain made or that is
            too large; an `out` that exists or cannot be written.
    """
    if to not in _DTYPES:
        raise UserError(f"--to takes {', '.join(_DTYPES)}, not {to!r}.")
    if dtype is not None and dtype not in _DTYPES[to]:
        raise UserError(f"--dtype takes {', '.join(_DTYPES[to])} with --to {to}, not {dtype!r}.")
    target = Path(out)
    if to != "gguf":
        refuse_occupied(target)
    elif target.exists():
        raise UserError(f"{out} exists already; give a file that is new.")
    folder = weights.resolve_model(model)
    decoder = weights.load(folder)
    vocabulary = Vocabulary.load(folder, decoder.config.vocab_size)
    if dtype is None:
        stored = weights.stored_dtype(folder)
        dtype = "bf16" if to == "box" else next(name for name, wanted in _TORCH.items() if wanted == stored)
    _check_range(decoder, dtype)
    if to == "box":
        read_chain(Path(model))
        if decoder.config.parameters * 2 > _MOST_BOX_BYTES:
            most = _MOST_BOX_BYTES / 2e6
            raise UserError(f"{model} has {decoder.config.parameters / 1e6:,.0f}M parameters; a box has room for {most:.0f}M.")
    notes: list[str] = []
    with writing(target):
        if to == "gguf":
            notes = _write_gguf(decoder, vocabulary, folder, target, dtype)
        else:
            with _aside(target) if to == "box" else contextlib.nullcontext(target) as place:
                model_folder = place / "model" if to == "box" else place
                weights.save(decoder, model_folder, _TORCH[dtype], weights.read_special(folder), copies(vocabulary, folder))
                if to == "box":
                    _complete_box(Path(model), place)
    bytes_written = sum(file.stat().st_size for file in [target, *target.rglob("*")] if file.is_file())
    print(f"{out}: {decoder.config.parameters:,} parameters ({dtype}), {bytes_written / 1e6:,.1f} MB")
    for note in notes:
        print(f"note: {note}")


@contextlib.contextmanager
def _aside(box: Path) -> Iterator[Path]:
    """A folder to make a box in, which takes its place in the end: one that was broken off would look whole."""
    box = box.absolute()
    place = box.with_name(f".{box.name}.{os.getpid()}")
    try:
        yield place
        place.replace(box)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _complete_box(chain: Path, box: Path) -> None:
    """Puts beside the model its card, the measurements that the card speaks of, what samples made, and the checksums."""
    shutil.copyfile(write_card(chain), box / CARD)
    rows = read_json(chain / SCORES) or []
    # Where the model lay when it was measured is this machine's own.
    kept = [{key: value for key, value in row.items() if key != "model"} for row in rows]
    write_text(box / SCORES, json.dumps(kept, indent=1) + "\n")
    for file in sample_files(chain):
        (box / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(chain / file, box / file)
    starter.write_sums(box)


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
    if vocabulary.blocks:
        media = ", ".join(f"{block.kind} ({block.size:,})" for block in vocabulary.blocks)
        notes.append(
            f"a GGUF file holds text only: this model's ids for {media} are left out, and it neither makes nor reads them there."
        )
    if padding := vocabulary.base_size - len(fields["tokenizer.ggml.tokens"]):
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
