"""Values that a model on the meta device starts with, made one module at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fxhash.capture.leaf_modules import TensorConstant
from fxhash.capture.replicas import replicate
from fxhash.errors import TransformError
from fxhash.graph.names import original_name

_TABLES = ("_parameters", "_buffers")


class InitialValues(Mapping[str, Tensor]):
    """Parameters and buffers of a model on the meta device, by name, as its modules' `reset_parameters` sets them.

    Reading one makes all that its module holds itself, and drops those of the module before: no more than one module
    takes memory at a time.

    Args:
        model: the model; it is left untouched.
        device: where to make the values.

    Raises:
        TransformError: on reading what no `reset_parameters` sets.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model
        self.device = device
        self._path: str | None = None
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        path, _, attribute = name.rpartition(".")
        if path != self._path:
            self._made.clear()
            self._made, self._path = self._reset(path), path
        if not _is_set(self._made[attribute]):
            raise TransformError(
                f"{name!r} is on the meta device, and {type(self.model.get_submodule(path)).__name__} has no "
                "reset_parameters() that gives it a value: write one, or build the model on a real device"
            )
        return self._made[attribute]

    def __iter__(self) -> Iterator[str]:
        return iter(self.model.state_dict())

    def __len__(self) -> int:
        return len(self.model.state_dict())

    def _reset(self, path: str) -> dict[str, Tensor]:
        """What the module at `path` holds itself, after its `reset_parameters`."""
        module = self.model.get_submodule(path)
        replicas = replicate(module)
        for each in replicas.values():
            _own_values_(each, self.device if each is replicas[id(module)] else torch.device("meta"))
        replica = replicas[id(module)]
        reset = getattr(replica, "reset_parameters", None) or getattr(replica, "_reset_parameters", None)
        if reset is not None:
            reset()
        return {
            name: vars(replica)[table][name].detach() if value.is_meta else value.detach()
            for table in _TABLES
            for name, value in vars(module)[table].items()
            if value is not None
        }


def materialize_(transformed: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give every parameter and buffer of a transformed model that is on the meta device a value."""
    made: dict[int, Tensor] = {}
    for path, module in transformed.named_modules():
        for table in _TABLES:
            for name, tensor in vars(module)[table].items():
                if isinstance(module, TensorConstant) and tensor.is_meta:
                    raise TransformError(
                        f"a constant tensor of shape {tuple(tensor.shape)}, say a buffer that is not persistent, is on "
                        "the meta device and has no value: let only parameters be there, or build the model on a real "
                        "device"
                    )
                if tensor is not None and tensor.is_meta and id(tensor) not in made:
                    value = values[original_name(f"{path}.{name}" if path else name)].clone()
                    made[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if table == "_parameters" else value
                if tensor is not None and tensor.is_meta:
                    vars(module)[table][name] = made[id(tensor)]


def _own_values_(replica: nn.Module, device: torch.device) -> None:
    """Give a replica tensors of its own to reset: values that are real are copied, the others made on a device."""
    if isinstance(replica, torch.jit.ScriptModule):
        return
    for table in _TABLES:
        tensors = vars(replica)[table]
        for name, value in tensors.items():
            if value is not None:
                own = torch.empty_like(value, device=device) if value.is_meta else value.detach().clone()
                if value.is_meta and not own.is_meta:
                    _unset_(own)
                tensors[name] = nn.Parameter(own, False) if table == "_parameters" else own


def _unset_(tensor: Tensor) -> None:
    """Mark a tensor as having no value yet."""
    with torch.no_grad():
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            tensor.fill_(torch.nan)
        elif tensor.dtype != torch.bool:
            tensor.fill_(torch.iinfo(tensor.dtype).min)


def _is_set(tensor: Tensor) -> bool:
    """Whether a tensor got a value since `_unset_`; flags and bytes may have any, and count as unset."""
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        return not bool(tensor.isnan().any())
    return tensor.dtype not in (torch.bool, torch.uint8) and bool((tensor != torch.iinfo(tensor.dtype).min).all())
