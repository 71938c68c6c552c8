"""A vocabulary as llama.cpp keeps it: the `tokenizer.*` fields of a GGUF file.

llama.cpp has no reader for `tokenizer.json`. It holds a table of tokens with their types, the merges, and the name of a splitting
rule that it implements itself, so only a tokenizer whose rule has a name there can be written; any other would load and cut text
differently. Ids of media have no place in that table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tessera.errors import UserError
from tessera.tokens.text import splitting_rule
from tessera.tokens.vocabulary import END_TURN, Vocabulary

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""Token types (`llama_token_type` in llama.cpp's include/llama.h)."""

_FILL = {"fim_pre": "<|fim_prefix|>", "fim_suf": "<|fim_suffix|>", "fim_mid": "<|fim_middle|>"}


def tokenizer_fields(vocabulary: Vocabulary, begin: int | None, end: Sequence[int]) -> dict[str, Any]:
    """Names and values of the fields that describe a tokenizer, chat template included.

    A model of ours that was not tuned for dialogue gets no template: programs then let it continue text, which is what it can.

    Args:
        vocabulary: its padding and its ids of media are left out.
        begin: id that a tokenizer may put before every text; it is put there only where `tokenizer.json` does so.
        end: ids that end an answer, the first three of which the format can hold.

    Raises:
        UserError: llama.cpp cannot cut text as this tokenizer does.
    """
    tree = json.loads(vocabulary.files["tokenizer.json"])
    names, types = _table(tree)
    ends = [*end[:3]] or [vocabulary.end_id]
    fields: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _rule(tree),
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in tree["model"]["merges"]],
        # Where none is named llama.cpp takes id 11, whatever that is.
        "tokenizer.ggml.bos_token_id": ends[0] if begin is None else begin,
        "tokenizer.ggml.add_bos_token": bool(vocabulary.begin_ids),
        "tokenizer.ggml.add_eos_token": False,
    }
    fields |= {f"tokenizer.ggml.{kind}_token_id": i for kind, i in zip(("eos", "eot", "eom"), ends, strict=False)}
    controls = vocabulary.controls
    if "<|pad|>" in controls:
        fields["tokenizer.ggml.padding_token_id"] = vocabulary.pad_id
    fields |= {f"tokenizer.ggml.{kind}_token_id": controls[name] for kind, name in _FILL.items() if name in controls}
    template = _chat_template(vocabulary)
    if template and controls.get(END_TURN, ends[0]) in end:
        fields["tokenizer.chat_template"] = template
    return fields


def _table(tree: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Name and type of each id up to the last that the tokenizer has; gaps become tokens that are never used."""
    entries = {i: (name, _NORMAL) for name, i in tree["model"]["vocab"].items()}
    for token in tree["added_tokens"]:
        entries[token["id"]] = (token["content"], _CONTROL if token.get("special") else _USER_DEFINED)
    rows = [entries.get(i, (f"[unused {i}]", _UNUSED)) for i in range(max(entries) + 1)]
    return [name for name, _ in rows], [kind for _, kind in rows]


def _rule(tree: dict[str, Any]) -> str:
    """What llama.cpp calls the rule by which this tokenizer splits text."""
    rule = splitting_rule(tree.get("pre_tokenizer"))
    normalizer = (tree.get("normalizer") or {}).get("type", "NFC")  # NFC is left out there, as for every Qwen
    if rule is None or normalizer != "NFC" or bool(tree["model"].get("ignore_merges")) != (rule == "llama-bpe"):
        raise UserError("llama.cpp has no name for the rule by which this model's tokenizer splits text; use --to hf.")
    return rule


def _chat_template(vocabulary: Vocabulary) -> str | None:
    if "chat_template.jinja" in vocabulary.files:
        return vocabulary.files["chat_template.jinja"]
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = json.loads(vocabulary.files.get(name, "{}")).get("chat_template")
        if isinstance(template, str):
            return template
    return None
