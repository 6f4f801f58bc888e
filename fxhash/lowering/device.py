"""What lowering knows of the device, or the runtime, that a model is to run on."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields

import torch

from fxhash.errors import PlanError, shown


@dataclass(frozen=True)
class DeviceProfile:
    """What decides between the methods of computing a weight, apart from counted multiply-adds.

    The defaults stand for PyTorch's eager mode on an x86 CPU; `fxhash.profile_device` measures those of this machine.
    Costs are over a multiply-add in a dense layer.

    Attributes:
        thin_product_cost: time of a multiply-add in thin products, as the factors' are.
        depthwise_cost: time of a multiply-add in a depthwise convolution, which moves memory for few operations.
            (ResNet-34's layers, split in a depthwise and a pointwise one, and regular, in ms on two threads: 0.30 and
            0.41 with 64 channels, 0.29 and 0.40 with 128; at batch 16: 5.0 and 6.8, 2.0 and 5.3; at batch 100: 54 and
            52, 17 and 33.)
        call_cost: time of a call that does nothing.
        generates_once: whether weights are generated when the model is loaded, and kept.
        depthwise_product_cost: time of a multiply-add in a depthwise convolution over one in a regular one, both in
            training and in the channels-last format.
        channels_last: whether images that go through several convolutions have their channels last in memory.
        shares_scratch: whether weights are generated into scratch memory that they share. On accelerators they are
            not: the allocator reuses memory in the order of its streams.

    Example:
        >>> DeviceProfile.of("cpu").shares_scratch, DeviceProfile.of("cuda").shares_scratch
        (True, False)
        >>> profile = DeviceProfile(thin_product_cost=1.25)
        >>> DeviceProfile.from_json(profile.to_json()) == profile
        True
    """

    thin_product_cost: float = 1.5
    depthwise_cost: float = 26.0
    call_cost: float = 300_000.0
    generates_once: bool = False
    depthwise_product_cost: float = 8.0
    channels_last: bool = True
    shares_scratch: bool = True

    @classmethod
    def of(cls, device: torch.device | str) -> DeviceProfile:
        """The profile of a kind of device.

        Args:
            device: such as `"cpu"` or `torch.device("cuda", 0)`.
        """
        if torch.device(device).type == "cpu":
            return cls()
        return cls(depthwise_cost=_DEPTHWISE_COST_ELSEWHERE, channels_last=False, shares_scratch=False)

    @classmethod
    def onnx_runtime(cls) -> DeviceProfile:
        """The profile of ONNX Runtime on an x86 CPU, for models that `fxhash.export_onnx` is to write.

        It generates weights once, when it loads a file, and its depthwise convolutions are fast.
        """
        return cls(thin_product_cost=1.1, depthwise_cost=4.0, generates_once=True, channels_last=False)

    def to_json(self) -> str:
        """The profile as a JSON object, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DeviceProfile:
        """The profile that `to_json` wrote.

        Raises:
            PlanError: if the text is something else.
        """
        try:
            values = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise PlanError(f"{shown(text)} is no device profile: {error}") from error
        kinds = {field.name: type(field.default) for field in fields(cls)}
        if not isinstance(values, dict) or values.keys() != kinds.keys():
            raise PlanError(f"{shown(text)} is no device profile: it has {', '.join(kinds)}, all of them and no others")
        for name, value in values.items():
            is_number = type(value) in (int, float) and math.isfinite(value) and value >= 0
            if not (isinstance(value, bool) if kinds[name] is bool else is_number):
                raise PlanError(f"{name} of a device profile is {shown(value)}: give {_KINDS[kinds[name] is bool]}")
        return cls(**values)


# With the channels first, as measured on CPUs; nothing was measured on accelerators.
_DEPTHWISE_COST_ELSEWHERE = 34.0
_KINDS = {True: "true or false", False: "a number that is not negative"}
