"""Attach a tracer to the modules of a model, and to nothing else: no class and no function of torch is patched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxhash.capture.user_code import is_user_code

_TABLES = ("_parameters", "_buffers", "_modules")
_FILE_OF_MODULES = nn.Module.parameters.__code__.co_filename


@contextmanager
def attached(
    model: nn.Module,
    call: Callable[..., Any],
    proxy_of: Callable[[Tensor], fx.Proxy],
    flags: Mapping[nn.Module, fx.Proxy],
) -> Iterator[None]:
    """Let the modules of a model ask a tracer; afterwards they have the attributes that they had before.

    Args:
        model: the model, which belongs to the capture.
        call: is called instead of each module, with the module and its arguments.
        proxy_of: gives the value of the graph for a parameter or buffer that is read by name.
        flags: what each module has for its `training` flag.
    """
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [(module, dict(vars(module)), {name: dict(vars(module)[name]) for name in _TABLES}) for module in modules]
    try:
        for module in model.modules():
            # This is what `nn.Module.__call__` calls first, for the sake of `nn.Module.compile`.
            vars(module)["_compiled_call_impl"] = partial(call, module)
        for module in modules:
            vars(module)["training"] = flags[module]
            for name in ("_parameters", "_buffers"):
                vars(module)[name] = _Table(vars(module)[name], proxy_of)
        yield
    finally:
        for module, attributes, tables in before:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in tables.items():
                vars(module)[name].clear()
                vars(module)[name].update(content)
        for module in model.modules():
            vars(module).pop("_compiled_call_impl", None)


class _Table(dict[str, Any]):
    """The parameters or buffers of a module, which are values of the graph where they are read."""

    def __init__(self, tensors: dict[str, Any], proxy_of: Callable[[Tensor], fx.Proxy]) -> None:
        super().__init__(tensors)
        self._proxy_of = proxy_of

    def __getitem__(self, name: str) -> Any:
        tensor = super().__getitem__(name)
        return self._proxy_of(tensor) if isinstance(tensor, Tensor) else tensor

    def items(self) -> Any:
        """Also for user code that goes through them, by `parameters()` say."""
        if _is_asked_by_user(sys._getframe(1)):
            return ((name, self[name]) for name in self)
        return super().items()


def _is_asked_by_user(frame: FrameType | None) -> bool:
    """Whether user code asked, through nothing but methods of `nn.Module`."""
    while frame is not None and frame.f_code.co_filename == _FILE_OF_MODULES:
        frame = frame.f_back
    return frame is not None and is_user_code(frame.f_code)
