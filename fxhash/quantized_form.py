"""The form of a transformed model whose factors are trained in few bits: the same parameters, rounded when read."""

from __future__ import annotations

from dataclasses import replace

from fxhash.smh.factor_bits import FactorBits
from fxhash.smh.generator import SMHGenerator
from fxhash.transformed import AnyModule, current_plan, require_transformed, sharing_copy, unwrapped


def quantize_factors(gm: AnyModule, bits: int = 8, *, group: int | None = None) -> AnyModule:
    """Let a transformed model compute with factors of 8 or 4 bits, so that it is trained to be stored in them.

    Each row of `left` and `right` becomes symmetric integers times a step, a number of bfloat16. Rows of `left`, which
    are nearly all of the factors, have 4 bits if that is asked for; `right`, which all weights share, and the spatial
    kernels of separable convolutions always have 8. Gradients pass the rounding as if it were not there (the
    straight-through estimator, Bengio et al., arXiv 1308.3432). The parameters stay as they are, in floating point:
    they are what an optimizer, a moving average and a state dict have.

    `save(..., dtype="int8")` or `"int4"` stores the integers, and `load` gives a model that computes the same weights,
    bit for bit. `save` without `dtype` stores the parameters, to go on with training.

    Args:
        gm: a transformed model or one that holds some, lowered for training or not; it is left untouched. What
            `torch.compile`, `DataParallel`, `DistributedDataParallel` or `AveragedModel` made of it is unwrapped: wrap
            the result.
        bits: 8 or 4.
        group: how many entries of a row share a step; a whole row if omitted.

    Returns:
        A copy with the same parameter objects, buffers and state dict: one optimizer trains both.

    Raises:
        PlanError: for other bits or no such group, or for factors of a type narrower than float32.
        TransformError: if `gm` is not a transformed model, or is lowered for deployment.

    Example:
        >>> import fxhash
        >>> from torch import nn
        >>> gm = fxhash.transform(nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10)), compress=0.1)
        >>> quantized = fxhash.lower_for_training(fxhash.quantize_factors(gm, bits=4))
        >>> quantized.smh_generator.plan.factor_bits
        FactorBits(bits=4, group=None)
        >>> quantized.smh_generator.right is gm.smh_generator.right
        True
    """
    gm = unwrapped(gm)
    factor_bits = FactorBits(bits, group)
    for part in require_transformed(gm).values():
        # Which says what can't be.
        replace(current_plan(part), factor_bits=factor_bits)
    quantized = sharing_copy(gm)
    for module in quantized.modules():
        if isinstance(module, SMHGenerator):
            module.plan = replace(module.plan, factor_bits=factor_bits)
    return quantized
