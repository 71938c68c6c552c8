"""A model that follows its captions by guidance -> one that does so by itself, at half the cost (for diffusion arXiv 2210.03142).

Guidance computes two rows for each picture, film or sound, one of which has no caption, and samples from logits beyond their
difference. Here the model itself learns that distribution, on what it makes by guidance, behind a control token: whoever puts
`<|guided|>` before the prompt gets from one row what took two, in any program that samples. Without that token it stays what it
was, as far as the same weights can.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tessera import device as devices
from tessera.data.captions import Medium
from tessera.data.corpus import gather
from tessera.data.films import film_parts
from tessera.data.loader import Batch
from tessera.data.pictures import parts_of
from tessera.data.reasons import Skipped
from tessera.data.sounds import sound_parts
from tessera.data.sources import documents
from tessera.device import Machine, cache_folder
from tessera.engine import films, native, pictures, sounds
from tessera.engine.engine import Engine
from tessera.engine.films import FilmWish
from tessera.engine.pictures import Wish as PictureWish
from tessera.engine.request import Request
from tessera.engine.sampling import SamplingParams
from tessera.engine.scheduler import Limits
from tessera.engine.sounds import SoundWish
from tessera.errors import UserError
from tessera.model import weights
from tessera.posttrain import examined, plans
from tessera.posttrain.epochs import Epochs
from tessera.posttrain.pairs import rows_of
from tessera.run import RunFolder, write_text
from tessera.tokens.document import Document, TokenRecord
from tessera.tokens.pictures import GUIDED
from tessera.tokens.sounds import AUDIO_END
from tessera.tokens.vocabulary import Vocabulary
from tessera.train import loop
from tessera.train.guided import guided_objective
from tessera.train.launch import origin
from tessera.train.objectives import Evaluation
from tessera.train.parallel import ALONE, World

RATE = 3e-4
"""Of AdamW at width 128."""
BATCH = 32
EPOCHS = 4.0
EVALUATIONS = 5
COUNT = 2_000
"""Signals that are made to learn from, unless told otherwise."""
_MOST_ROWS = 64
_MADE = "made.npz"
SCALES: Mapping[Medium, float] = {"image": pictures.GUIDANCE, "video": 2.0, "audio": 2.0}
"""Guidance that is taught, unless told otherwise: also where none is the best that is bought by a second row."""
_RECIPES: Mapping[Medium, str] = {"image": "pictures", "video": "films", "audio": "sounds"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish(plans.Asked):
    """What somebody asks for; None: a rule decides.

    Args:
        model: a run's folder, or a Hugging Face folder with a medium's tokenizer beside it.
        data: source of the captions; None: what the run learned from.
        medium: `image`, `video` or `audio`; None: the first that the model knows.
        guidance: scale; None: what `generate` takes.
        count: signals that are made.
        epochs: passes over them.
        batch_size: in a batch.
        rate: learning rate.
        validation_share: of the signals that are held out.
        seed: of captions, samples and order.
        settings: `key=value` of the recipe.
    """

    model: str
    data: str | None = None
    medium: Medium | None = None
    guidance: float | None = None
    count: int = COUNT
    epochs: float | None = None
    batch_size: int = BATCH
    rate: float | None = None
    validation_share: float = 0.05
    seed: int = 0
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.medium is not None and self.medium not in SCALES:
            raise UserError(f"--medium {self.medium}: write one of {', '.join(SCALES)}.")
        if self.guidance is not None and not 1 < self.guidance < math.inf:
            raise UserError(f"--guidance {self.guidance:g} must be above 1; at 1 there is nothing to learn.")
        if self.count < 20:
            raise UserError(f"--count {self.count} must be at least 20.")
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size} must be at least 1.")
        for name, value in (("epochs", self.epochs), ("rate", self.rate)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name} {value:g} must be positive.")


@dataclass(frozen=True)
class Made:
    """One signal that was made by guidance.

    Args:
        prompt, bare: ids of the prompt and of the one that says less.
        ids: what came behind them.
        chosen: which of these were sampled.
    """

    prompt: np.ndarray
    bare: np.ndarray
    ids: np.ndarray
    chosen: np.ndarray


def prepare(wish: Wish, path: Path, say: Say) -> None:
    """Everything before the first step, written into a new run's folder.

    Raises:
        UserError: no such model, one without media or without the token, no captions, settings out of range.
    """
    begin = time.monotonic()
    RunFolder.refuse_occupied(path)
    model = weights.resolve_model(wish.model)
    shape = weights.read_config(model)
    vocabulary = Vocabulary.load(model, shape.vocab_size)
    known = [medium for medium in SCALES if medium in vocabulary.media]
    medium = wish.medium or next(iter(known), None)
    if medium is None or medium not in known:
        raise UserError(
            f"{model} has learned no {medium or 'pictures, films or sounds'}; take one that draws (docs/pictures.md)."
        )
    if GUIDED not in vocabulary.controls:
        raise UserError(f"{model} has no token {GUIDED}; take a model that this version of Tessera trained.")
    scale = wish.guidance or SCALES[medium]
    uri = f"guided:{medium}"
    wanted = plans.intent(path.name, f"{Path(wish.model).name}, guided by itself.", uri, wish.seed, wish.settings)
    captions = _captions(wish, model, medium, say)
    machine = native.machine_for(shape.parameters, wanted.train.precision, wanted.train.threads)
    peak = devices.matmul_peak(machine, seconds=0.2)

    folder = RunFolder.create(path, wanted)
    vocabulary.save(path / "tokenizer", shape.context)
    made = make(model, machine, vocabulary, medium, captions, scale, wish, say)
    _write(path / _MADE, made)
    longest = max(1 + len(one.prompt) + len(one.ids) for one in made)
    train, held_out = _parted(made, wish)
    count = min(wish.batch_size, len(train))
    values: dict[str, tuple[Any, str]] = {
        "context": (-(-longest // 8) * 8, "the longest signal with its caption"),
        "batch_rows": (count, "signals in a batch"),
        **plans.rate_of(wish.rate, RATE, shape, wanted),
    }
    epochs = wish.epochs or EPOCHS
    steps, why = max(1, math.ceil(epochs * len(train) / count)), f"{epochs:g} passes over {len(train):,} signals"
    planned = plans.plan(wanted, shape, machine, peak, values, steps, why, EVALUATIONS)
    write_text(path / "recipe.yaml", planned.recipe.to_yaml())
    say(f"{len(train):,} {_RECIPES[medium]} to learn from, {len(held_out):,} held out, made with guidance {scale:g}")
    plans.record(planned, folder, say)
    # Last: it says that the folder is prepared.
    folder.write_info({
        **origin(planned.recipe, machine, peak, model), "data": plans.facts_of_data(uri, len(made)),
        "distil": asdict(wish), "medium": medium, "scale": scale, "guided": {medium: scale}, "context": shape.context,
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

    return examined.tune(path, resume, observers, say, build, world=world)


def asked(folder: RunFolder) -> Wish:
    """What a prepared run was asked for; UserError where the folder holds none."""
    return Wish.of(plans.asked(folder, "distil", "run of posttrain distil; go on with it by the command that began it"))


def make(
    model: Path,
    machine: Machine,
    vocabulary: Vocabulary,
    medium: Medium,
    captions: Sequence[str],
    scale: float,
    wish: Wish,
    say: Say,
) -> list[Made]:
    """What the model makes of captions drawn at random, guided."""
    decoder = weights.load(model, machine.torch_dtype).to(machine.torch_device)
    engine = Engine(decoder, vocabulary, Limits(_MOST_ROWS, queued_requests=1 << 16, queued_tokens=1 << 40, prefix_tokens=0))
    dice = np.random.default_rng(wish.seed)
    drawn = [captions[int(at)] for at in dice.integers(0, len(captions), wish.count)]
    requests = _requests(engine, medium, drawn, scale, SamplingParams(1, seed=wish.seed << 32))
    found: list[Made] = []
    # A tenth at a time, so that there is something to be told.
    size = max(_MOST_ROWS, -(-len(requests) // 10))
    for start in range(0, len(requests), size):
        part = requests[start : start + size]
        for request, completion in zip(part, engine.complete(part), strict=True):
            assert request.guidance is not None
            prompt, bare = (np.array(ids, np.int32) for ids in (request.prompt, request.guidance.prompt))
            found.append(Made(prompt, bare, completion.ids.astype(np.int32), completion.record.learn[completion.prompt_tokens :]))
        say(f"{len(found):,} of {wish.count:,} made with guidance {scale:g}")
    return found


def _requests(engine: Engine, medium: Medium, captions: Sequence[str], scale: float, params: SamplingParams) -> list[Request]:
    """What is asked of the engine for one signal of each caption."""
    if medium == "image":
        return list(next(pictures.drawing(engine, [PictureWish(caption, guidance=scale) for caption in captions], params)))
    if medium == "video":
        return list(next(films.making(engine, [FilmWish(caption, guidance=scale) for caption in captions], params)))
    return list(next(sounds.sounding(engine, [SoundWish(caption, guidance=scale) for caption in captions], params)))


def _captions(wish: Wish, model: Path, medium: Medium, say: Say) -> list[str]:
    """Of the training documents, in their order.

    Raises:
        UserError: no source is known, or none of its documents has a caption.
    """
    if wish.data is not None:
        skipped: list[Skipped] = []
        found: Iterator[Document] = documents(wish.data, skipped, say, frozenset({medium}))
    else:
        run = RunFolder(weights.home(model))
        if not (run.path / "recipe.yaml").is_file() or getattr(run.recipe.data, _RECIPES[medium]) is None:
            raise UserError(f"{model} does not say where its captions came from; give --data, a source with some.")
        corpus = gather(run.recipe.data, cache_folder(), say)
        found = (document for at in range(len(corpus.sources)) for document in corpus.documents("train", at))
    captions = [caption for document in found if (caption := _caption(document, medium))]
    if not captions:
        raise UserError(f"{wish.data or wish.model} has no {_RECIPES[medium]} with captions; without these there is no guidance.")
    return captions


def _caption(document: Document, medium: Medium) -> str:
    if medium == "image":
        parts = parts_of(document)
    else:
        both = film_parts(document) if medium == "video" else sound_parts(document)
        parts = None if both is None else both[0]
    return "" if parts is None else parts.caption.strip()


def _parted(made: Sequence[Made], wish: Wish) -> tuple[list[Made], list[Made]]:
    """What is learned from, and the last of them, which are held out."""
    count = max(1, round(wish.validation_share * len(made)))
    return list(made[:-count]), list(made[-count:])


def _write(path: Path, made: Sequence[Made]) -> None:
    """One after the other, with their lengths."""
    arrays = {}
    for name in ("prompt", "bare", "ids", "chosen"):
        parts = [getattr(one, name) for one in made]
        arrays[name], arrays[f"{name}_lengths"] = np.concatenate(parts), np.array([len(part) for part in parts])
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type] # numpy's own option is not among these names


def _read(path: Path) -> list[Made]:
    """What `_write` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        parts = [
            np.split(arrays[name], np.cumsum(arrays[f"{name}_lengths"])[:-1]) for name in ("prompt", "bare", "ids", "chosen")
        ]
    return [Made(*each) for each in zip(*parts, strict=True)]


