"""The command line: `fxhash demo`, `zoo`, `inspect`, `compare`, `train`, and `eval`, `bench`, `export`, `report`.

Each command is a function in a file of this folder. What only some commands need (Lightning, torchvision, matplotlib)
they import when they run, so that `fxhash --help` loads none of it.
"""

import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from fxhash.cli.errors import needs_extra, one_line_errors
from fxhash.version import __version__

if TYPE_CHECKING:
    import typer


def main() -> None:
    """Run the command; the console script and `python -m fxhash` both start here."""
    for stream in (sys.stdout, sys.stderr):
        # A name of a model may have letters that the terminal has not.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with one_line_errors(), needs_extra("cli"):
        import rich  # noqa: F401
        import typer  # noqa: F401
    create_app()(prog_name="fxhash")


def create_app() -> "typer.Typer":
    """Gather the commands in one application."""
    import typer

    from fxhash.cli.compare import compare
    from fxhash.cli.demo import demo
    from fxhash.cli.inspect import inspect
    from fxhash.cli.runs import bench, evaluate, export, report
    from fxhash.cli.train import train
    from fxhash.cli.zoo import zoo

    app = typer.Typer(
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        add_completion=False,
        # Plain text, so that every usage error ends in one line and reads the same in a log file.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    def print_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"fxhash {__version__}")
            raise typer.Exit

    @app.callback()
    def _fxhash(
        version: Annotated[
            bool,
            typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit."),
        ] = False,
    ) -> None:
        """Shrink any PyTorch model to a chosen size with Structured Multi-Hashing.

        Example: fxhash compare torchvision:resnet18 -c 0.1
        """

    # In the order in which `fxhash --help` lists them.
    commands: dict[str, Callable[..., None]] = {
        "demo": demo,
        "zoo": zoo,
        "inspect": inspect,
        "compare": compare,
        "train": train,
        "eval": evaluate,
        "export": export,
        "bench": bench,
        "report": report,
    }
    for name, command in commands.items():
        app.command(name)(one_line_errors()(command))
    return app
