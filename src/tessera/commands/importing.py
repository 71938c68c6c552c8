"""`tessera import`: someone else's Qwen3 or Llama-shaped model becomes a folder that every Tessera command opens."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from tessera.engine.moderation import HEAD
from tessera.errors import UserError
from tessera.model import weights
from tessera.model.decoder import Decoder
from tessera.posttrain.preference import REWARD
from tessera.run import writing
from tessera.tokens.vocabulary import Vocabulary

_FILES = ["*.json", "*.safetensors", "*.jinja", "LICENSE*"]
_PROBE = "Everything is next-token prediction.\n"


def import_model(source: str, target: str) -> None:
    """Reads a model and writes it anew, in the dtype in which it is stored, with its tokenizer and `vocabulary.json`.

    Both folders are then run on the same ids and must agree bit for bit.

    Args:
        source: a Hugging Face folder, or `organisation/name` on the Hugging Face hub.
        target: a folder that does not exist yet or is empty.

    Raises:
        UserError: no such model, one that is not supported (see `model.weights`), a target that is occupied or cannot be written.
    """
    folder = Path(target)
    refuse_occupied(folder)
    origin = _find(source)
    decoder = weights.load(origin)
    vocabulary = Vocabulary.load(origin, decoder.config.vocab_size)
    dtype = weights.stored_dtype(origin)
    before = _probe(decoder, vocabulary)
    if not torch.isfinite(before).all():
        raise UserError(f"{source} computes numbers that are not finite; its weights are damaged.")
    with writing(folder):
        weights.save(decoder, folder, dtype, weights.read_special(origin), copies(vocabulary, origin))
    if not torch.equal(before, _probe(weights.load(folder), Vocabulary.load(folder))):
        shutil.rmtree(folder)
        raise UserError(f"the copy in {target} did not compute what {source} does and was removed; is the disk sound?")
    config = decoder.config
    shape = f"{config.layers} layers, width {config.width}, {config.vocab_size:,} ids, context {config.context:,}"
    print(f"{target}: {config.parameters:,} parameters ({str(dtype).removeprefix('torch.')}), {shape}")


def refuse_occupied(folder: Path) -> None:
    """Raises UserError where something stands already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; give a folder that is new or empty.")


def copies(vocabulary: Vocabulary, origin: Path) -> Callable[[Path], None]:
    """What writes the files beside the weights of `origin` into another folder: tokenizer, settings of generation, licence, and
    what makes it a moderation or a reward model."""

    def write(aside: Path) -> None:
        vocabulary.save(aside)
        # The author's choice of temperature and the like goes before ours.
        for path in (*(origin / name for name in ("generation_config.json", HEAD, REWARD)), *origin.glob("LICENSE*")):
            if path.is_file():
                shutil.copyfile(path, aside / path.name)

    return write


def _probe(decoder: Decoder, vocabulary: Vocabulary) -> torch.Tensor:
    """Logits (1, T, V) of a fixed sentence."""
    with torch.inference_mode():
        return decoder.logits(decoder(torch.tensor([vocabulary.encode_text(_PROBE)])))


def _find(source: str) -> Path:
    """The folder of a model, fetched from the hub if it is no folder here."""
    if Path(source).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return weights.resolve_model(source)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(source, allow_patterns=_FILES))
    except Exception as error:  # the hub's client raises its own, requests', httpx's and OSError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(f"{source} is no folder here and could not be fetched from the Hugging Face hub ({reason}).") from None
