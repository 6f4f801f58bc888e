"""Batch norms in the file of a model that is only evaluated: two numbers for each channel instead of four.

`(x - mean) / sqrt(variance + eps) * weight + bias` multiplies each channel by one number and adds another. With these
as its weight and bias, a norm of mean 0 and variance 1 computes the same, and a file needn't say so: statistics that
it lacks are those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxhash.errors import CheckpointError
from fxhash.graph.names import joined, original_name
from fxhash.lowering.batch_norm import evaluated_only, is_plain_norm

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def fold(
    tensors: Mapping[str, Tensor], model: nn.Module, parts: Mapping[str, fx.GraphModule], all_of_them: bool
) -> dict[str, Tensor]:
    """The tensors of a file with the statistics of batch norms in their weights and biases, and without them.

    Norms that a graph does not call as modules, that do more than normalize, or that share a tensor with something
    else stay as they are.

    Args:
        tensors: all of them, by their names in the original model.
        model: which holds them.
        parts: the transformed models in it, by their paths.
        all_of_them: whether to fold those too that did not come from a file without their statistics.

    Raises:
        CheckpointError: if the type of a weight or a bias can't hold what is folded into it.
    """
    result = dict(tensors)
    for path, norm in _foldable(model, parts):
        if not all_of_them and evaluated_only not in norm._forward_pre_hooks.values():
            continue
        names = {name: original_name(joined(path, name)) for name in ("weight", "bias", *_STATISTICS)}
        # As batch norms compute: a small variance may round to zero in float16.
        weight, bias, mean, variance = (
            tensors[names[name]].to(torch.promote_types(tensors[names[name]].dtype, torch.float32))
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight * torch.rsqrt(variance + norm.eps)
        # Times the root, since with a variance of 1 the norm divides by that.
        for name, folded in (("weight", scale * (1 + norm.eps) ** 0.5), ("bias", bias - mean * scale)):
            result[names[name]] = folded.to(tensors[names[name]].dtype)
            if not bool(result[names[name]].isfinite().all()):
                raise CheckpointError(
                    f"the statistics of a batch norm can't be folded into {names[name]!r}, whose type can't hold the "
                    "result: omit fold_batch_norms=..."
                )
        for name in _STATISTICS:
            result.pop(names[name], None)
    return result


def _foldable(model: nn.Module, parts: Mapping[str, fx.GraphModule]) -> Iterator[tuple[str, _BatchNorm]]:
    """The batch norms that can be folded, with their paths in the model."""
    uses = Counter(id(tensor) for tensor in model.state_dict(keep_vars=True).values())
    for part_path, part in parts.items():
        read = {str(node.target).rpartition(".")[0] for node in part.graph.nodes if node.op == "get_attr"}
        for path in dict.fromkeys(str(node.target) for node in part.graph.nodes if node.op == "call_module"):
            norm = part.get_submodule(path)
            if is_plain_norm(norm) and norm.affine and path not in read:
                tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
                if all(uses[id(tensor)] == 1 for tensor in tensors):
                    yield joined(part_path, path), norm


def completed(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors of a file and the statistics that were folded, and the names of their batch norms.

    Args:
        stored: those of the file.
        expected: those of the model, of which only shapes and types count.
    """
    tensors, norms = dict(stored), set()
    for name in expected:
        path, _, last = name.rpartition(".")
        if last == "running_mean":
            statistics = [each for each in (joined(path, name) for name in _STATISTICS) if each in expected]
            if not any(each in stored for each in statistics):
                norms.add(path)
                for each in statistics:
                    fill = torch.ones_like if each.endswith("running_var") else torch.zeros_like
                    tensors[each] = fill(expected[each], device="cpu")
    return tensors, norms


def refuse_training(model: nn.Module, names: Set[str], path: object) -> None:
    """Let the batch norms of these names, in the original model, compute in eval mode alone.

    Raises:
        CheckpointError: if there is one that is no module of the model.
    """
    missing = set(names)
    for name, module in model.named_modules(remove_duplicate=False):
        if original_name(name) in names and is_plain_norm(module):
            module.register_forward_pre_hook(evaluated_only)
            missing.discard(original_name(name))
    if missing:
        raise CheckpointError(
            f"{path} lacks the statistics of {min(missing)!r}, as of a batch norm that was folded, but this model has "
            "none of that name: load it with the code of the model that was saved, not with an exported program"
        )
