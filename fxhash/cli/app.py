"""The `fxhash` command: `fxhash demo`, `inspect TARGET`, `train`, and `eval`, `bench`, `export`, `report` of runs.

`create_app` declares the commands and their options; the functions below it do the work. torch, torchvision
and matplotlib are imported only by the commands that need them, so that `fxhash --help` is quick.
"""

import importlib
import inspect as python_inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fxhash.errors import close_matches

if TYPE_CHECKING:
    import typer
    from torch import nn

_TARGETS = "torchvision:NAME, zoo:NAME, package.module:factory or the path of a .safetensors file"


class TargetError(Exception):
    """The command can't run as it was called; reported in one line, with exit status 2."""


def main() -> None:
    """Run the command; the console script and `python -m fxhash` both start here."""
    with _one_line_errors():
        for module in ("typer", "rich"):
            _import_from_extra(module, "cli")
    create_app()(prog_name="fxhash")


def create_app() -> "typer.Typer":
    """Declare the commands, their arguments and their options."""
    import typer

    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        # Plain text, so that every usage error ends in one line and reads the same in a log file.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    def print_version(wanted: bool) -> None:
        if wanted:
            from fxhash.version import __version__

            typer.echo(f"fxhash {__version__}")
            raise typer.Exit

    @app.callback()
    def _fxhash(
        version: Annotated[
            bool,
            typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit."),
        ] = False,
    ) -> None:
        """Shrink any PyTorch model to a chosen size with Structured Multi-Hashing."""

    @app.command()
    def demo(
        output: Annotated[
            Path, typer.Option(help="Directory for the models, the results and the plot.", file_okay=False)
        ] = Path("fxhash-demo"),
        epochs: Annotated[
            int, typer.Option(metavar="N", min=1, help="Passes over the training images, for each model.")
        ] = 30,
    ) -> None:
        """Train, deploy and compare small networks.

        A residual network is trained on handwritten digits, dense and at 25, 10 and 5 % of its size; each is
        saved, loaded, lowered for deployment and measured. Takes about a minute.
        """
        with _one_line_errors():
            _run_demo(output, epochs)

    @app.command()
    def inspect(
        target: Annotated[str, typer.Argument(metavar="TARGET", help=f"One of {_TARGETS}.")],
        compress: Annotated[
            float | None,
            typer.Option(help="Trainable parameters after over before; 0.1 if left out."),
        ] = None,
        aspect: Annotated[
            float | None,
            typer.Option(help="Rows over columns of the global matrix; 16 if left out."),
        ] = None,
        separable: Annotated[
            bool | None,
            typer.Option("--separable/--whole", help="Whether convolutions may be separable, or are whole."),
        ] = None,
        include: Annotated[
            list[str] | None,
            typer.Option(metavar="REGEX", help="Hash only parameters whose name matches; repeatable."),
        ] = None,
        exclude: Annotated[
            list[str] | None,
            typer.Option(metavar="REGEX", help="Keep parameters whose name matches dense; repeatable."),
        ] = None,
    ) -> None:
        """Show a model's parameters once compressed.

        Prints which parameters would be hashed, which stay dense, and the totals before and after; for a
        saved file, the plan that it holds.
        """
        options = {
            "compress": compress,
            "aspect": aspect,
            "separable": separable,
            "include": include,
            "exclude": exclude,
        }
        with _one_line_errors():
            _inspect(target, {name: value for name, value in options.items() if value not in (None, [])})

    @app.command()
    def train(
        model: Annotated[str | None, typer.Option(help="A model of the zoo, such as resnet20.")] = None,
        data: Annotated[
            str, typer.Option(help="digits, mnist, fashion-mnist, cifar10, cifar100 or imagefolder:DIR.")
        ] = "digits",
        compress: Annotated[
            float | None, typer.Option(help="Trainable parameters after over before; the dense model if left out.")
        ] = None,
        start: Annotated[
            Path | None, typer.Option(metavar="RUN", help="Start from the weights of this run of the dense model.")
        ] = None,
        teacher: Annotated[
            Path | None, typer.Option(metavar="RUN", help="Learn from this run's model too (distillation).")
        ] = None,
        output: Annotated[Path, typer.Option(help="Folder of the run.", file_okay=False)] = Path("fxhash-run"),
        resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
        recipe: Annotated[
            str | None, typer.Option(help="How to train; digits or small-images, by the data, if left out.")
        ] = None,
        epochs: Annotated[int | None, typer.Option(metavar="N", help="Passes over the training images.")] = None,
        batch_size: Annotated[int | None, typer.Option(metavar="N", help="Images a step, over all processes.")] = None,
        optimizer: Annotated[str | None, typer.Option(help="sgd or adamw.")] = None,
        learning_rate: Annotated[float | None, typer.Option(help="The highest that the schedule reaches.")] = None,
        momentum: Annotated[float | None, typer.Option(help="Of sgd.")] = None,
        weight_decay: Annotated[float | None, typer.Option(help="Of parameters of two or more dimensions.")] = None,
        schedule: Annotated[str | None, typer.Option(help="one-cycle or cosine.")] = None,
        label_smoothing: Annotated[float | None, typer.Option(help="Share spread over all classes.")] = None,
        clip_gradients: Annotated[float | None, typer.Option(help="Largest norm of all gradients; 0 for any.")] = None,
        ema_decay: Annotated[float | None, typer.Option(help="Decay of averaged weights; 0 for none.")] = None,
        pad: Annotated[int | None, typer.Option(metavar="N", help="Shift images by up to N pixels.")] = None,
        flip: Annotated[bool | None, typer.Option(help="Mirror images at random.")] = None,
        distillation_weight: Annotated[float | None, typer.Option(help="Share of the teacher in the loss.")] = None,
        temperature: Annotated[float | None, typer.Option(help="Softens what the teacher says.")] = None,
        precision: Annotated[str | None, typer.Option(help="32, bf16 or 16.")] = None,
        seed: Annotated[int, typer.Option(help="For all that is random.")] = 0,
        device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
        processes: Annotated[
            int | None,
            typer.Option(metavar="N", min=1, help="How many train together here; one a GPU, or one, if left out."),
        ] = None,
        data_folder: Annotated[Path, typer.Option(help="Where torchvision's data sets are.")] = Path("data"),
        image_size: Annotated[
            int | None, typer.Option(metavar="N", help="Scale a folder's images to N pixels.")
        ] = None,
        download: Annotated[bool, typer.Option("--download", help="Fetch the data if it is not there.")] = False,
        tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write curves for TensorBoard too.")] = False,
    ) -> None:
        """Train a model of the zoo, dense or compressed.

        Writes what was asked for, a checkpoint after each epoch, the curves and the trained model to a folder. A run
        that was stopped, however, goes on with --resume to the same weights. With several GPUs it trains on all
        of them; on several machines, start it with torchrun on each.
        """
        changes = {
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "schedule": schedule,
            "label_smoothing": label_smoothing,
            "clip_gradients": clip_gradients,
            "ema_decay": ema_decay,
            "pad": pad,
            "flip": flip,
            "distillation_weight": distillation_weight,
            "temperature": temperature,
            "precision": precision,
        }
        chosen = {
            "model": model,
            "data": data,
            "compress": compress,
            "start": start and str(start),
            "teacher": teacher and str(teacher),
            "seed": seed,
            "device": device,
            "data_folder": str(data_folder),
            "image_size": image_size,
            "tensorboard": tensorboard,
        }
        with _one_line_errors():
            if _train_in_processes(processes, output, device, resume):
                return
            if resume:
                _resume(output)
            else:
                _train(chosen, recipe, changes, output, download)

    @app.command("eval")
    def evaluate(
        run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
        file: Annotated[
            Path | None, typer.Option(help="An exported .safetensors file of its model; the run's own.", dir_okay=False)
        ] = None,
    ) -> None:
        """Test the model of a run, as trained and as deployed from its file."""
        with _one_line_errors():
            training = _import_from_extra("fxhash.training", "train")
            for name, accuracy in training.evaluate(run, file=file).items():
                print(f"{name}: {accuracy:.2%}")

    @app.command()
    def export(
        run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
        output: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors or .onnx file.", dir_okay=False)],
        dtype: Annotated[
            str | None, typer.Option(help="Store factors as bfloat16, float16 or int8; as they are if left out.")
        ] = None,
    ) -> None:
        """Write the model of a run to a file: its factors, or an ONNX model of its deployed form."""
        with _one_line_errors():
            training = _import_from_extra("fxhash.training", "train")
            training.export(run, output, None if dtype is None else _read_dtype(dtype))
            print(f"{output}: {output.stat().st_size:,} bytes")

    @app.command()
    def bench(
        run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
        batch: Annotated[
            list[int] | None, typer.Option(metavar="N", min=1, help="Images a call; repeatable; 1, 8 and 100.")
        ] = None,
        threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads; torch's choice.")] = None,
    ) -> None:
        """Time the deployed model of a run beside the dense one."""
        with _one_line_errors():
            _bench(run, batch or [1, 8, 100], threads)

    @app.command()
    def report(
        runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, finished or not.")],
        output: Annotated[
            Path, typer.Option(help="The file to write; its ending is .html, .md or .png.", dir_okay=False)
        ] = Path("report.html"),
    ) -> None:
        """Compare runs in one page.

        Writes a table with means over seeds, test accuracy over trainable parameters, the curves, and the layers of
        the compressed models: as HTML that needs no other file, as Markdown with a .png beside it, or the figure of
        accuracy alone as .png.
        """
        with _one_line_errors():
            training = _import_from_extra("fxhash.training", "train")
            _import_from_extra("matplotlib", "train")
            for path in training.write_report(runs, output):
                print(f"report: {path}")

    return app


