"""Capture a model as a graph in which every parameter of interest is a `get_attr` node.

`torch.fx.symbolic_trace` hides a convolution's weight inside a `call_module` node, and fails as a whole on one
untraceable block. The tracer here descends into every module that holds a parameter to expose, and no other: what
holds none stays one `call_module` node and behaves as before. A module that can't be traced is rolled back and
becomes one opaque call that is handed its parameters.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from fxhash.capture.copy_model import copy_model
from fxhash.capture.exported import Model, as_module, capture_exported, is_exported
from fxhash.capture.leaf_modules import TensorConstant, TrainingFlag
from fxhash.capture.opaque import OpaqueModule
from fxhash.errors import TransformError
from fxhash.graph.names import CAPTURED, OPAQUE_PART, WRAPPED_MODULE, free_name
from fxhash.smh.generator import find_generator
from fxhash.smh.parameters import refuse_lazy, tied_groups

# Of torch's own modules, those whose forward is plain arithmetic on their parameters. The others stay whole: they
# branch on their inputs (attention, recurrent layers) or on their mode (batch norm).
_TRACED_TORCH_MODULES = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
)

_SPELLABLE_DEFAULTS = (type(None), bool, int, float, str, torch.dtype)


def trace(model: Model, expose: Collection[str] | None = None) -> fx.GraphModule:
    """Capture `model` as a graph module whose parameters are `get_attr` nodes.

    `train()` and `eval()` keep working, before and after: `self.training` is recorded as a flag that follows them.
    A tied parameter, or one of a module that is called twice, is one node.

    Args:
        model: the module to capture, also a `GraphModule` or an `ExportedProgram`; it is left untouched, and nothing
            of the result but the values of exposed parameters is shared with it.
        expose: fully qualified names of the parameters to expose; all but those of batch and instance norms where
            left out. Modules that hold none of them are kept whole.

    Returns:
        A graph module with the same outputs, parameters and buffers; parts that could not be traced are
        `OpaqueModule` submodules, which say why.

    Raises:
        TransformError: if the model can't be copied, or a lazy module has not seen a batch yet.

    Example:
        >>> traced = trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
        >>> [node.op for node in traced.graph.nodes]
        ['placeholder', 'get_attr', 'get_attr', 'call_function', 'call_module', 'output']
    """
    model = as_module(model)
    if find_generator(model) is not None:
        raise TransformError("this model is transformed already: its weights are generated. Trace the original model")
    refuse_lazy(model)
    _check_names(model)
    exposed = set(_all_but_batch_norms(model) if expose is None else expose)
    if isinstance(model, fx.GraphModule) and is_exported(model):
        captured = capture_exported(model, exposed)
        captured.meta[CAPTURED] = "taken over from an exported program"
        return captured
    structure = copy_model(model, shared=exposed)
    with _preserving_random_state(), torch.inference_mode(False), torch.enable_grad():
        try:
            return _Capture(structure, exposed).traced()
        except Exception as error:
            return _Capture(structure, exposed).opaque(_one_line(error))


def _check_names(model: nn.Module) -> None:
    """Raise TransformError for names that a graph module, or an opaque part in it, needs itself."""
    if isinstance(model, fx.GraphModule):
        return
    for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers()):
        first, *_ = atoms = name.split(".")
        taken = hasattr(fx.GraphModule, first) and not hasattr(nn.Module, first)
        if taken or {OPAQUE_PART, WRAPPED_MODULE} & set(atoms):
            raise TransformError(f"{name!r} has a name that a graph module uses itself: rename it in the model")


def _all_but_batch_norms(model: nn.Module) -> Iterator[str]:
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for parameter in module.parameters(recurse=False)
    }
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in norms:
            yield name


class _Capture:
    """One capture of `root`, a copy that belongs to the capture."""

    def __init__(self, root: nn.Module, exposed: set[str]) -> None:
        self.root = root
        self.parameter_names: dict[int, str] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self.exposed_ids: set[int] = set()
        for names, parameters in tied_groups(root):
            self.parameters[names[0]] = parameters[0]
            self.parameter_names.update({id(parameter): names[0] for parameter in parameters})
            if any(name in exposed for name in names):
                self.exposed_ids.update(map(id, parameters))
        self.holds_exposed = {
            id(module): not isinstance(module, torch.jit.ScriptModule)
            and any(id(parameter) in self.exposed_ids for parameter in module.parameters())
            for module in root.modules()
        }

    def traced(self) -> fx.GraphModule:
        reason = _never_traced_because(self.root) or (_has_hooks(self.root) and "it has hooks")
        if type(self.root).__call__ is not nn.Module.__call__ and not isinstance(self.root, fx.GraphModule):
            reason = "it overrides __call__"
        if reason:
            raise _UntraceableError(reason)
        tracer = _ExposingTracer(self)
        with (
            _restoring_attributes(self.root),
            _recording_training_flags(self, tracer),
            _refusing_blocks(),
            _refusing_side_effects(*self.root.modules()),
        ):
            graph = tracer.trace(self.root)
            self._check_optional_arguments(graph)
        modules = dict(tracer.modules)
        for target in {node.target for node in graph.nodes if node.op == "call_module"} - modules.keys():
            path = target.removesuffix(f".{OPAQUE_PART}")
            modules[target] = module = self.root.get_submodule(path)
            if path != target:
                names = tuple(self.names_inside(path).values())
                modules[target] = OpaqueModule(module, names, tracer.opaque[path])
        return self._graph_module(graph, modules)

    def _check_optional_arguments(self, graph: fx.Graph) -> None:
        """Refuse a forward that asks whether an optional argument is None, which a trace can't see it ask."""
        optional = [node.target for node in graph.nodes if node.op == "placeholder" and node.args == (None,)]
        if optional:
            absent = _ExposingTracer(self).trace(self.root, concrete_args=dict.fromkeys(optional))
            if _operations(absent) != _operations(graph):
                raise _UntraceableError(
                    f"it does something else where an optional argument ({', '.join(optional)}) is None"
                )

    def opaque(self, reason: str) -> fx.GraphModule:
        """The whole model as one opaque call."""
        graph = fx.Graph()
        args: list[fx.Node] = []
        kwargs: dict[str, fx.Node] = {}
        defaults: dict[str, Any] = {}
        parameters = inspect.signature(self.root.forward).parameters.values()
        # Optional arguments go by name, so that those that a caller leaves out can be left out.
        by_name = not {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY} & {
            parameter.kind for parameter in parameters
        }
        collected: dict[str, Any] = {}
        for parameter in parameters:
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
            stars = "**" if parameter.kind is parameter.VAR_KEYWORD else stars
            default = () if parameter.default is parameter.empty else (parameter.default,)
            node = graph.create_node("placeholder", stars + parameter.name, default)
            if stars:
                collected["more_args" if stars == "*" else "more_kwargs"] = node
            elif parameter.kind is parameter.KEYWORD_ONLY or (default and by_name):
                kwargs[parameter.name] = node
                if default:
                    defaults[parameter.name] = parameter.default
            else:
                args.append(node)
        exposed = self.names_inside("")
        weights = tuple(graph.get_attr(name) for name in exposed)
        graph.output(graph.call_module(OPAQUE_PART, (weights, tuple(args), kwargs), collected))
        part = OpaqueModule(self.root, tuple(exposed.values()), reason, defaults)
        return self._graph_module(graph, {OPAQUE_PART: part})

    def names_inside(self, path: str) -> dict[str, tuple[str, ...]]:
        """The exposed parameters inside the module at `path`: their name in the model, and those in the module."""
        groups: dict[str, tuple[str, ...]] = {}
        for name, parameter in self.root.get_submodule(path).named_parameters(remove_duplicate=False):
            if id(parameter) in self.exposed_ids:
                fqn = self.parameter_names[id(parameter)]
                groups[fqn] = (*groups.get(fqn, ()), name)
        return groups

    def _graph_module(self, graph: fx.Graph, modules: dict[str, nn.Module]) -> fx.GraphModule:
        # A graph of its own, which doesn't refer to the tracer: unpickling would trace with it again.
        plain = fx.Graph()
        plain.output(plain.graph_copy(graph, val_map={}))
        _check_defaults(plain)
        buffers = dict(self.root.named_buffers())
        attributes: dict[str, Any] = {}
        for node in plain.nodes:
            if isinstance(node.type, str):
                # An annotation under `from __future__ import annotations`; with it, older torch can't pickle the graph.
                node.type = None
            if node.op == "call_module":
                attributes[node.target] = modules[node.target]
            elif node.op == "get_attr":
                attributes[node.target] = self.parameters.get(node.target, buffers.get(node.target))
        graph_module = fx.GraphModule(attributes, plain, class_name=type(self.root).__name__)
        graph_module.training = self.root.training
        whole = any(node.target == OPAQUE_PART for node in plain.nodes)
        again = "traced again, as a graph module" if isinstance(self.root, fx.GraphModule) else "traced"
        graph_module.meta[CAPTURED] = "called as a whole" if whole else again
        return graph_module


