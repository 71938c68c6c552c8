"""The command line of tuning, `tessera posttrain ...`; what the commands do is in `tessera.commands.posttrain`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tessera.cli_shared import ResumeOption, SetOption, stop_in_words

posttrain = typer.Typer(help="Tune a model that is trained already.", no_args_is_help=True, rich_markup_mode=None)

ModelOption = Annotated[str | None, typer.Option(help="A run's folder, a Hugging Face folder, or starter.")]
StageOption = Annotated[bool, typer.Option("--resume", help="Go on with the stage that was under way in the run's folder.")]
VerifierOption = Annotated[str | None, typer.Option(help="What judges answers: a name, or MODULE:FUNCTION.  [default: exact]")]
PairsOption = Annotated[str | None, typer.Option(help="File of preferences, one JSON object a line (docs/preference.md).")]
HeldOutFileOption = Annotated[str | None, typer.Option("--validation", help="File of preferences to measure on.")]
HeldOutOption = Annotated[float | None, typer.Option(help="Share of the prompts that is held out.  [default: 0.1]")]
LoraOption = Annotated[
    int | None, typer.Option("--lora", help="Rank of adapters to learn instead of all weights, like 16 (docs/tuning.md).")
]
PairBudgetOption = Annotated[str | None, typer.Option(help="90s, 6m, 2h; 1e17 (FLOPs); 50Mtok. Instead of epochs.")]
EpochsOption = Annotated[float | None, typer.Option(help="Passes over the prompts.  [default: 1]")]
RateOption = Annotated[float | None, typer.Option(help="Learning rate; by default by the model's width.")]
TasksOption = Annotated[
    str | None,
    typer.Option("--data", help="File of tasks, one JSON object a line, or arithmetic[:1-3], reversal[:2-6], dial[:3-8]."),
]
RewardModelOption = Annotated[str | None, typer.Option(help="Folder of a reward model, which judges instead of a verifier.")]
RunBudgetOption = Annotated[str | None, typer.Option("--budget", help="90s, 6m, 2h; 1e17 (FLOPs); 50Mtok.")]
StepsOption = Annotated[int | None, typer.Option(help="Updates, instead of a budget.  [default: 200]")]
MaxTokensOption = Annotated[int | None, typer.Option(help="Of an answer; by default as the tasks need.")]
EffortOption = Annotated[
    str | None, typer.Option(help="low,medium,high or some of them: think before each answer (docs/reasoning.md).")
]
TasksForExamOption = Annotated[
    str | None, typer.Option("--validation", help="File of tasks for the exam, instead of some of --data.")
]
ExamTasksOption = Annotated[int | None, typer.Option(help="Tasks held out.  [default: 128]")]
ExamSamplesOption = Annotated[int | None, typer.Option(help="Answers to each of them.  [default: 4]")]
LevelOption = Annotated[int | None, typer.Option(help="Of the curriculum at the start, from 0.")]
PunishOption = Annotated[
    bool | None,
    typer.Option(
        "--punish-truncated/--mask-truncated",
        help="Answers that are cut off count as wrong, or as nothing; by default as wrong where right ones are short.",
    ),
]
DualClipOption = Annotated[float | None, typer.Option(help="Bounds the loss of negative advantages; 3 is usual.")]
PtxOption = Annotated[str | None, typer.Option(help="File of examples to learn from besides.")]
PtxWeightOption = Annotated[float | None, typer.Option(help="Of their loss.  [default: 0.1]")]
SampleSeedOption = Annotated[int | None, typer.Option(help="Of tasks and samples.")]
HardenedOption = Annotated[
    bool | None,
    typer.Option("--hardened/--plain", help="Learn that empty, repeated, echoing, padded answers are worse.", show_default=False),
]


@posttrain.command()
def sft(
    model: ModelOption = None,
    data: Annotated[str | None, typer.Option(help="File of examples, one JSON object a line (docs/tuning.md).")] = None,
    validation: Annotated[str | None, typer.Option(help="File of examples to measure on.")] = None,
    validation_share: Annotated[
        float | None, typer.Option(help="Without such a file: share of the examples that is held out; 0: none.  [default: 0.05]")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="90s, 6m, 2h; 1e17 (FLOPs); 50Mtok. Instead of epochs.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the examples; by default 3, more where they are few.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a batch; by default so many as leave 200 updates.")] = None,
    rate_multiplier: Annotated[float | None, typer.Option(help="Times the learning rates of the rules.")] = None,
    replay: Annotated[
        float | None, typer.Option(help="Share of the rows that come from what the model learned first, against forgetting.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order and of what is held out.")] = None,
    lora: LoraOption = None,
    settings: SetOption = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; by default runs/MODEL-sft.")] = None,
    resume: ResumeOption = False,
) -> None:
    """Supervised tuning: teach a model to answer like examples."""
    stop_in_words()
    from tessera.commands.posttrain import supervised as run

    asked = {
        "model": model, "data": data, "validation": validation, "validation_share": validation_share, "budget": budget,
        "epochs": epochs, "batch_size": batch_size, "rate_multiplier": rate_multiplier, "replay": replay,
        "seed": seed, "settings": _settings(settings, lora),
    }  # fmt: skip
    run(_given(asked), out, resume)


@posttrain.command()
def grpo(
    model: ModelOption = None,
    data: TasksOption = None,
    verifier: VerifierOption = None,
    reward_model: RewardModelOption = None,
    budget: RunBudgetOption = None,
    steps: StepsOption = None,
    group: Annotated[int | None, typer.Option(help="Answers to one task.  [default: 8]")] = None,
    groups: Annotated[int | None, typer.Option(help="Tasks in a batch.  [default: 16]")] = None,
    max_tokens: MaxTokensOption = None,
    effort: EffortOption = None,
    rate: RateOption = None,
    validation: TasksForExamOption = None,
    exam_tasks: ExamTasksOption = None,
    exam_samples: ExamSamplesOption = None,
    level: LevelOption = None,
    refills: Annotated[int | None, typer.Option(help="How often dead groups are replaced in a step.  [default: 2]")] = None,
    updates: Annotated[int | None, typer.Option(help="From one batch of rollouts.  [default: 1, on-policy]")] = None,
    punish_truncated: PunishOption = None,
    std: Annotated[bool | None, typer.Option("--std", help="Divide advantages by the group's deviation.")] = None,
    clip_low: Annotated[float | None, typer.Option(help="Ratios below 1 - this are clipped.")] = None,
    clip_high: Annotated[float | None, typer.Option(help="Ratios above 1 + this are clipped.")] = None,
    dual_clip: DualClipOption = None,
    kl: Annotated[
        float | None, typer.Option(help="Factor of the KL to the starting model.  [default: 0, or 0.05 with --reward-model]")
    ] = None,
    ptx: PtxOption = None,
    ptx_weight: PtxWeightOption = None,
    seed: SampleSeedOption = None,
    lora: LoraOption = None,
    settings: SetOption = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; by default runs/MODEL-grpo.")] = None,
    resume: ResumeOption = False,
) -> None:
    """Reinforcement learning: answers are sampled, a verifier rewards them, what was rewarded becomes likelier."""
    stop_in_words()
    from tessera.commands.posttrain import reinforced as run

    asked = {
        "model": model, "data": data, "verifier": verifier, "reward_model": reward_model, "budget": budget, "steps": steps,
        "group": group, "groups": groups, "max_tokens": max_tokens, "efforts": _listed(effort), "rate": rate,
        "validation": validation, "exam_tasks": exam_tasks, "exam_samples": exam_samples, "level": level,
        "refills": refills, "updates": updates, "punish_truncated": punish_truncated, "std": std,
        "clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip,
        "kl": kl, "ptx": ptx, "ptx_weight": ptx_weight, "seed": seed, "settings": _settings(settings, lora),
    }  # fmt: skip
    run("grpo", _given(asked), out, resume)


@posttrain.command()
def ppo(
    model: ModelOption = None,
    data: TasksOption = None,
    verifier: VerifierOption = None,
    reward_model: RewardModelOption = None,
    budget: RunBudgetOption = None,
    steps: StepsOption = None,
    group: Annotated[int | None, typer.Option(help="Answers to one task.  [default: 8]")] = None,
    groups: Annotated[int | None, typer.Option(help="Tasks in a batch of rollouts.  [default: 16]")] = None,
    max_tokens: MaxTokensOption = None,
    effort: EffortOption = None,
    rate: RateOption = None,
    critic_rate: Annotated[float | None, typer.Option(help="Of the critic; by default by the model's width.")] = None,
    critic_warmup: Annotated[
        int | None, typer.Option(help="Batches of rollouts from which the critic learns alone.  [default: 5]")
    ] = None,
    gamma: Annotated[float | None, typer.Option(help="Of a reward, one token earlier.  [default: 1]")] = None,
    gae_lambda: Annotated[
        float | None, typer.Option(help="1: the critic is a baseline; less: it also stands for what came after.  [default: 1]")
    ] = None,
    whiten: Annotated[
        bool | None, typer.Option("--whiten/--raw", help="Advantages of a batch to mean 0, deviation 1.", show_default=False)
    ] = None,
    validation: TasksForExamOption = None,
    exam_tasks: ExamTasksOption = None,
    exam_samples: ExamSamplesOption = None,
    level: LevelOption = None,
    passes: Annotated[int | None, typer.Option(help="Over each batch of rollouts.  [default: 1]")] = None,
    updates: Annotated[int | None, typer.Option(help="In each pass.  [default: 1]")] = None,
    punish_truncated: PunishOption = None,
    clip_low: Annotated[float | None, typer.Option(help="Ratios below 1 - this are clipped.  [default: 0.2]")] = None,
    clip_high: Annotated[float | None, typer.Option(help="Ratios above 1 + this are clipped.  [default: 0.2]")] = None,
    value_clip: Annotated[
        float | None, typer.Option(help="How far a batch may move a value; 0: as far as it likes.  [default: 0.2]")
    ] = None,
    dual_clip: DualClipOption = None,
    kl: Annotated[
        float | None,
        typer.Option(help="What a token costs for each nat above the starting model.  [default: 0, or 0.05 with --reward-model]"),
    ] = None,
    ptx: PtxOption = None,
    ptx_weight: PtxWeightOption = None,
    seed: SampleSeedOption = None,
    lora: LoraOption = None,
    settings: SetOption = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; by default runs/MODEL-ppo.")] = None,
    resume: ResumeOption = False,
) -> None:
    """Reinforcement learning with a critic, which says of each token what it changed; rewards by a verifier or a reward model."""
    stop_in_words()
    from tessera.commands.posttrain import reinforced as run

    asked = {
        "model": model, "data": data, "verifier": verifier, "reward_model": reward_model, "budget": budget, "steps": steps,
        "group": group, "groups": groups, "max_tokens": max_tokens, "efforts": _listed(effort), "rate": rate,
        "critic_rate": critic_rate, "critic_warmup": critic_warmup, "gamma": gamma, "gae_lambda": gae_lambda, "whiten": whiten,
        "validation": validation, "exam_tasks": exam_tasks, "exam_samples": exam_samples, "level": level, "passes": passes,
        "updates": updates, "punish_truncated": punish_truncated, "clip_low": clip_low, "clip_high": clip_high,
        "value_clip": value_clip, "dual_clip": dual_clip, "kl": kl, "ptx": ptx, "ptx_weight": ptx_weight, "seed": seed,
        "settings": _settings(settings, lora),
    }  # fmt: skip
    run("ppo", _given(asked), out, resume)


@posttrain.command()
def reason(
    model: ModelOption = None,
    data: Annotated[
        str | None, typer.Option(help="dial[:3-8], arithmetic[:1-3], or a file of tasks with --examples.  [default: dial]")
    ] = None,
    examples: Annotated[
        str | None, typer.Option(help="File of examples with reasoning_content and reasoning_effort; by default generated.")
    ] = None,
    examples_count: Annotated[int | None, typer.Option(help="How many are generated.  [default: 40,000]")] = None,
    verifier: VerifierOption = None,
    budget: Annotated[str | None, typer.Option(help="Time for both stages, 20m; instead of epochs and steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the examples of the cold start.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates of the reinforcement.  [default: 100]")] = None,
    group: Annotated[int | None, typer.Option(help="Answers to one task.  [default: 8]")] = None,
    groups: Annotated[int | None, typer.Option(help="Tasks in a batch.  [default: 16]")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of an answer, beside its thought.")] = None,
    rate_multiplier: Annotated[float | None, typer.Option(help="Times the learning rates of the cold start.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of examples, tasks and samples.")] = None,
    lora: LoraOption = None,
    settings: SetOption = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; by default runs/MODEL-reason.")] = None,
    resume: StageOption = False,
) -> None:
    """A model that thinks before it answers: worked examples in three efforts, then reinforcement."""
    stop_in_words()
    from tessera.commands.posttrain import staged as run

    asked = {
        "model": model, "data": data, "examples": examples, "examples_count": examples_count, "verifier": verifier,
        "budget": budget, "epochs": epochs, "steps": steps, "group": group, "groups": groups, "max_tokens": max_tokens,
        "rate_multiplier": rate_multiplier, "seed": seed, "settings": _settings(settings, lora),
    }  # fmt: skip
    run("reason", _given(asked), out, resume)


@posttrain.command("chat")
def tune_chat(
    model: ModelOption = None,
    data: Annotated[str | None, typer.Option(help="File of examples, one JSON object a line (docs/tuning.md).")] = None,
    pairs: Annotated[str | None, typer.Option(help="File of preferences (docs/preference.md).")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for both stages, 20m.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the examples.")] = None,
    beta: Annotated[float | None, typer.Option(help="How strongly DPO holds the model to its start.  [default: 0.1]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order and of what is held out.")] = None,
    lora: LoraOption = None,
    settings: SetOption = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; by default runs/MODEL-chat.")] = None,
    resume: StageOption = False,
) -> None:
    """An assistant: supervised tuning on examples, then preferences."""
    stop_in_words()
    from tessera.commands.posttrain import staged as run

    asked = {
        "model": model, "data": data, "pairs": pairs, "budget": budget, "epochs": epochs, "beta": beta, "seed": seed,
        "settings": _settings(settings, lora),
    }  # fmt: skip
    run("chat", _given(asked), out, resume)


@posttrain.command()
def dpo(
    model: ModelOption = None,
    data: PairsOption = None,
    validation: HeldOutFileOption = None,
    validation_share: HeldOutOption = None,
    budget: PairBudgetOption = None,
    epochs: EpochsOption = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs in a batch.  [default: 16]")] = None,
    rate: RateOption = None,
    beta: Annotated[float | None, typer.Option(help="How strongly the model is held to its start.  [default: 0.1]")] = None,
    normalised: Annotated[bool | None, typer.Option("--normalised", help="Compare means over tokens, not sums.")] = None,
    anchor: Annotated[float | None, typer.Option(help="Weight of the chosen answer's own loss; 0.1 to 1.  [default: 0]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order and of what is held out.")] = None,
    lora: LoraOption = None,
    settings: SetOption = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; by default runs/MODEL-dpo.")] = None,
    resume: ResumeOption = False,
) -> None:
    """Preference tuning: make answers that were preferred likelier than those that were not."""
    stop_in_words()
    from tessera.commands.posttrain import preferred as run

    asked = {
        "model": model, "data": data, "validation": validation, "validation_share": validation_share, "budget": budget,
        "epochs": epochs, "batch_size": batch_size, "rate": rate, "beta": beta, "normalised": normalised, "anchor": anchor,
        "seed": seed, "settings": _settings(settings, lora),
    }  # fmt: skip
    run("dpo", _given(asked), out, resume)


@posttrain.command()
def reward(
    model: ModelOption = None,
    data: PairsOption = None,
    validation: HeldOutFileOption = None,
    validation_share: HeldOutOption = None,
    budget: PairBudgetOption = None,
    epochs: EpochsOption = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts in a batch, with all their answers.  [default: 16]")] = None,
    rate: RateOption = None,
    hardened: HardenedOption = None,
    seed: Annotated[int | None, typer.Option(help="Of the order and of what is held out.")] = None,
    settings: SetOption = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; by default runs/MODEL-reward.")] = None,
    resume: ResumeOption = False,
) -> None:
    """Train a reward model, which scores answers, and try to fool it."""
    stop_in_words()
    from tessera.commands.posttrain import preferred as run

    asked = {
        "model": model, "data": data, "validation": validation, "validation_share": validation_share, "budget": budget,
        "epochs": epochs, "batch_size": batch_size, "rate": rate, "hardened": hardened, "seed": seed,
        "settings": tuple(settings or ()) or None,
    }  # fmt: skip
    run("reward", _given(asked), out, resume)


@posttrain.command()
def moderation(
    model: ModelOption = None,
    data: Annotated[str | None, typer.Option(help="File of labelled texts, one JSON object a line (docs/safety.md).")] = None,
    validation: Annotated[str | None, typer.Option(help="File of labelled texts to measure and calibrate on.")] = None,
    validation_share: Annotated[
        float | None, typer.Option(help="Without such a file: share of the texts that is held out.  [default: 0.1]")
    ] = None,
    budget: PairBudgetOption = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the texts.  [default: 3]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Texts in a batch.  [default: 32]")] = None,
    rate: RateOption = None,
    seed: Annotated[int | None, typer.Option(help="Of the order and of what is held out.")] = None,
    settings: SetOption = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; by default runs/MODEL-moderation.")] = None,
    resume: ResumeOption = False,
) -> None:
    """Train a moderation model, which says in which categories of harm a text is."""
    stop_in_words()
    from tessera.commands.posttrain import moderated as run

    asked = {
        "model": model, "data": data, "validation": validation, "validation_share": validation_share, "budget": budget,
        "epochs": epochs, "batch_size": batch_size, "rate": rate, "seed": seed, "settings": tuple(settings or ()) or None,
    }  # fmt: skip
    run(_given(asked), out, resume)


@posttrain.command("distil")
def distil_guidance(
    model: ModelOption = None,
    data: Annotated[
        str | None, typer.Option(help="Source of the captions; by default what the model's run learned from.")
    ] = None,
    medium: Annotated[str | None, typer.Option(help="image, video or audio; by default the first that the model knows.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Scale; by default what generate takes.")] = None,
    count: Annotated[
        int | None, typer.Option(help="Pictures (films, sounds) that are made to learn from.  [default: 2,000]")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over them.  [default: 4]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="In a batch.  [default: 32]")] = None,
    rate: RateOption = None,
    seed: Annotated[int | None, typer.Option(help="Of captions, samples and order.")] = None,
    lora: LoraOption = None,
    settings: SetOption = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; by default runs/MODEL-distil.")] = None,
    resume: ResumeOption = False,
) -> None:
    """Teach a model its own guidance: it then follows captions as closely from one row as it did from two."""
    stop_in_words()
    from tessera.commands.posttrain import distilled as run

    asked = {
        "model": model, "data": data, "medium": medium, "guidance": guidance, "count": count, "epochs": epochs,
        "batch_size": batch_size, "rate": rate, "seed": seed, "settings": _settings(settings, lora),
    }  # fmt: skip
    run(_given(asked), out, resume)


def _settings(settings: list[str] | None, lora: int | None) -> tuple[str, ...] | None:
    """What --set and --lora say together."""
    return (*(settings or ()), *((f"train.lora={lora}",) if lora is not None else ())) or None


def _listed(words: str | None) -> tuple[str, ...] | None:
    """Words with commas between them."""
    return tuple(word.strip() for word in words.split(",")) if words else None


def _given(asked: dict[str, Any]) -> dict[str, Any]:
    """What was said on the command line; all else is left to the stage."""
    return {name: value for name, value in asked.items() if value is not None}
