"""The id space: exact round trips, control tokens out of reach of text, ids that never move, files that other tools read."""

from __future__ import annotations

import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from tessera.errors import UserError
from tessera.tokens.document import Document, Segment
from tessera.tokens.text import train_bpe
from tessera.tokens.vocabulary import CONTROLS, Vocabulary

_ODD = ("\r\n", "\0", "\u200d", "👩‍👩‍👧", "e\u0301", "\ufeff", "   ", "<|", "|>", "<|user", "\u2028")
_PIECES = st.sampled_from([*CONTROLS, *_ODD])
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
TEXTS = st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), _PIECES)).map("".join)
SEGMENTS = st.one_of(
    st.builds(Segment, st.just("text"), TEXTS, st.booleans()),
    st.builds(Segment, st.just("control"), st.sampled_from(CONTROLS), st.booleans()),
    st.builds(Segment, st.just("image"), st.lists(st.integers(0, 15), max_size=6).map(np.array), st.booleans()),
    st.builds(Segment, st.just("audio"), st.lists(st.integers(0, 7), max_size=6).map(np.array), st.booleans()),
)


def with_media(vocabulary: Vocabulary) -> Vocabulary:
    return vocabulary.add_block("palette", "image", 16, "f1").add_block("voice", "audio", 8, "f2")


def merged(document: Document) -> list[tuple[str, object]]:
    """Segments as a decoded document has them: no empty ones, neighbours of a kind (but for control tokens) joined."""
    out: list[tuple[str, object]] = []
    for s in document.segments:
        content = s.content if isinstance(s.content, str) else tuple(int(i) for i in s.content.reshape(-1))
        if not content:
            continue
        if out and out[-1][0] == s.kind != "control":
            out[-1] = (s.kind, out[-1][1] + content)  # type: ignore[operator]
        else:
            out.append((s.kind, content))
    return out


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_text_comes_back_and_never_holds_a_control_id(vocabulary: Vocabulary, text: str) -> None:
    ids = vocabulary.encode_text(text)
    assert vocabulary.decode_text(ids) == text
    assert vocabulary.control_ids.isdisjoint(ids)
    assert max(ids, default=0) < vocabulary.text_size
    assert vocabulary.token_bytes[ids].sum() == len(text.encode())


@settings(max_examples=100, deadline=None)
@given(segments=st.lists(SEGMENTS, max_size=8))
def test_documents_come_back_segment_by_segment(vocabulary: Vocabulary, segments: list[Segment]) -> None:
    document = Document(tuple(segments))
    record = with_media(vocabulary).encode(document)
    assert (record.ids.dtype, record.learn.dtype) == (np.int32, np.bool_)
    assert len(record.ids) == len(record.learn)
    assert merged(with_media(vocabulary).decode(record.ids)) == merged(document)


def test_all_languages_come_back(vocabulary: Vocabulary, languages: list[str]) -> None:
    assert len(languages) == 388
    beginnings = [text[:4000] for text in languages]
    for text, ids in zip(beginnings, vocabulary.encode_texts(beginnings), strict=True):
        assert ids.dtype == np.int32
        assert vocabulary.decode_text(ids) == text


def test_many_texts_get_the_ids_that_one_gets(vocabulary: Vocabulary) -> None:
    texts = ["", "def f():\r\n\treturn 'é'\n", "<|user|>", "  \n \n", "a\ud800"]
    assert [ids.tolist() for ids in vocabulary.encode_texts(texts)] == [vocabulary.encode_text(t) for t in texts]


def test_ascii_texts_get_the_same_ids_on_the_fast_path(vocabulary: Vocabulary) -> None:
    letters = [chr(c) for c in range(128)]
    kinds = [*"aZ07'sRELdvm.\"", " ", "  ", "\n", "\r", "\t", "\x0b", "\x1c", "\x00"]
    texts = ["".join(f"{a}{b}" for b in letters) for a in letters]
    texts += [f"{a}{b}{c}{d}" for a in kinds for b in kinds for c in kinds[::2] for d in kinds[1::3]]
    assert [ids.tolist() for ids in vocabulary.encode_texts(texts)] == [vocabulary.encode_text(t) for t in texts]


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(max_codepoint=127), max_size=60))
def test_any_ascii_text_gets_the_same_ids_on_the_fast_path(vocabulary: Vocabulary, text: str) -> None:
    assert vocabulary.encode_texts([text])[0].tolist() == vocabulary.encode_text(text)


