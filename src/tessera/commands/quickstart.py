"""`tessera quickstart`: the whole path in one command, on data that every machine has.

It foretells the loss of one small model, trains it on this interpreter's own library, on sums in words and on handwritten
digits, and judges the forecast; compares it with an untrained model and with n-gram counts on held-out files; lets it complete
functions, do sums, draw digits and name some that it has never seen; says how the model in the box does at the same; writes the
report, and serves the model to whoever sits there.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tessera.commands import foretell, terminal
from tessera.commands import train as training
from tessera.commands.generate import open_engine
from tessera.commands.live import duration
from tessera.data.builtin_pictures import NUMBERS
from tessera.data.corpus import Corpus, gather
from tessera.data.loader import validation_batches
from tessera.data.pictures import Parts, parts_of, png
from tessera.data.shards import tokenise
from tessera.device import cache_folder
from tessera.engine.engine import Engine
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.evals.digits import DRAWN, NAMED, digit_of, draw_digits, name_digits
from tessera.evals.held_out_functions import held_out_functions
from tessera.evals.ngram import ngram_bits_per_byte
from tessera.model import starter
from tessera.model.decoder import Decoder
from tessera.provenance import marked
from tessera.recipe import Budget
from tessera.report import write_report
from tessera.report.measured import SCORES, find, read_measured
from tessera.run import RunFolder, write_text
from tessera.tokens.document import Document
from tessera.train.objectives import evaluate

AFTER_SECONDS = 30.0
"""What all that comes after training takes on two cores; training gets the rest of the budget."""
NGRAM_ORDER = 5
CODE, SUMS, DIGITS = "builtin:stdlib", "builtin:sums", "builtin:digits"
DONE = "shown.json"
"""Written last; the report shows what is in it."""
SAME = {
    "code": ("code, bits per byte (lower is better)", "bits", "bits per byte", "stdlib"),
    "drawn": ("digits drawn as meant", "digits", DRAWN, ""),
    "named": ("handwritten digits named rightly", "digits", NAMED, ""),
}
"""Measure of this command -> how it is called; and the suite, with words of its measure and of its source, under which the model
in the box was measured at the same."""


def quickstart(budget: str, out: str, serves: bool = False) -> None:
    """Trains, compares, completes, reckons, draws, looks, reports; an interrupted quickstart goes on where it stopped.

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
    if (path / DONE).is_file():
        raise UserError(
            f"{path} holds a finished quickstart: look at {path / 'report.html'}, or give another --out to do it again."
        )
    started = (path / "run.json").is_file()
    if not (path / "model").is_dir():
        training.train("quickstart", f"{seconds - AFTER_SECONDS:.0f}s", [], None, out, resume=started)
    folder = RunFolder.open(path)
    corpus = gather(folder.recipe.data, cache_folder(), lambda line: None)
    engine = open_engine(str(path))
    sources = {source.uri.partition("?")[0]: index for index, source in enumerate(folder.recipe.data.sources)}
    shown: dict[str, Any] = {}
    reached: dict[str, float] = {}
    if CODE in sources:
        reached["code"] = _compare(folder, corpus, engine, sources[CODE])
        _complete(folder, corpus, engine, sources[CODE])
    if SUMS in sources:
        shown["sums"] = _reckon(corpus, engine, sources[SUMS])
    if DIGITS in sources:
        shown |= {"drawn": _draw(folder, engine), "seen": _look(corpus, engine, sources[DIGITS])}
    write_text(folder.path / DONE, json.dumps(shown, indent=1))
    report = write_report(path)
    if (said := foretell.given(path)) is not None:
        print(f"\nForecast, sealed before the training; {said}")
    _beside_the_starter(reached | _shares(shown))
    print(f"\nDone in {duration(time.monotonic() - begin)}. Open {report} to see the run. Then:")
    for what in (
        'generate {} "def fibonacci(n):"',
        'generate {} "What is seven plus eight?"',
        'generate {} "a seven" --out seven.png',
        'generate {} "What is in the picture?" --image seven.png',
        "serve {}",
    ):
        print(f"  ./tessera {what.format(path)}")
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


def _compare(folder: RunFolder, corpus: Corpus, engine: Engine, index: int) -> float:
    """Bits per byte of nothing learned, of counting, and of the run, which is returned, on the same held-out tokens of code."""
    recipe, vocabulary = folder.recipe, engine.vocabulary
    # Without fill-in-the-middle: counts see the files as they are.
    plain = recipe.data.model_copy(update={"fill_in_the_middle": 0.0})
    assert recipe.train.context and recipe.train.batch_rows
    shards = tokenise(corpus, vocabulary, plain, cache_folder(), lambda line: None, recipe.train.context)
    source = shards.sources[index]
    alone, held_out = replace(shards, sources=(source,)), source.validation
    masked = recipe.data.document_mask
    rows = validation_batches(alone, recipe.train.context, min(8, recipe.train.batch_rows), held_out.tokens, masked)
    device = engine.decoder.head_weight.device
    untrained = Decoder(engine.decoder.config, engine.decoder.dtype).to(device)
    untrained.initialise(recipe.train.seed)
    found = evaluate(engine.decoder, rows, vocabulary.token_bytes, device)
    counts = ngram_bits_per_byte(source.train.ids, held_out.ids, vocabulary.size, vocabulary.token_bytes, NGRAM_ORDER)
    baselines = {
        "untrained": {
            "name": "untrained",
            "bits_per_byte": evaluate(untrained, rows, vocabulary.token_bytes, device).bits_per_byte,
        },
        "ngram": {"name": f"{NGRAM_ORDER}-gram counts", "bits_per_byte": counts},
        "trained": {"name": "this run", "bits_per_byte": found.bits_per_byte},
    }
    write_text(folder.path / "baselines.json", json.dumps(baselines, indent=1))
    share = (recipe.data.sources[index].weight or 0.0) / (sum(source.weight or 0.0 for source in recipe.data.sources) or 1.0)
    part = f", {share:.0%} of what it read" if share else ""
    print(f"\nCode{part}: bits per byte on {found.tokens:,} tokens of held-out files (lower is better):")
    for entry in baselines.values():
        print(f"  {entry['name']:<16} {entry['bits_per_byte']:.3f}")
    return found.bits_per_byte


