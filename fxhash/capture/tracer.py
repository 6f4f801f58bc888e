"""The tracer: descends into the modules that hold an exposed parameter, and into no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from fxhash.capture.exposure import Exposure
from fxhash.capture.leaf_modules import TensorConstant, TrainingFlag
from fxhash.capture.side_effects import refusing_side_effects
from fxhash.capture.untraceable import UntraceableError, never_traced_because, reason_of
from fxhash.graph.names import OPAQUE_PART, free_name


@dataclass(frozen=True)
class OpaqueCall:
    """A module that a trace rolled back.

    Attributes:
        reason: why it can't be traced.
        names: for each parameter that the call passes to it, its names in the module (several if tied).
    """

    reason: str
    names: tuple[tuple[str, ...], ...]


class ExposingTracer(fx.Tracer):
    """Records the model of an exposure, and rolls back the modules in it that can't be traced.

    Parameters and persistent buffers become `get_attr` nodes under their first name, one each. The target of an
    opaque call is `OPAQUE_PART` below the module's path; its arguments are those of `OpaqueModule.forward`.

    Args:
        exposure: the model and what to expose of it.

    Attributes:
        leaves: the training flags and tensor constants that the graph calls, by target.
        opaque: the modules that were rolled back, by path.
    """

    def __init__(self, exposure: Exposure) -> None:
        super().__init__()
        self.exposure = exposure
        self.leaves: dict[str, nn.Module] = {}
        self.opaque: dict[str, OpaqueCall] = {}
        self._proxies: dict[str, fx.Proxy] = {}
        self._constants: dict[int, tuple[str, Tensor]] = {}
        self._buffer_names: dict[int, str] = {}
        # Of tensors that a model holds, one that it makes anew at each call is none.
        self._held = {
            id(value)
            for module in exposure.model.modules()
            for value in (*vars(module).values(), *module._buffers.values())
            if isinstance(value, Tensor)
        }
        for path, module in exposure.model.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    self._buffer_names.setdefault(id(buffer), f"{path}.{name}" if path else name)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whatever holds no exposed parameter stays one node."""
        return not self.exposure.is_held_by(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Descend, or fall back to an opaque call."""
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        reason = self.opaque[path].reason if path in self.opaque else never_traced_because(m)
        if not reason:
            last_node = next(iter(reversed(self.graph.nodes)))
            stack, calls = self.module_stack.copy(), self.num_calls.copy()
            try:
                with refusing_side_effects(m):
                    return super().call_module(m, forward, args, kwargs)
            except Exception as error:
                reason = reason_of(error)
                self._roll_back_to(last_node)
                self.module_stack, self.num_calls = stack, calls
        exposed = self.exposure.exposed_in(path)
        self.opaque[path] = OpaqueCall(reason, tuple(exposed.values()))
        weights = tuple(self._tensor_proxy(self.exposure.parameters[fqn]) for fqn in exposed)
        return self.create_proxy("call_module", f"{path}.{OPAQUE_PART}", (weights, args, kwargs), {})

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers are values of the graph, not of the trace."""
        return self._tensor_proxy(attr_val) if isinstance(attr_val, Tensor) else attr_val

    def create_arg(self, a: Any) -> Any:
        """Tensors that were reached without an attribute access, say through a list, are found by identity."""
        if isinstance(a, Tensor):
            return self._tensor_proxy(a).node
        return super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record nothing in a `no_grad` block: the graph would forget the block."""
        if not torch.is_grad_enabled():
            raise UntraceableError("its forward switches gradients off")
        return super().create_node(*args, **kwargs)

    @contextmanager
    def recording_training_flags(self) -> Iterator[None]:
        """Make `self.training` a value of the graph in the modules that may be traced."""

        def training(module: nn.Module) -> fx.Proxy:
            return self._training_flag(module)

        classes: dict[type, type] = {}
        swapped: list[tuple[nn.Module, type]] = []
        try:
            for module in self.exposure.model.modules():
                kind = type(module)
                own_kind = type_before_parametrizations(module)
                if self.exposure.is_held_by(module) and not own_kind.__module__.startswith("torch."):
                    if kind not in classes:
                        classes[kind] = type(kind.__name__, (kind,), {"training": property(training)})
                    module.__class__ = classes[kind]
                    swapped.append((module, kind))
            yield
        finally:
            for module, kind in swapped:
                module.__class__ = kind

    def _training_flag(self, module: nn.Module) -> fx.Proxy:
        """What a traced `self.training` evaluates to."""
        path = self.path_of_module(module)
        name = free_name(module, "training_flag")
        target = f"{path}.{name}" if path else name
        self.leaves.setdefault(target, TrainingFlag(vars(module)["training"]))
        return self._cached(target, lambda: self.create_proxy("call_module", target, (), {}))

    def _tensor_proxy(self, tensor: Tensor) -> fx.Proxy:
        name = self.exposure.name_of(tensor) or self._buffer_names.get(id(tensor))
        if name is not None:
            return self._cached(name, lambda: self._create_tensor_proxy("get_attr", name, tensor))
        if tensor.requires_grad:
            raise UntraceableError("it computes with parameters in a way that tracing would freeze into a constant")
        target, _ = self._constants.setdefault(id(tensor), (f"tensor_constant_{len(self._constants)}", tensor))
        self.leaves.setdefault(target, TensorConstant(tensor, fresh=id(tensor) not in self._held))
        return self._cached(target, lambda: self._create_tensor_proxy("call_module", target, tensor))

    def _create_tensor_proxy(self, kind: str, target: str, tensor: Tensor) -> fx.Proxy:
        return self.create_proxy(
            kind, target, (), {}, proxy_factory_fn=lambda node: _TensorProxy(self, node, tensor.shape)
        )

    def _cached(self, target: str, create: Callable[[], fx.Proxy]) -> fx.Proxy:
        if target not in self._proxies:
            self._proxies[target] = create()
        return self._proxies[target]

    def _roll_back_to(self, last_node: fx.Node) -> None:
        """Forget every node after `last_node`."""
        erased = set()
        for node in reversed(self.graph.nodes):
            if node is last_node:
                break
            erased.add(node)
            self.graph.erase_node(node)
        self._proxies = {target: proxy for target, proxy in self._proxies.items() if proxy.node not in erased}


class _TensorProxy(fx.Proxy):
    """A tensor that the model holds, whose shape is known while tracing; its type and device may change later."""

    def __init__(self, tracer: fx.Tracer, node: fx.Node, shape: torch.Size) -> None:
        super().__init__(node, tracer)
        self._shape = shape

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    def ndim(self) -> int:
        return len(self._shape)

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self._shape if dim is None else self._shape[dim]

    def dim(self) -> int:
        return len(self._shape)

    def numel(self) -> int:
        return self._shape.numel()

    nelement = numel

    def __len__(self) -> int:
        return self._shape[0]
