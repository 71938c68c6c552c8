"""The model in the box: a folder of the package with the Hugging Face folder `model/`, the card, the measurements that the card
speaks of, and `SUMS`, a checksum of each file, which `xxhsum -c SUMS` reads too. All of it is only ever read."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from tessera.errors import UserError
from tessera.model.checksum import checksum

NAME = "starter"
"""By which it is asked for wherever a model is."""
FOLDER = Path(__file__).parents[1] / NAME
SUMS = "SUMS"
_MAKE = "make one by `tessera reproduce starter`, and give the folder of its run"


def is_meant(path: str | Path) -> bool:
    """Whether a path is its name, and no folder of that name lies in the working directory."""
    return Path(path) == Path(NAME) and not Path(NAME).is_dir()


@functools.cache
def model_folder() -> Path:
    """Its Hugging Face folder, every file of which was compared with its checksum.

    Raises:
        UserError: this package came without it, or a file is missing, damaged or without a checksum.
    """
    if not (FOLDER / SUMS).is_file():
        raise UserError(f"this copy of Tessera has no model in its box; {_MAKE}.")
    if damaged := _damaged(FOLDER):
        raise UserError(f"the model in the box is damaged ({damaged}); install Tessera again, or {_MAKE}.")
    return FOLDER / "model"


def write_sums(folder: Path) -> None:
    """Writes `SUMS` for the files below a folder that is to become the box."""
    lines = (f"{checksum(file)}  {file.relative_to(folder).as_posix()}\n" for file in _files(folder))
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _damaged(folder: Path) -> str:
    """The first file that is not as `SUMS` says, and why; empty: all are."""
    sums: dict[str, str] = {}
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        if (read := re.fullmatch(r"([0-9a-f]{32})  (.+)", line)) is None:
            return f"{SUMS} has a line that is no checksum"
        sums[read[2]] = read[1]
    names = {file.relative_to(folder).as_posix() for file in _files(folder)}
    for name in sorted(sums):
        if name not in names:
            return f"{name} is missing"
        if checksum(folder / name) != sums[name]:
            return f"{name} is not what it was"
    # A file more in the card's folder changes nothing; one beside the weights may.
    return next((f"{name} is not in {SUMS}" for name in sorted(names - sums.keys()) if name.startswith("model/")), "")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != SUMS)
