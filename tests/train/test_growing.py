"""A model that gets ids which it did not have keeps what it had, also where control tokens are among the new ones."""

from __future__ import annotations

import json

import pytest
import torch

from tessera.model.decoder import Decoder, DecoderConfig
from tessera.tokens.vocabulary import Vocabulary
from tessera.train.growing import grow


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_another_tool_without_a_spare_row_gets_control_tokens_and_a_medium(tied: bool) -> None:
    trained = Vocabulary.train(["def add(a, b):\n    return a + b\n" * 20], 280)
    tree = json.loads(trained.files["tokenizer.json"])
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["id"] == trained.end_id]
    bare = Vocabulary({"tokenizer.json": json.dumps(tree)}, {"<|endoftext|>": trained.end_id}, trained.end_id + 1)
    decoder = Decoder(DecoderConfig(bare.size, 32, 2, 2, 1, 16, 48, context=64, tied=tied))
    decoder.initialise(0)
    grown_vocabulary = bare.with_controls().add_block("pixels", "image", 17, "f")
    assert max(grown_vocabulary.controls.values()) >= bare.size
    grown = grow(decoder, grown_vocabulary, seed=0)
    assert grown.config.vocab_size == grown_vocabulary.size
    ids = torch.tensor([bare.encode_text("def add(a, b):")])
    with torch.no_grad():
        before, after = decoder.logits(decoder(ids)), grown.logits(grown(ids))
    # Products of other widths are added up in another order on some machines.
    torch.testing.assert_close(after[..., : bare.size], before, rtol=0, atol=1e-5)
