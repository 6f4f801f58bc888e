"""A transformed model does what the original does, or fxhash says that it can't: never something else in silence.

The contract, for any model, any way of `fxhash.transform` (traced; traced and checked on `example_inputs`; with
`capture="modules"`), as the transformed model in train and in eval mode, and lowered:

- The original, built anew and given the materialized weights, is called beside it with the same inputs in a row, under
  the same seeds. Each call gives the same output up to rounding, leaves the same behind in its inputs, buffers and
  state, and raises where the original raises.
- Or an `FxhashError` is raised, by `transform`, by `lower_for_deploy` or by a call. No other exception.
- Gradients of the inputs are the same, and reach the factors of each weight that has one in the original.
- The original is as it was: its parameters have no gradient, its state is untouched, and none of its parameters, nor
  its memory, can be reached from the transformed model. What lies outside of the model, such as a global list, is as it
  was before `transform`.

The models of `tests/odd`, each named for what is odd about it, and random combinations of such statements are held to
it. What a trace must follow, so that not everything is refused, is at the end.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import pytest
from hypothesis import given, note, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxhash
from tests.capture.reasons import reasons
from tests.helpers import may_be_opaque, skip_unless_sizes_are_recorded
from tests.odd import ODD, Inputs, Odd
from tests.odd.contract import WAYS, Refused, assert_faithful, built, transformed
from tests.odd.drawn import drawn_sources, executed
from tests.odd.ordinary import ORDINARY
from tests.odd.ownership import originals_reached

# The compiler's own, of inputs that are no leaves.
pytestmark = [
    may_be_opaque,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    # Of `float(x)`: raised once a process as an error, it would be what a forward catches.
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad"),
]

every_way = pytest.mark.parametrize("way", WAYS)
OUTSIDE = {name: odd for name, odd in ODD.items() if odd.outside}


# What docs/limits.md names: a trace takes settings of the process and plain variables of a module as they are, and
# what a function closes over belongs to the original and its copies alike.
LIMITS = {
    **dict.fromkeys(["MakesTensorOfDefaultDtype", "AsksForEnvironment", "ReadsGlobalSetting"], ("traced", "checked")),
    **dict.fromkeys(["forward_hook_counts", "CountsInClosure"], WAYS),
}


def _cases() -> list[object]:
    """Each model in each way; in the quick suite each model in one of them, in turn."""
    return [
        pytest.param(odd, way, id=f"{name}-{way}", marks=[pytest.mark.slow] if (i + j) % 3 else [])
        for i, (name, odd) in enumerate(ODD.items())
        for j, way in enumerate(WAYS)
        if way not in LIMITS.get(name, ())
    ]


@pytest.mark.parametrize(("odd", "way"), _cases())
def test_equal_or_refused(odd: Odd, way: str):
    assert_faithful(odd, way)


@every_way
@pytest.mark.parametrize("odd", OUTSIDE.values(), ids=OUTSIDE)
def test_what_lies_outside_is_as_before(odd: Odd, way: str):
    model = built(odd)
    odd.reset()
    before = odd.outside()
    with suppress(Refused):
        transformed(odd, model, way)
    after = odd.outside()
    odd.reset()
    assert after == before


def _assert_drawn_is_faithful(drawn: tuple[str, bool], way: str) -> None:
    source, found = drawn
    note(source)
    assert_faithful(executed(source, found), way)


@seed(0)
@settings(max_examples=60, database=None)
@given(drawn_sources(), st.sampled_from(WAYS))
def test_combinations_are_equal_or_refused(drawn: tuple[str, bool], way: str):
    _assert_drawn_is_faithful(drawn, way)


@pytest.mark.slow
@seed(1)
@settings(max_examples=1000, database=None)
@given(drawn_sources(), st.sampled_from(WAYS))
def test_many_combinations_are_equal_or_refused(drawn: tuple[str, bool], way: str):
    _assert_drawn_is_faithful(drawn, way)


@pytest.mark.parametrize("way", ["traced", "checked"])
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_models_are_traced(name: str, way: str):
    if name in ("SizesAsArguments", "ChangesAFreshTensorOfSizes", "AsksForRowsByIndex"):
        skip_unless_sizes_are_recorded()
    kind, inputs = ORDINARY[name]
    options = {"example_inputs": inputs()} if way == "checked" else {}
    gm = fxhash.transform(kind(), 1.0, **options)
    assert reasons(gm) == {}
    assert gm(*inputs()) is not None


# Of the tests themselves.


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_models_run(odd: Odd):
    """Each model runs, in both modes; if it raises for some inputs, then not for the first."""
    model = built(odd)
    for mode in (True, False):
        odd.reset()
        model.train(mode)
        first, *_ = odd.calls(Inputs())
        with first.context():
            model(*first.args, **first.kwargs)
    odd.reset()


class _Slotted:
    __slots__ = ("weight",)

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight


def _function_with_default(weight: Tensor) -> Callable[[], Tensor]:
    def function(kept: Tensor = weight) -> Tensor:
        return kept

    return function


HIDING_PLACES: dict[str, Callable[[nn.Linear], object]] = {
    "list": lambda layer: [[layer.weight]],
    "dict": lambda layer: {"w": {1: layer.weight}},
    "key": lambda layer: {layer: 1},
    "set": lambda layer: {layer.weight},
    "deque": lambda layer: deque([layer.weight]),
    "object": lambda layer: SimpleNamespace(inner=SimpleNamespace(w=layer.weight)),
    "slots": lambda layer: _Slotted(layer.weight),
    "closure": lambda layer: lambda: layer.weight,
    "default": lambda layer: _function_with_default(layer.weight),
    "partial": lambda layer: partial(print, layer.weight),
    "bound method": lambda layer: layer.forward,
    "bound method of a tensor": lambda layer: layer.weight.add,
    "weak reference": lambda layer: weakref.ref(layer.weight),
    "iterator": lambda layer: iter([layer.weight]),
    "cycle": lambda layer: itertools.cycle([layer.weight]),
    "generator": lambda layer: (layer.weight for _ in range(3)),
    "view": lambda layer: layer.weight.detach()[3:],
    "array": lambda layer: layer.weight.detach().numpy()[3:],
    "history": lambda layer: (layer.weight * 2).relu(),
    "class": lambda layer: type("Holder", (), {"__module__": "mine", "weight": layer.weight})(),
}


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_hidden_weights_are_found(place: str):
    """Wherever a copy hides a weight of the original, the path to it is named."""
    original, result = nn.Linear(4, 4), nn.Linear(4, 4)
    assert originals_reached(result, original) == []
    vars(result)["hidden"] = HIDING_PLACES[place](original)
    reached = originals_reached(result, original)
    assert any("hidden" in each and each.endswith("weight") for each in reached)


def test_there_are_enough():
    assert len(ODD) * len(WAYS) >= 300
