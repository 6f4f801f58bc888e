"""What a value is on example inputs, where a forward asks: a graph asks again at each call, and refuses other answers.

Only what sizes of the inputs alone decide is answered, and that something is not None. What the answer is worth for
other inputs need not be known: where it is another one, the graph raises an error.
"""

from __future__ import annotations

import inspect
import operator
import random
from collections.abc import Callable, Mapping
from functools import partial
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from fxhash.capture.checking import Call
from fxhash.capture.copy_model import copy_model
from fxhash.capture.own_randomness import OwnRandomness
from fxhash.graph.names import OPAQUE_PART
from fxhash.graph.numbers import OF_PYTHON, length

_SIZES = frozenset(["shape", "ndim"])
_ASK_FOR_SIZES = frozenset(["size", "dim", "numel", "nelement", "ndimension"])
_NUMBERS = frozenset(recorded for _, recorded in OF_PYTHON.values())


class ExampleValues:
    """Computes values of a graph on example inputs while the graph is traced, by a copy and in a thread of its own.

    Each is computed a second time on random numbers of the same sizes: what differs is no matter of sizes.

    Args:
        model: the model; it is left untouched.
        call: the arguments of the example.
    """

    def __init__(self, model: nn.Module, call: Call) -> None:
        self._model = copy_model(model).eval()
        signature = inspect.signature(type(model).forward).bind(None, *call.args, **call.kwargs)
        generator = torch.Generator().manual_seed(0)
        inputs = dict(signature.arguments)
        self._inputs = inputs, {name: tree_map(partial(_random, generator), each) for name, each in inputs.items()}
        self._values: tuple[dict[fx.Node, Any], dict[fx.Node, Any]] = ({}, {})

    def size_of(self, node: fx.Node, leaves: Mapping[str, nn.Module]) -> Any:
        """The value of a node if sizes alone decide it; None if they don't, or it can't be computed.

        Args:
            node: the node.
            leaves: modules that the graph calls and that are not the model's, by target.
        """
        if not is_of_sizes(node):
            return None
        one, other = self._values_of(node, leaves)
        return one if type(one) is type(other) and isinstance(one, (bool, int, tuple)) and one == other else None

    def is_something(self, node: fx.Node, leaves: Mapping[str, nn.Module]) -> bool:
        """Whether the value of a node is known not to be None.

        Args:
            node: the node.
            leaves: modules that the graph calls and that are not the model's, by target.
        """
        return all(value is not None for value in self._values_of(node, leaves))

    def _values_of(self, node: fx.Node, leaves: Mapping[str, nn.Module]) -> list[Any]:
        states = random.getstate(), np.random.get_state()
        found: list[Any] = []
        thread = Thread(target=lambda: found.extend(self._computed(index, node, leaves) for index in (0, 1)))
        thread.start()
        thread.join()
        random.setstate(states[0])
        np.random.set_state(states[1])
        return found

    def _computed(self, index: int, node: fx.Node, leaves: Mapping[str, nn.Module]) -> Any:
        """The value of a node on the example or on random numbers; None where it can't be computed."""
        values = self._values[index]
        pending = [node]
        with torch.no_grad(), OwnRandomness(index):
            try:
                while pending:
                    each = pending[-1]
                    missing = [source for source in each.all_input_nodes if source not in values]
                    pending += missing
                    if not missing:
                        pending.pop()
                        if each not in values:
                            values[each] = self._run(each, index, leaves)
            except Exception:
                return None
        return values[node]

    def _run(self, node: fx.Node, index: int, leaves: Mapping[str, nn.Module]) -> Any:
        args: Any = map_arg(node.args, self._values[index].__getitem__)
        kwargs: Any = map_arg(dict(node.kwargs), self._values[index].__getitem__)
        target = node.target
        if node.op == "placeholder":
            inputs = self._inputs[index]
            return inputs[str(target)] if str(target) in inputs else args[0]
        if node.op == "get_attr":
            return operator.attrgetter(str(target))(self._model)
        if node.op == "call_method":
            return getattr(args[0], str(target))(*args[1:], **kwargs)
        if callable(target):
            return target(*args, **kwargs)
        if target in leaves:
            return leaves[target](*args, **kwargs)
        path, _, name = target.rpartition(".")
        if name == OPAQUE_PART:
            _, args, kwargs = args
            return self._model.get_submodule(path)(*args, **kwargs)
        return self._model.get_submodule(target)(*args, **kwargs)


def _random(generator: torch.Generator, value: Any) -> Any:
    """Random numbers of the same sizes as a tensor of floats; anything else is left as it is."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return torch.randn(value.shape, generator=generator).to(value)


def example_values(model: nn.Module, call: Call) -> ExampleValues | None:
    """Values on an example; None for a model whose arguments can't be told by their names."""
    try:
        return ExampleValues(model, call)
    except (TypeError, ValueError):
        return None


def is_of_sizes(node: fx.Node) -> bool:
    """Whether sizes of tensors alone decide what a value is."""
    pending, seen = [node], {node}
    while pending:
        each = pending.pop()
        if not _asks_for_size(each):
            if not _is_arithmetic(each) or not each.all_input_nodes:
                return False
            pending += [source for source in each.all_input_nodes if source not in seen]
            seen.update(each.all_input_nodes)
    return True


def _asks_for_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _ASK_FOR_SIZES and len(node.all_input_nodes) == 1
    return (node.target is getattr and node.args[1] in _SIZES) or node.target is length


def _is_arithmetic(node: fx.Node) -> bool:
    target: Callable[..., Any] | str = node.target
    return node.op == "call_function" and (
        target in _NUMBERS or getattr(target, "__module__", None) in ("_operator", "math")
    )
