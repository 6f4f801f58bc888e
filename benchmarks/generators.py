"""Other ways to derive the weights of a model from few parameters, to compare with: each in its plainest form.

Those from elsewhere share one wrapper, `Derived`, and one rule for the budget: weights of two or more dimensions are
derived, the rest stays dense, everything counts, and each weight has a scale of its own that starts at the spread of
the original's. Changes of the product itself are a class, `Changed`, that takes the place of its generator.
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
from fxhash.smh.parameter_plan import ParameterPlan
from fxhash.smh.plan import CompressionPlan


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


class Changed(SMHGenerator):
    """The product's generator with one thing changed; `change_` puts it in place.

    Attributes:
        modulation: for each parameter, what its rows of `W` are multiplied by, shape `(1 or rows, cols)`. None for
            nothing.
        rolls: by how many columns each parameter's rows are shifted, cyclically. None for none.
        raw_scales: trained scales themselves, not their logarithms; shape `(parameters,)`. None for the product's.
    """

    modulation: Sequence[Tensor] | None
    rolls: Sequence[int] | None
    raw_scales: Tensor | None

    def forward(self, name: str) -> Tensor:
        index, parameter = self._hashed[name]
        with torch.autocast(self.right.device.type, enabled=False):
            left = self.scaled_left(name)
            if self.raw_scales is not None:
                left = left * (self.raw_scales[index] / self.log_scales[index].exp())
            rows = left @ self.right[: left.shape[1]]
            if self.rolls is not None:
                rows = rows.roll(self.rolls[index], 1)
            if self.modulation is not None:
                rows = rows * self.modulation[index]
            run = rows.flatten()[: parameter.slice_numel]
            return (
                separable(run, self.kernels_of(name), parameter.shape)
                if parameter.kernels
                else run.view(parameter.shape)
            )


def change_(
    gm: fx.GraphModule,
    *,
    balanced: bool = False,
    orthogonal: bool = False,
    signs: str = "",
    rolls: bool = False,
    diagonal: bool = False,
    raw_scales: bool = False,
    frozen_right: bool = False,
) -> fx.GraphModule:
    """Change the generator of a transformed model that is yet to be trained.

    Args:
        gm: the model; it is changed in place.
        balanced: whether the entries of both factors start with the same size, as in Structured Multi-Hashing, so that
            an optimizer whose steps don't depend on the size of gradients changes both alike.
        orthogonal: whether the rows of `right` start orthogonal to each other.
        signs: whether entries of `W` get fixed random signs: `"parameter"` for a sign a column and parameter,
            `"slice"` for other ones for each row of an output channel, `"row"` for other ones for each row.
        rolls: whether each parameter's rows of `W` are shifted by another number of columns.
        diagonal: whether each parameter has a trained factor a column.
        raw_scales: whether scales are trained themselves, not their logarithms.
        frozen_right: whether `right` stays as it starts; it counts nevertheless.
    """
    generator = gm.smh_generator
    assert isinstance(generator, SMHGenerator)
    generator.__class__ = Changed
    plan, cols = generator.plan, generator.plan.layout.cols
    generator.raw_scales = generator.rolls = generator.modulation = None
    with torch.no_grad():
        if orthogonal:
            size = generator.right.square().mean().sqrt()
            basis = torch.linalg.qr(generator.right.T).Q.T
            generator.right.copy_(basis * size / basis.square().mean().sqrt())
        if balanced:
            size = plan.layout.rank**-0.25
            generator.right.mul_(size)
            for index, parameter in enumerate(plan.hashed):
                blocks = generator._blocks(parameter.fqn)
                change = size / blocks[0].square().mean().sqrt()
                for block in blocks:
                    block.mul_(change)
                generator.log_scales[index] -= (size * change).log()
    if raw_scales:
        generator.log_scales.requires_grad_(False)
        generator.raw_scales = nn.Parameter(generator.log_scales.detach().exp())
    if rolls:
        generator.rolls = [(37 * index) % cols for index in range(len(plan.hashed))]
    if signs:
        generator.modulation = [_signs(signs, parameter, plan) for parameter in plan.hashed]
    if diagonal:
        generator.modulation = nn.ParameterList(torch.ones(1, cols) for _ in plan.hashed)
    generator.right.requires_grad_(not frozen_right)
    return gm


def _signs(kind: str, parameter: ParameterPlan, plan: CompressionPlan) -> Tensor:
    """Random signs for the rows of a parameter; shape `(1 or rows, cols)`."""
    rows, cols = plan.rows_of(parameter), plan.layout.cols
    slices = max(math.prod(parameter.slice_shape[1:]) // cols, 1)
    different = {"parameter": 1, "slice": slices, "row": rows}[kind]
    signs = torch.randint(2, (different, cols)) * 2.0 - 1
    return signs if different == 1 else signs.repeat(-(-rows // different), 1)[:rows]
