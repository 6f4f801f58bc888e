"""What layers read in a model and in its compressed form, side by side, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxhash.capture.calibration import Batch, InputWatch, call_watched, floating_outputs


@dataclass
class PairedMoments:
    """Sums over pairs of inputs: `x` of a layer in the original model, `y` in the compressed one.

    Attributes:
        products: sums of `x y^T`; shape `(length, length)`.
        squares: sums of `y y^T`.
    """

    products: Tensor
    squares: Tensor


class _Inputs(InputWatch):
    """Keeps what some layers read in one call."""

    def __init__(self, weights: Mapping[str, Tensor], names: Collection[str]) -> None:
        super().__init__(weights)
        self.names = names
        self.read: dict[str, list[tuple[Tensor, Callable[[Tensor], Any]]]] = {}

    def on_read(self, name: str, inputs: Tensor, unfolding: tuple[Any, ...], pieces: Callable[[Tensor], Any]) -> None:
        """Keep a copy: what follows may change the inputs in place."""
        if name in self.names:
            self.read.setdefault(name, []).append((inputs.clone(), pieces))


@torch.no_grad()
def paired_moments(
    models: tuple[nn.Module, nn.Module],
    weights: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    names: Collection[str],
    calibration: Iterable[Batch],
) -> tuple[dict[str, PairedMoments], float]:
    """The moments of pairs of inputs over all batches, and by what share the outputs of the second model are off.

    Args:
        models: the original and the compressed one, in eval mode, whose layers have the same weights' names.
        weights: of both, by their names.
        names: of the weights whose layers count. One that is called otherwise in one of the models is left out.
        calibration: the batches.
    """
    found: dict[str, PairedMoments] = {}
    off = size = 0.0
    for batch in calibration:
        outputs, watches = [], []
        for model, own in zip(models, weights, strict=True):
            watches.append(_Inputs(own, names))
            result = call_watched(model, batch, watches[-1], next(iter(own.values())).device)
            outputs.append(floating_outputs(result))
        for one, other in zip(*outputs, strict=False):
            if one.shape == other.shape:
                off += (one.double() - other.double()).square().sum().item()
                size += one.double().square().sum().item()
        for name, originals in watches[0].read.items():
            others = watches[1].read.get(name, [])
            if [each.shape for each, _ in originals] != [each.shape for each, _ in others]:
                continue
            for (x, pieces), (y, _) in zip(originals, others, strict=True):
                for one, other in zip(pieces(x), pieces(y), strict=True):
                    one, other = one.float(), other.float()
                    products, squares = one.T @ other, other.T @ other
                    if name in found:
                        found[name].products += products
                        found[name].squares += squares
                    else:
                        found[name] = PairedMoments(products, squares)
    return found, off / max(size, 1e-300)
