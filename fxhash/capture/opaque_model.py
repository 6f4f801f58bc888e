"""A model that can't be traced at all: a graph of one opaque call, with the model's own calling convention."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxhash.capture.assembly import assemble, detached
from fxhash.capture.exposure import Exposure
from fxhash.capture.opaque import OpaqueModule
from fxhash.capture.reasons import Reason
from fxhash.graph.names import OPAQUE_PART


def wrap_model(exposure: Exposure, reason: Reason) -> fx.GraphModule:
    """The whole model as one opaque submodule, which is passed the exposed parameters.

    Args:
        exposure: the model and what to expose; its exposed parameters are removed from the model.
        reason: why the model can't be traced.

    Raises:
        TransformError: for a default value of an argument that generated code can't spell.
    """
    graph = fx.Graph()
    inputs = _declare_inputs(graph, exposure.model)
    exposed = exposure.exposed_in("")
    weights = tuple(graph.get_attr(name) for name in exposed)
    graph.output(graph.call_module(OPAQUE_PART, (weights, tuple(inputs.args), inputs.kwargs), inputs.collected))
    plain = detached(graph)
    opaque = OpaqueModule(exposure.model, tuple(exposed.values()), reason, inputs.defaults)
    return assemble(exposure.model, plain, {**exposure.parameters, OPAQUE_PART: opaque}, "called as a whole")


@dataclass(frozen=True)
class _Inputs:
    """How an opaque call passes on the inputs of a graph.

    Attributes:
        args: those that the model is given by position.
        kwargs: those that it is given by name.
        collected: what its `*args` and `**kwargs` collect, by the names that `OpaqueModule.forward` has for them.
        defaults: the default of each in `kwargs` that has one.
    """

    args: list[fx.Node]
    kwargs: dict[str, fx.Node]
    collected: dict[str, Any]
    defaults: dict[str, Any]


def _declare_inputs(graph: fx.Graph, model: nn.Module) -> _Inputs:
    """Give a graph the arguments of a model's `forward` as its inputs."""
    inputs = _Inputs([], {}, {}, {})
    parameters = inspect.signature(model.forward).parameters.values()
    # Optional arguments go by name, so that those that a caller omits can be omitted.
    by_name = not {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY} & {
        parameter.kind for parameter in parameters
    }
    for parameter in parameters:
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else stars
        default = () if parameter.default is parameter.empty else (parameter.default,)
        node = graph.create_node("placeholder", stars + parameter.name, default)
        if stars:
            inputs.collected["more_args" if stars == "*" else "more_kwargs"] = node
        elif parameter.kind is parameter.KEYWORD_ONLY or (default and by_name):
            inputs.kwargs[parameter.name] = node
            if default:
                inputs.defaults[parameter.name] = parameter.default
        else:
            inputs.args.append(node)
    return inputs
