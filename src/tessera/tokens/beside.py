"""The tokenizers of media that lie beside a model, or that a recipe points to: each one JSON file, and where its weights are too
large for one, `KIND_tokenizer.safetensors` beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tessera.errors import UserError
from tessera.tokens.document import Kind
from tessera.tokens.media import MediaTokenizer
from tessera.tokens.palette import Palette
from tessera.tokens.published import PREFIX, Published, find_published
from tessera.tokens.quantizer import Quantizer

Coder = Quantizer | Published
"""What cuts a signal into steps or patches: a tokenizer of films or sound."""


def media_file(kind: Kind) -> str:
    """Of the tokenizer of a medium, beside the weights."""
    return f"{kind}_tokenizer.json"


def media_tokenizer(page: dict[str, Any], folder: Path | None = None) -> MediaTokenizer:
    """The tokenizer that a JSON page from `to_json` describes; ValueError where there is no such one.

    Args:
        folder: where the page lies, for weights beside it.
    """
    if page.get("name") == Palette.name:
        return Palette.from_json(page)
    if page.get("name") == Quantizer.name:
        return Quantizer.from_json(page)
    if page.get("name") == Published.name and folder is not None:
        return Published.from_json(page, folder / _weights_file(page["layout"]["kind"]))
    raise ValueError(f"a media tokenizer of the kind {page.get('name')!r}, which this version does not know")


def read_media(folder: Path, fingerprints: Mapping[Kind, str]) -> dict[str, MediaTokenizer]:
    """The tokenizers that lie in a folder, of these media.

    Raises:
        UserError: one is damaged, or is not the one with this fingerprint.
    """
    found: dict[str, MediaTokenizer] = {}
    for kind, fingerprint in fingerprints.items():
        path = folder / media_file(kind)
        if not path.is_file():
            continue
        tokenizer = _read(path)
        if tokenizer.fingerprint != fingerprint:
            raise UserError(f"{path} and vocabulary.json do not belong together; one of them was changed.")
        found[kind] = tokenizer
    return found


def put_weights(folder: Path, media: Mapping[str, MediaTokenizer]) -> None:
    """Writes the weights that the pages of these tokenizers do not hold."""
    for tokenizer in media.values():
        if isinstance(tokenizer, Published):
            tokenizer.put(folder / _weights_file(tokenizer.kind))


def find_tokenizer(trained: str | Path, kind: Kind) -> Coder:
    """The tokenizer for a medium that a recipe's `trained` names: `published:...`, or the folder of `tessera tokenizer train`, of
    a run or of a model, whose own is taken.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if str(trained).startswith(PREFIX):
        return find_published(str(trained), kind)
    for place in (Path(trained), Path(trained) / "model", Path(trained) / "tokenizer"):
        path = place / media_file(kind)
        if not path.is_file():
            continue
        found = _read(path)
        if not isinstance(found, Quantizer | Published):
            raise UserError(f"{path} is a {found.name}, not a quantizer; name a folder of `tessera tokenizer train`.")
        return found
    raise UserError(
        f"{trained} has no quantizer for {kind} ({media_file(kind)}); train one by `tessera tokenizer train`, or name a "
        "published one (docs/published.md)."
    )


def _read(path: Path) -> MediaTokenizer:
    try:
        return media_tokenizer(json.loads(path.read_text(encoding="utf-8")), path.parent)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error!r}.") from None


def _weights_file(kind: Kind) -> str:
    return f"{kind}_tokenizer.safetensors"
