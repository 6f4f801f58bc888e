"""Scratch slots, on live ranges alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxhash.lowering.memory import color_slots, slot_sizes

ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10), st.integers(1, 100)), max_size=25)


def overlap(one, other):
    return one[0] <= other[1] and other[0] <= one[1]


@given(ranges)
def test_values_of_one_slot_are_never_live_together(drawn):
    live = {f"weight_{index}": (first, first + length) for index, (first, length, _) in enumerate(drawn)}
    sizes = {f"weight_{index}": size for index, (_, _, size) in enumerate(drawn)}
    slots = color_slots(live, sizes)
    assert slots.keys() == live.keys()
    for one in live:
        for other in live:
            assert one == other or slots[one] != slots[other] or not overlap(live[one], live[other])
    slot_bytes = slot_sizes(slots, sizes)
    assert sorted({*slots.values()}) == list(range(len(slot_bytes)))
    assert list(slot_bytes) == sorted(slot_bytes, reverse=True)
    assert all(sizes[value] <= slot_bytes[slot] for value, slot in slots.items())
    # What is live at one position can't take less than it is, nor do slots ever take more than memory for each value.
    live_at = [sum(sizes[value] for value in live if overlap(live[value], (now, now))) for now in range(51)]
    assert max(live_at) <= sum(slot_bytes) <= sum(sizes.values())


@pytest.mark.parametrize(
    ("live", "sizes", "least"),
    [
        ({"a": (5, 6), "b": (0, 0), "c": (0, 0)}, {"a": 20, "b": 1, "c": 20}, 21),
        ({"a": (1, 4), "b": (5, 6), "c": (4, 6), "d": (0, 1)}, {"a": 10, "b": 20, "c": 10, "d": 10}, 30),
    ],
    ids=["adaptive", "by start"],
)
def test_the_order_that_takes_less_memory_is_chosen(live, sizes, least):
    assert sum(slot_sizes(color_slots(live, sizes), sizes)) == least


def test_the_same_slots_in_every_process():
    live = dict.fromkeys("dbca", (0, 1))
    assert color_slots(live, dict.fromkeys(live, 4)) == {"a": 0, "b": 1, "c": 2, "d": 3}
