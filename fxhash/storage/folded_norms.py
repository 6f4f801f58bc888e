"""Batch norms in the file of a model that is only evaluated: two numbers for each channel instead of four.

`(x - mean) / sqrt(variance + eps) * weight + bias` multiplies each channel by one number and adds another. With these
as its weight and bias, a norm of mean 0 and variance 1 computes the same. In a file they have names of their own, so
that nothing else is taken for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxhash.errors import CheckpointError
from fxhash.graph.names import joined, original_name
from fxhash.lowering.batch_norm import channel_scale, evaluated_only, is_plain_norm
from fxhash.printable import shortened

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# What the weight and the bias are called in a file.
_FOLDED = {"weight": "folded_weight", "bias": "folded_bias"}


def fold(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    parts: Mapping[str, fx.GraphModule],
    all_of_them: bool,
    dense_dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """The tensors of a file, in which the weights and biases of batch norms stand for their statistics too.

    Those that come from a file without their statistics stay so. Others stay as they are if a graph does not call them
    as modules, if they do more than normalize, share a tensor with something else, compute with the statistics of a
    batch, or have values that the type to store them in can't hold once they are folded.

    Args:
        tensors: all of them, by their names in the original model.
        model: which holds them.
        parts: the transformed models in it, by their paths.
        all_of_them: whether to fold those that have statistics.
        dense_dtype: the type that they are stored in if it is narrower than theirs.
    """
    result = dict(tensors)
    for path in _loaded_without_statistics(model):
        _replace(result, path, {name: tensors[joined(path, name)] for name in _FOLDED})
    for path, norm in _foldable(model, parts) if all_of_them else ():
        if joined(path, "running_mean") in result:
            folded = _folded(norm)
            stored = {name: tensors[joined(path, name)].dtype for name in _FOLDED}
            types = [*stored.items(), *((name, dense_dtype) for name in _FOLDED if dense_dtype)]
            if all(_holds(dtype, folded[name]) for name, dtype in types):
                _replace(result, path, {name: value.cpu().to(stored[name]) for name, value in folded.items()})
    return result


def _loaded_without_statistics(model: nn.Module) -> Iterator[str]:
    """The paths of batch norms that come from such a file and have not been given statistics since."""
    for path, module in model.named_modules():
        if evaluated_only in module._forward_pre_hooks.values():
            mean, variance = module.running_mean, module.running_var
            if not bool(mean.any()) and bool((variance == 1).all()):
                yield original_name(path)


def _foldable(model: nn.Module, parts: Mapping[str, fx.GraphModule]) -> Iterator[tuple[str, _BatchNorm]]:
    """The batch norms that can be folded, with their paths in the original model."""
    uses = Counter(id(tensor) for tensor in model.state_dict(keep_vars=True).values())
    for part_path, part in parts.items():
        read = {str(node.target).rpartition(".")[0] for node in part.graph.nodes if node.op == "get_attr"}
        for path in dict.fromkeys(str(node.target) for node in part.graph.nodes if node.op == "call_module"):
            norm = part.get_submodule(path)
            uses_batch = norm.training and not part.training
            if is_plain_norm(norm) and norm.affine and not uses_batch and path not in read:
                tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
                if all(uses[id(tensor)] == 1 for tensor in tensors):
                    yield original_name(joined(part_path, path)), norm


@torch.no_grad()
def _folded(norm: _BatchNorm) -> dict[str, Tensor]:
    """Weight and bias of a norm that computes the same with mean 0 and variance 1, in float32 at least."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = channel_scale(norm.weight, norm.running_var, norm.eps)
    # Times the root, since with a variance of 1 the norm divides by that.
    return {"weight": scale * (1 + norm.eps) ** 0.5, "bias": norm.bias - norm.running_mean * scale}


def _holds(dtype: torch.dtype, value: Tensor) -> bool:
    """Whether a type holds values, none of them infinite, or with fewer digits as it is too small."""
    cast = value.to(dtype)
    is_small = (value != 0) & (value.abs() < torch.finfo(dtype).tiny)
    return bool((cast.isfinite() & ~is_small).all())


def _replace(tensors: dict[str, Tensor], path: str, folded: Mapping[str, Tensor]) -> None:
    """Put what is folded in the place of the weight, the bias and the statistics."""
    for name in (*_FOLDED, *_STATISTICS):
        tensors.pop(joined(path, name), None)
    tensors.update({joined(path, _FOLDED[name]): value for name, value in folded.items()})


def unfolded(
    stored: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: object
) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors of a file, with weights, biases and statistics of folded norms by their names in a model.

    Args:
        stored: those of the file.
        expected: those of the model, of which only shapes and types count.
        path: of the file, for messages.

    Returns:
        The tensors, and the paths of the folded norms. Weights and biases are as they were stored.

    Raises:
        CheckpointError: if one is folded that has no statistics in the model.
    """
    tensors, norms = dict(stored), set()
    for name in stored:
        norm, _, last = name.rpartition(".")
        if last not in _FOLDED.values() or name in expected:
            continue
        if any(joined(norm, each) not in expected for each in (*_FOLDED, *_STATISTICS[:2])):
            raise _no_norm(norm, path)
        norms.add(norm)
        original = joined(norm, last.removeprefix("folded_"))
        if original in stored:
            raise CheckpointError(f"{path} holds the tensor {original!r} and a folded one of its place")
        tensors[original] = tensors.pop(name)
    for norm in norms:
        for each in _STATISTICS:
            if (name := joined(norm, each)) in expected and name not in stored:
                fill = torch.ones_like if each == "running_var" else torch.zeros_like
                tensors[name] = fill(expected[name], device="cpu")
    return tensors, norms


def refuse_training(model: nn.Module, norms: Set[str], path: object) -> None:
    """Let batch norms compute in eval mode alone.

    Args:
        model: which holds them.
        norms: their paths in the original model.
        path: of the file, for messages.

    Raises:
        CheckpointError: if one is no batch norm that is a module.
    """
    missing = set(norms)
    for name, module in model.named_modules():
        if original_name(name) in missing and isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(evaluated_only)
            missing.discard(original_name(name))
    if missing:
        raise _no_norm(min(missing), path)


def _no_norm(norm: str, path: object) -> CheckpointError:
    return CheckpointError(
        f"{path} holds a folded batch norm {shortened(repr(norm))}, but this model has no torch.nn batch norm with "
        "statistics of that name: load it with the code of the model that was saved, not with an exported program"
    )
