"""A source's address -> its documents.

`documents` reads every kind of source that a recipe can name, in an order that does not change from run to run, and holds the
one promise they share: text is valid Unicode, a source without a document stops the run, and what was left out is listed.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tessera.data import (
    builtin,
    builtin_films,
    builtin_functions,
    builtin_mappings,
    builtin_pictures,
    builtin_sounds,
    builtin_wordings,
)
from tessera.data.captions import NOT_ASKED, Medium
from tessera.data.features import Columns, media_documents
from tessera.data.files import Say, read_files, rows_to_documents
from tessera.data.films import Shrink
from tessera.data.reasons import Skipped, Unreadable
from tessera.errors import UserError
from tessera.tokens.document import Document

__all__ = ["Skipped", "documents"]

FROM_FILES = ("files:", "hub:")
"""How sources begin whose films are read from files."""
_COUNTED: dict[str, tuple[Callable[[int], Iterator[Document]], int]] = {
    "shapes": (builtin_pictures.shapes, builtin_pictures.SHAPES),
    "films": (builtin_films.films, builtin_films.FILMS),
    "functions": (builtin_functions.functions, builtin_functions.FUNCTIONS),
    "mappings": (builtin_mappings.mappings, builtin_mappings.MAPPINGS),
    "melodies": (builtin_sounds.melodies, builtin_sounds.MELODIES),
    "wordings": (builtin_wordings.wordings, builtin_wordings.WORDINGS),
}
"""Built-in sources that make as many documents as are asked for: how, and how many unless said otherwise."""
_FORMS = (
    f"files:GLOB-or-FOLDER, hub:DATASET, builtin:stdlib, prose, sums, digits, {', '.join(_COUNTED)}, "
    "or python:package.module.function"
)


def documents(
    uri: str,
    skipped: list[Skipped],
    say: Say = lambda line: None,
    wanted: frozenset[Medium] = frozenset({"image"}),
    shrink: Shrink | None = None,
) -> Iterator[Document]:
    """Documents of a source, in an order that depends on its content alone.

    Args:
        uri: `files:PATTERN[#column=NAME]`, `hub:NAME[:CONFIG][@REVISION][?split=train][#column=NAME][?limit=ROWS]`,
            `builtin:stdlib`, `builtin:prose`, `builtin:sums[?below=N]`, `builtin:digits`, `builtin:NAME[?count=N]` for the
            names in `_COUNTED`, or `python:package.module.function`.
        skipped: what is left out is appended here.
        say: told which column was taken where there was a choice.
        wanted: media that are asked for; the files, samples and columns of others are left out unread. Without films the first
            frame of an animated GIF is a picture.
        shrink: of the frames of films in `FROM_FILES`, as `read_film` takes it.

    Raises:
        UserError: an unknown kind of source, one that cannot be reached, or one without a single document.
    """
    before, count = len(skipped), 0
    said: set[str] = set()

    def say_once(line: str) -> None:
        # A thousand files that are alike have one thing to say.
        if line not in said:
            said.add(line)
            say(f"{uri}: {line}")

    for document in _open(uri, skipped, say_once, wanted, shrink):
        try:
            document.text.encode()
        except UnicodeEncodeError:
            # JSON can spell half of a surrogate pair, which is no character and has no bytes.
            skipped.append(Skipped(document.source, "not valid Unicode"))
            continue
        count += 1
        yield document
    if not count:
        left_out = skipped[before:]
        why = f"; {len(left_out)} skipped, the first: {left_out[0].path}: {left_out[0].reason}" if left_out else ""
        raise UserError(f"source {uri} yields no document{why}.")


def _open(uri: str, skipped: list[Skipped], say: Say, wanted: frozenset[Medium], shrink: Shrink | None) -> Iterator[Document]:
    scheme, colon, rest = uri.partition(":")
    if scheme == "files" and rest:
        pattern, _, column = rest.partition("#column=")
        return read_files(pattern, column or None, skipped, say, wanted, shrink)
    if scheme == "hub" and rest:
        return _hub(rest, skipped, say, wanted, shrink)
    if scheme == "python" and rest:
        return _python(rest)
    if uri == "builtin:stdlib":
        return builtin.stdlib(skipped, say)
    if uri == "builtin:prose":
        return builtin.prose(skipped, say)
    if made := re.fullmatch(r"builtin:sums(?:\?below=([1-9]\d?|100))?", uri):
        return builtin.sums(int(made[1] or 100))
    if uri == "builtin:digits":
        return builtin_pictures.digits()
    if (made := re.fullmatch(r"builtin:(\w+)(?:\?count=(\d{1,7}))?", uri)) and made[1] in _COUNTED:
        make, usual = _COUNTED[made[1]]
        return make(int(made[2] or usual))
    hint = f" (for a path write files:{uri})" if not colon and os.path.exists(os.path.expanduser(uri)) else ""
    raise UserError(f"source {uri!r} is none of {_FORMS}{hint}.")


def _hub(address: str, skipped: list[Skipped], say: Say, wanted: frozenset[Medium], shrink: Shrink | None) -> Iterator[Document]:
    """Rows of a Hugging Face dataset, streamed; the name may be a local folder, of data files or of `save_to_disk`.

    Rows with a picture, a film or a recording that is asked for are documents of it; of all others the text is.
    """
    options = dict(re.findall(r"[#?&](column|split|limit)=([^#?&]*)", address))
    name = re.split(r"[#?&](?:column|split|limit)=", address, maxsplit=1)[0]
    match = re.fullmatch(r"([^:@]+)(?::([^@]+))?(?:@(.+))?", name)
    limit = options.get("limit", "")
    if match is None or not (limit.isdigit() or not limit):
        raise UserError(f"hub:{address} is not hub:NAME[:CONFIG][@REVISION][?split=train][#column=text][?limit=1000].")
    path, config, revision = match.groups()
    split = options.get("split", "train")
    local = os.path.expanduser(path)
    try:
        import datasets
    except ImportError:
        raise UserError(f"hub:{address} needs the package `datasets`; install it with `pip install datasets`.") from None
    try:
        if os.path.exists(os.path.join(local, "state.json")):
            rows: Any = datasets.load_from_disk(local)
        elif os.path.exists(os.path.join(local, "dataset_dict.json")):
            rows = datasets.load_from_disk(local)[split]
        else:
            # By the folder's own name: datasets takes none from `.`.
            name = os.path.abspath(local) if os.path.isdir(local) else path
            rows = datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)
        columns = Columns.of(rows.features.to_dict() if rows.features else {})
        for name in columns.media:
            # As bytes: what a person sent is opened by our own readers, with their limits.
            rows = rows.cast_column(name, type(rows.features[name])(decode=False))
        title, column, medium = os.path.basename(path.rstrip("/")), options.get("column"), columns.first(wanted)
        numbered = itertools.islice(enumerate(rows), int(limit) if limit else None)
        if medium is not None:
            if len(columns.media) > 1:
                say(f"took the column {medium!r} of {', '.join(columns.media)}")
            yield from media_documents(numbered, columns, medium, column, title, skipped, shrink)
            return
        if columns.media and not columns.texts:
            raise UserError(f"hub:{address} has {NOT_ASKED[next(iter(columns.media.values()))]}, and no text.")
        yield from rows_to_documents(numbered, title, column, skipped, say)
    except UserError:
        raise
    except Unreadable as error:
        raise UserError(f"hub:{address}: {error}; name one with #column=NAME.") from None
    # The hub's client raises many unrelated types: network, access, names, formats. Whatever it is, half of a dataset is
    # never taken for all of it.
    except Exception as error:
        first = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"hub:{address} could not be read: {first[:300].rstrip('.')}.") from error


def _python(dotted: str) -> Iterator[Document]:
    """What a person's own function yields: strings or Documents."""
    module_name, _, function_name = dotted.rpartition(".")
    if not module_name:
        raise UserError(f"python:{dotted} is not python:package.module.function.")
    # As `python -m` does: modules beside the person's work are found.
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    # A person's module may fail in any way while it is read.
    except Exception as error:
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise UserError(f"python:{dotted} cannot be imported: {kind}{' '.join(str(error).split())}.") from error
    finally:
        sys.path.remove(os.getcwd())
    try:
        made = function()
        if isinstance(made, str | dict):
            raise UserError(
                f"python:{dotted} returned one {type(made).__name__}; it must yield str or Document, or return a list of them."
            )
        for number, item in enumerate(made):
            if isinstance(item, str):
                if item.strip():
                    yield Document.of_text(item, f"{dotted}[{number}]")
            elif isinstance(item, Document):
                yield item
            else:
                raise UserError(f"python:{dotted} yielded a {type(item).__name__}; it must yield str or Document.")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"python:{dotted} raised {type(error).__name__}: {' '.join(str(error).split())}.") from error
