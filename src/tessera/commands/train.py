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
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import tessera
from tessera import device as devices
from tessera import recipe as recipes
from tessera.commands.foretell import (
    bring,
    climb,
    describe,
    ingredients_of,
    invert,
    launched,
    outlook,
    page,
    room,
    room_of_flops,
    sum_up,
    told,
    write,
)
from tessera.commands.live import BandWatch, HeartWatch, LiveLine, check_tracker, duration, tracker
from tessera.data.corpus import SPLITS, Corpus, Split, gather
from tessera.data.film_tasks import film_cut, least_film_context
from tessera.data.loader import refuse_missing_rows
from tessera.data.media import texts
from tessera.data.picture_tasks import least_context, picture_cut
from tessera.data.shards import Shards, open_shards, tokenise
from tessera.data.sound_tasks import at_its_rate, least_sound_context, sound_cut
from tessera.device import Machine, cache_folder
from tessera.errors import Interrupted, UserError
from tessera.model import weights
from tessera.model.decoder import DecoderConfig
from tessera.recipe import Recipe
from tessera.run import RunFolder, commit, disk_may_be_full
from tessera.scaling import ladder, ledger, rules, seal, shipped
from tessera.tokens.beside import find_tokenizer
from tessera.tokens.document import Document, Kind
from tessera.tokens.vocabulary import Vocabulary
from tessera.train import loop, parallel, speed
from tessera.train.launch import launch as run
from tessera.train.launch import origin
from tessera.train.quantizer import with_films, with_pictures, with_sounds

Say = Callable[[str], None]


def say(text: str) -> None:
    """One line to the person, beside the results; from the first of several processes."""
    if devices.is_first():
        print(text, file=sys.stderr, flush=True)


def train(
    recipe: str,
    budget: str | None,
    overrides: list[str],
    init: str | None,
    out: str | None,
    resume: bool,
    forecast: bool | None = None,
    target_loss: float | None = None,
    yes: bool = False,
) -> Path:
    """Trains a model; returns the run's folder.

    Args:
        recipe: name or path.
        budget: instead of the recipe's.
        overrides: `key=value`.
        init: folder of a model to go on from.
        out: the run's folder; by default `runs/NAME`.
        resume: go on from the last checkpoint in that folder.
        forecast: train a ladder first and seal what it says of the run; None: where a law can be expected to hold.
        target_loss: held-out loss to reach; the ladder says for what budget, which takes the place of the recipe's.
        yes: do not ask before that budget is spent.

    Raises:
        UserError: anything that the person can set right.
        RunFailed: the disk is full, or too many steps in a row were useless.
        Interrupted: a signal asked to stop.
    """
    begin = time.monotonic()
    intent = load(recipe, budget, overrides)
    if target_loss is not None and (resume or init is not None or forecast is False or not target_loss > 0):
        raise UserError(
            "--target-loss is a positive loss, and needs the forecast of a run from nothing: "
            "leave --resume, --init and --no-forecast out."
        )
    if target_loss is not None and intent.train.tokens is not None:
        raise UserError("--target-loss finds the budget, which train.tokens sets already; leave one of them out.")
    path = Path(out or f"runs/{intent.name}")
    _say_later(intent)
    if not resume:
        intent = at_its_rate(intent).timed()
    else:
        # A shipped page may be resumed by its name alone; of one's own page, everything counts.
        said = {"name", *(o.partition("=")[0] for o in overrides), *(["budget"] if budget is not None else [])}
        begun_before = RunFolder.open(path)
        _refuse_tuned(begun_before)
        refuse_changes(intent, None if recipe.endswith((".yaml", ".yml")) else said, init, begun_before)

    def begun(processes: int) -> None:
        RunFolder.refuse_occupied(path)
        meant, foretold = (intent, forecast) if target_loss is None else (aim(intent, target_loss, yes), True)
        prepare(meant, path, init, begin, processes, foretold)

    try:
        with parallel.joined() as world, disk_may_be_full(path):
            if not resume:
                world.lead(lambda: begun(world.size))
            launch(path, world, resume)
    except Interrupted as stop:
        raise Interrupted(stop.number, stop.step, (path / "run.json").is_file()) from None
    return path


