"""What the plan of a lowered model depends on, beside the model, the methods asked for, and a memory budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from fxhash.lowering.device import DeviceProfile


@dataclass(frozen=True)
class LoweringOptions:
    """What a model is lowered for, and how far.

    Attributes:
        device: what it is to run on; the device that it is on if omitted.
        positions: pixels of the output of convolutions, as far as they are known, by the names of nodes.
        replaces_watched_layers: whether to put other layers also into opaque submodules whose code looks at theirs,
            as far as its source shows: only where their outputs are compared afterwards.
        for_training: whether to count forward and backward, and to fold and replace nothing that is trained.
        in_eight_bits: whether to store `left` and `right` as integers of 8 bits.
    """

    device: DeviceProfile | None = None
    positions: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    replaces_watched_layers: bool = False
    for_training: bool = False
    in_eight_bits: bool = False


FOR_INFERENCE = LoweringOptions()
