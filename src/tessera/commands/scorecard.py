"""What a finished chain is worth: every suite that its model can take, one row each, as `tessera eval --json` prints them.

Text and pictures that the training held out, source by source; what is generated here; and, where the public data is at hand,
grammar. Functions are continued as text, all else is asked in turns.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tessera.commands.evaluate import MAKING
from tessera.commands.generate import open_engine
from tessera.data.corpus import Corpus, gather
from tessera.data.films import film_file
from tessera.data.pictures import png
from tessera.data.sounds import sound_file
from tessera.device import cache_folder
from tessera.engine.engine import Engine
from tessera.engine.films import quantizer_of
from tessera.engine.sounds import sound_quantizer_of
from tessera.engine.thinking import budgets_of, speaks_dialogue
from tessera.errors import RunFailed, UserError
from tessera.evals import answers, bits, likelihood, pictures, safety, suites, taught
from tessera.evals.infill import infill
from tessera.evals.score import Score
from tessera.evals.tour import Model, Trial, measure_tour
from tessera.model import weights
from tessera.report.measured import SAMPLES, SCORES
from tessera.run import RunFolder, write_text
from tessera.sandbox.box import open_sandbox
from tessera.tokens.document import Document

DOCUMENTS, TASKS, SEEDS = 100, 200, 20
"""At most, of a source, of a suite and of a step of the tour."""

Say = Callable[[str], None]


def scorecard(path: Path, base: Path, of: str, say: Say) -> None:
    """Writes `evaluations.json`, rows of all that can be measured here, and `samples.json`, what the tour made; what cannot be
    measured is said.

    Args:
        path: the chain's folder, with its `model/`.
        base: run whose recipe names the data, and which held some of it out.
        of: the name in the rows.
    """
    engine = open_engine(str(path / "model"), "float32")
    rows, trials = measure(engine, path / "model", base, of, say)
    write_text(path / SAMPLES, json.dumps(_samples(engine, trials, path / "samples"), indent=1))
    write_text(path / SCORES, json.dumps(rows, indent=1))


def measure(
    engine: Engine, model: Path, base: Path, of: str, say: Say, only: Collection[str] | None = None
) -> tuple[list[dict[str, Any]], list[Trial]]:
    """Rows of all that can be measured of a model, and what it made in the tour.

    Args:
        engine: of the model.
        model: its folder.
        base, of: as in `scorecard`.
        only: sources by their addresses, and suites by their names; None: all.
    """
    corpus = gather(RunFolder.open(base).recipe.data, cache_folder(), lambda line: None)
    rows: list[dict[str, Any]] = []

    def add(name: str, find: Callable[[], Sequence[Score]]) -> None:
        if only is not None and name not in only:
            return
        begun = time.perf_counter()
        try:
            scores = find()
        except (UserError, RunFailed) as error:
            say(f"not measured: {name}: {error}")
            return
        seconds = round(time.perf_counter() - begun, 2)
        for score in scores:
            rows.append({**score.as_json(), "of": of, "seconds": seconds})
            say(score.as_text())

    for index, source in enumerate(corpus.sources):
        add(source.uri, lambda: _held_out(engine, corpus, index, source.uri))  # noqa: B023
    code = [index for index, source in enumerate(corpus.sources) if source.uri == "builtin:stdlib"]
    if code:
        add("infill", lambda: infill(engine, bits.sample_documents(corpus.documents("validation", code[0]), TASKS), TASKS, 0))
    add("blimp", lambda: likelihood.blimp(engine.decoder, engine.vocabulary, 20 * TASKS, 0))
    guided = frozenset(weights.read_special(model).guided)
    turns = answers.Settings(tasks=TASKS, dialogue=speaks_dialogue(str(model), engine.vocabulary), budgets=budgets_of(str(model)))
    asked = replace(turns, dialogue=False)
    add("functions", lambda: answers.measure(engine, taught.TAUGHT["functions"](), asked, open_sandbox(False)))
    add("wordings", lambda: answers.measure(engine, taught.TAUGHT["wordings"](), asked))
    for effort in ("", *turns.budgets):
        arithmetic = suites.generated("arithmetic", (1, 3))
        add(f"arithmetic {effort}".strip(), lambda: answers.measure(engine, arithmetic, replace(turns, effort=effort)))  # noqa: B023
    if turns.dialogue:
        for name, suite in safety.SAFETY.items():
            add(name, lambda: answers.measure(engine, suite(), turns))  # noqa: B023
    taught_here = {source.uri.partition("?")[0] for source in corpus.sources}
    for made, make in MAKING.items():
        if f"builtin:{made}" in taught_here:
            add(made, lambda: make(engine, TASKS, 0))  # noqa: B023

    trials: list[Trial] = []

    def tour() -> list[Score]:
        tourist = Model(engine, turns.dialogue, turns.budgets, guided)
        scores, left_out = measure_tour(tourist, SEEDS, open_sandbox(False), told=trials.append)
        for one in left_out:
            say(f"not measured: tour, {one.step.title}: {one.reason}")
        return scores

    add("tour", tour)
    return rows, trials


def _samples(engine: Engine, trials: Sequence[Trial], folder: Path) -> list[dict[str, Any]]:
    """The first right and the first wrong answer of each step; what is no text as a file in `folder`."""
    chosen: dict[tuple[str, bool], Trial] = {}
    for trial in trials:
        chosen.setdefault((trial.step.name, trial.right), trial)
    rows = []
    for (name, right), trial in chosen.items():
        row = {"step": trial.step.title, "prompt": trial.asked.prompt, "answer": "", "right": right}
        if isinstance(trial.made, str):
            row["answer"] = trial.made
        else:
            data, ending = _file(engine, trial)
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{name}-{'right' if right else 'wrong'}.{ending}"
            file.write_bytes(data)
            row["file"] = f"{folder.name}/{file.name}"
        rows.append(row)
    return rows


def _file(engine: Engine, trial: Trial) -> tuple[bytes, str]:
    """A picture, a film or a melody as a file, and its ending."""
    made = np.asarray(trial.made)
    if trial.step.kind == "draw":
        return png(made), "png"
    if trial.step.kind == "film":
        return film_file(made, quantizer_of(engine).per_second, "gif"), "gif"
    return sound_file(made, round(sound_quantizer_of(engine).per_second), "wav"), "wav"


def _held_out(engine: Engine, corpus: Corpus, index: int, uri: str) -> list[Score]:
    """Bits per byte or per pixel on what the training held out of a source; nothing for films and sound."""
    documents: Iterable[Document] = list(corpus.documents("validation", index))
    settings = {"on": f"held-out documents of {uri}"}
    if corpus.sources[index].pictures:
        seen = pictures.measure_pictures(engine.decoder, engine.vocabulary, pictures.sample_pictures(documents, DOCUMENTS))
        found = {
            "bits per pixel": (seen.bits_per_pixel, seen.standard_error),
            "bits per pixel after the caption": (seen.bits_per_pixel_captioned, seen.standard_error_captioned),
        }
        return [
            Score("bits", name, value, error, seen.pictures, None, None, "", settings)
            for name, (value, error) in found.items()
            if math.isfinite(value)
        ]
    if corpus.sources[index].films or corpus.sources[index].sounds:
        return []
    read = bits.measure(engine.decoder, engine.vocabulary, bits.sample_documents(documents, DOCUMENTS))
    return [Score("bits", "bits per byte", read.bits_per_byte, read.standard_error, read.documents, None, None, "", settings)]
