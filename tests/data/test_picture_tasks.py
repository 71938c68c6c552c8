"""What captioned pictures teach, how they are stored, and that a run with them goes on to the bit."""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tessera import recipe
from tessera.data import picture_tasks
from tessera.data.builtin_pictures import digits
from tessera.data.corpus import gather
from tessera.data.loader import Loader, validation_batches
from tessera.data.media import texts, with_palette
from tessera.data.picture_tasks import TURNS, held_out_documents, least_context, task_documents
from tessera.data.pictures import captioned
from tessera.data.shards import tokenise
from tessera.errors import UserError
from tessera.tokens.document import Document
from tessera.tokens.pictures import QUESTION, find_pictures, pictures_of
from tessera.tokens.vocabulary import Vocabulary

SOME = [d for d, _ in zip(digits(), range(40), strict=False)]


def kind(document: Document) -> str:
    pictures = pictures_of(document)
    if len(pictures) == 2:
        return "edit" if pictures[0].shape[2] == 4 else "vary"
    return "see" if document.segments[-1].kind == "text" else "draw"


def test_tasks_come_in_their_shares_and_depend_on_picture_and_seed_alone() -> None:
    settings = recipe.Pictures(tasks=recipe.Tasks(draw=0.4, see=0.3, edit=0.2, vary=0.1))
    made = list(task_documents(SOME, settings, 0, 20, None))
    counts = Counter(map(kind, made))
    for task, share in {"draw": 0.4, "see": 0.3, "edit": 0.2, "vary": 0.1}.items():
        # The first picture of a caption has none to be varied from.
        assert abs(counts[task] / len(made) - share) < 0.07
    again = list(task_documents(SOME[7:8], recipe.Pictures(tasks=recipe.Tasks(vary=0)), 0, 5, None))
    alone = list(task_documents(SOME[:9], recipe.Pictures(tasks=recipe.Tasks(vary=0)), 0, 5, None))[35:40]
    assert [d.text for d in again] == [d.text for d in alone]
    assert [d.text for d in again] != [d.text for d in task_documents(SOME[7:8], settings, 1, 5, None)]


def test_a_tenth_of_the_captions_is_dropped_and_captions_to_draw_by_are_not_learned() -> None:
    settings = recipe.Pictures(tasks=recipe.Tasks(draw=1, see=0, edit=0, vary=0))
    made = list(task_documents(SOME, settings, 0, 50, None))
    assert 0.07 < np.mean([len(d.segments) == 1 for d in made]) < 0.13
    assert all(s.learn == (s.kind == "image") for d in made for s in d.segments)


def test_an_edit_shows_the_picture_but_for_a_hole_and_learns_all_of_it() -> None:
    settings = recipe.Pictures(tasks=recipe.Tasks(draw=0, see=0, edit=1, vary=0))
    for document in task_documents(SOME, settings, 0, 3, None):
        hidden, whole = pictures_of(document)
        shown = hidden[..., 3] == 255
        assert 0.04 <= 1 - shown.mean() <= 1 and (hidden[shown][:, :3] == whole[shown]).all()
        assert [s.learn for s in document.segments if s.kind == "image"] == [False, True]


def test_a_variation_is_another_picture_of_the_same_caption() -> None:
    settings = recipe.Pictures(tasks=recipe.Tasks(draw=0, see=0, edit=0, vary=1))
    captions = {d.segments[1].content.tobytes(): d.segments[0].content for d in SOME}  # type: ignore[union-attr]
    varied = [pictures_of(d) for d in task_documents(SOME, settings, 0, 2, None) if kind(d) == "vary"]
    assert len(varied) > 20
    for source, target in varied:
        assert captions[source.tobytes()] == captions[target.tobytes()] and (source != target).any()


def test_a_transformed_picture_says_so_first_and_turns_back_into_itself() -> None:
    settings = recipe.Pictures(transformed=1, caption_dropout=1, tasks=recipe.Tasks(draw=1, see=0, edit=0, vary=0))
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4, 1).repeat(3, 2)
    seen = set()
    for document in task_documents([captioned(pixels, "", [], "x")], settings, 0, 400, None):
        said = str(document.segments[0].content).rstrip(":") if document.segments[0].kind == "text" else ""
        (changed,) = pictures_of(document)
        turn = next((t for t in said.split(", ") if t in TURNS), "")
        assert changed.shape == np.asarray(TURNS[turn](pixels)).shape
        assert sorted(changed.ravel()) == sorted(pixels.ravel())
        if "moved" not in said:
            assert (changed == TURNS[turn](pixels)).all()
            seen.add(turn)
    assert seen == set(TURNS)


