"""Random numbers of one's own: operations draw from a generator that no other thread sees."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fxhash.capture.thread_mode import ThreadMode

aten = torch.ops.aten


def kept_random_state(model: nn.Module) -> AbstractContextManager[None]:
    """Leave torch's random numbers as they are, also those of the GPUs of a model, whatever is drawn in the block."""
    devices = {each.device for each in (*model.parameters(), *model.buffers()) if each.is_cuda}
    return torch.random.fork_rng(devices=list(devices))


class OwnRandomness(ThreadMode):
    """Lets the operations of this thread draw from generators that begin with one seed; torch's own stays as it is.

    Args:
        seed: the seed.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation with a generator of ours, if it draws and was given none."""
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        tensor = next((each for each in args if isinstance(each, Tensor)), None)
        device = torch.device(kwargs.get("device") or "cpu") if tensor is None else tensor.device
        if device.type == "meta":
            return func(*args, **kwargs)
        generator = self._generator(device)
        if func is aten.native_dropout.default:
            return _dropout(*args, generator=generator)
        drawn = _LIKE.get(func)
        if drawn is not None:
            room = torch.empty_like(args[0], **kwargs)
            return drawn(room, *args[1:], generator)
        if any(argument.name == "generator" for argument in func._schema.arguments):
            return func(*args, **kwargs, generator=generator)
        overload = func._overloadname
        other = getattr(func.overloadpacket, "generator" if overload == "default" else f"{overload}_generator", func)
        return other(*args, **kwargs) if other is func else other(*args, **kwargs, generator=generator)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def _dropout(x: Tensor, p: float, train: bool | None, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if train is False or p == 0:
        return x, torch.ones_like(x, dtype=torch.bool)
    kept = torch.empty_like(x, dtype=torch.float32).uniform_(generator=generator) >= p
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return x * kept * scale, kept


_LIKE: dict[Any, Any] = {
    aten.rand_like.default: lambda room, generator: room.uniform_(generator=generator),
    aten.randn_like.default: lambda room, generator: room.normal_(generator=generator),
    aten.randint_like.default: lambda room, high, generator: room.random_(0, high, generator=generator),
    aten.randint_like.low_dtype: lambda room, low, high, generator: room.random_(low, high, generator=generator),
}
