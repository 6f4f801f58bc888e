"""What lowering knows of the device that a model is to run on."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DeviceProfile:
    """What decides between the methods of computing a weight, apart from counted multiply-adds.

    The defaults stand for an x86 CPU; `benchmarks/costs.py` measures them.

    Attributes:
        thin_product_cost: time of a multiply-add in thin products, as the factors' are, over one in a dense layer.
        least_split_channels: input channels from which a separable convolution is split into a depthwise and a
            pointwise one. A depthwise convolution moves memory for few operations: with fewer channels it takes longer
            than what the pointwise half saves. (ResNet-34's layers at batch 100, split and regular, in ms: 102 and 59
            with 64 channels, 39 and 33 with 128, 14 and 32 with 256.)
        depthwise_product_cost: time of a multiply-add in a depthwise convolution over one in a regular one, both in
            training and in the channels-last format.
        shares_scratch: whether weights are generated into scratch memory that they share. On accelerators they are
            not: the allocator reuses memory in the order of its streams.

    Example:
        >>> DeviceProfile.of("cpu").shares_scratch, DeviceProfile.of("cuda").shares_scratch
        (True, False)
    """

    thin_product_cost: float = 1.5
    least_split_channels: int = 256
    depthwise_product_cost: float = 8.0
    shares_scratch: bool = True

    @classmethod
    def of(cls, device: torch.device | str) -> DeviceProfile:
        """The profile of a kind of device.

        Args:
            device: such as `"cpu"` or `torch.device("cuda", 0)`.
        """
        return cls(shares_scratch=torch.device(device).type == "cpu")
