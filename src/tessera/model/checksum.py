"""A checksum of a file: fast, and enough against accidents, not against somebody who means harm."""

from __future__ import annotations

from pathlib import Path

import xxhash

_PIECE = 1 << 20


def checksum(file: Path) -> str:
    """xxh3 with 128 bits, in hex, of a file that need not fit into memory."""
    digest = xxhash.xxh3_128()
    with open(file, "rb") as opened:
        while piece := opened.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
