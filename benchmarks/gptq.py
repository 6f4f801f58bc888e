"""Weights of linear layers rounded by GPTQ, as the library llmcompressor does it: one of the ways of `pretrained.py`.

GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323) rounds the inputs of a layer one after the other, and makes up for
the error of each in those that are still to come, by the Gram matrix of what the layer reads.

    pip install llmcompressor
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.utils.data import DataLoader

# Weights that share a scale and a zero point: of one row, next to each other.
GROUP = 64


def rounded_by_gptq(
    model: nn.Module, names: Sequence[str], batches: Sequence[Mapping[str, Tensor]], bits: int
) -> dict[str, Tensor]:
    """What GPTQ makes of weights, dequantized again, by their names.

    Args:
        model: holds a model of Hugging Face as `encoder`; it is left untouched.
        names: weights of linear layers.
        batches: the calibration, each the arguments of a call.
        bits: of a weight.
    """
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": GROUP,
        # Scales with the least squared error: far better in 2 bits than those of the extremes.
        "observer": "memoryless_mse",
    }
    layers = [name.removeprefix("encoder.").removesuffix(".weight") for name in names]
    modifier = GPTQModifier(config_groups={"all": {"targets": layers, "weights": weights}})
    made = copy.deepcopy(model.encoder)
    oneshot(
        model=made,
        dataset=DataLoader(batches, batch_size=None),
        recipe=[modifier],
        num_calibration_samples=len(batches),
        pipeline="sequential",
        sequential_targets=["BertLayer"],
    )
    return {f"encoder.{layer}.weight": made.get_submodule(layer).weight.detach().clone() for layer in layers}
