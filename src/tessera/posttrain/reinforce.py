"""Reinforcement learning: a model, tasks and what rewards its answers -> a model that solves more of them.

Of the two kinds, `grpo` is the plain on-policy policy gradient of the GRPO family: an answer's advantage is its reward less the
mean of its group, not divided by the standard deviation (arXiv 2503.20783); no KL; the loss is averaged over the tokens of the
whole batch; groups without contrast are dropped and replaced by others, and answers that were cut off are not learned from
(arXiv 2503.14476). `ppo` has a critic, whose values take the place of the group's mean (`posttrain.critic`), and makes several
clipped updates from a batch. What rewards is a verifier, or a reward model of ours.

`prepare` writes everything that was decided into a run's folder, `tune` trains what stands there, with the loop of all stages;
the model that is kept is the best on tasks that were held out.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tessera import device as devices
from tessera.data.loader import Loader, Shares
from tessera.data.shards import open_shards, write_records
from tessera.device import Machine
from tessera.engine import native
from tessera.engine.thinking import budgets_of, refusal, speaks_dialogue
from tessera.errors import UserError
from tessera.model import weights
from tessera.model.checksum import checksum
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.posttrain import critic, plans
from tessera.posttrain.alarms import Alarms
from tessera.posttrain.curriculum import BUILT_IN as TASKS
from tessera.posttrain.curriculum import Curriculum, Pool, by_level, open_pool, read_tasks, with_held_out, write_tasks
from tessera.posttrain.exam import exam
from tessera.posttrain.examples import in_sight, read_examples
from tessera.posttrain.preference import RewardModel, reward_folder
from tessera.posttrain.rollouts import ROW_UNIT, Grade, Judge, Player, Rollouts, Sampling, judged_by, prompt_ids, with_effort
from tessera.posttrain.verifiers import load as load_verifier
from tessera.recipe import Budget, Recipe
from tessera.run import RunFolder, write_text
from tessera.scaling import rules
from tessera.tokens.vocabulary import Vocabulary
from tessera.train import checkpoint, loop, policy
from tessera.train.critic import Critic, actor_critic
from tessera.train.launch import launch, origin
from tessera.train.objectives import Evaluation
from tessera.train.parallel import ALONE, World

RATE, EMBEDDING_TIMES = 2e-4, 10.0
"""Of Muon at width 128, half of it at twice the width, and how much larger AdamW's beside it is: most of the first gain is to
become surer, for which the last norm has to grow (docs/LOG.md, 2026-11-29, "Reinforcement")."""
ADAMW_RATE = 5e-5
"""Where AdamW is chosen for all weights; the same at width 128."""
CRITIC_RATE = 1e-3
"""Of the critic's AdamW at width 128, half of it at twice the width; 0.15 to 2.5 times that explained as much (docs/LOG.md,
2026-11-30, "A critic")."""
CLIP, CRITIC_WARMUP = 0.2, 5
"""Of `ppo`: how far ratios and values count, and batches from which the critic learns alone."""
REWARD_KL = 0.05
"""Where a reward model pays, which can be fooled far from the start."""
WARMUP = 20
"""Steps; Muon's momentum averages over as many, and before it does its updates are mostly noise."""
SHORT_ANSWER = 32
"""Tokens up to which an answer that is cut off counts as wrong by default."""
STEPS = 200
EXAMS = 10
_SPARE_TOKENS = 8
_MOST_TOKENS = 256

