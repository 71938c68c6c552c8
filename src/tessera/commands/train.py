"""`tessera train`, `plan` and `--resume`: from a recipe to a finished run.

The work has two halves that meet in the run's folder. `prepare` gathers data, measures the machine, derives every setting,
trains the tokenizer and writes all of it down; `launch` reads it back and trains. A fresh run, a resumed one and each process
under `torchrun` go through the same `launch`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

import tessera
from tessera import device as devices
from tessera import recipe as recipes
from tessera.commands.live import LiveLine, check_tracker, tracker
from tessera.data.corpus import Corpus, gather
from tessera.data.loader import Loader, refuse_missing_rows, validation_batches
from tessera.data.shards import Shards, open_shards, tokenise
from tessera.device import Machine
from tessera.engine.engine import Engine
from tessera.engine.sampling import SamplingParams
from tessera.errors import Interrupted, UserError
from tessera.model import weights
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.recipe import Budget, Recipe
from tessera.report import write_report
from tessera.run import RunFolder, cache_folder, disk_may_be_full
from tessera.scaling import rules
from tessera.tokens.vocabulary import Vocabulary
from tessera.train import checkpoint, loop, parallel, speed

Say = Callable[[str], None]


def say(text: str) -> None:
    """One line to the person, beside the results."""
    print(text, file=sys.stderr, flush=True)


def train(recipe: str, budget: str | None, overrides: list[str], init: str | None, out: str | None, resume: bool) -> Path:
    """Trains a model; returns the run's folder.

    Args:
        recipe: name or path.
        budget: instead of the recipe's.
        overrides: `key=value`.
        init: folder of a model to go on from.
        out: the run's folder; by default `runs/NAME`.
        resume: go on from the last checkpoint in that folder.

    Raises:
        UserError: anything that the person can set right.
        RunFailed: the disk is full, or too many steps in a row were useless.
        Interrupted: a signal asked to stop.
    """
    begin = time.monotonic()
    intent = load(recipe, budget, overrides)
    path = Path(out or f"runs/{intent.name}")
    if resume:
        # A shipped page may be resumed by its name alone; of one's own page, everything counts.
        said = {"name", *(o.partition("=")[0] for o in overrides), *(["budget"] if budget is not None else [])}
        refuse_changes(intent, None if recipe.endswith((".yaml", ".yml")) else said, init, RunFolder.open(path))
    world = parallel.join()
    try:
        with disk_may_be_full(path):
            refusal: tuple[type[UserError], str] | None = None
            if world.first and not resume:
                try:
                    prepare(intent, path, init, begin, world.size)
                except UserError as error:
                    # Its words alone: the error holds this frame, and the folder's lock with it.
                    refusal = type(error), str(error)
            # All end alike: a process that waits for one that has gone would speak of lost connections.
            if (refusal := world.share(refusal)) is not None:
                raise refusal[0](refusal[1])
            launch(path, world, resume)
    except Interrupted as stop:
        raise Interrupted(stop.number, stop.step, (path / "run.json").is_file()) from None
    finally:
        world.close()
    return path


def load(recipe: str, budget: str | None, overrides: list[str]) -> Recipe:
    """The recipe with what the command line sets."""
    return recipes.load(recipe, overrides + ([f"budget={json.dumps(budget)}"] if budget is not None else []))


def refuse_changes(intent: Recipe, keys: set[str] | None, init: str | None, folder: RunFolder) -> None:
    """A resumed run goes on as it began: what is set now has to be what was set then.

    Args:
        intent: what is asked for now.
        keys: fields and parts of the recipe to compare; None: all that somebody wrote down.
        init: the model to go on from that is named now, if one is.
        folder: the run.

    Raises:
        UserError: something differs.
    """
    stored = folder.recipe
    for name, value in _set_values(intent):
        if keys is not None and not any(f"{name}.".startswith(f"{key}.") for key in keys):
            continue
        kept = functools.reduce(getattr, name.split("."), stored)
        if kept != value:
            raise UserError(
                f"{name} is {value} here and {kept} in the run at {folder.path}; --resume goes on with the run's own settings: "
                "leave it as it was, or start a new run with another --out."
            )
    if init is not None and str(weights.resolve_model(init).resolve()) != folder.info.get("init"):
        raise UserError(
            f"the run at {folder.path} did not start from --init {init}; leave --init out, or start a new run with another --out."
        )


def _set_values(part: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of the fields that somebody wrote down."""
    for name in sorted(part.model_fields_set):
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield from _set_values(value, f"{prefix}{name}.")
        elif value is not None and name != "summary":
            yield prefix + name, value


