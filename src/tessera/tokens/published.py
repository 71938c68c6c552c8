"""Tokenizers that others trained and published, behind the interface of our own (`media.MediaTokenizer`).

`published:FAMILY:PLACE` names one: PLACE is a folder with `config.json` and `model.safetensors` as `save_pretrained` writes them,
or `organisation/name` on the Hugging Face hub. Only classes of the installed transformers are run, never code that comes with the
weights. Configuration and weights lie in the model's folder too, so that it needs nothing else; they are opened when the first
signal is encoded or decoded. A code of book b is the id b x codes + code, so that each book has ids of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tessera.errors import UserError
from tessera.tokens.codecs import CODECS, Family, Layout, configuration, open_network
from tessera.tokens.document import Kind
from tessera.tokens.emu3 import EMU3
from tessera.tokens.media import Steps, StreamingDecoder
from tessera.tokens.quantizer import FULL_SCALE, as_frames, as_pixels, as_sound

PREFIX = "published:"
FAMILIES: dict[str, Family] = {**CODECS, "emu3": EMU3}
BOOKS = 8
"""Taken where the place names no number and there are more: Moshi speaks in so many of Mimi's 32."""
_FILES = ["config.json", "model.safetensors", "README.md", "LICENSE*"]
_PERMISSIVE = frozenset({
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "zlib", "unlicense", "cc0-1.0", "cc-by-2.0", "cc-by-3.0",
    "cc-by-4.0",
})  # fmt: skip
"""Names, as the hub writes them, of licences that allow any use; CC-BY asks to be named."""


