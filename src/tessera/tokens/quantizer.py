"""Pictures, films and sound as tokens by one autoencoder with finite scalar quantization (arXiv 2309.15505), learned from data.

A signal is cut into patches of `stride` x `stride` pixels and `time_stride` frames; each patch becomes a vector of a few bounded
numbers, each rounded to one of its levels, and what they are together is the id: no codebook, nothing that could die. Frames are
grouped causally with the first one alone, so that a picture is a film of one frame, a film has k x time_stride + 1 frames, and no
id depends on a later frame: a film is gone on with without encoding it anew. Sound goes the same way with spectra in the place of
patches (`tokens.spectrum`): some of them in a row are a step, which has an id of each of its books. What trains it is
`train.quantizer`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.errors import UserError
from tessera.tokens.document import Kind
from tessera.tokens.media import Steps, StreamingDecoder, grid_of
from tessera.tokens.spectrum import bins_of, magnitudes_of, samples_of, spectra, window_of

CHANNELS = 3
_AT_ONCE = 1 << 13
"""Patches that are encoded or decoded in one pass, about."""
FULL_SCALE = 32_768
"""Of samples, which are int16."""


@dataclass(frozen=True)
class QuantizerConfig:
    """What a quantizer is made of.

    Args:
        kind: `image`: pictures; `video`: films, pictures as films of one frame among them; `audio`: sound of one channel.
        levels: of each number of a code; their product is how many ids there are in a book.
        stride: side of a patch in pixels; samples from one spectrum to the next.
        time_stride: frames of a patch, but for the first, which has one; 1 for pictures; spectra of a step.
        width: channels inside.
        encoder_layers, decoder_layers: residual blocks. Few in the encoder: the less an id depends on what lies around its patch,
            the easier it is to foretell.
        books: ids of a step of sound, each of a block of its own; 1 elsewhere.
    """

    kind: Literal["image", "video", "audio"]
    levels: tuple[int, ...] = (8, 5, 5, 5)
    stride: int = 4
    time_stride: int = 1
    width: int = 96
    encoder_layers: int = 2
    decoder_layers: int = 4
    books: int = 1

    @property
    def size(self) -> int:
        """How many ids."""
        return math.prod(self.levels) * self.books

    @property
    def patch(self) -> int:
        """Numbers in a patch, or a step of sound."""
        return self.time_stride * (bins_of(self.stride) if self.kind == "audio" else CHANNELS * self.stride**2)

    @property
    def step(self) -> int:
        """Samples of a step of sound."""
        return self.stride * self.time_stride

    @property
    def facts(self) -> dict[str, Any]:
        """All of it, as it is written down; books only where there are several, as before there were any."""
        return {key: value for key, value in asdict(self).items() if key != "books" or value != 1}

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a signal's ids; UserError as `media.grid_of`."""
        return grid_of(self, shape)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of a training step for one patch, as of a decoder for one token: 6 for each weight."""
        near = 1 if self.kind == "audio" else 9
        per_layer = (near + 1 + (self.kind != "image")) * self.width**2
        ends = self.width * (2 * self.patch + 2 * len(self.levels) * self.books)
        return 6 * ((self.encoder_layers + self.decoder_layers) * per_layer + ends)


class Autoencoder(nn.Module):
    """The network: frames -> codes -> frames. A patch sees the 3 x 3 around it and itself one step before, layer by layer; a step
    of sound itself and the one before."""

    levels: Tensor
    places: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        numbers = len(config.levels) * config.books
        self.open = _Each(config.patch, config.width)
        self.encoder = _Stack(config.encoder_layers, config.width, config.kind)
        self.code = _Each(config.width, numbers)
        self.uncode = _Each(numbers, config.width)
        self.decoder = _Stack(config.decoder_layers, config.width, config.kind)
        self.close = _Each(config.width, config.patch)
        levels = torch.tensor(config.levels)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("places", torch.cumprod(torch.cat([levels.new_ones(1), levels[:-1]]), 0), persistent=False)

    def initialise(self, seed: int) -> None:
        """Weights of scale 1/sqrt(inputs); the last one of each block begins at a small part of it."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.ndim == 1:
                    p.fill_(float("gain" in name))
                else:
                    scale = 0.2 if name.endswith("back.weight") else 1.0
                    p.normal_(0, scale / math.sqrt(p[0].numel()), generator=generator)

    def codes(self, signal: Tensor) -> Tensor:
        """(B, T, H, W, 3) in -1 ... 1 -> (B, T', d, h, w), whole numbers around 0, differentiable as if nothing were rounded. Of
        sound, the spectra (B, T' * time_stride, bins); h are the books and w is 1."""
        patches = self._patches(signal)
        x = self.encoder(self.open(patches), len(patches) // len(signal))
        z = self.code(_normal(x))
        # The numbers of all books stand side by side at the one place that a step of sound has.
        z = z.reshape(len(z), len(self.levels), -1, z.shape[-1])
        # Bounded so that each number falls into as many whole numbers as it has levels (section 3.1 of the paper).
        levels = self.levels[:, None, None].to(z.dtype)
        half, offset = (levels - 1) * (1 + 1e-3) / 2, (levels % 2 == 0) * 0.5
        bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
        codes = bounded + (bounded.round() - bounded).detach()
        return codes.unflatten(0, (signal.shape[0], -1))

    def frames(self, codes: Tensor) -> Tensor:
        """(B, T', d, h, w) -> (B, T, H, W, 3), or of sound the spectra, (B, T' * time_stride, bins)."""
        steps = codes.shape[1]
        scaled = codes.flatten(0, 1) / (self.levels[:, None, None] // 2)
        x = self.uncode(scaled.reshape(len(scaled), self.uncode.in_channels, -1, scaled.shape[-1]))
        return self._signal(self.close(_normal(self.decoder(x, steps))), steps)

    def ids(self, codes: Tensor) -> Tensor:
        """(B, T', d, h, w) -> (B, T', h, w) int64."""
        digits = codes.round().long() + (self.levels // 2)[:, None, None]
        ids = (digits * self.places[:, None, None]).sum(2)
        return ids + self._first_of_book(ids.shape[2]) if self.config.books > 1 else ids

    def codes_of(self, ids: Tensor) -> Tensor:
        """(B, T', h, w) -> (B, T', d, h, w)."""
        if self.config.books > 1:
            ids = ids - self._first_of_book(ids.shape[2])
        digits = ids[:, :, None] // self.places[:, None, None] % self.levels[:, None, None]
        return (digits - (self.levels // 2)[:, None, None]).float()

    def _first_of_book(self, books: int) -> Tensor:
        """(books, 1): the first id of each."""
        return torch.arange(books, device=self.levels.device)[:, None] * math.prod(self.config.levels)

    def _patches(self, signal: Tensor) -> Tensor:
        """(B, T, H, W, 3) -> (B*T', patch, h, w); the first frame stands for those before it."""
        s, t = self.config.stride, self.config.time_stride
        if self.config.kind == "audio":
            return signal.reshape(-1, self.config.patch, 1, 1)
        if t > 1:
            signal = torch.cat([signal[:, :1].expand(-1, t - 1, -1, -1, -1), signal], 1)
        B, T, H, W, C = signal.shape
        cut = signal.reshape(B, T // t, t, H // s, s, W // s, s, C).permute(0, 1, 2, 4, 6, 7, 3, 5)
        patches = cut.reshape(B * (T // t), t * s * s * C, H // s, W // s)
        return patches.contiguous(memory_format=torch.channels_last)

    def _signal(self, patches: Tensor, steps: int) -> Tensor:
        """The way back, (B*T', patch, h, w) -> (B, T, H, W, 3), or of sound the spectra."""
        s, t = self.config.stride, self.config.time_stride
        if self.config.kind == "audio":
            return patches.reshape(len(patches) // steps, steps * t, -1)
        n, _, h, w = patches.shape
        cut = patches.reshape(n // steps, steps, t, s, s, CHANNELS, h, w).permute(0, 1, 2, 6, 3, 7, 4, 5)
        return cut.reshape(n // steps, steps * t, h * s, w * s, CHANNELS)[:, t - 1 :]


class _Stack(nn.Module):
    def __init__(self, count: int, width: int, kind: Kind) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, kind) for _ in range(count))

    def forward(self, x: Tensor, steps: int) -> Tensor:
        for layer in self.layers:
            x = layer(x, steps)
        return x


class _Each(nn.Conv2d):
    """Each patch by itself. A convolution over one place takes several times as long as the product that it is."""

    def __init__(self, inner: int, outer: int, bias: bool = True) -> None:
        super().__init__(inner, outer, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inner, h, w) -> (N, outer, h, w)."""
        if x.shape[2:] != (1, 1):
            return super().forward(x)
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[..., None, None]


class _Layer(nn.Module):
    """x + f(x): the 3 x 3 patches around in the same step and, of films and sound, the patch itself one step before."""

    def __init__(self, width: int, kind: Kind) -> None:
        super().__init__()
        # A step of sound has nothing beside it.
        self.near = _Each(width, width) if kind == "audio" else nn.Conv2d(width, width, 3, padding=1)
        self.before = _Each(width, width, bias=False) if kind != "image" else None
        self.back = _Each(width, width)

    def forward(self, x: Tensor, steps: int) -> Tensor:
        """(B*T', D, h, w); `steps` is T'."""
        y = _normal(x)
        inner = self.near(y)
        if self.before is not None and steps > 1:
            # The first step has none before it.
            earlier = self.before(y).unflatten(0, (-1, steps))
            inner = inner + F.pad(earlier[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)).flatten(0, 1)
        return x + self.back(F.gelu(inner))


def _normal(x: Tensor) -> Tensor:
    """Each patch by itself to a root mean square of 1 over its channels: nothing leaks through means over time or space."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)


@dataclass(frozen=True, eq=False)
class Quantizer:
    """A trained autoencoder as a tokenizer.

    Args:
        network: float32.
        shape: (height, width) of most pictures it was made for, (frames, height, width) of most films, or (samples,) of sound.
        per_second: frames in a second of most films it was made for, or samples of all sound; 0 for pictures.
    """

    network: Autoencoder = field(repr=False)
    shape: tuple[int, ...]
    per_second: float = 0.0

    name = "quantizer"

    @classmethod
    def from_json(cls, page: dict[str, Any]) -> Quantizer:
        """The way back from `to_json`; ValueError or KeyError where it is damaged."""
        config = QuantizerConfig(**{**page["config"], "levels": tuple(page["config"]["levels"])})
        network = Autoencoder(config)
        try:
            network.load_state_dict(load(base64.b64decode(page["weights"])))
        except Exception as error:  # the library's errors are of no common kind
            raise ValueError(f"weights that are none: {error}") from None
        return cls(network.eval(), tuple(map(int, page["shape"])), float(page["per_second"]))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "config": self.config.facts,
            "shape": list(self.shape),
            "per_second": self.per_second,
            "weights": base64.b64encode(self._weights).decode(),
        }

    @property
    def config(self) -> QuantizerConfig:
        """What it is made of."""
        return self.network.config

    @property
    def kind(self) -> Literal["image", "video", "audio"]:
        return self.config.kind

    @property
    def size(self) -> int:
        return self.config.size

    @property
    def expects(self) -> str:
        s, t = self.config.stride, self.config.time_stride
        if self.kind == "audio":
            return f"sound, (samples,) int16 at {self.per_second:g} in a second"
        if self.kind == "image":
            return f"pictures, (height, width, 3) uint8 with sides that are multiples of {s}"
        return f"films, (k x {t} + 1 frames, height, width, 3) uint8 with sides that are multiples of {s}"

    @property
    def stride(self) -> int:
        return self.config.stride

    @property
    def rate(self) -> float:
        """Ids for a pixel of a picture, for a pixel of a long film's frame, or for a second of sound."""
        if self.kind == "audio":
            return self.config.books * self.per_second / self.config.step
        return 1 / (self.config.stride**2 * self.config.time_stride)

    @cached_property
    def fingerprint(self) -> str:
        head = json.dumps([self.name, self.config.facts]).encode()
        return hashlib.sha256(head + self._weights).hexdigest()

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a signal's ids; UserError as `media.grid_of`."""
        return self.config.grid(shape)

    def encode(self, signal: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (h, w) int64, (T, H, W, 3) -> (T', h, w), or (T,) int16 -> (T', books)."""
        ndim, dtype = _FORMS[self.kind]
        if signal.ndim != ndim or signal.dtype != dtype or (ndim > 1 and signal.shape[-1] != CHANNELS):
            raise UserError(f"a quantizer expects {self.expects}, not {signal.shape} {signal.dtype}.")
        # Documents of one film follow each other; the last one is remembered by being the very same array.
        if not (self._last and self._last[0] is signal):
            self._last[:] = [signal, self.encode_all(signal[None])[0]]
        return self._last[1]

    @torch.inference_mode()
    def encode_all(self, signals: np.ndarray) -> np.ndarray:
        """(N, H, W, 3), (N, T, H, W, 3) uint8 or (N, T) int16, all of one shape -> their ids; many in one pass are faster."""
        grid = self.grid(signals.shape[1:] if self.kind == "audio" else signals.shape[1:-1])
        step = max(1, _AT_ONCE // math.prod(grid))
        parts = [
            self.network.ids(self.network.codes(self._floats(signals[start : start + step]).to(self._device))).cpu().numpy()
            for start in range(0, len(signals), step)
        ]
        return np.concatenate(parts).reshape(-1, *grid) if parts else np.empty((0, *grid), np.int64)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """(h, w) ids -> (H, W, 3) uint8, (T', h, w) -> (T, H, W, 3), or (T', books) -> (T,) int16."""
        array = np.asarray(ids, np.int64)
        if array.ndim != 2 + (self.kind == "video") or not array.size:
            raise UserError(f"ids of {self.expects} have another shape than {array.shape}.")
        return self.decode_all(array[None])[0]

    @torch.inference_mode()
    def decode_all(self, ids: np.ndarray) -> np.ndarray:
        """The way back from `encode_all`."""
        array = np.asarray(ids, np.int64)
        if array.size and not 0 <= array.min() <= array.max() < self.size:
            raise UserError(f"a quantizer of {self.size} ids has no id {array.min()} or {array.max()}.")
        grids = torch.from_numpy({"image": array[:, None], "video": array, "audio": array[..., None]}[self.kind])
        step = max(1, _AT_ONCE // math.prod(grids.shape[1:]))
        frames = np.concatenate(
            [
                self._signals(self.network.frames(self.network.codes_of(grids[start : start + step].to(self._device))))
                for start in range(0, len(grids), step)
            ]
        )
        return frames[:, 0] if self.kind == "image" else frames

    def stream(self, shape: tuple[int, ...]) -> StreamingDecoder:
        """Gives whole frames of a (frames, height, width) film, a (height, width) picture when its last id has come, or samples
        that no later id changes."""
        # The next windows of sound reach back over the last one.
        held = window_of(self.config.stride) - self.config.stride if self.kind == "audio" else 0
        return Steps(self.decode, self.config, self.grid(shape), held)

    def _floats(self, signals: np.ndarray) -> Tensor:
        """What the network takes; of sound the spectra, with silence behind it to whole steps."""
        if self.kind != "audio":
            return as_frames(signals)
        return spectra(F.pad(as_sound(signals), (0, -signals.shape[1] % self.config.step)), self.config.stride)

    def _signals(self, made: Tensor) -> np.ndarray:
        """What the network gives, as it is kept."""
        if self.kind != "audio":
            return as_pixels(made)
        found = [samples_of(sound, self.config.stride) for sound in magnitudes_of(made).double().cpu().numpy()]
        return (np.stack(found) * FULL_SCALE).round().clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)

    @property
    def _device(self) -> torch.device:
        return self.network.levels.device

    @cached_property
    def _last(self) -> list[np.ndarray]:
        return []

    @cached_property
    def _weights(self) -> bytes:
        return save({name: tensor.detach().float().contiguous() for name, tensor in self.network.state_dict().items()})


def as_frames(pixels: np.ndarray) -> Tensor:
    """(N, H, W, 3) or (N, T, H, W, 3) uint8 -> (N, T, H, W, 3) float in -1 ... 1."""
    frames = torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1
    return frames if pixels.ndim == 5 else frames[:, None]


def as_sound(samples: np.ndarray) -> Tensor:
    """int16 -> floats in -1 ... 1."""
    return torch.from_numpy(samples.astype(np.float32)) / FULL_SCALE


def as_pixels(frames: Tensor) -> np.ndarray:
    """Floats in about -1 ... 1 -> uint8 of the same shape."""
    return ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


_FORMS = {"image": (3, np.uint8), "video": (4, np.uint8), "audio": (1, np.int16)}
"""Dimensions and type of a signal."""


def commonest(shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that most have; of equals the smallest."""
    counts: dict[tuple[int, ...], int] = {}
    for shape in shapes:
        counts[shape] = counts.get(shape, 0) + 1
    if not counts:
        raise UserError("there is nothing to make a quantizer from.")
    return min(counts, key=lambda s: (-counts[s], s))