def _check_defaults(graph: fx.Graph) -> None:
    """Raise TransformError for a default value that generated code can't spell."""
    for node in graph.nodes:
        if node.op == "placeholder" and node.args and not isinstance(node.args[0], _SPELLABLE_DEFAULTS):
            raise TransformError(
                f"argument {node.target!r} of forward has a {type(node.args[0]).__name__} as its default, which a "
                "graph can't hold: let it be None, and choose inside forward"
            )


def _operations(graph: fx.Graph) -> list[tuple[str, Any]]:
    """What a graph does, without its inputs and torch's checks of fixed arguments."""
    return [
        (node.op, node.target)
        for node in graph.nodes
        if node.op != "placeholder" and getattr(node.target, "__name__", "") != "_assert_is_none"
    ]


class _ExposingTracer(fx.Tracer):
    """Descends into the modules that hold an exposed parameter, and rolls back those that can't be traced."""

    def __init__(self, capture: _Capture) -> None:
        super().__init__()
        self.capture = capture
        self.buffer_names: dict[int, str] = {}
        self.modules: dict[str, nn.Module] = {}
        self.opaque: dict[str, str] = {}
        self.proxies: dict[str, fx.Proxy] = {}
        self.constants: dict[int, tuple[str, Tensor]] = {}
        self.attributes = {
            id(value)
            for module in capture.root.modules()
            for value in (*vars(module).values(), *module._buffers.values())
            if isinstance(value, Tensor)
        }
        for path, module in capture.root.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    self.buffer_names.setdefault(id(buffer), f"{path}.{name}" if path else name)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whatever holds no exposed parameter stays one node."""
        return not self.capture.holds_exposed[id(m)]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Descend, or fall back to an opaque call."""
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        reason = self.opaque.get(path) or _never_traced_because(m)
        if not reason:
            last_node = next(iter(reversed(self.graph.nodes)))
            stack, calls = self.module_stack.copy(), self.num_calls.copy()
            try:
                with _refusing_side_effects(*m.modules()):
                    return super().call_module(m, forward, args, kwargs)
            except Exception as error:
                reason = _one_line(error)
                self._roll_back_to(last_node)
                self.module_stack, self.num_calls = stack, calls
        self.opaque[path] = reason
        weights = tuple(self._tensor_proxy(self.capture.parameters[fqn]) for fqn in self.capture.names_inside(path))
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
        """Record nothing inside a `no_grad` block: the graph would forget the block."""
        if not torch.is_grad_enabled():
            raise _UntraceableError("its forward switches gradients off")
        return super().create_node(*args, **kwargs)

    def training_flag(self, module: nn.Module) -> fx.Proxy:
        """What a traced `self.training` evaluates to."""
        path = self.path_of_module(module)
        name = free_name(module, "training_flag")
        target = f"{path}.{name}" if path else name
        self.modules.setdefault(target, TrainingFlag(vars(module)["training"]))
        return self._cached(target, lambda: self.create_proxy("call_module", target, (), {}))

    def _tensor_proxy(self, tensor: Tensor) -> fx.Proxy:
        name = self.capture.parameter_names.get(id(tensor)) or self.buffer_names.get(id(tensor))
        if name is not None:
            return self._cached(
                name,
                lambda: self.create_proxy(
                    "get_attr", name, (), {}, proxy_factory_fn=lambda node: _TensorProxy(self, node, tensor)
                ),
            )
        if tensor.requires_grad:
            raise _UntraceableError("it computes with parameters in a way that tracing would freeze into a constant")
        target, _ = self.constants.setdefault(id(tensor), (f"tensor_constant_{len(self.constants)}", tensor))
        self.modules.setdefault(target, TensorConstant(tensor, fresh=id(tensor) not in self.attributes))
        return self._cached(
            target,
            lambda: self.create_proxy(
                "call_module", target, (), {}, proxy_factory_fn=lambda node: _TensorProxy(self, node, tensor)
            ),
        )

    def _cached(self, target: str, create: Callable[[], fx.Proxy]) -> fx.Proxy:
        if target not in self.proxies:
            self.proxies[target] = create()
        return self.proxies[target]

    def _roll_back_to(self, last_node: fx.Node) -> None:
        """Forget every node after `last_node`."""
        erased = set()
        for node in reversed(self.graph.nodes):
            if node is last_node:
                break
            erased.add(node)
            self.graph.erase_node(node)
        self.proxies = {target: proxy for target, proxy in self.proxies.items() if proxy.node not in erased}


