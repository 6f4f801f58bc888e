"""Weights and activations in 8 bits after training: what one would do instead of compressing."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn


def quantize(model: nn.Module, images: Tensor) -> fx.GraphModule | None:
    """Quantize a model by torch's static quantization: weights by channel, batch norms folded, ranges from images.

    Args:
        model: in eval mode; it is left untouched.
        images: a batch of training images, by which the ranges of activations are found.

    Returns:
        None if this version of torch has no such quantization, or this machine no kernels for it.
    """
    engine = "fbgemm" if "fbgemm" in torch.backends.quantized.supported_engines else torch.backends.quantized.engine
    try:
        with warnings.catch_warnings(), _engine(engine), torch.inference_mode():
            # Torch advises against its own quantization, in favour of a package that needs to be installed.
            warnings.simplefilter("ignore")
            from torch.ao.quantization import get_default_qconfig_mapping
            from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

            prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(engine), (images[:1],))
            prepared(images)
            quantized = convert_fx(prepared)
            quantized(images[:1])
    except Exception as error:  # Whatever a version without it, or a machine without its kernels, raises.
        logging.getLogger(__name__).debug("int8 was left out", exc_info=error)
        return None
    return quantized


def quantized_bytes(model: nn.Module) -> int:
    """Bytes that the weights of a quantized model take: 8-bit weights, a scale and zero point a channel, biases."""
    from torch.ao.nn.quantized.modules.utils import WeightedQuantizedModule

    total = 0
    for module in model.modules():
        if not isinstance(module, WeightedQuantizedModule):
            continue
        # Methods of these, not parameters.
        weight, bias = module.weight(), module.bias()  # type: ignore[operator]
        total += weight.numel() * weight.element_size()
        if weight.qscheme() == torch.per_channel_affine:
            total += weight.q_per_channel_scales().nbytes + weight.q_per_channel_zero_points().nbytes
        total += 0 if bias is None else bias.nbytes
    return total + sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@contextmanager
def _engine(name: str) -> Iterator[None]:
    """Pack weights for these kernels for a while."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