@dataclass(frozen=True, eq=False)
class Published:
    """A published tokenizer; its network is opened when it is first needed.

    Args:
        family: a key of FAMILIES.
        layout: how it cuts a signal, with the books that are taken.
        facts: its `config.json`.
        weights: a safetensors file.
        digest: hex SHA-256 of that file.
        source: where it was found, in words.
        licence: of its weights, as the card beside them names it; empty: it names none.
        shape: of most signals that it is used for.
    """

    family: str
    layout: Layout
    facts: dict[str, Any] = field(repr=False)
    weights: Path
    digest: str
    source: str
    licence: str
    shape: tuple[int, ...]

    name = "published"

    @classmethod
    def from_json(cls, page: dict[str, Any], weights: Path) -> Published:
        """The way back from `to_json`; ValueError, KeyError or TypeError where it is damaged.

        Args:
            weights: the file that lies beside the page.
        """
        if page["family"] not in FAMILIES:
            raise ValueError(f"a published tokenizer of the family {page['family']!r}, which this version does not know")
        return cls(
            page["family"], Layout(**page["layout"]), page["config"], weights, page["weights"], page["source"], page["licence"],
            tuple(map(int, page["shape"])),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "family": self.family, "source": self.source, "licence": self.licence,
            "layout": asdict(self.layout), "shape": list(self.shape), "weights": self.digest, "config": self.facts,
        }  # fmt: skip

    @property
    def config(self) -> Layout:
        """How it cuts a signal."""
        return self.layout

    @property
    def kind(self) -> Kind:
        return self.layout.kind

    @property
    def size(self) -> int:
        return self.layout.size

    @property
    def per_second(self) -> float:
        """Samples in a second, or frames of most films that it is used for."""
        return self.layout.per_second

    @property
    def expects(self) -> str:
        if self.kind == "audio":
            return f"sound, (samples,) int16 at {self.per_second:g} in a second"
        s, t = self.layout.stride, self.layout.time_stride
        return f"films, (k x {t} + 1 frames, height, width, 3) uint8 with sides that are multiples of {s}"

    @property
    def stride(self) -> int:
        return self.layout.stride

    @property
    def rate(self) -> float:
        """Ids for a second of sound, or for a pixel of a long film's frame."""
        if self.kind != "audio":
            return 1 / (self.layout.stride**2 * self.layout.time_stride)
        return self.layout.books * self.per_second / self.layout.step

    @cached_property
    def fingerprint(self) -> str:
        head = [self.name, self.family, asdict(self.layout), self.facts, self.digest]
        return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()

    @property
    def notice(self) -> str:
        """What it is and whose terms it is under, in a line."""
        layout = self.layout
        if self.kind == "audio":
            cut = f"{layout.books} books of {layout.codes:,} ids, {self.rate:g} ids for a second"
        else:
            cut = f"{layout.codes:,} ids, one for {layout.stride} x {layout.stride} pixels of {layout.time_stride} frames"
        what = f"{self.family} from {self.source}: {cut}"
        if not self.licence:
            terms = "no licence is named beside its weights; find out which it is before you pass on what is made with them"
        elif self.licence.lower() in _PERMISSIVE:
            terms = f"licence of its weights: {self.licence}"
        else:
            terms = (
                f"its weights are under {self.licence}, which is not a permissive licence; it may forbid what you have in mind"
            )
        return f"{what}; {terms}"

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a signal's ids; UserError as `media.grid_of`."""
        return self.layout.grid(shape)

    def encode(self, signal: np.ndarray) -> np.ndarray:
        """(T,) int16 -> (T', books) int64, or (T, H, W, 3) uint8 -> (T', h, w)."""
        film = self.kind == "video"
        ndim, dtype = (4, np.uint8) if film else (1, np.int16)
        if signal.ndim != ndim or signal.dtype != dtype or (film and signal.shape[-1] != 3):
            raise UserError(f"{self.family} expects {self.expects}, not {signal.shape} {signal.dtype}.")
        # Documents of one recording follow each other; the last one is remembered by being the very same array.
        if not (self._last and self._last[0] is signal):
            grid = self.grid(signal.shape[:3])
            floats = as_frames(signal[None]) if film else self._sound(signal, grid[0])
            with torch.inference_mode():
                codes = FAMILIES[self.family].encode(self._network, floats, self.layout.books)
            self._last[:] = [signal, codes.numpy().astype(np.int64) + self._first_of_book]
        return self._last[1]

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """(T', books) ids -> (T,) int16, or (T', h, w) -> (T, H, W, 3) uint8."""
        array, film = np.asarray(ids, np.int64), self.kind == "video"
        if array.ndim != 2 + film or not array.size or (not film and array.shape[1] != self.layout.books):
            raise UserError(f"ids of {self.expects} have another shape than {array.shape}.")
        codes = array - self._first_of_book
        if not 0 <= codes.min() <= codes.max() < self.layout.codes:
            raise UserError(f"{self.family} has {self.layout.codes} ids in each book, and these lie outside of theirs.")
        with torch.inference_mode():
            made = FAMILIES[self.family].decode(self._network, torch.from_numpy(codes))
        if film:
            return as_pixels(made)
        samples = np.zeros(len(array) * self.layout.step, np.int16)
        # Where a stride is odd, DAC gives a few samples less than it was given.
        rounded = (made.numpy() * FULL_SCALE).round().clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)[: len(samples)]
        samples[: len(rounded)] = rounded
        return samples

    def stream(self, shape: tuple[int, ...]) -> StreamingDecoder:
        """Gives the samples that no later id changes, or whole frames."""
        grid = self.grid(shape)
        ahead = grid[0] if self.layout.ahead < 0 else self.layout.ahead
        return Steps(self.decode, self.layout, grid, ahead * self.layout.step)

    def put(self, path: Path) -> None:
        """Writes the weights to a file beside the model: as a link to the same bytes where that is possible, else as a copy."""
        if path.exists() and path.samefile(self.weights):
            return
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            try:
                os.link(self.weights.resolve(), aside)
            except OSError:  # another disk, or one without links
                shutil.copyfile(self.weights, aside)
            aside.replace(path)
        except FileNotFoundError:
            raise UserError(self._gone) from None
        finally:
            aside.unlink(missing_ok=True)

    @cached_property
    def _network(self) -> Any:
        if not self.weights.is_file():
            raise UserError(self._gone)
        if _digest(self.weights) != self.digest:
            raise UserError(f"{self.weights} is not what the model was trained with; it was changed or damaged.")
        try:
            tensors = load_file(self.weights)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.weights} is damaged: {error}.") from None
        return open_network(FAMILIES[self.family], self.facts, tensors)

    def _sound(self, signal: np.ndarray, steps: int) -> Tensor:
        """(1, 1, T), with silence behind it to so many steps."""
        return F.pad(as_sound(signal), (0, steps * self.layout.step - len(signal)))[None, None]

    @property
    def _gone(self) -> str:
        return f"the weights of {self.family} do not lie beside the model ({self.weights}); put those of {self.source} there."

    @cached_property
    def _first_of_book(self) -> np.ndarray:
        """(books,) of sound, 0 of films."""
        return np.arange(self.layout.books) * self.layout.codes if self.kind == "audio" else np.zeros(1, np.int64)

    @cached_property
    def _last(self) -> list[np.ndarray]:
        return []


