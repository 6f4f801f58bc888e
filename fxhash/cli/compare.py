"""`fxhash compare`: one model dense, in 8 bits, and at several sizes."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fxhash.cli.errors import UsageError, needs_extra
from fxhash.cli.inputs import read_input
from fxhash.targets import TARGETS, Target, build_model


def compare(
    target: Annotated[str, typer.Argument(metavar="TARGET", help=f"{TARGETS}.")],
    compress: Annotated[
        list[float] | None,
        typer.Option("--compress", "-c", help="Trainable parameters after over before; repeatable; 0.1 if omitted."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="SHAPE",
            help="An input, such as 1x3x224x224 or 1x128:int64; repeatable; the usual image of a library's model.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of threads; PyTorch's choice if omitted.")
    ] = None,
    seconds: Annotated[float, typer.Option(metavar="S", min=0, help="Time to spend on the calls of each form.")] = 2.0,
    onnx: Annotated[
        bool | None,
        typer.Option("--onnx/--no-onnx", help="Whether to run ONNX Runtime too; where it is installed, if omitted."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="An .html, .md or .json file to write too.", dir_okay=False)
    ] = None,
) -> None:
    """Compare a model's sizes, work and latency, dense and compressed.

    Shows parameters, bytes on disk, multiply-adds, latency and resident bytes of the dense model, of its
    weights in 8 bits, and of each size, in PyTorch and in ONNX Runtime; how the model was captured; and
    which of them to choose. The inputs decide for which batch size. Nothing is trained, so that accuracy
    is not compared.

    Example: fxhash compare torchvision:resnet18 -c 0.1 -c 0.02
    """
    import torch

    with needs_extra("train"):
        from rich.console import Console

        from fxhash.compare.comparison import compare as compare_model
        from fxhash.compare.documents import check_output, print_comparison, write_comparison
        from fxhash.compare.onnx_candidates import onnx_runtime_is_installed
    if output is not None:
        check_output(output)
    if onnx and not onnx_runtime_is_installed():
        raise UsageError('onnxruntime is not installed; to get it: pip install "fxhash[onnx]"')
    parsed = Target.parse(target)
    given = tuple(read_input(text) for text in inputs or [])
    model = build_model(parsed)
    if not given:
        sizes = parsed.input_sizes(model)
        if sizes is None:
            raise UsageError(f"give --input SHAPE, such as --input 1x3x224x224: {target!r} doesn't say what it takes")
        given = (torch.rand(1, *sizes),)
    with Console(file=sys.stderr).status("building") as status:
        comparison = compare_model(
            model,
            given,
            compress or [0.1],
            target=target,
            threads=threads,
            seconds=seconds,
            with_onnx=onnx,
            progress=status.update,
        )
    print_comparison(comparison, Console())
    if output is not None:
        write_comparison(comparison, output)
        print(f"\ncomparison: {output}")
