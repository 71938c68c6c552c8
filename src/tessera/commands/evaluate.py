"""`tessera eval`: what a model is worth, as numbers with n, error, chance and baseline. Without a suite: bits per byte of text,
bits per pixel of pictures."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path

from tessera.commands.generate import open_engine
from tessera.data.captions import Medium
from tessera.data.corpus import gather
from tessera.data.sources import Skipped
from tessera.data.sources import documents as read_documents
from tessera.device import cache_folder, detect
from tessera.engine.engine import Engine
from tessera.engine.moderation import CATEGORIES
from tessera.engine.thinking import budgets_of, refusal, speaks_dialogue
from tessera.errors import UserError
from tessera.evals import answers, likelihood, safety, suites, taught
from tessera.evals.bits import measure, sample_documents
from tessera.evals.digits import digits
from tessera.evals.films import films
from tessera.evals.infill import infill
from tessera.evals.melodies import melodies
from tessera.evals.moderation import measure_moderation
from tessera.evals.pictures import PictureMeasure, measure_pictures, sample_pictures
from tessera.evals.score import Score
from tessera.evals.shapes import shapes
from tessera.evals.tour import LeftOut, Model, measure_tour
from tessera.model import starter, weights
from tessera.posttrain.labelled import read_labelled
from tessera.posttrain.moderation import Moderator
from tessera.recipe import Data, Source
from tessera.run import RunFolder
from tessera.sandbox.box import open_sandbox
from tessera.tokens.document import Document

_STAND_IN = "builtin:stdlib"
READING = {"blimp": likelihood.blimp, "lambada": likelihood.lambada}
"""Suites that only read."""
MAKING = {"digits": digits, "shapes": shapes, "films": films, "melodies": melodies}
"""Suites of what is made by a caption and told of, called as the built-in sources that teach it."""
NAMES = (
    "bits",
    "infill",
    *MAKING,
    *READING,
    *(name + beyond for name in suites.GENERATED for beyond in ("", "-beyond")),
    *taught.TAUGHT,
    *suites.PUBLIC,
    *safety.SAFETY,
    "tour",
    "moderation",
)
_ANSWERED = frozenset(NAMES) - {"bits", "infill", "tour", "moderation", *MAKING, *READING}
"""Suites that are answered in words."""
_OF_DOCUMENTS = {"bits", "infill", "moderation"}
_TOUR_SEEDS = 20


def evaluate(
    model: str,
    sources: Sequence[str] = (),
    samples: int | None = None,
    as_json: bool = False,
    names: Sequence[str] = (),
    tasks: int | None = None,
    shots: str = "0",
    settings: answers.Settings | None = None,
    lengths: str | None = None,
    unsafe_local: bool = False,
    effort: str | None = None,
) -> None:
    """Measures a model and prints every number.

    Args:
        model: a run's folder or a Hugging Face folder.
        sources: for `bits` and `infill`, as in a recipe, `files:mydocs/`. None given: the held-out documents of the run's own
            recipe, or, where the model has no run, `builtin:stdlib` (which an imported model may have been trained on), of
            which the model in the box has not read what is held out.
        samples: of each task, by default 1; where only `bits` is measured, documents at most, by default 100.
        names: of suites; none: `bits`.
        tasks: of a suite at most, by default 100; pairs or passages for the suites that only read, by default all; seeds of
            the tour, by default 20.
        shots: numbers of examples, separated by commas: one measurement each.
        settings: of the answers; samples, tasks, shots and dialogue are taken from here.
        lengths: of the generated suites, LOW-HIGH instead of their own.
        effort: efforts or `none`, separated by commas: one measurement each.
        unsafe_local: runs programs without isolation; see `sandbox.box.open_sandbox`.

    Raises:
        UserError: no model, no such suite, data that is not there, a source that yields nothing, settings out of range.
    """
    names = tuple(each for name in names or ("bits",) for each in (safety.SAFETY if name == "safety" else (name,)))
    for name in names:
        if name not in NAMES:
            raise UserError(f"there is no suite {name!r}; write one of {', '.join(NAMES)}, or safety.")
    settings = settings or answers.Settings()
    _refuse_idle(names, sources, samples, tasks, shots, settings, lengths, effort)
    if "moderation" in names:
        if len(names) > 1:
            raise UserError("--suite moderation measures a model of another kind; measure it by itself.")
        _moderation(model, sources, as_json)
        return
    chosen = {name: _suite(name, _span(lengths)) for name in names if name in _ANSWERED}
    counts = _shots(shots)
    # Before the model is loaded: whoever asks for programs to be run learns at once that they cannot be.
    programs = "tour" in names or any(not suite.judges for suite in chosen.values())
    sandbox = open_sandbox(unsafe_local) if programs else None
    if unsafe_local:
        print("warning: programs that a model wrote run on this machine without isolation.", file=sys.stderr)
    budgets = budgets_of(model)
    efforts = ["none"] if effort is None else [word.strip() for word in effort.split(",")]
    for word in efforts:
        if word != "none" and word not in budgets:
            raise UserError(f"--effort {effort}: {refusal(budgets, word)}")
    engine = open_engine(model, "float32")
    settings = dataclasses.replace(
        settings,
        samples=samples or 1,
        tasks=tasks or 100,
        dialogue=speaks_dialogue(model, engine.vocabulary),
        budgets=budgets,
    )
    for name in names:
        if name == "bits":
            _bits(engine, model, sources, samples if len(names) == 1 and samples else tasks or 100, as_json)
        elif name == "infill":
            _report(model, lambda: _infill(engine, model, sources, tasks or 100, settings.seed), as_json)
        elif name in MAKING:
            make = MAKING[name]
            _report(model, lambda: make(engine, tasks or 100, settings.seed), as_json)  # noqa: B023
        elif name == "tour":
            assert sandbox is not None, "it was opened above"
            guided = frozenset(weights.read_special(weights.resolve_model(model)).guided)
            tourist = Model(engine, settings.dialogue, budgets, guided)
            _tour(model, lambda: measure_tour(tourist, tasks or _TOUR_SEEDS, sandbox, settings.seed), as_json)  # noqa: B023
        elif name in READING:
            read, count = READING[name], tasks or 10**9
            _report(model, lambda: read(engine.decoder, engine.vocabulary, count, settings.seed), as_json)  # noqa: B023
        else:
            for count, word in itertools.product(counts, efforts):
                each = dataclasses.replace(settings, shots=count, effort="" if word == "none" else word)
                _report(model, lambda: answers.measure(engine, chosen[name], each, sandbox), as_json)  # noqa: B023


def _refuse_idle(
    names: Sequence[str],
    sources: Sequence[str],
    samples: int | None,
    tasks: int | None,
    shots: str,
    settings: answers.Settings,
    lengths: str | None,
    effort: str | None,
) -> None:
    """Raises UserError where an option is given that none of the suites uses."""
    asked, usual = set(names), answers.Settings()
    made = {name for name in _ANSWERED if name.removesuffix("-beyond") in suites.GENERATED}
    # What is given, the suites that use it, and how those are called.
    options: dict[str, tuple[bool, Set[str], str]] = {
        "--data": (bool(sources), _OF_DOCUMENTS, "bits, infill and moderation"),
        "--samples": (samples is not None, _ANSWERED | ({"bits"} if len(names) == 1 else set()), "suites that are answered"),
        "--tasks": (tasks is not None, set(NAMES) - {"moderation"}, "all suites but moderation, which reads the whole file"),
        "--shots": (shots.strip() != "0", _ANSWERED, "suites that are answered"),
        "--temperature": (settings.temperature is not None, _ANSWERED, "suites that are answered"),
        "--top-p": (settings.top_p != usual.top_p, _ANSWERED, "suites that are answered"),
        "--max-tokens": (settings.max_tokens is not None, _ANSWERED, "suites that are answered"),
        "--effort": (effort is not None, _ANSWERED, "suites that are answered"),
        "--lengths": (lengths is not None, made, f"suites of generated tasks ({', '.join(suites.GENERATED)})"),
    }
    for option, (given, users, whose) in options.items():
        if given and not asked & users:
            raise UserError(f"{option} is for {whose}; it would do nothing with {', '.join(names)}: leave it out.")
    if samples is not None and tasks is not None and asked == {"bits"}:
        raise UserError("--samples and --tasks both say how many documents bits reads at most; leave one of them out.")


def _suite(name: str, lengths: tuple[int, int] | None) -> suites.Suite:
    for made in (taught.TAUGHT, suites.PUBLIC, safety.SAFETY):
        if name in made:
            return made[name]()
    return suites.generated(name.removesuffix("-beyond"), lengths, name.endswith("-beyond"))


def _span(lengths: str | None) -> tuple[int, int] | None:
    if lengths is None:
        return None
    low, dash, high = lengths.partition("-")
    if not (low.isascii() and low.isdigit()) or (dash and not (high.isascii() and high.isdigit())):
        raise UserError(f"--lengths {lengths}: write LOW-HIGH, like 2-6.")
    span = int(low), int(high or low)
    if not 1 <= span[0] <= span[1] <= 64:
        raise UserError(f"--lengths {lengths}: lengths rise and lie between 1 and 64.")
    return span


def _shots(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise UserError(f"--shots {text}: write numbers of examples separated by commas, like 0,1,2,4,8.")
    return [int(part) for part in parts]


def _tour(model: str, find: Callable[[], tuple[list[Score], list[LeftOut]]], as_json: bool) -> None:
    """Prints the steps of the tour, and those that were left out with the reason."""
    start = time.perf_counter()
    scores, left_out = find()
    _print(model, scores, round(time.perf_counter() - start, 2), as_json)
    for one in left_out:
        row = {"suite": "tour", "measure": one.step.title, "left_out": one.reason, "model": model}
        print(json.dumps(row) if as_json else f"tour, {one.step.title}: left out, {one.reason}", flush=True)


def _report(model: str, find: Callable[[], list[Score]], as_json: bool) -> None:
    """Prints scores, one a line."""
    start = time.perf_counter()
    scores = find()
    _print(model, scores, round(time.perf_counter() - start, 2), as_json)


def _print(model: str, scores: Sequence[Score], seconds: float, as_json: bool) -> None:
    for score in scores:
        if as_json:
            print(json.dumps({**score.as_json(), "model": model, "seconds": seconds}), flush=True)
            continue
        print(score.as_text(), flush=True)
        alone = len(scores) == 1 or any(other.settings != score.settings for other in scores)
        if alone or score is scores[-1]:
            print("  " + ", ".join(f"{key} {value}" for key, value in score.settings.items()), flush=True)


def _bits(engine: Engine, model: str, sources: Sequence[str], documents_at_most: int, as_json: bool) -> None:
    """Bits per byte and nats per token, with the standard error over documents; of a model that knows pictures bits per pixel
    instead, where the documents have some."""
    start = time.perf_counter()
    sees = bool(engine.vocabulary.ids_of("image"))
    documents, on = documents_of(model, sources, sees)
    if sees:
        seen = list(documents)
        if pictures := sample_pictures(seen, documents_at_most):
            found = measure_pictures(engine.decoder, engine.vocabulary, pictures)
            _show_pictures(model, on, found, time.perf_counter() - start, as_json)
            return
        documents = iter(seen)
    result = measure(engine.decoder, engine.vocabulary, sample_documents(documents, documents_at_most))
    seconds = time.perf_counter() - start
    if as_json:
        numbers = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in dataclasses.asdict(result).items()}
        print(json.dumps({"suite": "bits", "model": model, "on": on, **numbers, "seconds": round(seconds, 2)}))
        return
    # One document has no spread.
    error = "" if math.isnan(result.standard_error) else f" +- {result.standard_error:.4f}"
    print(
        f"bits per byte {result.bits_per_byte:.4f}{error}, {result.nats_per_token:.4f} nats per token; "
        f"{on}, n = {result.documents} documents, {result.tokens:,} tokens, {result.bytes:,} bytes"
    )


def _moderation(model: str, sources: Sequence[str], as_json: bool) -> None:
    if len(sources) != 1:
        raise UserError("--suite moderation needs one --data, a file of labelled texts (docs/safety.md).")
    texts = read_labelled(Path(sources[0].removeprefix("files:")), lambda line: print(line, file=sys.stderr))
    moderator = Moderator(model, detect("float32"))
    if left := [name for name in CATEGORIES if name not in moderator.head and any(one.known(name) for one in texts)]:
        print(f"not covered by {model}, and not measured: {', '.join(left)}", file=sys.stderr)

    def find() -> list[Score]:
        scores = measure_moderation(moderator, texts, sources[0])
        if not scores:
            raise UserError(f"{sources[0]} has no category that {model} covers with texts in it and texts outside of it.")
        return scores

    _report(model, find, as_json)


def _infill(engine: Engine, model: str, sources: Sequence[str], count: int, seed: int) -> list[Score]:
    documents, on = documents_of(model, sources, pictures=False)
    scores = infill(engine, sample_documents(documents, count), count, seed)
    return [dataclasses.replace(score, settings={**score.settings, "on": on}) for score in scores]


def _show_pictures(model: str, on: str, found: PictureMeasure, seconds: float, as_json: bool) -> None:
    if as_json:
        numbers = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in dataclasses.asdict(found).items()}
        print(json.dumps({"suite": "bits", "model": model, "on": on, **numbers, "seconds": round(seconds, 2)}))
        return
    error = "" if math.isnan(found.standard_error) else f" +- {found.standard_error:.4f}"
    captioned, psnr = found.bits_per_pixel_captioned, found.psnr
    with_captions = "" if math.isnan(captioned) else f", {captioned:.4f} after the caption"
    palette = "which the palette holds exactly" if math.isnan(psnr) else f"which the palette holds to {psnr:.1f} dB"
    print(
        f"bits per pixel {found.bits_per_pixel:.4f}{error}{with_captions}; "
        f"{on}, n = {found.pictures} pictures, {found.pixels:,} pixels, {palette}"
    )


def documents_of(model: str, sources: Sequence[str], pictures: bool) -> tuple[Iterator[Document], str]:
    """What to measure on, and how it is called.

    Args:
        sources: as `evaluate` takes them.
        pictures: whether they are wanted too.

    Raises:
        UserError: the model was tuned on what is no document, and no source is given.
    """
    run = RunFolder.behind(weights.home(weights.resolve_model(model)))
    if not sources and starter.is_meant(model):
        # It has read this source too; whatever Python's version, what is held out here was held out there.
        corpus = gather(Data(sources=(Source(uri=_STAND_IN),)), cache_folder(), lambda line: print(line, file=sys.stderr))
        return corpus.documents("validation", 0), f"held-out documents of {_STAND_IN}"
    if sources or not (run.path / "recipe.yaml").is_file():
        sources = sources or (_STAND_IN,)
        skipped: list[Skipped] = []
        wanted: frozenset[Medium] = frozenset({"image"}) if pictures else frozenset()
        return (document for uri in sources for document in read_documents(uri, skipped, wanted=wanted)), ", ".join(sources)
    if "shards" not in run.info:
        raise UserError(f"{run.path} was tuned on what is no document; give --data, like --data files:mydocs/.")
    corpus = gather(run.recipe.data, cache_folder(), lambda line: print(line, file=sys.stderr))
    held_out = (document for i in range(len(corpus.sources)) for document in corpus.documents("validation", i))
    return held_out, "held-out documents of the run"
