"""Comparing and counting, for all tests."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import fxhash
from fxhash.lowering.factored_tensor import FactoredTensor

# Tests of the start that knows no inputs, whose warning `test_calibration.py` demands.
uncalibrated = pytest.mark.filterwarnings("ignore:init='pretrained' without calibration")

# Of tests whose models can't be traced; when `transform` warns is what `tests/test_opaque_parts.py` holds.
may_be_opaque = pytest.mark.filterwarnings("ignore::fxhash.OpaqueWarning")


def run(model: nn.Module, *inputs: Any, seed: int = 0, **named: Any) -> list[Tensor]:
    """The tensors that a model returns, under a fixed seed; its buffers are as before afterwards."""
    torch.manual_seed(seed)
    random.seed(seed)
    state = model.state_dict()
    state.update({name: tensor.clone() for name, tensor in state.items()})
    try:
        with torch.no_grad():
            return [leaf.clone() for leaf in tensors_in(model(*inputs, **named))]
    finally:
        model.load_state_dict(state)


def tensors_in(outputs: Any) -> list[Tensor]:
    """The tensors of what a model returns, also of a mapping that torch doesn't know."""
    leaves = tree_leaves(dict(outputs) if isinstance(outputs, Mapping) else outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def assert_same_outputs(first: nn.Module, second: nn.Module, *inputs: Any, rtol: float = 1e-4, **named: Any) -> None:
    """Both models return the same tensors; differences are measured against the largest value of each."""
    for one, other in zip(run(first, *inputs, **named), run(second, *inputs, **named), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        largest = one.abs().max().item() if one.numel() and one.dtype.is_floating_point else 0.0
        tolerance = max(rtol, 4 * torch.finfo(one.dtype).eps) if one.dtype.is_floating_point else 0
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * largest + 1e-7)


def train_step(model: nn.Module, *inputs: Any, **named: Any) -> None:
    """Gradients of some loss over all outputs, under a fixed seed."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    outputs = tensors_in(model(*inputs, **named))
    sum(output.float().square().mean() for output in outputs if output.requires_grad).backward()


# How torch says that its backend has no kernel for a type on this machine: oneDNN, ATen, and the quantized engines.
_NO_KERNEL = ("could not create a primitive", "not implemented for", "Didn't find engine for operation")


def skip_unless_backend_runs(dense: Callable[[], Any]) -> None:
    """Skip a test, with the reason, where this machine's backend has no kernel for what the dense model needs.

    Some machines lack kernels: oneDNN has none for an LSTM in bfloat16 without AVX-512, say. Ask before our own model
    runs and never of it: where the dense model runs, ours has to.

    Args:
        dense: calls the original model as the test calls ours; any other error of it is raised.
    """
    try:
        dense()
    except RuntimeError as error:
        if not any(text in str(error) for text in _NO_KERNEL):
            raise
        pytest.skip(f"the dense model can't do it on this machine: {str(error).splitlines()[0]}")


def skip_unless_onnx_has_open_sizes() -> None:
    """Skip a test that writes an ONNX file for any batch, which torch 2.6 can't."""
    if TorchVersion(torch.__version__) < "2.7":
        pytest.skip("torch 2.6 fails to decompose programs with open sizes while no gradients are recorded")


def skip_unless_onnx_has_batch_norms() -> None:
    """Skip a test that writes an ONNX file of a model with batch norms, which torch 2.6 can't, of none."""
    if TorchVersion(torch.__version__) < "2.7":
        pytest.skip("torch 2.6 exports no batch norm with this onnxscript")


def skip_unless_onnx_has_factored_attention() -> None:
    """Skip a test that attention is factored in an ONNX file, which it isn't with torch 2.6."""
    if TorchVersion(torch.__version__) < "2.7":
        pytest.skip("torch 2.6 exports through its compiler, under which the weights of attention are generated")


def skip_unless_sizes_are_recorded() -> None:
    """Skip a test of a model that gives values of a graph as sizes to `torch.zeros`, which torch 2.6 can't record."""
    if TorchVersion(torch.__version__) < "2.7":
        pytest.skip("torch 2.6 takes no value of a graph as a size")


def assert_carried_through(
    model: nn.Module,
    inputs: tuple[Any, ...] = (),
    training_inputs: tuple[Any, ...] | None = None,
    compress: float = 0.1,
    in_double: bool = False,
    is_checked: bool = False,
    **named: Any,
) -> torch.fx.GraphModule:
    """What fxhash promises of any model: captured exactly, trained through the factors, deployed with the same answers.

    Args:
        model: a dense model; its gradients are set.
        inputs: what it takes in eval mode.
        training_inputs: what it takes in train mode, if that is something else.
        compress: the fraction to compress to, or the smallest possible one if that is larger.
        in_double: whether to compare the deployed model in double precision, for outputs that jump with rounding.
        is_checked: whether to give the inputs as `example_inputs`.
        named: what it takes by name, in both modes.

    Returns:
        The transformed model, in eval mode, for checks of one's own.
    """
    training_inputs = inputs if training_inputs is None else training_inputs
    traced = fxhash.trace(model)
    assert_same_outputs(model.eval(), traced.eval(), *inputs, rtol=0, **named)
    assert_same_outputs(model.train(), traced.train(), *training_inputs, rtol=0, **named)
    del traced

    examples = {"example_inputs": inputs or named} if is_checked else {}
    gm = smallest_transform(model, compress, seed=0, **examples)
    plan = generator_of(gm).plan
    trained = [(name, p) for name, p in model.named_parameters() if p.dim() >= 2 and p.requires_grad]
    assert {parameter.fqn for parameter in plan.hashed} | set(plan.unused) >= {name for name, _ in trained}, (
        "a large parameter is neither hashed nor named as unused"
    )
    train_step(model, *training_inputs, **named)
    train_step(gm, *training_inputs, **named)
    with_gradient = {name for name, parameter in trained if parameter.grad is not None}
    del model, trained
    for parameter, left in zip(plan.hashed, generator_of(gm).left, strict=True):
        if parameter.fqn in with_gradient:
            assert left.grad is not None, f"no gradient reaches {parameter.fqn}"
            assert left.grad.isfinite().all(), parameter.fqn
    gm.zero_grad()
    gm.eval()
    if in_double:
        gm.double()
        inputs = tree_map_only(Tensor, lambda tensor: tensor.double(), inputs)
    assert_same_outputs(gm, fxhash.lower_for_deploy(gm), *inputs, **named)
    return gm


class CountingOperators(TorchDispatchMode):
    """Counts the operators that run inside a `with` block, under names such as `aten.mm`."""

    def __enter__(self) -> Counter[str]:
        self.counted: Counter[str] = Counter()
        super().__enter__()
        return self.counted

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counted[str(function.overloadpacket)] += 1
        return function(*args, **(kwargs or {}))


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that is computed inside a `with` block.

    Tensors on the meta device have no memory, and factored tensors are not materialized: neither counts.

    Attributes:
        numel: 0 before anything is computed.
    """

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        computed = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        counted = [leaf.numel() for leaf in computed if not (leaf.is_meta or isinstance(leaf, FactoredTensor))]
        self.numel = max([self.numel, *counted])
        return result


every_form = pytest.mark.parametrize("form", ["transformed", "lowered"])


def in_form(form: str, gm: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A transformed model in one of the forms that leave PyTorch, in eval mode."""
    return gm.eval() if form == "transformed" else fxhash.lower_for_deploy(gm)


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
