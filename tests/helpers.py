"""Comparing and counting, for all tests."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fxhash


def run(model: nn.Module, *inputs: Any, seed: int = 0) -> list[Tensor]:
    """The tensors that a model returns, under a fixed seed; its buffers are as before afterwards."""
    torch.manual_seed(seed)
    random.seed(seed)
    state = model.state_dict()
    state.update({name: tensor.clone() for name, tensor in state.items()})
    try:
        with torch.no_grad():
            return [leaf.clone() for leaf in tree_leaves(model(*inputs)) if isinstance(leaf, Tensor)]
    finally:
        model.load_state_dict(state)


def assert_same_outputs(first: nn.Module, second: nn.Module, *inputs: Any, rtol: float = 1e-4) -> None:
    """Both models return the same tensors; differences are measured against the largest value of each."""
    for one, other in zip(run(first, *inputs), run(second, *inputs), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        largest = one.abs().max().item() if one.numel() and one.dtype.is_floating_point else 0.0
        tolerance = max(rtol, 4 * torch.finfo(one.dtype).eps) if one.dtype.is_floating_point else 0
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * largest + 1e-7)


class CountingOperators(TorchDispatchMode):
    """Counts the operators that run inside a `with` block, under names such as `aten.mm`."""

    def __enter__(self) -> Counter[str]:
        self.counted: Counter[str] = Counter()
        super().__enter__()
        return self.counted

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counted[str(function.overloadpacket)] += 1
        return function(*args, **(kwargs or {}))


def trainable(model: nn.Module) -> int:
    """Number of trainable parameters, each counted once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def smallest_transform(model: nn.Module, compress: float, **options: Any) -> torch.fx.GraphModule:
    """Transform at `compress`, or at the smallest fraction that is possible if that is larger."""
    try:
        return fxhash.transform(model, compress, **options)
    except fxhash.BudgetError as error:
        return fxhash.transform(model, min(error.smallest_compress, 1.0), **options)


def generator_of(gm: nn.Module) -> fxhash.SMHGenerator:
    """The generator of a transformed model."""
    (generator,) = [module for module in gm.modules() if isinstance(module, fxhash.SMHGenerator)]
    return generator
