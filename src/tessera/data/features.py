"""Tables with a picture, a film or a recording in each row, as Hugging Face datasets have them -> documents.

What is in a column the dataset says itself: its features in the form that its Parquet files carry too, `{"image": {"_type":
"Image"}, "label": {"_type": "ClassLabel", "names": [...]}}`. A cell of a medium is `{"bytes", "path"}`, one of them or both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tessera.data.captions import Medium, medium_document
from tessera.data.films import Shrink
from tessera.data.reasons import Skipped, Unreadable, words
from tessera.tokens.document import Document

_TYPES: Mapping[str, Medium] = {"Image": "image", "Video": "video", "Audio": "audio"}


@dataclass(frozen=True)
class Columns:
    """What the columns of a table hold.

    Args:
        media: column -> what it is, in their order.
        labels: column -> the name of each of its numbers.
        texts: columns of strings.
    """

    media: Mapping[str, Medium] = field(default_factory=dict)
    labels: Mapping[str, list[str]] = field(default_factory=dict)
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, features: Mapping[str, Any]) -> Columns:
        """From a dataset's features; nested ones are not looked into."""
        kinds = {name: feature for name, feature in features.items() if isinstance(feature, Mapping)}
        return cls(
            {name: _TYPES[feature["_type"]] for name, feature in kinds.items() if feature.get("_type") in _TYPES},
            {name: list(feature["names"]) for name, feature in kinds.items() if feature.get("_type") == "ClassLabel"},
            tuple(name for name, feature in kinds.items() if feature.get("dtype") in ("string", "large_string")),
        )

    def first(self, wanted: frozenset[Medium]) -> str | None:
        """The first column with a medium that is asked for."""
        return next((name for name, medium in self.media.items() if medium in wanted), None)


def media_documents(
    rows: Iterable[tuple[int, Mapping[str, Any]]], columns: Columns, medium: str, column: str | None, name: str,
    skipped: list[Skipped], shrink: Shrink | None = None,
) -> Iterator[Document]:  # fmt: skip
    """Numbered rows -> a document of each row's medium, with what its other columns say of it.

    Args:
        columns: of the table.
        medium: the column that it stands in.
        column: that holds the caption; None: as in a list of captions.
        name: of the table.
        skipped: what cannot be read is appended here.
        shrink: of the frames of a film, as `read_film` takes it.
    """
    without = 0
    for number, row in rows:
        cell = row.get(medium)
        if not isinstance(cell, Mapping) or not (cell.get("bytes") or cell.get("path")):
            without += 1
            continue
        said = {key: _named(value, columns.labels.get(key)) for key, value in row.items() if key not in columns.media}
        try:
            source = bytes(cell["bytes"]) if cell.get("bytes") else Path(cell["path"])
            yield medium_document(columns.media[medium], source, said, column, f"{name}[{number}]", shrink=shrink)
        except (Unreadable, OSError) as error:
            skipped.append(Skipped(f"{name}[{number}]", words(error)))
    if without:
        skipped.append(Skipped(name, f"{without} rows with nothing in the column {medium!r}"))


def _named(value: Any, names: list[str] | None) -> Any:
    """A label's number in words."""
    if names is None or not isinstance(value, int) or not 0 <= value < len(names):
        return value
    return names[value].replace("_", " ")
