"""Capture a model as a graph in which every parameter of interest is a `get_attr` node.

`torch.fx.symbolic_trace` hides a convolution's weight in a `call_module` node, and fails as a whole on one untraceable
block. Here the tracer descends into every module that holds a parameter to expose, and no other: what holds none stays
one `call_module` node and behaves as before. A module that can't be traced is rolled back and becomes one opaque call
that is passed its parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxhash.capture.assembly import assemble
from fxhash.capture.copy_model import copy_model
from fxhash.capture.example_values import ExampleValues
from fxhash.capture.exported import Model, as_module, capture_exported, is_exported
from fxhash.capture.exposure import Exposure
from fxhash.capture.foreign_modules import without_compilation
from fxhash.capture.opaque import OpaqueModule
from fxhash.capture.opaque_model import wrap_model
from fxhash.capture.recording import Recording, record
from fxhash.capture.untraceable import Untraceable
from fxhash.errors import TransformError
from fxhash.graph.names import OPAQUE_PART, WRAPPED_MODULE
from fxhash.smh.checks import check_names
from fxhash.smh.generator import find_generator
from fxhash.smh.parameters import refuse_lazy


def trace(model: Model, expose: Collection[str] | None = None) -> fx.GraphModule:
    """Capture `model` as a graph module whose parameters are `get_attr` nodes.

    `train()` and `eval()` keep working, before and after: `self.training` is recorded as a flag that follows them.
    A tied parameter, or one of a module that is called twice, is one node.

    Args:
        model: the module to capture, also a `GraphModule` or an `ExportedProgram`; it is left untouched, and nothing
            of the result but the values of exposed parameters is shared with it.
        expose: fully qualified names of the parameters to expose; if omitted, all but those of batch and instance
            norms. Modules that hold none of them are kept whole.

    Returns:
        A graph module with the same outputs, parameters and buffers; submodules that could not be traced are
        `OpaqueModule`s, which say why.

    Raises:
        TransformError: if the model can't be copied, a lazy module has not seen a batch yet, or a name in the model or
            a default of its `forward` is one that a graph module can't have.
        PlanError: if a name to expose is no parameter's.

    Example:
        >>> traced = trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
        >>> [node.op for node in traced.graph.nodes]
        ['placeholder', 'get_attr', 'get_attr', 'call_function', 'call_module', 'output']
    """
    return trace_without(model, expose, {})


def trace_without(
    model: Model,
    expose: Collection[str] | None,
    opaque: Mapping[str, str],
    omitted: Mapping[str, Any] = MappingProxyType({}),
    examples: ExampleValues | None = None,
) -> fx.GraphModule:
    """The same, with some modules opaque, or without some arguments.

    Args:
        model: the module to capture.
        expose: names of the parameters to expose.
        opaque: modules not to trace, by path, each with the reason; the empty path is the model itself.
        omitted: optional arguments that the calls of the model omit, by name, with their defaults: the graph raises a
            TransformError for any other value of these.
        examples: answers questions about sizes, and the graph raises a TransformError where the answer is another; if
            omitted, they are refused.
    """
    model = as_module(model)
    if find_generator(model) is not None:
        raise TransformError("this model is transformed already: its weights are generated. Trace the original model")
    refuse_lazy(model)
    _check_names(model)
    exposed = set(_all_but_batch_norms(model)) if expose is None else _names(model, expose)
    if isinstance(model, fx.GraphModule) and is_exported(model):
        return capture_exported(model, exposed)
    exposure = Exposure.of(without_compilation(copy_model(model, shared=exposed)), exposed)
    with torch.inference_mode(False), torch.enable_grad():
        recorded = record(exposure, opaque, omitted, examples)
        if recorded.is_spoiled:
            exposure = Exposure.of(without_compilation(copy_model(model, shared=exposed)), exposed)
        if isinstance(recorded, Untraceable):
            return wrap_model(exposure, recorded.reason)
        return _assemble_recording(exposure, recorded)


def _check_names(model: nn.Module) -> None:
    """Raise TransformError for names that a graph module, or an opaque submodule of it, needs itself."""
    if isinstance(model, fx.GraphModule):
        return
    for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers()):
        first, *_ = atoms = name.split(".")
        taken = hasattr(fx.GraphModule, first) and not hasattr(nn.Module, first)
        if taken or {OPAQUE_PART, WRAPPED_MODULE} & set(atoms):
            raise TransformError(f"{name!r} has a name that a graph module uses itself: rename it in the model")


def _names(model: nn.Module, expose: Collection[str]) -> set[str]:
    return check_names("expose", expose, {name for name, _ in model.named_parameters(remove_duplicate=False)})


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


def _assemble_recording(exposure: Exposure, recording: Recording) -> fx.GraphModule:
    """The graph module of a recording; the parameters of its opaque submodules are removed from the model."""
    model = exposure.model
    attributes: dict[str, Tensor | nn.Module] = {
        **dict(model.named_modules(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
        **exposure.parameters,
        **recording.leaves,
    }
    for path, call in recording.opaque.items():
        attributes[f"{path}.{OPAQUE_PART}"] = OpaqueModule(model.get_submodule(path), call.names, call.reason)
    again = "traced again, as a graph module" if isinstance(model, fx.GraphModule) else "traced"
    whole = any(node.target == OPAQUE_PART for node in recording.graph.nodes)
    return assemble(model, recording.graph, attributes, "called as a whole" if whole else again)
