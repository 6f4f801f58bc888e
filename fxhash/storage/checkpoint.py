"""Store a transformed model as one `.safetensors` file, and make it again of the file and the original model's code.

The file holds the state dict of the transformed model (factors, scales, whatever stayed dense, and buffers), the plan,
and, if asked for, the name of the function that builds the original model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from fxhash.capture.checking import ExampleInputs
from fxhash.capture.copy_model import copy_model
from fxhash.capture.exported import Model, as_module
from fxhash.errors import CheckpointError, PlanError, TransformError
from fxhash.graph.names import original_name
from fxhash.lowering.factor_store import find_factor_store
from fxhash.smh.checks import check_flag
from fxhash.smh.generator import find_generator
from fxhash.smh.plan import CompressionPlan
from fxhash.storage.atomic import write_bytes
from fxhash.storage.contents import (
    distinct_tensors,
    expected_tensors,
    factor_rows,
    fill_generators,
    fill_others,
    names_outside_generators,
    trained_otherwise,
)
from fxhash.storage.factory import Factory, check_trust, stated_factory
from fxhash.storage.fit import check_parameters, check_submodules, check_tensors
from fxhash.storage.folded_norms import fold, refuse_training, unfolded
from fxhash.storage.model_file import StoredModel, pack, unpack
from fxhash.storage.paths import PathLike, read_path, read_target
from fxhash.storage.plans import plans_from_json, plans_to_json
from fxhash.storage.quantization import bits_of, narrowed, quantized, read_dense_dtype, read_storage_dtype
from fxhash.storage.reading import factory_of, plans_of, refuse_values
from fxhash.storage.values import describe_not_finite, describe_not_finite_weight
from fxhash.transformed import (
    current_plan,
    generator_of,
    rebuild,
    refuse_transformed,
    required_parts,
    transformed_parts,
    unwrapped,
    with_parts,
)


def save(
    gm: nn.Module,
    path: PathLike,
    *,
    dtype: torch.dtype | str | None = None,
    dense_dtype: torch.dtype | str | None = None,
    fold_batch_norms: bool = False,
    allow_nan: bool = False,
    factory: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Write a transformed model to one `.safetensors` file.

    The file is complete or not there: it is written under another name in the same folder and then renamed.

    Args:
        gm: a transformed model, on any device, or a model that holds some; also what `torch.compile`, `DataParallel`,
            `DistributedDataParallel` or `AveragedModel` made of it, which is unwrapped.
        path: where to write, usually `NAME.safetensors`; an existing file is replaced.
        dtype: type to store the factors in: `"bfloat16"`, `"float16"`, or the integers `"int8"` or `"int4"` with a step
            for each row, or the `torch.dtype` of that name; as they are if omitted. `load` gives the type of the model
            again, with rounded values: with those that it was trained with after `quantize_factors` with as many bits,
            bit for bit. The file of integers has one tensor of bytes, which `load` takes apart.
        dense_dtype: type to store all else in that has a wider floating-point type, such as biases and batch norms:
            `"bfloat16"` or `"float16"`; `load` gives rounded values. As it is if omitted, bit for bit.
        fold_batch_norms: whether to store batch norms as a scale and a bias for each channel, without their statistics:
            half of their bytes. `load` gives a model that computes the same in eval mode, up to rounding, and whose
            norms refuse training mode. Norms with code of their own, in submodules that could not be traced, or with
            values that a type can't hold, stay as they are. Code around the graph that reads a norm's statistics
            itself would find 0 and 1.
        allow_nan: whether to store a model that holds NaN, or infinity where values are trained, which is refused
            otherwise. Buffers and frozen parameters may hold infinities, as masks do.
        factory: the function or class that builds the original model, as `"package.module:function"`, so that `load`
            needs no model if its caller trusts that module. It is imported, to see that it is there, and not called.
        arguments: keyword arguments of the factory; values that JSON has.

    Raises:
        PlanError: for other types, or one of other bits than the factors were trained with, a factory that there
            isn't, arguments that it doesn't take or JSON doesn't have, or if the model has more parameters than a file
            may hold.
        TransformError: if `gm` is not a transformed model.
        CheckpointError: if it has no values yet, they are NaN or infinite, a type can't hold them, or the file can't
            be written.
    """
    content = file_of(gm, dtype, dense_dtype, fold_batch_norms, allow_nan, stated_factory(factory, arguments))
    write_bytes(read_target(path), content)


