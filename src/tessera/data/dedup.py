"""Which documents repeat an earlier one: byte for byte, or nearly.

Near-duplicates are found by MinHash with locality-sensitive hashing over shingles of five words (Broder 1997; as in
arXiv 2107.06499, which measures what repeated text costs a language model). The first of a group is kept.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

import rensa

# A CJK character counts as a word: these scripts write no spaces.
_WORD = re.compile(r"[^\W\u3040-\u9fff]+|[\u3040-\u9fff]")
_SHINGLE_WORDS = 5
# Fewer shingles than this say too little to call two documents nearly the same.
_FEWEST_SHINGLES = 8
_SIMILARITY = 0.8
_PERMUTATIONS = 128
# The index compares only sketches of its own seed, and this one is fixed in the library.
_SEED = 42


class Deduplicator:
    """Remembers what it has seen: 16 bytes per document, and a sketch of 512 bytes where near-duplicates count.

    Args:
        mode: `none`, `exact`, or `near`, which is exact and Jaccard similarity of 5-word shingles above 0.8.
    """

    def __init__(self, mode: Literal["none", "exact", "near"]) -> None:
        self.mode = mode
        self._digests: set[bytes] = set()
        self._sketches = rensa.RMinHashDeduplicator(threshold=_SIMILARITY, num_perm=_PERMUTATIONS, use_lsh=True)

    def seen(self, text: str, alike: bool = True) -> Literal["exact", "near"] | None:
        """Whether an earlier document had this text or, where `alike` counts too, nearly so; if neither, it is remembered."""
        if self.mode == "none":
            return None
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if digest in self._digests:
            return "exact"
        self._digests.add(digest)
        if self.mode == "near" and alike:
            words = _WORD.findall(text)
            shingles = [" ".join(words[i : i + _SHINGLE_WORDS]) for i in range(len(words) - _SHINGLE_WORDS + 1)]
            if len(shingles) >= _FEWEST_SHINGLES:
                sketch = rensa.RMinHash(num_perm=_PERMUTATIONS, seed=_SEED)
                sketch.update(shingles)
                if not self._sketches.add(digest.hex(), sketch):
                    return "near"
        return None