def _batch(made: Sequence[Made], guided: int, pad: int) -> Batch:
    """Rows as the objective of `train.guided` takes them."""

    def record(*parts: np.ndarray) -> TokenRecord:
        ids = np.concatenate(parts).astype(np.int32)
        return TokenRecord(ids, np.zeros(len(ids), np.bool_))

    rows = rows_of([[record(np.array([guided]), one.prompt, one.ids)] for one in made], pad)
    bare = rows_of([[record(one.bare, one.ids)] for one in made], pad)
    most = max(len(one.ids) for one in made)
    places, bare_places = np.full((2, len(made), most), -1, np.int64)
    chosen = np.zeros((len(made), most), np.bool_)
    for at, one in enumerate(made):
        count = np.arange(len(one.ids))
        # The first is predicted from the last token of the prompt.
        places[at, : len(count)], bare_places[at, : len(count)] = len(one.prompt) + count, len(one.bare) - 1 + count
        chosen[at, : len(count)] = one.chosen
    extras = {"bare": bare.ids, "places": places, "bare_places": bare_places, "chosen": chosen}
    return replace(rows, documents=None, extras=extras)


def _stage(folder: RunFolder, machine: Machine, vocabulary: Vocabulary, wish: Wish) -> examined.Stage:
    """What is special of a prepared folder, with the weights that the run starts from."""
    info, settings = folder.info, folder.recipe.train
    decoder = weights.load(info["init"], machine.torch_dtype).to(machine.torch_device)
    teacher = copy.deepcopy(decoder).requires_grad_(False)
    train, held_out = _parted(_read(folder.path / _MADE), wish)
    block, guided = vocabulary.block(info["medium"]), vocabulary.control(GUIDED)
    end = vocabulary.control(AUDIO_END) if info["medium"] == "audio" else None  # how long a sound lasts is sampled too
    ids = range(block.offset, block.offset + block.size)
    objective = guided_objective(teacher, info["scale"], ids, end, settings.recompute)
    assert settings.batch_rows

    def build(chosen: Sequence[tuple[Made, int]]) -> Batch:
        return _batch([one for one, _ in chosen], guided, vocabulary.pad_id)

    digest = hashlib.blake2b((folder.path / _MADE).read_bytes(), digest_size=16).hexdigest()
    examined_on = [_batch(held_out[at : at + BATCH], guided, vocabulary.pad_id) for at in range(0, len(held_out), BATCH)]
    loader = Epochs(train, settings.batch_rows, wish.seed, build)
    return examined.Stage(decoder, loader, examined_on, objective, "divergence", digest)
