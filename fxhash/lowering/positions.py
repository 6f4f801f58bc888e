"""How many positions the layers of a model compute, found by calling it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxhash.capture.copy_model import copy_model
from fxhash.capture.own_randomness import kept_random_state
from fxhash.graph.layers import CONVOLUTIONS


def output_positions(gm: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, int]:
    """Pixels of the output of each convolution of a graph, of all examples, by the names of nodes.

    Args:
        gm: a graph module; it is left untouched.
        args: arguments of its forward.
        kwargs: further ones, by name.

    Returns:
        Nothing if the model can't be called with these.
    """
    recorder = _Recorder(copy_model(gm))
    given = dict(zip((node.target for node in gm.graph.nodes if node.op == "placeholder"), args, strict=False))
    given |= dict(kwargs)
    inputs = [
        given.get(str(node.target), node.args[0] if node.args else None)
        for node in gm.graph.nodes
        if node.op == "placeholder"
    ]
    try:
        with torch.no_grad(), kept_random_state(gm):
            recorder.run(*inputs)
    except Exception:  # Whatever the model raises: that inputs don't fit is said where outputs are compared.
        return {}
    return recorder.positions


class _Recorder(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.positions: dict[str, int] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        for dimensions, function in CONVOLUTIONS.items():
            if node.target is function and isinstance(result, Tensor):
                self.positions[node.name] = result.numel() // max(result.shape[-dimensions - 1], 1)
        return result
