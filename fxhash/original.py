"""What a transformed model passes on of the original: attributes and methods that need none of its layers.

A traced model is a graph: what its class could do beside `forward` is gone with the layers. Attributes that hold no
weight, such as `config`, are copied. A method runs on a stand-in that has these attributes and nothing else. It may
call the model, but where it reads a layer or sets an attribute it is refused, since neither would do what it says. A
model that is called as a whole still has its layers: any method runs there, with the generated weights.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxhash.capture.opaque import OpaqueModule
from fxhash.capture.references import references_from
from fxhash.capture.replicas import owners_of, replicate, set_parameters, take_over
from fxhash.errors import TransformError
from fxhash.graph.names import OPAQUE_PART, TRANSFORMED
from fxhash.lowering.factor_store import FactorStore
from fxhash.smh.generator import SMHGenerator

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Original:
    """What is kept of a model that was transformed: its class, and the attributes that hold no weight.

    A copy by `pickle` lacks those of them that can't be pickled, or that can't be read where it is unpickled.

    Args:
        kind: the class; None if it can't be found.
        attributes: by name, copied.
        hidden: names of layers, parameters, buffers, and attributes that hold some.
    """

    def __init__(self, kind: type[nn.Module] | None, attributes: Mapping[str, Any], hidden: frozenset[str]) -> None:
        self.kind = kind
        self.attributes = dict(attributes)
        self.hidden = hidden

    @classmethod
    def of(cls, model: nn.Module) -> Original:
        """What is kept of a model, which is left untouched."""
        tables = (model._parameters, model._buffers, model._modules)
        attributes, hidden = {}, {name for table in tables for name in table}
        for name, value in vars(model).items():
            if name.startswith("_") or name in _OF_EVERY_MODULE:
                continue
            try:
                if not holds_weights(value):
                    attributes[name] = copy.deepcopy(value)
            except Exception:  # Whatever the attributes of strangers raise when they are copied.
                pass
            if name not in attributes:
                hidden.add(name)
        return cls(None if isinstance(model, fx.GraphModule) else type(model), attributes, frozenset(hidden))

    def __deepcopy__(self, memo: dict[int, Any]) -> Original:
        return Original(self.kind, copy.deepcopy(self.attributes, memo), self.hidden)

    def __reduce__(self) -> tuple[Any, ...]:
        attributes = {}
        for name, value in self.attributes.items():
            with suppress(Exception):
                attributes[name] = pickle.dumps(value)
        kind = None if self.kind is None else (self.kind.__module__, self.kind.__qualname__)
        return _unpickled_original, (kind, attributes, self.hidden)


def _unpickled_original(
    kind: tuple[str, str] | None, attributes: Mapping[str, bytes], hidden: frozenset[str]
) -> Original:
    found, read = None, {}
    if kind is not None:
        with suppress(Exception):
            found = attrgetter(kind[1])(importlib.import_module(kind[0]))
    for name, value in attributes.items():
        with suppress(Exception):
            read[name] = pickle.loads(value)
    return Original(found, read, hidden | (attributes.keys() - read.keys()))


class TransformedModule(fx.GraphModule):
    """A transformed or lowered model: a graph module that passes on what the original had; made by `pass_on`."""

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        return pass_on(super().__deepcopy__(memo))

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (body, imports) = super().__reduce__()
        return _unpickled_model, (rebuild, ({**body, "_tracer_cls": _Retracer}, imports), self.meta.get(TRANSFORMED))


class _Retracer(fx.Tracer):
    """Traces the code of a graph module that is unpickled: what it does with buffers alone is recorded, not done."""

    proxy_buffer_attributes = True


def _unpickled_model(
    rebuild: Callable[..., fx.GraphModule], arguments: tuple[Any, ...], transformed: fx.Graph | None = None
) -> fx.GraphModule:
    gm = rebuild(*arguments)
    if transformed is not None:
        gm.meta[TRANSFORMED] = transformed
    return pass_on(gm)


def pass_on(gm: fx.GraphModule) -> fx.GraphModule:
    """Let a transformed or lowered model pass on what its original had and it lacks itself, in place; gives it back."""
    original = _original_of(gm)
    if original is None:
        return gm
    kind: Any = type(gm)
    if not isinstance(gm, TransformedModule):
        # Each graph module has a class of its own.
        kind.__bases__ = (TransformedModule,)
    names = {*original.attributes, *(dir(original.kind) if original.kind is not None else ())}
    for name in names:
        if not name.startswith("_") and not hasattr(gm, name):
            setattr(kind, name, _PassedOn(name))
    return gm


def holds_weights(value: Any) -> bool:
    """Whether a module or tensor can be reached from a value."""
    return any(isinstance(reference.target, (nn.Module, Tensor)) for reference in references_from(value))


class _PassedOn:
    """An attribute of a transformed model that its original had."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, gm: fx.GraphModule | None, owner: type) -> Any:
        if gm is None:
            return self
        original = _original_of(gm)
        assert original is not None
        whole = dict(gm.named_children()).get(OPAQUE_PART)
        if isinstance(whole, OpaqueModule):
            kept = vars(whole.wrapped_module)
            if self.name in kept and not holds_weights(kept[self.name]):
                return kept[self.name]
        elif self.name in original.attributes:
            return original.attributes[self.name]
        found = inspect.getattr_static(original.kind, self.name, None)
        if isinstance(found, (classmethod, staticmethod)):
            return getattr(original.kind, self.name)
        run = _run_as_a_whole if isinstance(whole, OpaqueModule) else _run_on_stand_in
        if inspect.isfunction(found):
            return functools.wraps(found)(functools.partial(run, gm, self.name))
        if not hasattr(type(found), "__get__"):
            return found
        try:
            return run(gm, self.name)
        except TransformError as error:
            raise AttributeError(str(error)) from error


