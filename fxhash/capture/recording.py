"""One trace of a model: what it recorded, or why the model can't be traced."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import fx, nn

from fxhash.capture.assembly import detached
from fxhash.capture.example_values import ExampleValues
from fxhash.capture.exposure import Exposure
from fxhash.capture.own_modes import modules_with_own_modes
from fxhash.capture.reasons import Reason, where_raised
from fxhash.capture.tracer import ChangedSurroundingsError, ExposingTracer
from fxhash.capture.untraceable import (
    OpaqueCall,
    Untraceable,
    UntraceableError,
    never_traced_because,
    overrides_call,
    reason_of,
)
from fxhash.capture.wrapped_functions import RecordedFunctions
from fxhash.graph.names import OPAQUE_PART

# One trace at a time: it replaces functions that `torch.fx.wrap` names. A forked process starts with a lock of its own.
_lock = threading.Lock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@dataclass(frozen=True)
class Recording:
    """What a trace recorded.

    Attributes:
        graph: the graph, whose code Python accepts.
        leaves: training flags and tensor constants that the graph calls, by target.
        opaque: the modules that can't be traced, by path; the graph calls `OPAQUE_PART` below that path.
        is_spoiled: whether the trace left something changed in the model, such as an iterator.
    """

    graph: fx.Graph
    leaves: Mapping[str, nn.Module]
    opaque: Mapping[str, OpaqueCall]
    is_spoiled: bool


def record(
    exposure: Exposure,
    opaque: Mapping[str, str] = MappingProxyType({}),
    omitted: Mapping[str, Any] = MappingProxyType({}),
    examples: ExampleValues | None = None,
) -> Recording | Untraceable:
    """Trace a model. Afterwards the model is as before, whatever its forward does.

    Args:
        exposure: the model and what to expose of it.
        opaque: modules not to trace, by path, each with the reason.
        omitted: optional arguments that the calls of the model omit, with their defaults.
        examples: answers questions about sizes; if omitted, they are refused.

    Returns:
        The recording; or why the model can't be traced, not even with opaque submodules.
    """
    model = exposure.model
    opaque = {
        **dict.fromkeys(modules_with_own_modes(model), "its train() or eval() does more than set flags"),
        **opaque,
    }
    reason = opaque.get("") or never_traced_because(model)
    if overrides_call(model):
        reason = "it overrides __call__"
    if "forward" in vars(model):
        reason = "its forward was replaced"
    if reason:
        return Untraceable(Reason(reason, where_raised(None, model)))
    tracer = ExposingTracer(exposure, opaque, omitted=omitted, examples=examples)
    try:
        with _lock, RecordedFunctions() as functions:
            try:
                graph = tracer.record(functions)
            except ChangedSurroundingsError:
                spoiled = tracer.is_spoiled
                tracer = ExposingTracer(exposure, opaque, careful=True, omitted=omitted, examples=examples)
                tracer.is_spoiled = spoiled
                graph = tracer.record(functions)
        return _recording(tracer, detached(graph))
    except (UntraceableError, Exception) as error:
        return Untraceable(reason_of(error, model), tracer.is_spoiled)


def _recording(tracer: ExposingTracer, graph: fx.Graph) -> Recording:
    """A graph and what of its tracer it calls: not what lies in modules that were rolled back afterwards."""
    called = {node.target for node in graph.nodes if node.op == "call_module"}
    ours = {f"{path}.{OPAQUE_PART}" for path in tracer.opaque}
    if any(target.endswith(f".{OPAQUE_PART}") and target not in ours for target in called):
        # It could stay a graph, but then state dicts would have other names than those of files that were saved before.
        raise UntraceableError("it was traced before, and has opaque submodules")
    leaves = {target: leaf for target, leaf in tracer.leaves.items() if target in called}
    opaque = {path: call for path, call in tracer.opaque.items() if f"{path}.{OPAQUE_PART}" in called}
    return Recording(graph, leaves, opaque, tracer.is_spoiled)