def test_held_out_pictures_are_measured_whole_and_as_they_are() -> None:
    made = list(held_out_documents(SOME[:3], recipe.Pictures(transformed=1), 0))
    assert [kind(d) for d in made] == ["draw", "see"] * 3
    assert all((pictures_of(d)[0] == pictures_of(s)[0]).all() for d, s in zip(made[::2], SOME[:3], strict=True))
    assert made[1].segments[1].content == QUESTION and made[1].segments[0].learn


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    cache = tmp_path_factory.mktemp("pictures")
    text = cache / "text"
    text.mkdir()
    for i in range(8):
        (text / f"{i}.txt").write_text(f"Page {i} of a book about boats and harbours, number {i * 7}.\n" * 9)
    data = recipe.Data(
        sources=("builtin:digits", f"files:{text}"), pictures=recipe.Pictures(views=2, transformed=0.5), document_mask=True
    )
    corpus = gather(data, cache, lambda line: None)
    vocabulary = with_palette(Vocabulary.train(texts(corpus, data, "train"), 400), corpus, data, lambda line: None)
    return data, corpus, vocabulary, cache, tokenise(corpus, vocabulary, data, cache, lambda line: None, 192)


def test_digits_go_into_token_files_and_come_back(prepared) -> None:  # type: ignore[no-untyped-def]
    _, corpus, vocabulary, _, shards = prepared
    assert corpus.pictures == 1497 and vocabulary.block("image").size == 17
    tokens = shards.sources[0].train
    assert len(tokens.offsets) - 1 == 2 * corpus.sources[0].documents - 2 * sum(1 for _ in corpus.documents("validation", 0))
    originals = {p.tobytes() for d in corpus.documents("validation", 0) for p in pictures_of(d)}
    held = shards.sources[0].validation
    found = find_pictures(vocabulary, held.ids)
    assert {p.tobytes() for p in found} == originals and len(found) == 2 * len(originals)


def test_held_out_rows_never_cut_a_picture(prepared) -> None:  # type: ignore[no-untyped-def]
    _, _, vocabulary, _, shards = prepared
    begin, end = vocabulary.control("<|image|>"), vocabulary.control("<|/image|>")
    for batch in validation_batches(shards, 192, 4, 10_000, True, whole=True):
        for row in batch.ids:
            assert (row == begin).sum() == (row == end).sum()


def test_batches_with_pictures_and_text_go_on_bitwise_after_a_stop(prepared) -> None:  # type: ignore[no-untyped-def]
    data, _, vocabulary, _, shards = prepared

    def loader() -> Loader:
        return Loader(shards, data, 192, 4, 0)

    straight, stopped = loader(), loader()
    batches = [straight.next() for _ in range(12)]
    for _ in range(5):
        stopped.next()
    resumed = loader()
    resumed.restore(stopped.state())
    for wanted in batches[5:]:
        found = resumed.next()
        assert (found.ids == wanted.ids).all() and (found.learn == wanted.learn).all()
        assert (found.documents == wanted.documents).all()
    assert any((b.ids == vocabulary.control("<|image|>")).any() for b in batches)


def test_what_does_not_fit_is_left_out_and_said(prepared) -> None:  # type: ignore[no-untyped-def]
    data, corpus, vocabulary, cache, shards = prepared
    said: list[str] = []
    small = tokenise(corpus, vocabulary, data, cache, said.append, 82)
    assert any("left out" in line and "train.context=82" in line for line in said)
    assert np.diff(small.sources[0].train.offsets).max() <= 83
    assert small.hash != shards.hash


def test_rows_are_long_enough_for_the_longest_task() -> None:
    settings = recipe.Pictures()
    single = settings.model_copy(update={"tasks": recipe.Tasks(draw=1, see=0, edit=0, vary=0)})
    assert least_context(SOME, single) == 96 < least_context(SOME, settings) == 192
    assert least_context([Document.of_text("no picture")], settings) == 0


def test_a_recipe_without_pictures_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train draw, see or pixels"):
        gather(recipe.Data(sources=("builtin:digits",)), tmp_path, lambda line: None)


@pytest.mark.parametrize(
    ("vary", "remembered", "most"),
    [(0.0, 256 << 20, 2), (0.05, 30, 4)],
    ids=["none where none is varied", "only so many bytes"],
)
def test_pictures_are_remembered(vary: float, remembered: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_tasks, "_REMEMBERED", remembered)
    seen: list[weakref.ref[np.ndarray]] = []

    def pictures() -> Iterator[Document]:
        for number in range(20):
            pixels = np.full((2, 2, 3), number, np.uint8)
            seen.append(weakref.ref(pixels))
            yield captioned(pixels, f"picture {number}", [], str(number))

    settings = recipe.Pictures(tasks=recipe.Tasks(draw=1, see=0, edit=0, vary=vary))
    made = task_documents(pictures(), settings, 0, 1, None)
    assert [len(document.segments) for document in itertools.islice(made, 20)] and sum(ref() is not None for ref in seen) <= most


def test_pictures_without_a_caption_are_not_varied_into_each_other() -> None:
    strangers = [captioned(np.full((2, 2, 3), number, np.uint8), "", [], str(number)) for number in range(20)]
    settings = recipe.Pictures(tasks=recipe.Tasks(draw=0.01, see=0, edit=0, vary=0.99))
    assert {kind(d) for d in task_documents(strangers, settings, 0, 4, None)} == {"draw"}