def file_of(
    gm: nn.Module,
    dtype: torch.dtype | str | None,
    dense_dtype: torch.dtype | str | None,
    fold_batch_norms: bool,
    allow_nan: bool,
    factory: Factory | None,
) -> bytes:
    """The bytes of the file that `save` writes; its arguments are those of `save`."""
    check_flag("allow_nan", allow_nan)
    check_flag("fold_batch_norms", fold_batch_norms)
    dtype = None if dtype is None else read_storage_dtype(dtype)
    dense_dtype = None if dense_dtype is None else read_dense_dtype(dense_dtype)
    gm = unwrapped(gm)
    if find_factor_store(gm) is not None:
        raise TransformError("this model is lowered already: save the transformed model that it was made of")
    parts = required_parts(gm)
    plans = {path: current_plan(part) for path, part in parts.items()}
    _check_trained_bits(plans, dtype)
    text = plans_to_json(plans)
    # What `load` would refuse is not written.
    plans_from_json(text)
    tensors = distinct_tensors(gm)
    if not allow_nan:
        others = trained_otherwise(gm, parts)
        wrong = describe_not_finite(tensors, plans, others) or _describe_wrong_weight(parts)
        if wrong:
            raise CheckpointError(
                f"{wrong}, so nothing is written: fxhash.save(..., allow_nan=True) stores it as it is"
            )
    of_generators = tensors.keys() - names_outside_generators(gm, parts)
    tensors = fold(tensors, gm, parts, fold_batch_norms, dense_dtype)
    dense = tensors.keys() - of_generators
    if dtype is not None:
        tensors = quantized(tensors, factor_rows(parts), dtype)
    if dense_dtype is not None:
        tensors = narrowed(tensors, dense, dense_dtype)
    is_small = bits_of(dtype) is not None
    return pack(text, tensors, "" if factory is None else factory.to_json(), is_small)


def load(
    path: PathLike,
    model: Model | None = None,
    *,
    allow_nan: bool = False,
    example_inputs: ExampleInputs | None = None,
    capture: str = "trace",
    trust: Collection[str] = (),
) -> nn.Module:
    """Rebuild a transformed model from a file and the code of the model that it was made of.

    The file may come from anybody: what it says is checked against itself and the model before memory is taken for it.

    Args:
        path: a file that `save` wrote.
        model: the original model, freshly built or exported; its values don't matter and it is left untouched. It may
            be on the meta device, which saves allocating its dense weights: the result is then on the CPU. If omitted,
            the factory that the file names builds it, if `trust` has its module.
        allow_nan: whether to take a file that holds NaN, or infinity where values are trained, which is refused
            otherwise.
        example_inputs: arguments of forward to check the captured model on, as in `transform`; not for a model that
            holds transformed ones.
        capture: how to capture the model, as in `transform`; it need not be as it was when the file was written.
        trust: names of modules and packages that the file's factory may be in, such as `["package.module"]`, or its
            own, such as `["package.module:function"]`. Importing a module runs its code, and the file chooses the
            arguments, so name what you know. Nothing is trusted by default.

    Returns:
        The transformed model (a `GraphModule`), or the model that holds some, on the device and in the mode of `model`.
        From a file of folded batch norms it computes in eval mode alone; values that its state dict gives to another
        model, or norms that are converted, carry no mark of that.

    Raises:
        CheckpointError: if the file can't be read, is damaged, doesn't fit the model, or holds NaN; the message names
            the first parameter that differs. If `model` is omitted, also if the file names no factory, or one that is
            not trusted or fails.
        PlanError: if `trust` is no list of names.
    """
    check_flag("allow_nan", allow_nan)
    trusted = check_trust(trust)
    given = None if model is None else as_module(model)
    if given is not None:
        refuse_transformed(given)
    stored = _with_original_names(unpack(read_path(path)))
    plans = plans_of(stored, path)
    dense = _build(stored, path, trusted) if given is None else given
    # Older files of what torch.compile returned have its names.
    dense = dense if _has_names_of_compiled(plans) else unwrapped(dense)
    refuse_transformed(dense)
    gm = _rebuild(dense, plans, path, capture, example_inputs)
    parts = transformed_parts(gm)
    dense_names = names_outside_generators(gm, parts)
    expected = expected_tensors(gm)
    tensors, folded_norms = unfolded(stored.tensors, expected, path)
    check_tensors(expected, tensors, factor_rows(parts), dense_names, path)
    refuse_training(gm, folded_norms, path)
    devices = {name: _device_of(dense.get_submodule(name), plans[name]) for name in parts}
    fill_generators(parts, tensors, devices, path)
    fill_others(gm, parts, tensors)
    for name, buffer in gm.named_buffers():
        if buffer.is_meta and buffer.numel():
            raise CheckpointError(
                f"buffer {name!r} is not part of the state dict and has no value on the meta device: build the model "
                "on a real device"
            )
    if not allow_nan:
        others = trained_otherwise(gm, parts)
        # A step of a row may be one that no entry has.
        steps = {name: tensor for name, tensor in tensors.items() if name not in expected}
        wrong = describe_not_finite(steps, plans) or describe_not_finite(gm.state_dict(), plans, others)
        refuse_values(wrong or _describe_wrong_weight(parts), path)
    return gm


