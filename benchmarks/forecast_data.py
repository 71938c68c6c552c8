"""Documents of the forecast benchmarks that are no plain files, as generators for `python:` sources."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

from common import data_folder


def dialogues() -> Iterator[str]:
    """The task dialogues of text/dialogue/sgd, a turn a line."""
    with gzip.open(data_folder() / "text/dialogue/sgd/train.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            yield "".join(f"{turn['role']}: {turn['text']}\n" for turn in json.loads(line)["turns"])
