"""`fxhash demo`: the demonstration."""

from pathlib import Path
from typing import Annotated

import typer

from fxhash.cli.errors import UsageError, needs_extra


def demo(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Directory for the models, the results and the plot.", file_okay=False),
    ] = Path("fxhash-demo"),
    epochs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Passes over the training images, for each model.")
    ] = 30,
) -> None:
    """Train, deploy and compare small networks.

    A residual network is trained on handwritten digits, dense and at 25, 10 and 5 % of its size; each is
    saved, loaded, lowered for deployment and measured. Takes one to three minutes.

    Example: fxhash demo --epochs 10 -o digits
    """
    with needs_extra("train"):
        from fxhash.training.demo import run_demo
    try:
        run_demo(output, epochs)
    except OSError as error:
        raise UsageError(f"the demo can't write its files: {error}") from error
