"""New ids for an old model: rows of embedding and head for the media that a run teaches a model that knew none.

Old rows stay as they are, so that old logits do. A new row must not take probability from the old ids before it has learned
anything: it begins along the direction in which the model's hidden states agree, found by least squares on what the model itself
writes, so that its logit lies well below what all old ids come to, whatever came before.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from tessera.engine.engine import Engine, Limits
from tessera.engine.sampling import SamplingParams
from tessera.model.decoder import Decoder
from tessera.tokens.vocabulary import Vocabulary

MOST_SHARE = 0.002
"""Of the probability that all new ids together may take at the start, on the mean of the positions looked at."""
_ROWS, _TOKENS = 16, 96
_MARGINS = (2.0, 4.0, 8.0, 16.0)
"""Nats below the share that are aimed at, one after the other until it is kept."""


@torch.no_grad()
def grow(decoder: Decoder, vocabulary: Vocabulary, seed: int) -> Decoder:
    """A decoder with a row for every id of a vocabulary whose first ids are the old model's.

    Args:
        decoder: the old model, on the device where the new one will be.
        vocabulary: the grown one.
        seed: of what the model writes and of the new rows.
    """
    config = decoder.config
    more = vocabulary.size - config.vocab_size
    if more <= 0:
        return decoder
    hidden_ND = _hidden_states(decoder, vocabulary, seed)
    total_N = (hidden_ND @ decoder.head_weight.t()).logsumexp(-1)
    old = decoder.state_dict()
    generator = torch.Generator().manual_seed(seed)
    embedding_VD, head_VD = old["model.embed_tokens.weight"], decoder.head_weight
    noise = torch.randn((more, config.width), generator=generator).to(head_VD) * embedding_VD.std()
    spread = (hidden_ND[: 4 * _TOKENS] @ noise.t()).std() if config.tied else hidden_ND.new_zeros(())
    for margin in _MARGINS:
        wanted_N = total_N + math.log(MOST_SHARE / more) - margin - spread**2 / 2
        row_D = torch.linalg.lstsq(hidden_ND.double().cpu(), wanted_N.double().cpu()[:, None]).solution[:, 0].to(head_VD)
        new_MD = row_D + noise if config.tied else row_D.expand(more, -1)
        share = ((hidden_ND @ new_MD.t()).logsumexp(-1) - total_N).exp().mean()
        if share <= MOST_SHARE:
            break
    grown = Decoder(replace(config, vocab_size=vocabulary.size), decoder.dtype).to(head_VD.device)
    tensors = dict(old)
    tensors["model.embed_tokens.weight"] = torch.cat((embedding_VD, new_MD if config.tied else noise))
    if not config.tied:
        tensors["lm_head.weight"] = torch.cat((head_VD, new_MD))
    grown.load_state_dict(tensors)
    return grown


def _hidden_states(decoder: Decoder, vocabulary: Vocabulary, seed: int) -> Tensor:
    """(N, D) float32 hidden states along texts that the model writes from an end of document on."""
    tokens = min(_TOKENS, decoder.config.context - 1)
    known = {name: id for name, id in vocabulary.controls.items() if id < decoder.config.vocab_size}
    old = replace(vocabulary, blocks=(), media={}, controls=known, base_size=decoder.config.vocab_size)
    engine = Engine(decoder, old, Limits(rows=_ROWS, prefix_tokens=0))
    params = [SamplingParams(tokens, seed=seed + row, stop_ids=()) for row in range(_ROWS)]
    written = engine.generate([[vocabulary.end_id]] * _ROWS, params)
    ids = torch.tensor([[vocabulary.end_id, *c.ids.tolist()] for c in written], device=decoder.head_weight.device)
    return decoder(ids).flatten(0, 1).float()
