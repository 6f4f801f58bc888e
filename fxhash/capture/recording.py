"""One trace of a model: what it recorded, or why the model can't be traced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxhash.capture.assembly import detached
from fxhash.capture.exposure import Exposure
from fxhash.capture.refused_blocks import refusing_blocks
from fxhash.capture.side_effects import refusing_side_effects, restoring_attributes
from fxhash.capture.tracer import ExposingTracer, OpaqueCall
from fxhash.capture.untraceable import Untraceable, UntraceableError, never_traced_because, reason_of
from fxhash.graph.names import OPAQUE_PART


@dataclass(frozen=True)
class Recording:
    """What a trace recorded.

    Attributes:
        graph: the graph, whose code Python accepts.
        leaves: training flags and tensor constants that the graph calls, by target.
        opaque: the modules that can't be traced, by path; the graph calls `OPAQUE_PART` below that path.
    """

    graph: fx.Graph
    leaves: Mapping[str, nn.Module]
    opaque: Mapping[str, OpaqueCall]


def record(exposure: Exposure) -> Recording | Untraceable:
    """Trace a model. Afterwards the model is as before, whatever its forward does.

    Returns:
        The recording; or why the model can't be traced, not even with opaque submodules.
    """
    model = exposure.model
    reason = never_traced_because(model)
    if type(model).__call__ is not nn.Module.__call__ and not isinstance(model, fx.GraphModule):
        reason = "it overrides __call__"
    if reason:
        return Untraceable(reason)
    try:
        tracer = ExposingTracer(exposure)
        with (
            restoring_attributes(model),
            tracer.recording_training_flags(),
            refusing_blocks(),
            refusing_side_effects(model),
        ):
            graph = tracer.trace(model)
            _check_optional_arguments(exposure, graph)
        return _recording(tracer, detached(graph))
    except Exception as error:
        return Untraceable(reason_of(error))


def _recording(tracer: ExposingTracer, graph: fx.Graph) -> Recording:
    """A graph and what of its tracer it calls: not what lies in modules that were rolled back afterwards."""
    called = {node.target for node in graph.nodes if node.op == "call_module"}
    ours = {f"{path}.{OPAQUE_PART}" for path in tracer.opaque}
    if any(target.endswith(f".{OPAQUE_PART}") and target not in ours for target in called):
        # It could stay a graph, but then state dicts would have other names than those of files that were saved before.
        raise UntraceableError("it was traced before, and has opaque submodules")
    leaves = {target: leaf for target, leaf in tracer.leaves.items() if target in called}
    opaque = {path: call for path, call in tracer.opaque.items() if f"{path}.{OPAQUE_PART}" in called}
    return Recording(graph, leaves, opaque)


def _check_optional_arguments(exposure: Exposure, graph: fx.Graph) -> None:
    """Refuse a forward that asks whether an optional argument is None, which a trace can't see it ask."""
    optional = [node.target for node in graph.nodes if node.op == "placeholder" and node.args == (None,)]
    if optional:
        # Training flags are recorded by the first tracer alone. A forward that reads `self.training` fails here, and
        # the model stays opaque as a whole: so it is in the state dicts of saved files.
        absent = ExposingTracer(exposure).trace(exposure.model, concrete_args=dict.fromkeys(optional))
        if _operations(absent) != _operations(graph):
            raise UntraceableError(f"it does something else where an optional argument ({', '.join(optional)}) is None")


def _operations(graph: fx.Graph) -> list[tuple[str, Any]]:
    """What a graph does, without its inputs and torch's checks of fixed arguments."""
    return [
        (node.op, node.target)
        for node in graph.nodes
        if node.op != "placeholder" and getattr(node.target, "__name__", "") != "_assert_is_none"
    ]
