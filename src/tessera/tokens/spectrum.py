"""Sound as spectra and back: what a quantizer of sound looks at, and how samples come of what it says.

A spectrum is taken every `stride` samples from the ones before it, so that none depends on what comes later, and keeps
magnitudes alone: where a wave begins is not heard, and would cost most of the ids. `samples_of` finds phases again, spectrum by
spectrum, in agreement with the samples that are there already.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FLOOR = 1e-3
"""Of a magnitude, full scale being 1: what is much below is silence (60 dB)."""
_SCALE, _MIDDLE = 3.0, 0.7
"""Logarithms of speech come to about -1 ... 1 by these."""
_ROUNDS = 8
"""Searches for the phases of each spectrum: 4 reach 15.6 dB of the true magnitudes of speech, 8 18.7, 16 20.9 (docs/LOG.md)."""
_BARE = 1e-3
"""Weight of a window below which a sample counts as not there yet."""


def window_of(stride: int) -> int:
    """Samples that a spectrum is taken from: a power of two, three strides at least."""
    return 1 << math.ceil(math.log2(3 * stride))


def bins_of(stride: int) -> int:
    """Frequencies of a spectrum, from 0 to half of the rate."""
    return window_of(stride) // 2 + 1


def magnitudes(sound: Tensor, stride: int, window: int) -> Tensor:
    """(B, T) in -1 ... 1 -> (B, T // stride, window // 2 + 1); a tone of full scale has a magnitude of about 1.

    The last sample of spectrum i is that before (i + 1) * stride; before the first one there is silence.
    """
    frames = F.pad(sound, (window - stride, 0)).unfold(-1, window, stride)
    hann = torch.hann_window(window, device=sound.device)
    return torch.fft.rfft(frames * hann).abs() * (2 / hann.sum())


def spectra(sound: Tensor, stride: int) -> Tensor:
    """(B, T) in -1 ... 1 -> (B, T // stride, bins) in about -1 ... 1, logarithms of magnitudes; silence is the least."""
    return torch.log1p(magnitudes(sound, stride, window_of(stride)) / FLOOR) / _SCALE - _MIDDLE


def magnitudes_of(spectra: Tensor) -> Tensor:
    """The way back from logarithms."""
    return torch.expm1(((spectra + _MIDDLE) * _SCALE).clamp(0, 8)) * FLOOR


def bands(bins: int) -> Tensor:
    """(bins, bands) float32: weights that sum to 1 in each of 24 overlapping bands, which widen with frequency (mel)."""
    count = 24
    # Half of the rate counts as 4 kHz, as in speech over a telephone; elsewhere the bands only widen a little less.
    mel = np.linspace(0, 2595 * np.log10(1 + 4000 / 700), count + 2)
    edges = 700 * (10 ** (mel / 2595) - 1) / 4000 * (bins - 1)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    at = np.arange(bins)[:, None]
    heights = np.clip(np.minimum((at - low) / (middle - low), (high - at) / (high - middle)), 0, None) + 1e-9
    return torch.from_numpy(heights / heights.sum(0)).float()


def samples_of(magnitudes: np.ndarray, stride: int) -> np.ndarray:
    """(T, bins) magnitudes -> (T * stride,) samples whose spectra have them nearly: real-time iterative spectrogram inversion
    (Beauregard, Zhu and Wyse 2005).

    Samples but the last window's do not depend on later spectra.
    """
    window, count = window_of(stride), len(magnitudes)
    hann = np.hanning(window + 1)[:-1]
    squares = hann**2
    wanted = magnitudes * (hann.sum() / 2)
    sums, weights = np.zeros(count * stride + window - stride), np.zeros(count * stride + window - stride)
    for number, magnitude in enumerate(wanted):
        here = slice(number * stride, number * stride + window)
        before, weight = sums[here], weights[here]
        guess = np.where(weight > _BARE, before / np.maximum(weight, _BARE), 0)
        for _ in range(_ROUNDS):
            spectrum = np.fft.rfft(guess * hann)
            size = np.abs(spectrum)
            phase = np.where(size > 1e-7, spectrum / np.maximum(size, 1e-7), 1)
            made = np.fft.irfft(magnitude * phase, window) * hann
            guess = (before + made) / (weight + squares + _BARE)
        before += made
        weight += squares
    # At the end fewer windows meet; a sample that hardly any covers is not blown up.
    return (sums / np.maximum(weights, 0.05))[window - stride :]
