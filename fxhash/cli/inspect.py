"""`fxhash inspect`: the plan of a model, or of a saved file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fxhash.cli.errors import UsageError
from fxhash.cli.inputs import read_sizes
from fxhash.printable import printable
from fxhash.targets import TARGETS, Target, build_model


def inspect(
    target: Annotated[str, typer.Argument(metavar="TARGET", help=f"{TARGETS}, or the path of a .safetensors file.")],
    compress: Annotated[
        float | None,
        typer.Option("--compress", "-c", help="Trainable parameters after over before; 0.1 if omitted."),
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
    saved file, the plan that it holds. Models of torchvision, timm and the zoo are checked on an image of
    their usual size: that the captured model computes what the original does.

    Example: fxhash inspect torchvision:resnet18 -c 0.05
    """
    options = {"compress": compress, "aspect": aspect, "separable": separable, "include": include, "exclude": exclude}
    given = {name: value for name, value in options.items() if value not in (None, [])}
    shape = None if input_shape is None else read_sizes(input_shape)
    if target.endswith(".safetensors"):
        _print_plan(target, given | ({} if shape is None else {"input": shape}))
    else:
        _print_summary(target, given, shape)


def _print_plan(path: str, given: dict[str, Any]) -> None:
    from fxhash.storage.reading import read_plans

    if given:
        options = ", ".join(f"--{name}" for name in given)
        raise UsageError(f"{options}: a saved file has its plan already; omit this for {path!r}")
    for name, plan in read_plans(Path(path)).items():
        print(f"{printable(name)}:\n{plan}" if name else plan)


def _print_summary(text: str, given: dict[str, Any], shape: list[int] | None) -> None:
    import torch

    import fxhash
    from fxhash.compare.calling import failure

    target = Target.parse(text)
    model = build_model(target)
    options: dict[str, Any] = {"compress": 0.1, **given}
    if shape is None:
        sizes = target.input_sizes(model)
        # Not every model of torchvision takes one image of this size.
        if sizes is not None and not failure(model, (torch.rand(2, *sizes),)):
            shape = [2, *sizes]
    if shape is not None:
        options["example_inputs"] = (torch.rand(shape),)
    fxhash.summary(fxhash.transform(model, **options), verbose=True)