def load(recipe: str, budget: str | None, overrides: list[str]) -> Recipe:
    """The recipe with what the command line sets."""
    return recipes.load(recipe, overrides + ([f"budget={json.dumps(budget)}"] if budget is not None else []))


def _say_later(intent: Recipe) -> None:
    """That a recipe has stages which are not run here."""
    if intent.then:
        shares = ", ".join(f"{later.stage} {later.share:.0%}" for later in intent.then)
        say(f"stages come after this training ({shares} of the budget), which tessera reproduce runs too.")


def _refuse_tuned(folder: RunFolder) -> None:
    """Raises UserError where the run is none of this command, whose settings say nothing then."""
    info = folder.info
    if info and "shards" not in info:
        raise UserError(
            f"{folder.path} is a run of tessera posttrain; go on by tessera posttrain STAGE --out {folder.path} --resume."
        )


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
    stored: Any = folder.recipe
    for name, value in _set_values(intent):
        if keys is not None and not any(f"{name}.".startswith(f"{key}.") for key in keys):
            continue
        kept = functools.reduce(lambda part, key: getattr(part, key, None), name.split("."), stored)
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


def plan(recipe: str, budget: str | None, overrides: list[str], as_json: bool, forecast: bool | None = None) -> None:
    """Prints what would be trained, each value with its reason, and what its forecast costs and how wide it will be."""
    begin = time.monotonic()
    intent = at_its_rate(load(recipe, budget, overrides)).timed()
    _say_later(intent)
    machine = devices.detect(intent.train.precision, intent.train.threads)
    clock = Clock(begin, intent.seconds)
    peak = devices.matmul_peak(machine)
    cache = cache_folder()
    corpus = gather(intent.data, cache, say)
    facts = _of_data(_facts(machine, clock, peak), corpus, intent.data)
    ready = shipped.find(intent) if forecast is None else None
    forecast = _wants_ladder(intent, facts, forecast, ready)
    planned = _measured_plan(intent, facts, machine, clock, room(intent) if forecast else 1.0)
    page: dict[str, Any] = {"recipe": planned.recipe.model_dump(mode="json"), "flops": planned.flops}
    page |= {"parameters": planned.shape.matmul_parameters, "derived": [asdict(d) for d in planned.derived]}
    if not as_json:
        show(planned, print)
    if forecast:
        vocabulary = _tokenizer(corpus, planned.recipe, cache, machine)
        shards = tokenise(corpus, vocabulary, intent.data, cache, say, planned.recipe.train.context)
        rungs = _rungs(intent, planned, vocabulary, shards, machine, cache)
        page["forecast"] = outlook(rungs, planned, peak, ledger.read(Path("runs") / ledger.FILE), None if as_json else print)
    elif ready is not None:
        page["forecast"] = told(bring(ready, None, say), planned, say if as_json else print)
    if as_json:
        print(json.dumps(page, indent=1))


def show(planned: rules.Plan, out: Say) -> None:
    """The derived settings as a table."""
    parameters, tokens = planned.shape.matmul_parameters, planned.recipe.train.tokens
    out(f"{parameters:,} matmul parameters, {tokens:,} tokens, {planned.flops:.2e} FLOPs")
    for item in planned.derived:
        out(item.line)


