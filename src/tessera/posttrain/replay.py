"""What a model learned first, shown again in part while it is tuned, so that it forgets little of what the examples leave out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tessera.data.shards import open_shards
from tessera.errors import UserError
from tessera.model import weights
from tessera.run import RunFolder
from tessera.tokens.document import TokenRecord


def first_run(model: Path) -> RunFolder:
    """The run in which a model began, through all the tuning since.

    Raises:
        UserError: it is not there, or the model did not begin in a run of `tessera train`.
    """
    folder, seen = RunFolder.behind(weights.home(model)).path, set[Path]()
    while folder not in seen and (folder / "run.json").is_file():
        seen.add(folder)
        run = RunFolder(folder)
        if "shards" in run.info:
            return run
        if not run.info.get("init"):
            break
        folder = RunFolder.behind(weights.home(Path(run.info["init"]))).path
    raise UserError(
        f"what {model} learned first is not known here (no run of tessera train in {folder}), so nothing of it can be replayed: "
        "leave --replay out."
    )


def replayed(run: RunFolder, tokens: int, longest: int, seed: int) -> Iterator[TokenRecord]:
    """Documents of a run's training data, its sources in the shares that they had there, until they come to `tokens`.

    Args:
        longest: tokens of one; of a longer document a stretch from within is taken.
        seed: of the choice.
    """
    shards = open_shards(Path(run.info["shards"]))
    sources = [source.train for source in shards.sources]
    given = [source.weight for source in run.recipe.data.sources]
    shares = np.array([weight or source.tokens / shards.train_tokens for weight, source in zip(given, sources, strict=True)])
    rng = np.random.Generator(np.random.PCG64([seed, 7]))
    taken = np.zeros(len(sources))
    while taken.sum() < tokens:
        # The source that is furthest behind: shares are of tokens, and some have longer documents than others.
        behind = int(np.argmin((taken + 1) / shares))
        source = sources[behind]
        at = int(rng.integers(source.tokens))
        number = int(np.searchsorted(source.offsets, at, "right")) - 1
        start, end = (int(place) for place in source.offsets[number : number + 2])
        if end - start > longest:
            start = min(at, end - longest)
            end = start + longest
        learn = np.ones(end - start, np.bool_) if source.learn is None else source.learn[start:end]
        yield TokenRecord(source.ids[start:end].astype(np.int32), np.array(learn))
        taken[behind] += end - start
