"""Built-in files of examples and preferences for tuning, named where a file would be: `builtin:preferences?count=2000`."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tessera.data import (
    builtin_assistant,
    builtin_dialogues,
    builtin_functions,
    builtin_hierarchy,
    builtin_preferences,
    builtin_wordings,
)
from tessera.errors import UserError

LINES: dict[str, tuple[Callable[[int, int], Iterator[dict[str, Any]]], int]] = {
    "answers": (builtin_preferences.examples, 2 * builtin_preferences.PAIRS),
    "assistant": (builtin_assistant.examples, builtin_assistant.ASSISTANT),
    "dialogues": (builtin_dialogues.examples, builtin_dialogues.DIALOGUES),
    "hierarchy": (builtin_hierarchy.examples, builtin_hierarchy.EXAMPLES),
    "judgements": (builtin_assistant.pairs, builtin_assistant.PAIRS),
    "preferences": (builtin_preferences.pairs, builtin_preferences.PAIRS),
}
"""Name -> what makes its lines, and how many unless somebody says otherwise."""


def write(address: str, folder: Path) -> Path:
    """The file of `builtin:NAME[?count=N][&seed=S]`, written unless it is there already.

    Args:
        folder: for what can be made again.

    Raises:
        UserError: no such address.
    """
    found = re.fullmatch(r"builtin:(\w+)(?:\?count=(\d{1,7}))?(?:[?&]seed=(\d{1,9}))?", address)
    if found is None or found[1] not in LINES:
        raise UserError(
            f"{address!r} is none of {', '.join(f'builtin:{name}' for name in LINES)}, with ?count=N&seed=S or without."
        )
    make, usual = LINES[found[1]]
    count, seed = int(found[2] or usual), int(found[3] or 0)
    # A file of another version of what makes it would be taken for this one's.
    made_of = (sys.modules[make.__module__], builtin_wordings, builtin_dialogues, builtin_functions)
    source = "".join(map(inspect.getsource, made_of))
    version = hashlib.blake2b(source.encode(), digest_size=4).hexdigest()
    path = folder / f"{found[1]}-{count}-{seed}-{version}.jsonl"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_text("".join(json.dumps(row) + "\n" for row in make(count, seed)), encoding="utf-8")
        aside.replace(path)
    return path
