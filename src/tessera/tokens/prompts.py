"""Prompts that are more than a text: the ids after which a model writes what is asked for."""

from __future__ import annotations

from tessera.tokens.vocabulary import Vocabulary


def fill_prompt(vocabulary: Vocabulary, prefix: str, suffix: str, room: int) -> list[int]:
    """Ids after which the model writes what belongs between two texts.

    The suffix comes first and the prefix in one piece with what is to be written (the variant of SPM of arXiv 2207.14255, section
    3, in whose frame half of the training documents are): to go on with what stands last is what a small model does best.

    Args:
        room: ids at most; what is farthest from the gap is left out, from both sides alike.

    Raises:
        UserError: the vocabulary has no tokens for it.
    """
    before, after = vocabulary.encode_text(prefix), vocabulary.encode_text(suffix)
    room = max(room - 3, 0)
    if len(before) + len(after) > room:
        take_after = min(len(after), max(room // 2, room - len(before)))
        after, before = after[:take_after], before[max(len(before) - (room - take_after), 0) :]
    head, behind, gap = (vocabulary.control(f"<|fim_{name}|>") for name in ("prefix", "suffix", "middle"))
    return [head, behind, *after, gap, *before]
