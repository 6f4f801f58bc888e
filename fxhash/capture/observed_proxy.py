"""Proxies that refuse every question whose answer a graph would forget.

A proxy of `torch.fx` answers some questions as no tensor would: `isinstance(x, Tensor)` is false, `x in table` looks
for the proxy itself, `x += 1` makes a new value. Each of these is refused here, or recorded as what it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute

from fxhash.capture.guarded_tests import GuardedTest, guarded_test
from fxhash.capture.known_lengths import is_chunk, known_length, taken_from
from fxhash.capture.known_values import is_never_none
from fxhash.capture.observing_tracer import ObservingTracer
from fxhash.capture.reasons import where_in
from fxhash.capture.sources import calls_on_line, is_message
from fxhash.capture.user_code import is_recording_code
from fxhash.graph.guards import of_length, require, require_as_in_example
from fxhash.graph.in_place import IN_PLACE_OPERATORS

# What reads a property of a tensor at once; all other attributes are methods, called later or never.
_PROPERTIES = frozenset(
    name for name in dir(Tensor) if not name.startswith("_") and not callable(getattr(Tensor, name, None))
)
# Functions of torch that ask for a class on behalf of their caller.
_ASKS_FOR_TYPE = frozenset({"isinstance", "issubclass", "__class__", "is_tensor", "is_storage"})
_ASKS_FOR_CALLER = frozenset({"__instancecheck__", "is_tensor", "is_storage"})


MISSING = object()
_OWN_ATTRIBUTES = frozenset(
    {"node", "tracer", "root", "attr", "_node", "_shape", "_now", "module", "value", "name", "original"}
)


class ObservedProxy(fx.Proxy):
    """A value of the graph that is recorded."""

    tracer: Any  # an ObservingTracer
    # As tensors have it: an operation with a number of numpy is the tensor's.
    __array_priority__ = 1000
    origin = "that comes from its input"

    def __getattr__(self, k: str) -> ObservedAttribute:
        attribute = ObservedAttribute(self, k)
        if k in _PROPERTIES:
            _ = attribute.node
        return attribute

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What `isinstance` asks for."""
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_name in _ASKS_FOR_CALLER:
            frame = frame.f_back
        if not is_recording_code(frame.f_code) and calls_on_line(frame, _ASKS_FOR_TYPE):
            self._refuse("asks for the type of a value")
        return type(self)

    def is_never_none(self) -> bool:
        """Whether this value is certain not to be None."""
        return is_never_none(self.node, self.tracer.returns_something) or self.tracer.is_something_on_example(self.node)

    def _refuse(self, what: str) -> NoReturn:
        tracer: ObservingTracer = self.tracer
        tracer.refuse(f"its forward {what} {self.origin}")

    def __iter__(self) -> Iterator[fx.Proxy]:
        taken = taken_from(sys._getframe(1))
        if taken is None:
            return iter(self._parts("iterates over a value"))
        return iter([self[index] for index in taken])  # type: ignore[index]

    def _parts(self, what: str) -> list[fx.Proxy]:
        count = known_length(self.node)
        sizes = self.tracer.size_on_example(self.node) if count is None else None
        if isinstance(sizes, tuple):
            count = len(sizes)
        if count is None:
            self._refuse(what)
        source: Any = self
        if is_chunk(self.node) or sizes is not None:
            source = self.tracer.create_proxy("call_function", of_length, (self, count), {})
        return [source[index] for index in range(count)]

    def __bool__(self) -> bool:
        test = guarded_test(sys._getframe(1))
        if test is not None:
            return self._guarded(test)
        answer = self.tracer.size_on_example(self.node)
        if not isinstance(answer, (bool, int)):
            self._refuse("branches on a value")
        arguments = (self, bool(answer), where_in(sys._getframe(1)))
        self.tracer.create_proxy("call_function", require_as_in_example, arguments, {})
        return bool(answer)

    def _guarded(self, test: GuardedTest) -> bool:
        self.tracer.create_proxy("call_function", require, (self, test.wanted, test.error, test.message), {})
        return test.wanted

    def __len__(self) -> int:
        taken = taken_from(sys._getframe(1))
        return len(self._parts("asks for the length of a value") if taken is None else taken)

    def __float__(self) -> float:
        self._refuse("makes a number of a value")

    def __int__(self) -> int:
        self._refuse("makes a number of a value")

    def __complex__(self) -> complex:
        self._refuse("makes a number of a value")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse("makes an array of a value")

    def __contains__(self, item: object) -> bool:
        self._refuse("searches a value")

    def __setitem__(self, key: Any, value: Any) -> None:
        self._refuse("assigns to a part of a value")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN_ATTRIBUTES:
            self._refuse("assigns to an attribute of a value")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        self._refuse("deletes an attribute of a value")

    def __delitem__(self, key: Any) -> None:
        self._refuse("deletes a part of a value")

    def __copy__(self) -> Any:
        self._refuse("copies a value")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        self._refuse("copies a value")

    def __reduce_ex__(self, protocol: Any) -> Any:
        self._refuse("copies a value")

    def __hash__(self) -> int:
        if not is_recording_code(sys._getframe(1).f_code):
            self._refuse("looks up a value")
        return id(self)

    def __repr__(self) -> str:
        if not is_recording_code(sys._getframe(1).f_code):
            self._refuse("prints a value")
        return object.__repr__(self)

    def __format__(self, format_spec: str) -> str:
        caller = sys._getframe(1)
        if is_message(caller):
            return "?"
        assigned = _name_of_assigned(caller)
        if assigned is not None:
            self.tracer.refuse(f"its forward changes {assigned!r}")
        self._refuse("prints a value")