def aim(intent: Recipe, loss: float, yes: bool) -> Recipe:
    """The recipe with the budget that reaches a held-out loss, as a ladder foretells it; asks before that is spent.

    The ladder begins below the recipe's own budget and moves up while the loss lies far beyond it; the vocabulary is that of the
    first plan throughout, since a loss in nats per token means nothing without it.

    Raises:
        UserError: the loss is out of reach, the ladder is refused, the person says no, or nobody is there to be asked.
    """
    machine = devices.detect(intent.train.precision, intent.train.threads)
    peak, cache = devices.matmul_peak(machine), cache_folder()
    corpus = gather(intent.data, cache, say)
    facts = _of_data(_facts(machine, Clock(time.monotonic(), intent.seconds), peak), corpus, intent.data)
    planned = rules.resolve(intent, replace(facts, own_share=room(intent)))
    vocabulary = _tokenizer(corpus, planned.recipe, cache, machine)
    shards = tokenise(corpus, vocabulary, intent.data, cache, say, planned.recipe.train.context)
    tokenizer = planned.recipe.tokenizer
    say(f"a loss of {loss:g} nats per token, with {vocabulary.text_size:,} text entries:")
    for _ in range(3):
        rungs = ladder.design(intent, planned, vocabulary, shards, machine, cache)
        flops, least, most = invert(climb(rungs, vocabulary, shards, machine, say), loss)
        intent = intent.model_copy(update={"budget": f"{flops / room_of_flops():.4e}", "tokenizer": tokenizer})
        planned = rules.resolve(intent, replace(facts, seconds=None, own_share=room_of_flops()))
        if flops < 1.5 * ladder.REACH * rungs[0].flops:
            break
    speed_found = speed.tokens_per_second(planned.shape, planned.recipe.train, machine)
    rate = speed_found * planned.shape.flops_per_token(planned.shape.context)

    def price(amount: float) -> str:
        return f"{amount:.2e} FLOPs, {duration(amount / rate)} here" if math.isfinite(amount) else "no budget"

    say(f"{loss:g} should take {price(flops)}; 90 % between {price(least)}, and {price(most)}")
    if yes:
        return intent
    if not sys.stdin.isatty():
        raise UserError("nobody is here to be asked whether to spend that; give --yes.")
    if input("Spend it? [y/N] ").strip().lower() not in {"y", "yes"}:
        raise UserError("nothing was spent but the ladder, which is kept.")
    return intent


def prepare(intent: Recipe, path: Path, init: str | None, begin: float, processes: int, forecast: bool | None = False) -> None:
    """Everything before the first step, written into a new folder: with a forecast its ladder too."""
    check_tracker(intent.train.track)
    machine = devices.detect(intent.train.precision, intent.train.threads)
    RunFolder.refuse_occupied(path)
    clock = Clock(begin, intent.seconds)
    peak = devices.matmul_peak(machine)
    say(f"{machine.name}, {machine.threads} threads, {machine.dtype} ({machine.reason}), matmul peak {peak / 1e9:,.0f} GFLOP/s")
    cache = cache_folder()
    if intent.train.lora is not None and init is None:
        raise UserError("train.lora learns adapters beside a model that is there already; give one by --init.")
    model = None if init is None else weights.resolve_model(init)
    shape = None if model is None else weights.read_config(model)
    corpus = gather(intent.data, cache, say)
    own = None
    if model is not None and shape is not None:
        own = _grown(Vocabulary.load(model, shape.vocab_size), corpus, intent, machine)
        if more := own.size - shape.vocab_size:
            say(f"the model gets {more:,} new ids for what it has not learned yet; the old ones stay as they are.")
            shape = replace(shape, vocab_size=own.size)
    facts = _of_data(_facts(machine, clock, peak, shape, processes), corpus, intent.data)
    if forecast is not False and model is not None:
        say("no forecast: the law is of runs that begin from nothing, and this one goes on from a model.")
        forecast = False
    ready = shipped.find(intent) if forecast is None else None
    forecast = _wants_ladder(intent, facts, forecast, ready)
    planned = _measured_plan(intent, facts, machine, clock, room(intent) if forecast else 1.0)

    def materials(plan: rules.Plan) -> tuple[Vocabulary, Shards]:
        vocabulary = own or _tokenizer(corpus, plan.recipe, cache, machine)
        return vocabulary, tokenise(corpus, vocabulary, intent.data, cache, say, plan.recipe.train.context)

    vocabulary, shards = materials(planned)
    climbed = bring(ready, shards.hash, say) if ready is not None and not forecast else None
    if forecast:
        rungs = _rungs(intent, planned, vocabulary, shards, machine, cache)
        if not rungs or (facts.seconds is not None and all(rung.done for rung in rungs)):
            # There is nothing to pay for: all of the budget is the run's, whose ladder, if it has one, may then be another.
            larger = _whole(intent, planned, facts, clock)
            its = materials(larger)
            above = _rungs(intent, larger, *its, machine, cache) if rungs else []
            if all(rung.done for rung in above):
                planned, rungs, (vocabulary, shards) = larger, above, its
        climbed = climb(rungs, vocabulary, shards, machine, say) if rungs else None
    planned = _settled(intent, planned, facts, clock)
    show(planned, say)
    settings = planned.recipe.train
    assert settings.tokens and settings.batch_rows and settings.context
    steps = loop.total_steps(planned.recipe)
    _refuse_long_edges(intent, planned.recipe, steps)
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
    if climbed is not None:
        foretold = page(climbed, planned, path, commit())
        describe(foretold, say)
        write(foretold, folder, ingredients_of(folder.recipe, vocabulary, shards), say)
    # Last: it says that the folder is prepared.
    folder.write_info({
        "commit": commit(),
        **origin(planned.recipe, machine, peak, model),
        "data": [{**asdict(s), "skipped": len(s.skipped)} for s in corpus.sources],
        "shards": str(shards.folder),
        "parameters": planned.shape.parameters,
        "matmul_parameters": planned.shape.matmul_parameters,
        "prepared_seconds": time.monotonic() - begin,
    })  # fmt: skip
    folder.unlock()


