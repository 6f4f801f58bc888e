"""What the layers of a model read on some inputs: each product with a weight is watched, whatever code makes it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fxhash.capture.copy_model import copy_model
from fxhash.capture.own_randomness import kept_random_state
from fxhash.errors import TransformError, described, shown
from fxhash.graph.layers import CONVOLUTIONS, is_layer_of
from fxhash.progress import with_bar
from fxhash.smh.calibration import MomentStore, block_sizes, moments, unfolded
from fxhash.smh.parameters import tied_groups
from fxhash.smh.precision import full_precision

# One batch: a tensor, a tuple of forward's arguments, or a dictionary of them by name.
Batch: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]

# Bytes of Gram matrices that a calibration may hold; beyond, the largest lose products between blocks of inputs.
_MOST_BYTES = 2**31

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PRODUCTS = {
    torch.ops.aten.mm.default: (0, 1),
    torch.ops.aten.bmm.default: (0, 1),
    torch.ops.aten.addmm.default: (1, 2),
    torch.ops.aten.baddbmm.default: (1, 2),
}


def layer_weights(model: nn.Module, traced: fx.GraphModule, names: Collection[str]) -> set[str]:
    """Which parameters are weights of linear layers and convolutions, by the modules of a model or its graph.

    Args:
        model: the original.
        traced: what was captured of it.
        names: of parameters; of tied names, the first.
    """
    first = {name: group[0] for group, _ in tied_groups(model) for name in group}
    found = {
        first.get(f"{path}.weight" if path else "weight", "")
        for path, module in model.named_modules()
        if isinstance(module, _LAYERS)
    }
    functions = (F.linear, *CONVOLUTIONS.values())
    for node in traced.graph.nodes:
        if node.op == "get_attr" and any(is_layer_of(node, user, functions) for user in node.users):
            found.add(first.get(str(node.target), ""))
    return found & set(names)


def collect_moments(
    model: nn.Module, weights: Mapping[str, Tensor], layers: Collection[str], calibration: Iterable[Batch]
) -> MomentStore:
    """The moments of what layers read, over all batches.

    A copy of the model runs in eval mode. It shares parameters with the model, and nothing else; no batch is kept.

    Args:
        model: the original; it is left untouched.
        weights: parameters of the model that may be multiplied by, by their names.
        layers: which of them have to be.
        calibration: the batches.

    Raises:
        TransformError: for what is no iterable of batches or has none, if the model can't be called with one, or reads
            something that is not finite, or if no batch reached one of `layers`.
    """
    running = copy_model(model, shared=[name for name, _ in model.named_parameters(remove_duplicate=False)]).eval()
    device = next(iter(weights.values())).device
    watch = _Watch(weights)
    number = -1
    for number, batch in enumerate(with_bar(batches_of(calibration), "calibrating")):
        try:
            call_watched(running, batch, watch, device)
        except Exception as error:
            raise TransformError(
                f"calibration: the model can't be called with batch {number} ({described(error)}): give the inputs of "
                "its forward alone, a tensor, a tuple of arguments or a dictionary of them by name"
            ) from error
        watch.end_of_call()
    if number < 0:
        raise TransformError("calibration holds no batch: give the inputs of at least one call")
    missing = sorted(name for name in layers if name not in watch.store)
    if missing:
        more = f" (nor those of {len(missing) - 1} more)" if missing[1:] else ""
        raise TransformError(
            f"calibration: no batch reached the layer of {missing[0]!r}{more} in eval mode: give batches that do, or "
            "leave it dense with exclude=..., as a head that training alone calls"
        )
    for group in watch.store.readers:
        if not bool(group.moments.products.isfinite().all()):
            raise TransformError(
                f"calibration: the layer of {min(group.names)!r} reads NaN, infinity, or values too large to square"
            )
    return watch.store


def call_watched(model: nn.Module, batch: Batch, watch: InputWatch, device: torch.device) -> Any:
    """What a model returns for a batch, while each product with a weight is watched."""
    with (
        kept_random_state(model),
        torch.inference_mode(False),
        torch.no_grad(),
        full_precision(device.type),
        _Plain(),
        watch,
    ):
        return call(model, batch, device)


def batches_of(given: Iterable[Batch], argument: str = "calibration") -> Iterable[Batch]:
    """What was given for an argument, unless it is no iterable of batches: then TransformError."""
    if isinstance(given, (Tensor, Mapping, str)) or not isinstance(given, Iterable):
        raise TransformError(
            f"{argument}={shown(given)} is no iterable of batches: give a list of them, such as [inputs]"
        )
    return given


def call(model: Callable[..., Any], batch: Batch, device: torch.device) -> Any:
    """What a model returns for a batch, which is brought to its device."""
    args, kwargs = arguments_of(batch)
    return model(*tree_map(_at(device), args), **tree_map(_at(device), kwargs))


def floating_outputs(result: Any) -> list[Tensor]:
    """The tensors of a floating-point type in what a model returned."""
    values = dict(result) if isinstance(result, Mapping) else result
    return [each for each in tree_leaves(values) if isinstance(each, Tensor) and each.is_floating_point()]


def arguments_of(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with for a batch: arguments by position, and by name."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, (tuple, list)) else ((batch,), {})


def _at(device: torch.device) -> Callable[[Any], Any]:
    # A tensor of inference mode would hide which operations are computed with it.
    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device).clone() if value.is_inference() else value.to(device)

    return place


class _Plain(TorchFunctionMode):
    """Changes nothing; while a mode is active, torch's attention computes with plain layers, no fused kernels."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@dataclass
