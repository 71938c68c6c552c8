"""Trains a quantizer by the one training loop: pictures, films or sound in, an autoencoder out that gives them back.

The objective is reconstruction and needs no other network: squared and absolute error, and those of the differences between
neighbouring pixels, which keep edges; of sound, the errors of its spectra, of single frequencies and of bands as wide as an ear
has them. What is told on the way is measured on signals that are held out: PSNR and SSIM of what comes back, or how far its
spectra are off, which share of the ids is used, and their perplexity.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tessera import recipe as recipes
from tessera.data.corpus import Corpus, Split
from tessera.data.loader import Batch, Batches
from tessera.data.media import films, pictures, sounds, with_palette
from tessera.data.picture_tasks import config_of
from tessera.data.sound_tasks import sound_config_of
from tessera.device import Machine
from tessera.errors import UserError
from tessera.model.decoder import Decoder
from tessera.tokens.beside import find_tokenizer
from tessera.tokens.media import Cut
from tessera.tokens.published import Published
from tessera.tokens.quantizer import FULL_SCALE, Autoencoder, Quantizer, QuantizerConfig, as_sound, commonest
from tessera.tokens.spectrum import FLOOR, bands, magnitudes, spectra
from tessera.tokens.vocabulary import Vocabulary
from tessera.train import loop
from tessera.train.objectives import Objective

STEPS, LEAST_STEPS, MOST_STEPS = 2_500, 500, 8_000
"""Updates where no time is named, and the bounds of what is made of a time (docs/LOG.md, 2026-12-01, "Quantizers")."""
MOST_SIGNALS = 4_096
"""That are learned from, drawn from all there are; they are held in memory."""
_MEASURED, _MEASURED_SOUNDS = 200, 50
_TIMED = 8
STRETCH_SECONDS = 0.64
"""Of sound in one update: a random stretch of a longer recording, a shorter one with silence behind it."""
BANDS = 1.0
"""Weight of the bands' error beside the frequencies' (docs/LOG.md, 2026-11-29, "Sound")."""
WINDOWS = (128, 256, 512)
"""Samples of the spectra by which sound is measured."""
MEASURES = ("loss", "squared_error")
EDGES, ABSOLUTE = 0.5, 0.1
"""Weights beside the squared error's 1 (docs/LOG.md, 2026-11-29, "Films")."""
MATRICES = 3.0
"""Muon's rate for the convolutions inside, times AdamW's for both ends (same log)."""