def _name_of_assigned(frame: FrameType) -> str | None:
    """The attribute that torch refuses to assign a value to, where it makes the error, which tells the value's type."""
    caller = frame.f_back
    if (
        frame.f_code is torch.typename.__code__
        and caller is not None
        and caller.f_code is nn.Module.__setattr__.__code__
    ):
        return str(caller.f_locals["name"])
    return None


def _recording(operator: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator, (self, other), {})

    return record


for _name, _operator in IN_PLACE_OPERATORS.items():
    setattr(ObservedProxy, _name, _recording(_operator))


class ObservedAttribute(ObservedProxy, Attribute):
    """An attribute of a value; a method where it is called."""


class ObservedDtype(ObservedAttribute):
    """The type of a tensor that the model holds, which may change later, but not from floating point to integers."""

    def __init__(self, root: fx.Proxy, now: torch.dtype) -> None:
        super().__init__(root, "dtype")
        self._now = now

    @property
    def is_floating_point(self) -> bool:
        """As of `torch.dtype`."""
        return self._now.is_floating_point

    @property
    def is_complex(self) -> bool:
        """As of `torch.dtype`."""
        return self._now.is_complex


class ObservedTensor(ObservedProxy):
    """A tensor that the model holds, whose shape is known while tracing; its type and device may change later."""

    def __init__(self, tracer: fx.Tracer, node: fx.Node, like: Tensor) -> None:
        super().__init__(node, tracer)
        self._shape, self._now = like.shape, like.dtype

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, args: Any = None, kwargs: Any = None) -> Any:
        """A function of torch, which is recorded but for those that ask what doesn't change."""
        if orig_method in (torch.is_floating_point, torch.is_complex) and args and type(args[0]) is ObservedTensor:
            return getattr(args[0], orig_method.__name__)()
        return super().__torch_function__(orig_method, types, args, kwargs)

    @property
    def dtype(self) -> ObservedDtype:
        """Its type, as a value of the graph."""
        dtype = ObservedDtype(self, self._now)
        _ = dtype.node
        return dtype

    def is_floating_point(self) -> bool:
        """Whether it is of floating point."""
        return self._now.is_floating_point

    def is_complex(self) -> bool:
        """Whether it is complex."""
        return self._now.is_complex

    def is_never_none(self) -> bool:
        """A tensor is not None."""
        return True

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        return self._shape

    @property
    def ndim(self) -> int:
        """Number of its dimensions."""
        return len(self._shape)

    def size(self, dim: int | None = None) -> torch.Size | int:
        """Its shape, or its size in one dimension."""
        return self._shape if dim is None else self._shape[dim]

    def dim(self) -> int:
        """Number of its dimensions."""
        return len(self._shape)

    def numel(self) -> int:
        """Number of its elements."""
        return self._shape.numel()

    nelement = numel

    def __len__(self) -> int:
        return self._shape[0]

    def __iter__(self) -> Iterator[fx.Proxy]:
        return iter([self[index] for index in range(len(self))])  # type: ignore[index]


class ObservedFlag(ObservedProxy):
    """The `training` flag of a module, in the place of the flag itself: a value of the graph wherever it is read."""

    origin = "that is a training flag"

    def __bool__(self) -> bool:
        test = guarded_test(sys._getframe(1))
        if test is not None:
            return self._guarded(test)
        tracer: ObservingTracer = self.tracer
        return tracer.branch_on_mode(self, f"its forward branches on a value {self.origin}")

    def __init__(self, tracer: ObservingTracer, module: nn.Module, value: bool) -> None:
        self.tracer = tracer
        self.module = module
        self.value = value

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """The node that gives the flag, made where it is needed."""
        return self.tracer.training_flag(self.module, self.value)


class UnknownAttribute(ObservedProxy):
    """An attribute of a module that is called as a whole, after the call: what it is then is not known."""

    def __init__(self, tracer: ObservingTracer, name: str, original: Any) -> None:
        self.tracer = tracer
        self.name = name
        self.original = original

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """Refused: a graph can't read it."""
        self._refuse("")

    def __getattr__(self, k: str) -> Any:
        self._refuse("")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: what would be called is not known."""
        self._refuse("")

    def _refuse(self, what: str) -> NoReturn:
        tracer: ObservingTracer = self.tracer
        tracer.refuse(f"its forward reads {self.name!r} of a module after it called it as a whole")
