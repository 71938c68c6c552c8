"""`tessera eval`: what a model is worth, as numbers with n and error: bits per byte of text, bits per pixel of pictures."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tessera.commands.generate import open_engine
from tessera.data.corpus import gather
from tessera.data.sources import Skipped
from tessera.data.sources import documents as read_documents
from tessera.errors import UserError
from tessera.evals.bits import measure, sample_documents
from tessera.evals.pictures import PictureMeasure, measure_pictures, sample_pictures
from tessera.run import RunFolder, cache_folder
from tessera.tokens.document import Document

_STAND_IN = "builtin:stdlib"


def evaluate(model: str, sources: Sequence[str] = (), samples: int = 100, as_json: bool = False) -> None:
    """Measures bits per byte and nats per token, and prints them with n and the standard error over documents; of a model that
    knows pictures bits per pixel instead, where the documents have some.

    Args:
        model: a run's folder or a Hugging Face folder.
        sources: as in a recipe, `files:mydocs/`. None given: the held-out documents of the run's own recipe, or, where the
            model has no run, `builtin:stdlib` (which an imported model may have been trained on).
        samples: documents at most, chosen by their hash.

    Raises:
        UserError: no model, a source that yields nothing, a tuned model without one.
    """
    engine = open_engine(model, "float32")
    start = time.perf_counter()
    sees = bool(engine.vocabulary.ids_of("image"))
    documents, on = _documents(model, sources, sees)
    if sees:
        seen = list(documents)
        if pictures := sample_pictures(seen, samples):
            found = measure_pictures(engine.decoder, engine.vocabulary, pictures)
            _show_pictures(model, on, found, time.perf_counter() - start, as_json)
            return
        documents = iter(seen)
    result = measure(engine.decoder, engine.vocabulary, sample_documents(documents, samples))
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


def _documents(model: str, sources: Sequence[str], pictures: bool) -> tuple[Iterator[Document], str]:
    """What to measure on, and how it is called."""
    run = RunFolder(Path(model))
    if sources or not (run.path / "recipe.yaml").is_file():
        sources = sources or (_STAND_IN,)
        skipped: list[Skipped] = []
        return (document for uri in sources for document in read_documents(uri, skipped, pictures=pictures)), ", ".join(sources)
    if "asked" in run.info:
        raise UserError(f"{run.path} was tuned on examples, which are no documents; give --data, like --data files:mydocs/.")
    corpus = gather(run.recipe.data, cache_folder(), lambda line: print(line, file=sys.stderr))
    held_out = (document for i in range(len(corpus.sources)) for document in corpus.documents("validation", i))
    return held_out, "held-out documents of the run"
