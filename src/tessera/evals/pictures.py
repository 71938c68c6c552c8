"""Bits per pixel: how well a model predicts pictures, in a unit that depends on the palette alone.

Each picture is read by itself and whole. With one palette id for a pixel, bits per pixel are bits per dimension as Image GPT has
them for its clusters; what the palette itself loses is told apart from it, as PSNR.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tessera.data.pictures import Parts, parts_of
from tessera.errors import UserError
from tessera.model.decoder import Decoder
from tessera.tokens.document import Document
from tessera.tokens.palette import psnr
from tessera.tokens.pictures import to_draw
from tessera.tokens.vocabulary import Vocabulary


@dataclass(frozen=True)
class PictureMeasure:
    """Cross-entropy on pictures.

    Args:
        bits_per_pixel: over all pixels, nothing said before the picture.
        standard_error: with pictures as the sample; NaN for a single one.
        bits_per_pixel_captioned: the same pictures after their captions, and its standard error; NaN where one has none.
        psnr: mean decibels of the palette's pictures against the real ones, of those that it changes; NaN where it changes none.
    """

    bits_per_pixel: float
    standard_error: float
    bits_per_pixel_captioned: float
    standard_error_captioned: float
    psnr: float
    pictures: int
    pixels: int


def sample_pictures(documents: Iterable[Document], count: int) -> list[Parts]:
    """`count` captioned pictures, chosen by the hash of their pixels: always the same ones, in whatever order they come."""
    found = (parts for document in documents if (parts := parts_of(document)) is not None)
    return heapq.nsmallest(count, found, key=lambda p: hashlib.blake2b(p.signal.tobytes(), digest_size=16).digest())


def measure_pictures(decoder: Decoder, vocabulary: Vocabulary, pictures: Sequence[Parts]) -> PictureMeasure:
    """Measures a model on pictures.

    Raises:
        UserError: there is no picture, the model knows none, or one does not fit into its context.
    """
    if not pictures:
        raise UserError("there is no picture to measure on.")
    tokenizer = vocabulary.media_tokenizer("image")
    pixels = np.array([p.signal.shape[0] * p.signal.shape[1] for p in pictures])
    bare = _ratio(np.array([_nats(decoder, vocabulary, p.signal, "") for p in pictures]), pixels)
    captioned = (math.nan, math.nan)
    if all(p.caption for p in pictures):
        captioned = _ratio(np.array([_nats(decoder, vocabulary, p.signal, p.caption) for p in pictures]), pixels)
    near = [psnr(tokenizer.decode(tokenizer.encode(p.signal[..., :3])), p.signal[..., :3]) for p in pictures]
    changed = [value for value in near if math.isfinite(value)]
    fidelity = float(np.mean(changed)) if changed else math.nan
    return PictureMeasure(*bare, *captioned, fidelity, len(pictures), int(pixels.sum()))


def _ratio(nats: np.ndarray, pixels: np.ndarray) -> tuple[float, float]:
    """Bits per pixel and the standard error: of a ratio of two sums, by linearisation, as in `evals.bits`."""
    bits, n = nats / math.log(2), len(nats)
    per_pixel = float(bits.sum() / pixels.sum())
    error = float((bits - per_pixel * pixels).std(ddof=1) * math.sqrt(n) / pixels.sum()) if n > 1 else math.nan
    return per_pixel, error


@torch.inference_mode()
def _nats(decoder: Decoder, vocabulary: Vocabulary, pixels: np.ndarray, caption: str) -> float:
    """Sum of -log p over the pixels of one picture."""
    ids = torch.from_numpy(vocabulary.encode(Document(to_draw(caption, pixels))).ids.astype(np.int64))
    if len(ids) > decoder.config.context + 1:
        raise UserError(
            f"a picture of {pixels.shape[0]} x {pixels.shape[1]} pixels comes to {len(ids)} tokens, "
            f"and the model reads {decoder.config.context}."
        )
    block = vocabulary.ids_of("image")
    targets = ids[1:]
    wanted = (targets >= block.start) & (targets < block.stop)
    hidden = decoder(ids[None, :-1].to(decoder.head_weight.device))[0]
    logprobs = decoder.logits(hidden[wanted.to(hidden.device)]).log_softmax(-1)
    return -float(logprobs.gather(1, targets[wanted][:, None].to(hidden.device)).sum(dtype=torch.float64))