def _refuse_long_edges(intent: Recipe, planned: Recipe, steps: int) -> None:
    """
    Raises:
        UserError: warm-up and cool-down, of which somebody has set one, are together longer than the run.
    """
    asked, train = intent.train, planned.train
    assert train.warmup_steps is not None and train.cooldown_steps is not None
    given = asked.warmup_steps is not None or asked.cooldown_steps is not None
    if given and train.warmup_steps + train.cooldown_steps > steps:
        raise UserError(
            f"train.warmup_steps={train.warmup_steps} and train.cooldown_steps={train.cooldown_steps} do not fit into "
            f"the run's {steps:,} steps; leave one of them out, or train longer."
        )


def launch(path: Path, world: parallel.World, resume: bool) -> None:
    """Trains what the folder describes, from its last checkpoint where there is one and `resume` asks for it."""
    folder = RunFolder.open(path)
    world.lead(folder.lock)
    recipe, info = folder.recipe, folder.info
    if not info:
        raise UserError(f"{path} was not prepared to the end (no run.json); start it again without --resume.")
    vocabulary = Vocabulary.load(path / "tokenizer")
    shards = _shards(recipe, info, vocabulary, world)
    steps = loop.total_steps(recipe)
    # What runs is the code that was loaded, not what an editor makes of it before the end.
    ingredients = ingredients_of(recipe, vocabulary, shards)
    foretold = seal.read(path) or {}
    watches = BandWatch(steps, foretold.get("band", []), sealed="seal" in foretold), HeartWatch(steps)
    live = LiveLine(steps, watches[0])

    def notice(event: dict[str, Any]) -> None:
        for note in filter(None, [watch.note(event) for watch in watches]):
            folder.record(note)
            live(note)

    def observers() -> list[loop.Observer]:
        launched(path)
        # What a resumed run will take again is forgotten by now.
        for event, watch in itertools.product(folder.events(), watches):
            watch.note(event)
        tracking = tracker(recipe.train.track, path, recipe.name)
        return [folder.record, live, notice, *([tracking] if tracking else [])]

    try:
        result = run(folder, vocabulary, shards, world, resume, observers, say)
    finally:
        live.close()
    world.lead(lambda: sum_up(folder, ingredients, result, say))


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
        dtype=machine.dtype,
    )


