"""Bits per byte: the definition, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tessera.errors import UserError
from tessera.evals.bits import measure, sample_documents
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.tokens.document import Document
from tessera.tokens.vocabulary import Vocabulary

TEXTS = ["first document, long enough for two windows", "naïve", "third", ""]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(["a byte is enough"], 256)


@pytest.fixture(scope="module")
def decoder(vocabulary: Vocabulary) -> Decoder:
    decoder = Decoder(
        DecoderConfig(vocabulary.size, width=32, layers=1, heads=2, kv_heads=1, head_size=16, mlp_width=48, context=20)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(float(parameter.ndim == 1), 0.2, generator=generator)
    return decoder


def test_a_model_that_knows_nothing_needs_log_v_nats_per_token(vocabulary: Vocabulary, decoder: Decoder) -> None:
    ignorant = Decoder(decoder.config)
    with torch.no_grad():
        ignorant.model.embed_tokens.weight.zero_()
    result = measure(ignorant, vocabulary, map(Document.of_text, TEXTS))
    assert result.documents == 3
    assert result.bytes == sum(len(text.encode()) for text in TEXTS) and result.tokens == result.bytes + 3
    assert result.nats_per_token == pytest.approx(math.log(vocabulary.size), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(math.log2(vocabulary.size) * result.tokens / result.bytes, rel=1e-6)


def test_every_token_counts_once_in_windows_of_the_context(vocabulary: Vocabulary, decoder: Decoder) -> None:
    nats = 0.0
    ids = [vocabulary.end_id, *vocabulary.encode_text(TEXTS[0]), vocabulary.end_id]
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, 20):
            window, targets = ids[start : start + 20], ids[start + 1 : start + 21]
            logprobs = decoder.logits(decoder(torch.tensor([window[: len(targets)]]))).log_softmax(-1)[0]
            nats -= sum(float(logprobs[i, target]) for i, target in enumerate(targets))
    result = measure(decoder, vocabulary, [Document.of_text(TEXTS[0])])
    assert result.nats_per_token * result.tokens == pytest.approx(nats, rel=1e-5)
    assert math.isnan(result.standard_error)


def test_the_standard_error_is_that_of_a_ratio(vocabulary: Vocabulary, decoder: Decoder) -> None:
    documents = [Document.of_text(text) for text in TEXTS[:3]]
    singles = [measure(decoder, vocabulary, [document]) for document in documents]
    together = measure(decoder, vocabulary, documents)
    residuals = torch.tensor([(s.bits_per_byte - together.bits_per_byte) * s.bytes for s in singles], dtype=torch.float64)
    assert residuals.sum().item() == pytest.approx(0, abs=1e-6)
    assert together.standard_error == pytest.approx(float(residuals.std()) * math.sqrt(3) / together.bytes, rel=1e-5)


def test_the_sample_does_not_depend_on_order_and_nothing_to_measure_is_refused(vocabulary: Vocabulary, decoder: Decoder) -> None:
    documents = [Document.of_text(f"document {i}") for i in range(50)]
    assert sample_documents(documents, 7) == sample_documents(reversed(documents), 7)
    with pytest.raises(UserError, match="no document"):
        measure(decoder, vocabulary, [Document.of_text("")])
