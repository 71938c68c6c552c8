"""The one training loop: batches in, weights out, whatever the objective.

`train` takes a recipe with nothing left open, and everything it needs as values; it never decides a setting. What it does is told
to observers, plain callables that get each event as a dictionary: the run's folder writes them down, the live line shows them.
"""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from tessera.data.loader import Batch, Batches
from tessera.device import Machine, synchronise
from tessera.errors import Interrupted, RunFailed, UserError
from tessera.model.decoder import Decoder
from tessera.recipe import Recipe, Train
from tessera.train import optimizers as optim
from tessera.train.checkpoint import Checkpoint, Writer
from tessera.train.gradients import Gradients
from tessera.train.objectives import Evaluation, Objective, evaluate
from tessera.train.parallel import World

Observer = Callable[[dict[str, Any]], None]
WINDOW = 128
"""Steps that say what a usual loss and gradient norm is, as in OLMo-core's skip-step optimizer."""
USUAL_LOSS, USUAL_NORM = 0.1, 0.5
"""Least deviation, as a part of the mean. Norms may double within a few steps where a model learns to copy (docs/LOG.md)."""
HARMLESS = 1e-3
"""Least deviation of a loss in nats, and of a norm: a model that knows its data by heart has losses that are all noise."""
MOST_SKIPPED = 10
AGAIN_SECONDS = 2.0


@dataclass(frozen=True)
class Exam:
    """What decides which checkpoint is the best, in place of the held-out loss.

    Args:
        take: measures the present weights; what is no number among its measures is recorded with them.
        decides: which of its measures; more is better.
    """

    take: Callable[[], Mapping[str, Any]]
    decides: str


@dataclass(frozen=True)
class Companion:
    """What is learned beside the decoder: in the checkpoints with the state of its optimizers, but not in the model.

    Args:
        name: before the names of its weights in a checkpoint.
        module: on the decoder's device.
        settings: of its optimizers.
    """

    name: str
    module: nn.Module
    settings: Train


@dataclass
class Job:
    """What one run needs.

    Args:
        recipe: resolved; nothing in `train` and `model` is None but what means "none".
        decoder: on its device, float32 weights.
        loader: gives this process's rows of each batch.
        held_out: fixed validation batches, whole on process 0, for the evaluations in the loop; none: nothing is evaluated.
        final_held_out: the same for the finished weights, usually more of them.
        token_bytes: (V,) int32, bytes of each id.
        pixels: the ids that are pixels of a picture, or patches.
        pixels_each: how many pixels each of these is.
        token_seconds: (V,) float64, how much of a film or a sound each id stands for; None: there are none such.
        machine: dtype, device, threads.
        matmul_peak: FLOP/s measured, for the share that the live line shows.
        identity: what a checkpoint must agree on to be resumed from: hashes of recipe, tokenizer and data.
        writer: of checkpoints, on process 0.
        world: this process among all.
        observers: told every event, on process 0.
        sample: completes a prompt with the present weights, or None.
        objective: what is minimised; None: the next token's cross-entropy.
        exam: is taken before the first step and with every evaluation, on process 0; None: the held-out loss decides.
        companion: what the objective is built around beside the decoder, or None.
    """

    recipe: Recipe
    decoder: Decoder
    loader: Batches
    held_out: Sequence[Batch]
    final_held_out: Sequence[Batch]
    token_bytes: np.ndarray
    machine: Machine
    matmul_peak: float
    identity: dict[str, str]
    writer: Writer | None = None
    world: World = field(default_factory=World)
    observers: Sequence[Observer] = ()
    sample: Callable[[str], str] | None = None
    objective: Objective | None = None
    exam: Exam | None = None
    companion: Companion | None = None
    pixels: range = range(0)
    pixels_each: int = 1
    token_seconds: np.ndarray | None = None

    def tell(self, event: str, **facts: Any) -> None:
        """Gives one event to every observer."""
        for observer in self.observers:
            observer({"event": event, **facts})

    @property
    def units(self) -> tuple[range, int, np.ndarray | None]:
        """What `objectives.evaluate` has to know of media."""
        return self.pixels, self.pixels_each, self.token_seconds

    def learned(self) -> nn.Module:
        """A module of all that is learned, in which the decoder's weights have their own names."""
        if self.companion is None:
            return self.decoder
        whole = nn.Module()
        for name, part in (*self.decoder.named_children(), (self.companion.name, self.companion.module)):
            whole.add_module(name, part)
        return whole