def _of_data(facts: rules.Facts, corpus: Corpus, data: recipes.Data) -> rules.Facts:
    """The facts with what the rules need to know of the documents."""
    ids = context = 0

    def documents() -> Iterator[Document]:
        return (d for i in range(len(corpus.sources)) for split in SPLITS for d in corpus.documents(split, i))

    if data.pictures is not None and corpus.pictures:
        cut = picture_cut(data.pictures)
        ids, context = cut.size if cut else data.pictures.colours, least_context(documents(), data.pictures)
    if data.films is not None and corpus.films:
        ids, context = ids + film_cut(data.films).size, max(context, least_film_context(documents(), data.films))
    if data.sounds is not None and corpus.sounds:
        ids += sound_cut(data.sounds).size
        context = max(context, least_sound_context(documents(), data.sounds))
    # Bytes of captions do not say how much there is to learn from.
    return replace(facts, media_ids=ids, least_context=context) if ids else replace(facts, train_bytes=corpus.train_bytes)


def _measured_plan(intent: Recipe, facts: rules.Facts, machine: Machine, clock: Clock, own: float) -> rules.Plan:
    """Plans, measures the planned model's speed, plans again with it; `own` is the run's part of the budget."""
    facts = replace(facts, own_share=own)
    planned = rules.resolve(intent, facts)
    if facts.seconds is None:
        return planned
    # Twice: the first measurement may move the shape, whose own speed then counts.
    for _ in range(2):
        measured = speed.tokens_per_second(planned.shape, planned.recipe.train, machine) * facts.processes
        share = measured * planned.shape.flops_per_token(planned.shape.context) / facts.peak_flops
        parameters = planned.shape.matmul_parameters
        say(f"measured {measured:,.0f} tokens/s at {parameters:,} parameters, {share:.0%} of the matmul peak")
        before = planned.shape
        facts = replace(facts, seconds=clock.left(), utilisation=share, measured=True)
        planned = rules.resolve(intent, facts)
        if planned.shape == before:
            break
    return replace(planned, utilisation=facts.utilisation)


def _whole(intent: Recipe, planned: rules.Plan, facts: rules.Facts, clock: Clock) -> rules.Plan:
    """The plan for all of the budget, at the speed that was measured for the part of it."""
    if facts.seconds is None:
        return rules.resolve(intent, facts)
    measured = replace(facts, seconds=clock.left(), utilisation=planned.utilisation, measured=True)
    return replace(rules.resolve(intent, measured), utilisation=planned.utilisation)


def _wants_ladder(intent: Recipe, facts: rules.Facts, forecast: bool | None, ready: shipped.Shipped | None) -> bool:
    """What was asked for; where nothing was, whether a law can be expected to hold, and words where nothing else is `ready`."""
    if forecast is not None:
        return forecast
    try:
        ladder.refuse_lawless(rules.resolve(intent, replace(facts, own_share=room(intent))).flops)
    except ladder.NoLadder as why:
        if ready is None:
            say(f"no forecast: {why}")
        return False
    return True


def _rungs(
    intent: Recipe, planned: rules.Plan, vocabulary: Vocabulary, shards: Shards, machine: Machine, cache: Path
) -> list[ladder.Rung]:
    """The ladder below a planned run; empty, and it is said why, where there is none."""
    try:
        return ladder.design(intent, planned, vocabulary, shards, machine, cache)
    except ladder.NoLadder as why:
        say(f"no forecast: {why}")
        return []


_PINNED = ("context", "short_context", "compile", "evaluate_tokens", "final_tokens")


