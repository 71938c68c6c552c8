"""`tessera tokenizer`: a vocabulary without a model around it, trained on sources or looked at."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tessera.data.sources import Skipped, documents
from tessera.errors import UserError
from tessera.model import weights
from tessera.run import writing
from tessera.tokens.vocabulary import Vocabulary


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
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{out} exists already; give a folder that is new or empty.")
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


def inspect(model: str, text: str | None, as_json: bool) -> None:
    """Prints how many ids of which kind a vocabulary has, and how it cuts a text.

    Args:
        model: a folder with a tokenizer: of a run, of a Hugging Face model, or from `tokenizer train`.
        text: to be cut; `-` reads standard input; None: none.

    Raises:
        UserError: no tokenizer in the folder.
    """
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
        ids = vocabulary.encode_text(sys.stdin.read() if text == "-" else text)
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
