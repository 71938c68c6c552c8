"""Puts the ladder of a run beside its recipe's page, so that it ships.

    tessera train quickstart --forecast --budget 1.66e14 --out runs/large       # Ctrl-C once the ladder is trained
    python benchmarks/shipped_ladder.py runs/large [--to FILE]

`tessera quickstart` has no time for a ladder of its own; it foretells its loss from these runs (docs/forecasts.md). To be made
anew when the recipe, the rules or the tokenizer change, which `tests/scaling/test_shipped.py` notices. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a run with a ladder, of the recipe as it ships but for its budget")
    parser.add_argument("--to", help="by default beside the recipe's page")
    options = parser.parse_args()
    from tessera import recipe as recipes
    from tessera.data.shards import open_shards
    from tessera.run import RunFolder
    from tessera.scaling import seal, shipped

    folder = RunFolder.open(Path(options.run))
    foretold, info = seal.read(folder.path), folder.info
    if foretold is None or not info:
        sys.exit(f"{folder.path} has no forecast: train it with --forecast.")
    intent = recipes.load(folder.recipe.name)
    machine = info["machine"]
    origin = shipped.Origin(
        made=foretold["made"],
        commit=info["commit"],
        machine=f"{machine['cpu']}, {machine['threads']} threads, {machine['dtype']}",
        python=info["versions"]["python"],
        data=open_shards(Path(info["shards"])).hash,
    )
    path = Path(options.to or str(resources.files("tessera.recipes") / shipped.file_of(intent.name)))
    shipped.write(path, intent, shipped.Shipped(foretold["ladder"], origin))
    print(f"{len(foretold['ladder'])} runs in {path}")


if __name__ == "__main__":
    main()
