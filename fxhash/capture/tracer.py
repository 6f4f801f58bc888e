"""The tracer: descends into the modules that hold an exposed parameter, and into no other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import fx, nn

from fxhash.capture.attachment import attached
from fxhash.capture.called_code import fixed_attributes
from fxhash.capture.example_values import ExampleValues
from fxhash.capture.exposure import Exposure
from fxhash.capture.following_tracer import FollowingTracer
from fxhash.capture.hidden_attributes import hide_attributes
from fxhash.capture.kept_state import KeptState
from fxhash.capture.observed_proxy import ObservedFlag
from fxhash.capture.observer import Observer
from fxhash.capture.real_tensors import RefusingOperations
from fxhash.capture.reasons import Reason, where_raised
from fxhash.capture.sources import with_lines_of
from fxhash.capture.surroundings import keeps_changing_function
from fxhash.capture.untraceable import OpaqueCall, UntraceableError, never_traced_because, overrides_call, reason_of
from fxhash.capture.wrapped_functions import RecordedFunctions
from fxhash.graph.guards import as_captured
from fxhash.graph.names import OPAQUE_PART


class ExposingTracer(FollowingTracer):
    """Records the model of an exposure, and rolls back the modules in it that can't be traced.

    Parameters and persistent buffers become `get_attr` nodes under their first name, one each. The target of an
    opaque call is `OPAQUE_PART` below the module's path; its arguments are those of `OpaqueModule.forward`.

    Nothing outside of the model is patched: its own modules are told to call the tracer, and to read their parameters,
    buffers and training flags from it, until the trace is over.

    Args:
        exposure: the model and what to expose of it.
        untraced: modules not to trace, by path, each with the reason.
        careful: whether to look for changes outside of the model after each module, and not just at the end.
        omitted: optional arguments of the model that its calls omit, by name, with their defaults; others are refused.
        examples: answers questions about sizes; if omitted, they are refused.

    Attributes:
        opaque: the modules that were rolled back, by path.
        is_spoiled: whether the trace left something changed in the model, such as an iterator.
    """

    def __init__(
        self,
        exposure: Exposure,
        untraced: Mapping[str, str] = MappingProxyType({}),
        careful: bool = False,
        omitted: Mapping[str, Any] = MappingProxyType({}),
        examples: ExampleValues | None = None,
    ) -> None:
        super().__init__(exposure, examples)
        self._untraced = untraced
        self.careful = careful
        self._omitted = omitted
        self.opaque: dict[str, OpaqueCall] = {}
        self.is_spoiled = False

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
        with attached(model, self._call, self.tensor_proxy, flags):
            self._state = KeptState(model)
            self.held = self._state.storages
            self._observer = Observer(self._state, functions, self.refuse_forward)
            forward, arguments = self._create_inputs(model)
            with RefusingOperations(self._state.storages, self.refuse_forward), self._observer.watching():
                try:
                    result = self.followed(model, forward, arguments)
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
        names = inspect.unwrap(type(model).forward).__code__.co_varnames
        for index, name in enumerate(names[: len(arguments)]):
            if name in self._omitted and isinstance(arguments[index], fx.Proxy):
                default = self._omitted[name]
                self.create_proxy("call_function", as_captured, (arguments[index], default, name), {})
                arguments[index] = default
        return with_lines_of(type(model).forward, forward), arguments

    def _call(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Descend into a module that is called, or fall back to an opaque call; keep it whole if it holds nothing."""
        path = self.path_of_module(module)
        self._check_before(module, path)
        held = self.exposure.is_held_by(module)
        reason = self._known_reason(module, path) if held else None
        if held and reason is None:
            last_node = self.last_node()
            try:
                return self.followed(module, module.forward, args, kwargs)
            except (UntraceableError, Exception) as error:
                reason = self._reason(error, module)
                self.forget(module, last_node)
        outside = self.exposure.reaches_outside(module) if held else None
        if outside is not None and reason is not None:
            self.refuse(
                f"{path}, which can't be traced ({reason.what}), refers to what lies outside of it by {outside}"
            )
        if overrides_call(module):
            self.refuse(f"it calls {path}, which overrides __call__")
        if not held:
            result = self.create_proxy("call_module", path, args, kwargs)
            hide_attributes(module, self)
            return result
        assert reason is not None
        exposed = self.exposure.exposed_in(path)
        self.opaque[path] = OpaqueCall(reason, tuple(exposed.values()))
        for name in self.proxies.keys() & set(self.buffer_names.values()):
            self.check_buffer(name)
        weights = tuple(self.tensor_proxy(self.exposure.parameters[fqn]) for fqn in exposed)
        result = self.create_proxy("call_module", f"{path}.{OPAQUE_PART}", (weights, args, kwargs), {})
        hide_attributes(module, self)
        return result

    def check_buffer(self, name: str) -> None:
        """Refuse the forward that reads a buffer which a module that is called as a whole replaces by another."""
        if any(name.startswith(f"{path}.") for path in self.opaque if path):
            path, _, attribute = name.rpartition(".")
            kind = type(self.exposure.model.get_submodule(path))
            if attribute not in fixed_attributes(kind):  # type: ignore[arg-type]  # mypy: no hash of a Module's class
                self.refuse_forward(f"reads {name!r}, which a module that is called as a whole changes")

    def _known_reason(self, module: nn.Module, path: str) -> Reason | None:
        """Why a module is opaque, as far as that is known before it is traced."""
        if path in self.opaque:
            return self.opaque[path].reason
        known = self._untraced.get(path) or never_traced_because(module)
        return Reason(known, where_raised(None, module)) if known else None

    def _reason(self, error: BaseException, module: nn.Module) -> Reason:
        """Why a module can't be traced: what was refused first, even if its forward caught that."""
        reason = reason_of(error, module)
        return reason if self.refusal is None else replace(reason, what=self.refusal)

    def _check_before(self, module: nn.Module, path: str) -> None:
        """Refuse the forward that calls a module if it has gone on after a refusal, or changed something before."""
        if self.refusal is not None:
            raise UntraceableError(self.refusal)
        changed = self._state.changed_in(module)
        if changed is not None:
            self.refuse_forward(f"changes {changed!r} of {path} before it calls it")
        if self.careful:
            changed = self._state.changed_around()
            if changed is not None:
                self.refuse_forward(f"changes {changed!r}")

    def _restore(self, module: nn.Module) -> None:
        self.is_spoiled |= not self._state.restore(module)

    def watch(self) -> None:
        """Go on watching the code that runs: Python stops where it raises an error."""
        self._observer.watch()

    def record_function(self, error: BaseException) -> Callable[[], None] | None:
        """Let one node call a function that was running when an error was raised, until the result is called."""
        return self._observer.record_function(error, self.function_call)

    def forget(self, module: nn.Module, last_node: fx.Node | None) -> None:
        """Undo what a module's forward did until it was refused, and go on watching."""
        self.watch()
        self.refusal = None
        self._restore(module)
        self.roll_back_to(last_node)

    def checked(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        """Run a module's forward; refuse it if it left anything changed, or went on after a refusal."""
        kept = keeps_changing_function(module)
        if kept is not None:
            self.refuse_forward(kept)
        result = forward(*args, **kwargs)
        if self.refusal is not None:
            raise UntraceableError(self.refusal)
        changed = self._state.changed_in(module) or (self._state.changed_around() if self.careful else None)
        if changed is not None:
            self.refuse_forward(f"changes {changed!r}")
        return result

    def _check_surroundings(self) -> None:
        changed = self._state.changed_around()
        if changed is not None:
            raise ChangedSurroundingsError(f"its forward changes {changed!r}")


class ChangedSurroundingsError(UntraceableError):
    """Raised at the end of a trace that changed something outside of the model."""
