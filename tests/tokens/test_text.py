"""Byte-pair training: bytes always in, deterministic, as large as asked, in the form that llama.cpp's rules have."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tessera.errors import UserError
from tessera.tokens.text import byte_alphabet, scalar_text, train_bpe

_TRAIN = """
import hashlib, inspect, json, textwrap
from tessera.tokens.text import train_bpe
texts = [inspect.getsource(module) for module in (json, textwrap, inspect)]
print(hashlib.sha256(train_bpe(texts, 1000, "qwen2").to_str().encode()).hexdigest())
"""


@pytest.mark.parametrize("pretokenizer", ["gpt-2", "qwen2"])
def test_all_bytes_are_entries_even_of_no_text(pretokenizer: str) -> None:
    assert set(train_bpe([], 256, pretokenizer).get_vocab()) == set(byte_alphabet())


def test_size_is_exact_where_the_text_allows_it_and_smaller_where_not() -> None:
    words = [f"word{i} other{i * 7} {'x' * (i % 9)}" for i in range(500)] * 2
    assert train_bpe(words, 700, "gpt-2").get_vocab_size() == 700
    assert 256 < train_bpe(["hello hello"], 5000, "gpt-2").get_vocab_size() < 270


def test_same_entries_at_any_thread_count() -> None:
    digests = set()
    for threads, parallel in (("1", "true"), ("2", "true"), ("4", "true"), ("2", "false")):
        env = os.environ | {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel}
        done = subprocess.run([sys.executable, "-c", _TRAIN], env=env, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_rules_stand_in_the_json_as_their_families_write_them() -> None:
    qwen2 = json.loads(train_bpe([], 256, "qwen2").to_str())
    assert qwen2["normalizer"] is None
    split, bytes_ = qwen2["pre_tokenizer"]["pretokenizers"]
    assert qwen2["pre_tokenizer"]["type"] == "Sequence"
    assert (split["type"], split["behavior"], split["invert"]) == ("Split", "Isolated", False)
    assert bytes_ == {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    gpt2 = json.loads(train_bpe([], 256, "gpt-2").to_str())
    assert gpt2["pre_tokenizer"] == {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def test_bad_requests_are_one_sentence() -> None:
    with pytest.raises(UserError, match="256"):
        train_bpe(["a"], 255, "qwen2")
    with pytest.raises(UserError, match="llama9"):
        train_bpe(["a"], 300, "llama9")


def test_lone_surrogates_become_the_replacement_character() -> None:
    assert scalar_text("a\ud800b\ud83d\ude00") == "a\ufffdb\U0001f600"
    assert train_bpe(["\ud800" * 9], 256, "qwen2").get_vocab_size() == 256
