"""Measures a suite that is answered in words: samples from the engine, a judge for each, and pass@k, maj@k and best@k from the
same samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tessera.engine.engine import Engine
from tessera.engine.request import Completion, Request
from tessera.engine.sampling import SamplingParams
from tessera.engine.thinking import Thought, thought
from tessera.errors import UserError
from tessera.evals.score import Score
from tessera.evals.suites import Suite
from tessera.posttrain.verifiers import Task, extract
from tessera.posttrain.verifiers.code import program, tests
from tessera.posttrain.verifiers.measures import best_at_k, maj_at_k, mean_and_error, pass_at_k
from tessera.sandbox.box import Sandbox
from tessera.tokens import chat


@dataclass(frozen=True)
class Settings:
    """How answers are made.

    Args:
        tasks: at most, of a suite.
        samples: of each task.
        shots: solved examples before the question.
        temperature: None: 0 for one sample, 0.8 for more.
        max_tokens: of an answer; None: the suite's.
        dialogue: the question is a user's turn; else it is text to go on from.
        effort: the model thinks first, with this effort and beside `max_tokens`; none: it answers at once.
        budgets: effort -> tokens of thought that the model was trained with.
    """

    tasks: int = 100
    samples: int = 1
    shots: int = 0
    temperature: float | None = None
    top_p: float = 1.0
    max_tokens: int | None = None
    seed: int = 0
    dialogue: bool = False
    effort: str = ""
    budgets: Mapping[str, int] = field(default_factory=dict)

    @property
    def heat(self) -> float:
        """The temperature."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.samples == 1 else 0.8


def measure(engine: Engine, suite: Suite, settings: Settings, sandbox: Sandbox | None = None) -> list[Score]:
    """The suite's numbers: pass@k for k = 1, 2, 4, ... up to the samples, the votes, every further judge at one sample.

    Raises:
        UserError: an effort that the model does not know, more shots than there are examples, samples that would all be equal,
            a prompt that leaves no room.
        RunFailed: the sandbox failed.
    """
    if settings.samples > 1 and settings.heat == 0:
        raise UserError("--samples above 1 at --temperature 0 would be equal; give a temperature above 0.")
    tasks = suite.make(settings.tasks, settings.seed)
    prompts = [
        _prompt(engine, shown, task, settings) for task, shown in zip(tasks, _examples(suite, tasks, settings), strict=True)
    ]
    max_tokens = settings.max_tokens or suite.max_tokens
    think = thought(engine.vocabulary, settings.budgets, settings.effort) if settings.effort else None
    longest = max(map(len, prompts)) + (think.tokens if think else 0)
    if longest + 1 >= engine.decoder.config.context:
        raise UserError(
            f"{suite.name} with {settings.shots} examples needs {longest} tokens for its longest question, and the model reads "
            f"{engine.decoder.config.context}; give fewer --shots."
        )
    order = [i for i in range(len(tasks)) for _ in range(settings.samples)]
    each = [
        SamplingParams(
            max_tokens + (think.tokens if think else 0),
            settings.heat,
            top_p=settings.top_p,
            seed=_seed(settings.seed, i, j),
            stop=suite.stop,
        )
        for i in range(len(tasks))
        for j in range(settings.samples)
    ]
    asked = [Request(tuple(prompts[i]), params, think) for i, params in zip(order, each, strict=True)]
    completions = engine.complete(asked)
    answers = [completion.text for completion in completions]
    judged = _judge(suite, [tasks[i] for i in order], answers, sandbox)
    shared = {
        "tasks": len(tasks),
        "samples": settings.samples,
        "shots": settings.shots,
        "temperature": settings.heat,
        "top_p": settings.top_p,
        "max_tokens": max_tokens,
        "seed": settings.seed,
        "prompt": "user turn" if settings.dialogue else "text",
        **({"effort": settings.effort or "none", **_spent(completions, think)} if settings.budgets else {}),
        "cut_at_max_tokens": sum(c.finish_reason == "length" for c in completions) / len(completions),
        **({"isolation": sandbox.isolation} if sandbox and not suite.judges else {}),
        **suite.settings,
    }
    baseline, baseline_is = _baseline(suite, tasks, sandbox)
    n = settings.samples
    groups = [slice(i * n, (i + 1) * n) for i in range(len(tasks))]
    first = next(iter(judged))
    right = judged[first]
    scores = []

    def add(measure: str, values: Sequence[float], judge: str, guesses: int = 1) -> None:
        value, error = mean_and_error(values)
        chance = suite.chance if suite.chance is None or guesses == 1 else 1 - (1 - suite.chance) ** guesses
        name = (
            f"{measure}, {settings.shots}-shot"
            + (f", effort {settings.effort or 'none'}" if settings.budgets else "")
            + (f", {judge}" if len(judged) > 1 else "")
        )
        scores.append(Score(suite.name, name, value, error, len(tasks), chance, baseline[judge], baseline_is, shared))

    sizes = [2**power for power in range(int(math.log2(n)) + 1)] + ([n] if n & (n - 1) else [])
    means = [float(np.mean(c.logprobs)) if len(c.logprobs) else -math.inf for c in completions]
    for k in sizes:
        add(f"pass@{k}", [pass_at_k(n, sum(right[group]), k) for group in groups], first, guesses=k)
        if k > 1 and suite.vote is not None:
            votes = [suite.vote(answer) for answer in answers]
            # What cannot be read as an answer has no vote, and is never right by the first judge.
            add(f"maj@{k}", [maj_at_k(votes[group], right[group], k) for group in groups], first)
        if k > 1:
            add(f"best@{k} by mean log-probability", [best_at_k(means[group], right[group], k) for group in groups], first)
    for judge in list(judged)[1:]:
        add("pass@1", [sum(judged[judge][group]) / n for group in groups], judge)
    return scores


