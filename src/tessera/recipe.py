"""A recipe: what a person wants trained, as data.

A recipe is one YAML page. Every field has its meaning beside it and, where it can be derived from the budget, may be left
out: `scaling.rules` fills what is missing and says why, `train` takes only a recipe with nothing left open. A field that a
person sets is never overruled.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tessera.errors import UserError

Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
"""What every generator of random numbers takes: torch nothing larger, NumPy nothing negative."""


class Part(BaseModel):
    """Base of all parts of a recipe: unknown keys and wrong types are refused, values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class Source(Part):
    """Where documents come from."""

    uri: str
    """`files:GLOB or FOLDER`, `hub:DATASET`, `builtin:stdlib`, prose, digits, films, ..., `python:package.module.function`."""
    weight: float | None = Field(None, gt=0)
    """Share of the training rows, relative to the other sources; left out: its share of the tokens."""
    epochs: float | None = Field(None, gt=0)
    """At most this many passes over the source; left out: as many as the run needs."""


class Tasks(Part):
    """What captioned pictures teach: the share of each, relative to the others."""

    draw: float = Field(0.5, ge=0)
    """Caption -> picture."""
    see: float = Field(0.35, ge=0)
    """Picture -> caption, and answers to questions where the source has some."""
    edit: float = Field(0.1, ge=0)
    """Picture with hidden pixels -> the whole one."""
    vary: float = Field(0.05, ge=0)
    """Picture -> another one with the same caption, where there is one."""

    @model_validator(mode="after")
    def _something(self) -> Tasks:
        if not any(self.model_dump().values()):
            raise ValueError("all tasks have a share of 0; give at least one of draw, see, edit and vary more")
        return self


QUANTIZER_SHARE = 0.2
"""Of a budget of time, for the quantizer of each medium."""


