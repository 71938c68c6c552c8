"""Folders of results that are written once and found again by the hash of their content.

A folder is filled under a name of its own and renamed when it is complete, so that a crash, a full disk or a second process
never leaves one that is half written under the name that is looked for. `manifest.json` lists the size and digest of each file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tessera.errors import UserError, disk_full

MANIFEST = "manifest.json"
_ASIDE = ".aside-"
# A folder left by a process that was killed is removed when nothing has been written into it for this long.
_ABANDONED_SECONDS = 24 * 3600


@contextlib.contextmanager
def aside(cache: Path) -> Iterator[Path]:
    """An empty folder in `cache` to write into, gone at the end unless `publish` moved it.

    Raises:
        UserError: the disk is full, or the cache cannot be written.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache)
        folder = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=cache))
    except OSError as error:
        raise UserError(
            f"the data cache {cache} cannot be written ({error.strerror}); set TESSERA_CACHE to a folder that can."
        ) from error
    try:
        yield folder
    except OSError as error:
        if not disk_full(error):
            raise
        raise UserError(
            f"the disk is full: the data cache {cache} needs more room; free some, or set TESSERA_CACHE to a larger disk."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path, manifest: dict[str, Any]) -> None:
    """Moves a finished folder to its name; a sound one that is there already is kept, since it has the same content.

    Args:
        folder: from `aside`.
        manifest: what is to be known about the content; sizes and digests of the files are added.
    """
    files = {}
    for path in sorted(folder.iterdir()):
        digest = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
            os.fsync(file.fileno())
        files[path.name] = {"bytes": path.stat().st_size, "blake2b": digest.hexdigest()}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({**manifest, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    if read_manifest(target) is not None:
        return
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        # Another process was faster, or what stands there is damaged.
        if read_manifest(target) is None:
            target.rename(folder.with_name(folder.name + "-damaged"))
            folder.rename(target)
            shutil.rmtree(folder.with_name(folder.name + "-damaged"), ignore_errors=True)


def read_manifest(folder: Path, checksums: bool = False) -> dict[str, Any] | None:
    """The manifest of a published folder; None where it is missing or a file's size (or digest) is not what was written."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            if (folder / name).stat().st_size != expected["bytes"]:
                return None
            if checksums:
                with (folder / name).open("rb") as file:
                    if hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest() != expected["blake2b"]:
                        return None
    except (OSError, ValueError, KeyError):
        return None
    return manifest


def _remove_abandoned(cache: Path) -> None:
    for folder in cache.glob(_ASIDE + "*"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - newest > _ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
