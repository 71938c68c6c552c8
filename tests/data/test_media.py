"""What a text tokenizer is trained on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tessera import recipe
from tessera.data.corpus import gather
from tessera.data.media import texts

from .conftest import quiet


def read(folder: Path, large: float | None, small: float | None, *more: str) -> Counter[str]:
    """How often each first word is met: of the large source, the small one, and what else there is."""
    for name, count in (("large", 40), ("small", 4)):
        (folder / name).mkdir(exist_ok=True)
        for number in range(count):
            words = " ".join(f"word{number * 31 + i}" for i in range(20))
            (folder / name / f"{number}.txt").write_text(f"{name} {words}\n", encoding="utf-8")
    sources = [
        recipe.Source(uri=f"files:{folder / 'large'}", weight=large),
        recipe.Source(uri=f"files:{folder / 'small'}", weight=small),
        *(recipe.Source(uri=uri, weight=large) for uri in more),
    ]
    data = recipe.Data(sources=tuple(sources), pictures=recipe.Pictures(views=1), validation_fraction=0.2, deduplicate="none")
    return Counter(text.split()[0] for text in texts(gather(data, folder / "cache", quiet), data, "train") if text.split())


def test_a_small_source_of_much_weight_is_read_again_and_again(tmp_path: Path) -> None:
    once = read(tmp_path, None, None)
    assert read(tmp_path, 1.0, None) == once, "not all of them have a weight"
    even = read(tmp_path, 0.5, 0.5)
    assert even["large"] == once["large"] and 8 * once["small"] <= even["small"] <= 12 * once["small"]
    most = read(tmp_path, 0.01, 0.99)
    assert most["small"] == 64 * once["small"]


def test_the_words_of_pictures_are_read_once(tmp_path: Path) -> None:
    alone, beside = read(tmp_path, None, None, "builtin:digits"), read(tmp_path, 0.5, 0.5, "builtin:digits")
    assert beside["a"] == alone["a"] > 100 and beside["small"] > 8 * alone["small"] > 0
