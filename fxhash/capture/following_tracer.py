"""How a forward is followed: once, in both modes if it branches on one, or again with a function called by one node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import fx, nn

from fxhash.capture.example_values import ExampleValues
from fxhash.capture.exposure import Exposure
from fxhash.capture.mode_branches import ModeBranchError, ModeRecording, merge
from fxhash.capture.observed_proxy import ObservedFlag
from fxhash.capture.untraceable import UntraceableError
from fxhash.capture.value_tracer import ValueTracer

# How many modules' modes a forward and those around it may branch on: each doubles the time of the trace.
_MOST_MODES = 3


class FollowingTracer(ValueTracer):
    """Runs the forward of a module as often as it takes to record it.

    Args:
        exposure: the model and what to expose of it.
        examples: answers questions about sizes; if omitted, they are refused.
    """

    def __init__(self, exposure: Exposure, examples: ExampleValues | None = None) -> None:
        super().__init__(exposure, examples)
        # Modes that are traced now, of a forward that branches on them.
        self._assumed: dict[nn.Module, bool] = {}

    def forget(self, module: nn.Module, last_node: fx.Node | None) -> None:
        """Undo what a module's forward did until it was refused, and go on watching."""
        raise NotImplementedError

    def checked(
        self, module: nn.Module, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run a module's forward; refuse it if it left anything changed, or went on after a refusal."""
        raise NotImplementedError

    def record_function(self, error: BaseException) -> Callable[[], None] | None:
        """Let one node call a function that was running when an error was raised; None if there is none.

        Returns:
            What lets the function be followed again.
        """
        raise NotImplementedError

    def branch_on_mode(self, flag: ObservedFlag, reason: str) -> bool:
        """The way to go where a forward branches on a training flag; it is traced again in both modes.

        Args:
            flag: the flag.
            reason: the reason if that can't be followed.
        """
        if flag.module in self._assumed:
            return self._assumed[flag.module]
        self.refusal = self.refusal or reason
        raise ModeBranchError(reason, flag)

    def followed(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        """Run a module's forward; again where a function can't be followed, but be called by one node."""
        first: tuple[BaseException, str | None] | None = None
        recorded: list[Callable[[], None]] = []
        while True:
            last_node = self.last_node()
            try:
                return self._in_each_mode(module, forward, args, kwargs)
            except (UntraceableError, Exception) as error:
                first = first or (error, self.refusal)
                follow_again = self.record_function(error)
                if follow_again is None:
                    for each in reversed(recorded):
                        each()
                    raised, self.refusal = first
                    raise raised from None
                recorded.append(follow_again)
                self.forget(module, last_node)

    def _in_each_mode(
        self, module: nn.Module, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run a module's forward once, or in both modes if it branches on one."""
        last_node = self.last_node()
        try:
            return self.checked(module, forward, args, kwargs)
        except ModeBranchError as branch:
            flag = branch.flag
            if len(self._assumed) == _MOST_MODES:
                raise
            self.forget(module, last_node)
            chosen_by = self.training_flag(flag.module, flag.value)
            before, recordings = dict(self.proxies), []
            for mode in (True, False):
                last_node, self.proxies, self._assumed[flag.module] = self.last_node(), dict(before), mode
                try:
                    result = self.followed(module, forward, args, kwargs)
                finally:
                    del self._assumed[flag.module]
                argument = self.create_arg(result)
                recordings.append((ModeRecording(self.nodes_after(last_node), argument), result, self.proxies))
            (training, result, self.proxies), (evaluation, *_) = recordings
            if not merge(self.graph, chosen_by, training, evaluation):
                raise
            return result
