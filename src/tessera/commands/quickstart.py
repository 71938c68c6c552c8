"""`tessera quickstart`: the whole path in one command, on code that every machine has.

It trains the `code` recipe on this interpreter's own library, compares the result with an untrained model and with n-gram counts
on held-out files, completes functions that it has never seen, writes the report, and serves the model to whoever sits there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tessera.commands import terminal
from tessera.commands import train as training
from tessera.commands.generate import open_engine
from tessera.commands.live import duration
from tessera.data.corpus import Corpus, gather
from tessera.data.loader import validation_batches
from tessera.data.shards import tokenise
from tessera.device import cache_folder
from tessera.engine.engine import Engine
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.evals.held_out_functions import held_out_functions
from tessera.evals.ngram import ngram_bits_per_byte
from tessera.model.decoder import Decoder
from tessera.recipe import Budget
from tessera.report import write_report
from tessera.run import RunFolder, write_text
from tessera.train.objectives import evaluate

AFTER_SECONDS = 25.0
"""What comparison and completions take on two cores; training gets the rest of the budget."""
NGRAM_ORDER = 5


def quickstart(budget: str, out: str, serves: bool = False) -> None:
    """Trains, compares, completes, reports; an interrupted quickstart goes on where it stopped.

    Args:
        budget: time for all of this.
        out: the run's folder.
        serves: in the end, answer at the API and on the page until Ctrl-C.

    Raises:
        UserError: the budget is not a time or too short; the folder holds a finished run.
    """
    begin = time.monotonic()
    path = Path(out)
    try:
        seconds = Budget.parse(budget).seconds
    except ValueError as error:
        raise UserError(f"--budget: {error}.") from None
    if seconds is None or seconds < 3 * AFTER_SECONDS:
        raise UserError(f"--budget {budget}: the quickstart needs a time of at least {3 * AFTER_SECONDS:.0f}s, like 6m.")
    if (path / "completions.json").is_file():
        raise UserError(
            f"{path} holds a finished quickstart: look at {path / 'report.html'}, or give another --out to do it again."
        )
    started = (path / "run.json").is_file()
    if not (path / "model").is_dir():
        training.train("code", f"{seconds - AFTER_SECONDS:.0f}s", [], None, out, resume=started)
    folder = RunFolder.open(path)
    corpus = gather(folder.recipe.data, cache_folder(), lambda line: None)
    engine = open_engine(str(path))
    _compare(folder, corpus, engine)
    _complete(folder, corpus, engine)
    report = write_report(path)
    print(f"\nDone in {duration(time.monotonic() - begin)}. Open {report} to see the run. Then:")
    print(f'  ./tessera generate {path} "def fibonacci(n):"\n  ./tessera chat {path}\n  ./tessera serve {path}')
    if serves:
        print("\nThe last of these begins now; the page is for your browser.", flush=True)
        _serve(path)


def _serve(path: Path) -> None:
    """Until Ctrl-C, at the usual port or, where that is taken, at a free one."""
    # Not before it is wanted: the server's packages take seconds to import, and memory from the run.
    from tessera.commands import serve as serving

    port = serving.PORT
    try:
        serving.listen(serving.HOST, port).close()
    except UserError:
        port = 0
    serving.serve([str(path)], port=port)


def _compare(folder: RunFolder, corpus: Corpus, engine: Engine) -> None:
    """Bits per byte of nothing learned, of counting, and of the run, on the same held-out tokens."""
    recipe, vocabulary = folder.recipe, engine.vocabulary
    # Without fill-in-the-middle: counts see the files as they are.
    plain = recipe.data.model_copy(update={"fill_in_the_middle": 0.0})
    shards = tokenise(corpus, vocabulary, plain, cache_folder(), lambda line: None)
    source = shards.sources[0]
    assert recipe.train.context and recipe.train.batch_rows and recipe.train.final_tokens
    rows = validation_batches(shards, recipe.train.context, min(8, recipe.train.batch_rows), recipe.train.final_tokens)
    device = engine.decoder.head_weight.device
    untrained = Decoder(engine.decoder.config, engine.decoder.dtype).to(device)
    untrained.initialise(recipe.train.seed)
    found = evaluate(engine.decoder, rows, vocabulary.token_bytes, device)
    held_out = source.validation.ids[: found.tokens]
    counts = ngram_bits_per_byte(source.train.ids, held_out, vocabulary.size, vocabulary.token_bytes, NGRAM_ORDER)
    baselines = {
        "untrained": {
            "name": "untrained",
            "bits_per_byte": evaluate(untrained, rows, vocabulary.token_bytes, device).bits_per_byte,
        },
        "ngram": {"name": f"{NGRAM_ORDER}-gram counts", "bits_per_byte": counts},
        "trained": {"name": "this run", "bits_per_byte": found.bits_per_byte},
    }
    write_text(folder.path / "baselines.json", json.dumps(baselines, indent=1))
    print(f"\nBits per byte on {found.tokens:,} tokens of held-out files (lower is better):")
    for entry in baselines.values():
        print(f"  {entry['name']:<16} {entry['bits_per_byte']:.3f}")


def _complete(folder: RunFolder, corpus: Corpus, engine: Engine) -> None:
    """Three functions from held-out files: the model sees signature and docstring."""
    functions = held_out_functions(corpus.texts("validation"))
    context = engine.decoder.config.context
    prompts = [engine.vocabulary.encode_text(f.prompt) for f in functions]
    params = SamplingParams(max_tokens=context // 3, temperature=0.2, seed=0, stop=("\ndef ", "\nclass "))
    made = engine.generate(prompts, params)
    completions = [
        {"title": f.title, "prompt": f.prompt, "reference": f.reference, "completion": c.text}
        for f, c in zip(functions, made, strict=True)
    ]
    print("\nFunctions from held-out files, completed:")
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    for entry in completions:
        print(f"\n--- {entry['title']}")
        terminal.write(entry["prompt"], end=bold)
        terminal.write(entry["completion"], end=f"{plain}\n")
    write_text(folder.path / "completions.json", json.dumps(completions, indent=1))