def find_published(spec: str, kind: Kind | None = None) -> Published:
    """The tokenizer that `published:FAMILY:PLACE` or `published:FAMILY:PLACE?books=N` names.

    Args:
        kind: the medium that it has to be of; None: any.

    Raises:
        UserError: no such family, or one of another medium; no such place, or it holds something else; more books than there are.
    """
    name, place, wanted = _parts(spec)
    family = FAMILIES[name]
    if kind is not None and family.kind != kind:
        raise UserError(f"{name} is a tokenizer for {family.kind}, not for {kind}.")
    folder = _folder(place)
    facts = _facts(folder, name, family.types)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(
            f"{place} has no model.safetensors; weights of another form are turned into it by "
            f"`{family.network}.from_pretrained(...).save_pretrained(FOLDER)`."
        )
    whole = family.layout(configuration(family, facts))
    books = min(BOOKS, whole.books) if wanted is None else wanted
    if not 1 <= books <= whole.books:
        raise UserError(f"{place} has {whole.books} books, so ?books= takes 1 to {whole.books}, not {books}.")
    layout = Layout(**{**asdict(whole), "books": books})
    # A second of sound or a still, until it is known what there is.
    shape = (round(layout.per_second),) if family.kind == "audio" else (1, 256, 256)
    return Published(name, layout, facts, weights, _digest(weights), place, _licence(folder), shape)


def _parts(spec: str) -> tuple[str, str, int | None]:
    """Family, place, and number of books."""
    name, _, rest = spec.removeprefix(PREFIX).partition(":")
    place, _, query = rest.partition("?")
    if name not in FAMILIES or not place:
        raise UserError(
            f"{spec} names no published tokenizer; it reads {PREFIX}FAMILY:FOLDER or {PREFIX}FAMILY:ORGANISATION/NAME, and "
            f"FAMILY is one of {', '.join(FAMILIES)}."
        )
    if not query:
        return name, place, None
    key, _, number = query.partition("=")
    if key != "books" or not (number.isascii() and number.isdigit()):
        raise UserError(f"{spec} ends in ?{query}; it takes ?books=N only.")
    return name, place, int(number)


def _folder(place: str) -> Path:
    """Where it lies here, fetched from the hub if it is no folder."""
    here = Path(os.path.expanduser(place))
    if here.is_dir():
        return here
    if Path(place).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        raise UserError(f"there is no folder {place} to take a published tokenizer from.")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(place, allow_patterns=_FILES))
    except Exception as error:  # the hub's client raises its own, requests', httpx's and OSError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(f"{place} is no folder here and could not be fetched from the Hugging Face hub ({reason}).") from None


def _facts(folder: Path, name: str, types: tuple[str, ...]) -> dict[str, Any]:
    """Its `config.json`, which has to be of the family."""
    try:
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no config.json, so there is no published tokenizer in it.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read: {error}.") from None
    found = facts.get("model_type") if isinstance(facts, dict) else None
    if found not in types:
        raise UserError(f"{folder} holds a model of the type {found}, not {name}.")
    return dict(facts)


def _licence(folder: Path) -> str:
    """As the head of the card names it, `license: mit`; of several, or of "other", the name that it is given."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    head = card.split("\n---", 1)[0] if card.startswith("---") else ""
    named = dict(re.findall(r"^(license(?:_name)?):[ \t]*[\"']?([\w.+-]+)", head, re.MULTILINE))
    return str(named.get("license_name" if named.get("license") == "other" else "license", named.get("license", "")))


def _digest(path: Path) -> str:
    """Hex SHA-256 of a file."""
    state = path.stat()
    return _hashed(path.resolve(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=16)
def _hashed(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
