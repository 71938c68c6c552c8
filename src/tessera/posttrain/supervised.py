"""Supervised tuning: a model's folder and a file of examples -> a model that answers like them.

`prepare` reads the examples, turns them into token files, derives every setting and writes all of it into a run's folder, in
the form that pre-training has; `tune` trains what stands there, with the same loop. Conversations share rows but see nothing of
each other; only what the assistant writes is learned; the loss is averaged over the learned tokens of the whole batch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tessera import device as devices
from tessera import recipe as recipes
from tessera.data.loader import count_rows
from tessera.data.shards import Shards, open_shards, write_records
from tessera.device import Machine
from tessera.errors import UserError
from tessera.model import weights
from tessera.model.decoder import DecoderConfig
from tessera.posttrain import plans
from tessera.posttrain.examples import Checked, check, in_sight, read_examples, thoughts
from tessera.posttrain.replay import first_run, replayed
from tessera.recipe import Budget, Recipe
from tessera.run import RunFolder, write_text
from tessera.scaling import rules
from tessera.scaling.rules import Derived
from tessera.tokens.chat import EFFORTS
from tessera.tokens.document import Document, TokenRecord
from tessera.tokens.vocabulary import Vocabulary
from tessera.train import loop, speed
from tessera.train.launch import launch, origin
from tessera.train.objectives import Evaluation
from tessera.train.parallel import ALONE, World

RATE_SHARE = 0.3
"""Rates of tuning as a part of those of pre-training (docs/LOG.md, 2026-11-25, "Tuning")."""
EPOCHS, LEAST_SEEN, MOST_SEEN, MOST_EPOCHS = 3, 100, 25_000, 25
"""Three passes; more over few examples and fewer over many (OpenAI's cookbook, "Data preparation for chat model fine-tuning")."""
UPDATES, MOST_BATCH = 200, 64
"""A batch is as large as leaves this many updates, up to so many examples."""
VALIDATION_SHARE = 0.05
_MOST_REPLAY = 0.9
_ROWS_OF = 64
_MOST_FINAL_TOKENS = 1 << 20

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish(plans.Asked):
    """What somebody asks for; None: a rule decides.

    Args:
        model: a run's folder or a Hugging Face folder.
        data: file of examples.
        validation: file of examples to measure on.
        validation_share: without such a file, this share of `data` is held out, at least one example; 0: none.
        budget: time, FLOPs or tokens, instead of epochs.
        epochs: passes over the examples.
        batch_size: examples in a batch.
        rate_multiplier: times the learning rates of the rules.
        replay: share of the rows that come from what the model learned first.
        seed: of the order of the examples and of what is held out.
        settings: `key=value` of the recipe.
    """

    model: str
    data: str
    validation: str | None = None
    validation_share: float = VALIDATION_SHARE
    budget: str | None = None
    epochs: float | None = None
    batch_size: int | None = None
    rate_multiplier: float | None = None
    replay: float = 0.0
    seed: int = 0
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.budget is not None and self.epochs is not None:
            raise UserError("give --budget or --epochs: either says how long to train.")
        for name, value in (("epochs", self.epochs), ("batch-size", self.batch_size), ("rate-multiplier", self.rate_multiplier)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name} {value:g} must be positive.")
        if not 0 <= self.validation_share < 0.5:
            raise UserError(f"--validation-share {self.validation_share:g} must be at least 0 and below 0.5.")
        if not 0 <= self.replay <= _MOST_REPLAY:
            raise UserError(f"--replay {self.replay:g} must be between 0 and {_MOST_REPLAY:g}.")


def prepare(wish: Wish, path: Path, say: Say) -> None:
    """Everything before the first step, written into a new run's folder.

    Raises:
        UserError: no such model or file, a line that is not an example, no example that fits, settings out of range.
    """
    begin = time.monotonic()
    RunFolder.refuse_occupied(path)
    model = weights.resolve_model(wish.model)
    shape = weights.read_config(model)
    vocabulary = Vocabulary.load(model, shape.vocab_size)
    begun = first_run(model) if wish.replay else None
    intent = _intent(wish, path.name, begun)
    budget = plans.read_budget(wish.budget, intent)
    checked = check(Path(wish.data))
    held_out = None if wish.validation is None else check(Path(wish.validation))
    machine = devices.detect(intent.train.precision, intent.train.threads)
    peak = devices.matmul_peak(machine, seconds=0.2)
    # A model whose turns are not ours would have to learn ours from nothing.
    if checked.dialogue and "<|user|>" not in vocabulary.controls:
        raise UserError(f"{model} has no tokens for the turns of a conversation; give examples with prompt and completion.")

    folder = RunFolder.create(path, intent)
    longest = min(shape.context, intent.train.context or shape.context) + 1
    reader = _Reader(vocabulary, longest)
    hidden = _held_out(checked, wish) if held_out is None else frozenset()
    train = reader.records(wish.data, lambda digest: digest not in hidden)
    if wish.validation is None:
        validation = reader.records(wish.data, lambda digest: digest in hidden) if hidden else iter(())
    else:
        validation = reader.records(wish.validation)
    uri = intent.data.sources[0].uri
    sources: dict[str, tuple[Iterable[TokenRecord], Iterable[TokenRecord]]] = {uri: (train, validation)}
    if begun is not None:
        sources[uri] = (kept := list(train)), validation
        tokens = round(wish.replay / (1 - wish.replay) * EPOCHS * sum(map(len, kept)))
        sources[intent.data.sources[1].uri] = replayed(begun, tokens, longest, wish.seed), ()
    shards = write_records(path / "tokens", sources, vocabulary)
    examples = {split: len(getattr(shards.sources[0], split).offsets) - 1 for split in ("train", "validation")}
    if left := len(reader.left_out):
        say(f"{left:,} of {sum(examples.values()) + left:,} examples are longer than {longest:,} tokens and are left out")
    if not examples["train"]:
        raise UserError(f"every example in {wish.data} is longer than the {longest:,} tokens that fit; shorten them.")
    thinking = {effort: reader.thoughts[effort] for effort in EFFORTS if effort in reader.thoughts}
    if thinking:
        said = ", ".join(f"{tokens:,} at the effort {effort}" for effort, tokens in thinking.items())
        say(f"thoughts of at most so many tokens: {said}")
    elif checked.dialogue and weights.read_special(model).thinking:
        say("no example has an effort, so the tuned model answers at once, and thinks no more")
    of_examples = shards.sources[0].tokens
    say(
        f"{examples['train']:,} examples of {of_examples:,} tokens, {_learned(shards):,} of them to be learned; "
        f"{examples['validation']:,} held out"
    )
    if begun is not None:
        say(f"{wish.replay:.0%} of the rows from {shards.sources[1].tokens:,} tokens of what {begun.path} learned")
    planned = _plan(wish, intent, budget, shape, shards, machine, peak)
    write_text(path / "recipe.yaml", planned.recipe.to_yaml())
    vocabulary.save(path / "tokenizer", shape.context)
    with open(path / "skipped.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in reader.left_out)
    plans.record(planned, folder, say, ("train.", "data."))
    # Last: it says that the folder is prepared.
    folder.write_info({
        **origin(planned.recipe, machine, peak, model),
        "data": plans.facts_of_data(uri, sum(examples.values()), Path(wish.data), left),
        "dialogue": checked.dialogue,
        "asked": asdict(wish),
        "examples": {**examples, "left_out": left},
        "thinking": thinking,
        "parameters": shape.parameters,
        "matmul_parameters": shape.matmul_parameters,
        "prepared_seconds": time.monotonic() - begin,
    })  # fmt: skip
    folder.unlock()


def tune(
    path: Path, resume: bool, observers: Callable[[RunFolder], Sequence[loop.Observer]], say: Say, world: World = ALONE
) -> Evaluation | None:
    """Trains what `prepare` wrote, from its last checkpoint where there is one and `resume` asks for it.

    Args:
        observers: makes those that are told the events, besides the folder's own record.
        world: this process among several.

    Returns:
        The held-out loss, NaN where nothing is held out; None where the run was finished already.

    Raises:
        UserError: no prepared run of this kind; another process trains in the folder.
        RunFailed, Interrupted: as `train.loop`.
    """
    folder = RunFolder.open(path)
    world.lead(folder.lock)
    asked(folder)
    vocabulary, shards = Vocabulary.load(path / "tokenizer"), open_shards(path / "tokens")
    return launch(folder, vocabulary, shards, world, resume, lambda: [folder.record, *observers(folder)], say)


def asked(folder: RunFolder) -> Wish:
    """What a prepared run was asked for; UserError where the folder holds none."""
    return Wish.of(plans.asked(folder, "asked", "tuning run; go on with it by tessera train"))


@dataclass
class _Reader:
    """Examples -> records.

    Args:
        vocabulary: of the model.
        longest: ids that a row holds; a longer example would lose its end or its beginning, so it is left out.
    """

    vocabulary: Vocabulary
    longest: int

    def __post_init__(self) -> None:
        self.left_out: list[dict[str, str]] = []
        self.thoughts: dict[str, int] = {}
        """Effort -> tokens of the longest thought that was read."""

    def records(self, path: str, wanted: Callable[[int], bool] = lambda digest: True) -> Iterator[TokenRecord]:
        for example in read_examples(Path(path)):
            if not wanted(example.digest):
                continue
            record = self.vocabulary.encode(in_sight(example.document, self.vocabulary))
            if len(record) > self.longest:
                reason = f"{len(record):,} tokens, more than {self.longest:,}"
                self.left_out.append({"path": f"{path}, line {example.line}", "reason": reason})
            else:
                self._note_thoughts(example.document)
                yield record

    def _note_thoughts(self, document: Document) -> None:
        """Takes in how long is thought with which effort."""
        for effort, thought in thoughts(document):
            self.thoughts[effort] = max(self.thoughts.get(effort, 0), len(self.vocabulary.encode_text(thought)))


def _intent(wish: Wish, name: str, begun: RunFolder | None) -> Recipe:
    """The recipe before the rules; `begun`: the run that rows are replayed from."""
    sources: list[dict[str, Any]] = [{"uri": f"chat:{Path(wish.data).resolve()}", "epochs": wish.epochs}]
    if begun is not None:
        sources[0]["weight"] = 1 - wish.replay
        sources.append({"uri": f"replay:{begun.path.resolve()}", "weight": wish.replay})
    data = {"sources": sources, "document_mask": True, "deduplicate": "none", "validation_fraction": wish.validation_share}
    tree = {
        "name": name,
        "summary": f"{Path(wish.model).name}, tuned on {Path(wish.data).name}.",
        "data": data | {"seed": wish.seed},
    }
    tree["train"] = {"seed": wish.seed}
    return recipes.assemble(tree, list(wish.settings), "of the tuning")


def _held_out(checked: Checked, wish: Wish) -> Collection[int]:
    """Digests of the examples to hold out: the smallest, so that one that is there twice is never on both sides."""
    order = sorted(set(checked.digests), key=lambda digest: plans.place_of(digest, wish.seed))
    if not wish.validation_share or len(order) < 2:
        return frozenset()
    return frozenset(order[: max(1, round(wish.validation_share * len(order)))])


def _learned(shards: Shards) -> int:
    learn = shards.sources[0].train.learn
    return shards.sources[0].tokens if learn is None else int(learn.sum())


def _plan(
    wish: Wish, intent: Recipe, budget: Budget | None, shape: DecoderConfig, shards: Shards, machine: Machine, peak: float
) -> rules.Plan:
    """Every setting with its reason: first those that examples ask for, then the rules of pre-training for the rest."""
    choose = plans.Choices(intent)
    data, own, share = intent.data, replace(shards, sources=shards.sources[:1]), 1 - wish.replay
    count = len(own.sources[0].train.offsets) - 1
    longest = max(int(np.diff(source.train.offsets).max()) for source in shards.sources)
    longest = -(-(longest - 1) // _ROWS_OF) * _ROWS_OF
    context = choose("context", max(8, min(shape.context, longest)), f"the longest example, up to a multiple of {_ROWS_OF}")
    choose("short_context", context, "whole rows from the first step on")
    choose("compile", False, "pays only in long runs")

    source, *again = data.sources
    passes = source.epochs or min(MOST_EPOCHS, max(1, min(max(EPOCHS, LEAST_SEEN // count), MOST_SEEN // count)))
    once = data.model_copy(update={"sources": (source.model_copy(update={"epochs": 1.0}),)})
    per_row = share * count / count_rows(own, once, context, intent.train.seed, 2**62)
    size = wish.batch_size or max(1, min(MOST_BATCH, round(count * passes / UPDATES)))
    packing, rows = data.packing, max(1, round(size / per_row))
    if wish.batch_size is not None and wish.batch_size < per_row:
        packing, rows = "single", size
    rows = -(-rows // devices.processes()) * devices.processes()
    per_batch = rows if packing == "single" else rows * per_row
    rows = choose("batch_rows", rows, f"{per_batch:.3g} examples, which leaves about {UPDATES} updates where they are enough")
    if wish.batch_size is not None and "train.batch_rows" in choose.said:
        reason = (
            f"{per_batch:.3g} examples, {per_row:.3g} to a row" if packing != "single" else "each example in a row of its own"
        )
        choose.said["train.batch_rows"] = Derived("train.batch_rows", rows, reason)
    epochs = passes if budget is None else None
    source = source.model_copy(update={"epochs": epochs})
    data = data.model_copy(update={"packing": packing, "sources": (source, *again)})

    def resolved(tokens: int, why: str) -> rules.Plan:
        steps = max(1, math.ceil(tokens / (rows * context)))
        choose("tokens", steps * rows * context, why)
        warmup = choose("warmup_steps", min(10, steps // 10), "a tenth of the steps, at most ten")
        choose("cooldown_steps", max(0, steps - warmup), "the rates fall from there to the end")
        choose("final_tokens", max(1, min(_MOST_FINAL_TOKENS, shards.validation_tokens * 2)), "all that is held out")
        return choose.resolve(shape, machine, peak, data=data)

    if budget is None:
        mine = data.model_copy(update={"sources": (source,)})
        every = math.ceil(count_rows(own, mine, context, intent.train.seed, 2**62) / share)
        planned = resolved(every * context, f"{passes:g} passes over {count:,} examples in {every:,} rows of {context}")
    elif budget.tokens is not None or budget.flops is not None:
        bought = budget.tokens or (budget.flops or 0) / replace(shape, context=context).flops_per_token(context)
        planned = resolved(int(bought), f"the budget, {wish.budget}")
    else:
        assert budget.seconds is not None
        first = resolved(rows * context * UPDATES, "a guess").recipe.train
        measured = speed.tokens_per_second(replace(shape, context=context), first, machine)
        for key in ("tokens", "warmup_steps", "cooldown_steps"):
            choose.said.pop(f"train.{key}", None)
        planned = resolved(int(measured * budget.seconds * 0.9), f"{wish.budget} at a measured {measured:,.0f} tokens/s")
    return _gentle(planned, intent, wish.rate_multiplier or 1.0, choose)


def _gentle(planned: rules.Plan, intent: Recipe, multiplier: float, choose: plans.Choices) -> rules.Plan:
    """The plan with rates that change a model which knows something already."""
    train = planned.recipe.train
    multiplier *= plans.lora_times(intent)
    for key in ("matrix_rate", "adam_rate"):
        if getattr(intent.train, key) is None:
            rate = getattr(train, key) * RATE_SHARE * multiplier
            train = train.model_copy(update={key: rate})
            times = "" if multiplier == 1 else f", times {multiplier:g}"
            choose.said[f"train.{key}"] = Derived(f"train.{key}", rate, f"{RATE_SHARE:g} of the rate of pre-training{times}")
    return choose.explain(replace(planned, recipe=planned.recipe.model_copy(update={"train": train})))