def test_ids_lie_text_first_then_controls_then_blocks(vocabulary: Vocabulary) -> None:
    assert len(CONTROLS) == len(set(CONTROLS)) == 64
    assert vocabulary.text_size == 600 and vocabulary.size == 664
    assert [vocabulary.control(name) for name in CONTROLS] == list(range(600, 664))
    assert (vocabulary.end_id, vocabulary.pad_id, vocabulary.end_turn_id) == (600, 601, 607)
    media = with_media(vocabulary)
    assert [(b.name, b.offset, b.size) for b in media.blocks] == [("palette", 664, 16), ("voice", 680, 8)]
    assert media.size == 688 and vocabulary.size == 664
    text = "the same ids"
    assert media.encode_text(text) == vocabulary.encode_text(text)
    assert media.token_bytes.shape == (688,) and not media.token_bytes[600:].any()


def test_learn_follows_the_segments(vocabulary: Vocabulary) -> None:
    record = vocabulary.encode(Document((Segment("control", "<|user|>", False), Segment("text", "ab", True))))
    assert record.learn.tolist() == [False] + [True] * (len(record) - 1)
    assert len(vocabulary.encode(Document(()))) == 0


def test_broken_utf8_and_pieces_of_a_character(vocabulary: Vocabulary) -> None:
    alone = Vocabulary.train([], 256, "gpt-2")
    ids = alone.encode_text("é€")
    assert len(ids) == 5
    assert alone.decode_text(ids[:1]) == "\ufffd" and alone.decode_text(ids[:2]) == "é"
    assert alone.bytes_of(ids[:3]) == b"\xc3\xa9\xe2"
    assert alone.decode_text([ids[0], alone.end_id, ids[1]]) == "\ufffd\ufffd"
    assert alone.decode_text([*ids, alone.end_turn_id]) == "é€"


def test_what_cannot_be_encoded_or_decoded_is_refused(vocabulary: Vocabulary) -> None:
    media = with_media(vocabulary)
    for bad in (
        Segment("control", "<|nonsense|>"),
        Segment("video", np.array([1])),
        Segment("image", np.array([16])),
        Segment("image", np.array([-1])),
    ):
        with pytest.raises(UserError):
            media.encode(Document((bad,)))
    for ids in ([media.size], [-1]):
        with pytest.raises(UserError):
            media.decode(ids)
    with pytest.raises(UserError):
        media.add_block("other", "image", 4, "")
    with pytest.raises(UserError):
        media.add_block("letters", "text", 4, "")


def test_save_and_load_keep_everything(vocabulary: Vocabulary, tmp_path: Path) -> None:
    media = with_media(vocabulary)
    media.save(tmp_path, context=512)
    again = Vocabulary.load(tmp_path)
    assert (again.hash, again.size, again.blocks, again.controls) == (media.hash, media.size, media.blocks, media.controls)
    assert media.hash != vocabulary.hash
    assert again.encode_text("def f(x):") == media.encode_text("def f(x):")
    assert pickle.loads(pickle.dumps(again)).encode_text("é") == media.encode_text("é")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 512
    assert not list(tmp_path.glob(".*"))
    names = {token["content"] for token in json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]}
    assert names == set(CONTROLS)


