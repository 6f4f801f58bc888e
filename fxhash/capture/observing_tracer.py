"""What a proxy asks of the tracer that recorded it."""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

from torch import fx, nn


class ObservingTracer(Protocol):
    """What a proxy asks of its tracer, beside recording."""

    def refuse(self, reason: str) -> NoReturn:
        """Give up what is traced, for a reason."""
        raise NotImplementedError

    def branch_on_mode(self, flag: Any, reason: str) -> bool:
        """The way to go where a forward branches on a training flag."""
        raise NotImplementedError

    def size_on_example(self, node: fx.Node) -> Any:
        """What a value is on an example, if sizes decide that; None if they don't, or it isn't known."""
        raise NotImplementedError

    def is_something_on_example(self, node: fx.Node) -> bool:
        """Whether a value is known not to be None on an example."""
        raise NotImplementedError

    def training_flag(self, module: nn.Module, value: bool) -> fx.Node:
        """The node that gives the training flag of a module, which was `value` before the trace."""
        raise NotImplementedError
