"""Which values a graph has: those of operations, and those that stand for what a model holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from itertools import takewhile
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxhash.capture.example_values import ExampleValues
from fxhash.capture.exposure import Exposure
from fxhash.capture.known_returns import returns_something
from fxhash.capture.leaf_modules import FunctionCall, TensorConstant, TrainingFlag
from fxhash.capture.observed_proxy import ObservedProxy, ObservedTensor
from fxhash.capture.real_tensors import storage_of
from fxhash.capture.untraceable import UntraceableError
from fxhash.capture.weightless_functions import is_plain_argument
from fxhash.graph.guards import require_something
from fxhash.graph.liveness import changed_in_place, memory_sources
from fxhash.graph.names import OPAQUE_PART, free_name


class ValueTracer(fx.Tracer):
    """Records values: of operations, parameters, buffers, training flags, and tensors that are constants.

    Args:
        exposure: the model and what to expose of it.
        examples: answers questions about sizes; if omitted, they are refused.

    Attributes:
        buffer_names: the names of buffers in the state dict, by their `id`s.
        held: the storages of all tensors that the model holds.
        leaves: the training flags and tensor constants that the graph calls, by target.
        proxies: the values of what the model holds, by target.
        refusal: why the module at hand was given up, until that is dealt with.
    """

    def __init__(self, exposure: Exposure, examples: ExampleValues | None = None) -> None:
        super().__init__()
        self.exposure = exposure
        self._examples = examples
        self.held: Collection[int] = ()
        self.leaves: dict[str, nn.Module] = {}
        self.refusal: str | None = None
        self.proxies: dict[str, fx.Proxy] = {}
        self._constants: dict[int, tuple[str, Tensor]] = {}
        self.buffer_names: dict[int, str] = {}
        for path, module in exposure.model.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    self.buffer_names.setdefault(id(buffer), f"{path}.{name}" if path else name)

    def refuse(self, reason: str) -> NoReturn:
        """Give up the module at hand, even if its forward catches the error."""
        self.refusal = self.refusal or reason
        raise UntraceableError(reason)

    def refuse_forward(self, what: str) -> NoReturn:
        """Give up the module at hand for what its forward does."""
        self.refuse(f"its forward {what}")

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A value of the graph."""
        return ObservedProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Tensors that were reached without an attribute access, say through a list, are found by identity."""
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, Tensor):
            return self.tensor_proxy(a).node
        if isinstance(a, np.generic):
            return a.item()
        if type(a) is OrderedDict:
            return self.create_proxy("call_function", OrderedDict, (list(a.items()),), {}).node
        if (isinstance(a, dict) and type(a) is not dict) or (isinstance(a, list) and type(a) is not list):
            self.refuse(f"its forward makes a {type(a).__name__}, which a graph can't hold")
        return super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record nothing in a `no_grad` block: the graph would forget the block."""
        if not torch.is_grad_enabled():
            self.refuse_forward("switches gradients off")
        node = super().create_node(*args, **kwargs)
        changed = changed_in_place(node)
        if changed is not None and changed.op == "call_module":
            leaf = self.leaves.get(str(changed.target))
            if isinstance(leaf, TensorConstant) and not leaf.fresh:
                self.refuse_forward("changes a tensor that the model holds in place")
        return node

    def training_flag(self, module: nn.Module, value: bool) -> fx.Node:
        """The node that gives the training flag of a module.

        Args:
            module: the module.
            value: its flag before the trace.
        """
        path = self.path_of_module(module)
        name = free_name(module, "training_flag")
        target = f"{path}.{name}" if path else name
        self.leaves.setdefault(target, TrainingFlag(value))
        return self._cached(target, lambda: self.create_proxy("call_module", target, (), {})).node

    def watch(self) -> None:
        """Go on watching the code that runs: Python stops where it raises an error."""
        raise NotImplementedError

    def size_on_example(self, node: fx.Node) -> Any:
        """What a value is on an example, if sizes decide that; None if they don't, or it isn't known."""
        return None if self._examples is None else self._examples.size_of(node, self.leaves)

    def is_something_on_example(self, node: fx.Node) -> bool:
        """Whether a value is not None on an example; the graph asks again at each call."""
        if self._examples is None or node.op == "placeholder" or not self._examples.is_something(node, self.leaves):
            return False
        self.create_proxy("call_function", require_something, (fx.Proxy(node, self), node.name), {})
        return True

    def function_call(
        self, function: Callable[..., Any], proxy: fx.Proxy, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The value that a function of the model's own code gives: followed, or else called by one node.

        One node calls it if its arguments allow that: no function may change them but in ways that the graph has, too.

        Args:
            function: the function, which is weightless.
            proxy: a value among the arguments.
            args: the arguments by position.
            kwargs: those by name.
        """
        given = list(_leaves((*args, *kwargs.values())))
        values = [each.node for each in given if isinstance(each, fx.Proxy)]
        others = [each for each in given if not isinstance(each, fx.Proxy)]
        if not all(map(is_plain_argument, others)) or any(map(self._may_be_held, values)):
            return function(*args, **kwargs)
        last_node = self.last_node()
        try:
            result = function(*args, **kwargs)
            if self.refusal is None:
                return result
        except (UntraceableError, Exception):
            self.watch()
        self.refusal = None
        self.roll_back_to(last_node)
        target = f"{function.__name__}_{len(self.leaves)}"
        self.leaves[target] = FunctionCall(function)
        return self.create_proxy("call_module", target, args, kwargs)

    def _may_be_held(self, value: fx.Node) -> bool:
        """Whether a value may be a tensor that the model holds, or a view of one."""
        return any(
            source.op == "get_attr" or isinstance(self.leaves.get(str(source.target)), TensorConstant)
            for source in memory_sources(value)
        )

    def returns_something(self, target: str) -> bool:
        """Whether a module that the graph calls is certain not to return None."""
        if target in self.leaves:
            return not isinstance(self.leaves[target], FunctionCall)
        return returns_something(self.exposure.model.get_submodule(target.removesuffix(f".{OPAQUE_PART}")))

    def tensor_proxy(self, tensor: Tensor) -> fx.Proxy:
        """The value of the graph for a tensor."""
        name = self.exposure.name_of(tensor)
        if name is None and id(tensor) in self.buffer_names:
            name = self.buffer_names[id(tensor)]
            self.check_buffer(name)
        if name is not None:
            return self._cached(name, lambda: self._create_tensor_proxy("get_attr", name, tensor))
        if tensor.requires_grad:
            self.refuse("it computes with parameters in a way that tracing would freeze into a constant")
        target, _ = self._constants.setdefault(id(tensor), (f"tensor_constant_{len(self._constants)}", tensor))
        self.leaves.setdefault(target, TensorConstant(tensor, fresh=storage_of(tensor) not in self.held))
        return self._cached(target, lambda: self._create_tensor_proxy("call_module", target, tensor))

    def check_buffer(self, name: str) -> None:
        """Refuse the module at hand if it reads a buffer that may be another tensor by the next call."""
        raise NotImplementedError

    def _create_tensor_proxy(self, kind: str, target: str, tensor: Tensor) -> fx.Proxy:
        return self.create_proxy(kind, target, (), {}, proxy_factory_fn=lambda node: ObservedTensor(self, node, tensor))

    def _cached(self, target: str, create: Callable[[], fx.Proxy]) -> fx.Proxy:
        if target not in self.proxies:
            self.proxies[target] = create()
        return self.proxies[target]

    def last_node(self) -> fx.Node | None:
        """The node that was recorded last; None if there is none."""
        return next(iter(reversed(self.graph.nodes)), None)

    def nodes_after(self, last_node: fx.Node | None) -> list[fx.Node]:
        """The nodes after `last_node`, in order."""
        return list(takewhile(lambda node: node is not last_node, reversed(self.graph.nodes)))[::-1]

    def roll_back_to(self, last_node: fx.Node | None) -> None:
        """Forget every node after `last_node`."""
        erased = self.nodes_after(last_node)
        for node in reversed(erased):
            self.graph.erase_node(node)
        gone = set(erased)
        self.proxies = {target: proxy for target, proxy in self.proxies.items() if proxy.node not in gone}


def _leaves(values: tuple[Any, ...]) -> Iterator[Any]:
    for each in values:
        yield from _leaves(each) if type(each) is tuple else (each,)
