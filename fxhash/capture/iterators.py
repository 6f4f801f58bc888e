"""How far an iterator has come, found without a step of it."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from io import IOBase
from operator import length_hint
from types import FrameType, FunctionType, GeneratorType
from typing import Any

from fxhash.capture.references import attributes_of, held_by_frame

# Of itertools: what takes each step with a step of an iterator that it refers to, which has a position of its own.
_FOLLOWING = tuple(
    getattr(itertools, name)
    for name in (
        *("batched", "chain", "compress", "dropwhile", "filterfalse", "groupby", "islice"),
        *("pairwise", "repeat", "starmap", "takewhile", "zip_longest"),
    )
    if hasattr(itertools, name)
)


def is_written_in_python(kind: type) -> bool:
    """Whether the objects of a class take a step, if they are iterators at all, by Python code alone."""
    return all(isinstance(vars(each).get("__next__", _no_step), FunctionType) for each in kind.__mro__)


def position_of(iterator: Iterator[Any]) -> list[Any]:
    """How far an iterator has come, as values that are others after a step.

    Where that can't be known, it is another each time. Iterators among the values have positions of their own.
    """
    if isinstance(iterator, GeneratorType):
        return _position_of_generator(iterator)
    attributes = attributes_of(iterator)
    position = [*attributes.keys(), *attributes.values()]
    if not is_written_in_python(type(iterator)):
        position += _inner_position(iterator)
    return position


def _no_step() -> None:
    pass


def _position_of_generator(generator: GeneratorType[Any, Any, Any]) -> list[Any]:
    frame = generator.gi_frame
    if frame is None:
        return []
    # On Python 3.10 it refers to what it holds by the frame.
    held = (each for each in gc.get_referents(generator) if not isinstance(each, FrameType))
    return [frame.f_lasti, *held, *held_by_frame(frame)]


def _inner_position(iterator: Any) -> list[Any]:
    """That of an iterator that is not written in Python, without its attributes."""
    if isinstance(iterator, _FOLLOWING):
        return [*_referents(iterator), _steps_left(iterator)]
    if isinstance(iterator, itertools.count):
        held = _referents(iterator)
        # Whole numbers that are not large it has in a form that only shows in this.
        return [itertools.count.__repr__(iterator)] if all(type(each) is int for each in held) else held
    if isinstance(iterator, IOBase):
        return [repr(iterator)]
    if not any("__reduce__" in vars(kind) for kind in type(iterator).__mro__[:-1]):
        # That of `object` forgets what such an iterator holds.
        return [object()]
    try:
        # For what else is in itertools there is a warning from Python 3.12 on, and nothing from Python 3.14 on.
        return [_comparable(each) for each in iterator.__reduce__()]
    except Exception:
        return [object()]


def _referents(iterator: Any) -> list[Any]:
    attributes = getattr(iterator, "__dict__", None)
    return [each for each in gc.get_referents(iterator) if not isinstance(each, type) and each is not attributes]


def _comparable(state: Any) -> Any:
    """The same with the numbers of each range in its place, which an iterator makes anew when it is asked."""
    if isinstance(state, range):
        return state.start, state.stop, state.step
    return tuple(map(_comparable, state)) if type(state) is tuple else state


def _steps_left(iterator: Any) -> int | None:
    try:
        return length_hint(iterator)
    except TypeError:
        # Of `repeat` without an end.
        return None
