"""Trains a quantizer by the one training loop: pictures or films in, an autoencoder out that gives them back.

The objective is reconstruction and needs no other network: squared and absolute error, and those of the differences between
neighbouring pixels, which keep edges. What is told on the way is measured on signals that are held out: PSNR and SSIM of what
comes back, which share of the ids is used, and their perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tessera import recipe as recipes
from tessera.data.corpus import Corpus
from tessera.data.film_tasks import quantizer_config
from tessera.data.loader import Batch
from tessera.data.media import films
from tessera.device import Machine
from tessera.model.decoder import Decoder
from tessera.tokens.quantizer import Autoencoder, Quantizer, QuantizerConfig, commonest, find_quantizer
from tessera.tokens.vocabulary import Vocabulary
from tessera.train import loop
from tessera.train.objectives import Objective

MOST_SIGNALS = 4_096
"""That are learned from, drawn from all there are; they are held in memory."""
MEASURED = 200
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
        """(B, T, H, W, 3) uint8 `signals` -> the sum over them to differentiate, and the sums of `MEASURES`."""
        wanted = signals.float() / 127.5 - 1
        error = self.network.frames(self.network.codes(wanted)) - wanted
        squared = _mean(error.square())
        edges = _mean(error.diff(dim=2).square()) + _mean(error.diff(dim=3).square())
        loss = (squared + ABSOLUTE * _mean(error.abs()) + EDGES * edges).sum()
        return loss, torch.stack([loss.detach(), squared.detach().sum() / 4]).double()


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
        settings: `steps`, `batch` and `rate` count.
        train, held_out: (H, W, 3) or (T, H, W, 3) uint8 of any sizes that the config can cut.
        per_second: of the films.
        observers: told every event of the loop; `exam` has what is measured on `held_out`.

    Raises:
        UserError: nothing to learn from, or a size that cannot be cut.
        Interrupted: as `loop.train`.
    """
    signals = _sampled(train, MOST_SIGNALS, seed)
    measured = _sampled(held_out, MEASURED, seed) or signals[:MEASURED]
    shape = commonest(signal.shape[:-1] for signal in signals)
    network = Autoencoder(config)
    network.initialise(seed)
    network = network.to(machine.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = _Batches(signals, settings.batch, config, seed)
    recipe = _recipe(settings, math.prod(config.grid(*_three(shape))), seed)
    loop.train(
        loop.Job(
            recipe=recipe,
            # The loop asks of what it trains only its parameters and its FLOPs.
            decoder=cast(Decoder, network),
            loader=batches,
            held_out=(),
            final_held_out=(),
            token_bytes=np.zeros(0, np.int32),
            machine=machine,
            matmul_peak=math.inf,
            identity={},
            observers=observers,
            objective=Objective(cast(Callable[[Decoder], nn.Module], Reconstruction), MEASURES),
            exam=loop.Exam(lambda: measure(Quantizer(network, shape), measured), "psnr"),
        )
    )
    return Quantizer(network.cpu().eval(), shape, per_second)


def measure(quantizer: Quantizer, signals: Sequence[np.ndarray]) -> dict[str, float]:
    """How near signals come back: mean PSNR in decibels and SSIM; share of the ids in use and their perplexity."""
    near, alike = [], []
    counts = np.zeros(quantizer.size, np.int64)
    for signal in signals:
        ids = quantizer.encode(signal)
        counts += np.bincount(ids.ravel(), minlength=quantizer.size)
        back = quantizer.decode(ids)
        # A signal that comes back exactly counts like one with an error of a third of a level.
        error = max(float(np.mean((back.astype(float) - signal) ** 2)), 0.1)
        near.append(10 * math.log10(255**2 / error))
        alike.append(ssim(back, signal))
    shares = counts[counts > 0] / counts.sum()
    return {
        "psnr": float(np.mean(near)), "ssim": float(np.mean(alike)), "usage": float((counts > 0).mean()),
        "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
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


def with_films(
    vocabulary: Vocabulary, corpus: Corpus, data: recipes.Data, machine: Machine, say: Callable[[str], None]
) -> Vocabulary:
    """The vocabulary with a block for the films of a corpus, where it has some: a quantizer is trained on the training split.

    What is said: how many ids, and how near films of the held-out split come back on the way.
    """
    if data.films is None or not corpus.films:
        return vocabulary
    if data.films.trained:
        return vocabulary.add_media(replace(find_quantizer(data.films.trained), per_second=data.films.per_second))
    config, settings = quantizer_config(data.films), data.films.quantizer

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "exam":
            say(f"quantizer: step {event['step']:,}/{settings.steps:,}  {in_words(event)}")

    quantizer = train_quantizer(
        config, settings, films(corpus, "train"), films(corpus, "validation"), machine, data.seed, data.films.per_second, (tell,)
    )
    frames, height, width = quantizer.shape
    say(f"quantizer: {quantizer.size:,} ids, most films are {frames} frames of {height} x {width}: {_ids(quantizer)} ids")
    return vocabulary.add_media(quantizer)


def in_words(marks: Mapping[str, float]) -> str:
    """What `measure` found, in a line."""
    return (
        f"{marks['psnr']:.2f} dB, SSIM {marks['ssim']:.3f} on held-out signals; {marks['usage']:.0%} of the ids used, "
        f"perplexity {marks['perplexity']:.1f}"
    )


def _ids(quantizer: Quantizer) -> int:
    """Of a signal of the usual shape."""
    return math.prod(quantizer.grid(quantizer.shape))


class _Batches:
    """Batches without end, each of signals of one shape, as often as there are such."""

    def __init__(self, signals: list[np.ndarray], rows: int, config: QuantizerConfig, seed: int) -> None:
        shapes: dict[tuple[int, ...], list[np.ndarray]] = {}
        for signal in signals:
            shapes.setdefault(signal.shape, []).append(signal)
        self._groups = [np.stack(group) for _, group in sorted(shapes.items())]
        self._patches = [math.prod(config.grid(*_three(group.shape[1:-1]))) for group in self._groups]
        self._odds = np.array([len(group) for group in self._groups]) / len(signals)
        self._rows = rows
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def next(self) -> Batch:
        which = int(self._rng.choice(len(self._groups), p=self._odds))
        group = self._groups[which]
        chosen = group[self._rng.integers(len(group), size=self._rows)]
        signals = chosen if chosen.ndim == 5 else chosen[:, None]
        # The ids are what is being made up here; there are none yet.
        none, all_ = np.zeros((self._rows, 2), np.int64), np.ones((self._rows, 1), bool)
        tokens = self._rows * self._patches[which]
        return Batch(none, all_, None, tokens, {"signals": signals}, units=float(self._rows))

    def state(self) -> dict[str, Any]:
        return {"random": self._rng.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state["random"]


def _recipe(settings: recipes.Quantizer, patches: int, seed: int) -> recipes.Recipe:
    """The settings as the loop reads them: a patch counts as a token, a signal as a row."""
    steps = settings.steps
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


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Frames, height and width of a picture or film."""
    frames, height, width = shape if len(shape) == 3 else (1, *shape)
    return frames, height, width


def _mean(x: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    return x.flatten(1).mean(1)
