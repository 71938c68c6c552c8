"""`tessera tokenizer`: a vocabulary or a quantizer without a model around it, trained on sources or looked at."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tessera import device as devices
from tessera import recipe as recipes
from tessera.commands import terminal
from tessera.commands.live import LiveLine
from tessera.data import media
from tessera.data.corpus import Split, gather
from tessera.data.films import fitted_film
from tessera.data.picture_tasks import config_of
from tessera.data.sound_tasks import sound_config_of
from tessera.data.sources import Skipped, documents
from tessera.device import cache_folder
from tessera.errors import UserError
from tessera.model import weights
from tessera.run import write_bytes, writing
from tessera.tokens.beside import Coder, find_tokenizer
from tessera.tokens.document import Kind
from tessera.tokens.published import PREFIX, Published, find_published
from tessera.tokens.vocabulary import Vocabulary
from tessera.train.quantizer import STEPS, in_words
from tessera.train.quantizer import train_quantizer as fit_quantizer

MEDIA: dict[str, Kind] = {"pictures": "image", "films": "video", "sounds": "audio"}
"""What a quantizer can be trained of, by the words of `--of`."""


def train(sources: Sequence[str], size: int, pretokenizer: str, out: str) -> None:
    """Trains a vocabulary on every document of the sources and writes its folder.

    Args:
        sources: as in a recipe, `files:mydocs/`.
        size: text entries, the 256 bytes included.
        pretokenizer: `gpt-2` or `qwen2`.
        out: a folder that is new or empty.

    Raises:
        UserError: a source that yields nothing, a size below 257, a folder that is occupied or cannot be written.
    """
    folder = _empty(out)
    begin = time.perf_counter()
    skipped: list[Skipped] = []
    text_bytes = 0

    def texts() -> Iterator[str]:
        nonlocal text_bytes
        for uri in sources:
            for document in documents(uri, skipped, lambda line: print(line, file=sys.stderr)):
                text_bytes += len(document.text.encode())
                yield document.text

    vocabulary = Vocabulary.train(texts(), size, pretokenizer)
    with writing(folder):
        vocabulary.save(folder)
    seconds = time.perf_counter() - begin
    left_out = f", {len(skipped):,} files or rows skipped" if skipped else ""
    print(f"{out}: {vocabulary.text_size:,} entries from {text_bytes / 1e6:,.1f} MB in {seconds:.1f} s{left_out}")


def train_quantizer(sources: Sequence[str], of: str, settings: Sequence[str], out: str) -> None:
    """Trains a quantizer on the pictures, films or recordings of sources and writes its folder; `metrics.jsonl` has its marks.

    Args:
        of: a key of `MEDIA`.
        settings: `key=value` of `data.films`, or `data.sounds`, in a recipe; those of its `quantizer` by their own names alone.
        out: a folder that is new or empty.

    Raises:
        UserError: a source that yields nothing, settings that are none, a folder that is occupied or cannot be written.
    """
    folder = _empty(out)
    begin = time.perf_counter()
    part = "sounds" if of == "sounds" else "films"
    own = recipes.SoundQuantizer.model_fields if of == "sounds" else recipes.Quantizer.model_fields
    overrides = [f"data.{part}.{'quantizer.' if s.partition('=')[0] in own else ''}{s}" for s in settings]
    tree = {"name": "quantizer", "summary": "", "data": {"sources": list(sources), part: {}, "pictures": {}}}
    data = recipes.assemble(tree, overrides, "--set").data
    chosen = data.sounds if of == "sounds" else data.films
    assert chosen is not None and data.pictures is not None
    # Of an animated GIF the first frame is a picture where films are not asked for.
    wanted: dict[str, Any] = {name: None for name in MEDIA if name != of}
    if isinstance(chosen, recipes.Films):
        # Pictures are fitted as frames are.
        wanted |= {"pictures": data.pictures.model_copy(update={"most_pixels": chosen.most_pixels})} if of == "pictures" else {}
    corpus = gather(data.model_copy(update=wanted), cache_folder(), lambda line: print(line, file=sys.stderr))
    machine = devices.detect("float32")

    def signals(split: Split) -> Iterator[np.ndarray]:
        if of == "pictures":
            assert isinstance(chosen, recipes.Films)
            for picture in media.pictures(corpus, split):
                yield fitted_film(picture[None], chosen.most_pixels, chosen.quantizer.stride)[0]
        else:
            yield from (media.films if of == "films" else media.sounds)(corpus, split)

    if not getattr(corpus, of):
        raise UserError(f"there are no {of} in {', '.join(sources)}.")
    events: list[dict[str, Any]] = []
    live = LiveLine(chosen.quantizer.steps or STEPS)
    observers = (live, events.append)
    if isinstance(chosen, recipes.Sounds):
        config = sound_config_of(chosen.quantizer)
    else:
        config = config_of("video" if of == "films" else "image", chosen.quantizer)
    per_second = 0.0 if of == "pictures" else chosen.per_second
    try:
        quantizer = fit_quantizer(
            config, chosen.quantizer, signals("train"), signals("validation"), machine, data.seed, per_second, observers
        )
    finally:
        live.close()
    marks = next(event for event in reversed(events) if event["event"] == "exam")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / f"{quantizer.kind}_tokenizer.json", json.dumps(quantizer.to_json()).encode())
        write_bytes(folder / "metrics.jsonl", "".join(f"{json.dumps(event)}\n" for event in events).encode())
    print(f"{out}: {quantizer.size:,} ids; {in_words(marks)}; {time.perf_counter() - begin:.1f} s")


def inspect(model: str, text: str | None, as_json: bool) -> None:
    """Prints how many ids of which kind a vocabulary has, and how it cuts a text.

    Args:
        model: a folder with a tokenizer: of a run, of a Hugging Face model, or from `tokenizer train`; or
            `published:FAMILY:PLACE`.
        text: to be cut; `-` reads standard input; None: none.

    Raises:
        UserError: no tokenizer in the folder.
    """
    if model.startswith(PREFIX):
        _inspect_coder(find_published(model), as_json)
        return
    alone = [kind for kind in MEDIA.values() if (Path(model) / f"{kind}_tokenizer.json").is_file()]
    if alone and not (Path(model) / "tokenizer.json").is_file():
        _inspect_coder(find_tokenizer(model, alone[0]), as_json)
        return
    vocabulary = Vocabulary.load(_folder(model))
    facts: dict[str, object] = {
        "text_entries": vocabulary.text_size,
        "control_tokens": len(vocabulary.control_ids),
        "ids": vocabulary.size,
        "longest_entry_bytes": int(vocabulary.token_bytes.max()),
        "blocks": {block.name: block.size for block in vocabulary.blocks},
        "hash": vocabulary.hash,
    }
    ids: list[int] = []
    if text is not None:
        ids = vocabulary.encode_text(terminal.read_standard_input() if text == "-" else text)
        text_bytes = int(vocabulary.token_bytes[ids].sum()) if ids else 0
        facts |= {"tokens": len(ids), "bytes": text_bytes, "bytes_per_token": round(text_bytes / max(1, len(ids)), 3)}
    pieces = [_shown(vocabulary.bytes_of([i])) for i in ids]
    if as_json:
        print(json.dumps(facts | {"token_ids": ids, "pieces": pieces}, ensure_ascii=False))
        return
    for name, value in facts.items():
        if value != {}:
            print(f"{name.replace('_', ' '):<20} {f'{value:,}' if isinstance(value, int) else value}")
    print(" ".join(pieces))


def _inspect_coder(quantizer: Coder, as_json: bool) -> None:
    """What a quantizer that lies by itself is made of, or a published one."""
    if isinstance(quantizer, Published):
        own = {**asdict(quantizer.config), "source": quantizer.source, "licence": quantizer.licence or "not named"}
    else:
        own = {"weights": sum(p.numel() for p in quantizer.network.parameters()), **quantizer.config.facts}
    facts = {
        "kind": quantizer.kind, "ids": quantizer.size, "expects": quantizer.expects, "shape": list(quantizer.shape),
        "ids_of_that_shape": math.prod(quantizer.grid(quantizer.shape)),
        "ids_for_a_second" if quantizer.kind == "audio" else "ids_for_a_pixel": quantizer.rate,
        **own, "hash": quantizer.fingerprint,
    }  # fmt: skip
    if as_json:
        print(json.dumps(facts))
        return
    if isinstance(quantizer, Published):
        print(quantizer.notice)
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<20} {f'{value:,}' if isinstance(value, int) else value}")


def _empty(out: str) -> Path:
    """A folder that is new or empty."""
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{out} exists already; give a folder that is new or empty.")
    return folder


def _shown(piece: bytes) -> str:
    """Quoted, so that spaces and line ends are seen; as bytes where a character is cut in two."""
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return repr(piece)


def _folder(model: str) -> Path:
    """Where the tokenizer of a run or model is; a run has one before it has a model."""
    path = Path(model)
    for folder in (path, path / "tokenizer"):
        if (folder / "tokenizer.json").is_file():
            return folder
    return weights.resolve_model(path)
