"""Labelled texts -> a model that says in which categories of harm a text is (`engine.moderation` says how).

Categories of which the examples know too little are not covered. Probabilities and thresholds are fitted on texts that were held
out, once the weights are chosen.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera import device as devices
from tessera.data.loader import Batch
from tessera.device import Machine
from tessera.engine.moderation import CATEGORIES, HEAD, Category, Head, logits_of, read_head, windows
from tessera.errors import UserError
from tessera.model import weights
from tessera.posttrain import examined, plans
from tessera.posttrain.epochs import Epochs
from tessera.posttrain.labelled import Labelled, read_labelled, write_labelled
from tessera.posttrain.pairs import rows_of
from tessera.run import RunFolder, write_text
from tessera.tokens.document import TokenRecord
from tessera.tokens.vocabulary import CONTROLS, Vocabulary
from tessera.train import loop
from tessera.train.labels import label_objective
from tessera.train.launch import origin
from tessera.train.objectives import Evaluation
from tessera.train.parallel import ALONE, World

RATE = 3e-4
"""Of AdamW at width 128, as of a reward model."""
BATCH = 32
EPOCHS = 3.0
EVALUATIONS = 10
FEWEST = 5
"""Examples in a category, and as many outside of it, from which it can be learned; as many held out to calibrate it."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish(plans.Asked):
    """What somebody asks for; None: a rule decides.

    Args:
        model: a run's folder or a Hugging Face folder.
        data: file of labelled texts.
        validation: file of labelled texts to measure and calibrate on.
        validation_share: of the texts that are held out without such a file.
        budget: time, FLOPs or tokens, instead of epochs.
        epochs: passes over the texts.
        batch_size: texts in a batch.
        rate: learning rate.
        seed: of the order and of what is held out.
        settings: `key=value` of the recipe.
    """

    model: str
    data: str
    validation: str | None = None
    validation_share: float = 0.1
    budget: str | None = None
    epochs: float | None = None
    batch_size: int = BATCH
    rate: float | None = None
    seed: int = 0
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.budget is not None and self.epochs is not None:
            raise UserError("give --budget or --epochs: either says how long to train.")
        if not 0 < self.validation_share < 0.5:
            raise UserError(f"--validation-share {self.validation_share:g} must be above 0 and below 0.5.")
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size} must be at least 1.")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UserError(f"--epochs {self.epochs:g} must be positive.")
        if self.rate is not None and not 0 <= self.rate < math.inf:
            raise UserError(f"--rate {self.rate:g} must be 0 or more.")


def write_head(folder: Path, head: Head) -> None:
    """Writes what `engine.moderation.read_head` reads."""
    write_text(folder / HEAD, json.dumps({name: asdict(category) for name, category in head.items()}, indent=1))


class Moderator:
    """Says in which categories texts are.

    Args:
        model: a folder that `tune` wrote.
        machine: where and in which dtype.

    Raises:
        UserError: no moderation model is there.
    """

    def __init__(self, model: str | Path, machine: Machine) -> None:
        folder = weights.resolve_model(model)
        head = read_head(folder)
        if head is None:
            raise UserError(f"{folder} is no moderation model (no {HEAD}); make one by tessera posttrain moderation.")
        self.head = head
        self.decoder = weights.load(folder, machine.torch_dtype).to(machine.torch_device)
        self.vocabulary = Vocabulary.load(folder, self.decoder.config.vocab_size)

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """(n, K) float64, of the covered categories in their order."""
        return logits_of(self.decoder, self.vocabulary, self.head, texts)


