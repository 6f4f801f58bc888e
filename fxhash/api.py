"""The functions that users call on models."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from fxhash.capture.calibration import Batch
from fxhash.capture.checking import ExampleInputs, difference, read_examples
from fxhash.capture.copy_model import copy_model
from fxhash.capture.exported import Model, as_module
from fxhash.capture.meta_values import InitialValues, materialize_
from fxhash.capture.opaque import OpaqueModule
from fxhash.deploy_form import lowered_parts
from fxhash.errors import PlanError, TransformError, shown
from fxhash.graph.layers import convolution_weights
from fxhash.graph.names import OPAQUE_PART, joined, original_name
from fxhash.initial_factors import check_start, initial_generator
from fxhash.lowering.device import DeviceProfile
from fxhash.lowering.lowering_options import LoweringOptions
from fxhash.lowering.method import Method
from fxhash.lowering.options import read_bytes, read_methods
from fxhash.lowering.positions import output_positions
from fxhash.opaque_parts import announce_opaque_parts
from fxhash.original import Original, pass_on
from fxhash.passes import hash_parameters, restore_parameters
from fxhash.passes.restore_parameters import tie_
from fxhash.smh.checks import check_aspect, check_device, check_flag, check_fraction, check_range, read_dtype
from fxhash.smh.factor_bits import FactorBits
from fxhash.smh.initialization import random_generator
from fxhash.smh.parameter_plan import HASHABLE_DTYPES
from fxhash.smh.parameters import tied_groups
from fxhash.smh.plan import DEFAULT_ASPECT
from fxhash.smh.planning import other_plans, plan_parameters
from fxhash.smh.selection import Selector, describe_parameters
from fxhash.transformed import (
    AnyModule,
    expose,
    generator_of,
    hashed_parameters,
    refuse_transformed,
    require_transformed,
    transformed_graph,
    transformed_parts,
    unwrapped,
    with_parts,
)


def transform(
    traced_model: Model,
    compress: float = 0.1,
    *,
    include: Selector | None = None,
    exclude: Selector | None = None,
    aspect: float | None = None,
    separable: bool = True,
    init: str = "random",
    calibration: Iterable[Batch] | None = None,
    seed: int | torch.Generator | None = None,
    device: torch.device | str | None = None,
    example_inputs: ExampleInputs | None = None,
    capture: str = "trace",
) -> fx.GraphModule:
    """Shrink a model to a fraction of its trainable parameters, with its architecture unchanged.

    Every large weight becomes a slice of one matrix `left @ right`, times a scale of its own (Structured
    Multi-Hashing, Eban et al., CVPR 2020, arXiv 1911.11177). Only the two factors, the scales, and whatever stays
    dense are trained. The weights are initialized at random with the standard deviation of the
    model's own, or as near to the model's own as they can be: train the result.

    Args:
        traced_model: a `GraphModule` of `torch.fx.symbolic_trace`, an `ExportedProgram` of `torch.export`, or, better,
            the plain module: the others freeze what depends on `self.training`. It is left untouched. What
            `torch.compile`, `DataParallel`, `DistributedDataParallel` or `AveragedModel` made of a model is unwrapped:
            wrap the result.
        compress: trainable parameters after over before, everything counted, in (0, 1].
        include: which parameters to hash: regular expressions found in the fully qualified name, or a predicate
            `(fqn, parameter) -> bool`; those of two or more dimensions if omitted.
        exclude: which of them to keep dense after all, in the same form.
        aspect: rows over columns of the matrix: 1 is the square of the paper; a taller one has a smaller rank for the
            same budget, which makes deployment faster. If omitted it is 16 or, with `calibration`, the best of a few.
        separable: whether the weights of convolutions may be entries of the matrix for pairs of channels times spatial
            kernels, where the budget is small or, with `calibration`, where that is better; if not, each weight is an
            entry of its own.
        init: `"random"`, or `"pretrained"` for factors that come nearest to the model that is given.
        calibration: for `init="pretrained"`, batches of inputs without labels, such as a list of some hundred examples
            in batches of 32: each a tensor, a tuple of forward's arguments, or a dictionary of them by name. The model
            runs on them in eval mode, and the factors are those with which the outputs of its linear layers and
            convolutions are off least, in squares. Ranks go to the weights whose outputs come nearer by them, not by
            size. Batches that can be gone through again, as those of a list can, are a few times more: the model runs
            backward on each, as in a training step, so that a layer counts by what it changes of the model's outputs
            (by its relative error where nothing can be differentiated), and layers are fitted once more to what the
            compressed layers before them leave. Without calibration, the values of the weights are off least instead (a
            truncated SVD): a start from which fewer epochs are needed, not yet a good model.
        seed: an integer or a CPU `torch.Generator` for the initial factors; torch's global one if omitted.
        device: where the result is to be; the model's own if omitted. A model on the meta device is initialized
            there: module by module, `reset_parameters` makes the values whose standard deviation is matched, so that no
            more memory is taken than by the result and one module.
        example_inputs: a tuple of forward's arguments, a dictionary of them by name, or a list of such. What was
            captured runs on them beside the original before anything is hashed: in both modes, several calls in a row,
            with each optional argument given and left out. A module that differs is called as a whole, with its own
            Python code; at worst the whole model is. Where much can't be traced otherwise, the result is for calls that
            omit the optional arguments that all examples omit, and refuses others. The summary says all this.
        capture: `"trace"` records the model's operations in a graph, and calls as a whole only those modules that a
            trace can't follow; `"modules"` traces nothing: every module keeps its own Python code and reads generated
            weights. That is slower once lowered, and right for any model.

    Returns:
        A graph module with the calling convention and outputs' shapes of the model, on its device and in its mode.
        Its submodule `smh_generator` holds the factors and the `CompressionPlan`. A model on the meta device gives
        a result on the meta device, unless `device` names another one.

    Raises:
        BudgetError: if `compress` is too small; it names the smallest that is enough.
        PlanError: for arguments out of range or if nothing is left to hash.
        TransformError: if the model can't be taken: it is transformed already, lazy, can't be copied, or is on the
            meta device and has no `reset_parameters` for some of its values, or `"pretrained"` is to start from them;
            its code changes a weight, or something else lies in a weight's memory; `example_inputs` or a batch of
            `calibration` don't fit it, or no batch reaches one of its layers.

    Warns:
        UserWarning: for `init="pretrained"` without `calibration`.
        OpaqueWarning: if more than a fifth of the weights to hash are in submodules that can't be traced. It says which
            lines of their code that is due to, and what change of them would help.

    Example:
        >>> dense = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10))
        >>> small = transform(dense, compress=0.1)
        >>> sum(parameter.numel() for parameter in small.parameters())
        2221
        >>> small(torch.zeros(5, 100)).shape
        torch.Size([5, 10])
    """
    check_start(init, calibration)
    check_fraction(compress)
    if aspect is not None:
        check_aspect(aspect)
    check_flag("separable", separable)
    random = random_generator(seed)
    device = None if device is None else check_device(device)
    traced_model = unwrapped(as_module(traced_model))
    refuse_transformed(traced_model)
    described = describe_parameters(traced_model, include, exclude)
    traced = expose(
        traced_model, {parameter.fqn for parameter in described if parameter.hashed}, capture, example_inputs
    )
    names_in_use = {original_name(name) for name, _ in traced.named_parameters(remove_duplicate=False)}
    used = [parameter for parameter in described if names_in_use & {parameter.fqn, *parameter.aliases}]
    unused = [parameter.fqn for parameter in described if not names_in_use & {parameter.fqn, *parameter.aliases}]
    convolutions = convolution_weights(traced.graph) if separable else set()
    plan = plan_parameters(used, compress, aspect or DEFAULT_ASPECT, unused, convolutions)
    plans = [plan] if calibration is None else [plan, *other_plans(plan, convolutions, aspect)]

    originals: Mapping[str, Tensor] = {names[0]: same[0] for names, same in tied_groups(traced_model)}
    devices = sorted({str(originals[parameter.fqn].device) for parameter in plan.hashed})
    if len(devices) > 1:
        raise TransformError(
            f"the parameters to hash are on several devices ({', '.join(devices)}), but one generator makes them "
            "all: move the model to one device first"
        )
    target = torch.device(devices[0]) if device is None else device
    if devices == ["meta"]:
        if init == "pretrained":
            raise TransformError("init='pretrained' needs values, but the model is on the meta device: load them first")
        originals = InitialValues(traced_model, target)
    generator = initial_generator(plans, target, originals, random, init, calibration, traced_model, traced)
    generator.original = Original.of(traced_model)
    gm = pass_on(hash_parameters(traced, generator).graph_module)
    if capture != "modules":
        announce_opaque_parts(gm, plan, stacklevel=2)
    if target.type != "meta" and isinstance(originals, InitialValues):
        materialize_(gm, originals)
    return gm if device is None else gm.to(target)


def lower_for_deploy(
    gm: AnyModule,
    *,
    memory_budget: int | str | None = None,
    dtype: torch.dtype | str | None = None,
    weights: str | None = None,
    methods: Mapping[str, str] | None = None,
    device: DeviceProfile | None = None,
    example_inputs: ExampleInputs | None = None,
) -> AnyModule:
    """Lay a trained model out for inference, layer by layer, with as little work and memory as can be.

    A linear layer, convolution or embedding is factored where that is less work than the dense layer: it applies the
    low-rank factors directly and never materializes its weight. Any other weight is generated right before its first
    use, into a scratch slot that it shares with weights that are not in use at the same time. Batch norms fold into the
    factors.

    The result may be called from several threads at once. Call it in `torch.inference_mode()` or `torch.no_grad()`:
    while gradients are recorded, each generated weight takes memory of its own.

    Args:
        gm: a transformed model, or one that holds some; it is left untouched and nothing is shared with it. What
            `torch.compile`, `DataParallel`, `DistributedDataParallel` or `AveragedModel` made of it is unwrapped: wrap
            the result.
        memory_budget: bytes for weights, scratch included, or a string such as `"8MB"`. Within it, weights are
            generated once and cached, those first that save most work a byte; with 0, none is, unless `methods` says
            so. If omitted, few small ones are, which take at most a twentieth of what the factors take.
        dtype: floating-point type to convert the model to, such as `torch.bfloat16`, or its name.
        weights: `"int8"` to keep `left` and `right` in memory as integers of 8 bits, those of `quantize_factors` if the
            model was trained with that, or else the nearest with a step for each row. Each is widened right before the
            layer that needs it, of a table the rows that are looked up. If omitted, they are in floating point.
        methods: overrides the choice by counted operations: `"factored"`, `"generate"` or `"cache"` for each regular
            expression that is found in a parameter's name, such as `{r"^head\\.": "cache"}`; the last one found counts.
        device: what the choice is made for: `fxhash.profile_device()` measures this machine,
            `fxhash.DeviceProfile.onnx_runtime()` stands for ONNX Runtime; eager mode on an ordinary device if omitted.
        example_inputs: arguments of the result, as for `transform`. Their sizes decide, with the device, which
            separable convolutions are split into a depthwise and a pointwise one. An opaque submodule whose code looks
            at its layers keeps them, and their weights are all generated before it is called, unless it is seen to give
            the same outputs on these with layers that come by their weights one by one. Models of Hugging Face are
            such.

    Returns:
        A graph module in eval mode whose parameters require no gradient; of a model that holds transformed ones, a copy
        that holds lowered ones. Its outputs equal those of `gm` in eval mode up to
        rounding. `fxhash.summary(..., verbose=True)` prints how each weight is computed.

    Raises:
        TransformError: if `gm` is not a transformed model.
        MemoryBudgetError: if the budget is less than the weights take that are in use at a time; it names the least.
        PlanError: for a method that is unknown or impossible for a parameter, an expression found in no name, a
            `device` that is no profile, other `weights`, or a `dtype` that can't hold the values of a parameter.

    Warns:
        UserWarning: if outputs on `example_inputs` differ from those of `gm` by more than rounding usually does.
    """
    gm = unwrapped(gm)
    parts = require_transformed(gm)
    if weights is not None and not (isinstance(weights, str) and weights == "int8"):
        raise PlanError(f'weights={shown(weights)} is no form of factors: give "int8", or nothing for floating point')
    budget = None if memory_budget is None else read_bytes(memory_budget)
    if not isinstance(device, DeviceProfile | None):
        raise PlanError(f"device={shown(device)} is no DeviceProfile: give that of fxhash.profile_device()")
    if dtype is not None:
        dtype = read_dtype(dtype, HASHABLE_DTYPES, "type that a model can have")
    hashed = {
        joined(path, parameter.fqn): (path, parameter.fqn)
        for path, part in parts.items()
        for parameter in hashed_parameters(part)
    }
    requested: dict[str, dict[str, Method]] = {path: {} for path in parts}
    for name, method in ({} if methods is None else read_methods(methods, list(hashed))).items():
        path, fqn = hashed[name]
        requested[path][fqn] = method
    evaluated = copy_model(gm).eval().requires_grad_(False)
    for part in transformed_parts(evaluated).values():
        # What was trained is rounded to so many bits, not what a narrower type makes of it.
        generator_of(part).round_(None if weights is None else FactorBits(8))
    if isinstance(dtype, torch.dtype):
        check_range(evaluated, dtype)
        evaluated = evaluated.to(dtype)
    options = LoweringOptions(device, in_eight_bits=weights is not None)
    if example_inputs is None:
        return lowered_parts(evaluated, requested, budget, options)
    calls = read_examples(evaluated, example_inputs)
    whole = transformed_parts(evaluated).get("")
    if whole is not None:
        positions = output_positions(transformed_graph(whole), calls[0].args, calls[0].kwargs)
        options = replace(options, positions=positions)
    for replaces in (True, False):
        lowered = lowered_parts(evaluated, requested, budget, replace(options, replaces_watched_layers=replaces))
        how = difference(evaluated, lowered, calls, modes=(False,))
        if how is None:
            break
    if how is not None:
        warnings.warn(
            f"the lowered model differs from the trained one on example_inputs: {how}. Rounding may do so where a "
            "model chooses by values, or has 16 bits; compare the accuracy of both before you ship it",
            UserWarning,
            stacklevel=2,
        )
    return lowered


def materialize(gm: nn.Module) -> nn.Module:
    """Turn a transformed model back into a plain dense one with the same outputs.

    Args:
        gm: a transformed model, or one that holds some; it is left untouched and nothing is shared with it. What
            `torch.compile`, `DataParallel`, `DistributedDataParallel` or `AveragedModel` made of it is unwrapped.

    Returns:
        A module with the original parameters under their original names, so that its state dict fits the original
        model. It is a graph module, or of the original's own class where that was opaque as a whole; of a model that
        holds transformed ones, a copy that holds plain ones.

    Raises:
        TransformError: if `gm` is not a transformed model.
    """
    gm = unwrapped(gm)
    require_transformed(gm)
    copied = copy_model(gm)
    return with_parts(copied, {part: _dense(part) for part in transformed_parts(copied).values()})


def _dense(gm: fx.GraphModule) -> nn.Module:
    dense = restore_parameters(transformed_graph(gm)).graph_module
    whole_model = dict(dense.named_children()).get(OPAQUE_PART, dense)
    if isinstance(whole_model, OpaqueModule):
        (call,) = [node for node in dense.graph.nodes if node.target == OPAQUE_PART]
        return whole_model.unwrapped([dense.get_parameter(weight.target) for weight in call.args[0]])
    if isinstance(whole_model, fx.GraphModule):
        tie_(whole_model, {parameter.fqn: parameter.aliases for parameter in generator_of(gm).plan.parameters})
    return whole_model
