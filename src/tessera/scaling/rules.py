"""From a budget to every setting of a run, each with its reason.

`resolve` takes a recipe with gaps, what is known of machine and data, and returns the recipe without gaps and a list that says
why each value is what it is. What a person set is never changed. The constants were tuned here; docs/LOG.md has the experiments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from tessera.errors import UserError
from tessera.model.decoder import DecoderConfig
from tessera.recipe import Budget, Recipe

TOKENS_PER_PARAMETER = 10.0
"""D/N at the best loss for the compute, N in matmul parameters: 10 to 11 by nanochat's fits with Muon (its LOG, 2026-01-27), 7
to 8 here below 1e12 FLOPs (docs/LOG.md, 2026-11-25, "Context"); the optimum is flat."""
MOST_EPOCHS = 4.0
"""Passes over the data that are nearly as good as new data (arXiv 2305.16264)."""
LEAST_TOKENS_PER_PARAMETER = 2.0
"""Where the data is short, parameters grow instead of passes over it, down to this many tokens for each."""
UTILISATION = 0.55
"""Share of the matmul peak that training reaches, until it has been measured."""
CONTROL_TOKENS = 64
LAYER_WIDTH = 64
"""Width per layer."""
# The rest was tuned in docs/LOG.md, 2026-11-23: "Micro-batches", "Compile", "Rates"; the batch is Step Law's, checked there.
MICRO_TOKENS = {"float32": 1024, "bfloat16": 2048}
COMPILE_SECONDS = {"cpu": 40.0, "cuda": 60.0}
COMPILE_GAIN = {"cpu": 0.1, "cuda": 0.5}
MUON_RATE = 0.003
ADAMW_RATE = 0.004
EMBEDDING_RATE = 0.012
RATE_WIDTH_POWER = -0.5
BATCH_FACTOR, BATCH_POWER = 0.58, 0.571
LEAST_UPDATES = 2000
"""Short runs want these more than a large batch (docs/LOG.md, 2026-11-24, "Ladder", and 2026-11-25, "Batch and rates")."""
TWO_HEADS = 128
"""Width from which heads are of 64; narrower models learn more from two of 32 (docs/LOG.md, 2026-11-25, "Context")."""
LEAST_CONTEXT, MOST_CONTEXT = 256, 2048
SHORT_ROWS, SHORT_ROPE_THETA, ROPE_THETA = 256, 1e3, 1e4
"""Rotary base: 1,000 for rows up to 256 (docs/LOG.md, 2026-11-25, "Straight")."""


@dataclass(frozen=True)
class Facts:
    """What the rules need to know beside the recipe.

    Args:
        seconds: of the budget that are left for training and evaluation; None where the budget is not a time.
        train_bytes: of training text; None where it has not been read.
        media_ids: of the vocabulary, beside text and control tokens.
        least_context: tokens that a row has to hold, so that no picture is cut; the recipe's own context goes before it.
        own_share: part of the seconds or FLOPs that the run itself may use; the rest is the ladder's.
        peak_flops: FLOP/s of the machine's matmul, over all processes.
        utilisation: share of that peak that training reaches, guessed until it has been measured.
        measured: whether it has.
        shape: of a model that exists already (`--init`), which fixes the recipe's model and vocabulary.
        processes: that share a batch.
        kind: of device, `cpu` or `cuda`.
        threads: of one process.
        memory_bytes: of a GPU.
        compiler: whether torch.compile works.
        dtype: of the activations, `float32` or `bfloat16`.
    """

    seconds: float | None
    peak_flops: float
    utilisation: float = UTILISATION
    measured: bool = False
    shape: DecoderConfig | None = None
    processes: int = 1
    kind: str = "cpu"
    threads: int = 1
    memory_bytes: int | None = None
    compiler: bool = True
    dtype: str = "float32"
    train_bytes: int | None = None
    media_ids: int = 0
    least_context: int = 0
    own_share: float = 1.0


@dataclass(frozen=True)
class Derived:
    """One value and why."""

    name: str
    value: Any
    reason: str

    @property
    def line(self) -> str:
        """For a table on the terminal."""
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        return f"  {self.name:<28} {value:>12}   {self.reason}"


@dataclass(frozen=True)
class Plan:
    """A recipe with nothing left open."""

    recipe: Recipe
    shape: DecoderConfig
    derived: tuple[Derived, ...]
    flops: float
    utilisation: float = UTILISATION


def resolve(recipe: Recipe, facts: Facts) -> Plan:
    """Fills every gap.

    Raises:
        UserError: the budget is too small for any run, or settings contradict each other.
    """
    said: dict[str, Derived] = {}

    def choose(name: str, value: Any, reason: str) -> Any:
        """The recipe's own value if it has one, and may: a model to go on from has its shape and its vocabulary."""
        part, key = name.split(".")
        given = None if facts.shape and part != "train" else getattr(getattr(recipe, part), key)
        said[name] = Derived(name, given, "set in the recipe") if given is not None else Derived(name, value, reason)
        return said[name].value

    train = recipe.train
    tokens, shape, vocabulary_text, why_tokens = _size(recipe, facts)
    tokens = int(choose("train.tokens", tokens, why_tokens))
    why_context = "256 (D / 20M)^0.5, a power of two from 256: more data, longer memory"
    if _context(tokens) < facts.least_context:
        why_context = "the longest picture, film or recording with its caption, and both pictures where one is edited"
    context = int(choose("train.context", shape.context, why_context))
    pieces = int(choose("train.short_context", context, "whole rows from the first step on"))
    if context % pieces:
        raise UserError(f"train.short_context={pieces} does not divide train.context={context}; make it a divisor.")
    rows_as_chosen = train.model_copy(update={"context": context, "short_context": pieces})
    flops = shape.flops_per_token(rows_as_chosen.mean_context) * tokens
    parameters = shape.matmul_parameters
    short = facts.train_bytes is not None and tokens < 0.8 * _wanted_tokens(shape, vocabulary_text, None)
    near = f"not over {MOST_EPOCHS:g} passes" if short else f"near {TOKENS_PER_PARAMETER:g} tokens each"
    why_shape = f"N = {_count(parameters)} matmul parameters for D = {_count(tokens)} tokens, {near}"
    fixed = "as in the model to go on from"
    choose(
        "tokenizer.vocabulary_size",
        vocabulary_text,
        fixed if facts.shape else "512 (D / 5M)^0.5, a power of two: more data, longer words",
    )
    choose("model.width", shape.width, fixed if facts.shape else why_shape)
    choose(
        "model.layers", shape.layers, fixed if facts.shape else f"width / {LAYER_WIDTH}, up or down, whichever brings N nearer"
    )
    choose("model.head_size", shape.head_size, fixed if facts.shape else "64 runs fast everywhere; narrow models want two of 32")
    choose("model.heads", shape.heads, fixed if facts.shape else "width / head size, in pairs, a multiple of the key heads")
    choose("model.kv_heads", shape.kv_heads, fixed if facts.shape else "half of the heads where even: a smaller cache")
    choose("model.mlp_width", shape.mlp_width, fixed if facts.shape else "3 x width, the gated form's usual share")
    choose(
        "model.rope_theta",
        shape.rope_theta,
        fixed if facts.shape else f"{SHORT_ROPE_THETA:g} for rows up to {SHORT_ROWS}, {ROPE_THETA:g} beyond",
    )
    choose("model.tied", shape.tied, fixed if facts.shape else "one matrix while the vocabulary is a large part of the model")

    side_by_side = facts.threads if facts.kind == "cpu" and facts.processes == 1 else 1
    rows, why_rows = _batch_rows(tokens, context, facts.processes * side_by_side)
    rows = int(choose("train.batch_rows", rows, why_rows))
    if rows % facts.processes:
        raise UserError(f"train.batch_rows={rows} cannot be shared by {facts.processes} processes; make it a multiple.")
    per_process = rows // facts.processes
    workers = int(
        choose("train.workers", min(side_by_side, per_process), "one per core: small products gain more so than from threads")
    )
    most, why_micro = _micro_tokens(shape, facts, train.recompute)
    compiled = choose("train.compile", *_compile(facts, flops / (facts.peak_flops * facts.utilisation)))
    micro = _micro_rows(max(1, per_process // workers), max(1, most // context), even=compiled)
    choose("train.micro_rows", micro, why_micro)
    steps = max(1, math.ceil(tokens / (rows * context)))
    # Adapters are matrices that AdamW learns.
    adamw = train.optimizer == "adamw" or train.lora is not None
    scale = (shape.width / 128) ** RATE_WIDTH_POWER
    matrix_rate = (ADAMW_RATE if adamw else MUON_RATE) * scale
    choose(
        "train.matrix_rate",
        matrix_rate,
        f"{ADAMW_RATE if adamw else MUON_RATE:g} at width 128, x (width/128)^{RATE_WIDTH_POWER:g}",
    )
    choose(
        "train.adam_rate",
        matrix_rate if adamw else EMBEDDING_RATE * scale,
        "tuned with the rate of the matrices",
    )
    choose("train.weight_decay", 0.1, "of Muon and AdamW at these sizes; goes to zero with the rate")
    choose("train.warmup_steps", min(max(10, steps // 50), max(1, steps // 10)), "2 % of the steps, at least 10, at most a tenth")
    choose(
        "train.cooldown_steps",
        min(max(steps * 2 // 5, 100), steps * 4 // 5),
        "40 % of the steps, at least 100, at most four fifths",
    )
    choose("train.evaluate_every", max(1, math.ceil(steps / 10)), "ten times in a run")
    choose(
        "train.evaluate_tokens", _held_out_tokens(0.006 * tokens, context), "so that ten evaluations cost about 2 % of the run"
    )
    choose("train.final_tokens", _held_out_tokens(0.06 * tokens, context), "so that the final loss costs about 2 % of the run")

    filled: dict[str, Any] = recipe.model_dump()
    for item in said.values():
        part, key = item.name.split(".")
        filled[part][key] = item.value
    filled["model"]["rope_theta"] = shape.rope_theta
    resolved = Recipe.model_validate(filled)
    return Plan(resolved, shape, tuple(said.values()), flops)


def _size(recipe: Recipe, facts: Facts) -> tuple[int, DecoderConfig, int, str]:
    """Tokens D, shape, text entries and the reason for D."""
    budget = Budget.parse(recipe.budget)
    if recipe.train.tokens is not None:
        budget = Budget(tokens=recipe.train.tokens)
    if budget.tokens is not None:
        target = float(budget.tokens)
        return _best(recipe, replace(facts, train_bytes=None), lambda shape: target, f"the budget, {recipe.budget}")
    if facts.seconds is not None:
        if facts.seconds <= 0:
            raise UserError(f"a budget of {recipe.budget} is spent before training begins; give more.")
        seconds = facts.seconds * facts.own_share
        flops = seconds * facts.peak_flops * facts.utilisation
        how = "measured" if facts.measured else "guessed"
        why = f"{seconds:.0f} s at a {how} {facts.utilisation:.0%} of {facts.peak_flops / 1e9:,.0f} GFLOP/s"
    else:
        assert budget.flops is not None
        flops = budget.flops * facts.own_share
        why = f"C = {flops:.3g} FLOPs" + (", the rest is the ladder's" if facts.own_share < 1 else "")

    def bought(shape: DecoderConfig) -> float:
        train = recipe.train.model_copy(
            update={"context": shape.context, "short_context": recipe.train.short_context or shape.context}
        )
        return flops / shape.flops_per_token(train.mean_context)

    return _best(recipe, facts, bought, why)


def _best(recipe: Recipe, facts: Facts, tokens_for: Any, why: str) -> tuple[int, DecoderConfig, int, str]:
    """The shape whose tokens come nearest to what the rule wants for it."""
    best: tuple[float, int, DecoderConfig, int, str] | None = None
    for width, layers in _sizes(recipe, facts):
        shape, text = _shape(recipe, facts, width, layers, 1e6)
        for _ in range(3):  # vocabulary and context follow the tokens, which follow the shape
            tokens = tokens_for(shape)
            shape, text = _shape(recipe, facts, width, layers, tokens)
        tokens = tokens_for(shape)
        distance = abs(math.log(tokens / _wanted_tokens(shape, text, facts.train_bytes)))
        if best is None or distance < best[0]:
            best = (distance, int(tokens), shape, text, why)
    assert best is not None
    _, tokens, shape, text, why = best
    if recipe.train.tokens is None and tokens < 20 * shape.context:
        raise UserError(f"a budget of {recipe.budget} buys {tokens:,} tokens, too few to train anything; give more.")
    return tokens, shape, text, why


def _wanted_tokens(shape: DecoderConfig, text: int, train_bytes: int | None) -> float:
    """D for a shape: so many tokens per parameter, and no more than a few passes over the data while the shape can do with less.

    Five minutes on 1 MB of text: 0.47M parameters and 9 passes end worse than 0.22M and 4.6 passes with a quarter of the compute
    (docs/LOG.md, 2026-11-25, "Short data").
    """
    wanted = TOKENS_PER_PARAMETER * shape.matmul_parameters
    if train_bytes is None:
        return wanted
    passes = MOST_EPOCHS * train_bytes / _bytes_per_token(text)
    return min(wanted, max(passes, LEAST_TOKENS_PER_PARAMETER * shape.matmul_parameters))


def _bytes_per_token(text: int) -> float:
    """Of English and of Python with that many text entries, roughly; 2.0 was measured at 512."""
    return min(4.5, 2.0 + 0.5 * math.log2(max(text, 257) / 512))


def _sizes(recipe: Recipe, facts: Facts) -> list[tuple[int, int]]:
    """Widths and layers to choose from, in steps small enough that a law over sizes has no stairs in it."""
    if facts.shape is not None:
        return [(facts.shape.width, facts.shape.layers)]
    widths = [
        *range(16, 64, 4),
        *range(64, 128, 8),
        *range(128, 256, 16),
        *range(256, 512, 32),
        *range(512, 1024, 64),
        *range(1024, 2048, 128),
        *range(2048, 8193, 256),
    ]
    if recipe.model.width is not None:
        widths = [recipe.model.width]
    deep = {width: {max(2, width // LAYER_WIDTH), max(2, math.ceil(width / LAYER_WIDTH))} for width in widths}
    if recipe.model.layers is not None:
        deep = {width: {recipe.model.layers} for width in widths}
    elif recipe.model.width is not None:
        deep = {width: {max(2, round(width / LAYER_WIDTH))} for width in widths}
    return [(width, layers) for width in widths for layers in sorted(deep[width])]


def _shape(recipe: Recipe, facts: Facts, width: int, layers: int, tokens: float) -> tuple[DecoderConfig, int]:
    if facts.shape is not None:
        # What could read far before goes on doing so.
        longest = max(facts.shape.context, facts.least_context)
        context = recipe.train.context or min(longest, max(_context(tokens), facts.least_context))
        return replace(facts.shape, context=context), facts.shape.vocab_size
    model = recipe.model
    text = recipe.tokenizer.vocabulary_size or _vocabulary(tokens)
    head_size = model.head_size or (64 if width >= TWO_HEADS else 32)
    heads = model.heads or _heads(2 * int(width / (2 * head_size) + 0.5) or 1, model.kv_heads or 1)
    kv_heads = model.kv_heads or (heads // 2 if heads % 2 == 0 else heads)
    if heads % kv_heads:
        raise UserError(f"model.heads={heads} is not a multiple of model.kv_heads={kv_heads}.")
    context = recipe.train.context or max(_context(tokens), facts.least_context)
    tied = model.tied if model.tied is not None else (text * width > 0.2 * layers * 12 * width * width)
    shape = DecoderConfig(
        vocab_size=text + CONTROL_TOKENS + facts.media_ids,
        width=width, layers=layers, heads=heads, kv_heads=kv_heads, head_size=head_size,
        mlp_width=model.mlp_width or 3 * width, tied=tied, context=context,
        rope_theta=model.rope_theta or (SHORT_ROPE_THETA if context <= SHORT_ROWS else ROPE_THETA),
    )  # fmt: skip
    return shape, text


def _heads(wanted: int, kv_heads: int) -> int:
    """The multiple of `kv_heads` next below `wanted`, or `kv_heads` itself: each shares one key head with as many others."""
    return max(kv_heads, wanted // kv_heads * kv_heads)


def _vocabulary(tokens: float) -> int:
    return int(2 ** min(16, max(9, round(math.log2(512 * math.sqrt(tokens / 5e6))))))


def _context(tokens: float) -> int:
    return min(MOST_CONTEXT, max(LEAST_CONTEXT, int(2 ** round(math.log2(256 * math.sqrt(tokens / 20e6))))))


def _batch_rows(tokens: int, context: int, shares: int) -> tuple[int, str]:
    wanted = min(BATCH_FACTOR * tokens**BATCH_POWER, tokens / LEAST_UPDATES)
    rows = max(1, round(wanted / context))
    unit = shares * (4 if rows >= 16 * shares else 1)
    rows = max(unit, round(rows / unit) * unit)
    return (
        rows,
        f"{BATCH_FACTOR:g} D^{BATCH_POWER:g} (Step Law, arXiv 2503.04715), or D / {LEAST_UPDATES}: {_count(wanted)} tokens",
    )


def _micro_tokens(shape: DecoderConfig, facts: Facts, recompute: bool) -> tuple[int, str]:
    """Tokens of one forward pass, and why."""
    if facts.memory_bytes is None and recompute:
        return shape.context, "one row, the least memory, as train.recompute asks"
    if facts.memory_bytes is None:
        most = MICRO_TOKENS[facts.dtype]
        return most, f"about {most} tokens: activations stay in the cache"
    # Kept for backward per token and layer, in bf16: about 9 D around attention and norms and 2 x 3 D in the feed-forward;
    # recomputed, that of one layer and the inputs of all.
    kept = 15 + shape.layers if recompute else 15 * shape.layers
    per_token = 2 * kept * shape.width
    weights = 16 * shape.parameters  # float32 weights, gradients and two optimizer states
    most = max(facts.memory_bytes // 2 - weights, facts.memory_bytes // 10) // per_token
    return int(most), f"{_count(most)} tokens fill half of the GPU's memory"


def _compile(facts: Facts, seconds: float) -> tuple[bool, str]:
    """Whether compiling wins back twice what it costs in a run of so many seconds, and why."""
    if not facts.compiler:
        return False, "no C++ compiler was found (g++ or clang++)"
    cost, gain = COMPILE_SECONDS[facts.kind], COMPILE_GAIN[facts.kind]
    share = f"{gain:.0%} faster for {cost:.0f} s before the first step"
    return gain * seconds > 2 * cost, f"{share}: pays from {2 * cost / gain:.0f} s on, the run takes about {seconds:,.0f} s"


def _micro_rows(rows: int, most: int, even: bool) -> int:
    """Rows of one forward pass, up to `most`; `even`: all passes alike, since another shape would be compiled anew."""
    if even:
        return max(d for d in range(1, min(rows, most) + 1) if rows % d == 0)
    return math.ceil(rows / math.ceil(rows / most))


def _held_out_tokens(tokens: float, context: int) -> int:
    """A power of two, so that runs of nearly the same budget are measured on the same rows, up to a million."""
    return int(max(4 * context, min(2**20, 2 ** round(math.log2(max(tokens, 1.0))))))


def _count(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
