"""Each kind of data of a chain's first training, given to a recipe of its own with the compute that the chain spent on it.

    python benchmarks/specialists.py --chain runs/starter              # trains what is missing, measures, completes the card
    python benchmarks/specialists.py --chain runs/starter --only draw,film

A specialist begins from nothing and reads one source, or the few that belong together, in the same split, context and vocabulary,
with the chain's own quantizers; its budget is the chain's FLOPs times the share of its sources. Measured are the same suites on
the same tasks. The rows go into the chain's `evaluations.json`, from which its card is written anew. A training that was stopped
goes on when it is called again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import facts, result_path, store


@dataclass(frozen=True)
class Specialist:
    """A recipe with the sources that are its own.

    Args:
        recipe: shipped with tessera, and the name in the rows.
        sources: names of built-in sources.
        suites: that it is measured by, beside its held-out documents.
        medium: its field of a recipe's `data`, where it has one.
    """

    recipe: str
    sources: tuple[str, ...]
    suites: tuple[str, ...]
    medium: str = ""


SPECIALISTS = (
    Specialist("code", ("stdlib", "functions"), ("infill", "functions")),
    Specialist("text", ("prose", "wordings"), ("blimp", "wordings")),
    Specialist("draw", ("digits",), ("digits",), "pictures"),
    Specialist("film", ("films",), ("films",), "films"),
    Specialist("speak", ("melodies",), ("melodies",), "sounds"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chain", type=Path, required=True, help="folder of tessera reproduce, finished")
    parser.add_argument("--runs", type=Path, default=Path("runs/specialists"), help="where the specialists are kept")
    parser.add_argument("--only", default="", help="recipes, by commas; default all")
    parser.add_argument("--threads", type=int, help="that train; default all")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()
    known = [one.recipe for one in SPECIALISTS]
    wanted = options.only.split(",") if options.only else known
    if unknown := set(wanted) - set(known):
        parser.error(f"no such specialist: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if not (options.chain / "evaluations.json").is_file():
        parser.error(f"{options.chain} has no evaluations.json; finish it by tessera reproduce first")
    found = {one.recipe: of_one(one, options.chain, options.runs, options.threads) for one in SPECIALISTS if one.recipe in wanted}
    complete(options.chain, found)
    result: dict[str, Any] = facts() | {"chain": str(options.chain), "specialists": found}
    if options.json:
        print(json.dumps(result, indent=1))
    store(result_path("specialists"), result)


def of_one(one: Specialist, chain: Path, runs: Path, threads: int | None) -> dict[str, Any]:
    """Trains one, as far as it is not, and measures it."""
    from tessera.commands.generate import open_engine
    from tessera.commands.scorecard import measure
    from tessera.run import RunFolder

    recipe = RunFolder.open(chain / "base").recipe
    sources = [s for s in recipe.data.sources if s.uri.partition("?")[0].removeprefix("builtin:") in one.sources]
    every = math.fsum(source.weight or 0 for source in recipe.data.sources)
    share = math.fsum(source.weight or 0 for source in sources) / every
    flops = share * spent(chain / "base")
    run = runs / one.recipe
    if not (run / "model").is_dir():
        command = [sys.executable, "-m", "tessera", "train", one.recipe, "--out", str(run)]
        if (run / "run.json").is_file():
            command.append("--resume")
        else:
            pages = json.dumps([{"uri": source.uri, "weight": source.weight} for source in sources])
            command += ["--budget", f"{flops:.4e}", "--no-forecast", "--set", f"data.sources={pages}"]
            command += ["--set", f"tokenizer.vocabulary_size={recipe.tokenizer.vocabulary_size}"]
            command += ["--set", f"train.context={recipe.train.context}", "--set", f"data.deduplicate={recipe.data.deduplicate}"]
            if one.medium in ("films", "sounds"):
                command += ["--set", f"data.{one.medium}.trained={chain / 'base'}"]
            if threads:
                command += ["--set", f"train.threads={threads}"]
        print(" ".join(command), file=sys.stderr, flush=True)
        subprocess.run(command, check=True)
    model = run / "model"
    only = {*(source.uri for source in sources), *one.suites}
    engine = open_engine(str(model), "float32")
    rows, _ = measure(engine, model, chain / "base", one.recipe, lambda line: print(line, file=sys.stderr), only)
    return {"share": share, "flops": flops, "parameters": engine.decoder.config.parameters, "rows": rows}


def spent(run: Path) -> float:
    """FLOPs of a run's training, its ladder not counted."""
    from tessera.model.weights import read_config
    from tessera.run import RunFolder

    recipe = RunFolder.open(run).recipe
    return float(recipe.train.tokens or 0) * read_config(run / "model").flops_per_token(recipe.train.context or 0)


def complete(chain: Path, found: dict[str, dict[str, Any]]) -> None:
    """Puts the rows in place of earlier ones of the same specialists, and writes the card anew."""
    from tessera.report import write_card
    from tessera.run import write_text

    file = chain / "evaluations.json"
    rows = [row for row in json.loads(file.read_text(encoding="utf-8")) if row["of"] not in found]
    rows += [row for one in found.values() for row in one["rows"]]
    write_text(file, json.dumps(rows, indent=1))
    print(f"card {write_card(chain)}", file=sys.stderr)


if __name__ == "__main__":
    main()
