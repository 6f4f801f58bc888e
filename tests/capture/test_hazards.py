"""Places in a function where a trace may take a wrong turn: found in its source, judged in its frame."""

from __future__ import annotations

import sys
from types import FunctionType

import pytest
import torch
from torch import fx, nn

import fxhash
from fxhash.capture.hazards import hazards_of
from fxhash.capture.sources import with_lines_of
from tests.capture.reasons import full_reasons

PROXY = fx.Proxy(fx.Graph().placeholder("x"))


def asked(function, *args):
    """Whether a function, run with these arguments, comes to a hazard that applies."""
    found = []

    def on_call(frame, event, argument):
        if frame.f_code is not function.__code__:
            return None

        def on_line(frame, event, argument):
            if event == "line":
                found.extend(
                    hazard.applies(frame)
                    for hazard in hazards_of(function.__code__)
                    if hazard.first <= frame.f_lineno <= hazard.last
                )
            return on_line

        return on_line

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        function(*args)
    finally:
        sys.settrace(before)
    return any(found)


def is_none(x):
    return x is None


def is_not_none_in_expression(x):
    return 1 if x is not None else 2


def is_none_in_comprehension(x):
    return [each is None for each in (1, x)]


def is_none_after_semicolon(x):
    y = x; return y is None  # fmt: skip  # noqa: E702


def is_none_by_walrus(x):
    return (y := [x][0]) is None or y


def is_none_of_attribute(x):
    return x.grad is None


def is_none_of_result(x):
    return id.__class__(x) is None if False else str(type(x)) is None


def type_of(x):
    return type(x) == int  # noqa: E721


def has_attribute(x):
    return hasattr(x, "shape")


def matches(x):
    match x:
        case None:
            return 1
    return 2


lambda_is_none = lambda x: x is None  # noqa: E731

ASKING = [
    is_none,
    is_not_none_in_expression,
    is_none_in_comprehension,
    is_none_after_semicolon,
    is_none_by_walrus,
    is_none_of_attribute,
    is_none_of_result,
    type_of,
    has_attribute,
    matches,
    lambda_is_none,
]


@pytest.mark.parametrize("function", ASKING, ids=lambda function: function.__name__)
def test_a_value_of_the_graph_is_noticed(function):
    assert asked(function, PROXY)


@pytest.mark.parametrize("function", [each for each in ASKING if each is not is_none_of_attribute])
def test_other_values_are_not(function):
    assert not asked(function, 3)


def test_attributes_of_modules_are_looked_up_without_running_code():
    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = None
            self.layer = nn.Linear(2, 2)
            self.kept = PROXY

        @property
        def computed(self):
            raise AssertionError("this must not run")

    def forward(self):
        return self.norm is None, self.layer.bias is not None, getattr(self, "extra", None) is None

    def forward_with_kept(self):
        return self.kept is None

    assert not asked(forward, Watched())
    assert asked(forward_with_kept, Watched())


def test_caught_errors_are_a_hazard_whatever_the_values():
    def catches(x):
        try:
            x = x + 1
        except ValueError:
            x = 2
        return x

    def cleans_up(x):
        try:
            return x + 1
        finally:
            str(1)

    assert asked(catches, 3)
    assert not asked(cleans_up, 3)


def test_source_that_can_not_be_read():
    names: dict[str, object] = {}
    exec("def asks(x): return x is None\ndef adds(x): return x + 1", names)
    assert hazards_of(names["asks"].__code__) is None
    assert hazards_of(names["adds"].__code__) == ()


def test_a_parameter_is_no_value_of_the_graph_where_it_is_compared_with_none():
    def forward(self):
        return self.weight is None

    assert not asked(forward, nn.Linear(2, 2))
    assert torch.is_tensor(nn.Linear(2, 2).weight)


class AsksWithKeywordOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, *, scale=None):
        y = self.linear(x)
        y = y + 1
        factor = 2 if scale is None else 3
        return y * factor


def lines_run(function, *args):
    """The lines that a function runs, relative to its first."""
    lines = []

    def on_event(frame, event, argument):
        if event == "line" and frame.f_code is function.__code__:
            lines.append(frame.f_lineno - frame.f_code.co_firstlineno)
        return on_event

    before = sys.gettrace()
    sys.settrace(on_event)
    try:
        function(*args)
    finally:
        sys.settrace(before)
    return lines


def test_lines_of_a_function_with_other_arguments():
    """As torch.fx makes it, up to some version without the lines."""
    forward = AsksWithKeywordOnly.forward
    code = forward.__code__.replace(co_argcount=3, co_kwonlyargcount=0, co_linetable=b"")
    changed = with_lines_of(forward, FunctionType(code, forward.__globals__))
    assert lines_run(changed, AsksWithKeywordOnly(), torch.ones(1, 4), None) == [1, 2, 3, 4]


def test_other_functions_keep_their_lines():
    before = is_none.__code__
    assert with_lines_of(AsksWithKeywordOnly.forward, is_none) is is_none
    assert is_none.__code__ is before


def test_the_question_of_a_forward_with_keyword_only_arguments_is_on_its_line():
    (reason,) = full_reasons(fxhash.trace(AsksWithKeywordOnly())).values()
    line = AsksWithKeywordOnly.forward.__code__.co_firstlineno + 3
    assert reason.where == f"tests/capture/test_hazards.py:{line} in forward"
