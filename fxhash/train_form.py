"""The form of a transformed model that is trained: the same parameters, applied by their factors."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, fx, nn

from fxhash.errors import TransformError
from fxhash.graph.names import TRANSFORMED
from fxhash.graph.recorded import is_compiled_or_traced, is_plain_tensor
from fxhash.lowering.analysis import plan_lowering
from fxhash.lowering.lowering_options import LoweringOptions
from fxhash.original import pass_on
from fxhash.passes import lower_to_train
from fxhash.smh.generator import SMHGenerator
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
        `materialize` and `summary` take it as they take `gm`. Layers such as batch norm and dropout are those of `gm`
        themselves, in one mode for both: call `train()` or `eval()` on the one that you use next. Of a model that holds
        transformed ones, a copy that shares parameters and buffers with it.

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
    unshifted = frozenset(use.fqn for use in plan.uses if not use.stores("shift"))
    refuse = _RefuseShifts(lowered, unshifted)
    lowered.register_load_state_dict_pre_hook(refuse.before_loading)
    lowered.register_forward_pre_hook(refuse.before_a_call)
    _sort_like(lowered, gm)
    assert lowered.training == gm.training
    lowered.meta = {**gm.meta, TRANSFORMED: gm.graph}
    return pass_on(lowered)


class _RefuseShifts:
    """Hooks of a lowered model that refuse constants to add to weights which are generated without.

    Args:
        lowered: the lowered model.
        unshifted: these weights.
    """

    def __init__(self, lowered: fx.GraphModule, unshifted: Collection[str]) -> None:
        generator = generator_of(lowered)
        # By its name, which a copy of the model has too.
        self.name = next(name for name, child in lowered.named_children() if child is generator)
        self.unshifted = unshifted
        self.version = _version(generator.shifts)

    def before_a_call(self, lowered: fx.GraphModule, _: object) -> None:
        """Forward pre-hook, for what the model that was lowered has loaded since, whose generator is the same."""
        if is_compiled_or_traced():
            return
        shifts = self._generator_of(lowered).shifts
        if is_plain_tensor(shifts) and not shifts.is_meta and _version(shifts) != self.version:
            self._refuse(lowered, shifts)
            self.version = _version(shifts)

    def before_loading(self, lowered: fx.GraphModule, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
        """Pre-hook of `load_state_dict`, before anything is overwritten."""
        shifts = state.get(f"{prefix}{self.name}.shifts")
        if shifts is not None and shifts.shape == self._generator_of(lowered).shifts.shape:
            self._refuse(lowered, shifts)

    def _generator_of(self, lowered: fx.GraphModule) -> SMHGenerator:
        generator = lowered._modules[self.name]
        assert isinstance(generator, SMHGenerator)
        return generator

    def _refuse(self, lowered: fx.GraphModule, shifts: Tensor) -> None:
        """Raise TransformError if there is such a constant."""
        for parameter, shift in zip(self._generator_of(lowered).plan.hashed, shifts.tolist(), strict=True):
            if shift and parameter.fqn in self.unshifted:
                raise TransformError(
                    f"these values add a constant to {parameter.fqn!r}, which the model that was lowered did not: load "
                    "them into the transformed model first, and lower it then"
                )


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _sort_like(lowered: nn.Module, gm: nn.Module) -> None:
    """Bring parameters, buffers and modules into the order of another module that has the same, in place."""
    for path, module in gm.named_modules():
        for table in ("_parameters", "_buffers", "_modules"):
            own, order = vars(lowered.get_submodule(path))[table], vars(module)[table]
            if list(own) != list(order):
                for name in order:
                    own[name] = own.pop(name)