@dataclass
class Progress:
    """The counters of a run; all of it goes into a checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    best_loss: float | None = None
    best_step: int | None = None
    best_mark: float | None = None


def train(job: Job, start: Checkpoint | None = None) -> Evaluation:
    """Runs to the recipe's last step.

    Args:
        job: the run.
        start: the checkpoint to go on from; None: from the decoder's present weights.

    Returns:
        The held-out loss of the final weights; NaN where nothing is held out.

    Raises:
        UserError: the checkpoint belongs to another run.
        RunFailed: the disk is full, or ten steps in a row had to be skipped.
        Interrupted: SIGTERM or SIGINT came; a checkpoint was written.
    """
    settings, world = job.recipe.train, job.world
    steps, decoder, companion, learned = total_steps(job.recipe), job.decoder, job.companion, job.learned()
    opts = optim.build(decoder, settings, job.machine.torch_dtype)
    if companion is not None:
        opts += optim.build(companion.module, companion.settings, job.machine.torch_dtype)
    progress = Progress()
    if start is not None:
        _check_identity(start, job)
        start.restore(learned, opts)
        job.loader.restore(start.state["loader"])
        progress = Progress(**start.state["progress"])

    def save(wait: bool = False) -> None:
        if job.writer is not None:
            state = {"step": progress.step, "progress": vars(progress), "loader": job.loader.state(), "identity": job.identity}
            before = job.writer.seconds_blocked
            job.writer.write(learned, opts, {**state, "best_step": progress.best_step}, wait)
            job.tell("checkpoint", step=progress.step, seconds=job.writer.seconds_blocked - before)

    def look(final: bool = False) -> Evaluation:
        synchronise(job.machine)
        begin = time.perf_counter()
        found = Evaluation(math.nan, math.nan, 0, math.nan)
        rows = job.final_held_out if final else job.held_out
        if job.exam is not None:
            marks = world.share(dict(job.exam.take()) if world.first else {})
            job.tell("exam", step=progress.step, final=final, seconds=time.perf_counter() - begin, **marks)
            if progress.best_mark is None or marks[job.exam.decides] > progress.best_mark:
                progress.best_mark, progress.best_step = marks[job.exam.decides], progress.step
        if not rows:
            return found
        if world.first:
            found = evaluate(decoder, rows, job.token_bytes, job.machine.torch_device, *job.units)
        media = {key: value for key, value in found.in_bits.items() if key != "bits_per_byte"}
        job.tell("evaluation", step=progress.step, tokens=progress.tokens, loss=found.loss, bits_per_byte=found.bits_per_byte,
                 accuracy=found.accuracy, evaluated_tokens=found.tokens, final=final,
                 seconds=time.perf_counter() - begin, **media)  # fmt: skip
        if job.sample is not None and world.first:
            for prompt in settings.sample_prompts:
                job.tell("sample", step=progress.step, prompt=prompt, text=job.sample(prompt))
        if progress.best_loss is None or found.loss < progress.best_loss:
            progress.best_loss = found.loss
            progress.best_step = progress.step if job.exam is None else progress.best_step
        world.barrier()
        return found

    assert settings.evaluate_every and settings.warmup_steps is not None and settings.cooldown_steps is not None
    assert settings.context and settings.short_context
    saved_at = time.perf_counter()
    beside = None if companion is None else companion.module
    with Gradients(decoder, settings, job.machine, world, job.objective, beside) as gradients, _signals() as asked:
        optim.share_work(opts, gradients.pool)
        if job.exam is not None and progress.best_mark is None:
            look()  # what it could do before decides too
            save()
        while progress.step < steps:
            begin = time.perf_counter()
            optim.set_rates(opts, optim.schedule(progress.step, steps, settings.warmup_steps, settings.cooldown_steps))
            short = progress.step < settings.short_share * steps
            _update(job, gradients, opts, progress, begin, settings.short_context if short else settings.context)
            last = progress.step == steps
            if progress.step % settings.evaluate_every == 0 and not last:
                look()
                if progress.best_step == progress.step:  # kept beside the newest two, so it has to exist
                    save()
                    saved_at = time.perf_counter()
            stop = asked[0] if asked else 0
            if world.any(bool(stop), job.machine.torch_device):
                save(wait=True)
                raise Interrupted(stop or signal.SIGTERM, progress.step, resumable=True)
            if not last and _agreed(world, time.perf_counter() - saved_at > settings.checkpoint_seconds, job):
                save()
                saved_at = time.perf_counter()
        result = look(final=True)
        save(wait=True)
    return result


def total_steps(recipe: Recipe) -> int:
    """Updates of a resolved recipe."""
    settings = recipe.train
    assert settings.tokens and settings.batch_rows and settings.context
    return max(1, math.ceil(settings.tokens / (settings.batch_rows * settings.context)))


def _update(
    job: Job, gradients: Gradients, opts: list[torch.optim.Optimizer], progress: Progress, begin: float, context: int
) -> None:
    """One batch, in rows of `context`: gradients of all micro-batches, a check, the step, the event."""
    settings, world, device = job.recipe.train, job.world, job.machine.torch_device
    batch = job.loader.next().cut(context)
    learned = float(world.sum(torch.tensor(batch.learned, device=device)))
    sums = world.sum(gradients.add(batch, learned)).tolist()
    measures = {name: value / max(learned, 1.0) for name, value in zip(gradients.measures, sums, strict=True)}
    loss = measures[gradients.measures[0]]
    learned_ones = {id(p) for optimizer in opts for group in optimizer.param_groups for p in group["params"]}

    def clipped(module: nn.Module) -> float:
        parameters = [p for p in module.parameters() if p.grad is not None and id(p) in learned_ones]
        return float(nn.utils.clip_grad_norm_(parameters, settings.clip))

    norms = {"grad_norm": clipped(job.decoder)}
    if job.companion is not None:
        # By itself: the decoder's steps are not to become smaller where its companion's gradient is large.
        norms[f"{job.companion.name}_grad_norm"] = clipped(job.companion.module)
    norm = norms["grad_norm"]
    finite = math.isfinite(loss) and all(map(math.isfinite, norms.values()))
    # Advantages and margins are of either sign and far from normal: of such losses only the infinite are strange.
    usual = job.objective is not None or not (
        _unusual(loss, progress.losses, USUAL_LOSS) or _unusual(norm, progress.norms, USUAL_NORM)
    )
    skip = not (finite and usual)
    if not learned:
        skip = False  # nothing to learn is nothing wrong, but momentum and decay must not move the weights either
    elif skip:
        progress.skipped += 1
        progress.skipped_in_a_row += 1
    else:
        for optimizer in opts:
            optimizer.step()
        progress.skipped_in_a_row = 0
        progress.losses = [*progress.losses, loss][-WINDOW:]
        progress.norms = [*progress.norms, norm][-WINDOW:]
    gradients.clear()
    synchronise(job.machine)
    seconds = time.perf_counter() - begin
    progress.step += 1
    progress.tokens += batch.tokens
    progress.seconds += seconds
    speed = batch.tokens / seconds
    flops = speed * job.decoder.config.flops_per_token(context)
    job.tell("step", step=progress.step, tokens=progress.tokens, **measures, **batch.facts,
             **norms, rate=opts[0].param_groups[0]["lr"],
             tokens_per_second=speed, seconds=progress.seconds, skipped=int(skip),
             peak_share=flops / (job.matmul_peak * world.size))  # fmt: skip
    if progress.skipped_in_a_row >= MOST_SKIPPED:
        kept = job.writer.last_good() if job.writer is not None else ""
        raise RunFailed(
            f"{MOST_SKIPPED} steps in a row gave a loss or gradient that is not finite or far outside the usual "
            f"(last: loss {loss:.4g}, gradient norm {norm:.4g}); "
            f"the weights are those of step {progress.step - MOST_SKIPPED}, {kept}; "
            "lower train.matrix_rate and train.adam_rate, or look at the data."
        )


def _unusual(value: float, usual: list[float], least: float) -> bool:
    """Six standard deviations above the recent mean; the deviation is taken as at least that part of the mean, and HARMLESS."""
    if len(usual) < WINDOW // 4:
        return False
    mean = statistics.fmean(usual)
    # The deviation takes as long as a layer of a small model, and is seldom needed.
    return value > mean + 6 * max(least * mean, HARMLESS) and value > mean + 6 * statistics.pstdev(usual, mean)


def _agreed(world: World, wish: bool, job: Job) -> bool:
    """Whether process 0 wishes it, so that all do the same."""
    return world.any(wish and world.first, job.machine.torch_device)


def _check_identity(start: Checkpoint, job: Job) -> None:
    for name, value in start.state["identity"].items():
        if job.identity.get(name) != value:
            raise UserError(
                f"{start.folder} was written with another {name}; "
                f"resume with the {name} of the run, or start a new run with another --out."
            )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT while the block runs; another Ctrl-C, a while after, stops at once."""
    asked: list[int] = []
    first = math.inf

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal first
        # One Ctrl-C may come twice: from the terminal, and from torchrun, which passes on what it gets.
        if number == signal.SIGINT and time.monotonic() > first + AGAIN_SECONDS:
            raise Interrupted(number, resumable=True)
        first = min(first, time.monotonic())
        asked.append(number)

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: whoever runs the loop there handles signals
        before = {}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