def _build(stored: StoredModel, path: PathLike, trust: Collection[str]) -> nn.Module:
    """The model that the file's own factory builds, if that is trusted."""
    factory = factory_of(stored, path)
    if factory is None:
        raise CheckpointError(
            f"{path} doesn't say what builds its model: give the original model, as in fxhash.load(path, build())"
        )
    return factory.build(trust)


def _rebuild(
    model: nn.Module,
    plans: Mapping[str, CompressionPlan],
    path: PathLike,
    capture: str,
    example_inputs: ExampleInputs | None,
) -> nn.Module:
    """The model with what was transformed in it, without values there."""
    if "" not in plans and example_inputs is not None:
        raise CheckpointError("example_inputs check a whole model, but the file is of one with transformed submodules")
    submodules = check_submodules(plans, model, path)
    built = {}
    for name, plan in plans.items():
        check_parameters(plan, submodules[name], path)
        built[name] = rebuild(submodules[name], plan, capture, example_inputs)
        if find_generator(built[name]) is None:
            raise CheckpointError(
                f"{path} does not fit this model, whose forward reads none of the generated parameters"
            )
    if "" in built:
        return built[""]
    prefixes = tuple(f"{name}." for name in plans)
    everything = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    copied = copy_model(model, shared={name for name, _ in everything if name.startswith(prefixes)})
    return with_parts(copied, {copied.get_submodule(name): part for name, part in built.items()})


def _check_trained_bits(plans: Mapping[str, CompressionPlan], dtype: torch.dtype | None) -> None:
    """Raise PlanError if factors that were trained in few bits would be rounded otherwise."""
    trained = next((plan.factor_bits for plan in plans.values() if plan.factor_bits), None)
    if dtype is not None and trained and bits_of(dtype) != trained.bits:
        raise PlanError(
            f"dtype={dtype} would round factors that were trained in {trained.bits} bits: store them with "
            f'dtype="int{trained.bits}", or without dtype to go on with training'
        )


def _has_names_of_compiled(plans: Mapping[str, CompressionPlan]) -> bool:
    return "" in plans and all(parameter.fqn.startswith("_orig_mod.") for parameter in plans[""].parameters)


def _device_of(model: nn.Module, plan: CompressionPlan) -> torch.device | str:
    device = model.get_parameter(plan.hashed[0].fqn).device
    return "cpu" if device.type == "meta" else device


def _describe_wrong_weight(parts: Mapping[str, fx.GraphModule]) -> str:
    return next(filter(None, (describe_not_finite_weight(generator_of(part)) for part in parts.values())), "")


def _with_original_names(stored: StoredModel) -> StoredModel:
    """What was stored, by the names in the original model: older files have those of opaque submodules."""
    return replace(stored, tensors={original_name(name): tensor for name, tensor in stored.tensors.items()})
