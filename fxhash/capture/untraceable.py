"""Why a module can't be traced: known beforehand, or found while tracing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from fxhash.capture.reasons import Reason, where_raised

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


@dataclass(frozen=True)
class Untraceable:
    """What a trace returns for a model that can't be traced.

    Attributes:
        reason: why.
        is_spoiled: whether the trace left something changed in the model, such as an iterator.
    """

    reason: Reason
    is_spoiled: bool = False


@dataclass(frozen=True)
class OpaqueCall:
    """A module that a trace rolled back.

    Attributes:
        reason: why it can't be traced.
        names: for each parameter that the call passes to it, its names in the module (several if tied).
    """

    reason: Reason
    names: tuple[tuple[str, ...], ...]


class UntraceableError(BaseException):
    """Raised inside a trace to roll back the module at hand; its message is the reason.

    No `Exception`: a forward that catches these must not go on as if nothing had happened.
    """


def never_traced_because(module: nn.Module) -> str:
    """Why a module is opaque whatever its forward does; an empty string if it may be traced.

    Nor is one traced whose `train()` does more than set flags (`own_modes`).
    """
    kind = type_before_parametrizations(module)
    if _has_hooks(module):
        return "it has hooks"
    if getattr(module, "max_norm", None) is not None and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "max_norm changes its weight in place"
    if kind.__module__.startswith("torch.nn.modules.") and not issubclass(kind, _TRACED_TORCH_MODULES):
        return f"torch.nn.{kind.__name__} branches on its inputs or mode"
    return ""


def overrides_call(module: nn.Module) -> bool:
    """Whether calling a module is more than its hooks and its forward."""
    if isinstance(module, fx.GraphModule):
        return False
    kind = type(module)
    return kind.__call__ is not nn.Module.__call__ or kind._call_impl is not nn.Module._call_impl


def reason_of(error: BaseException, module: nn.Module) -> Reason:
    """The reason that an error during a trace of a module gives."""
    message = " ".join(str(error).split())
    what = message if isinstance(error, UntraceableError) else f"{type(error).__name__}: {message}"
    if isinstance(error, TypeError) and "cannot be interpreted as an integer" in message:
        # A value has no `__index__`, so that torch takes it as a size: Python's own functions find none.
        what = "its forward makes a number of a value"
    return Reason(what, where_raised(error.__traceback__, module))


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
