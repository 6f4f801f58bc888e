"""`fxhash eval`, `export`, `bench` and `report`: what can be done with the folder of a run."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from fxhash.cli.errors import UsageError, needs_extra, print_warning
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
    output: Annotated[
        str,
        typer.Argument(
            metavar="FILE|FOLDER/",
            help="A .safetensors or .onnx file; or a folder, one that is there or with a / at its end, for a page that "
            "classifies pictures in the browser.",
        ),
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Store factors as float16, int8 or int4, or bfloat16 (.safetensors alone); as they are if omitted."
        ),
    ] = None,
    dense_dtype: Annotated[
        str | None,
        typer.Option(help="Store all but factors as bfloat16 or float16 (.safetensors alone); as they are if omitted."),
    ] = None,
    fold_batch_norms: Annotated[
        bool,
        typer.Option(
            "--fold-batch-norms",
            help="Store batch norms in half of their bytes, for a model that is only evaluated (.safetensors alone).",
        ),
    ] = False,
    runtime: Annotated[
        Path | None,
        typer.Option(
            help="For a page: where npm installed onnxruntime-web; this folder or one above if omitted.",
            file_okay=False,
        ),
    ] = None,
    webgpu: Annotated[
        bool, typer.Option("--webgpu", help="For a page: compute on the GPU where the browser can.")
    ] = False,
    trust: TrustOption = None,
) -> None:
    """Write the model of a run to a file, its factors or an ONNX model of its deployed form; or as a web page.

    Example: fxhash export runs/digits model.safetensors --dtype int8
    """
    path = Path(output)
    as_page = output.endswith(("/", os.sep)) or path.is_dir()
    if not as_page and not path.suffix:
        raise UsageError(
            f"{output!r} has no file extension: give a .safetensors or .onnx file, or {f'{output}/'!r} for a page"
        )
    if not as_page and (runtime is not None or webgpu):
        raise UsageError("--runtime and --webgpu are for a page: give a folder such as 'page/', or omit them")
    if as_page and (dense_dtype is not None or fold_batch_norms):
        option = "--fold-batch-norms" if dense_dtype is None else "--dense-dtype"
        raise UsageError(f"{option} is for a .safetensors file: omit it for a page")
    with needs_extra("train"):
        from fxhash.training import export, export_site
    with trusting(trust or ()):
        if as_page:
            export_site(run, path, dtype, runtime=runtime, webgpu=webgpu)
        else:
            export(run, path, dtype, dense_dtype, fold_batch_norms)
    if not as_page:
        print(f"{output}: {path.stat().st_size:,} bytes")
        return
    sizes = {file: file.stat().st_size for file in path.rglob("*") if file.is_file()}
    print(f"{output}: {sum(sizes.values()):,} bytes, {sizes[path / 'model.onnx']:,} of them the model")
    print(f"to see it: python -m http.server --directory {shlex.quote(output)}")


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