class _TensorProxy(fx.Proxy):
    """A parameter or buffer, whose shape is known while tracing; its type and device may change later."""

    def __init__(self, tracer: fx.Tracer, node: fx.Node, tensor: Tensor) -> None:
        super().__init__(node, tracer)
        self._tensor_shape = tensor.shape

    @property
    def shape(self) -> torch.Size:
        return self._tensor_shape

    @property
    def ndim(self) -> int:
        return len(self._tensor_shape)

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self._tensor_shape if dim is None else self._tensor_shape[dim]

    def dim(self) -> int:
        return len(self._tensor_shape)

    def numel(self) -> int:
        return self._tensor_shape.numel()

    nelement = numel

    def __len__(self) -> int:
        return self._tensor_shape[0]


class _UntraceableError(Exception):
    """Raised inside a trace to roll back the module at hand."""


def _never_traced_because(module: nn.Module) -> str:
    """Why a module is opaque whatever its forward does; an empty string if it may be traced."""
    kind = type_before_parametrizations(module)
    if _has_hooks(module):
        return "it has hooks"
    if getattr(module, "max_norm", None) is not None and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "max_norm changes its weight in place"
    if kind.__module__.startswith("torch.nn.modules.") and not issubclass(kind, _TRACED_TORCH_MODULES):
        return f"torch.nn.{kind.__name__} branches on its inputs or mode"
    return ""


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


