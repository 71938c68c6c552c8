"""Preferences: a model and pairs of answers -> a model that prefers the better ones (DPO), or one that scores answers.

Both go through the loop of all stages and differ by their objective. What is held out is held out by prompt. The reference of DPO
is the starting model, whose log-probabilities are computed once, before the first step, on the rows that are learned from. A
reward model is a model of the same shape: its score is the logit of an id that is never written, read at the last real token, so
that its folder loads like any other; `reward.json` beside the weights says which id, and what an ordinary answer scores.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tessera import device as devices
from tessera.data.loader import Batch
from tessera.device import Machine
from tessera.errors import UserError
from tessera.model import weights
from tessera.model.decoder import Decoder
from tessera.posttrain import examined, plans
from tessera.posttrain.epochs import Epochs
from tessera.posttrain.examined import tensors
from tessera.posttrain.pairs import PROBES, Question, probe, read_questions, rows_of, write_questions
from tessera.run import RunFolder, write_text
from tessera.tokens.document import TokenRecord
from tessera.tokens.vocabulary import Vocabulary
from tessera.train import loop, preference
from tessera.train.launch import origin
from tessera.train.objectives import Evaluation
from tessera.train.parallel import ALONE, World

Kind = Literal["dpo", "reward"]
RATES = {"dpo": 5e-5, "reward": 3e-4}
"""Of AdamW at width 128: DPO moves a model that is good already, a reward model learns something new."""
BATCH = 16
EVALUATIONS = 10
SCORE = "<|spare_0|>"
REWARD, _PROBES = "reward.json", "probes.json"
_PROBED = 64

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish(plans.Asked):
    """What somebody asks for; None: a rule decides.

    Args:
        kind: `dpo` or `reward`.
        model: a run's folder or a Hugging Face folder.
        data: file of preferences.
        validation: file of preferences to measure on.
        validation_share: of the prompts that are held out without such a file, at least one.
        budget: time, FLOPs or tokens, instead of epochs.
        epochs: passes over the prompts; one by default, since preferences are soon learned by heart.
        batch_size: pairs (DPO) or prompts (reward) in a batch.
        rate: learning rate.
        beta, normalised, anchor: as in `train.preference.PreferenceSettings`.
        hardened: the reward model also learns that an empty, repeated, echoing or padded answer is worse.
        seed: of the order and of what is held out.
        settings: `key=value` of the recipe.
    """

    kind: Kind
    model: str
    data: str
    validation_share: float = 0.1
    budget: str | None = None
    epochs: float | None = None
    batch_size: int = BATCH
    rate: float | None = None
    beta: float = 0.1
    normalised: bool = False
    anchor: float = 0.0
    hardened: bool = True
    seed: int = 0
    settings: tuple[str, ...] = ()
    validation: str | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and self.epochs is not None:
            raise UserError("give --budget or --epochs: either says how long to train.")
        if not 0 < self.validation_share < 0.5:
            raise UserError(f"--validation-share {self.validation_share:g} must be above 0 and below 0.5.")
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size} must be at least 1.")
        for name, value in (("epochs", self.epochs), ("beta", self.beta)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name} {value:g} must be positive.")
        for name, value in (("rate", self.rate), ("anchor", self.anchor)):
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"--{name} {value:g} must be 0 or more.")

    @property
    def loss(self) -> preference.PreferenceSettings:
        """The options of DPO's loss."""
        return preference.PreferenceSettings(self.beta, self.normalised, self.anchor)


@dataclass(frozen=True)
class Row:
    """What a row of a batch is made of.

    Args:
        records: the answers, each with the prompt.
        better: pairs of their indexes.
        reference: log-probabilities under the reference, of DPO.
        worse: bad answers of which one, another each time, is added as worse than all `best`.
        best: indexes of the answers that nothing was preferred to.
    """

    records: tuple[TokenRecord, ...]
    better: tuple[tuple[int, int], ...] = ((0, 1),)
    reference: tuple[float, ...] = ()
    worse: tuple[TokenRecord, ...] = ()
    best: tuple[int, ...] = ()


