"""Let plain layers apply the factors of their weight, always or for small inputs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx

from fxhash.graph.arguments import all_arguments
from fxhash.lowering.functional import (
    adaptive_conv,
    adaptive_linear,
    factored_conv,
    factored_linear,
)
from fxhash.lowering.lookup import factored_embedding
from fxhash.lowering.method import Method
from fxhash.lowering.plan import LoweringPlan, Reader
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import USE, FactorSource, factors_in_bits, planned, read, read_right
from fxhash.smh.generator import SMHGenerator

_FUNCTIONS: dict[tuple[Reader, Method], Callable[..., Tensor]] = {
    (Reader.LINEAR, Method.FACTORED): factored_linear,
    (Reader.LINEAR, Method.ADAPTIVE): adaptive_linear,
    (Reader.CONVOLUTION, Method.FACTORED): factored_conv,
    (Reader.CONVOLUTION, Method.ADAPTIVE): adaptive_conv,
    (Reader.EMBEDDING, Method.FACTORED): factored_embedding,
}


@graph_pass
def factor_layers(graph_module: fx.GraphModule, plan: LoweringPlan, factors: FactorSource) -> bool:
    """Replace the function of each linear layer, convolution and embedding that the plan factors."""
    modified = False
    for use, (layer, *_) in planned(graph_module.graph, plan):
        function = _FUNCTIONS.get((use.reader, use.method))
        if function is None or use.module is not None:
            continue
        given = all_arguments(layer)
        bits = factors_in_bits(factors) if use.reader is Reader.EMBEDDING else None
        left = read(graph_module, factors, use, "left", before=layer, is_widened=bits is None)
        arguments = [given["input"], left, read_right(graph_module, factors, use, layer), use.shape]
        arguments += [given[name] for name in ("bias", "stride", "padding", "dilation") if name in given]
        if use.method is Method.ADAPTIVE:
            arguments.append(use.costs.max_positions)
        if bits is not None:
            # Of a table, no rows are widened but those that are looked up.
            steps = read(graph_module, factors, use, "left steps", before=layer)
            arguments += [steps, bits.size(use.parameter.full_rank)]
        # The node stays, and so does its name, of which the summary speaks.
        # What changes gradients alone matters where they are trained.
        is_trained = isinstance(factors, SMHGenerator) and given.get("padding_idx") is not None
        padding = {"padding_idx": given["padding_idx"] % use.shape[0]} if is_trained else {}
        layer.target, layer.args, layer.kwargs = function, tuple(arguments), padding
        layer.meta[USE] = use
        modified = True
    return modified