class _Reading:
    """What was read last: by which layers, and how a convolution unfolds it."""

    inputs: Tensor
    version: int
    unfolding: tuple[Any, ...]
    names: set[str]

    def is_of(self, inputs: Tensor, unfolding: tuple[Any, ...]) -> bool:
        """Whether other inputs are the same values: the same memory, unchanged. It is alive: nothing else is there."""
        mine = self.inputs
        return (
            mine.untyped_storage().data_ptr() == inputs.untyped_storage().data_ptr()
            and (mine.storage_offset(), mine.shape, mine.stride(), mine.dtype)
            == (inputs.storage_offset(), inputs.shape, inputs.stride(), inputs.dtype)
            and self.version == inputs._version
            and self.unfolding == unfolding
        )


class InputWatch(TorchDispatchMode):
    """Sees what is multiplied by some weights, each recognised by its memory."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._weights = {each.untyped_storage().data_ptr(): (name, each) for name, each in weights.items()}

    def on_read(self, name: str, inputs: Tensor, unfolding: tuple[Any, ...], pieces: Callable[[Tensor], Any]) -> None:
        """Called for each product with a weight, before it is computed.

        Args:
            name: of the weight.
            inputs: what it is multiplied by.
            unfolding: how a convolution unfolds it.
            pieces: gives the unfolded inputs in pieces of shape `(any, length)`.
        """
        raise NotImplementedError

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            inputs, weight = (args[place] for place in _PRODUCTS[func])
            self._product(inputs, weight)
        elif func is torch.ops.aten.convolution.default:
            self._convolution(*args)
        return func(*args, **(kwargs or {}))

    def _product(self, inputs: Tensor, factor: Tensor) -> None:
        name, weight = self._weights.get(factor.untyped_storage().data_ptr(), ("", None))
        if weight is None or weight.dim() < 2 or not inputs.numel():
            return
        length = weight[0].numel()
        # The weight transposed, or some of its rows; any other view of it is multiplied by otherwise.
        if factor.shape[-2] == length and (length == 1 or factor.stride(-2) == 1) and factor.dtype == weight.dtype:
            self.on_read(name, inputs, (), lambda x: [x.reshape(-1, length)])

    def _convolution(
        self,
        inputs: Tensor,
        factor: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,
        output_padding: list[int],
        groups: int,
    ) -> None:
        name, weight = self._weights.get(factor.untyped_storage().data_ptr(), ("", None))
        if weight is None or factor.shape != weight.shape or transposed or not inputs.numel():
            return
        kernel = tuple(weight.shape[2:])
        unfolding = (kernel, tuple(stride), tuple(padding), tuple(dilation), groups)
        self.on_read(name, inputs, unfolding, lambda x: unfolded(x, kernel, stride, padding, dilation, groups))


class _Watch(InputWatch):
    """Adds up the moments of what is multiplied by some weights.

    Attributes:
        store: the moments.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(weights)
        self.store = MomentStore()
        self._lengths = {name: each[0].numel() for name, each in weights.items() if each.dim() > 1}
        self._sizes = block_sizes(self._lengths.values(), _MOST_BYTES // 4)
        self._last: _Reading | None = None
        self._moments: Any = None

    def end_of_call(self) -> None:
        """Add what was read last."""
        if self._last is not None:
            self.store.add(self._last.names, self._moments)
        self._last = self._moments = None

    def on_read(self, name: str, inputs: Tensor, unfolding: tuple[Any, ...], pieces: Callable[[Tensor], Any]) -> None:
        """Count the inputs in, once for all layers that read them one after the other."""
        if self._last is not None and self._last.is_of(inputs, unfolding):
            self._last.names.add(name)
            return
        self.end_of_call()
        length = self._lengths[name]
        self._moments = moments(pieces(inputs), length // self._sizes[length])
        self._last = _Reading(inputs, inputs._version, unfolding, {name})