@contextmanager
def _recording_training_flags(capture: _Capture, tracer: _ExposingTracer) -> Iterator[None]:
    """Make `self.training` a value of the graph in the modules that may be traced."""

    def training(module: nn.Module) -> fx.Proxy:
        return tracer.training_flag(module)

    classes: dict[type, type] = {}
    swapped: list[tuple[nn.Module, type]] = []
    try:
        for module in capture.root.modules():
            kind = type(module)
            own_kind = type_before_parametrizations(module)
            if capture.holds_exposed[id(module)] and not own_kind.__module__.startswith("torch."):
                if kind not in classes:
                    classes[kind] = type(kind.__name__, (kind,), {"training": property(training)})
                module.__class__ = classes[kind]
                swapped.append((module, kind))
        yield
    finally:
        for module, kind in swapped:
            module.__class__ = kind


@contextmanager
def _restoring_attributes(root: nn.Module) -> Iterator[None]:
    """Undo what a traced forward leaves behind in its modules, such as a cached activation that is now a proxy."""
    tables = ("_parameters", "_buffers", "_modules")
    modules = [module for module in root.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [(module, dict(vars(module)), {name: dict(vars(module)[name]) for name in tables}) for module in modules]
    plain = [value for module in modules for value in vars(module).values() if isinstance(value, Tensor)]
    values = [(tensor, _version(tensor), tensor.detach().clone()) for tensor in plain]
    try:
        yield
    finally:
        for module, attributes, contents in before:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in contents.items():
                vars(module)[name].clear()
                vars(module)[name].update(content)
        for tensor, version, value in values:
            if _version(tensor) != version:
                tensor.detach().copy_(value)


@contextmanager
def _refusing_side_effects(*modules: nn.Module) -> Iterator[None]:
    """Refuse what would happen while tracing instead of at each call; on any error, undo it.

    That is: random numbers that are drawn outside of any traced operation, buffers that are assigned anew, plain
    attributes that count calls, and tensors that are changed in place.
    """
    random_state = _random_state()
    before = [(module, _state_of(module)) for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    try:
        yield
        if not _is_random_state(random_state):
            raise _UntraceableError("its forward draws random numbers outside of any traced operation")
        for module, state in before:
            now = _state_of(module)
            changed = [name for name, value in state.items() if name not in now or not _is_same(now[name], value)]
            if changed:
                raise _UntraceableError(f"its forward changes its attribute {changed[0]!r}")
    except Exception:
        _set_random_state(random_state)
        for module, state in before:
            module._buffers.update({name: value for name, (value, _) in state.items() if name in module._buffers})
            vars(module).update({name: value for name, (value, _) in state.items() if name in vars(module)})
        raise


def _state_of(module: nn.Module) -> dict[str, tuple[Any, int]]:
    """Buffers, plain tensors, and plain numbers and texts of a module, each with its version if it is a tensor."""
    values = {**module._buffers, **vars(module)}
    return {
        name: (value, _version(value) if isinstance(value, Tensor) else 0)
        for name, value in values.items()
        if isinstance(value, (Tensor, bool, int, float, str)) or name in module._buffers
    }


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; tensors that were made in inference mode don't count."""
    return 0 if tensor.is_inference() else tensor._version


def _is_same(now: tuple[Any, int], before: tuple[Any, int]) -> bool:
    if isinstance(before[0], Tensor):
        return now[0] is before[0] and now[1] == before[1]
    return type(now[0]) is type(before[0]) and bool(now[0] == before[0])


def _random_state() -> tuple[Tensor, object, Any]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)


def _is_random_state(state: tuple[Tensor, object, Any]) -> bool:
    torch_state, python_state, numpy_state = _random_state()
    return (
        torch.equal(torch_state, state[0])
        and python_state == state[1]
        and numpy_state["state"]["pos"] == state[2]["state"]["pos"]
        and bool((numpy_state["state"]["key"] == state[2]["state"]["key"]).all())
    )


def _set_random_state(state: tuple[Tensor, Any, Any]) -> None:
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])


@contextmanager
def _refusing_blocks() -> Iterator[None]:
    """The graph would forget an autocast block, also one that switches autocast off, and one that checkpoints."""
    refused: dict[type, str] = {
        torch.autocast: "its forward switches autocast on or off",
        torch.autograd.graph.saved_tensors_hooks: "its forward checkpoints, or saves tensors in its own way",
    }
    entering = {block: block.__dict__["__enter__"] for block in refused}
    for block, reason in refused.items():
        _set_enter(block, partial(_refuse, reason))
    try:
        yield
    finally:
        for block, enter in entering.items():
            _set_enter(block, enter)


def _set_enter(block: Any, enter: Callable[..., Any]) -> None:
    block.__enter__ = enter


def _refuse(reason: str, *_: Any) -> None:
    raise _UntraceableError(reason)


@contextmanager
def _preserving_random_state() -> Iterator[None]:
    state = _random_state()
    try:
        yield
    finally:
        _set_random_state(state)


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    return message if isinstance(error, _UntraceableError) else f"{type(error).__name__}: {message}"
