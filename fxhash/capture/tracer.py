"""The tracer: descends into the modules that hold an exposed parameter, and into no other."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxhash.capture.attachment import attached
from fxhash.capture.called_code import fixed_attributes
from fxhash.capture.exposure import Exposure
from fxhash.capture.hazards import with_lines_of
from fxhash.capture.held import is_immutable, is_plain
from fxhash.capture.kept_state import KeptState
from fxhash.capture.leaf_modules import TensorConstant, TrainingFlag
from fxhash.capture.observed_proxy import MISSING, ObservedFlag, ObservedProxy, ObservedTensor, UnknownAttribute
from fxhash.capture.observer import Observer, keeps_changing_function
from fxhash.capture.real_tensors import RefusingOperations, storage_of
from fxhash.capture.untraceable import UntraceableError, never_traced_because, overrides_call, reason_of
from fxhash.capture.wrapped_functions import RecordedFunctions
from fxhash.graph.liveness import changed_in_place
from fxhash.graph.names import OPAQUE_PART, free_name

_OF_EVERY_MODULE = {*vars(nn.Module()), "_compiled_call_impl"}


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

    Nothing outside of the model is patched: its own modules are told to call the tracer, and to read their parameters,
    buffers and training flags from it, until the trace is over.

    Args:
        exposure: the model and what to expose of it.
        untraced: modules not to trace, by path, each with the reason.
        careful: whether to look for changes outside of the model after each module, and not just at the end.

    Attributes:
        leaves: the training flags and tensor constants that the graph calls, by target.
        opaque: the modules that were rolled back, by path.
        is_spoiled: whether the trace left something changed in the model, such as an iterator.
    """

    def __init__(
        self, exposure: Exposure, untraced: Mapping[str, str] = MappingProxyType({}), careful: bool = False
    ) -> None:
        super().__init__()
        self._untraced = untraced
        self.exposure = exposure
        self.careful = careful
        self.leaves: dict[str, nn.Module] = {}
        self.opaque: dict[str, OpaqueCall] = {}
        self.is_spoiled = False
        self._refusal: str | None = None
        self._proxies: dict[str, fx.Proxy] = {}
        self._constants: dict[int, tuple[str, Tensor]] = {}
        self._buffer_names: dict[int, str] = {}
        for path, module in exposure.model.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    self._buffer_names.setdefault(id(buffer), f"{path}.{name}" if path else name)

    def record(self, functions: RecordedFunctions) -> fx.Graph:
        """The graph of the model.

        Args:
            functions: records calls of functions that can't be followed.

        Raises:
            UntraceableError: if the model's own forward can't be traced.
        """
        model = self.exposure.model
        self.root = model
        self.graph = fx.Graph()
        self.tensor_attrs = {}
        self.submodule_paths = {module: path for path, module in model.named_modules()}
        flags = {module: ObservedFlag(self, module, module.training) for module in model.modules()}
        with attached(model, self._call, self._tensor_proxy, flags):
            self._state = KeptState(model)
            self._observer = Observer(self._state, functions, self._refuse_forward)
            forward, arguments = self._create_inputs(model)
            with RefusingOperations(self._state.storages, self._refuse_forward), self._observer.watching():
                try:
                    result = self._checked(model, forward, arguments)
                    self._check_surroundings()
                    self.create_node("output", "output", (self.create_arg(result),), {})
                except BaseException:
                    self._restore(model)
                    raise
        return self.graph

    def _create_inputs(self, model: nn.Module) -> tuple[Callable[..., Any], list[Any]]:
        try:
            forward, arguments = self.create_args_for_root(type(model).forward, True, None)
        except ValueError as error:
            # Of torch.fx, which replaces the arguments of the decorator by those of the function under it.
            raise UntraceableError("a decorator of its forward takes other arguments than the forward") from error
        return with_lines_of(type(model).forward, forward), arguments

    def refuse(self, reason: str) -> NoReturn:
        """Give up the module at hand, even if its forward catches the error."""
        self._refusal = self._refusal or reason
        raise UntraceableError(reason)

    def _refuse_forward(self, what: str) -> NoReturn:
        self.refuse(f"its forward {what}")

    def _call(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Descend into a module that is called, or fall back to an opaque call; keep it whole if it holds nothing."""
        path = self.path_of_module(module)
        self._check_before(module, path)
        held = self.exposure.is_held_by(module)
        reason = ""
        if held:
            known = self._untraced.get(path) or never_traced_because(module)
            reason = self.opaque[path].reason if path in self.opaque else known
        if held and not reason:
            last_node = next(iter(reversed(self.graph.nodes)))
            try:
                return self._checked(module, module.forward, args, kwargs)
            except (UntraceableError, Exception) as error:
                self._observer.watch()
                reason, self._refusal = self._refusal or reason_of(error), None
                self._restore(module)
                self._roll_back_to(last_node)
        outside = self.exposure.reaches_outside(module) if held else None
        if outside is not None:
            self.refuse(f"{path}, which can't be traced ({reason}), refers to what lies outside of it by {outside}")
        if overrides_call(module):
            self.refuse(f"it calls {path}, which overrides __call__")
        if not held:
            result = self.create_proxy("call_module", path, args, kwargs)
            self._hide_attributes(module)
            return result
        exposed = self.exposure.exposed_in(path)
        self.opaque[path] = OpaqueCall(reason, tuple(exposed.values()))
        weights = tuple(self._tensor_proxy(self.exposure.parameters[fqn]) for fqn in exposed)
        result = self.create_proxy("call_module", f"{path}.{OPAQUE_PART}", (weights, args, kwargs), {})
        self._hide_attributes(module)
        return result

    def _check_before(self, module: nn.Module, path: str) -> None:
        """Refuse the forward that calls a module if it has gone on after a refusal, or changed something before."""
        if self._refusal is not None:
            raise UntraceableError(self._refusal)
        changed = self._state.changed_in(module)
        if changed is not None:
            self._refuse_forward(f"changes {changed!r} of {path} before it calls it")
        if self.careful:
            changed = self._state.changed_around()
            if changed is not None:
                self._refuse_forward(f"changes {changed!r}")

    def _restore(self, module: nn.Module) -> None:
        self.is_spoiled |= not self._state.restore(module)

    def _hide_attributes(self, called: nn.Module) -> None:
        """Refuse to read attributes of a module that the graph calls: what they are is known when it has run."""
        for module in called.modules():
            kinds = [kind for kind in type(module).__mro__ if not kind.__module__.startswith(("torch.", "builtins"))]
            if kinds:
                kept = fixed_attributes(type(module))  # type: ignore[arg-type]  # mypy: no hash of a Module's class
                names = {name for kind in kinds for name, value in vars(kind).items() if is_plain(name, value)}
                for name in (vars(module).keys() | names) - _OF_EVERY_MODULE:
                    original = vars(module).get(name, MISSING)
                    is_fixed = name in kept and is_immutable(original)
                    if not isinstance(original, fx.Proxy) and not is_fixed:
                        vars(module)[name] = UnknownAttribute(self, name, original)

    def _checked(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        """Run a module's forward; refuse it if it left anything changed, or went on after a refusal."""
        kept = keeps_changing_function(module)
        if kept is not None:
            self._refuse_forward(kept)
        result = forward(*args, **kwargs)
        if self._refusal is not None:
            raise UntraceableError(self._refusal)
        changed = self._state.changed_in(module) or (self._state.changed_around() if self.careful else None)
        if changed is not None:
            self._refuse_forward(f"changes {changed!r}")
        return result

    def _check_surroundings(self) -> None:
        changed = self._state.changed_around()
        if changed is not None:
            raise ChangedSurroundingsError(f"its forward changes {changed!r}")

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A value of the graph."""
        return ObservedProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Tensors that were reached without an attribute access, say through a list, are found by identity."""
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, Tensor):
            return self._tensor_proxy(a).node
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
            self._refuse_forward("switches gradients off")
        node = super().create_node(*args, **kwargs)
        changed = changed_in_place(node)
        if changed is not None and changed.op == "call_module":
            leaf = self.leaves.get(str(changed.target))
            if isinstance(leaf, TensorConstant) and not leaf.fresh:
                self._refuse_forward("changes a tensor that the model holds in place")
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

    def returns_something(self, target: str) -> bool:
        """Whether a module that the graph calls is certain not to return None: torch's own don't."""
        if target in self.leaves:
            return True
        called = self.exposure.model.get_submodule(target.removesuffix(f".{OPAQUE_PART}"))
        return all(type(module).__module__.startswith("torch.nn.modules.") for module in called.modules())

    def _tensor_proxy(self, tensor: Tensor) -> fx.Proxy:
        name = self.exposure.name_of(tensor) or self._buffer_names.get(id(tensor))
        if name is not None:
            return self._cached(name, lambda: self._create_tensor_proxy("get_attr", name, tensor))
        if tensor.requires_grad:
            self.refuse("it computes with parameters in a way that tracing would freeze into a constant")
        target, _ = self._constants.setdefault(id(tensor), (f"tensor_constant_{len(self._constants)}", tensor))
        self.leaves.setdefault(target, TensorConstant(tensor, fresh=storage_of(tensor) not in self._state.storages))
        return self._cached(target, lambda: self._create_tensor_proxy("call_module", target, tensor))

    def _create_tensor_proxy(self, kind: str, target: str, tensor: Tensor) -> fx.Proxy:
        return self.create_proxy(
            kind, target, (), {}, proxy_factory_fn=lambda node: ObservedTensor(self, node, tensor.shape)
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


class ChangedSurroundingsError(UntraceableError):
    """Raised at the end of a trace that changed something outside of the model."""
