"""The form of a transformed model that is trained: the same parameters, applied by their factors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import fx, nn

from fxhash.errors import TransformError
from fxhash.graph.names import TRANSFORMED
from fxhash.lowering.analysis import plan_lowering
from fxhash.lowering.lowering_options import LoweringOptions
from fxhash.original import pass_on
from fxhash.passes import lower_to_train
from fxhash.transformed import (
    AnyModule,
    generator_of,
    require_transformed,
    sharing_copy,
    transformed_graph,
    transformed_parts,
    unwrapped,
    with_parts,
)


def lower_for_training(gm: AnyModule) -> AnyModule:
    """Lay a transformed model out for training, with less work and memory for each step.

    Linear layers, convolutions, attention and embeddings are factored where that is less work, forward and backward
    together: they apply the low-rank factors directly, and their gradients reach the factors without those of a
    weight. Which is less may depend on the size of the batch; then each call decides. Any other weight is generated
    before it is read, and is not kept until backward, but generated again.

    Train the result as you would have trained `gm`: batch norms and dropout are as they were, and nothing is folded or
    cached. Under `torch.compile`, the compiler decides what is kept, and attention generates its weights.

    Args:
        gm: a transformed model, or one that holds some; it is left untouched. What `torch.compile`, `DataParallel`,
            `DistributedDataParallel` or `AveragedModel` made of it is unwrapped: wrap the result.

    Returns:
        A graph module in the mode of `gm`, with the same parameter objects, buffers and state dict: one optimizer
        trains both. Its outputs and gradients equal those of `gm` up to rounding. `save`, `lower_for_deploy`,
        `materialize` and `summary` take it as they take `gm`. Of a model that holds transformed ones, a copy that
        shares parameters and buffers with it.

    Raises:
        TransformError: if `gm` is not a transformed model, or is lowered for deployment.

    Example:
        >>> import fxhash, torch
        >>> gm = fxhash.transform(nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10)), compress=0.1)
        >>> fast = lower_for_training(gm)
        >>> optimizer = torch.optim.AdamW(fast.parameters())
        >>> fast(torch.ones(5, 100)).sum().backward()
        >>> optimizer.step()
        >>> bool(torch.allclose(fast(torch.ones(5, 100)), gm(torch.ones(5, 100)), atol=1e-5))
        True
    """
    gm = unwrapped(gm)
    parts = require_transformed(gm)
    if "" in parts:
        return with_parts(gm, {gm: _lowered(parts[""])})
    copied = sharing_copy(gm)
    return with_parts(copied, {part: _lowered(part) for part in transformed_parts(copied).values()})


def _lowered(gm: fx.GraphModule) -> fx.GraphModule:
    """A transformed model lowered; one that is so already, lowered anew.

    Both share their parameters, buffers and modules, in the same order. The result keeps the transformed graph, which
    is how all else that is done with it finds the weights: `transformed_graph` gives the model of that graph back.
    """
    gm = transformed_graph(gm)
    plan = plan_lowering(gm, options=LoweringOptions(for_training=True))
    lowered = lower_to_train(gm, plan)
    unshifted = sorted({use.fqn for use in plan.uses if not use.stores("shift")})
    lowered.register_load_state_dict_post_hook(partial(_refuse_shifts, unshifted))
    _sort_like(lowered, gm)
    assert lowered.training == gm.training
    lowered.meta = {**gm.meta, TRANSFORMED: gm.graph}
    return pass_on(lowered)


def _refuse_shifts(unshifted: Sequence[str], lowered: fx.GraphModule, _: object) -> None:
    """Raise TransformError if a state dict has a constant to add to a weight that is generated without one."""
    generator = generator_of(lowered)
    wrong = next((name for name in unshifted if generator.shift(name) is not None), None)
    if wrong is not None:
        raise TransformError(
            f"these values add a constant to {wrong!r}, which the model that was lowered did not: load them into the "
            "transformed model first, and lower it then"
        )


def _sort_like(lowered: nn.Module, gm: nn.Module) -> None:
    """Bring parameters, buffers and modules into the order of another module that has the same, in place."""
    for path, module in gm.named_modules():
        for table in ("_parameters", "_buffers", "_modules"):
            own, order = vars(lowered.get_submodule(path))[table], vars(module)[table]
            if list(own) != list(order):
                for name in order:
                    own[name] = own.pop(name)
