"""`fxhash inspect`: the plan of a model, or of a saved file."""

import copy
from pathlib import Path
from typing import Annotated, Any

import typer

from fxhash.cli.errors import UsageError
from fxhash.cli.targets import TARGETS, USUAL_SHAPES, build_model
from fxhash.printable import printable


def inspect(
    target: Annotated[str, typer.Argument(metavar="TARGET", help=f"One of {TARGETS}.")],
    compress: Annotated[
        float | None,
        typer.Option(help="Trainable parameters after over before; 0.1 if omitted."),
    ] = None,
    aspect: Annotated[
        float | None,
        typer.Option(help="Rows over columns of the global matrix; 16 if omitted."),
    ] = None,
    separable: Annotated[
        bool | None,
        typer.Option("--separable/--whole", help="Whether convolutions may be separable, or stay regular."),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Hash only parameters whose name matches; repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Parameters whose name matches stay dense; repeatable."),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option("--input", metavar="SHAPE", help="Check the captured model on an input, such as 1x3x224x224."),
    ] = None,
) -> None:
    """Show a model's parameters once compressed.

    Prints which parameters would be hashed, which stay dense, and the totals before and after; for a
    saved file, the plan that it holds. Models of torchvision and of the zoo are checked on an image of
    their usual size: that the captured model computes what the original does.
    """
    options = {"compress": compress, "aspect": aspect, "separable": separable, "include": include, "exclude": exclude}
    given = {name: value for name, value in options.items() if value not in (None, [])}
    shape = None if input_shape is None else _read_shape(input_shape)
    if target.endswith(".safetensors"):
        _print_plan(target, given | ({} if shape is None else {"input": shape}))
    else:
        _print_summary(target, given, shape)


def _read_shape(text: str) -> list[int]:
    sizes = text.split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UsageError(f"--input {text!r}: give sizes with an x between them, such as 1x3x224x224")
    return [int(size) for size in sizes]


def _print_plan(path: str, given: dict[str, Any]) -> None:
    from fxhash.storage.checkpoint import read_plans

    if given:
        options = ", ".join(f"--{name}" for name in given)
        raise UsageError(f"{options}: a saved file has its plan already; omit this for {path!r}")
    for name, plan in read_plans(Path(path)).items():
        print(f"{printable(name)}:\n{plan}" if name else plan)


def _print_summary(target: str, given: dict[str, Any], shape: list[int] | None) -> None:
    import torch

    import fxhash

    usual = shape or USUAL_SHAPES.get(target.partition(":")[0])
    with_values = usual is not None
    model = build_model(target, with_values)
    options: dict[str, Any] = {"compress": 0.1, **given}
    if shape is None and usual is not None and not _takes(model, usual):
        # Not every model of torchvision takes one image of this size.
        usual = None
    if usual is not None:
        options["example_inputs"] = (torch.rand(usual),)
    fxhash.summary(fxhash.transform(model, **options), verbose=True)


def _takes(model: Any, shape: list[int]) -> bool:
    import torch

    try:
        with torch.no_grad():
            copy.deepcopy(model).eval()(torch.rand(shape))
    except Exception:
        return False
    return True