def test_broken_folders_are_one_sentence(vocabulary: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        Vocabulary.load(tmp_path)
    vocabulary.save(tmp_path)
    with pytest.raises(UserError, match="only 10 rows"):
        Vocabulary.load(tmp_path, model_vocab_size=10)
    page = json.loads((tmp_path / "vocabulary.json").read_text())
    for change in ({"controls": page["controls"] | {"<|user|>": 3}}, {"format": 99}, {"blocks": 3}):
        (tmp_path / "vocabulary.json").write_text(json.dumps(page | change))
        with pytest.raises(UserError):
            Vocabulary.load(tmp_path)
    (tmp_path / "vocabulary.json").unlink()
    for text in ("{", "{}", '{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(UserError):
            Vocabulary.load(tmp_path)


@pytest.mark.parametrize("model_type", [None, "qwen3", "llama"])
def test_transformers_gives_the_same_ids(
    vocabulary: Vocabulary, tmp_path: Path, model_type: str | None, languages: list[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary.save(tmp_path, context=512)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": vocabulary.size}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.model_max_length) == (vocabulary.end_id, vocabulary.pad_id, 512)
    assert len(theirs) == vocabulary.size
    for text in [*(text[:500] for text in languages[::4]), "e\u0301 \r\n\0\t👩‍👩‍👧 it's IT'S 1234 .", "  a  b\n\n c"]:
        ids = vocabulary.encode_text(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    # What docs/tokens.md says of text that spells a control token: they read the token, we read the characters.
    assert theirs("a<|user|>")["input_ids"] == [*vocabulary.encode_text("a"), vocabulary.control("<|user|>")]
    assert vocabulary.decode_text(vocabulary.encode_text("a<|user|>")) == "a<|user|>"


def imported(folder: Path, added: list[tuple[str, bool]], config: dict[str, object]) -> Path:
    tokenizer = train_bpe(["hello hello <think> <|im_end|>"] * 3, 270, "qwen2")
    tokenizer.add_tokens([AddedToken(name, special=special, normalized=False) for name, special in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_qwen3_style_folder_loads(tmp_path: Path) -> None:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>")
    added = [*((name, True) for name in special), ("<think>", False), ("</think>", False)]
    imported(tmp_path, added, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    v = Vocabulary.load(tmp_path, model_vocab_size=320)
    n = v.text_size
    assert (v.end_id, v.end_turn_id, v.pad_id, v.control("<|think|>")) == (n, n + 2, n + 3, n + 4)
    assert v.size == 320 and v.decode_text([310]) == ""
    text = "hello <think> <|im_end|><|im_start|>"
    assert v.decode_text(v.encode_text(text)) == text and v.control_ids.isdisjoint(v.encode_text(text))
    with pytest.raises(UserError, match=r"<\|user\|>"):
        v.control("<|user|>")
    document = Document((Segment("control", "<|im_start|>"), Segment("text", "hi"), Segment("control", "<|im_end|>")))
    assert [s.content for s in v.decode(v.encode(document).ids).segments] == ["<|im_start|>", "hi", "<|end_turn|>"]
    grown = v.add_block("palette", "image", 4, "f")
    grown.save(tmp_path / "again")
    again = Vocabulary.load(tmp_path / "again", model_vocab_size=324)
    assert again.blocks[0].offset == 320 and again.hash == grown.hash and again.controls == grown.controls
    assert (tmp_path / "again" / "tokenizer.json").read_text() == (tmp_path / "tokenizer.json").read_text()


def test_llama3_style_folder_takes_its_ends_from_names_and_settings(tmp_path: Path) -> None:
    added = [("<|begin_of_text|>", True), ("<|end_of_text|>", True), ("<|eot_id|>", True), ("<|reserved_special_token_0|>", True)]
    v = Vocabulary.load(imported(tmp_path, added, {"eos_token": {"content": "<|eot_id|>"}}))
    assert [v.end_id - v.text_size, v.end_turn_id - v.text_size, v.pad_id - v.text_size] == [1, 2, 3]
    other = tmp_path / "other"
    other.mkdir()
    imported(other, [("<stop>", True)], {})
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": [270]}))
    v = Vocabulary.load(other)
    assert v.end_id == v.pad_id == v.control("<stop>") == 270


def test_control_tokens_among_the_entries_stay_out_of_reach(tmp_path: Path) -> None:
    tokenizer = train_bpe([], 256, "gpt-2")
    tree = json.loads(tokenizer.to_str())
    tree["model"]["vocab"] |= {"<|": 256, "<|im_end|>": 257}
    tree["model"]["merges"] = [["<", "|"]]
    tree["model"]["ignore_merges"] = True
    tree["added_tokens"] = [{"id": 257, "content": "<|im_end|>"} | FLAGS]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    v = Vocabulary.load(tmp_path)
    assert v.end_turn_id == 257 and v.text_size == 257
    assert 257 not in v.encode_text("<|im_end|>") and v.decode_text(v.encode_text("<|im_end|>")) == "<|im_end|>"


def test_sentencepiece_style_text_comes_back(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581", "h", "i", "\u2581h", "\u2581hi"]
    merges = [("\u2581", "h"), ("\u2581h", "i")]
    model = models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tree = json.loads(Tokenizer(model).to_str())
    tree["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ],
    }
    tree["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    tree["added_tokens"] = [{"id": i, "content": pieces[i]} | FLAGS for i in range(3)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    v = Vocabulary.load(tmp_path)
    assert v.end_id == 2
    for text in ("hi hi", "é 語", " hi", "</s>"):
        assert v.decode_text(v.encode_text(text)) == text
        assert v.control_ids.isdisjoint(v.encode_text(text))


def test_other_threads_go_on_while_a_long_text_is_encoded(vocabulary: Vocabulary) -> None:
    with ThreadPoolExecutor(1) as threads:
        encoding = threads.submit(vocabulary.encode_text, "words and words " * 40_000)
        turns = 0
        while not encoding.done():
            turns += 1
            time.sleep(0.001)
    assert turns > 5 and len(encoding.result()) > 40_000
