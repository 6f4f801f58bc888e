"""Generated weights that autograd doesn't keep until backward: where a layer saves one, it is generated again.

`generate_weight` makes a weight that can be generated again. While a layer runs within `regenerating(weights)`,
autograd keeps in the place of these weights how to do that, and the factors, which it keeps anyway.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import _get_qualified_name

from fxhash.graph.layers import LAYERS
from fxhash.graph.recorded import calling_by_name, computing, recorded
from fxhash.smh.arithmetic import generate, separable
from fxhash.smh.precision import autocast_dtype

Recipe = Callable[[], Tensor]

_RECIPE = "_fxhash_recipe"

# The functions that `call_regenerating` has been asked for by name: compilers can follow it where they are found here.
_FUNCTIONS: dict[str, Any] = {}

# Torch has no public way to ask which hooks surround a call, and whether any are allowed.
_HOOKS: Any = torch._C._autograd
# Where it has no way at all, before torch 2.7, weights are kept until backward.
CAN_REGENERATE = hasattr(_HOOKS, "_top_saved_tensors_default_hooks")


class _Kept(NamedTuple):
    """What is kept in the place of a view of a weight: how to generate it, and where the view lies in it."""

    recipe: Recipe
    size: torch.Size
    strides: tuple[int, ...]
    offset: int | torch.SymInt


class _Saved(NamedTuple):
    """Any other tensor that a layer saves, or what the hooks around ours made of it, and its version."""

    value: Any
    tensor: Tensor | None
    version: int


@contextmanager
def regenerating(weights: Sequence[Any]) -> Iterator[None]:
    """Let autograd keep none of some weights for what runs within; those that have no recipe are kept as ever.

    Hooks for saved tensors that surround it, such as those of a checkpoint, get all other tensors.

    Args:
        weights: of `generate_weight`, or anything else.
    """
    recipes = _recipes_of(weights)
    if not recipes:
        yield
        return
    outer = _HOOKS._top_saved_tensors_default_hooks(False)

    def pack(saved: Tensor) -> _Kept | _Saved:
        recipe, dtype = recipes.get(_storage(saved), (None, None))
        # Other views of its memory, such as complex numbers, are none of the weight that can be made again.
        if recipe is not None and saved.dtype == dtype and not saved.is_conj() and not saved.is_neg():
            return _Kept(recipe, saved.size(), saved.stride(), saved.storage_offset())
        if outer is not None:
            return _Saved(outer[0](saved), None, 0)
        return _Saved(saved, saved, saved._version)

    def unpack(kept: _Kept | _Saved) -> Any:
        if isinstance(kept, _Kept):
            return kept.recipe().as_strided(kept.size, kept.strides, kept.offset)
        if outer is not None:
            return outer[1](kept.value)
        if kept.value._version != kept.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"tensor of shape {tuple(kept.value.shape)} is at version {kept.value._version}; expected version "
                f"{kept.version} instead"
            )
        return kept.value

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _recipes_of(weights: Sequence[Any]) -> Mapping[int, tuple[Recipe, torch.dtype]]:
    """How to generate each of some weights again, and its type, by storages; none where no hook would be called."""
    if (
        not CAN_REGENERATE
        or torch.compiler.is_compiling()
        or not torch.is_grad_enabled()
        # Transforms of torch.func take no hooks.
        or not _HOOKS._saved_tensors_hooks_is_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return {}
    made = [each for each in weights if _RECIPE in getattr(each, "__dict__", {})]
    return {_storage(each): (vars(each)[_RECIPE], each.dtype) for each in made}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _with_recipe(weight: Tensor, make: Recipe) -> Tensor:
    if not torch.compiler.is_compiling():
        vars(weight)[_RECIPE] = make
    return weight


@computing
@recorded
def generate_weight(
    left: Tensor,
    right: Tensor,
    slice_shape: Sequence[int],
    kernels: Tensor | None = None,
    shape: Sequence[int] | None = None,
    shift: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A weight that can be generated again.

    Args:
        left: the parameter's own rows of the left factor, scaled; shape `(rows, rank)`.
        right: the shared right factor, of shape `(at least rank, cols)`.
        slice_shape: shape of its slice of `left @ right`.
        kernels: the spatial kernels of a separable convolution, of shape `(count, positions)`.
        shape: the weight's shape, where that is not `slice_shape`.
        shift: a constant to add, of shape `()`.
        dtype: the weight's type; that of the factors if omitted.
    """
    factors = (left, right, kernels, shift)
    make = partial(_make_weight, slice_shape=slice_shape, shape=shape, dtype=dtype)
    return _with_recipe(
        make(*factors), partial(_again, make, [None if each is None else each.detach() for each in factors])
    )


def _make_weight(
    left: Tensor,
    right: Tensor,
    kernels: Tensor | None,
    shift: Tensor | None,
    slice_shape: Sequence[int],
    shape: Sequence[int] | None,
    dtype: torch.dtype | None,
) -> Tensor:
    if kernels is None:
        return generate(left, right, slice_shape, shift).to(dtype)
    assert shape is not None
    pointwise = generate(left, right, slice_shape)
    _with_recipe(pointwise, partial(_again, generate, [left.detach(), right.detach(), slice_shape]))
    with regenerating([pointwise]):
        weight = separable(pointwise, kernels, shape)
    return (weight if shift is None else weight + shift).to(dtype)


@torch.no_grad()
def _again(make: Callable[..., Tensor], arguments: Sequence[Any]) -> Tensor:
    return make(*arguments)


def apply_layer(layer: Callable[..., Tensor], x: Tensor, weight: Tensor, *arguments: Any, **named: Any) -> Tensor:
    """Call a layer of torch without keeping its weight until backward, nor what autocast makes of that.

    Args:
        layer: `F.linear` or a convolution.
        x: its input.
        weight: its weight; of `generate_weight`, or it is kept as ever.
        arguments: what else the layer takes.
        named: the same by name.
    """
    dtype = autocast_dtype(x.device.type)
    make = vars(weight).get(_RECIPE) if dtype is not None and not torch.compiler.is_compiling() else None
    if make is not None and weight.dtype != torch.float64:
        weight = _with_recipe(weight.to(dtype), lambda: make().to(dtype))
    with regenerating([weight]):
        return layer(x, weight, *arguments, **named)


@calling_by_name
@recorded
def call_regenerating(name: str, weight: Tensor, /, *args: Any, **kwargs: Any) -> Any:
    """Call a function or method without keeping a weight until backward that it, or a view of it, is given to.

    Args:
        name: the function's qualified name, such as `"torch.matmul"`, or a method's with a dot before it.
        weight: of `generate_weight`.
        args: arguments of the call.
        kwargs: the same by name.
    """
    function = _FUNCTIONS.get(name) or _function(name)
    if function in LAYERS and len(args) > 1 and args[1] is weight:
        return apply_layer(function, *args, **kwargs)
    with regenerating([weight]):
        return function(*args, **kwargs)


def name_of(node: fx.Node) -> str:
    """How `call_regenerating` is to name what a node calls; an empty string if it can't."""
    if node.op == "call_method":
        return f".{node.target}" if callable(_function(f".{node.target}")) else ""
    try:
        name = _get_qualified_name(node.target)  # type: ignore[arg-type]
        return name if node.op == "call_function" and _function(name) is node.target else ""
    except (AttributeError, ImportError, RuntimeError, ValueError):
        return ""


def _function(name: str) -> Any:
    path, _, attribute = name.rpartition(".")
    _FUNCTIONS[name] = function = getattr(pkgutil.resolve_name(path) if path else Tensor, attribute)
    return function
