"""Small leaf modules that stand in a traced graph for what `torch.fx` can't record as a node of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_unflatten


class TrainingFlag(nn.Module):
    """Returns its own `training` flag, so that a traced `self.training` follows `train()` and `eval()`."""

    def __init__(self, training: bool) -> None:
        super().__init__()
        self.training = training

    def forward(self) -> bool:
        """The flag of the module that it stands for."""
        return self.training


class TensorConstant(nn.Module):
    """Returns a tensor that is no parameter and not part of the state dict.

    As a `get_attr` node, `torch.fx` would turn it into a persistent buffer (whenever a graph module is built, copied
    or unpickled), and the state dict would grow.

    Args:
        value: the tensor.
        fresh: whether the model makes it anew at each call, and so may change it in place.
    """

    value: Tensor

    def __init__(self, value: Tensor, fresh: bool) -> None:
        super().__init__()
        self.register_buffer("value", value, persistent=False)
        self.fresh = fresh

    def forward(self) -> Tensor:
        """The tensor, or a copy of it."""
        return self.value.clone() if self.fresh else self.value


class FunctionCall(nn.Module):
    """Calls a function of the model's own code, which reaches no weight and keeps nothing.

    As a `call_function` node, `torch.fx` would trace into it whenever a graph module is unpickled.

    Args:
        function: the function, which its module has under its name.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.function(*args, **kwargs)


class FlattenedInput(nn.Module):
    """Takes an argument apart, such as a dictionary of tensors, for the graph of an exported program.

    Args:
        name: the argument's name.
        spec: how the argument was built when the program was exported.
    """

    def __init__(self, name: str, spec: TreeSpec) -> None:
        super().__init__()
        self.name = name
        self.spec = spec

    def forward(self, argument: Any) -> list[Any]:
        """The leaves of the argument."""
        try:
            return self.spec.flatten_up_to(argument)
        except ValueError as error:
            raise ValueError(f"argument {self.name!r} is not built as it was for torch.export: {error}") from error


class RestoredStructure(nn.Module):
    """Puts together what an exported program returns, such as a data class.

    Args:
        spec: how the result was built when the program was exported.
    """

    def __init__(self, spec: TreeSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, leaves: Sequence[Any]) -> Any:
        """The result, of its leaves."""
        return tree_unflatten(leaves, self.spec)
