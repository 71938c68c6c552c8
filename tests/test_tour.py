"""The tour is plain data: nine requests, of taught functions, of digits and pairs that stand in no training data."""

from __future__ import annotations

import pytest

from tessera.data.builtin_functions import HELD_OUT, KEPT, MADE, TAUGHT
from tessera.data.builtin_pictures import NUMBERS, digit_arrays, digit_pixels
from tessera.tour import STEPS, askings

by_name = {step.name: step for step in STEPS}


def test_it_has_nine_requests_and_the_sum_is_asked_with_two_efforts() -> None:
    assert len(STEPS) == len(by_name) == 9
    assert [step.effort for step in STEPS if step.kind == "chat"] == ["low", "high"]
    assert by_name["sum-low"].prompt == by_name["sum-high"].prompt


@pytest.mark.parametrize(
    ("name", "combination"), [("complete", ("sum", "squares", "even")), ("fill", ("largest", "doubles", "odd"))]
)
def test_its_functions_are_taught_and_not_held_out(name: str, combination: tuple[str, str, str]) -> None:
    assert combination in TAUGHT and combination not in HELD_OUT
    words = MADE[combination[1]].words[0] + KEPT[combination[2]].words[0]
    assert words in by_name[name].prompt


def test_each_seed_looks_at_another_held_out_digit() -> None:
    levels, labels = digit_arrays("test")
    asked = [askings(by_name["look"], seed)[0] for seed in range(20)]
    assert len({one.picture.tobytes() for one in asked if one.picture is not None}) == 20
    for number, one in enumerate(asked):
        assert one.picture is not None and (one.picture == digit_pixels(levels[number])).all()
        assert one.right == NUMBERS[labels[number]]


def test_two_answers_are_compared_in_both_orders_and_no_order_always_comes_first() -> None:
    asked = [askings(by_name["judge"], seed) for seed in range(20)]
    assert asked == [askings(by_name["judge"], seed) for seed in range(20)]
    assert {first.right for first, _ in asked} == {"A", "B"}
    for first, second in asked:
        head, _, rest = first.prompt.partition("\nA: ")
        a, _, b = rest.partition("\nB: ")
        assert second.prompt == f"{head}\nA: {b}\nB: {a}" and {first.right, second.right} == {"A", "B"}
    assert len({first.prompt for first, _ in asked}) == 20


def test_a_step_asked_again_is_asked_the_same_way() -> None:
    for step in STEPS:
        if step.kind not in ("look", "judge"):
            assert askings(step, 0) == askings(step, 7) and askings(step, 0)[0].prompt == step.prompt
