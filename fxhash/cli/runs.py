"""`fxhash eval`, `export`, `bench` and `report`: what can be done with the folder of a run."""

from pathlib import Path
from typing import Annotated

import typer

from fxhash.cli.errors import needs_extra, print_warning
from fxhash.cli.trust import TrustOption
from fxhash.targets import trusting


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    file: Annotated[
        Path | None,
        typer.Option(help="An exported .safetensors file of its model; that of the run if omitted.", dir_okay=False),
    ] = None,
    trust: TrustOption = None,
) -> None:
    """Test the model of a run, as trained and as deployed from its file.

    Example: fxhash eval runs/digits
    """
    with needs_extra("train"):
        from fxhash.training import evaluate
    with trusting(trust or ()):
        accuracies = evaluate(run, file=file)
    for name, accuracy in accuracies.items():
        print(f"{name}: {accuracy:.2%}")


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    output: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors or .onnx file.", dir_okay=False)],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Store factors as float16, int8 or int4, or bfloat16 (.safetensors alone); as they are if omitted."
        ),
    ] = None,
    trust: TrustOption = None,
) -> None:
    """Write the model of a run to a file: its factors, or an ONNX model of its deployed form.

    Example: fxhash export runs/digits model.safetensors --dtype int8
    """
    with needs_extra("train"):
        from fxhash.training import export
    with trusting(trust or ()):
        export(run, output, dtype)
    print(f"{output}: {output.stat().st_size:,} bytes")


def bench(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    batch: Annotated[
        list[int] | None, typer.Option(metavar="N", min=1, help="Images per call; repeatable; 1, 8 and 100 if omitted.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of threads; PyTorch's choice if omitted.")
    ] = None,
    trust: TrustOption = None,
) -> None:
    """Time the deployed model of a run beside the dense one.

    Example: fxhash bench runs/digits --batch 1 --threads 2
    """
    import torch

    with needs_extra("train"):
        from fxhash.training import measure_latency
    torch.set_num_threads(threads or torch.get_num_threads())
    with trusting(trust or ()):
        measured = measure_latency(run, batch or [1, 8, 100])
    print(f"{'batch':>6}  {'deployed, ms':>12}  {'dense, ms':>10}  {'ratio':>5}   {torch.get_num_threads()} threads")
    for each in measured:
        print(f"{each.batch:>6}  {each.deployed:>12.3f}  {each.dense:>10.3f}  {each.deployed / each.dense:>5.2f}")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, finished or not.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The file to write; its file extension is .html, .md or .png.", dir_okay=False
        ),
    ] = Path("report.html"),
) -> None:
    """Compare runs in one page.

    Writes a table with means over seeds, test accuracy over trainable parameters, the curves, and the layers of
    the compressed models: as HTML that needs no other file, as Markdown with a .png beside it, or the figure of
    accuracy alone as .png.

    Example: fxhash report runs/one runs/two -o report.html
    """
    with needs_extra("train"):
        import matplotlib  # noqa: F401

        from fxhash.training import write_report
    for path in write_report(runs, output, print_warning):
        print(f"report: {path}")
