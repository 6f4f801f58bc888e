"""Modules that are no plain Python: script modules, which stay as they are, and what `torch.compile` returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxhash.errors import TransformError


class Uncompiled(nn.Module):
    """Stands for what `torch.compile` made of a module, and calls that module itself; with the same names.

    A compiled function keeps the module that it was made of: it would not see the weights that a capture gives to it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module that was compiled."""
        return self._modules["_orig_mod"](*args, **kwargs)  # type: ignore[misc]


def without_compilation(model: nn.Module) -> nn.Module:
    """A copy that belongs to a capture, with an `Uncompiled` in place of each compiled module.

    Raises:
        TransformError: if the model itself is a script module.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TransformError(
            f"this {type(model).__name__} is a ScriptModule, whose weights can't be generated: give the model as it "
            "was before torch.jit.script or torch.jit.trace"
        )
    stand_ins = {module: _stand_in(module) for module in model.modules() if is_compiled(module)}
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            for name, child in module._modules.items():
                module._modules[name] = stand_ins.get(child, child) if child is not None else None
    for stand_in in stand_ins.values():
        (inner,) = stand_in._modules.values()
        stand_in._modules["_orig_mod"] = stand_ins.get(inner, inner)  # type: ignore[arg-type]
    return stand_ins.get(model, model)


def own_script_parameters_(copied: nn.Module, original: nn.Module) -> None:
    """Make the parameters of script modules in a copy its own; as `copy.deepcopy` leaves them, they are computed.

    Their gradients would go to the original's.
    """
    for module, other in zip(copied.modules(), original.modules(), strict=True):
        if isinstance(module, torch.jit.ScriptModule):
            for parameter, its_original in zip(module.parameters(False), other.parameters(False), strict=True):
                parameter.detach_().requires_grad_(its_original.requires_grad)


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is what `torch.compile` made of one."""
    # By name: importing the class would load all of the compiler.
    kind = type(module)
    return kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch._dynamo.")


def _stand_in(module: nn.Module) -> Uncompiled:
    stand_in = Uncompiled()
    own = vars(stand_in).keys() - {"_modules"}
    vars(stand_in).update({name: value for name, value in vars(module).items() if name in own})
    stand_in._modules["_orig_mod"] = module._modules["_orig_mod"]
    return stand_in.train(module._modules["_orig_mod"].training)  # type: ignore[union-attr]
