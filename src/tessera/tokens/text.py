"""Byte-level BPE: texts in, a trained `tokenizers.Tokenizer` out.

Every text has ids, whatever it holds, because all 256 bytes are entries. No Unicode normalisation happens anywhere (Qwen2's own
tokenizer applies NFC; ours leaves it out, because "e" + U+0301 has to come back as it went in). The two splitting rules are
the ones that llama.cpp implements by name, written as Hugging Face writes them in `tokenizer.json`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tessera.errors import UserError

BYTES = 256
"""Entries that every vocabulary has: one for each byte."""

# From the tokenizer.json of Qwen/Qwen2.5-0.5B, character for character.
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# From Meta's Llama 3: as Qwen2's, but up to three digits are one word.
_LLAMA3 = _QWEN2.replace(r"\p{N}| ?[^", r"\p{N}{1,3}| ?[^")

# The same rules for ASCII text, where Python's tables and those of the library agree. Most of the time of encoding goes into
# the library's splitting: `re` and a memory of words do the same about five times as fast on one core.
_ASCII = {
    "gpt-2": r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+",
    "qwen2": r"'(?i:[stmd]|re|ve|ll)|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def train_bpe(texts: Iterable[str], size: int, pretokenizer: str = "qwen2") -> Tokenizer:
    """Learns byte pairs from `texts`. The same texts in the same order give the same entries at any thread count.

    Args:
        texts: read once; lone surrogates count as U+FFFD.
        size: entries wanted, the 256 bytes included. Fewer come back (`get_vocab_size()`) only if the texts run out of
            pairs that occur twice.
        pretokenizer: `gpt-2` or `qwen2`.

    Raises:
        UserError: a size below 256, or another pre-tokenizer.
    """
    if size < BYTES:
        raise UserError(f"a vocabulary of {size} entries cannot hold the 256 bytes; ask for 256 or more.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _splitter(pretokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(scalar_text, texts), trainer)
    return tokenizer


def scalar_text(text: str) -> str:
    """`text`, with surrogate pairs joined and lone surrogates, which JSON can hold but UTF-8 cannot, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def scalar_json(value: Any, text: Callable[[str], str] = scalar_text) -> Any:
    """A JSON value with `text` over all of its strings, names of fields too; NaN and the infinities, which Python reads and no
    JSON has, become null."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {text(name) if isinstance(name, str) else name: scalar_json(part, text) for name, part in value.items()}
    return [scalar_json(part, text) for part in value] if isinstance(value, list | tuple) else value


def ascii_splitter(normalizer: Any, pre_tokenizer: Any) -> Callable[[str], list[str]] | None:
    """The words of an ASCII text under these sections of a `tokenizer.json`; None if they are not what `train_bpe` writes."""
    for name, pattern in _ASCII.items():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = _splitter(name)
        if normalizer is None and pre_tokenizer == json.loads(tokenizer.to_str())["pre_tokenizer"]:
            return re.compile(pattern, re.ASCII).findall
    return None


def splitting_rule(pre_tokenizer: Any) -> str | None:
    """What llama.cpp calls the rule in this section of a `tokenizer.json`: gpt-2, qwen2, llama-bpe or smollm; else None."""
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if isinstance(pre_tokenizer, dict) else []
    # Where offsets begin makes no difference to ids.
    plain = [{key: value for key, value in part.items() if key != "trim_offsets"} for part in parts]
    with_rule, alone = ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": use} for use in (True, False))

    def split(pattern: str) -> dict[str, Any]:
        return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}

    known = {
        "gpt-2": [with_rule],
        "qwen2": [split(_QWEN2), alone],
        "llama-bpe": [split(_LLAMA3), alone],
        "smollm": [{"type": "Digits", "individual_digits": True}, with_rule],
    }
    return next((name for name, rule in known.items() if rule == plain), None)


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level entries, and the byte (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(BYTES + i): byte for i, byte in enumerate(others)}


def _splitter(name: str) -> pre_tokenizers.PreTokenizer:
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "qwen2":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated", invert=False),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
            ]
        )
    raise UserError(f"there is no pre-tokenizer {name!r}; choose gpt-2 or qwen2.")
