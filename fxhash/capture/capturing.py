"""Capture a model as the user asks for it: traced or by modules, and checked on example inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from torch import fx, nn

from fxhash.capture.called_code import called_functions
from fxhash.capture.checking import (
    Call,
    ExampleInputs,
    code_called,
    difference,
    differing_parts,
    omitted_arguments,
    read_examples,
)
from fxhash.capture.example_values import ExampleValues, example_values
from fxhash.capture.kept_state import KeptState
from fxhash.capture.references import globals_in
from fxhash.capture.tracing import trace, trace_without
from fxhash.capture.weight_changes import refuse_changed_weights
from fxhash.errors import TransformError, shown
from fxhash.graph.names import CAPTURED, OPAQUE_PART, original_name

CAPTURES = ("trace", "modules")
# The share of the weights above which opaque submodules are too much.
MOST_OPAQUE = 0.2


def capture_model(
    model: nn.Module, exposed: Collection[str], capture: str = "trace", example_inputs: ExampleInputs | None = None
) -> fx.GraphModule:
    """The captured model, whose `meta` says how it was captured and checked.

    Args:
        model: the model; it is left untouched.
        exposed: names of the parameters that are to be nodes of the graph.
        capture: `"trace"`, or `"modules"` for every module's own Python forward, called as a whole.
        example_inputs: arguments on which to compare the captured model with the original. A module that differs
            becomes opaque, and at worst the whole model.

    Raises:
        TransformError: if the model can't be captured, `example_inputs` don't fit it, or even the model called as a
            whole differs, as one does whose outputs depend on the time.
    """
    if not isinstance(capture, str) or capture not in CAPTURES:
        raise TransformError(f"capture={shown(capture)} is unknown: give one of {', '.join(map(repr, CAPTURES))}")
    by_modules = {"": "capture='modules' was asked for"}
    opaque = by_modules if capture == "modules" else {}
    captured = trace_without(model, exposed, opaque)
    if example_inputs is None:
        refuse_changed_weights(captured, exposed)
        captured.meta[CAPTURED] += ", not checked"
        return captured
    if any(parameter.is_meta for parameter in model.parameters()):
        raise TransformError("example_inputs need a model with values, but this one is on the meta device")
    calls = read_examples(model, example_inputs)
    if not opaque and opaque_share(captured) > MOST_OPAQUE:
        captured = _as_in_examples(model, exposed, calls, captured)
    with _restoring_surroundings(model):
        refuse_changed_weights(captured, exposed, code_called(model, calls))
        how = difference(model, captured, calls)
        if how is not None and not opaque:
            captured, how = _without_differences(model, exposed, calls, how)
    if how is not None:
        raise TransformError(
            f"the captured model is not the original, even where that is called as a whole: {how}. Does its output "
            "depend on something else than its inputs, weights and state?"
        )
    captured.meta[CAPTURED] += f", checked on {len(calls)} input{'s' if len(calls) > 1 else ''}"
    return captured


def opaque_share(captured: fx.GraphModule) -> float:
    """How many of the exposed weights of a captured model are passed to opaque submodules, of 1."""
    weights = {node.target for node in captured.graph.nodes if node.op == "get_attr"}
    passed = {
        weight.target
        for node in captured.graph.nodes
        if node.op == "call_module" and str(node.target).rpartition(".")[2] == OPAQUE_PART
        for weight in node.args[0]
    }
    numel = {name: getattr(attrgetter(name)(captured), "numel", int)() for name in weights}
    return sum(numel[name] for name in passed) / max(1, sum(numel.values()))


def _as_in_examples(
    model: nn.Module, exposed: Collection[str], calls: list[Call], captured: fx.GraphModule
) -> fx.GraphModule:
    """The captured model for calls that are like the examples, if more of that can be traced.

    They omit what all examples do, and have sizes with which the model branches as it does for the first one. What has
    lost a weight that such calls don't read is no improvement: its file would not fit the model.
    """
    names = _names_of(captured)
    omitted = omitted_arguments(model, calls)
    without = f" for calls without {', '.join(omitted)}"
    attempts: list[tuple[dict[str, Any], ExampleValues | None, str]] = [(omitted, None, without)] if omitted else []
    examples = example_values(model, calls[0])
    if examples is not None:
        attempts.append(({}, examples, " for sizes as in example_inputs"))
        if omitted:
            attempts.append((omitted, examples, f"{without}, with sizes as in example_inputs"))
    for arguments, values, how in attempts:
        other = trace_without(model, exposed, {}, arguments, values)
        if opaque_share(other) < opaque_share(captured) and _names_of(other) == names:
            captured = other
            captured.meta[CAPTURED] += how
        if opaque_share(captured) <= MOST_OPAQUE:
            break
    return captured


def _names_of(captured: fx.GraphModule) -> set[str]:
    """The names in the original of all that a captured model stores."""
    return {original_name(name) for name in captured.state_dict()}


@contextmanager
def _restoring_surroundings(model: nn.Module) -> Iterator[None]:
    """Put back what calls of a model change outside of it, such as a global list."""
    state = KeptState(model)
    before: list[tuple[dict[str, Any], str, Any]] = []
    for function in called_functions(model):
        variables = function.__globals__
        state.remember_around(function.__code__, variables)
        before += [(variables, name, variables[name]) for name in globals_in(function.__code__) if name in variables]
    try:
        yield
    finally:
        for variables, name, value in before:
            if variables.get(name) is not value:
                variables[name] = value
        state.restore_around()


def _without_differences(
    model: nn.Module, exposed: Collection[str], calls: list[Call], how: str
) -> tuple[fx.GraphModule, str | None]:
    """The model with what differs called as a whole, at last all of it; and how that differs still."""
    parts = differing_parts(model, calls, lambda module: trace(module, expose=None))
    for opaque in (parts, {"": how}):
        if opaque:
            reasons = {path: f"its capture differs on the example inputs: {found}" for path, found in opaque.items()}
            captured = trace_without(model, exposed, reasons)
            refuse_changed_weights(captured, exposed, code_called(model, calls))
            left = difference(model, captured, calls)
            if left is None:
                break
    return captured, left