class Quantizer(Part):
    """An autoencoder that turns pictures, films or sound into ids (docs/films.md); it is trained before the model."""

    levels: tuple[int, ...] = Field((8, 5, 5, 5), min_length=1, max_length=8)
    """Of each number of a code; their product is how many ids there are (arXiv 2309.15505, table 1)."""
    stride: int = Field(4, ge=1, le=32)
    """Side in pixels of what becomes one id."""
    time_stride: int = Field(2, ge=1, le=16)
    """Frames that become one id; films have k times as many and 1."""
    width: int = Field(48, ge=4)
    """Channels inside."""
    encoder_layers: int = Field(1, ge=0)
    decoder_layers: int = Field(3, ge=0)
    steps: int | None = Field(None, ge=1)
    """Updates that it is trained for; left out: as many as fit into `seconds`, 500 to 8,000, or without these 2,500."""
    seconds: float | None = Field(None, gt=0)
    """To train it in, where `steps` is left out; left out: a fifth of a budget of time."""
    batch: int = Field(8, ge=1)
    """Pictures, films or stretches of sound in one update."""
    rate: float = Field(3e-3, gt=0)
    """Learning rate of AdamW at both ends; Muon's inside is 3 times as large."""

    @field_validator("levels")
    @classmethod
    def _few_enough(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(2 <= level <= 64 for level in value):
            raise ValueError("each number of a code has 2 to 64 levels")
        if math.prod(value) > 1 << 16:
            raise ValueError(f"these levels make {math.prod(value):,} ids; give at most {1 << 16:,}")
        return value


class Pictures(Part):
    """How pictures become ids and tasks (docs/pictures.md)."""

    colours: int = Field(64, ge=2, le=4096)
    """Of the palette at most; pictures that have fewer keep them exactly."""
    quantizer: Quantizer | None = None
    """In place of a palette, for larger pictures: a patch is a token, not a pixel."""
    trained: str | None = None
    """Folder of `tessera tokenizer train --of pictures`, a run or a model, whose quantizer is taken; left out: one is trained as
    `quantizer` says."""
    most_pixels: int = Field(1024, ge=1)
    """Larger pictures are scaled down to so many pixels, in their proportions: each pixel of a palette is a token."""
    tasks: Tasks = Tasks()
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of the pictures to draw that come without their caption, for classifier-free guidance (arXiv 2207.12598)."""
    transformed: float = Field(0.0, ge=0, le=1)
    """Share of the pictures that are mirrored, turned or moved by a pixel, which the words before them say, so that few pictures
    are not learned by heart (distribution augmentation, Jun et al. 2020)."""
    bent: float = Field(0.0, ge=0, le=1)
    """Share of these that are turned, stretched and slanted by a little too, which the words say as well."""
    views: int | None = Field(None, ge=1)
    """Documents made of each picture; left out: as many as come to about 4M tokens, at most 64."""


class FilmTasks(Part):
    """What captioned films teach: the share of each, relative to the other."""

    film: float = Field(0.85, ge=0)
    """Caption -> film. One that begins with a given frame, or is gone on with, is the same with its beginning given."""
    tell: float = Field(0.15, ge=0)
    """Film -> caption."""

    @model_validator(mode="after")
    def _something(self) -> FilmTasks:
        if not self.film and not self.tell:
            raise ValueError("both tasks have a share of 0; give film or tell more")
        return self


class Films(Part):
    """How films become ids and tasks (docs/films.md)."""

    quantizer: Quantizer = Quantizer()
    trained: str | None = None
    """Folder of `tessera tokenizer train --of films`, a run or a model, whose quantizer is taken, or `published:emu3:FOLDER`
    (docs/published.md); left out: one is trained as `quantizer` says."""
    most_pixels: int = Field(1024, ge=1)
    """Larger frames are scaled down to about so many pixels, in their proportions."""
    most_frames: int = Field(9, ge=1)
    """Longer films are cut into several."""
    per_second: float = Field(8.0, gt=0)
    """Frames in a second that films are brought to."""
    tasks: FilmTasks = FilmTasks()
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of the films to make that come without their caption, for classifier-free guidance (arXiv 2207.12598)."""
    views: int | None = Field(None, ge=1)
    """Documents made of each film; left out: as many as come to about 4M tokens, at most 64."""


class SoundQuantizer(Quantizer):
    """The same for sound, in its own units (docs/sound.md)."""

    levels: tuple[int, ...] = Field((5, 5, 5), min_length=1, max_length=8)
    """Of each number of a code, as above; each of the `books` has as many ids."""
    books: int = Field(3, ge=1, le=8)
    """Ids of one step, each of a block of its own."""
    stride: int = Field(80, ge=8, le=1024)
    """Samples from one spectrum to the next."""
    time_stride: int = Field(4, ge=1, le=64)
    """Spectra that become one step: 320 samples, 25 steps in a second at 8 kHz."""
    width: int = Field(96, ge=4)
    encoder_layers: int = Field(2, ge=0)
    decoder_layers: int = Field(3, ge=0)
    batch: int = Field(16, ge=1)
    """Stretches of sound in one update."""


class SoundTasks(Part):
    """What captioned recordings teach: the share of each, relative to the other."""

    speak: float = Field(0.5, ge=0)
    """Caption -> sound. One that is gone on with is the same with its beginning given."""
    listen: float = Field(0.5, ge=0)
    """Sound -> its words, and answers to questions about it where the source has some."""

    @model_validator(mode="after")
    def _something(self) -> SoundTasks:
        if not self.speak and not self.listen:
            raise ValueError("both tasks have a share of 0; give speak or listen more")
        return self


class Sounds(Part):
    """How recordings become ids and tasks (docs/sound.md)."""

    quantizer: SoundQuantizer = SoundQuantizer()
    trained: str | None = None
    """Folder of `tessera tokenizer train --of sounds`, a run or a model, whose quantizer is taken, or `published:mimi:FOLDER`
    (docs/published.md); left out: one is trained as `quantizer` says."""
    per_second: int = Field(8000, ge=1000, le=48_000)
    """Samples in a second that recordings are brought to; half of it is the highest tone that is kept. With `trained`: as many as
    that takes."""
    most_seconds: float = Field(2.0, gt=0)
    """Longer recordings are left out, since their words belong to all of them; those without words are cut into several."""
    tasks: SoundTasks = SoundTasks()
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of the recordings to make that come without their caption, for classifier-free guidance (arXiv 2207.12598)."""
    varied: float = Field(0.8, ge=0, le=1)
    """Share of the recordings to listen to that begin a little later, are louder or softer, slower or faster, so that few of them
    are not learned by heart. What is to be made is always as it was recorded."""
    views: int | None = Field(None, ge=1)
    """Documents made of each recording; left out: as many as come to about 4M tokens, at most 16."""


class Data(Part):
    """The documents and how they become rows."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """A list of sources; a plain string is short for one with only its `uri`."""
    validation_fraction: float = Field(0.03, ge=0, lt=0.5)
    """Share of the documents held out, chosen by the hash of each document; 0: one document, of examples to tune on none."""
    deduplicate: Literal["none", "exact", "near"] = "near"
    """Drop repeated documents: none; byte for byte; or also those whose MinHash similarity is above 0.8."""
    fill_in_the_middle: float = Field(0.0, ge=0, le=1)
    """Share of training documents turned into prefix-suffix-middle (arXiv 2207.14255), for completing code in place."""
    pictures: Pictures | None = None
    """Pictures among the documents become tokens; left out: they are passed over."""
    films: Films | None = None
    """Films among the documents become tokens; left out: they are passed over."""
    sounds: Sounds | None = None
    """Recordings among the documents become tokens; left out: they are passed over."""
    packing: Literal["best_fit", "single", "stream"] = "best_fit"
    """`best_fit` packs whole documents into rows (arXiv 2404.10830); `single` gives each a row of its own; `stream` cuts one
    endless stream."""
    document_mask: bool = False
    """Let a token attend only within its own document; needed where packed samples have nothing to do with each other."""
    seed: Seed = 0
    """Of the split, the shuffle and the fill-in-the-middle cuts."""

    @field_validator("sources", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple) or not value:
            raise ValueError("write a list of at least one source, like ['files:mydocs/']")
        return tuple({"uri": v} if isinstance(v, str) else v for v in value)


class Tokenizer(Part):
    """How text becomes ids."""

    vocabulary_size: int | None = Field(None, ge=257)
    """Text entries, 256 bytes included. Rule: grows with the tokens of the budget."""
    pretokenizer: Literal["gpt-2", "qwen2"] = "qwen2"
    """Which of the two splitting rules that llama.cpp knows."""


class Model(Part):
    """Shape of the decoder (Qwen3's)."""

    layers: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=16)
    """D, the residual stream."""
    heads: int | None = Field(None, ge=1)
    kv_heads: int | None = Field(None, ge=1)
    head_size: int | None = Field(None, ge=8, multiple_of=2)
    """64 or 128 run fast everywhere."""
    mlp_width: int | None = Field(None, ge=8)
    tied: bool | None = None
    """One matrix for embedding and head."""
    rope_theta: float | None = Field(None, gt=0)
    """Base of the rotary wavelengths (arXiv 2104.09864)."""


class Train(Part):
    """The run."""

    tokens: int | None = Field(None, ge=1)
    """D: training tokens, padding not counted."""
    context: int | None = Field(None, ge=8)
    """T: tokens per row. Rule: grows with the tokens of the budget."""
    short_context: int | None = Field(None, ge=8)
    """Rows are cut into pieces of this many tokens at first, a divisor of `context`: near tokens are learned from before far
    ones. Rule: equal to `context`, never; a quarter is better below 1e13 FLOPs and worse above (docs/LOG.md, "Long rows")."""
    short_share: float = Field(0.5, ge=0, le=1)
    """Part of the steps with such pieces."""
    batch_rows: int | None = Field(None, ge=1)
    """Rows per update over all processes; rule: .58 D^.571 tokens (Step Law, arXiv 2503.04715)."""
    micro_rows: int | None = Field(None, ge=1)
    """Rows per forward pass of one process; what is left is accumulated."""
    workers: int | None = Field(None, ge=1)
    """Threads of one process that compute micro-batches side by side; rule: one per core on a CPU."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """`muon`: Muon for the matrices of the blocks, AdamW for the rest; `adamw`: AdamW for all."""
    matrix_rate: float | None = Field(None, ge=0)
    """Learning rate of Muon (RMS of an update's entries is 0.2 times this, as in arXiv 2502.16982); 0: nothing moves."""
    adam_rate: float | None = Field(None, ge=0)
    """Learning rate of AdamW; 0: nothing moves."""
    adam_betas: tuple[Beta, Beta] = (0.9, 0.95)
    momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's, Nesterov."""
    weight_decay: float | None = Field(None, ge=0)
    """Decoupled, on matrices, decays to zero with the rate's schedule."""
    warmup_steps: int | None = Field(None, ge=0)
    cooldown_steps: int | None = Field(None, ge=0)
    """Linear to zero at the end (WSD, arXiv 2404.06395), with a floor in absolute steps."""
    z_loss: float = Field(1e-4, ge=0)
    """Times the mean squared log-normaliser; keeps logits in range (arXiv 2204.02311)."""
    clip: float = Field(1.0, gt=0)
    """Largest global norm of the gradient."""
    lora: int | None = Field(None, ge=1, le=1024)
    """Rank of adapters that are learned beside the matrices of the blocks, all else staying as it is (arXiv 2106.09685); for
    models that know something already. Left out: all weights are learned."""
    lora_alpha: float | None = Field(None, gt=0)
    """Adapters count lora_alpha / lora times; left out: 2 lora."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool | None = None
    """torch.compile for the blocks; left out: where it wins back its cost within the budget."""
    recompute: bool = False
    """The lean way: keep only each block's input for backward and compute the block again there (arXiv 1604.06174), in
    micro-batches of one row on a CPU. Same gradients, less memory, a third to two thirds more time."""
    threads: int | None = Field(None, ge=1)
    seed: Seed = 0
    """Of the initial weights."""
    evaluate_every: int | None = Field(None, ge=1)
    """Steps between evaluations on the held-out rows."""
    evaluate_tokens: int | None = Field(None, ge=1)
    """Held-out tokens of such an evaluation, always the same."""
    final_tokens: int | None = Field(None, ge=1)
    """Held-out tokens that the finished model is measured on; this loss is the one that forecasts speak of."""
    checkpoint_seconds: float = Field(60.0, gt=0)
    """Seconds between checkpoints."""
    sample_prompts: tuple[str, ...] = ()
    """Completed at each evaluation, to see the model learn."""
    track: Literal["none", "tensorboard", "wandb", "trackio"] = "none"

    @model_validator(mode="after")
    def _pieces_fit(self) -> Train:
        if self.context and self.short_context and self.context % self.short_context:
            raise ValueError(f"short_context={self.short_context} does not divide context={self.context}")
        return self

    @property
    def mean_context(self) -> float:
        """Length of rows and pieces, averaged over the steps of a resolved recipe: what attention costs."""
        assert self.context and self.short_context
        return self.short_share * self.short_context + (1 - self.short_share) * self.context


class Later(Part):
    """A stage after the training that the rest of the page describes; `tessera reproduce` runs them all (docs/starter.md)."""

    stage: Literal["sft", "dpo", "grpo"]
    share: float = Field(gt=0, lt=1)
    """Part of the budget."""
    data: str
    """As `--data` of `tessera posttrain STAGE`."""
    replay: float = Field(0.0, ge=0, le=0.9)
    """Of `sft`: share of the rows that come from what the model learned first."""
    efforts: tuple[Literal["low", "medium", "high"], ...] = ()
    """Of `grpo`: think before each answer."""
    rate: float | None = Field(None, gt=0)
    """Of `dpo` and `grpo`: the learning rate; left out: by the model's width."""
    anchor: float | None = Field(None, gt=0)
    """Of `dpo`: weight of the chosen answers' own loss, which keeps their probability from falling with that of the others."""
    ptx: str | None = None
    """Of `grpo`: examples to learn from besides."""
    settings: tuple[str, ...] = ()
    """`key=value` of the stage's own recipe."""

    @model_validator(mode="after")
    def _of_its_stage(self) -> Later:
        stages = {"replay": ("sft",), "efforts": ("grpo",), "ptx": ("grpo",), "rate": ("dpo", "grpo"), "anchor": ("dpo",)}
        for name, known in stages.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.stage not in known:
                raise ValueError(f"`{name}` says nothing to the stage {self.stage}, but to {' and '.join(known)}")
        return self


class Recipe(Part):
    """One page: what to train, on what, for how much."""

    name: str
    summary: str
    budget: str = "6m"
    """`90s`, `6m`, `2h`; FLOPs `1e17`; tokens `50Mtok`; money `$20` with `price_per_hour`."""
    price_per_hour: float | None = Field(None, gt=0)
    data: Data
    tokenizer: Tokenizer = Tokenizer()
    model: Model = Model()
    train: Train = Train()
    then: tuple[Later, ...] = ()
    """What comes after, each stage with its share of the budget; the training itself has the rest."""

    @field_validator("budget", mode="before")
    @classmethod
    def _bare_flops(cls, value: Any) -> Any:
        # 1e17 without quotes is a number to YAML.
        return f"{value:g}" if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _money_has_a_price(self) -> Recipe:
        if self.budget.startswith("$") and self.price_per_hour is None:
            raise ValueError("a budget in money needs price_per_hour")
        Budget.parse(self.budget)
        if sum(later.share for later in self.then) >= 1:
            raise ValueError("the shares of `then` leave nothing of the budget for the training itself")
        return self

    @property
    def seconds(self) -> float | None:
        """The budget as time, where it is time or money."""
        budget = Budget.parse(self.budget)
        if budget.dollars is not None:
            assert self.price_per_hour is not None
            return budget.dollars / self.price_per_hour * 3600
        return budget.seconds

    def timed(self) -> Recipe:
        """The recipe with the seconds of its quantizers, where these follow from the budget."""
        found: dict[str, Any] = {}
        for name in ("pictures", "films", "sounds"):
            medium = getattr(self.data, name)
            asked = medium and medium.quantizer
            if self.seconds is not None and asked and not (medium.trained or asked.steps or asked.seconds):
                timed = asked.model_copy(update={"seconds": round(QUANTIZER_SHARE * self.seconds, 1)})
                found[name] = medium.model_copy(update={"quantizer": timed})
        return self.model_copy(update={"data": self.data.model_copy(update=found)})

    def fingerprint(self) -> str:
        """Hex digest of everything in the recipe."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """The page, every field written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


class Budget(Part):
    """What may be spent: exactly one of these is set; money becomes seconds by its price."""

    seconds: float | None = None
    flops: float | None = None
    tokens: int | None = None
    dollars: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads `90s`, `6m`, `2h`, `1e17`, `50Mtok`, `$20`.

        Raises:
            ValueError: it is none of these, or not positive.
        """
        # No more digits than a float holds: nothing that is written reads as infinite.
        number = r"(\d{1,18}(?:\.\d+)?(?:e[+-]?\d{1,2})?)"
        if m := re.fullmatch(number + r"\s*(s|m|h)", text, re.IGNORECASE):
            parsed = cls(seconds=float(m[1]) * {"s": 1, "m": 60, "h": 3600}[m[2].lower()])
        elif m := re.fullmatch(number + r"\s*([kmgb]?)tok", text, re.IGNORECASE):
            parsed = cls(tokens=round(float(m[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}[m[2].lower()]))
        elif m := re.fullmatch(r"\$" + number, text, re.IGNORECASE):
            parsed = cls(dollars=float(m[1]))
        elif m := re.fullmatch(number, text, re.IGNORECASE):
            parsed = cls(flops=float(m[1]))
        else:
            raise ValueError(f"budget {text!r} is not a time (6m), FLOPs (1e17), tokens (50Mtok) or money ($20)")
        if not any(parsed.model_dump().values()):
            raise ValueError(f"budget {text!r} is nothing; give a positive one")
        return parsed


def shipped() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(p.name.removesuffix(".yaml") for p in resources.files("tessera.recipes").iterdir() if p.name.endswith(".yaml"))


def load(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """Reads a shipped recipe by name, or a YAML file by path, and applies `key=value` overrides.

    Args:
        name_or_path: `code`, or a path that ends in .yaml.
        overrides: `data.seed=3`; the value is YAML.

    Raises:
        UserError: no such recipe, not YAML, an unknown key, a wrong type.
    """
    page = resources.files("tessera.recipes") / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise UserError(f"recipe {name_or_path} is not a file; give a path to a YAML page or one of: {', '.join(shipped())}.")
        text = path.read_bytes()
    elif page.is_file():
        text = page.read_bytes()
    else:
        raise UserError(
            f"there is no recipe {name_or_path!r}; the shipped ones are {', '.join(shipped())}, or give a path to a .yaml file."
        )
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {name_or_path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"recipe {name_or_path} is not a page of key: value.")
    return assemble(tree, overrides or [], name_or_path)


def assemble(tree: dict[str, Any], overrides: list[str], where: str) -> Recipe:
    """A recipe from plain data with `key=value` overrides; raises as `load`."""
    for override in overrides:
        _apply(tree, override)
    return validate(tree, where)


_INSTEAD = {
    "extra_forbidden": "is not a known key",
    "missing": "is missing",
    "tuple_type": "write a list in brackets, like [1, 2]",
    "too_short": "the list has {actual_length} entries; give at least {min_length}",
    "too_long": "the list has more than {max_length} entries; give no more",
    "model_type": "is a part with keys, not a value",
    "bool_type": "write true or false",
    "bool_parsing": "write true or false",
    "string_type": "write a text, in quotes where it looks like a number or a list",
}
"""Our words for what pydantic says in those of Python, by its types of error."""


def validate(tree: dict[str, Any], where: str) -> Recipe:
    """A recipe from plain data, or one sentence that names the field."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(p) for p in first["loc"]) or "the page"
        ours = _INSTEAD.get(first["type"])
        what = ours.format(**first.get("ctx", {})) if ours else first["msg"].removeprefix("Value error, ")
        raise UserError(f"recipe {where}: {field}: {what[:1].lower() + what[1:]}{_known_keys(first)}.") from None


def _known_keys(error: Any) -> str:
    """For an unknown key or a part without any, the keys that stand there; else the value, where that is short."""
    if error["type"] not in ("extra_forbidden", "model_type"):
        return (
            f" (got {error['input']!r})" if error["type"] != "missing" and isinstance(error["input"], str | int | float) else ""
        )
    part: Any = Recipe
    for name in error["loc"][: -1 if error["type"] == "extra_forbidden" else None]:
        if isinstance(name, int):
            continue
        part = part.model_fields[name].annotation
        # Of `tuple[Source, ...]` and `Films | None` what is a part of a recipe.
        inner = (a for a in get_args(part) if isinstance(a, type) and issubclass(a, Part))
        part = next(inner, part)
    return f"; known here: {', '.join(part.model_fields)}"


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override} is not key=value, like --set train.context=512.")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {key}: {value!r} is not a YAML value.") from None
    # YAML 1.1 reads 1e-3 as a string; people mean a number.
    if isinstance(parsed, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", parsed):
        parsed = float(parsed)
    *parents, leaf = key.split(".")
    node = tree
    for name in parents:
        child = node.setdefault(name, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {key}: {name} is a value, not a part with keys.")
        node = child
    node[leaf] = parsed
