"""Published codecs of sound by their own classes in transformers: how they cut it, and what turns it into codes and back.

Each writes one code of each of its books for a step of sound; a book refines what the ones before it left (residual vector
quantization), so the first few of them are a coarser tokenizer of their own. Mimi's first book was taught what is said
(arXiv 2410.00037).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tessera.errors import UserError
from tessera.tokens.document import Kind
from tessera.tokens.media import grid_of


@dataclass(frozen=True)
class Layout:
    """How a published tokenizer cuts a signal.

    Args:
        kind: the medium.
        codes: ids of a book.
        books: ids of a step of sound, in the order in which they are written; 1 elsewhere.
        stride: side of a patch in pixels; samples of a step of sound.
        time_stride: frames of a patch, but for the first, which has one; 1 elsewhere.
        per_second: samples in a second that it takes; 0 elsewhere.
        ahead: later steps that a step of sound is still changed by when it is decoded; -1: all of them.
    """

    kind: Kind
    codes: int
    books: int
    stride: int
    time_stride: int = 1
    per_second: float = 0.0
    ahead: int = 0

    @property
    def size(self) -> int:
        """How many ids, all books together."""
        return self.codes * self.books

    @property
    def step(self) -> int:
        """Samples of a step of sound."""
        return self.stride * self.time_stride

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a signal's ids; UserError as `media.grid_of`."""
        return grid_of(self, shape)


@dataclass(frozen=True)
class Family:
    """What one kind of published tokenizer is made of.

    Args:
        name: of its configuration and of its network in transformers.
        kind: the medium.
        layout: of such a configuration, with all of its books; UserError where it is one that cannot be used here.
        encode: network and a signal, (1, 1, T) in -1 ... 1 -> codes, (T', books); the last argument is how many books.
        decode: the way back, (T', books) -> (T,).
    """

    name: str
    kind: Kind
    layout: Callable[[Any], Layout]
    encode: Callable[[Any, Tensor, int], Tensor]
    decode: Callable[[Any, Tensor], Tensor]


def _mimi_layout(config: Any) -> Layout:
    _refuse_stereo(config, "mimi")
    stride = round(config.sampling_rate / config.frame_rate)
    ahead = 0 if config.use_causal_conv and config.trim_right_ratio == 1 else -1
    return Layout("audio", config.codebook_size, config.num_quantizers, stride, 1, config.sampling_rate, ahead)


def _encodec_layout(config: Any) -> Layout:
    _refuse_stereo(config, "encodec")
    if config.normalize or config.chunk_length_s is not None:
        raise UserError(
            "this encodec keeps a loudness beside its ids (normalize, chunk_length_s), so they alone give no sound back; "
            "take one without, facebook/encodec_24khz."
        )
    # The first steps are mirrored to stand for those before them, so as many have to be there.
    ahead = config.kernel_size - 1 if config.use_causal_conv and config.trim_right_ratio == 1 else -1
    return Layout(
        "audio", config.codebook_size, config.num_quantizers, math.prod(config.upsampling_ratios), 1, config.sampling_rate, ahead
    )


def _dac_layout(config: Any) -> Layout:
    stride = math.prod(config.downsampling_ratios)
    ahead = _reach(config.upsampling_ratios)
    return Layout("audio", config.codebook_size, config.n_codebooks, stride, 1, config.sampling_rate, ahead)


def _refuse_stereo(config: Any, family: str) -> None:
    if config.audio_channels != 1:
        raise UserError(f"this {family} is of {config.audio_channels} channels; recordings are mixed to one here.")


def _reach(ratios: Sequence[int]) -> int:
    """Later steps that DAC's decoder looks at: of each block the transposed convolution of 2 r, padded by r / 2, and three
    convolutions of 7, dilated by 1, 3 and 9; one of 7 before and one behind the blocks."""
    samples = 3
    for ratio in reversed(ratios):
        samples = math.ceil((samples + 3 * (1 + 3 + 9) + math.ceil(ratio / 2)) / ratio)
    return samples + 3


def _encodec_encode(network: Any, sound: Tensor, books: int) -> Tensor:
    # A bandwidth is a number of books, in another unit; the books of the widest begin with those of all others.
    found: Tensor = network.encode(sound, bandwidth=network.config.target_bandwidths[-1]).audio_codes
    return found[0, 0, :books].T


def _encodec_decode(network: Any, codes: Tensor) -> Tensor:
    made: Tensor = network.decode(codes.T[None, None], [None]).audio_values
    return made[0, 0]


def _mimi_encode(network: Any, sound: Tensor, books: int) -> Tensor:
    found: Tensor = network.encode(sound, num_quantizers=books).audio_codes
    return found[0].T


def _mimi_decode(network: Any, codes: Tensor) -> Tensor:
    made: Tensor = network.decode(codes.T[None]).audio_values
    return made[0, 0]


def _dac_encode(network: Any, sound: Tensor, books: int) -> Tensor:
    found: Tensor = network.encode(sound, n_quantizers=books).audio_codes
    return found[0].T


def _dac_decode(network: Any, codes: Tensor) -> Tensor:
    made: Tensor = network.decode(audio_codes=codes.T[None]).audio_values
    return made[0]


CODECS = {
    "mimi": Family("Mimi", "audio", _mimi_layout, _mimi_encode, _mimi_decode),
    "encodec": Family("Encodec", "audio", _encodec_layout, _encodec_encode, _encodec_decode),
    "dac": Family("Dac", "audio", _dac_layout, _dac_encode, _dac_decode),
}
"""By the `model_type` of their configuration."""


def open_network(family: Family, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """The network of a configuration with these weights, float32, for inference.

    Raises:
        UserError: transformers is not there, or the weights are not this network's.
    """
    transformers = library()
    network_class = getattr(transformers, f"{family.name}Model")
    bar, quiet = transformers.utils.logging, transformers.utils.logging.is_progress_bar_enabled()
    bar.disable_progress_bar()
    try:
        network, report = network_class.from_pretrained(
            None, config=configuration(family, facts), state_dict=tensors, output_loading_info=True, dtype=torch.float32
        )
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"these are no weights of a {network_class.__name__}: {_first_line(error)}") from None
    finally:
        if quiet:
            bar.enable_progress_bar()
    wrong = [f"{what} {name}" for what in ("missing", "mismatched") for name in sorted(map(str, report[f"{what}_keys"]))]
    if wrong:
        raise UserError(f"these are no weights of a {network_class.__name__}: {wrong[0]}, and {len(wrong) - 1} more.")
    return network.eval().requires_grad_(False)


def configuration(family: Family, facts: dict[str, Any]) -> Any:
    """The configuration of `config.json` as transformers reads it.

    Raises:
        UserError: transformers is not there, or it is none.
    """
    try:
        return getattr(library(), f"{family.name}Config").from_dict(facts)
    except UserError:
        raise
    except Exception as error:  # the library validates by errors of several kinds
        raise UserError(f"the configuration is no {family.name}Config: {_first_line(error)}") from None


def library() -> Any:
    """transformers, imported when it is first needed.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(
            'published tokenizers are opened by transformers; install it with `pip install "tessera[published]"`.'
        ) from None
    return transformers


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:") + "."
