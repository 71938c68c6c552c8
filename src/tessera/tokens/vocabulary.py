"""The id space: documents in, token records out, and back.

Ids come in three stretches. First the text entries of a byte-level BPE, the 256 bytes among them; then the control tokens,
64 from birth with spares, so that a new one never moves an old id; then one block of ids per non-text tokenizer, appended
when a model learns that medium. Text and control tokens stand in `tokenizer.json`, which every tool reads; media ids do not.
Text is encoded by a tokenizer that knows no control token, so nothing a user writes can become one.

A folder of an imported model (a `tokenizer.json` without our `vocabulary.json`) loads too: its own added tokens then are the
control tokens, wherever their ids lie.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from tessera.errors import UserError
from tessera.tokens.beside import media_file, put_weights, read_media
from tessera.tokens.chat import chat_template
from tessera.tokens.document import Document, Kind, Segment, TokenRecord
from tessera.tokens.films import encode_film, is_film
from tessera.tokens.media import MediaTokenizer
from tessera.tokens.pictures import encode_picture, is_picture
from tessera.tokens.sounds import encode_sound, is_sound
from tessera.tokens.text import BYTES, ascii_splitter, byte_alphabet, scalar_text, train_bpe

END, PAD, END_TURN = "<|endoftext|>", "<|pad|>", "<|end_turn|>"

# The order is the order of the ids and part of the format: a new name takes the place of a spare.
_NAMED = (
    END, PAD, "<|system|>", "<|developer|>", "<|user|>", "<|assistant|>", "<|tool|>", END_TURN, "<|think|>", "<|/think|>",
    "<|tool_call|>", "<|/tool_call|>", "<|effort_low|>", "<|effort_medium|>", "<|effort_high|>", "<|fim_prefix|>",
    "<|fim_suffix|>", "<|fim_middle|>", "<|file|>", "<|image|>", "<|/image|>", "<|row|>", "<|video|>", "<|/video|>",
    "<|frame|>", "<|audio|>", "<|/audio|>", "<|begin_media|>", "<|mask|>", "<|edit|>", "<|null|>", "<|guided|>",
)  # fmt: skip
CONTROLS = _NAMED + tuple(f"<|spare_{i}|>" for i in range(64 - len(_NAMED)))
"""Names of the 64 control tokens of a vocabulary that is trained here, in the order of their ids."""

# What other families call ours; the first that exists is taken.
_ALIASES = {
    END: ("<|end_of_text|>", "</s>"),
    END_TURN: ("<|im_end|>", "<|eot_id|>"),
    PAD: ("<pad>", "<|finetune_right_pad_id|>", "<|vision_pad|>", "<|reserved_special_token_0|>"),
    "<|think|>": ("<think>",),
    "<|/think|>": ("</think>",),
    "<|tool_call|>": ("<tool_call>",),
    "<|/tool_call|>": ("</tool_call>",),
}

# Copied as they are when an imported folder is saved; the template and the settings belong to the tokenizer.
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
_OURS = "vocabulary.json"
_FORMAT = 1
_BATCH_CHARACTERS = 8_000_000
"""Texts go to the encoder in batches of about this size, which bounds the memory of what it returns."""

_REMEMBERED_WORDS = 500_000
"""The memory of `encode_texts` is emptied beyond this; the standard library's 30 MB have about 200,000 words."""


