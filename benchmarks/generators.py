"""Other ways to derive the weights of a model from few parameters, to compare with: each in its plainest form.

Those from elsewhere share one wrapper, `Derived`, and one rule for the budget: weights of two or more dimensions are
derived, the rest stays dense, everything counts, and each weight has a scale of its own, at first the standard
deviation of the original's. Changes of the product itself are functions on a transformed model that is yet to be
trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional as F

from fxhash.errors import BudgetError
from fxhash.smh.arithmetic import separable
from fxhash.smh.generator import SMHGenerator


class Derived(nn.Module):
    """A model whose weights come from a generator at each call.

    Args:
        model: the dense model; its weights of two or more dimensions are only shapes from now on.
        compress: trainable parameters after over before, at most.
        make: builds the generator from the number of weights and the parameters that it may have; called without
            arguments, that gives all weights as one tensor of mean zero and variance one.
    """

    def __init__(self, model: nn.Module, compress: float, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        weights = {name: each for name, each in model.named_parameters() if each.dim() >= 2}
        total = sum(each.numel() for each in model.parameters())
        dense = total - sum(each.numel() for each in weights.values())
        self.shapes = {name: each.shape for name, each in weights.items()}
        self.generator = make(total - dense, math.floor(compress * total) - dense - len(weights))
        self.scales = nn.Parameter(torch.stack([each.detach().std() for each in weights.values()]))
        self.model = model
        for weight in weights.values():
            weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """What the model gives with the weights of now."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        with torch.autocast(images.device.type, enabled=False):
            parts = self.generator()[: sum(sizes)].split(sizes)
            weights = {
                name: part.view(shape) * scale
                for (name, shape), part, scale in zip(self.shapes.items(), parts, self.scales, strict=True)
            }
        return functional_call(self.model, weights, (images,))


class PlainSMH(nn.Module):
    """Structured Multi-Hashing as published: one matrix, weights laid end to end (arXiv 1911.11177).

    Args:
        count: number of weights.
        budget: parameters that it may have.
        aspect: rows over columns; 1 is the square of the paper.
    """

    def __init__(self, count: int, budget: int, aspect: float = 1.0) -> None:
        super().__init__()
        cols = math.ceil(math.sqrt(count / aspect))
        rows = -(-count // cols)
        rank = _rank(budget, rows + cols)
        self.left = nn.Parameter(torch.randn(rows, rank) * rank**-0.25)
        self.right = nn.Parameter(torch.randn(rank, cols) * rank**-0.25)

    def forward(self) -> Tensor:
        return (self.left @ self.right).flatten()


class Tiles(nn.Module):
    """Square tiles of a given rank with factors of their own, as large as the budget makes them; nothing is shared."""

    def __init__(self, count: int, budget: int, rank: int) -> None:
        super().__init__()
        # A tile of side n has 2 * n * rank parameters for its n * n weights.
        side = max(round(2 * rank * count / budget), 1)
        while 2 * rank * side * -(-count // side**2) > budget:
            side += 1
        self.left, self.right = _factors(-(-count // side**2), side, rank)

    def forward(self) -> Tensor:
        return (self.left @ self.right).flatten()


class RandomHash(nn.Module):
    """HashedNets: each weight is an entry of one pool, at random and with a random sign (arXiv 1504.04788)."""

    index: Tensor
    sign: Tensor

    def __init__(self, count: int, budget: int) -> None:
        super().__init__()
        self.pool = nn.Parameter(torch.randn(_rank(budget, 1)))
        self.register_buffer("index", torch.randint(len(self.pool), (count,)), persistent=False)
        self.register_buffer("sign", torch.randint(2, (count,)) * 2.0 - 1, persistent=False)

    def forward(self) -> Tensor:
        return F.embedding(self.index, self.pool.unsqueeze(1)).squeeze(1) * self.sign


def _rank(budget: int, parameters: int) -> int:
    if budget < parameters:
        raise BudgetError(f"{budget} parameters are too few: one rank takes {parameters}", parameters)
    return budget // parameters


def _factors(tiles: int, side: int, rank: int) -> Sequence[nn.Parameter]:
    sizes = ((tiles, side, rank), (tiles, rank, side))
    return [nn.Parameter(torch.randn(size) * rank**-0.25) for size in sizes]


class Modulated(SMHGenerator):
    """The product's generator, with the rows of `W` multiplied by something, entry by entry; `modulate_` makes it.

    Attributes:
        modulation: for each hashed parameter, in the order of the plan, what all of its rows are multiplied by; shape
            `(cols,)`.
        places: the index of each hashed parameter by its name.
    """

    modulation: Sequence[Tensor]
    places: dict[str, int]

    def forward(self, name: str, pointwise: bool = False) -> Tensor:
        """The weight of one parameter, as the product's generator gives it; its shift is taken to be zero."""
        parameter = self.parameter(name)
        with torch.autocast(self.right.device.type, enabled=False):
            left = self.scaled_left(name)
            rows = left @ self.right[: left.shape[1]] * self.modulation[self.places[name]]
            entries = rows.flatten()[: parameter.slice_numel].view(parameter.slice_shape)
            if parameter.kernels and not pointwise:
                return separable(entries, self.kernels_of(name), parameter.shape)
            return entries


def modulate_(gm: fx.GraphModule, modulation: Sequence[Tensor]) -> fx.GraphModule:
    """Put a `Modulated` in the place of the generator of a transformed model; changed in place and returned."""
    generator = gm.smh_generator
    generator.__class__ = Modulated
    generator.modulation = modulation
    generator.places = {parameter.fqn: index for index, parameter in enumerate(generator.plan.hashed)}
    return gm


def random_signs_(gm: fx.GraphModule) -> fx.GraphModule:
    """Give the columns of each parameter's rows of `W` fixed random signs of their own."""
    plan = gm.smh_generator.plan
    return modulate_(gm, [torch.randint(2, (plan.layout.cols,)) * 2.0 - 1 for _ in plan.hashed])


def trained_diagonal_(gm: fx.GraphModule) -> fx.GraphModule:
    """Give each parameter a trained factor for each column, one at first."""
    plan = gm.smh_generator.plan
    return modulate_(gm, nn.ParameterList(torch.ones(plan.layout.cols) for _ in plan.hashed))


@torch.no_grad()
def orthogonal_rows_(gm: fx.GraphModule) -> fx.GraphModule:
    """Let the rows of `right` be orthogonal to each other at first, with the same mean square as before."""
    right = gm.smh_generator.right
    basis = torch.linalg.qr(right.T).Q.T
    right.copy_(basis * right.square().mean().sqrt() / basis.square().mean().sqrt())
    return gm


def frozen_right_(gm: fx.GraphModule) -> fx.GraphModule:
    """Leave `right` at its initialization; it counts nevertheless."""
    gm.smh_generator.right.requires_grad_(False)
    return gm
