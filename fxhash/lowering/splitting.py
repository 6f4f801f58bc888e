"""Whether a separable convolution is faster split into a depthwise and a pointwise one."""

from __future__ import annotations

import math

from fxhash.lowering.costs import layer_costs
from fxhash.lowering.device import DeviceProfile
from fxhash.smh.arithmetic import is_row_aligned
from fxhash.smh.parameter_plan import ParameterPlan

# Calls of the split form beyond one for each kernel: they are put together, and what is put together is mixed.
_FURTHER_CALLS = 2


def is_faster_split(parameter: ParameterPlan, cols: int, device: DeviceProfile, positions: int | None = None) -> bool:
    """Whether the two convolutions are less work than the regular one, by costs of the device.

    Args:
        parameter: the weight of a separable convolution.
        cols: columns of `W`.
        device: what it is to run on.
        positions: pixels of the output, of all examples; if omitted, so many that what is done once a call is nothing.

    Example:
        >>> from fxhash.smh.plan import CompressionPlan
        >>> few, many = (
        ...     ParameterPlan("weight", (size, size, 3, 3), True, rank=8, kernels=2) for size in (64, 256)
        ... )
        >>> [is_faster_split(each, 512, DeviceProfile()) for each in (few, many)]
        [False, True]
        >>> is_faster_split(few, 512, DeviceProfile.onnx_runtime())
        True
    """
    out, channels, *kernel = parameter.shape
    spatial, count, rank = math.prod(kernel), parameter.kernels, parameter.full_rank
    shape = parameter.slice_shape
    pointwise = generating = float(math.prod(shape))
    if is_row_aligned(shape, cols):
        factored = layer_costs(shape, rank, cols).factored
        assert factored is not None
        pointwise = min(pointwise, device.thin_product_cost * factored)
    split = device.depthwise_cost * count * channels * spatial + pointwise
    regular = float(out * channels * spatial)
    if positions is not None:
        split += (count + _FURTHER_CALLS) * device.call_cost / max(positions, 1)
        if not device.generates_once:
            regular += generating * (rank + spatial) / max(positions, 1)
    return split < regular
