"""Whether a file fits a model: compared by names, shapes and types, before memory is taken for any of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from fxhash.errors import CheckpointError
from fxhash.printable import shortened
from fxhash.smh.parameter_plan import ParameterPlan
from fxhash.smh.plan import CompressionPlan
from fxhash.smh.selection import describe_parameters
from fxhash.storage.quantization import FactorRows, narrower_dtypes, stored_forms


def check_submodules(paths: Iterable[str], model: nn.Module, path: object) -> dict[str, nn.Module]:
    """The submodules at these paths; raises CheckpointError where there is none."""
    modules = dict(model.named_modules())
    for name in paths:
        if name not in modules:
            raise CheckpointError(f"{path} does not fit this model, which has no submodule {_quoted(name)}")
    return modules


def check_parameters(plan: CompressionPlan, model: nn.Module, path: object) -> None:
    """Raise CheckpointError at the first parameter that the plan and the model describe differently."""
    described = {parameter.fqn: parameter for parameter in describe_parameters(model)}
    unused = set(plan.unused)
    for stored in plan.parameters:
        in_model = described.get(stored.fqn)
        if in_model is None:
            raise CheckpointError(f"{path} does not fit this model, which has no parameter {_quoted(stored.fqn)}")
        if _traits(stored) != _traits(in_model):
            raise CheckpointError(
                f"{path} does not fit this model: parameter {stored.fqn!r} is {shortened(_traits(stored))} in the file "
                f"and {_traits(in_model)} in the model{_advice(stored, in_model)}"
            )
        del described[stored.fqn]
    for fqn in described:
        if fqn not in unused:
            raise CheckpointError(f"{path} does not fit this model, whose parameter {fqn!r} is not in the file")


def _advice(stored: ParameterPlan, in_model: ParameterPlan) -> str:
    if _traits(replace(in_model, dtype=stored.dtype)) != _traits(stored):
        return ""
    return f": give a model of the file's type, as of .to(torch.{stored.dtype})"


def _traits(parameter: ParameterPlan) -> str:
    shape = "x".join(map(str, parameter.shape)) or "scalar"
    tied = f", tied to {', '.join(parameter.aliases)}" if parameter.aliases else ""
    return f"{shape} {parameter.dtype}{tied}"


def check_tensors(
    expected: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    rows: Sequence[FactorRows],
    dense: Collection[str],
    path: object,
) -> None:
    """Raise CheckpointError unless a file has the tensors that a model needs, and no others.

    Args:
        expected: those of the model, of which only shapes and types count.
        stored: those of the file.
        rows: those that may be quantized.
        dense: names of those that may be in a narrower floating-point type.
        path: of the file, for messages.
    """
    needed = {name: (tuple(tensor.shape), {tensor.dtype}) for name, tensor in expected.items()}
    needed |= {name: (needed[name][0], narrower_dtypes(expected[name].dtype)) for name in dense}
    needed |= stored_forms(expected, stored, rows)
    for name in sorted(needed.keys() | stored.keys()):
        if name not in stored:
            raise CheckpointError(f"{path} lacks the tensor {_quoted(name)} that this model needs")
        if name not in needed:
            raise CheckpointError(f"{path} holds the tensor {_quoted(name)}, for which this model has no place")
        shape, dtypes = needed[name]
        found = stored[name]
        if found.shape != shape or found.dtype not in dtypes:
            raise CheckpointError(
                f"{path}: tensor {name!r} is {shortened(str(tuple(found.shape)))} {found.dtype}, but this model needs "
                f"{shape} {' or '.join(sorted(map(str, dtypes)))}"
            )


def _quoted(name: str) -> str:
    return repr(name) if len(name) <= 300 else f"'{shortened(name)}'"
