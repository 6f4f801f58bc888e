"""Attributes of a module that the graph calls as a whole: what they are is known when it has run."""

from __future__ import annotations

from torch import fx, nn

from fxhash.capture.called_code import fixed_attributes
from fxhash.capture.held import is_immutable, is_plain
from fxhash.capture.observed_proxy import MISSING, UnknownAttribute
from fxhash.capture.observing_tracer import ObservingTracer

_OF_EVERY_MODULE = {*vars(nn.Module()), "_compiled_call_impl"}


def hide_attributes(called: nn.Module, tracer: ObservingTracer) -> None:
    """Let a tracer refuse to read attributes of a module that its graph calls."""
    for module in called.modules():
        kinds = [kind for kind in type(module).__mro__ if not kind.__module__.startswith(("torch.", "builtins"))]
        if kinds:
            kept = fixed_attributes(type(module))  # type: ignore[arg-type]  # mypy: no hash of a Module's class
            names = {name for kind in kinds for name, value in vars(kind).items() if is_plain(name, value)}
            for name in (vars(module).keys() | names) - _OF_EVERY_MODULE:
                original = vars(module).get(name, MISSING)
                is_fixed = name in kept and is_immutable(original)
                if not isinstance(original, fx.Proxy) and not is_fixed:
                    vars(module)[name] = UnknownAttribute(tracer, name, original)