@dataclass(frozen=True)
class Block:
    """The ids `offset ... offset + size - 1` of one non-text tokenizer; `fingerprint` tells which."""

    name: str
    kind: Kind
    offset: int
    size: int
    fingerprint: str


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The id space of one model.

    Args:
        files: text of the tokenizer's files by name, at least `tokenizer.json`.
        controls: id of each control token by name.
        base_size: ids of text, control tokens and padding; blocks come after.
        blocks: of the media, in the order of their ids.
        media: what turns signals into ids of these blocks, by the kind of medium, as far as it lies beside the model.
    """

    files: Mapping[str, str] = field(repr=False)
    controls: Mapping[str, int]
    base_size: int
    blocks: tuple[Block, ...] = ()
    media: Mapping[str, MediaTokenizer] = field(default_factory=dict, repr=False)

    @classmethod
    def train(cls, texts: Iterable[str], size: int, pretokenizer: str = "qwen2") -> Vocabulary:
        """A new vocabulary of `size` text entries (256 bytes included; fewer if the texts are too few) and 64 control tokens.

        Raises:
            UserError: see `train_bpe`.
        """
        tree = json.loads(train_bpe(texts, size, pretokenizer).to_str())
        text_size = len(tree["model"]["vocab"])
        controls = {name: text_size + i for i, name in enumerate(CONTROLS)}
        tree["added_tokens"] = _added_tokens(controls)
        config = {
            "add_bos_token": False,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": END,
            "pad_token": PAD,
            # Known to transformers 4 and 5; leads to the plain reader of tokenizer.json whatever the model's type.
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        files = {
            "tokenizer.json": json.dumps(tree, ensure_ascii=False),
            "tokenizer_config.json": json.dumps(config, indent=2),
            "chat_template.jinja": chat_template(),
        }
        return cls(files, controls, text_size + len(controls))

    @classmethod
    def load(cls, folder: str | Path, model_vocab_size: int | None = None) -> Vocabulary:
        """Reads a folder that `save` wrote, or one of an imported model with a byte-level or SentencePiece-like BPE.

        Args:
            folder: holds `tokenizer.json`.
            model_vocab_size: rows of an imported model's embedding. Those beyond the tokenizer's ids are padding, which
                decodes to nothing.

        Raises:
            UserError: no or broken files, another kind of tokenizer, or a model with fewer rows than the tokenizer has ids.
        """
        folder = Path(folder)
        files = {name: (folder / name).read_text(encoding="utf-8") for name in _FILES if (folder / name).is_file()}
        if "tokenizer.json" not in files:
            raise UserError(f"{folder} has no tokenizer.json, so there is no tokenizer to read.")
        try:
            if (folder / _OURS).is_file():
                vocabulary = _from_ours(json.loads((folder / _OURS).read_text(encoding="utf-8")), files, folder)
            else:
                vocabulary = _from_imported(files, folder)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"the tokenizer files in {folder} are broken: {error!r}.") from None
        vocabulary._check_text(folder)
        rows = vocabulary.size if model_vocab_size is None else model_vocab_size
        if rows < vocabulary.size:
            raise UserError(f"the tokenizer in {folder} has {vocabulary.size} ids, the model only {rows} rows.")
        # With blocks the padding has its place already: they begin after it.
        if not vocabulary.blocks:
            vocabulary = replace(vocabulary, base_size=rows)
        return replace(vocabulary, media=read_media(folder, {block.kind: block.fingerprint for block in vocabulary.blocks}))

    def save(self, folder: str | Path, context: int | None = None) -> None:
        """Writes the files that transformers, vLLM and llama.cpp read, and our `vocabulary.json`, each aside and renamed.

        Args:
            folder: made if it does not exist.
            context: the model's longest sequence in tokens, written as `model_max_length`.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        ours = {
            "format": _FORMAT,
            "hash": self.hash,
            "text_size": self.text_size,
            "base_size": self.base_size,
            "controls": dict(self.controls),
            "blocks": [asdict(block) for block in self.blocks],
        }
        files = dict(self.files)
        if context is not None:
            config = json.loads(files.get("tokenizer_config.json", "{}")) | {"model_max_length": context}
            files["tokenizer_config.json"] = json.dumps(config, indent=2, ensure_ascii=False)
        for tokenizer in self.media.values():
            files[media_file(tokenizer.kind)] = json.dumps(tokenizer.to_json())
        put_weights(folder, self.media)
        for name, text in (files | {_OURS: json.dumps(ours, indent=2)}).items():
            aside = folder / f".{name}.{os.getpid()}"
            aside.write_text(text, encoding="utf-8")
            aside.replace(folder / name)

    def with_controls(self) -> Vocabulary:
        """This vocabulary with all of our control tokens: an imported one gets those it lacks, behind the ids of its tokenizer.

        Raises:
            UserError: it has blocks already, behind which no control token fits.
        """
        missing = [name for name in _NAMED if name not in self.controls]
        if not missing:
            return self
        if self.blocks:
            raise UserError(f"this vocabulary has blocks of media, but no control token {missing[0]}.")
        tree = json.loads(self.files["tokenizer.json"])
        first = 1 + max([*tree["model"]["vocab"].values(), *(token["id"] for token in tree["added_tokens"])])
        new = {name: first + i for i, name in enumerate(missing)}
        tree["added_tokens"] += _added_tokens(new)
        files = {**self.files, "tokenizer.json": json.dumps(tree, ensure_ascii=False)}
        return Vocabulary(files, {**self.controls, **new}, max(self.base_size, first + len(new)))

    def add_block(self, name: str, kind: Kind, size: int, fingerprint: str) -> Vocabulary:
        """This vocabulary with `size` more ids at its end, for the medium `kind`.

        Raises:
            UserError: the name or the kind has a block already, or there is no such medium.
        """
        if kind not in ("image", "video", "audio"):
            raise UserError(f"a block of ids is for image, video or audio, not for {kind}.")
        for block in self.blocks:
            if block.name == name or block.kind == kind:
                raise UserError(f"the vocabulary already has a block {block.name} for {block.kind}.")
        return replace(self, blocks=(*self.blocks, Block(name, kind, self.size, size, fingerprint)))

    def add_media(self, tokenizer: MediaTokenizer) -> Vocabulary:
        """This vocabulary with a block for the ids of a medium's tokenizer, which is saved beside it from now on.

        Raises:
            UserError: as `add_block`.
        """
        name = tokenizer.kind if any(b.name == tokenizer.name for b in self.blocks) else tokenizer.name
        grown = self.add_block(name, tokenizer.kind, tokenizer.size, tokenizer.fingerprint)
        return replace(grown, media={**self.media, tokenizer.kind: tokenizer})

    def block(self, kind: Kind) -> Block:
        """The ids of a medium.

        Raises:
            UserError: the model has not learned it.
        """
        found = next((block for block in self.blocks if block.kind == kind), None)
        if found is None:
            raise UserError(f"this vocabulary has no ids for {kind}; the model has not learned that medium.")
        return found

    def ids_of(self, kind: Kind) -> range:
        """The ids of a medium; none where the model has not learned it."""
        return next((range(b.offset, b.offset + b.size) for b in self.blocks if b.kind == kind), range(0))

    def media_tokenizer(self, kind: Kind) -> MediaTokenizer:
        """What turns the signal of a medium into ids and back.

        Raises:
            UserError: the model has not learned the medium, or its tokenizer's file is missing.
        """
        block = self.block(kind)
        if kind not in self.media:
            raise UserError(f"the tokenizer {block.name} for {kind} does not lie beside the model ({media_file(kind)}).")
        return self.media[kind]

    @property
    def size(self) -> int:
        """All ids: text, control, padding, blocks."""
        return self.base_size + sum(block.size for block in self.blocks)

    @cached_property
    def text_size(self) -> int:
        """Text entries. In a vocabulary trained here they are the ids 0 ... text_size - 1."""
        return len(self._text_entries)

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids of all control tokens."""
        return frozenset(self.controls.values())

    def control(self, name: str) -> int:
        """Id of a control token.

        Raises:
            UserError: this vocabulary has no such token (an imported one need not have all of ours).
        """
        if name not in self.controls:
            raise UserError(f"this vocabulary has no control token {name}.")
        return self.controls[name]

    @property
    def end_id(self) -> int:
        """`<|endoftext|>`, the end of a document."""
        return self.control(END)

    @property
    def pad_id(self) -> int:
        """`<|pad|>`, never learned."""
        return self.control(PAD)

    @property
    def end_turn_id(self) -> int:
        """`<|end_turn|>`, the end of a message."""
        return self.control(END_TURN)

    def encode(self, document: Document) -> TokenRecord:
        """Its ids and which of them are learned. Each segment is encoded by itself; no text becomes a control token.

        Raises:
            UserError: a control token or a medium that this vocabulary lacks, or media ids outside of their block.
        """
        parts = [self._encode_segment(segment) for segment in document.segments]
        ids, learn = ([part[side] for part in parts] for side in (0, 1))
        return TokenRecord(np.concatenate([np.empty(0, np.int32), *ids]), np.concatenate([np.empty(0, bool), *learn]))

    def encode_text(self, text: str) -> list[int]:
        """Ids of `text`, none of them a control token's. Lone surrogates, which UTF-8 cannot hold, count as U+FFFD."""
        # Not by `encode`, which holds the interpreter's lock: a long text would stop all other threads for seconds.
        [encoding] = self._text_tokenizer.encode_batch_fast([scalar_text(text)], add_special_tokens=False)
        return encoding.ids

    @cached_property
    def begin_ids(self) -> list[int]:
        """Ids that this tokenizer puts before every text, as Llama's does; none for those that are trained here."""
        return _put_first(json.loads(self.files["tokenizer.json"]).get("post_processor"))

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text that begins a row: `encode_text` behind `begin_ids`."""
        return [*self.begin_ids, *self.encode_text(text)]

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode_text` of many, faster: for each (T,) int32."""
        return [ids for batch in _batches(texts) for ids in self._encode_batch(batch)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> Document:
        """The document of `ids`: neighbours of one kind together, each control token by itself, media relative to their block.

        Padding ids are left out.

        Raises:
            UserError: an id that is not in the vocabulary.
        """
        array = self._checked(ids)
        kinds = self._kind_of_id[array]
        borders = np.flatnonzero((kinds[1:] != kinds[:-1]) | (kinds[1:] == _CONTROL)) + 1
        segments: list[Segment] = []
        for run in np.split(array, borders) if len(array) else []:
            kind = self._kind_of_id[run[0]]
            if kind == _TEXT:
                segments.append(Segment("text", self._text_of(run)))
            elif kind == _CONTROL:
                segments.append(Segment("control", self._control_names[int(run[0])]))
            elif kind != _PADDING:
                block = self.blocks[kind - _BLOCKS]
                segments.append(Segment(block.kind, run.astype(np.int64) - block.offset))
        return Document(tuple(segments))

    def decode_text(self, ids: Sequence[int] | np.ndarray) -> str:
        """Only the text of `ids`. Bytes that are not UTF-8 within a stretch of text read U+FFFD.

        Raises:
            UserError: an id that is not in the vocabulary.
        """
        return self.decode(ids).text

    def bytes_of(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes of the text ids in `ids`, whole characters or not; for showing text while it is being generated."""
        table = self._text_entries
        return b"".join([table.get(i, b"") for i in np.asarray(ids).tolist()])

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """(size,) int32: bytes of text that each id stands for; 0 for control tokens, padding and media."""
        counts = np.zeros(self.size, np.int32)
        for i, entry in self._text_entries.items():
            counts[i] = len(entry)
        return counts

    @cached_property
    def hash(self) -> str:
        """Hex SHA-256 of all that decides ids: the text model, the control tokens, the blocks. Kept by `save` and `load`."""
        tree, model = self._tree, self._tree["model"]
        facts = {
            "text": {key: model.get(key) for key in ("type", "vocab", "ignore_merges", "byte_fallback")},
            "merges": [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]],
            "rules": [tree.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")],
            "controls": dict(self.controls),
            "blocks": [asdict(block) for block in self.blocks],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _check_text(self, folder: Path) -> None:
        try:
            _ = self._text_tokenizer, self._text_entries
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{folder / 'tokenizer.json'} is not a tokenizer that can be used here: {error}.") from None

    @cached_property
    def _tree(self) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads(self.files["tokenizer.json"])
        return tree

    def _encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """ASCII texts word by word from memory where our own splitting rules hold, all others by the library on all cores."""
        plain = {i: self._ascii_words(text) for i, text in enumerate(texts) if text.isascii()} if self._ascii_words else {}
        rest = [text for i, text in enumerate(texts) if i not in plain]
        encodings = iter(self._text_tokenizer.encode_batch_fast(rest, add_special_tokens=False))
        memory = self._word_ids
        if len(memory) > _REMEMBERED_WORDS:
            memory.clear()
        new = list(set(chain.from_iterable(plain.values())).difference(memory))
        for word, encoding in zip(new, self._word_tokenizer.encode_batch_fast(new, add_special_tokens=False), strict=True):
            memory[word] = np.array(encoding.ids, np.int32).tobytes()
        return [
            np.frombuffer(bytearray().join([memory[word] for word in plain[i]]), np.int32)
            if i in plain
            else np.array(next(encodings).ids, np.int32)
            for i in range(len(texts))
        ]

    @cached_property
    def _ascii_words(self) -> Callable[[str], list[str]] | None:
        """Splits ASCII text as this tokenizer does, if it has one of our rules."""
        return ascii_splitter(self._tree.get("normalizer"), self._tree.get("pre_tokenizer"))

    @cached_property
    def _word_ids(self) -> dict[str, bytes]:
        """Ids, as the bytes of an int32 array, of the words met by `encode_texts`."""
        return {}

    @cached_property
    def _word_tokenizer(self) -> Tokenizer:
        """The text tokenizer for words that are split already."""
        tokenizer = Tokenizer.from_str(self._text_tokenizer.to_str())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return tokenizer

    def _encode_segment(self, segment: Segment) -> tuple[np.ndarray, np.ndarray]:
        """Ids, int32, and which of them are learned."""
        if segment.kind == "text":
            ids = np.array(self.encode_text(str(segment.content)), np.int32)
        elif segment.kind == "control":
            ids = np.array([self.control(str(segment.content))], np.int32)
        elif is_picture(segment):
            tokenizer, offset = self.media_tokenizer("image"), self.block("image").offset
            return encode_picture(self, np.asarray(segment.content), tokenizer, offset, segment.learn)
        elif is_film(segment):
            return encode_film(self, segment, self.media_tokenizer("video"), self.block("video").offset)
        elif is_sound(segment):
            return encode_sound(self, segment, self.media_tokenizer("audio"), self.block("audio").offset)
        else:
            block = self.block(segment.kind)
            ids = np.asarray(segment.content).reshape(-1)
            if len(ids) and not 0 <= ids.min() <= ids.max() < block.size:
                raise UserError(
                    f"{segment.kind} ids must lie in 0 ... {block.size - 1}, but run from {ids.min()} to {ids.max()}."
                )
            ids = (ids + block.offset).astype(np.int32)
        return ids, np.full(len(ids), segment.learn)

    def _checked(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        array = np.asarray(ids, np.int64).reshape(-1)
        if len(array) and not 0 <= array.min() <= array.max() < self.size:
            raise UserError(f"ids must lie in 0 ... {self.size - 1}, but run from {array.min()} to {array.max()}.")
        return array

    def _text_of(self, run: np.ndarray) -> str:
        text = self.bytes_of(run).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._leading_space else text

    @cached_property
    def _text_tokenizer(self) -> Tokenizer:
        """The tokenizer of `tokenizer.json` without its added tokens, so that it cannot produce them."""
        model = dict(self._tree["model"])
        # Some families list the control tokens among the entries too, where a whole word or a merge could reach one.
        reachable = {t for t, i in model["vocab"].items() if i in self.control_ids and t != model.get("unk_token")}
        if reachable:
            model["vocab"] = {t: i for t, i in model["vocab"].items() if t not in reachable}
            pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
            model["merges"] = [pair for pair in pairs if "".join(pair) not in reachable and reachable.isdisjoint(pair)]
        bare: dict[str, Any] = {"model": model, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        return Tokenizer.from_str(json.dumps(self._tree | bare))

    @cached_property
    def _text_entries(self) -> dict[int, bytes]:
        """Bytes of each text id."""
        entries = {i: token for token, i in self._tree["model"]["vocab"].items() if i not in self.control_ids}
        if _has_part(self._tree.get("decoder"), "ByteLevel"):
            alphabet = byte_alphabet()
            return {i: bytes(alphabet[character] for character in token) for i, token in entries.items()}
        # SentencePiece: U+2581 for the space, <0x0A> for bytes outside of its characters.
        byte_entries = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(BYTES)}
        return {i: byte_entries.get(token) or token.replace("\u2581", " ").encode() for i, token in entries.items()}

    @cached_property
    def _leading_space(self) -> bool:
        """Whether encoding puts a space before the text (SentencePiece), which decoding has to take away."""
        return _has_part(self._tree.get("decoder"), "Strip")

    @cached_property
    def _control_names(self) -> dict[int, str]:
        """Name of each control id; ours where it goes by an alias."""
        return {i: name for name, i in reversed(list(self.controls.items()))}

    @cached_property
    def _kind_of_id(self) -> np.ndarray:
        """(size,) int16: `_PADDING`, `_TEXT`, `_CONTROL`, or `_BLOCKS` + index of the block."""
        kinds = np.full(self.size, _PADDING, np.int16)
        kinds[list(self._text_entries)] = _TEXT
        kinds[list(self.control_ids)] = _CONTROL
        for index, block in enumerate(self.blocks):
            kinds[block.offset : block.offset + block.size] = _BLOCKS + index
        return kinds


_PADDING, _TEXT, _CONTROL, _BLOCKS = range(4)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(scalar_text(text))
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _added_tokens(controls: Mapping[str, int]) -> list[dict[str, Any]]:
    """As `tokenizer.json` lists control tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": name} | flags for name, i in controls.items()]


def _from_ours(ours: dict[str, Any], files: Mapping[str, str], folder: Path) -> Vocabulary:
    if ours["format"] != _FORMAT:
        raise UserError(f"{folder / _OURS} has format {ours['format']}, this version of Tessera reads {_FORMAT}.")
    vocabulary = Vocabulary(files, ours["controls"], ours["base_size"], tuple(Block(**block) for block in ours["blocks"]))
    if vocabulary.hash != ours["hash"]:
        raise UserError(f"tokenizer.json and {_OURS} in {folder} do not belong together; one of them was changed.")
    return vocabulary


def _from_imported(files: Mapping[str, str], folder: Path) -> Vocabulary:
    tree = json.loads(files["tokenizer.json"])
    if tree["model"].get("type") != "BPE":
        raise UserError(f"the tokenizer in {folder} is a {tree['model'].get('type')} model; only BPE is supported.")
    added = {token["content"]: token["id"] for token in tree["added_tokens"]}
    config = json.loads(files.get("tokenizer_config.json", "{}"))
    eos, pad = (_token_name(config.get(key)) for key in ("eos_token", "pad_token"))
    controls: dict[str, int] = {name: added[name] for name in CONTROLS if name in added}
    for name, aliases in _ALIASES.items():
        known = next((alias for alias in aliases if alias in added), None)
        if name not in controls and known:
            controls[name] = added[known]
    if END not in controls:
        end = added.get(eos) if eos else _configured_end(folder)
        if end is not None:
            controls[END] = end
    # A pad that is the end too would teach a model never to stop, so the configured one counts only if it is another token.
    if pad in added and (PAD not in controls or added[pad] != controls.get(END)):
        controls[PAD] = added[pad]
    elif PAD not in controls and END in controls:
        controls[PAD] = controls[END]
    base_size = 1 + max([*tree["model"]["vocab"].values(), *added.values()])
    return Vocabulary(files, controls | added, base_size)


def _configured_end(folder: Path) -> int | None:
    """The (first) end-of-text id of generation_config.json or config.json."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            value = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
            if value is not None:
                return int(value[0] if isinstance(value, list) else value)
    return None


def _token_name(value: Any) -> str:
    """A token of tokenizer_config.json, which is a name or an object that holds it."""
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")


def _has_part(tree: Any, kind: str) -> bool:
    """Whether a section of tokenizer.json is, or in a sequence holds, the part `kind`."""
    if isinstance(tree, dict):
        return tree.get("type") == kind or any(_has_part(value, kind) for value in tree.values())
    return isinstance(tree, list) and any(_has_part(value, kind) for value in tree)


def _put_first(part: Any) -> list[int]:
    """Ids that a section `post_processor` puts before a text."""
    if not isinstance(part, dict):
        return []
    if part.get("type") == "Sequence":
        return [id for inner in part["processors"] for id in _put_first(inner)]
    if part.get("type") != "TemplateProcessing":
        return []
    first = takewhile(lambda piece: "SpecialToken" in piece, part["single"])
    return [id for piece in first for id in part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]]