def _read_dtype(name: str) -> Any:
    from fxhash.storage.quantization import STORAGE_DTYPES

    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in STORAGE_DTYPES}
    if name not in dtypes:
        raise TargetError(f"--dtype {name} is unknown: give one of {', '.join(dtypes)}")
    return dtypes[name]


def _bench(run: Path, batches: list[int], threads: int | None) -> None:
    import torch

    training = _import_from_extra("fxhash.training", "train")
    torch.set_num_threads(threads or torch.get_num_threads())
    print(f"{'batch':>6}  {'deployed, ms':>12}  {'dense, ms':>10}  {'ratio':>5}   {torch.get_num_threads()} threads")
    for each in training.measure_latency(run, batches):
        print(f"{each.batch:>6}  {each.deployed:>12.3f}  {each.dense:>10.3f}  {each.deployed / each.dense:>5.2f}")


def _train(chosen: dict[str, Any], recipe: str | None, changes: dict[str, Any], output: Path, download: bool) -> None:
    if chosen["model"] is None:
        raise TargetError("give --model, such as --model resnet20; `fxhash.zoo.list()` has the names")
    training = _import_from_extra("fxhash.training", "train")
    named = training.load_recipe(recipe or ("digits" if chosen["data"] == "digits" else "small-images"))
    options = training.RunOptions(recipe=named.with_changes(changes), **chosen)
    with _files_of(output):
        _print_result(training.train(options, output, download), output)


