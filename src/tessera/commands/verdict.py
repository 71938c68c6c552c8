"""`tessera verdict` and `tessera ledger`: what became of forecasts."""

from __future__ import annotations

import json
from pathlib import Path

from tessera.commands.foretell import conclude, ingredients_of, ledger_of, unbound, words
from tessera.data.shards import open_shards
from tessera.errors import UserError
from tessera.report.calibration import write_calibration
from tessera.run import RunFolder
from tessera.scaling import ledger, seal
from tessera.tokens.vocabulary import Vocabulary


def verdict(run: str, as_json: bool) -> None:
    """Compares a finished run with its sealed forecast.

    Raises:
        UserError: there is no run, nothing was sealed for it, or it is still running.
    """
    folder = RunFolder.open(Path(run))
    sealed = seal.read(folder.path)
    if sealed is None:
        raise UserError(f"{run} has no forecast; one is made by `tessera train` without --no-forecast.")
    if "seal" not in sealed:
        raise UserError(f"the forecast of {run} was refused and never sealed: {' '.join(sealed['reasons'])}")
    if folder.held:
        raise UserError(f"{run} is still running; its verdict is given when it has ended.")
    vocabulary = Vocabulary.load(folder.path / "tokenizer")
    shards = open_shards(Path(folder.info["shards"]))
    found = conclude(folder, ingredients_of(folder.recipe, vocabulary, shards))
    assert found is not None
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        low, high = sealed["intervals"]["0.9"]
        print(
            f"{run}: sealed {sealed['made']} for {sealed['target']['C']:.2e} FLOPs, {sealed['reach']:.1f} times beyond its ladder"
        )
        print(f"foretold {sealed['loss']:.4f}, 90 % between {low:.4f} and {high:.4f}")
        print(words(found))
        print(f"in {ledger_of(folder.path)}")


def show_ledger(folder: str, as_json: bool) -> None:
    """Lists every forecast sealed in a folder of runs, hits and misses, and draws the calibration.

    What does not fit together is warned about. The head, kept where the ledger is not, shows that a line was changed later.

    Raises:
        UserError: there is no ledger.
    """
    path = Path(folder) / ledger.FILE
    if not path.is_file():
        raise UserError(f"there is no {path}: no forecast was sealed in {folder} yet; `tessera train RECIPE` seals one.")
    book = ledger.read(path)
    apart = unbound(path, book)
    if as_json:
        entries = [
            {"run": e.run, "seal": e.seal, "state": e.state, "sealed": e.sealed, "verdict": e.verdict} for e in book.entries
        ]
        page = {"entries": entries, "hits": book.hits(), "gaps": list(book.gaps), "unbound": apart, "head": book.head}
        print(json.dumps(page, indent=1))
        return
    print("sealed            run                        FLOPs  beyond  foretold  +- 90 %    found    miss      z")
    for entry in book.entries:
        sealed = entry.sealed
        low, high = sealed["intervals"]["0.9"]
        half = (high - low) / 2 / sealed["loss"]
        line = (
            f"{sealed['when'][:16]}  {entry.run[-24:]:<24} {sealed['target']['C']:>9.2e} {sealed['reach']:>6.1f}x "
            f"{sealed['loss']:>9.4f}  {half:>6.2%}"
        )
        result = entry.verdict
        if result is None:
            line += "  not finished"
        elif result["void"]:
            line += f"  void: {result['void']}"
        else:
            line += f"  {result['loss']:>7.4f} {result['miss']:>+7.2%} {result['z']:>+6.2f}"
        print(line + ("  by a ladder that ships" if sealed.get("shipped") else ""))
    for level, (inside, judged) in book.hits().items():
        if judged:
            print(f"inside the {float(level):.0%} interval: {inside} of {judged}")
    open_ones = sum(e.state == "open" for e in book.entries)
    voids = sum(e.state == "void" for e in book.entries)
    print(f"{len(book.entries)} sealed: {len(book.judged)} judged, {voids} void, {open_ones} not finished")
    print(f"head: {str(book.head)[:12]}")
    for sentence in apart:
        print(f"warning: {sentence}")
    for number in book.gaps:
        print(f"warning: line {number} of {path} does not follow from the line before it; a line was changed or taken out.")
    if book.judged:
        print(f"calibration plot: {write_calibration(path.with_name('ledger.html'), ledger.calibration(book.levels))}")
