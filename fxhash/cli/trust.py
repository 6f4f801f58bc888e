"""The option `--trust` of commands that read a run."""

from typing import Annotated, TypeAlias

import typer

TrustOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="MODULE", help="Code of yours that may build the model of a run that is read; repeatable."),
]
