"""The `fxhash` command: `fxhash demo` and `fxhash inspect TARGET`.

`create_app` declares the commands and their options; the functions below it do the work. torch, torchvision
and matplotlib are imported only by the commands that need them, so that `fxhash --help` is quick.
"""

import difflib
import importlib
import inspect as python_inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
        options = {"compress": compress, "aspect": aspect, "include": include, "exclude": exclude}
        with _one_line_errors():
            _inspect(target, {name: value for name, value in options.items() if value not in (None, [])})

    return app


def _run_demo(output: Path, epochs: int) -> None:
    demo = _import_from_extra("fxhash.demo", "train")
    try:
        demo.run_demo(output, epochs)
    except OSError as error:
        raise TargetError(f"the demo can't write its files: {error}") from error


def _inspect(target: str, options: dict[str, Any]) -> None:
    import fxhash
    from fxhash.checkpoint import read_plan

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
        raise TargetError(f"torchvision has no model {name!r}{_close_matches(name, known)}")
    arguments = {"weights": None}
    # Detection and segmentation models download a trained backbone unless told not to.
    if "weights_backbone" in python_inspect.signature(models.get_model_builder(name)).parameters:
        arguments["weights_backbone"] = None
    with torch.device("meta"), warnings.catch_warnings():
        # Some builders warn about how they initialise weights, of which there are none here.
        warnings.simplefilter("ignore")
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


def _close_matches(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
