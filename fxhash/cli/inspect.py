"""`fxhash inspect`: the plan of a model, or of a saved file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fxhash.cli.errors import UsageError
from fxhash.cli.targets import TARGETS, build_model


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
) -> None:
    """Show a model's parameters once compressed.

    Prints which parameters would be hashed, which stay dense, and the totals before and after; for a
    saved file, the plan that it holds.
    """
    options = {"compress": compress, "aspect": aspect, "separable": separable, "include": include, "exclude": exclude}
    given = {name: value for name, value in options.items() if value not in (None, [])}
    if target.endswith(".safetensors"):
        _print_plan(target, given)
    else:
        _print_summary(target, given)


def _print_plan(path: str, given: dict[str, Any]) -> None:
    from fxhash.storage.checkpoint import read_plan

    if given:
        options = ", ".join(f"--{name}" for name in given)
        raise UsageError(f"{options}: a saved file has its plan already; omit this for {path!r}")
    print(read_plan(Path(path)))


def _print_summary(target: str, given: dict[str, Any]) -> None:
    import fxhash

    fxhash.summary(fxhash.transform(build_model(target), **{"compress": 0.1, **given}))