def _spent(completions: Sequence[Completion], think: Thought | None) -> dict[str, Any]:
    """How many tokens the thoughts took, and how many of them were closed by force."""
    if think is None:
        return {}
    ends = [int(np.argmax(c.ids == think.closing)) if think.closing in c.ids else len(c.ids) for c in completions]
    cut = [end == think.limit + 1 for end in ends]
    return {
        "thought_tokens": float(np.mean(ends)) - 1,
        "thought_limit": think.limit,
        "thoughts_closed_by_force": float(np.mean(cut)),
    }


def _examples(suite: Suite, tasks: Sequence[Task], settings: Settings) -> list[list[Task]]:
    """What is shown before each task."""
    if not settings.shots:
        return [[] for _ in tasks]
    if suite.own_examples is not None:
        found = [suite.own_examples(task, settings.shots) for task in tasks]
    else:
        measured = {task.prompt for task in tasks}
        drawn = suite.examples(settings.shots + len(tasks), settings.seed) if suite.examples else []
        found = [[one for one in drawn if one.prompt not in measured][: settings.shots]] * len(tasks)
    if (fewest := min(map(len, found))) < settings.shots:
        raise UserError(f"{suite.name} has {fewest} examples to show, not {settings.shots}; give fewer --shots.")
    return found


def _prompt(engine: Engine, examples: Sequence[Task], task: Task, settings: Settings) -> list[int]:
    """Ids of the examples and the question.

    Raises:
        UserError: a task that is a conversation, for a model that knows no turns.
    """
    if "messages" in task.data and not settings.dialogue:
        raise UserError("this suite is asked in turns, which this model does not know; tune it first (docs/tuning.md).")
    if settings.dialogue or settings.effort:
        turns = [
            message
            for example in examples
            for message in (chat.Message("user", example.prompt.strip()), chat.Message("assistant", example.answer))
        ]
        turns += chat.read(task.data["messages"]) if "messages" in task.data else [chat.Message("user", task.prompt.strip())]
        return [
            int(id) for id in engine.vocabulary.encode(chat.render(turns, add_generation_prompt=True, effort=settings.effort)).ids
        ]
    shown = "".join(f"{example.prompt}{example.answer}\n" for example in examples)
    return engine.vocabulary.encode_prompt(shown + task.prompt)


def _judge(suite: Suite, tasks: Sequence[Task], answers: Sequence[str], sandbox: Sandbox | None) -> dict[str, list[bool]]:
    """For each measure whether each answer is right."""
    if suite.judges:
        return {name: [judge(t, a) == 1 for t, a in zip(tasks, answers, strict=True)] for name, judge in suite.judges.items()}
    assert sandbox is not None, "programs are judged in a sandbox or not at all"
    runs = [(program(t, a), tests(t), t.data.get("entry", "")) for t, a in zip(tasks, answers, strict=True)]
    found = sandbox.run_all(runs)
    return {
        "tests pass": [result.passed for result in found],
        "runs": [result.status not in ("syntax", "load") for result in found],
        "parses": [result.status != "syntax" for result in found],
    }


def _baseline(suite: Suite, tasks: Sequence[Task], sandbox: Sandbox | None) -> tuple[dict[str, float], str]:
    """What one answer, the same for all tasks, gets by each judge, and which answer that is."""
    if suite.naive is not None:
        answer, name = suite.naive, f"always {suite.naive.strip()!r}"
    else:
        gold, _ = Counter(extract(task.answer) for task in tasks).most_common(1)[0]
        answer, name = suite.written(gold), f"always {gold!r}, the most frequent right answer"
    judged = _judge(suite, tasks, [answer] * len(tasks), sandbox)
    return {judge: sum(right) / len(right) for judge, right in judged.items()}, name


def _seed(seed: int, task: int, sample: int) -> int:
    """A different one for every sample, the same whatever else is measured."""
    return int(np.random.SeedSequence([seed, task, sample]).generate_state(1)[0])