def _original_of(gm: nn.Module) -> Original | None:
    holder = next((child for child in gm.children() if isinstance(child, (SMHGenerator, FactorStore))), None)
    original = None if holder is None else holder.original
    assert original is None or isinstance(original, Original)
    return original


def _run_on_stand_in(gm: fx.GraphModule, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method, or read a property, of a traced model's original, on what has its attributes but no layers."""
    original = _original_of(gm)
    assert original is not None
    assert original.kind is not None
    kind = original.kind
    where = f"{kind.__name__}.{name}"

    def refuse_to_read(self: Any, attribute: str) -> Any:
        if attribute in original.hidden or attribute in _OF_EVERY_MODULE:
            raise TransformError(
                f"{where} needs the layers of the model (it reads {attribute!r}), which a traced model has no more: "
                "transform it with capture='modules', whose methods work"
            )
        raise AttributeError(f"{kind.__name__!r} object has no attribute {attribute!r}")

    def refuse_to_set(self: Any, attribute: str, *value: Any) -> None:
        raise TransformError(
            f"{where} changes {attribute!r}, which a traced model would not follow: call it on the original before "
            "fxhash.transform, or transform with capture='modules'"
        )

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return gm(*args, **kwargs)

    members = {
        **dict.fromkeys(("__call__", "forward"), call),
        **dict.fromkeys(("__setattr__", "__delattr__"), refuse_to_set),
        "__getattr__": refuse_to_read,
    }
    stand_in: Any = object.__new__(type(kind.__name__, (kind,), members))
    vars(stand_in).update(original.attributes, training=gm.training)
    found = getattr(stand_in, name)
    result = found(*args, **kwargs) if inspect.ismethod(found) else found
    return gm if result is stand_in else result


def _run_as_a_whole(gm: fx.GraphModule, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method, or read a property, of a model that is called as a whole, with its weights generated once."""
    opaque = gm.get_submodule(OPAQUE_PART)
    assert isinstance(opaque, OpaqueModule)
    where = f"{type(opaque.wrapped_module).__name__}.{name}"
    if opaque.is_reached_otherwise:
        raise TransformError(
            f"{where} can't be called on a transformed model, whose layers are reached by more than their parents: "
            "call it on fxhash.materialize(...)"
        )
    (call,) = [node for node in gm.graph.nodes if node.op == "call_module" and node.target == OPAQUE_PART]
    weights = _weights_of(gm, call)
    replicas = replicate(opaque.wrapped_module)
    replica = replicas[id(opaque.wrapped_module)]
    set_parameters(owners_of(replica, opaque.names), weights)
    for weight in weights:
        weight._is_param = True
    dense = [each for each in opaque.wrapped_module.parameters() if each.is_leaf]
    kept = [each.detach().clone() for each in dense]
    layers, values = _layers_of(replica), [each.detach().clone() for each in weights]
    found = getattr(replica, name)
    result = found(*args, **kwargs) if inspect.ismethod(found) else found
    if layers != _layers_of(replica) or not _are_equal([*weights, *dense], [*values, *kept]):
        with torch.no_grad():
            for parameter, value in zip(dense, kept, strict=True):
                parameter.copy_(value)
        raise TransformError(
            f"{where} changes layers or weights, which generated weights don't follow: call it on the original before "
            "fxhash.transform"
        )
    take_over(opaque.wrapped_module, replicas)
    return gm if result is replica else result


def _weights_of(gm: fx.GraphModule, call: fx.Node) -> list[Any]:
    """The weights that a graph passes to the model that it calls as a whole."""
    interpreter = fx.Interpreter(gm)
    values: dict[fx.Node, Any] = {}

    def value(node: fx.Node) -> Any:
        if node not in values:
            args, kwargs = fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value)
            values[node] = getattr(interpreter, node.op)(node.target, args, kwargs)
        return values[node]

    nodes: Any = call.args[0]
    return [value(node) for node in nodes]


def _layers_of(model: nn.Module) -> list[tuple[Any, ...]]:
    """Which modules a model has, and which parameters these hold; lowered layers compute theirs whenever asked."""
    layers = [(path, id(module)) for path, module in model.named_modules()]
    held = [
        (path, name, id(parameter))
        for path, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule) and not hasattr(type(module), "parameters_in_call")
        for name, parameter in vars(module)["_parameters"].items()
    ]
    return [*layers, *held]


@torch.no_grad()
def _are_equal(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether tensors of the same shapes have the same values; NaN equals itself."""
    pairs = zip(tensors, others, strict=True)
    return all(bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all()) for one, other in pairs)