def prepare(wish: Wish, path: Path, say: Say) -> None:
    """Everything before the first step, written into a new run's folder.

    Raises:
        UserError: no such model or file, a line that is no labelled text, no category that can be learned, settings out of range.
    """
    begin = time.monotonic()
    RunFolder.refuse_occupied(path)
    model = weights.resolve_model(wish.model)
    shape = weights.read_config(model)
    vocabulary = Vocabulary.load(model, shape.vocab_size)
    uri = f"labelled:{Path(wish.data).resolve()}"
    summary = f"{Path(wish.model).name}, moderation by {Path(wish.data).name}."
    wanted = plans.intent(path.name, summary, uri, wish.seed, wish.settings)
    plans.refuse_lora(wanted, "a moderation model")
    budget = plans.read_budget(wish.budget, wanted)
    texts = read_labelled(Path(wish.data), say)
    if wish.validation is None:
        train, held_out = _parted(texts, wish)
    else:
        train, held_out = texts, read_labelled(Path(wish.validation), say)
    covered = _covered(train, wish.data)
    # What is known of a text may lie in categories alone that are not covered.
    train, held_out = ([one for one in part if any(one.known(name) for name in covered)] for part in (train, held_out))
    if not held_out:
        raise UserError(
            f"{wish.validation or wish.data} holds out no text in or outside of {', '.join(covered)}; give more texts."
        )
    machine = devices.detect(wanted.train.precision, wanted.train.threads)
    peak = devices.matmul_peak(machine, seconds=0.2)
    sizes = [len(vocabulary.encode_text(one.text)) + 1 for one in train]
    ids = _free_ids(vocabulary, len(covered), train)

    folder = RunFolder.create(path, wanted)
    write_labelled(path / "train.jsonl", train)
    write_labelled(path / "held_out.jsonl", held_out)
    vocabulary.save(path / "tokenizer", shape.context)
    count, longest = min(wish.batch_size, len(train)), min(max(sizes), shape.context)
    values: dict[str, tuple[Any, str]] = {
        "context": (-(-longest // 8) * 8, "the longest text"),
        "batch_rows": (count, "texts in a batch"),
        **plans.rate_of(wish.rate, RATE, shape, wanted),
    }
    epochs = wish.epochs or EPOCHS
    steps, why = max(1, math.ceil(epochs * len(train) / count)), f"{epochs:g} passes over {len(train):,} texts"
    planned = plans.plan(wanted, shape, machine, peak, values, steps, why, EVALUATIONS)
    if budget is not None:
        planned = plans.within(budget, wish.budget or "", planned, wanted, shape, machine, peak, values, EVALUATIONS)
    write_text(path / "recipe.yaml", planned.recipe.to_yaml())
    cut = sum(size > shape.context for size in sizes)
    cut_too = f"; {cut:,} are too long and are cut" if cut else ""
    say(f"{len(train):,} texts to learn from, {len(held_out):,} held out{cut_too}")
    for category, (inside, known) in covered.items():
        say(f"  {category}: {inside:,} of {known:,}")
    if left := [category for category in CATEGORIES if category not in covered]:
        say(f"not covered, since fewer than {FEWEST} texts are in it or outside of it: {', '.join(left)}")
    plans.record(planned, folder, say)
    # Last: it says that the folder is prepared.
    folder.write_info({
        **origin(planned.recipe, machine, peak, model), "data": plans.facts_of_data(uri, len(texts), Path(wish.data)),
        "moderation": asdict(wish), "categories": dict(zip(covered, ids, strict=True)), "context": shape.context,
        "parameters": shape.parameters, "matmul_parameters": shape.matmul_parameters,
        "prepared_seconds": time.monotonic() - begin,
    })  # fmt: skip
    folder.unlock()


def tune(
    path: Path, resume: bool, observers: Callable[[RunFolder], Sequence[loop.Observer]], say: Say, world: World = ALONE
) -> Evaluation | None:
    """Trains what `prepare` wrote, from its last checkpoint where there is one and `resume` asks for it, and calibrates it.

    Args:
        observers: makes those that are told the events, besides the folder's own record.
        world: this process among several.

    Returns:
        None where the run was finished already.

    Raises:
        UserError: no prepared run of this kind; another process trains in the folder.
        RunFailed, Interrupted: as `train.loop`.
    """
    folder = RunFolder.open(path)
    wish = asked(folder)
    head = {name: Category(id) for name, id in folder.info["categories"].items()}

    def build(folder: RunFolder, machine: Machine, vocabulary: Vocabulary) -> examined.Stage:
        return _stage(folder, machine, vocabulary, wish, head)

    result = examined.tune(path, resume, observers, say, build, lambda model: write_head(model, head), world=world)
    if not world.first:
        return result
    facts = folder.info["machine"]
    moderator = Moderator(folder.model, devices.detect(facts["dtype"], facts["threads"]))
    # Also of a run that ended between the two.
    if not any(category.calibrated for category in moderator.head.values()):
        held_out = read_labelled(path / "held_out.jsonl")
        write_head(folder.model, calibrated(moderator.head, moderator.logits([one.text for one in held_out]), held_out))
    return result


def asked(folder: RunFolder) -> Wish:
    """What a prepared run was asked for; UserError where the folder holds none."""
    return Wish.of(plans.asked(folder, "moderation", "run of posttrain moderation; go on with it by the command that began it"))


def calibrated(head: Head, logits: np.ndarray, texts: Sequence[Labelled]) -> Head:
    """The head with probabilities and thresholds from texts that were not learned from.

    Args:
        head: of K categories.
        logits: (n, K).
        texts: n of them.
    """
    from sklearn.linear_model import LogisticRegression

    found = {}
    for (name, category), logit in zip(head.items(), logits.T, strict=True):
        labels = np.array([one.labels[CATEGORIES.index(name)] for one in texts])
        known = ~np.isnan(labels)
        logit, truth = logit[known], labels[known] > 0
        if min(truth.sum(), (~truth).sum()) < FEWEST:
            found[name] = category
            continue
        fitted = LogisticRegression().fit(logit[:, None], truth)
        # A logit that falls where it should rise says nothing: then all are as likely as any.
        scale = max(float(fitted.coef_[0, 0]), 0.0)
        shift = float(fitted.intercept_[0]) if scale else math.log(truth.mean() / (1 - truth.mean()))
        unthresholded = Category(category.id, scale, shift)
        threshold = best_threshold(unthresholded.probability(logit), truth)
        found[name] = Category(category.id, scale, shift, threshold, calibrated=True)
    return found


def best_threshold(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The probability from which on calling a text harmful gives the highest F1: half way to the next lower one."""
    order = np.argsort(-probabilities, kind="stable")
    ranked, right = probabilities[order], np.cumsum(truth[order])
    f1 = 2 * right / (np.arange(1, len(ranked) + 1) + truth.sum())
    # Equal probabilities fall on the same side.
    last = np.append(ranked[1:] < ranked[:-1], True)
    best = int(np.argmax(np.where(last, f1, -1.0)))
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)


def _stage(folder: RunFolder, machine: Machine, vocabulary: Vocabulary, wish: Wish, head: Head) -> examined.Stage:
    """What is special of a prepared folder, with the weights that the run starts from."""
    info, path, settings = folder.info, folder.path, folder.recipe.train
    decoder = weights.load(info["init"], machine.torch_dtype).to(machine.torch_device)
    ids = [category.id for category in head.values()]
    with torch.no_grad():
        # Whatever these ids' rows came to in pre-training, logits begin small; not at zero, where nothing below would learn.
        generator = torch.Generator().manual_seed(wish.seed)
        rows = torch.randn(len(ids), decoder.config.width, generator=generator) / decoder.config.width
        decoder.head_weight[ids] = rows.to(machine.torch_device)
    digest = hashlib.blake2b(digest_size=16)
    parts: dict[str, list[tuple[TokenRecord, np.ndarray]]] = {}
    places = [CATEGORIES.index(name) for name in head]
    for name in ("train", "held_out"):
        digest.update((path / f"{name}.jsonl").read_bytes())
        texts = read_labelled(path / f"{name}.jsonl")
        labels = np.array([one.labels for one in texts], np.float32)[:, places]
        records = [_record(windows(one.text, vocabulary, info["context"])[0]) for one in texts]
        parts[name] = list(zip(records, labels, strict=True))
    assert settings.batch_rows

    def build(chosen: Sequence[tuple[tuple[TokenRecord, np.ndarray], int]]) -> Batch:
        return _batch([record for (record, _), _ in chosen], np.stack([row for (_, row), _ in chosen]), vocabulary.pad_id)

    held_out = [build([(row, 0) for row in parts["held_out"][at : at + BATCH]]) for at in range(0, len(parts["held_out"]), BATCH)]
    loader = Epochs(parts["train"], settings.batch_rows, wish.seed, build)
    return examined.Stage(decoder, loader, held_out, label_objective(ids, settings.recompute), "loss", digest.hexdigest())


def _parted(texts: list[Labelled], wish: Wish) -> tuple[list[Labelled], list[Labelled]]:
    """What is learned from and what is held out, by the digest of the text."""
    if len(texts) < 2:
        raise UserError(f"{wish.data} holds {len(texts)} text, too few to hold one out.")
    order = sorted(texts, key=lambda one: plans.place_of(one.digest, wish.seed))
    count = max(1, round(wish.validation_share * len(order)))
    hidden = {one.text for one in order[:count]}
    return [one for one in texts if one.text not in hidden], [one for one in texts if one.text in hidden]


def _covered(texts: Sequence[Labelled], file: str) -> dict[str, tuple[int, int]]:
    """Each category that can be learned from them: how many texts are in it, of how many of which it is known."""
    labels = np.array([one.labels for one in texts])
    inside, outside = (labels == 1).sum(0), (labels == 0).sum(0)
    found = {
        name: (int(yes), int(yes + no))
        for name, yes, no in zip(CATEGORIES, inside, outside, strict=True)
        if min(yes, no) >= FEWEST
    }
    if not found:
        raise UserError(f"{file} holds no category with {FEWEST} texts in it and {FEWEST} outside of it; give more of both.")
    return found


def _free_ids(vocabulary: Vocabulary, count: int, texts: Sequence[Labelled]) -> list[int]:
    """Ids whose rows of the head nobody needs: spare control tokens from the last on, then the text ids that these texts use
    least."""
    spare = [
        vocabulary.controls[name] for name in reversed(CONTROLS) if name.startswith("<|spare_") and name in vocabulary.controls
    ]
    if len(spare) >= count:
        return spare[:count]
    used = Counter(id for one in texts for id in vocabulary.encode_text(one.text))
    taken = set(vocabulary.controls.values())
    rare = sorted((id for id in range(vocabulary.base_size) if id not in taken), key=lambda id: (used[id], -id))
    return [*spare, *rare][:count]


def _record(ids: list[int]) -> TokenRecord:
    """A text of which no token is learned."""
    return TokenRecord(np.array(ids, np.int32), np.zeros(len(ids), np.bool_))


def _batch(records: Sequence[TokenRecord], labels: np.ndarray, pad: int) -> Batch:
    """Rows as the objective of `train.labels` takes them; `labels` (B, K). One text a row needs no mask: each token looks at all
    before it."""
    places = np.array([len(record) - 1 for record in records], np.int64)
    return replace(rows_of([[record] for record in records], pad), documents=None, extras={"places": places, "labels": labels})