Kind = Literal["grpo", "ppo"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish(plans.Asked):
    """What somebody asks for; None: a rule decides.

    Args:
        model: a run's folder or a Hugging Face folder.
        data: tasks, as `curriculum.open_pool` names them.
        verifier: name of one that is here, or MODULE:FUNCTION; `exact`, where there is no reward model either.
        reward_model: folder of a reward model, which rewards instead.
        kind: `grpo`, the mean of a group is the baseline; `ppo`, a critic's values are.
        budget: time, FLOPs or tokens.
        steps: updates, instead of a budget.
        group, groups: answers to a task, tasks in a batch.
        max_tokens: of an answer, beside its thought.
        efforts: with which the model thinks before it answers, one drawn for each task; none: it answers at once.
        rate: learning rate.
        exam_tasks, exam_samples: tasks held out, answers to each.
        validation: file of tasks to hold the exam with, instead of some of `data`.
        level: of the curriculum at the start, counted from 0.
        refills, updates, passes, std: as in `rollouts.Sampling`.
        punish_truncated: its `punish`; None: where all answers are known and short.
        clip_low, clip_high, dual_clip: as in `policy.PolicySettings`.
        kl: as there; of `ppo`, as in `critic.Settings`.
        gamma, gae_lambda, whiten: of `ppo`, as in `critic.Settings`.
        value_clip: of `ppo`, as in `train.critic.value_losses`; 0: none.
        critic_rate: of `ppo`, the critic's learning rate.
        critic_warmup: of `ppo`, as `warmup` of `critic.Settings`.
        ptx: file of examples whose loss is learned besides, with the weight `ptx_weight`.
        seed: of tasks and samples.
        settings: `key=value` of the recipe.
    """

    model: str
    data: str
    verifier: str | None = None
    budget: str | None = None
    steps: int | None = None
    group: int = 8
    groups: int = 16
    max_tokens: int | None = None
    efforts: tuple[str, ...] = ()
    rate: float | None = None
    exam_tasks: int = 128
    exam_samples: int = 4
    level: int = 0
    refills: int = 2
    updates: int = 1
    passes: int = 1
    std: bool = False
    punish_truncated: bool | None = None
    clip_low: float | None = None
    clip_high: float | None = None
    dual_clip: float | None = None
    kl: float | None = None
    ptx: str | None = None
    ptx_weight: float = 0.1
    seed: int = 0
    settings: tuple[str, ...] = ()
    validation: str | None = None
    kind: Kind = "grpo"
    reward_model: str | None = None
    gamma: float = 1.0
    gae_lambda: float = 1.0
    whiten: bool = True
    value_clip: float = CLIP
    critic_rate: float | None = None
    critic_warmup: int = CRITIC_WARMUP

    def __post_init__(self) -> None:
        if self.budget is not None and self.steps is not None:
            raise UserError("give --budget or --steps: either says how long to train.")
        if self.verifier is not None and self.reward_model is not None:
            raise UserError("give --verifier or --reward-model: either rewards the answers.")
        if self.efforts and self.reward_model is not None:
            raise UserError("a reward model has seen no thoughts; leave --effort out, or give a --verifier.")
        for name, value, least in (
            ("steps", self.steps, 1), ("group", self.group, 2 if self.kind == "grpo" else 1), ("groups", self.groups, 1),
            ("max-tokens", self.max_tokens, 1),
            ("exam-tasks", self.exam_tasks, 1), ("exam-samples", self.exam_samples, 1), ("level", self.level, 0),
            ("refills", self.refills, 0), ("updates", self.updates, 1), ("passes", self.passes, 1),
            ("critic-warmup", self.critic_warmup, 0),
        ):  # fmt: skip
            if value is not None and value < least:
                raise UserError(f"--{name} {value} must be at least {least}.")
        for name, number in (("rate", self.rate), ("kl", self.kl), ("ptx-weight", self.ptx_weight), ("clip-low", self.clip_low),
                             ("clip-high", self.clip_high), ("value-clip", self.value_clip),
                             ("critic-rate", self.critic_rate)):  # fmt: skip
            if number is not None and not 0 <= number < math.inf:
                raise UserError(f"--{name} {number:g} must be 0 or more.")
        for name, number in (("gamma", self.gamma), ("gae-lambda", self.gae_lambda)):
            if not 0 <= number <= 1:
                raise UserError(f"--{name} {number:g} must be from 0 to 1.")
        if self.dual_clip is not None and not 1 < self.dual_clip < math.inf:
            raise UserError(f"--dual-clip {self.dual_clip:g} must be more than 1; 3 is usual.")

    @property
    def sampling(self) -> Sampling:
        """How rollouts are made; `max_tokens` has to be known."""
        assert self.max_tokens is not None
        return Sampling(
            self.group, self.groups, self.max_tokens, self.refills, self.updates, self.passes, self.std,
            bool(self.punish_truncated), self.seed, self.efforts,
        )  # fmt: skip

    @property
    def policy(self) -> policy.PolicySettings:
        """The options of the loss."""
        kl = self.kl or 0.0 if self.kind == "grpo" else 0.0
        return policy.PolicySettings(self.clip_low, self.clip_high, self.dual_clip, kl, self.ptx is not None)

    @property
    def credit(self) -> critic.Settings:
        """How a critic makes advantages of rewards."""
        return critic.Settings(
            self.gamma, self.gae_lambda, self.kl or 0.0, self.whiten, self.critic_warmup, bool(self.punish_truncated)
        )

    def decided(self, shape: DecoderConfig) -> Wish:
        """With what depends on nothing but the kind, on what rewards and on the model's shape."""
        ppo, judged = self.kind == "ppo", self.reward_model is not None
        rules: dict[str, Any] = {
            "verifier": None if judged else "exact",
            "clip_low": CLIP if ppo else None,
            "clip_high": CLIP if ppo else None,
            "kl": REWARD_KL if judged else 0.0,
            "critic_rate": CRITIC_RATE * 128 / shape.width if ppo else None,
        }
        return replace(self, **{name: value for name, value in rules.items() if getattr(self, name) is None})


def prepare(wish: Wish, path: Path, say: Say) -> None:
    """Everything before the first step, written into a new run's folder.

    Raises:
        UserError: no such model, tasks or verifier, prompts that do not fit, settings out of range.
    """
    begin = time.monotonic()
    RunFolder.refuse_occupied(path)
    model = weights.resolve_model(wish.model)
    shape = weights.read_config(model)
    wish = wish.decided(shape)
    vocabulary = Vocabulary.load(model, shape.vocab_size)
    if wish.verifier is not None:
        load_verifier(wish.verifier)
    if wish.validation is None:
        pool = open_pool(wish.data, wish.exam_tasks, wish.seed)
    else:
        names, by_name = by_level(read_tasks(Path(wish.data)))
        held_out = read_tasks(Path(wish.validation))
        if len(held_out) > wish.exam_tasks:
            say(f"of the {len(held_out):,} tasks in {wish.validation} the first {wish.exam_tasks:,} are the exam (--exam-tasks)")
        pool = Pool(names, tuple(held_out[: wish.exam_tasks]), by_name)
    if wish.level >= len(pool.levels):
        raise UserError(f"--level {wish.level}: {wish.data} has {len(pool.levels)} levels, counted from 0.")
    summary = f"{Path(wish.model).name}, reinforced on {wish.data}."
    wanted = plans.intent(path.name, summary, f"tasks:{wish.data}", wish.seed, wish.settings, "muon")
    budget = plans.read_budget(wish.budget, wanted)
    machine = native.machine_for(shape.parameters, wanted.train.precision, wanted.train.threads)
    peak = devices.matmul_peak(machine, seconds=0.2)
    dialogue = speaks_dialogue(str(model), vocabulary)
    budgets = budgets_of(str(model))
    for effort in wish.efforts:
        if effort not in budgets:
            raise UserError(refusal(budgets, effort, otherwise="leave it out"))
    if wish.efforts:
        each = itertools.cycle(dict.fromkeys(wish.efforts))
        pool = with_held_out(pool, [with_effort(task, next(each)) for task in pool.held_out])
    wish, longest = _fitted(wish, pool, shape, vocabulary, dialogue, max((budgets[e] + 3 for e in wish.efforts), default=0))
    if wish.reward_model is not None:
        _check_reward_model(wish.reward_model, vocabulary, longest)

    folder = RunFolder.create(path, wanted)
    write_tasks(path / "held_out.jsonl", pool.held_out)
    if pool.make is None:
        write_tasks(path / "tasks.jsonl", [task for tasks in pool.tasks for task in tasks])
    if wish.ptx is not None:
        _write_examples(wish.ptx, path, vocabulary, longest, say)
    vocabulary.save(path / "tokenizer", shape.context)
    info: dict[str, Any] = {
        "dialogue": dialogue, "reinforce": asdict(wish), "levels": pool.levels,
        "parameters": shape.parameters, "matmul_parameters": shape.matmul_parameters,
        "data": plans.facts_of_data(f"tasks:{wish.data}", sum(map(len, pool.tasks))),
    }  # fmt: skip
    steps = wish.steps or STEPS
    planned = _plan(wish, wanted, shape, machine, peak, longest, steps, f"{steps:,} steps")
    folder.write_info({**origin(planned.recipe, machine, peak, model), **info})
    if budget is not None:
        steps, reason = _bought(wish, budget, shape, planned.recipe, folder, machine)
        planned = _plan(wish, wanted, shape, machine, peak, longest, steps, reason)
    write_text(path / "recipe.yaml", planned.recipe.to_yaml())
    if wish.kind == "ppo":
        say(f"the critic learns by AdamW at rate {wish.critic_rate:.3g}, alone from the first {wish.critic_warmup} batches")
    say(f"{len(pool.held_out)} tasks held out, {len(pool.levels)} level{'s' * (len(pool.levels) > 1)}, "
        f"{wish.groups} groups of {wish.group} answers of at most {wish.max_tokens} tokens a step")  # fmt: skip
    plans.record(planned, folder, say)
    # Last: it says that the folder is prepared.
    folder.write_info({**origin(planned.recipe, machine, peak, model), **info, "prepared_seconds": time.monotonic() - begin})
    folder.unlock()


def tune(
    path: Path,
    resume: bool,
    observers: Callable[[RunFolder], Sequence[loop.Observer]],
    say: Say,
    world: World = ALONE,
    judge: Judge | None = None,
) -> Evaluation | None:
    """Trains what `prepare` wrote, from its last checkpoint where there is one and `resume` asks for it.

    Args:
        observers: makes those that are told the events, besides the folder's own record.
        world: this process among several, which share the rollouts, their rewards and the rows of each batch.
        judge: rewards answers instead of the verifier, for controls; the exam is judged by the verifier all the same.

    Returns:
        None where the run was finished already.

    Raises:
        UserError: no prepared run of this kind; another process trains in the folder; the verifier failed.
        RunFailed, Interrupted: as `train.loop`.
    """
    folder = RunFolder.open(path)
    world.lead(folder.lock)
    wish = asked(folder)
    vocabulary = Vocabulary.load(path / "tokenizer")

    def told() -> list[loop.Observer]:
        everybody = [folder.record, *observers(folder)]
        return [*everybody, Alarms(folder.info["machine"]["dtype"], everybody, bool(wish.punish_truncated))]

    def build(machine: Machine, observers: Sequence[loop.Observer]) -> loop.Job:
        return assemble(folder, folder.recipe, machine, vocabulary, wish, observers, judge, world=world)

    return launch(folder, vocabulary, None, world, resume, told, say, build, best=True)


def asked(folder: RunFolder) -> Wish:
    """What a prepared run was asked for; UserError where the folder holds none."""
    return Wish.of(plans.asked(folder, "reinforce", "run of posttrain grpo; go on with it by the command that began it"))


def assemble(
    folder: RunFolder,
    recipe: Recipe,
    machine: Machine,
    vocabulary: Vocabulary,
    wish: Wish,
    observers: Sequence[loop.Observer] = (),
    judge: Judge | None = None,
    writes: bool = True,
    world: World = ALONE,
) -> loop.Job:
    """The job of a prepared folder, with the weights that the run starts from.

    Args:
        recipe: resolved.
        machine, vocabulary, wish, observers: of the run.
        judge: as of `tune`.
        writes: checkpoints are written, by the first of several processes.
        world: as of `tune`.
    """
    info, path = folder.info, folder.path
    context, most = recipe.train.context, wish.max_tokens
    assert context and most
    decoder = _loaded(info["init"], machine)
    reference = _loaded(info["init"], machine).requires_grad_(False) if wish.kl else None
    budgets = budgets_of(info["init"])
    # A row of n targets holds one token more.
    player = Player(decoder, vocabulary, info["dialogue"], machine.torch_device, machine.torch_dtype, budgets, context + 1)
    pool = _stored_pool(path, wish, tuple(info["levels"]))
    if wish.reward_model is None:
        grade = player.graded_by(judged_by(load_verifier(wish.verifier or "exact")))
    else:
        grade = by_reward_model(RewardModel(wish.reward_model, machine))
    companion, credit = None, None
    if wish.kind == "ppo":
        module = _critic(wish, info["init"], machine)
        alone = {"optimizer": "adamw", "lora": None, "matrix_rate": wish.critic_rate, "adam_rate": wish.critic_rate}
        companion = loop.Companion("critic", module, recipe.train.model_copy(update=alone))
        credit = critic.Valued(module, wish.credit, vocabulary.pad_id, reference, player.blocked())
        loss = actor_critic(wish.policy, player.blocked(), wish.value_clip or None, recipe.train.recompute)
    else:
        loss = policy.objective(wish.policy, player.blocked(), recipe.train.recompute)
    mixed = None
    if wish.ptx is not None:
        rows = max(1, wish.groups)
        mixed = Loader(open_shards(path / "tokens"), recipe.data, context, rows, wish.seed)

    def tell(event: dict[str, Any]) -> None:
        for observer in observers:
            observer(event)

    rollouts = Rollouts(
        player, pool, player.graded_by(judge) if judge else grade, wish.sampling, Curriculum(len(pool.levels), wish.level), tell,
        reference if credit is None else None, mixed, wish.ptx_weight, credit, world,
    )  # fmt: skip
    tasks = hashlib.blake2b((path / "held_out.jsonl").read_bytes(), digest_size=16)
    if pool.make is None:
        tasks.update((path / "tasks.jsonl").read_bytes())
    identity = {"recipe": recipe.fingerprint(), "tokenizer": vocabulary.hash, "tasks": tasks.hexdigest()}
    if wish.reward_model is not None:
        identity["reward model"] = _sum_of(wish.reward_model)
    return loop.Job(
        recipe=recipe,
        decoder=decoder,
        loader=Shares(rollouts, world.rank, world.size),
        held_out=(),
        final_held_out=(),
        token_bytes=np.zeros(decoder.config.vocab_size, np.int32),
        machine=machine,
        matmul_peak=info["machine"]["matmul_peak_gflops"] * 1e9,
        identity=identity,
        writer=checkpoint.Writer(folder.checkpoints) if writes and world.first else None,
        world=world,
        observers=observers,
        objective=loss,
        exam=exam(player, pool.held_out, grade, wish.exam_samples, most, wish.seed),
        companion=companion,
    )


def by_reward_model(judge: RewardModel) -> Grade:
    """Scores what the engine gave, token by token: nothing is read again from its text."""
    return lambda tasks, groups: [judge.score([completion.record for completion in group]).tolist() for group in groups]


def _loaded(model: str | Path, machine: Machine) -> Decoder:
    return weights.load(model, machine.torch_dtype).to(machine.torch_device)


def _critic(wish: Wish, init: str, machine: Machine) -> Critic:
    """It begins as the reward model, where there is one, which knows what is paid for, and else as the model itself."""
    if wish.reward_model is None:
        return Critic(_loaded(init, machine))
    judge = RewardModel(wish.reward_model, machine)
    found = Critic(judge.decoder)
    with torch.no_grad():
        found.value.copy_(judge.decoder.head_weight[judge.score_id])
        found.bias.fill_(-judge.centre)
    return found


def _check_reward_model(model: str, vocabulary: Vocabulary, longest: int) -> None:
    """Raises UserError where it cannot read what is sampled."""
    folder = reward_folder(model)
    shape = weights.read_config(folder)
    if Vocabulary.load(folder, shape.vocab_size).hash != vocabulary.hash:
        raise UserError(f"{folder} reads other tokens than the model writes; tune the reward model from the same model.")
    if shape.context < longest:
        raise UserError(
            f"{folder} reads {shape.context:,} tokens, a task and its answer may have {longest:,}; lower --max-tokens."
        )


def _sum_of(model: str) -> str:
    """Of a reward model: what it says depends on its weights and on its centre."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(reward_folder(model).iterdir()):
        if file.suffix in {".safetensors", ".json"}:
            digest.update(f"{file.name} {checksum(file)} ".encode())
    return digest.hexdigest()


def _stored_pool(path: Path, wish: Wish, levels: tuple[int, ...]) -> Pool:
    """The pool that `prepare` wrote down."""
    held_out = tuple(read_tasks(path / "held_out.jsonl"))
    if not (path / "tasks.jsonl").is_file():
        return Pool(levels, held_out, make=TASKS[wish.data.partition(":")[0]][0])
    return Pool(levels, held_out, by_level(read_tasks(path / "tasks.jsonl"))[1])


def _fitted(
    wish: Wish, pool: Pool, shape: DecoderConfig, vocabulary: Vocabulary, dialogue: bool, thought: int
) -> tuple[Wish, int]:
    """The wish with its `max_tokens`, and the longest row, both such that every prompt, its thought (of at most so many tokens,
    the marks and the effort included) and its answer fit the context."""
    tasks = [*pool.held_out, *(task for level in pool.tasks for task in level)]
    prompts = [(len(prompt_ids(task, vocabulary, dialogue)), task) for task in tasks]
    longest, task = max(prompts, key=lambda pair: pair[0])
    longest += thought
    answers = max(len(vocabulary.encode_text(task.answer)) for task in tasks)
    wanted = answers + _SPARE_TOKENS if pool.make is not None else _MOST_TOKENS
    room = shape.context - longest
    most = wish.max_tokens or min(wanted, room)
    if min(most, room) < max(1, wish.max_tokens or 1):
        raise UserError(
            f"task {task.id} has {longest:,} tokens and the model reads {shape.context:,}, which leaves {max(0, room):,} for an "
            "answer; shorten the tasks or lower --max-tokens."
        )
    # Where answers are known to be short, one that does not end is as wrong as another.
    short = all(task.answer for task in tasks) and answers <= SHORT_ANSWER
    punish = wish.punish_truncated if wish.punish_truncated is not None else short
    return replace(wish, max_tokens=most, punish_truncated=punish), longest + most


def _write_examples(file: str, path: Path, vocabulary: Vocabulary, longest: int, say: Say) -> None:
    """The examples of --ptx as token files, those that fit."""
    records = [vocabulary.encode(in_sight(example.document, vocabulary)) for example in read_examples(Path(file))]
    kept = [record for record in records if len(record) <= longest]
    fit = f"longer than the {longest:,} tokens of a task and its answer"
    if not kept:
        raise UserError(f"every example in {file} is {fit}; shorten them, or raise --max-tokens.")
    if left := len(records) - len(kept):
        say(f"{left:,} of {len(records):,} examples in {file} are {fit} and are left out")
    write_records(path / "tokens", {f"chat:{Path(file).resolve()}": (kept, ())}, vocabulary)


def _plan(
    wish: Wish, wanted: Recipe, shape: DecoderConfig, machine: Machine, peak: float, longest: int, steps: int, why: str
) -> rules.Plan:
    """Every setting with its reason."""
    values: dict[str, tuple[Any, str]] = {
        "context": (-(-longest // ROW_UNIT) * ROW_UNIT, "the longest task and --max-tokens"),
        "batch_rows": (wish.group * wish.groups, f"{wish.groups} groups of {wish.group} answers"),
        **_rates(wish, wanted, shape),
    }
    return plans.plan(wanted, shape, machine, peak, values, steps, why, EXAMS, WARMUP)


def _rates(wish: Wish, wanted: Recipe, shape: DecoderConfig) -> dict[str, tuple[Any, str]]:
    """AdamW's one rate, or Muon's and a larger one for embeddings, head and norms beside it."""
    if wanted.train.optimizer == "adamw" or wanted.train.lora is not None:
        return plans.rate_of(wish.rate, ADAMW_RATE, shape, wanted)
    both = plans.rate_of(wish.rate, RATE, shape, wanted)
    return both | {"adam_rate": (both["matrix_rate"][0] * EMBEDDING_TIMES, f"{EMBEDDING_TIMES:g} times the matrices'")}


def _bought(
    wish: Wish, budget: Budget, shape: DecoderConfig, recipe: Recipe, folder: RunFolder, machine: Machine
) -> tuple[int, str]:
    """Steps that a budget pays for, and why."""
    context, rows = recipe.train.context, recipe.train.batch_rows
    assert context and rows
    if budget.seconds is None:
        models = 2 if wish.kind == "ppo" else 1
        tokens = budget.tokens or (budget.flops or 0) / (models * shape.flops_per_token(context))
        return max(1, int(tokens / (rows * context))), f"the budget, {wish.budget}"
    # After the first step whole batches of rollouts, since their first updates alone take the time of sampling.
    count = 1 + max(2, wish.sampling.updates * wish.sampling.passes)
    few = recipe.train.model_copy(update={"tokens": count * rows * context, "evaluate_every": count + 1})
    taken: list[tuple[str, float]] = []

    def note(event: dict[str, Any]) -> None:
        taken.append((event["event"], time.perf_counter()))

    vocabulary = Vocabulary.load(folder.path / "tokenizer")
    job = assemble(folder, recipe.model_copy(update={"train": few}), machine, vocabulary, wish, [note], writes=False)
    begin = time.perf_counter()
    loop.train(job)
    exam_seconds = next(at for kind, at in taken if kind == "exam") - begin
    ends = [at for kind, at in taken if kind == "step"]
    step_seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
    steps = max(1, int((0.95 * budget.seconds - (EXAMS + 2) * exam_seconds) / step_seconds))
    return steps, f"{wish.budget} at a measured {step_seconds:.2g} s a step and {exam_seconds:.2g} s an exam"