def batch_of(rows: Sequence[Row], pad: int) -> Batch:
    """Rows as the objectives of `train.preference` take them."""
    batch = rows_of([row.records for row in rows], pad)
    assert batch.documents is not None
    if rows[0].reference:
        reference = np.array([row.reference for row in rows], np.float32)
        return replace(batch, extras={"documents": batch.documents.astype(np.int64), "reference": reference})
    places = np.full((len(rows), max(len(row.records) for row in rows)), -1, np.int64)
    better = np.full((len(rows), max(len(row.better) for row in rows), 2), -1, np.int64)
    for at, row in enumerate(rows):
        places[at, : len(row.records)] = np.cumsum([len(record) for record in row.records]) - 1
        better[at, : len(row.better)] = np.reshape(row.better, (-1, 2))
    return replace(batch, extras={"places": places, "better": better})


def prepare(wish: Wish, path: Path, say: Say) -> None:
    """Everything before the first step, written into a new run's folder.

    Raises:
        UserError: no such model or file, a line that is no preference, nothing that fits, settings out of range.
    """
    begin = time.monotonic()
    RunFolder.refuse_occupied(path)
    model = weights.resolve_model(wish.model)
    shape = weights.read_config(model)
    vocabulary = Vocabulary.load(model, shape.vocab_size)
    uri, what = f"pairs:{Path(wish.data).resolve()}", "preferences" if wish.kind == "dpo" else "a reward model"
    summary = f"{Path(wish.model).name}, {what} of {Path(wish.data).name}."
    wanted = plans.intent(path.name, summary, uri, wish.seed, wish.settings)
    if wish.kind == "reward":
        plans.refuse_lora(wanted, "a reward model")
    budget = plans.read_budget(wish.budget, wanted)
    questions = read_questions(Path(wish.data), vocabulary)
    dialogue = any(question.dialogue for question in questions)
    if dialogue and "<|user|>" not in vocabulary.controls:
        raise UserError(f"{model} has no tokens for the turns of a conversation; give prompts and answers as texts.")

    def fits(question: Question) -> bool:
        return max(len(question.encode(answer, vocabulary)) for answer in question.answers) <= shape.context

    kept = list(filter(fits, questions))
    left = len(questions) - len(kept)
    if left:
        say(f"{left:,} of {len(questions):,} prompts have answers that are longer than {shape.context:,} tokens and are left out")
    if wish.validation is None:
        train, held_out = _parted(kept, wish, left)
    else:
        train, held_out = kept, list(filter(fits, read_questions(Path(wish.validation), vocabulary)))
        for file, given in ((wish.data, train), (wish.validation, held_out)):
            if not given:
                raise UserError(f"{file} holds no prompt whose answers fit the {shape.context:,} tokens that the model reads.")
    machine = devices.detect(wanted.train.precision, wanted.train.threads)
    peak = devices.matmul_peak(machine, seconds=0.2)

    folder = RunFolder.create(path, wanted)
    write_questions(path / "train.jsonl", train)
    write_questions(path / "held_out.jsonl", held_out)
    vocabulary.save(path / "tokenizer", shape.context)
    rows = build_rows(train, wish, vocabulary, shape.context)
    longest = max(sum(map(len, row.records)) + max(map(len, row.worse), default=0) for row in rows)
    count = min(wish.batch_size, len(rows))
    values: dict[str, tuple[Any, str]] = {
        "context": (-(-longest // 8) * 8, "the longest prompt with its answers side by side"),
        "batch_rows": (count, "pairs in a batch" if wish.kind == "dpo" else "prompts in a batch, with all their answers"),
        **plans.rate_of(wish.rate, RATES[wish.kind], shape, wanted),
    }
    epochs = wish.epochs or 1.0
    steps, why = max(1, math.ceil(epochs * len(rows) / count)), f"{epochs:g} passes over {len(rows):,} rows"
    planned = plans.plan(wanted, shape, machine, peak, values, steps, why, EVALUATIONS)
    if budget is not None:
        planned = plans.within(budget, wish.budget or "", planned, wanted, shape, machine, peak, values, EVALUATIONS)
    if wish.kind == "dpo":
        decoder = weights.load(model, machine.torch_dtype).to(machine.torch_device)
        for name, part in (("train", rows), ("held_out", build_rows(held_out, wish, vocabulary, shape.context))):
            np.save(path / f"reference_{name}.npy", reference_logprobs(decoder, part, vocabulary.pad_id))
    write_text(path / "recipe.yaml", planned.recipe.to_yaml())
    pairs = sum(len(question.better) for question in kept)
    say(f"{pairs:,} pairs of {len(kept):,} prompts, {len(held_out):,} prompts held out")
    say(_lengths(kept, vocabulary))
    plans.record(planned, folder, say)
    # Last: it says that the folder is prepared.
    folder.write_info({
        **origin(planned.recipe, machine, peak, model), "data": plans.facts_of_data(uri, pairs, Path(wish.data)),
        "dialogue": dialogue, "preference": asdict(wish), "context": shape.context,
        "parameters": shape.parameters, "matmul_parameters": shape.matmul_parameters,
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
        None where the run was finished already.

    Raises:
        UserError: no prepared run of this kind; another process trains in the folder.
        RunFailed, Interrupted: as `train.loop`.
    """
    wish = asked(RunFolder.open(path))

    def build(folder: RunFolder, machine: Machine, vocabulary: Vocabulary) -> examined.Stage:
        return _stage(folder, machine, vocabulary, wish)

    def mark(model: Path) -> None:
        if wish.kind == "reward":
            vocabulary = Vocabulary.load(path / "tokenizer")
            write_text(model / REWARD, json.dumps({"score_id": _score_id(vocabulary), "centre": 0.0}))

    result = examined.tune(path, resume, observers, say, build, mark, world=world)
    # Also of a run that ended between the two.
    if wish.kind == "reward" and world.first and not (path / _PROBES).is_file():
        _conclude(RunFolder.open(path), wish, say)
    return result


def asked(folder: RunFolder) -> Wish:
    """What a prepared run was asked for; UserError where the folder holds none."""
    other = "run of posttrain dpo or reward; go on with it by the command that began it"
    return Wish.of(plans.asked(folder, "preference", other))


def build_rows(questions: Sequence[Question], wish: Wish, vocabulary: Vocabulary, context: int) -> list[Row]:
    """A row for each pair (DPO) or for each prompt with all its answers (reward)."""
    rows: list[Row] = []
    texts = [question.text(question.answers[(question.best() or [0])[0]]) for question in questions]
    for at, question in enumerate(questions):
        records = tuple(question.encode(answer, vocabulary) for answer in question.answers)
        if wish.kind == "dpo":
            rows += [Row((records[first], records[second]), reference=(0.0, 0.0)) for first, second in question.better]
            continue
        best = tuple(question.best())
        worse: list[TokenRecord] = []
        if wish.hardened and best:
            others = [texts[(at + step) % len(texts)] for step in (1, 2, 3)]
            made = (question.encode(probe(kind, question, question.answers[best[0]], others), vocabulary) for kind in PROBES)
            worse = [record for record in made if len(record) <= context]
        rows.append(Row(records, tuple(question.better), worse=tuple(worse), best=best))
    return rows


@torch.no_grad()
def reference_logprobs(decoder: Decoder, rows: Sequence[Row], pad: int) -> np.ndarray:
    """(rows, 2) float32 log-probabilities of the answers of each row."""
    device, found = decoder.head_weight.device, []
    for row in rows:
        # Each by itself: the same sums whoever else is in the batch.
        batch = batch_of([row], pad)
        ids, learn, mask = tensors(batch, device)
        documents = torch.as_tensor(batch.extras["documents"]).to(device)
        found.append(preference.answer_logprobs(decoder, ids, learn, mask, documents)[0].cpu().numpy())
    return np.concatenate(found)


def reward_folder(model: str | Path) -> Path:
    """The Hugging Face folder of a reward model; UserError where none is there."""
    folder = weights.resolve_model(model)
    if not (folder / REWARD).is_file():
        raise UserError(f"{folder} is no reward model (no {REWARD}); make one by tessera posttrain reward.")
    return folder


class RewardModel:
    """Scores answers.

    Args:
        model: a folder that `tune` wrote.
        machine: where and in which dtype.

    Raises:
        UserError: no reward model is there.
    """

    def __init__(self, model: str | Path, machine: Machine) -> None:
        folder = reward_folder(model)
        about = json.loads((folder / REWARD).read_text(encoding="utf-8"))
        self.decoder = weights.load(folder, machine.torch_dtype).to(machine.torch_device)
        self.vocabulary = Vocabulary.load(folder, self.decoder.config.vocab_size)
        self.score_id, self.centre = about["score_id"], about["centre"]

    @torch.no_grad()
    def score(self, records: Sequence[TokenRecord]) -> np.ndarray:
        """(n,) float64, of conversations or texts that end with the token that ends an answer; 0 is ordinary."""
        found, device = [], self.decoder.head_weight.device
        for record in records:
            batch = batch_of([Row((record,), ())], self.vocabulary.pad_id)
            ids, _, mask = tensors(batch, device)
            places = torch.as_tensor(batch.extras["places"]).to(device)
            found.append(float(preference.answer_scores(self.decoder, ids, mask, places, self.score_id)[0, 0]) - self.centre)
        return np.array(found)


def fooled(judge: RewardModel, questions: Sequence[Question]) -> dict[str, tuple[int, int]]:
    """For each of PROBES: how many of the bad answers beat the chosen one they were made of, of how many that fit."""
    asked = [question for question in questions if question.best()][:_PROBED]
    chosen = [question.answers[question.best()[0]] for question in asked]
    texts = [question.text(answer) for question, answer in zip(asked, chosen, strict=True)]
    records = [question.encode(answer, judge.vocabulary) for question, answer in zip(asked, chosen, strict=True)]
    gold = judge.score(records)
    context, found = judge.decoder.config.context, {}
    for kind in PROBES:
        beaten = count = 0
        for at, (question, answer) in enumerate(zip(asked, chosen, strict=True)):
            others = [texts[(at + step) % len(texts)] for step in (1, 2, 3)]
            record = question.encode(probe(kind, question, answer, others), judge.vocabulary)
            if len(record) <= context:
                count += 1
                beaten += int(judge.score([record])[0] >= gold[at])
        found[kind] = (beaten, count)
    return found


def _stage(folder: RunFolder, machine: Machine, vocabulary: Vocabulary, wish: Wish) -> examined.Stage:
    """What is special of a prepared folder, with the weights that the run starts from."""
    info, path, settings = folder.info, folder.path, folder.recipe.train
    decoder = weights.load(info["init"], machine.torch_dtype).to(machine.torch_device)
    digest = hashlib.blake2b(digest_size=16)
    parts: dict[str, list[Row]] = {}
    for name in ("train", "held_out"):
        digest.update((path / f"{name}.jsonl").read_bytes())
        rows = build_rows(read_questions(path / f"{name}.jsonl", vocabulary), wish, vocabulary, info["context"])
        if wish.kind == "dpo":
            reference = np.load(path / f"reference_{name}.npy")
            rows = [replace(row, reference=tuple(map(float, two))) for row, two in zip(rows, reference, strict=True)]
        parts[name] = rows
    if wish.kind == "dpo":
        objective = preference.preference_objective(wish.loss, settings.recompute)
    else:
        with torch.no_grad():
            # Whatever this id's row came to in pre-training, scores begin small; not at zero, where nothing below would learn.
            generator = torch.Generator().manual_seed(wish.seed)
            row = torch.randn(decoder.config.width, generator=generator) / decoder.config.width
            decoder.head_weight[_score_id(vocabulary)] = row.to(machine.torch_device)
        objective = preference.reward_objective(_score_id(vocabulary), settings.recompute)
    assert settings.batch_rows

    def build(chosen: list[tuple[Row, int]]) -> Batch:
        return batch_of([_with_one_worse(row, turn) for row, turn in chosen], vocabulary.pad_id)

    loader = Epochs(parts["train"], settings.batch_rows, wish.seed, build)
    held_out = [batch_of([row], vocabulary.pad_id) for row in parts["held_out"]]
    return examined.Stage(decoder, loader, held_out, objective, "loss", digest.hexdigest())


def _conclude(folder: RunFolder, wish: Wish, say: Say) -> None:
    """Centres the finished reward model on the answers of its training set and tries to fool it."""
    recipe_machine = folder.info["machine"]
    judge = RewardModel(folder.model, devices.detect(recipe_machine["dtype"], recipe_machine["threads"]))
    train = read_questions(folder.path / "train.jsonl", judge.vocabulary)[: 4 * _PROBED]
    centre = float(np.mean([judge.score([q.encode(a, judge.vocabulary)])[0] for q in train for a in q.answers]))
    write_text(folder.model / REWARD, json.dumps({"score_id": judge.score_id, "centre": centre}))
    found = fooled(judge, read_questions(folder.path / "held_out.jsonl", judge.vocabulary))
    told = {kind: {"beaten": beaten, "of": count} for kind, (beaten, count) in found.items()}
    write_text(folder.path / _PROBES, json.dumps(told, indent=1))
    for kind, (beaten, count) in found.items():
        verdict = "no answer" if not beaten else f"{beaten} answers"
        say(f"probe {kind}: {verdict} of {count} beat the chosen one" + (", so it can be fooled" if beaten else ""))


def _with_one_worse(row: Row, turn: int) -> Row:
    """The row with one of its bad answers, as worse than its best ones."""
    if not row.worse:
        return row
    at = len(row.records)
    pairs = tuple((best, at) for best in row.best)
    return replace(row, records=(*row.records, row.worse[turn % len(row.worse)]), better=(*row.better, *pairs))


def _parted(questions: list[Question], wish: Wish, left: int) -> tuple[list[Question], list[Question]]:
    """What is trained on and what is held out, by the digest of the prompt."""
    if len(questions) < 2:
        raise UserError(f"{wish.data} holds {len(questions)} prompts that fit, too few to hold one out; give at least 2.")
    order = sorted(questions, key=lambda question: plans.place_of(question.digest, wish.seed))
    count = max(1, round(wish.validation_share * len(order)))
    hidden = {id(question) for question in order[:count]}
    return [q for q in questions if id(q) not in hidden], [q for q in questions if id(q) in hidden]


def _lengths(questions: Sequence[Question], vocabulary: Vocabulary) -> str:
    """What a judge of length alone would say."""
    sizes = [[int(q.encode(a, vocabulary).learn.sum()) for a in q.answers] for q in questions]
    pairs = [(sizes[at][first], sizes[at][second]) for at, q in enumerate(questions) for first, second in q.better]
    longer = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    chosen, rejected = (float(np.mean(side)) for side in zip(*pairs, strict=True))
    said = f"chosen answers have {chosen:.1f} tokens, rejected ones {rejected:.1f}"
    return f"{said}; the longer one was chosen in {longer:.0%}"


def _score_id(vocabulary: Vocabulary) -> int:
    """A spare token; padding where a vocabulary has none, which is never written either."""
    return vocabulary.controls.get(SCORE, vocabulary.pad_id)
