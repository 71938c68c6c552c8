"""Emu3's tokenizer of films (arXiv 2409.18869) by transformers' class: four frames become one grid of ids, 8 pixels a side.

As its authors do it, each four frames are encoded by themselves and a picture as four equal frames. The first frame of a film is
such a picture here, so that a film has 4 k + 1 frames, begins with what a picture is alone, and no id depends on other steps.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from tessera.tokens.codecs import Facts, Family, Layout, Tensors

_PUBLISHED = "Emu3VisionVQ"
"""`model_type` of BAAI/Emu3-VisionTokenizer, whose own code is not run: names and forms are brought to those of transformers."""
_FACTS = {
    "ch": "base_channels", "ch_mult": "channel_multiplier", "z_channels": "latent_channels", "double_z": "double_latent",
}  # fmt: skip
_NAMES = (
    (r"^encoder\.down\.", "encoder.down_block.down."),
    (r"^decoder\.up\.", "decoder.up_block.up."),
    (r"\.mid\.attn_1\.norm\.", ".middle_block.attn_norm."),
    (r"\.mid\.", ".middle_block."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"(\.attn\.\d+|\.attn_1)\.([qkv])\.", r"\1.\2_proj."),
    (r"(\.attn\.\d+|\.attn_1)\.proj_out\.", r"\1.out_proj."),
)


def _layout(config: Any) -> Layout:
    side = 2 ** (len(config.channel_multiplier) - 1)
    return Layout("video", config.codebook_size, 1, side, config.temporal_downsample_factor)


def _encode(network: Any, film: Tensor, books: int) -> Tensor:
    """(1, T, H, W, 3) -> (T', h, w)."""
    frames, length = film[0].movedim(-1, 1), network.config.temporal_downsample_factor
    still = frames[:1].expand(length, -1, -1, -1)
    clips = torch.cat([still, frames[1:]]).unflatten(0, (-1, length))
    # The library cuts what it padded by these sizes, of films along the wrong axes: none is cut by the longer side.
    side = max(film.shape[2:4])
    found = network.encode(clips, torch.full((len(clips), 2), side)).image_tokens
    return torch.cat(list(found))


def _decode(network: Any, ids: Tensor) -> Tensor:
    """(T', h, w) -> (T, H, W, 3)."""
    clips: Tensor = network.decode(ids[:, None])
    return torch.cat([clips[:1, 0], clips[1:].flatten(0, 1)]).movedim(1, -1)


def _read(facts: Facts, tensors: Tensors) -> tuple[Facts, Tensors]:
    """Configuration and weights as transformers names them."""
    if facts.get("model_type") != _PUBLISHED:
        return facts, tensors
    renamed = {_FACTS.get(key, key): value for key, value in facts.items() if key not in ("auto_map", "architectures")}
    renamed["model_type"] = "emu3_vqgan"
    renamed["hidden_size"] = renamed.get("base_channels", 256) * renamed.get("channel_multiplier", [4])[-1]
    found = {}
    for name, tensor in tensors.items():
        for old, new in _NAMES:
            name = re.sub(old, new, name)
        # What was a convolution over one place is the matrix that it is.
        found[name] = tensor.flatten(1) if name.endswith("_proj.weight") else tensor
    return renamed, found


EMU3 = Family("Emu3VQVAE", "Emu3VQVAEConfig", ("emu3_vqgan", _PUBLISHED), "video", _layout, _encode, _decode, _read)