def _complete(folder: RunFolder, corpus: Corpus, engine: Engine, index: int) -> None:
    """Three functions from held-out files: the model sees signature and docstring."""
    functions = held_out_functions(document.text for document in corpus.documents("validation", index))
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


def _reckon(corpus: Corpus, engine: Engine, index: int) -> list[dict[str, Any]]:
    """Every sum that was held out, asked for, and as many of those that were not."""
    held_out = [_question(document) for document in corpus.documents("validation", index)]
    known = [_question(document) for document in corpus.documents("train", index)]
    asked = held_out + known[:: max(1, len(known) // max(1, len(held_out)))][: len(held_out)]
    params = SamplingParams(max_tokens=24, temperature=0, stop=(".", "\n"))
    made = engine.generate([engine.vocabulary.encode_text(question) for question, _ in asked], params)
    answers: list[dict[str, Any]] = []
    for number, ((question, wanted), done) in enumerate(zip(asked, made, strict=True)):
        answer = done.text.strip()
        answers.append({"question": question, "answer": answer, "right": answer == wanted, "known": number >= len(held_out)})
    new, old = answers[: len(held_out)], answers[len(held_out) :]
    learned, never = (sum(a["right"] for a in part) for part in (old, new))
    print(f"\nSums in words: {learned} right of {len(old)} that it learned, {never} of {len(new)} that it was never shown:")
    for entry in new[:: max(1, len(new) // 4)][:4]:
        terminal.write(f"  {entry['question']} {entry['answer']}.", end="\n" if entry["right"] else "   (wrong)\n")
    return answers


def _question(document: Document) -> tuple[str, str]:
    """`What is seven plus eight?` and `Fifteen` of a document of `builtin:sums`."""
    question, _, rest = document.text.partition("? ")
    return f"{question}?", rest.partition(".")[0]


def _draw(folder: RunFolder, engine: Engine) -> list[dict[str, Any]]:
    """The ten digits, drawn by their names and read by a judge who knows real ones."""
    pictures, digits = draw_digits(engine)
    read = [NUMBERS[digit] for digit in digits]
    right = sum(name == wanted for name, wanted in zip(read, NUMBERS, strict=True))
    print(f"\nTen digits drawn by their names; a classifier trained on real ones reads {right} of 10 as meant:")
    for first in (0, 5):
        print()
        for line in zip(*(terminal.shades(picture) for picture in pictures[first : first + 5]), strict=True):
            print("  " + "   ".join(line))
        pairs = list(zip(read, NUMBERS, strict=True))[first : first + 5]
        names = (name if name == wanted else f"not {wanted}: {name}" for name, wanted in pairs)
        print("  " + "   ".join(f"{text:<16}" for text in names).rstrip())
    files = [marked(png(picture), "png", folder.path.resolve().name) for picture in pictures]
    return [
        {"caption": f"a {wanted}", "png": base64.b64encode(file).decode(), "read_as": name}
        for wanted, file, name in zip(NUMBERS, files, read, strict=True)
    ]


def _look(corpus: Corpus, engine: Engine, index: int) -> dict[str, int]:
    """Handwritten digits that were held out, named."""
    held_out = list(_captioned(corpus, index))
    said = name_digits(engine, [parts.signal for parts in held_out])
    right = sum(digit_of(parts.caption) == word for parts, word in zip(held_out, said, strict=True))
    print(f"\nHandwritten digits that it was never shown: {right} of {len(held_out)} named rightly")
    return {"right": right, "of": len(held_out)}


def _shares(shown: Mapping[str, Any]) -> dict[str, float]:
    """By name of a measure, how much of what was asked for came out right."""
    drawn = [picture["caption"] == f"a {picture['read_as']}" for picture in shown.get("drawn", ())]
    shares = {"drawn": sum(drawn) / len(drawn)} if drawn else {}
    return shares | ({"named": shown["seen"]["right"] / shown["seen"]["of"]} if "seen" in shown else {})


def _beside_the_starter(reached: Mapping[str, float]) -> None:
    """What the model in the box got at the same, from its own records; nothing where it has none.

    Args:
        reached: by name of a measure, what this run got.
    """
    rows = read_measured(starter.FOLDER / SCORES)
    lines = []
    for name, value in reached.items():
        title, suite, measure, on = SAME[name]
        if (found := find(rows, starter.NAME, suite, measure, on)) is not None:
            form = ".3f" if found.less_is_better else ".0%"
            lines.append(f"  {title:<40} {value:>10{form}} {found.value:>10{form}}")
    if lines:
        print(f"\nBeside the model in the box:              {'this run':>10} {starter.NAME:>10}")
        print("\n".join(lines))
        print(f"  What it is: docs/starter.md. To begin from it: ./tessera train code --init {starter.NAME}")


def _captioned(corpus: Corpus, index: int) -> Iterator[Parts]:
    for document in corpus.documents("validation", index):
        if (parts := parts_of(document)) is not None:
            yield parts
