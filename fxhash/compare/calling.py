"""Calls of a model: whether inputs fit it, and how much work a call is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fxhash.capture.copy_model import copy_model
from fxhash.errors import described


def failure(model: nn.Module, inputs: tuple[Any, ...]) -> str:
    """Why a model can't be called with these inputs in eval mode; an empty string if it can. It is left untouched."""
    try:
        with torch.no_grad():
            copy_model(model).eval()(*inputs)
    except Exception as error:  # Whatever the model raises.
        return described(error)
    return ""


def doubled(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs twice along their first dimension, where the model takes that; as they are otherwise.

    Batch norms can't be checked in training mode on a single example.
    """
    twice = tuple(torch.cat([each, each]) if each.dim() else each for each in inputs)
    return inputs if failure(model, twice) else twice


def count_multiply_adds(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-adds of the matrix products, convolutions and attention of a call."""
    # Not in inference mode, in which the counter fails where a module has parametrizations.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() // 2