def plan(recipe: str, budget: str | None, overrides: list[str], as_json: bool) -> None:
    """Prints what would be trained, each value with its reason."""
    begin = time.monotonic()
    intent = load(recipe, budget, overrides)
    machine = devices.detect(intent.train.precision, intent.train.threads)
    clock = Clock(begin, _seconds(intent))
    facts = _facts(machine, clock, devices.matmul_peak(machine))
    planned = _measured_plan(intent, facts, machine, clock)
    if as_json:
        page = {"recipe": planned.recipe.model_dump(mode="json"), "flops": planned.flops}
        derived = [asdict(d) for d in planned.derived]
        print(json.dumps({**page, "parameters": planned.shape.matmul_parameters, "derived": derived}, indent=1))
    else:
        show(planned, print)


def show(planned: rules.Plan, out: Say) -> None:
    """The derived settings as a table."""
    parameters, tokens = planned.shape.matmul_parameters, planned.recipe.train.tokens
    out(f"{parameters:,} matmul parameters, {tokens:,} tokens, {planned.flops:.2e} FLOPs")
    for item in planned.derived:
        value = f"{item.value:.4g}" if isinstance(item.value, float) else str(item.value)
        out(f"  {item.name:<28} {value:>12}   {item.reason}")


def prepare(intent: Recipe, path: Path, init: str | None, begin: float, processes: int) -> None:
    """Everything before the first step, written into a new folder."""
    check_tracker(intent.train.track)
    machine = devices.detect(intent.train.precision, intent.train.threads)
    RunFolder.refuse_occupied(path)
    clock = Clock(begin, _seconds(intent))
    peak = devices.matmul_peak(machine)
    say(f"{machine.name}, {machine.threads} threads, {machine.dtype} ({machine.reason}), matmul peak {peak / 1e9:,.0f} GFLOP/s")
    cache = cache_folder()
    model = None if init is None else weights.resolve_model(init)
    shape = None if model is None else weights.read_config(model)
    corpus = gather(intent.data, cache, say)
    facts = _facts(machine, clock, peak, shape, processes)
    planned = _measured_plan(intent, facts, machine, clock)
    if model is None or shape is None:
        vocabulary = _tokenizer(corpus, planned.recipe, cache)
    else:
        vocabulary = Vocabulary.load(model, shape.vocab_size)
    shards = tokenise(corpus, vocabulary, intent.data, cache, say, planned.recipe.train.context)
    planned = _settled(intent, planned, facts, clock)
    show(planned, say)
    settings = planned.recipe.train
    assert settings.tokens and settings.batch_rows
    steps = loop.total_steps(planned.recipe)
    refuse_missing_rows(shards, planned.recipe.data, settings.context, settings.batch_rows, settings.seed, steps)
    epochs = settings.tokens / max(1, shards.train_tokens)
    if epochs > rules.MOST_EPOCHS:
        say(
            f"the run reads its {shards.train_tokens:,} tokens {epochs:.1f} times; "
            f"beyond {rules.MOST_EPOCHS:g} times, more data helps more than more compute."
        )

    folder = RunFolder.create(path, planned.recipe)
    vocabulary.save(folder.path / "tokenizer", planned.recipe.train.context)
    with open(folder.path / "skipped.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(s)) + "\n" for summary in corpus.sources for s in summary.skipped)
    for item in planned.derived:
        folder.record({"event": "derived", **asdict(item)})
    # Last: it says that the folder is prepared.
    folder.write_info({
        "command": " ".join(["tessera", *map(shlex.quote, sys.argv[1:])]),
        "commit": commit(),
        "versions": {
            "tessera": tessera.__version__, "python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__,
        },
        "machine": {
            "cpu": machine.name, "threads": machine.threads, "matmul_peak_gflops": peak / 1e9, "dtype": machine.dtype,
            "compiled": planned.recipe.train.compile,
        },
        "data": [{**asdict(s), "skipped": len(s.skipped)} for s in corpus.sources],
        "shards": str(shards.folder),
        "init": None if model is None else str(model.resolve()),
        "parameters": planned.shape.parameters,
        "matmul_parameters": planned.shape.matmul_parameters,
        "prepared_seconds": time.monotonic() - begin,
    })  # fmt: skip
    folder.unlock()


def launch(path: Path, world: parallel.World, resume: bool) -> None:
    """Trains what the folder describes, from its last checkpoint where there is one and `resume` asks for it."""
    folder = RunFolder.open(path)
    if world.first:
        folder.lock()
    recipe, info = folder.recipe, folder.info
    if not info:
        raise UserError(f"{path} was not prepared to the end (no run.json); start it again without --resume.")
    facts = info["machine"]
    # A resumed run computes as it began: the stored thread count, dtype and compile choice, nothing measured again.
    machine = devices.detect(facts["dtype"], facts["threads"])
    vocabulary = Vocabulary.load(path / "tokenizer")
    shards = _shards(recipe, info, vocabulary, world)
    settings = recipe.train
    assert settings.batch_rows and settings.evaluate_tokens
    decoder = _decoder(recipe, info, vocabulary, machine)
    start = checkpoint.latest(folder.checkpoints, lambda text: say(f"warning: {text}")) if resume and world.first else None
    start = world.share(start)
    steps = loop.total_steps(recipe)
    if start is not None and start.step == steps and folder.model.is_dir():
        if world.first:
            say(f"the run is finished: model {folder.model}, report {write_report(path)}")
        return
    if world.first:
        checkpoint.set_aside(folder.checkpoints, start)
        folder.forget_after(start.step if start else 0)
        if resume:
            text = f"resumed from {start.folder}" if start else "resumed; no checkpoint was written yet, so from the beginning"
            folder.record({"event": "note", "step": start.step if start else 0, "text": text})
            say(text)
    live = LiveLine(steps)
    observers: list[loop.Observer] = [folder.record, live] if world.first else []
    if world.first and (tracking := tracker(settings.track, path, recipe.name)):
        observers.append(tracking)
    job = loop.Job(
        recipe=recipe,
        decoder=decoder,
        loader=Loader(shards, recipe.data, settings.context, settings.batch_rows, settings.seed, world.rank, world.size),
        held_out=validation_batches(
            shards, settings.context, min(8, settings.batch_rows), settings.evaluate_tokens, recipe.data.document_mask
        ),
        token_bytes=_padded(vocabulary.token_bytes, decoder.config.vocab_size),
        machine=machine,
        matmul_peak=facts["matmul_peak_gflops"] * 1e9,
        identity={"recipe": recipe.fingerprint(), "tokenizer": vocabulary.hash, "data": shards.hash},
        writer=checkpoint.Writer(folder.checkpoints) if world.first else None,
        world=world,
        observers=observers,
        sample=_sampler(decoder, vocabulary) if settings.sample_prompts else None,
    )  # fmt: skip
    try:
        result = loop.train(job, start)
    finally:
        live.close()
    if world.first:
        special = _special(info, vocabulary)
        weights.save(decoder, folder.model, special=special, companions=lambda f: vocabulary.save(f, decoder.config.context))
        report = write_report(path)
        losses = f"{result.loss:.4f} nats per token, {result.bits_per_byte:.4f} bits per byte"
        say(f"held-out loss {losses}, over {result.tokens:,} tokens")
        say(f"model {folder.model}, report {report}")
    world.barrier()


def _seconds(intent: Recipe) -> float | None:
    """The budget as time, where it is time or money."""
    budget = Budget.parse(intent.budget)
    if budget.dollars is not None:
        assert intent.price_per_hour is not None
        return budget.dollars / intent.price_per_hour * 3600
    return budget.seconds


def _facts(machine: Machine, clock: Clock, peak: float, shape: DecoderConfig | None = None, processes: int = 1) -> rules.Facts:
    """What the rules need to know of the machine; `peak` is the FLOP/s of one process."""
    return rules.Facts(
        clock.left(),
        peak * processes,
        shape=shape,
        processes=processes,
        kind=machine.kind,
        threads=machine.threads,
        memory_bytes=devices.memory_bytes(machine),
        compiler=devices.can_compile(machine),
    )


def _measured_plan(intent: Recipe, facts: rules.Facts, machine: Machine, clock: Clock) -> rules.Plan:
    """Plans, measures the planned model's speed, plans again with it."""
    planned = rules.resolve(intent, facts)
    if facts.seconds is None:
        return planned
    # Twice: the first measurement may move the shape, whose own speed then counts.
    for _ in range(2):
        measured = speed.tokens_per_second(planned.shape, planned.recipe.train, machine) * facts.processes
        share = measured * planned.shape.flops_per_token(intent.train.context) / facts.peak_flops
        parameters = planned.shape.matmul_parameters
        say(f"measured {measured:,.0f} tokens/s at {parameters:,} parameters, {share:.0%} of the matmul peak")
        before = planned.shape
        facts = replace(facts, seconds=clock.left(), utilisation=share, measured=True)
        planned = rules.resolve(intent, facts)
        if planned.shape == before:
            break
    return replace(planned, utilisation=facts.utilisation)


def _settled(intent: Recipe, planned: rules.Plan, facts: rules.Facts, clock: Clock) -> rules.Plan:
    """The plan with the time that preparation has left; shape and vocabulary stay as they were planned."""
    if facts.seconds is None:
        return planned
    train = intent.train.model_copy(update={"compile": planned.recipe.train.compile})
    fixed = intent.model_copy(update={"model": planned.recipe.model, "tokenizer": planned.recipe.tokenizer, "train": train})
    again = rules.resolve(fixed, replace(facts, seconds=clock.left(), utilisation=planned.utilisation, measured=True))
    kept = {d.name: d for d in planned.derived if not d.name.startswith("train.") or d.name == "train.compile"}
    return replace(again, derived=tuple(kept.get(d.name, d) for d in again.derived))


@dataclass(frozen=True)
class Clock:
    """What is left of a budget in time.

    Args:
        begin: `time.monotonic()` when the command began.
        seconds: the budget, or None where it is not a time.
    """

    begin: float
    seconds: float | None

    def left(self) -> float | None:
        """Seconds for training: evaluations and the last save taken off."""
        return None if self.seconds is None else (self.seconds - (time.monotonic() - self.begin)) * 0.96 - 2.0


def _tokenizer(corpus: Corpus, recipe: Recipe, cache: Path) -> Vocabulary:
    """Trained on the corpus, or found from the last time with the same corpus and size."""
    wanted = recipe.tokenizer
    assert wanted.vocabulary_size
    settings = f"{corpus.hash} {wanted.vocabulary_size} {wanted.pretokenizer} {tessera.__version__}"
    kept = cache / f"tokenizer-{hashlib.sha256(settings.encode()).hexdigest()[:24]}"
    if (kept / "vocabulary.json").is_file():
        return Vocabulary.load(kept)
    begin = time.perf_counter()
    texts = itertools.chain(corpus.texts("train"), corpus.texts("validation") if not corpus.train_bytes else ())
    vocabulary = Vocabulary.train(texts, wanted.vocabulary_size, wanted.pretokenizer)
    say(f"tokenizer: {vocabulary.text_size:,} entries in {time.perf_counter() - begin:.1f} s")
    vocabulary.save(kept)
    return vocabulary


def _shards(recipe: Recipe, info: dict[str, Any], vocabulary: Vocabulary, world: parallel.World) -> Shards:
    """The run's token files; where the cache was emptied, process 0 writes them again.

    Raises:
        UserError: the documents are no longer those of the run.
    """
    folder = Path(info["shards"])
    if world.first and not folder.is_dir():
        say(f"the token files {folder} are gone; reading the documents again.")
        cache = folder.parent
        again = tokenise(gather(recipe.data, cache, say), vocabulary, recipe.data, cache, say, recipe.train.context)
        if again.folder != folder:
            raise UserError(
                "the documents have changed since the run began, so that it cannot go on; start a new run with another --out."
            )
    world.barrier()
    return open_shards(folder)


def _decoder(recipe: Recipe, info: dict[str, Any], vocabulary: Vocabulary, machine: Machine) -> Decoder:
    """With the weights that a run starts from."""
    if info["init"] is not None:
        decoder = weights.load(info["init"], machine.torch_dtype)
        # It goes on reading what it could read before, also where the rows are shorter now.
        decoder.config = replace(decoder.config, context=max(decoder.config.context, recipe.train.context))
    else:
        decoder = Decoder(rules.shape_of(recipe, vocabulary.size), machine.torch_dtype)
        decoder.initialise(recipe.train.seed)
    return decoder.to(machine.torch_device)


def _special(info: dict[str, Any], vocabulary: Vocabulary) -> weights.SpecialIds:
    """Ids for the config files; a model to go on from keeps its own, which say whether it ends its turns."""
    own = weights.SpecialIds() if info["init"] is None else weights.read_special(info["init"])
    return weights.SpecialIds(own.begin, own.end or (vocabulary.end_id,), vocabulary.pad_id if own.pad is None else own.pad)


def _sampler(decoder: Decoder, vocabulary: Vocabulary) -> Callable[[str], str]:
    """Completes a prompt greedily with the present weights."""

    def sample(prompt: str) -> str:
        params = SamplingParams(max_tokens=48, temperature=0.0)
        ids = vocabulary.encode_text(prompt) or [vocabulary.end_id]
        return Engine(decoder, vocabulary).generate([ids], params)[0].text

    return sample


def _padded(token_bytes: np.ndarray, size: int) -> np.ndarray:
    """One entry per row of the embedding, which imported models have more of than tokens."""
    return np.pad(token_bytes, (0, size - len(token_bytes)))


def commit() -> str | None:
    """Of the checkout that the package stands in, if it stands in one and git is installed."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "--short", "HEAD", "--show-prefix"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    # Installed packages may lie within the checkout of something else.
    commit, _, prefix = asked.stdout.partition("\n")
    return commit if prefix.strip() == "src/tessera/commands/" else None
