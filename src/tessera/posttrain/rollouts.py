"""Tasks -> rollouts by the engine -> batches to learn from, one record per rollout from sampling to loss.

`Rollouts` is a source of batches like the loader: `next` pushes the present weights into the engine, lets it answer a group of
times each of the tasks that the curriculum draws, has the answers judged, and gives the rows with their advantages. The engine is
stepped here and by nobody else, requests are admitted in the order of the tasks, and each has a seed of its own, so rollouts can
be repeated to the bit; the order is told with them.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch

from tessera.data.loader import Batch, Batches
from tessera.engine.engine import Engine, Limits
from tessera.engine.request import Completion, Request
from tessera.engine.sampling import SamplingParams
from tessera.engine.thinking import THINK, THOUGHT, thought
from tessera.errors import UserError
from tessera.model.decoder import Decoder, join_weights
from tessera.posttrain.curriculum import Curriculum, Pool
from tessera.posttrain.verifiers import Task, Verifier
from tessera.tokens import chat
from tessera.tokens.document import TokenRecord
from tessera.tokens.vocabulary import Vocabulary
from tessera.train.loop import Observer
from tessera.train.parallel import ALONE, World
from tessera.train.policy import token_logprobs

STEP_TOKENS, MOST_ROWS = 2048, 128
"""Of the engine while it makes rollouts: throughput counts, nobody waits for a single token."""
ROWS_AT_ONCE = 16
"""Of a pass without gradient."""
ROW_UNIT = 8
"""Rows are filled up to a multiple of so many tokens."""

ADVANTAGES: tuple[str, ...] = ("logprobs", "advantages")
VALUES: tuple[str, ...] = (*ADVANTAGES, "values", "returns")
"""Of a record, what stands beside its tokens in a batch: without a critic, and with one."""
_TYPES = {"ids": np.int32, "learn": np.bool_, **dict.fromkeys(VALUES, np.float32)}

EFFORT = "effort"
"""Where a task's data says with which effort it is to be answered."""

Judge = Callable[[Sequence[Task], Sequence[Sequence[str]]], list[list[float]]]
"""From tasks, and the answers to each, to the rewards of the answers."""

Grade = Callable[[Sequence[Task], Sequence[Sequence[Completion]]], list[list[float]]]
"""The same from what the engine gave, token by token; of an answer that was cut off too."""


def judged_by(verifier: Verifier) -> Judge:
    """Every answer by itself."""
    return lambda tasks, answers: [
        [verifier(task, answer) for answer in group] for task, group in zip(tasks, answers, strict=True)
    ]


@dataclass(frozen=True)
class Sampling:
    """How rollouts are made. The temperature is 1 and nothing is cut off: what is sampled is what is learned from.

    Args:
        group: rollouts of one task.
        groups: tasks of a batch.
        max_tokens: of a rollout, beside its thought.
        refills: how often groups without contrast are replaced by those of other tasks, at most.
        updates: a batch of rollouts makes so many updates, each from its own part of the groups.
        passes: and that so often, in another order each time.
        std: advantages are divided by the group's standard deviation too (GRPO as published, arXiv 2402.03300).
        punish: answers that were cut off are learned from as wrong ones, instead of not at all.
        seed: of tasks and samples.
        efforts: of the thoughts, one drawn for each task; none: nothing is thought first.
    """

    group: int
    groups: int
    max_tokens: int
    refills: int = 2
    updates: int = 1
    passes: int = 1
    std: bool = False
    punish: bool = False
    seed: int = 0
    efforts: tuple[str, ...] = ()


def with_effort(task: Task, effort: str) -> Task:
    """The task, to be answered with an effort."""
    return replace(task, data={**task.data, EFFORT: effort})


def prompt_ids(task: Task, vocabulary: Vocabulary, dialogue: bool) -> list[int]:
    """What a model reads of a task: its `data.messages`, or the prompt in a user's turn, and the beginning of the answer; a model
    that knows no turns reads the prompt as text that goes on.

    Raises:
        UserError: its messages are none.
    """
    if not dialogue:
        return vocabulary.encode_text(task.prompt)
    try:
        turns = chat.read(task.data.get("messages") or ({"role": "user", "content": task.prompt},))
        asked = chat.render(turns, add_generation_prompt=True, effort=task.data.get(EFFORT, ""))
    except UserError as error:
        raise UserError(f"task {task.id or task.prompt!r}: {error}") from None
    ids: list[int] = vocabulary.encode(asked).ids.tolist()
    return ids