class Reconstruction(nn.Module):
    """Autoencoder and loss in one module."""

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, weights: Tensor, mask: Tensor | None, signals: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, H, W, 3) uint8 `signals`, or (B, T) int16, -> the sum over them to differentiate, and the sums of `MEASURES`."""
        if self.network.config.kind == "audio":
            return self._of_sound(signals)
        wanted = signals.float() / 127.5 - 1
        error = self.network.frames(self.network.codes(wanted)) - wanted
        squared = _mean(error.square())
        edges = _mean(error.diff(dim=2).square()) + _mean(error.diff(dim=3).square())
        loss = (squared + ABSOLUTE * _mean(error.abs()) + EDGES * edges).sum()
        return loss, torch.stack([loss.detach(), squared.detach().sum() / 4]).double()

    def _of_sound(self, signals: Tensor) -> tuple[Tensor, Tensor]:
        wanted = spectra(signals.float() / FULL_SCALE, self.network.config.stride)
        error = self.network.frames(self.network.codes(wanted)) - wanted
        squared = _mean(error.square())
        wide = _mean((error @ bands(error.shape[-1]).to(error)).abs())
        loss = (squared + _mean(error.abs()) + BANDS * wide).sum()
        return loss, torch.stack([loss.detach(), squared.detach().sum()]).double()


def train_quantizer(
    config: QuantizerConfig,
    settings: recipes.Quantizer,
    train: Iterable[np.ndarray],
    held_out: Iterable[np.ndarray],
    machine: Machine,
    seed: int = 0,
    per_second: float = 0.0,
    observers: Sequence[loop.Observer] = (),
) -> Quantizer:
    """A quantizer that gives such signals back as well as so many updates allow.

    Args:
        config: what it is made of.
        settings: `steps` or `seconds`, `batch` and `rate` count.
        train, held_out: (H, W, 3) or (T, H, W, 3) uint8 of any sizes that the config can cut, or (T,) int16.
        per_second: of the films or the samples.
        observers: told every event of the loop; `exam` has what is measured on `held_out`, or on `train` where nothing is, and
            `steps`, how many there will be.

    Raises:
        UserError: nothing to learn from, or a size that cannot be cut.
        Interrupted: as `loop.train`.
    """
    most = _MEASURED_SOUNDS if config.kind == "audio" else _MEASURED
    signals = _sampled(train, MOST_SIGNALS, seed)
    kept = _sampled(held_out, most, seed)
    measured = kept or signals[:most]
    learned: Batches
    if config.kind == "audio":
        shape = _usual_length(signals, config)
        learned = stretches = _Stretches(signals, settings.batch, config, per_second, seed)
        patches = stretches.ids
    else:
        shape = commonest(signal.shape[:-1] for signal in signals)
        learned, patches = _Batches(signals, settings.batch, config, seed), math.prod(config.grid(shape))
    network = Autoencoder(config)
    network.initialise(seed)
    network = network.to(machine.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = settings.steps or (_steps_in(settings.seconds, network, learned, machine) if settings.seconds else STEPS)
    recipe, facts = _recipe(settings, steps, patches, seed), {"held_out": float(bool(kept)), "steps": float(steps)}
    loop.train(
        loop.Job(
            recipe=recipe,
            # The loop asks of what it trains only its parameters and its FLOPs.
            decoder=cast(Decoder, network),
            loader=learned,
            held_out=(),
            final_held_out=(),
            token_bytes=np.zeros(0, np.int32),
            machine=machine,
            matmul_peak=math.inf,
            identity={},
            observers=observers,
            objective=Objective(cast(Callable[[Decoder], nn.Module], Reconstruction), MEASURES),
            exam=loop.Exam(
                lambda: measure(Quantizer(network, shape, per_second), measured) | facts,
                "snr" if config.kind == "audio" else "psnr",
            ),
        )
    )
    return Quantizer(network.cpu().eval(), shape, float(per_second))


def measure(quantizer: Quantizer, signals: Sequence[np.ndarray]) -> dict[str, float]:
    """How near signals come back: mean PSNR in decibels and SSIM, or of sound `compare`; share of the ids in use and their
    perplexity."""
    near: list[dict[str, float]] = []
    counts = np.zeros(quantizer.size, np.int64)
    for signal in signals:
        ids = quantizer.encode(signal)
        counts += np.bincount(ids.ravel(), minlength=quantizer.size)
        back = quantizer.decode(ids)
        if quantizer.kind == "audio":
            near.append(compare(back[: len(signal)], signal))
            continue
        # A signal that comes back exactly counts like one with an error of a third of a level.
        error = max(float(np.mean((back.astype(float) - signal) ** 2)), 0.1)
        near.append({"psnr": 10 * math.log10(255**2 / error), "ssim": ssim(back, signal)})
    shares = counts[counts > 0] / counts.sum()
    return {
        **{name: float(np.mean([marks[name] for marks in near])) for name in near[0]},
        "usage": float((counts > 0).mean()), "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
    }  # fmt: skip


def compare(sound: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """How near one sound is to another, int16 of one length, in decibels.

    Returns:
        `snr` of the magnitudes of spectra, the more the nearer; `distance`, root mean square of the differences of their
        logarithms down to -60 dB of full scale; both are means over the windows of `WINDOWS` samples. `waveform_snr`, of the
        samples: phases are not kept, so that it says little.
    """
    pair = torch.stack([as_sound(other), as_sound(sound)])
    snr, distance = [], []
    for window in WINDOWS:
        real, made = magnitudes(pair, window // 4, window)
        snr.append(10 * math.log10(float((real.square().sum() + FLOOR**2) / ((real - made).square().sum() + FLOOR**2))))
        decibels = 20 * (real.clamp(min=FLOOR).log10() - made.clamp(min=FLOOR).log10())
        distance.append(float(decibels.square().mean().sqrt()))
    noise = float((pair[0] - pair[1]).square().mean()) + 1e-10
    return {
        "snr": float(np.mean(snr)), "distance": float(np.mean(distance)),
        "waveform_snr": 10 * math.log10((float(pair[0].square().mean()) + 1e-10) / noise),
    }  # fmt: skip


def ssim(picture: np.ndarray, other: np.ndarray, window: int = 7) -> float:
    """Mean structural similarity of luminance (Wang et al. 2004) over windows of 7 x 7 equal weights; films frame by frame.

    Args:
        picture, other: (..., H, W, 3) uint8 of one shape.
    """
    weights = np.array([0.299, 0.587, 0.114])
    side = min(window, picture.shape[-3], picture.shape[-2])
    x, y = (
        np.lib.stride_tricks.sliding_window_view(p.astype(float) @ weights, (side, side), axis=(-2, -1)) for p in (picture, other)
    )
    mean_x, mean_y = x.mean((-2, -1)), y.mean((-2, -1))
    n = side * side
    var_x, var_y = x.var((-2, -1), ddof=1), y.var((-2, -1), ddof=1)
    both = ((x * y).mean((-2, -1)) - mean_x * mean_y) * n / (n - 1)
    small, smaller = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_x * mean_y + small) * (2 * both + smaller)
    return float((top / ((mean_x**2 + mean_y**2 + small) * (var_x + var_y + smaller))).mean())


def with_pictures(
    vocabulary: Vocabulary, corpus: Corpus, data: recipes.Data, machine: Machine, say: Callable[[str], None]
) -> Vocabulary:
    """The vocabulary with a block for the pictures of a corpus, where it has some: their palette, or a quantizer that is taken or
    trained on the training split.

    What is said: how many ids, and how near pictures of the held-out split come back.
    """
    settings = data.pictures
    if settings is None or not corpus.pictures:
        return vocabulary
    if not (settings.quantizer or settings.trained):
        return with_palette(vocabulary, corpus, data, say)
    config = config_of("image", settings.quantizer or recipes.Quantizer())
    return _with_quantizer(vocabulary, config, settings, lambda s: pictures(corpus, s), data, machine, say)


def with_films(
    vocabulary: Vocabulary, corpus: Corpus, data: recipes.Data, machine: Machine, say: Callable[[str], None]
) -> Vocabulary:
    """The vocabulary with a block for the films of a corpus, where it has some: a quantizer is trained on the training split.

    What is said: how many ids, and how near films of the held-out split come back on the way.
    """
    if data.films is None or not corpus.films:
        return vocabulary
    return _with_quantizer(
        vocabulary, config_of("video", data.films.quantizer), data.films, lambda s: films(corpus, s), data, machine, say
    )


def with_sounds(
    vocabulary: Vocabulary, corpus: Corpus, data: recipes.Data, machine: Machine, say: Callable[[str], None]
) -> Vocabulary:
    """The same for the recordings of a corpus."""
    if data.sounds is None or not corpus.sounds:
        return vocabulary
    config = sound_config_of(data.sounds.quantizer)
    return _with_quantizer(vocabulary, config, data.sounds, lambda s: sounds(corpus, s), data, machine, say)


def _with_quantizer(
    vocabulary: Vocabulary, config: QuantizerConfig, settings: recipes.Pictures | recipes.Films | recipes.Sounds,
    signals: Callable[[Split], Iterator[np.ndarray]], data: recipes.Data, machine: Machine, say: Callable[[str], None],
) -> Vocabulary:  # fmt: skip
    if settings.trained:
        found = find_tokenizer(settings.trained, config.kind)
        if isinstance(found, Published):
            say(found.notice)
            if config.kind == "audio":
                return vocabulary.add_media(replace(found, shape=_usual_length(signals("train"), found.config)))
            assert isinstance(settings, recipes.Films)
            shape = commonest(film.shape[:-1] for film in signals("train"))
            return vocabulary.add_media(replace(found, shape=shape, layout=replace(found.layout, per_second=settings.per_second)))
        if isinstance(settings, recipes.Films):
            found = replace(found, per_second=settings.per_second)
        return vocabulary.add_media(found)

    chosen = settings.quantizer
    assert chosen is not None

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "exam":
            say(f"quantizer: step {event['step']:,}/{event['steps']:,.0f}  {in_words(event)}")

    per_second = 0.0 if isinstance(settings, recipes.Pictures) else settings.per_second
    quantizer = train_quantizer(config, chosen, signals("train"), signals("validation"), machine, data.seed, per_second, (tell,))
    count = math.prod(quantizer.grid(quantizer.shape))
    if config.kind == "audio":
        usual = f"{quantizer.rate:g} in a second; recordings last {quantizer.shape[0] / quantizer.per_second:.2f} s by the median"
    elif config.kind == "image":
        usual = f"most pictures are {quantizer.shape[0]} x {quantizer.shape[1]}"
    else:
        frames, height, width = quantizer.shape
        usual = f"most films are {frames} frames of {height} x {width}"
    say(f"quantizer: {quantizer.size:,} ids, {usual}: {count} ids")
    return vocabulary.add_media(quantizer)


def in_words(marks: Mapping[str, float]) -> str:
    """What an exam of a quantizer found, in a line."""
    near = (
        f"{marks['psnr']:.2f} dB, SSIM {marks['ssim']:.3f}"
        if "psnr" in marks
        else f"spectra {marks['snr']:.2f} dB above their errors, {marks['distance']:.1f} dB off"
    )
    on = "held-out signals" if marks["held_out"] else "signals that it learned from, since none are held out"
    return f"{near} on {on}; {marks['usage']:.0%} of the ids used, perplexity {marks['perplexity']:.1f}"


class _Batches:
    """Batches without end, each of signals of one shape, as often as there are such."""

    def __init__(self, signals: list[np.ndarray], rows: int, config: QuantizerConfig, seed: int) -> None:
        shapes: dict[tuple[int, ...], list[np.ndarray]] = {}
        for signal in signals:
            shapes.setdefault(signal.shape, []).append(signal)
        self._groups = [np.stack(group) for _, group in sorted(shapes.items())]
        self._patches = [math.prod(config.grid(group.shape[1:-1])) for group in self._groups]
        self._odds = np.array([len(group) for group in self._groups]) / len(signals)
        self._rows = rows
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def next(self) -> Batch:
        which = int(self._rng.choice(len(self._groups), p=self._odds))
        group = self._groups[which]
        chosen = group[self._rng.integers(len(group), size=self._rows)]
        return _batch(chosen if chosen.ndim == 5 else chosen[:, None], self._patches[which])

    def state(self) -> dict[str, Any]:
        return {"random": self._rng.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state["random"]


class _Stretches:
    """Batches without end of stretches of sound, (rows, samples) int16, each moment of all recordings as likely as any other."""

    def __init__(self, signals: list[np.ndarray], rows: int, config: QuantizerConfig, per_second: float, seed: int) -> None:
        self._samples = max(1, round(STRETCH_SECONDS * per_second / config.step)) * config.step
        self._signals, self._rows = signals, rows
        self.ids = math.prod(config.grid((self._samples,)))
        self._odds = np.array([len(signal) for signal in signals]) / sum(map(len, signals))
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def next(self) -> Batch:
        stretches = np.zeros((self._rows, self._samples), np.int16)
        for stretch, which in zip(stretches, self._rng.choice(len(self._signals), self._rows, p=self._odds), strict=True):
            signal = self._signals[which]
            # It may begin within the silence before a recording, so that spectra see its beginning at any place of a step.
            start = int(self._rng.integers(-self._samples // 4, max(1, len(signal) - self._samples // 2)))
            part = signal[max(0, start) : start + self._samples]
            stretch[max(0, -start) : max(0, -start) + len(part)] = part
        return _batch(stretches, self.ids)

    def state(self) -> dict[str, Any]:
        return {"random": self._rng.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state["random"]


def _batch(signals: np.ndarray, ids: int) -> Batch:
    """Signals as the loop takes them; `ids` of each. There are no ids yet, they are what is being made up here."""
    rows = len(signals)
    none, all_ = np.zeros((rows, 2), np.int64), np.ones((rows, 1), bool)
    return Batch(none, all_, None, rows * ids, {"signals": signals}, units=float(rows))


def _steps_in(seconds: float, network: Autoencoder, learned: Batches, machine: Machine) -> int:
    """Updates that take so long, in hundreds, as some of them take that teach nothing."""
    objective, before = Reconstruction(network), learned.state()
    took = []
    for _ in range(2 + _TIMED):
        batch, begin = learned.next(), time.perf_counter()
        extras = {name: torch.as_tensor(array).to(machine.torch_device) for name, array in batch.extras.items()}
        loss, _ = objective(torch.as_tensor(batch.ids), torch.as_tensor(batch.learn), None, **extras)
        loss.backward()
        took.append(time.perf_counter() - begin)
    network.zero_grad(set_to_none=True)
    learned.restore(before)
    # The optimizers and the exams take about a third more.
    steps = seconds / (1.3 * float(np.median(took[2:])))
    return int(min(MOST_STEPS, max(LEAST_STEPS, round(steps / 100) * 100)))


def _recipe(settings: recipes.Quantizer, steps: int, patches: int, seed: int) -> recipes.Recipe:
    """The settings as the loop reads them: a patch counts as a token, a signal as a row."""
    return recipes.Recipe(
        name="quantizer",
        summary="An autoencoder with finite scalar quantization.",
        data=recipes.Data(sources=(recipes.Source(uri="given"),)),
        train=recipes.Train(
            tokens=steps * settings.batch * patches, context=patches, short_context=patches, batch_rows=settings.batch,
            micro_rows=settings.batch, workers=1, matrix_rate=settings.rate * MATRICES, adam_rate=settings.rate, weight_decay=0.0,
            warmup_steps=min(50, steps // 10), cooldown_steps=steps * 2 // 5, evaluate_every=max(1, math.ceil(steps / 5)),
            compile=False, seed=seed,
        ),
    )  # fmt: skip


def _sampled(signals: Iterable[np.ndarray], most: int, seed: int) -> list[np.ndarray]:
    """So many at most, each as likely as any other (reservoir sampling, Vitter 1985)."""
    rng = np.random.Generator(np.random.PCG64([seed, most]))
    kept: list[np.ndarray] = []
    for number, signal in enumerate(signals):
        if number < most:
            kept.append(signal)
        elif (place := int(rng.integers(number + 1))) < most:
            kept[place] = signal
    return kept


def _usual_length(signals: Iterable[np.ndarray], cut: Cut) -> tuple[int, ...]:
    """(samples,) in whole steps: the median; UserError where there is nothing."""
    lengths = [len(signal) for signal in signals]
    if not lengths:
        raise UserError("there is nothing to make a quantizer from.")
    return (cut.grid((int(np.median(lengths)),))[0] * cut.step,)


def _mean(x: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    return x.flatten(1).mean(1)