def _resume(output: Path) -> None:
    training = _import_from_extra("fxhash.training", "train")
    with _files_of(output):
        _print_result(training.resume(output), output)


def _train_in_processes(processes: int | None, output: Path, device: str, resume: bool) -> bool:
    """Run this command in several processes; False if it is to run in this one, maybe one of them already."""
    together = _import_from_extra("fxhash.training.processes", "train")
    if together.is_started_together():
        return False
    if resume:
        device = _import_from_extra("fxhash.training.run", "train").read_configuration(output)[0].device
    count = processes or together.processes_for(device)
    if count > 1:
        together.run_together(count, ["-m", "fxhash", *sys.argv[1:]])
    return count > 1


@contextmanager
def _files_of(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TargetError(
            f"can't write to {str(output)!r}: {error}; the last checkpoint is whole, --resume goes on from it"
        ) from error


def _print_result(result: Any, output: Path) -> None:
    if not _import_from_extra("fxhash.training.processes", "train").is_first_process():
        return
    print(
        f"{result.test_accuracy:.2%} of the test images, {result.trainable_after:,} trainable parameters "
        f"of {result.trainable_before:,}"
    )
    if result.gradient_bytes:
        share = result.gradient_bytes / result.dense_gradient_bytes
        print(
            f"gradients: {result.gradient_bytes:,} bytes a step and process, {share:.2%} of the dense model's "
            f"{result.dense_gradient_bytes:,}"
        )
    print(f"run: {output}")


def _run_demo(output: Path, epochs: int) -> None:
    demo = _import_from_extra("fxhash.training.demo", "train")
    try:
        demo.run_demo(output, epochs)
    except OSError as error:
        raise TargetError(f"the demo can't write its files: {error}") from error


def _inspect(target: str, options: dict[str, Any]) -> None:
    import fxhash
    from fxhash.storage.checkpoint import read_plan

    if target.endswith(".safetensors"):
        if options:
            given = ", ".join(f"--{name}" for name in options)
            raise TargetError(f"{given}: a saved file has its plan already; leave this out for {target!r}")
        print(read_plan(Path(target)))
        return
    model = _build_model(target)
    fxhash.summary(fxhash.transform(model, **{"compress": 0.1, **options}))


def _build_model(target: str) -> "nn.Module":
    """Build the model that a target names; a reference model is built without weights, on the meta device."""
    import torch

    source, colon, name = target.partition(":")
    if not (source and colon and name):
        raise TargetError(f"can't inspect {target!r}: expected {_TARGETS}")
    if source == "torchvision":
        return _build_from_torchvision(name)
    if source == "zoo":
        from fxhash import zoo

        with torch.device("meta"):
            return zoo.create(name)
    return _build_from_factory(source, name)


def _build_from_torchvision(name: str) -> "nn.Module":
    import torch

    models = _import_from_extra("torchvision.models", "zoo")
    known = models.list_models()
    if name not in known:
        raise TargetError(f"torchvision has no model {name!r}{close_matches(name, known)}")
    arguments = {"weights": None}
    # Detection and segmentation models download a trained backbone unless told not to.
    if "weights_backbone" in python_inspect.signature(models.get_model_builder(name)).parameters:
        arguments["weights_backbone"] = None
    with warnings.catch_warnings():
        # Some builders warn about how they initialise weights, which don't matter here.
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return models.get_model(name, **arguments)
        except NotImplementedError:
            # Some compute their widths with tensors.
            return models.get_model(name, **arguments)


def _build_from_factory(module_name: str, factory_name: str) -> "nn.Module":
    from torch import nn

    target = f"{module_name}:{factory_name}"
    # `python -m` looks in the working directory, a console script does not.
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise TargetError(f"can't import {module_name!r}: {_describe(error)}") from error
    try:
        factory = attrgetter(factory_name)(module)
    except AttributeError as error:
        raise TargetError(f"can't find {target!r}: {error}") from error
    try:
        model = factory()
    except Exception as error:
        raise TargetError(f"calling {target!r} without arguments failed: {_describe(error)}") from error
    if not isinstance(model, nn.Module):
        raise TargetError(f"{target!r} returned {type(model).__name__}, expected a torch.nn.Module")
    return model


def _import_from_extra(module: str, extra: str) -> Any:
    """Import a module that one of the package's extras provides."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise TargetError(f'{package} is not installed; to get it: pip install "fxhash[{extra}]"') from error
    except Exception as error:
        raise TargetError(f"can't import {module}: {_describe(error)}") from error


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn a user's mistake into one line on standard error and a non-zero exit status."""
    from fxhash.errors import FxhashError

    try:
        yield
    except TargetError as error:
        _fail(error, status=2)
    except FxhashError as error:
        _fail(error, status=1)


def _fail(error: Exception, status: int) -> None:
    print(f"fxhash: error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(status) from None


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
