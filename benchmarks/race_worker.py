"""One training of `optimizer_race.py`, in a process of its own: the real loop on a prepared run's model and data, one thread."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.recipe import Recipe

IN_RUN_TOKENS, FINAL_TOKENS = 40_000, 300_000
EVALUATION_SECONDS = 10.0


class Enough(Exception):
    """The measurement is done."""


def prepared_run(given: Path | None) -> Path:
    """A run's folder with recipe, tokenizer and token files: the given one, or the `code` recipe planned for six minutes."""
    if given is not None:
        return given
    from tessera import recipe as recipes
    from tessera.commands.train import prepare
    from tessera.device import cache_folder

    path = cache_folder() / "benchmark-code-6m"
    if not (path / "run.json").is_file():
        prepare(recipes.load("code", ["budget=6m"]), path, None, time.monotonic(), 1)
    return path


def batches_of(run: Path, factors: list[float]) -> list[int]:
    """Rows of AdamW's batches: the factors times what the run's rules gave."""
    from tessera.run import RunFolder

    rows = RunFolder.open(run).recipe.train.batch_rows
    assert rows
    return sorted({max(1, round(rows * factor)) for factor in factors})


def settled(recipe: Recipe, asked: dict[str, Any]) -> Recipe:
    """The run's recipe with another optimizer, length and seed; what follows from these is left to the rules again."""
    from tessera.scaling import rules

    tokens = asked.get("tokens") or recipe.train.tokens
    open_again = dict.fromkeys(
        ("micro_rows", "warmup_steps", "cooldown_steps", "evaluate_every", "matrix_rate", "adam_rate", "weight_decay")
    )
    changes = {
        **open_again, "optimizer": asked["optimizer"], "tokens": tokens, "seed": asked.get("seed", 0), "sample_prompts": (),
        "batch_rows": asked.get("rows"), "threads": 1, "workers": 1, "compile": False, "checkpoint_seconds": 1e9,
    }  # fmt: skip
    if asked.get("rate"):
        changes |= {"matrix_rate": asked["rate"], "adam_rate": asked["rate"]}
    intent = recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})
    return rules.resolve(intent, rules.Facts(None, 1e11)).recipe


def run(folder_path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Trains, or with `measure` only times some steps."""
    from tessera.data.loader import Loader, validation_batches
    from tessera.data.shards import open_shards
    from tessera.device import detect
    from tessera.model.decoder import Decoder
    from tessera.run import RunFolder
    from tessera.tokens.vocabulary import Vocabulary
    from tessera.train.job import shape_of
    from tessera.train.loop import Job, total_steps, train
    from tessera.train.objectives import evaluate

    folder = RunFolder.open(folder_path)
    recipe = settled(folder.recipe, asked)
    settings = recipe.train
    assert settings.batch_rows
    measuring = asked.get("measure", False)
    steps = total_steps(recipe)
    step_seconds = asked.get("seconds_per_token", 0.0) * settings.batch_rows * settings.context
    every = 10**9 if measuring else max(1, min(steps, round(EVALUATION_SECONDS / step_seconds)))
    recipe = recipe.model_copy(update={"train": settings.model_copy(update={"evaluate_every": every})})
    shards, vocabulary = open_shards(Path(folder.info["shards"])), Vocabulary.load(folder.path / "tokenizer")
    machine = detect(settings.precision, 1)
    shape = shape_of(recipe, vocabulary.size)
    decoder = Decoder(shape, machine.torch_dtype)
    decoder.initialise(settings.seed)
    times: list[float] = []
    curve: list[tuple[float, float]] = []
    last = time.process_time()

    def observer(event: dict[str, Any]) -> None:
        nonlocal last
        now = time.process_time()
        if event["event"] == "step":
            times.append(now - last)
            # The first steps touch memory for the first time.
            if measuring and len(times) >= 5 and sum(times) > 10:
                raise Enough
        if event["event"] == "evaluation":
            curve.append((round(sum(times), 2), event["loss"]))
        last = time.process_time()

    loader = Loader(shards, recipe.data, settings.context, settings.batch_rows, settings.seed)
    held_out = validation_batches(shards, settings.context, 8, IN_RUN_TOKENS, recipe.data.document_mask)
    job = Job(recipe, decoder, loader, held_out, held_out, vocabulary.token_bytes, machine, 1e11, {}, observers=(observer,))
    last = time.process_time()
    try:
        train(job)
    except Enough:
        per_step = statistics.mean(times[2:])
        return {"optimizer": asked["optimizer"], "seconds_per_token": per_step / (settings.batch_rows * settings.context)}
    final = evaluate(
        decoder,
        validation_batches(shards, settings.context, 8, FINAL_TOKENS, recipe.data.document_mask),
        vocabulary.token_bytes,
        machine.torch_device,
    )
    kept = {key: asked[key] for key in ("optimizer", "rate", "fraction", "seed")}
    return {
        **kept, "rows": settings.batch_rows, "steps": steps, "tokens": settings.tokens, "cpu_seconds": sum(times),
        "loss": final.loss, "bits_per_byte": final.bits_per_byte, "evaluated_tokens": final.tokens, "curve": curve,
        "matrix_rate": settings.matrix_rate, "adam_rate": settings.adam_rate,
        "warmup_steps": settings.warmup_steps, "cooldown_steps": settings.cooldown_steps,
    }  # fmt: skip


if __name__ == "__main__":
    from tessera.device import prepare_process

    prepare_process()
    print(json.dumps(run(Path(sys.argv[1]), json.loads(sys.argv[2]))))