class Player:
    """An engine with a copy of the policy: answers tasks with the weights that it is handed.

    Args:
        policy: the decoder that is trained.
        vocabulary: of the model.
        dialogue: tasks are asked in a user's turn; else the prompt is text that goes on.
        device, dtype: of the engine's copy.
        budgets: effort -> tokens of thought.
        longest: tokens of a task with its answer, where a row holds no more; None: as many as the model reads.
    """

    def __init__(
        self,
        policy: Decoder,
        vocabulary: Vocabulary,
        dialogue: bool,
        device: torch.device,
        dtype: torch.dtype,
        budgets: Mapping[str, int] = MappingProxyType({}),
        longest: int | None = None,
    ) -> None:
        self.policy = policy
        self.vocabulary = vocabulary
        self.dialogue = dialogue
        self.budgets = budgets
        self.longest = longest or policy.config.context
        self._copy = Decoder(policy.config, dtype).to(device, dtype).eval()
        join_weights(self._copy)

    def blocked(self) -> torch.Tensor:
        """Ids that are never sampled."""
        return self._engine(1).blocked

    def play(self, tasks: Sequence[Task], each: int, max_tokens: int, seed: str, world: World = ALONE) -> list[list[Completion]]:
        """`each` completions of every task with the policy's present weights, sampled at temperature 1 from all there is.

        Requests are admitted task by task, and the seed of each follows from `seed` and its place. A task with an effort is
        thought about first, as long as that allows and beside `max_tokens`. Of several processes each plays every `size`th task,
        and all have the completions of all.
        """
        requests: list[list[Request]] = [[] for _ in tasks]
        for place, task in enumerate(task for task in tasks for _ in range(each)):
            effort, prompt = task.data.get(EFFORT), tuple(prompt_ids(task, self.vocabulary, self.dialogue))
            think = thought(self.vocabulary, self.budgets, effort) if effort else None
            # A generated task may have more tokens than all those that were measured.
            most = max(1, min(max_tokens + (think.tokens if think else 0), self.longest - len(prompt)))
            requests[place // each].append(Request(prompt, SamplingParams(most, seed=_number(f"{seed}/{place}")), think))
        return world.spread(requests, self._complete)

    def _complete(self, groups: Sequence[Sequence[Request]]) -> list[list[Completion]]:
        """The completions of requests, as these are grouped."""
        if not groups:
            return []
        requests = [request for group in groups for request in group]
        engine = self._engine(len(requests))
        engine.load_weights((name, parameter.detach()) for name, parameter in self.policy.named_parameters())
        done = iter(engine.complete(requests))
        return [[next(done) for _ in group] for group in groups]

    def answer(self, completion: Completion) -> str:
        """The text that a verifier judges: without control tokens and thinking."""
        return self.said(completion)[1]

    def said(self, completion: Completion) -> tuple[str, str]:
        """The thought and the answer, without control tokens."""
        if not self.dialogue:
            return "", completion.text
        message = chat.parse(self.vocabulary.decode(completion.ids))
        return message.reasoning, message.content

    def thought_tokens(self, completion: Completion) -> int:
        """How many ids of a completion are its thought, the marks included."""
        opening, closing = (self.vocabulary.controls.get(name, -1) for name in (THINK, THOUGHT))
        ids = completion.ids
        if not len(ids) or ids[0] != opening:
            return 0
        return int(np.argmax(ids == closing)) + 1 if closing in ids else len(ids)

    def graded_by(self, judge: Judge) -> Grade:
        """Rewards the texts of answers."""
        return lambda tasks, groups: judge(tasks, [[self.answer(completion) for completion in group] for group in groups])

    def _engine(self, requests: int) -> Engine:
        # A new one each time: what an older one has seen must not show in a rounding, or a resumed run would differ.
        rows = max(1, min(MOST_ROWS, requests))
        return Engine(self._copy, self.vocabulary, Limits(rows, STEP_TOKENS, max(256, requests), 1 << 40, prefix_tokens=0))


class Credit(Protocol):
    """From rewards to what is learned from."""

    @property
    def names(self) -> tuple[str, ...]:
        """`ADVANTAGES` or `VALUES`."""
        ...

    def keep(self, group: Sequence[Completion], rewards: Sequence[float]) -> list[TokenRecord] | None:
        """The records of a task's answers that can be learned from; None: the group teaches nothing."""
        ...

    def settle(self, kept: list[list[TokenRecord]], number: int) -> tuple[list[list[TokenRecord]], dict[str, float]]:
        """The groups of a batch, the `number`th from 1, with their advantages, and what is told of them."""
        ...


@dataclass(frozen=True)
class GroupMean:
    """An answer's advantage is its reward less the mean of its group; `std`, `punish`: as in `Sampling`."""

    std: bool = False
    punish: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What its records have."""
        return ADVANTAGES

    def keep(self, group: Sequence[Completion], rewards: Sequence[float]) -> list[TokenRecord] | None:
        """As `with_advantages`."""
        return with_advantages(group, rewards, self.std, self.punish)

    def settle(self, kept: list[list[TokenRecord]], number: int) -> tuple[list[list[TokenRecord]], dict[str, float]]:
        """They are settled already."""
        return kept, {}


class Rollouts:
    """Batches of rollouts without end.

    Args:
        player: makes them.
        pool: of tasks.
        grade: rewards the answers.
        sampling: how.
        curriculum: where it begins.
        tell: is told `rollouts` events: tasks in the order of admission, and their rewards.
        reference: its log-probabilities go into the batches, for the KL; None: there is none.
        mixed: supervised rows that are learned besides, without documents that share a row.
        mixed_weight: weight of their mean loss.
        credit: makes advantages of rewards; None: `GroupMean`, as `sampling` says.
        world: this process among those that share the work; the batches are whole in each.
    """

    def __init__(
        self,
        player: Player,
        pool: Pool,
        grade: Grade,
        sampling: Sampling,
        curriculum: Curriculum,
        tell: Observer = lambda event: None,
        reference: Decoder | None = None,
        mixed: Batches | None = None,
        mixed_weight: float = 0.0,
        credit: Credit | None = None,
        world: World = ALONE,
    ) -> None:
        self.player = player
        self.pool = pool
        self.grade = grade
        self.sampling = sampling
        self.curriculum = curriculum
        self.tell = tell
        self.reference = reference
        self.mixed = mixed
        self.mixed_weight = mixed_weight
        self.world = world
        self.credit = credit or GroupMean(sampling.std, sampling.punish)
        self._blocked = player.blocked()
        self._collected = 0
        self._given = 0
        self._age = 0
        self._waiting: list[list[TokenRecord]] = []
        self._facts: dict[str, Any] = {}

    def next(self) -> Batch:
        """Rows of the next update; none are learned from where all groups were without contrast."""
        if not self._waiting:
            groups, self._facts = self._collect()
            self._waiting, self._age = self._parted(groups), -1
        self._given += 1
        self._age += 1
        return self._batch(self._waiting.pop(0))

    def state(self) -> dict[str, Any]:
        """Where it stands: how often it has sampled, the curriculum, and rollouts that are not used yet."""
        return {
            "collected": self._collected,
            "given": self._given,
            "age": self._age,
            "curriculum": self.curriculum.state(),
            "waiting": [[_to_json(record) for record in part] for part in self._waiting],
            "facts": self._facts,
            "mixed": None if self.mixed is None else self.mixed.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on exactly where `state` was taken; UserError where the supervised rows are others."""
        self._collected, self._given, self._age = state["collected"], state["given"], state.get("age", 0)
        self.curriculum = Curriculum.of(state["curriculum"])
        self._waiting = [[_of_json(record) for record in part] for part in state["waiting"]]
        self._facts = state["facts"]
        if self.mixed is not None:
            self.mixed.restore(state["mixed"])

    def _parted(self, groups: list[list[TokenRecord]]) -> list[list[TokenRecord]]:
        """What each update of a batch of rollouts learns from."""
        parts = min(self.sampling.updates, max(1, len(groups)))
        dice, found, order = random.Random(f"{self.sampling.seed}/{self._collected}/order"), list[list[TokenRecord]](), groups
        for _ in range(self.sampling.passes):
            found += [[record for group in order[part::parts] for record in group] for part in range(parts)]
            order = dice.sample(groups, len(groups))
        return found

    def _collect(self) -> tuple[list[list[TokenRecord]], dict[str, Any]]:
        """Groups with contrast, filled up as often as is allowed, and what is told of all that were sampled."""
        sampling, begin = self.sampling, time.perf_counter()
        self._collected += 1
        kept: list[list[TokenRecord]] = []
        told: list[tuple[str, list[float]]] = []
        all_rewards: list[list[float]] = []
        done: list[Completion] = []
        level = self.pool.levels[self.curriculum.level]
        for round in range(1 + sampling.refills):
            name = f"{sampling.seed}/{self._collected}/{round}"
            dice = random.Random(name)
            levels = [self.curriculum.pick(dice) for _ in range(sampling.groups - len(kept))]
            if not levels:
                break
            drawn = {at: self.pool.draw(at, levels.count(at), dice) for at in sorted(set(levels))}
            tasks = [drawn[at].pop() for at in levels]
            if sampling.efforts:
                tasks = [with_effort(task, dice.choice(sampling.efforts)) for task in tasks]
            groups = self.player.play(tasks, sampling.group, sampling.max_tokens, name, self.world)
            earnings_of_all = earnings(self.grade, tasks, groups, self.world)
            for at, task, group, earned in zip(levels, tasks, groups, earnings_of_all, strict=True):
                self.curriculum.note(at, sum(earned) / len(earned))
                all_rewards.append(earned)
                told.append((task.id, earned))
                done += group
                if (records := self.credit.keep(group, earned)) is not None:
                    kept.append(records)
        rewards_GK = np.array(all_rewards)
        tokens = sum(len(c.ids) for c in done)
        seconds = time.perf_counter() - begin
        self.tell({
            "event": "rollouts", "step": self._given + 1, "tasks": [id for id, _ in told], "rewards": [r for _, r in told],
            "sample": {"prompt_ids": done[0].prompt_ids.tolist(), "ids": done[0].ids.tolist(), "text": done[0].text},
        })  # fmt: skip
        dead = 1 - len(kept) / len(all_rewards)
        kept, more = self.credit.settle(kept, self._collected)
        return kept, {
            "reward": float(rewards_GK.mean()),
            "pass_at_1": float((rewards_GK > 0).mean()),
            "pass_at_k": float((rewards_GK > 0).any(1).mean()),
            "dead_groups": dead,
            "truncated": sum(c.finish_reason != "stop" for c in done) / len(done),
            "length": tokens / len(done),
            **({"thought_length": sum(map(self.player.thought_tokens, done)) / len(done)} if sampling.efforts else {}),
            "level": level,
            "rollouts": len(done),
            "rollout_tokens_per_second": tokens / seconds,
            "rollout_seconds": seconds,
            **more,
        }

    def _batch(self, records: Sequence[TokenRecord]) -> Batch:
        """Records as rows, each by itself, and under them the supervised ones."""
        pad = self.player.vocabulary.pad_id
        batch = rows_of(records, pad, self.credit.names)
        if self.reference is not None:
            reference = logprobs_under(self.reference, batch, self._blocked)
            batch = replace(batch, extras={**batch.extras, "reference": reference})
        if self.mixed is not None:
            batch = mix(batch, self.mixed.next(), self.mixed_weight, pad)
        return replace(batch, facts={**self._facts, "age": self._age})


def earnings(
    grade: Grade, tasks: Sequence[Task], groups: Sequence[Sequence[Completion]], world: World = ALONE
) -> list[list[float]]:
    """The rewards of answers. One that was cut off is no answer, whatever its beginning says: it earns 0, or what
    the worst earns where that is less. Of several processes each grades its own, and all know all rewards."""

    def graded(own: Sequence[tuple[Task, Sequence[Completion]]]) -> Sequence[Sequence[float]]:
        return grade([task for task, _ in own], [group for _, group in own]) if own else []

    rewards = world.spread(list(zip(tasks, groups, strict=True)), graded)
    least = min([0.0, *(reward for given in rewards for reward in given)])
    return [
        [reward if completion.finish_reason == "stop" else least for reward, completion in zip(given, group, strict=True)]
        for given, group in zip(rewards, groups, strict=True)
    ]


@torch.no_grad()
def logprobs_under(decoder: Decoder, batch: Batch, blocked: torch.Tensor) -> np.ndarray:
    """(B, T) float32 log-probabilities of the learned targets; 0 elsewhere."""
    found = np.zeros(batch.learn.shape, np.float32)
    device = decoder.head_weight.device
    for row in range(0, len(batch.ids), ROWS_AT_ONCE):
        rows = slice(row, row + ROWS_AT_ONCE)
        ids, learn = torch.as_tensor(batch.ids[rows]).to(device), torch.as_tensor(batch.learn[rows]).to(device)
        hidden = decoder(ids[:, :-1])
        logp, _ = token_logprobs(hidden[learn], decoder.head_weight, ids[:, 1:][learn], blocked)
        found[rows][batch.learn[rows]] = logp.cpu().numpy()
    return found


def with_advantages(
    group: Sequence[Completion], rewards: Sequence[float], std: bool, punish: bool = False
) -> list[TokenRecord] | None:
    """The records of a group with the advantage of each: its reward less the group's mean. None where it teaches nothing, since
    all rewards are equal or all that differ were cut off; those that were cut off are not learned from.

    Args:
        group: completions of one task.
        rewards: of each.
        std: divide by the standard deviation.
        punish: learn from those that were cut off too.

    Raises:
        UserError: a reward is not finite.
    """
    earned = finite(rewards)
    advantages = earned - earned.mean()
    if std and earned.std() > 0:
        advantages /= earned.std()
    kept = [
        replace(record, advantages=np.where(record.learn, advantage, 0.0).astype(np.float32))
        for record, advantage in learnable(group, advantages.tolist(), punish)
    ]
    return kept if earned.max() > earned.min() and kept else None


def learnable(group: Sequence[Completion], values: Sequence[float], punish: bool) -> list[tuple[TokenRecord, float]]:
    """The records of a group that are learned from, each with its value; those that were cut off only to `punish` them."""
    kept = []
    for completion, value in zip(group, values, strict=True):
        if completion.finish_reason != "stop" and not punish:
            continue
        record = completion.record
        if not record.learn.any() or record.learn.all():
            raise AssertionError("a rollout has to have a prompt, which is not learned from, and sampled tokens, which are")
        kept.append((record, value))
    return kept


def finite(rewards: Sequence[float]) -> np.ndarray:
    """Rewards as float64; UserError where one is not finite."""
    earned = np.array(rewards, np.float64)
    if not np.isfinite(earned).all():
        raise UserError("a reward is not a finite number; return 0 or 1.")
    return earned


def rows_of(records: Sequence[TokenRecord], pad: int, names: tuple[str, ...] = ADVANTAGES) -> Batch:
    """Records, each in a row of its own, and by `names` what stands beside their tokens; one row of padding without any."""
    longest = max((len(record) for record in records), default=2)
    T = -(-(longest - 1) // ROW_UNIT) * ROW_UNIT
    rows = max(1, len(records))
    ids, learn = np.full((rows, T + 1), pad, np.int64), np.zeros((rows, T), np.bool_)
    extras = {name: np.zeros((rows, T), np.float32) for name in names}
    for row, record in enumerate(records):
        length = len(record)
        ids[row, :length] = record.ids
        # What stands at place t speaks of the token at t + 1.
        learn[row, : length - 1] = record.learn[1:]
        for name in names:
            extras[name][row, : length - 1] = getattr(record, name)[1:]
    tokens = sum(len(record) - 1 for record in records)
    return Batch(ids, learn, None, tokens, extras)


def mix(batch: Batch, supervised: Batch, weight: float, pad: int) -> Batch:
    """The rollouts' rows with supervised rows under them, whose mean loss over their own tokens counts `weight` times beside that
    of the rollouts (arXiv 2203.02155, "PPO-ptx")."""
    own, more = len(batch.ids), len(supervised.ids)
    T = max(batch.learn.shape[1], supervised.learn.shape[1])

    def tall(array: np.ndarray, width: int, value: float, before: int, after: int) -> np.ndarray:
        return np.pad(array, ((before, after), (0, width - array.shape[1])), constant_values=value)

    ids = np.concatenate([tall(batch.ids, T + 1, pad, 0, 0), tall(supervised.ids, T + 1, pad, 0, 0)])
    extras = {name: tall(array, T, 0, 0, more) for name, array in batch.extras.items()}
    # The loop divides by the rollouts' tokens; what is learned without any is divided by one.
    share = weight * max(1.0, float(batch.learn.sum())) / max(1.0, float(supervised.learn.sum()))
    extras["supervised"] = tall(supervised.learn.astype(np.float32) * np.float32(share), T, 0, own, 0)
    return Batch(ids, tall(batch.learn, T, 0, 0, more), None, batch.tokens + supervised.tokens, extras)


def _number(text: str) -> int:
    """A seed that follows from a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _to_json(record: TokenRecord) -> dict[str, Any]:
    # A float32 goes through a double, and so through JSON, unchanged.
    return {name: getattr(record, name).tolist() for name in _TYPES if getattr(record, name) is not None}


def _of_json(plain: Mapping[str, Any]) -> TokenRecord:
    return TokenRecord(**{name: np.array(values, _TYPES[name]) for name, values in plain.items()})