def _settled(intent: Recipe, planned: rules.Plan, facts: rules.Facts, clock: Clock) -> rules.Plan:
    """The plan with the time that preparation has left; shape and vocabulary stay as they were planned."""
    if facts.seconds is None:
        return planned
    pinned = {f"train.{key}": getattr(planned.recipe.train, key) for key in _PINNED}
    train = intent.train.model_copy(update={name.removeprefix("train."): value for name, value in pinned.items()})
    fixed = intent.model_copy(update={"model": planned.recipe.model, "tokenizer": planned.recipe.tokenizer, "train": train})
    again = rules.resolve(fixed, replace(facts, seconds=clock.left(), utilisation=planned.utilisation, measured=True))
    kept = {d.name: d for d in planned.derived if not d.name.startswith("train.") or d.name in pinned}
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


def _tokenizer(corpus: Corpus, recipe: Recipe, cache: Path, machine: Machine) -> Vocabulary:
    """Trained on the corpus, or found from the last time with the same corpus and size."""
    wanted = recipe.tokenizer
    assert wanted.vocabulary_size
    settings = f"{corpus.hash} {wanted.vocabulary_size} {wanted.pretokenizer} {tessera.__version__}"
    if any(source.weight is not None for source in recipe.data.sources):
        settings += f" {[source.weight for source in recipe.data.sources]}"
    media: dict[Kind, BaseModel | None] = {"image": recipe.data.pictures, "video": recipe.data.films, "audio": recipe.data.sounds}
    for kind, medium in media.items():
        if medium is not None:
            settings += f" {medium.model_dump_json()} {recipe.data.seed}"
            if trained := getattr(medium, "trained", None):
                settings += find_tokenizer(trained, kind).fingerprint
    kept = cache / f"tokenizer-{hashlib.sha256(settings.encode()).hexdigest()[:24]}"
    if (kept / "vocabulary.json").is_file():
        return Vocabulary.load(kept)
    begin = time.perf_counter()
    splits: tuple[Split, ...] = ("train",) if corpus.train_bytes else SPLITS
    read = itertools.chain.from_iterable(texts(corpus, recipe.data, split) for split in splits)
    vocabulary = Vocabulary.train(read, wanted.vocabulary_size, wanted.pretokenizer)
    say(f"tokenizer: {vocabulary.text_size:,} entries in {time.perf_counter() - begin:.1f} s")
    vocabulary = _grown(vocabulary, corpus, recipe, machine)
    vocabulary.save(kept)
    return vocabulary


def _grown(vocabulary: Vocabulary, corpus: Corpus, recipe: Recipe, machine: Machine) -> Vocabulary:
    """The vocabulary with ids for all media of a corpus; what it knows already it keeps as it is."""
    if corpus.pictures and not _knows(vocabulary, "image"):
        vocabulary = with_pictures(vocabulary.with_controls(), corpus, recipe.data, machine, say)
    if corpus.films and not _knows(vocabulary, "video"):
        vocabulary = with_films(vocabulary.with_controls(), corpus, recipe.data, machine, say)
    if corpus.sounds and not _knows(vocabulary, "audio"):
        vocabulary = with_sounds(vocabulary.with_controls(), corpus, recipe.data, machine, say)
    return vocabulary


def _knows(vocabulary: Vocabulary, kind: Kind) -> bool:
    """Whether there are ids for a medium; where there are, its tokenizer has to be at hand."""
    if all(block.kind != kind for block in vocabulary.blocks):
        return False
    vocabulary.media_tokenizer(kind)
    return True


def _shards(recipe: Recipe, info: dict[str, Any], vocabulary: Vocabulary, world: parallel.World) -> Shards:
    """The run's token files; where the cache was emptied, process 0 writes them again.

    Raises:
        UserError: the documents are no longer those of the run.
    """
    folder = Path(info["shards"])

    def found_or_made() -> None:
        if folder.is_dir():
            return
        say(f"the token files {folder} are gone; reading the documents again.")
        cache = folder.parent
        again = tokenise(gather(recipe.data, cache, say), vocabulary, recipe.data, cache, say, recipe.train.context)
        if again.folder != folder:
            raise UserError(
                "the documents have changed since the run began, so that it cannot go on; start a new run with another --out."
            )

    world.lead(found_or_made)
    return open_shards(folder)
