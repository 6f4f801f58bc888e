"""What a weight costs in training: forward and backward together, at rates as measured on CPUs."""

from __future__ import annotations

import math

from fxhash.lowering.costs import Costs
from fxhash.lowering.device import DeviceProfile
from fxhash.lowering.plan import Reader
from fxhash.lowering.weights import Weight
from fxhash.smh.parameter_plan import ParameterPlan

# What share of a regular convolution's work a separable one may take at most to be split: the others of the model may
# have their channels first, and where orders in memory meet, tensors are copied. (A ResNet-20 and a DenseNet, whose
# layers of 32 channels would take 0.72, are slower split.)
_WORTH_SPLITTING = 0.6
# Convolutions of fewer input channels than this, as those of the factors may be, take longer than their work says.
_LEAST_CHANNELS = 16


def training_costs(weight: Weight, reader: Reader, can_be_factored: bool, device: DeviceProfile) -> Costs:
    """Multiply-adds of one use, forward and backward, those of thin products weighted by their rate.

    Args:
        weight: the weight.
        reader: what reads it.
        can_be_factored: whether the reader can apply the factors of this weight.
        device: what the model is trained on.
    """
    channels_at_a_time = weight.cols // math.prod(weight.shape[2:])
    is_slow = reader is Reader.CONVOLUTION and channels_at_a_time < _LEAST_CHANNELS
    return weight.costs(reader, can_be_factored and not is_slow).of_training(device.thin_product_cost)


def trains_faster_split(parameter: ParameterPlan, device: DeviceProfile) -> bool:
    """Whether a separable convolution takes less as a depthwise and a pointwise one than as a regular one.

    Example:
        >>> of = [ParameterPlan("weight", (size, size, 3, 3), "float32", kernels=2) for size in (32, 64)]
        >>> [trains_faster_split(parameter, DeviceProfile()) for parameter in of]
        [False, True]
    """
    out, positions = parameter.shape[0], math.prod(parameter.shape[2:])
    depthwise = device.depthwise_product_cost * positions * parameter.kernels
    return depthwise + out * parameter.kernels <= _WORTH_SPLITTING * out * positions
