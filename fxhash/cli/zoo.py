"""`fxhash zoo`: the names of its models."""

from fnmatch import fnmatchcase
from typing import Annotated

import typer

from fxhash.cli.errors import UsageError
from fxhash.errors import close_matches


def zoo(
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help='Which names; * stands for anything, as in "resnet*".')
    ] = "*",
) -> None:
    """List the models of the zoo, one name a line.

    Example: fxhash zoo "resnet*"
    """
    from fxhash import zoo

    names = zoo.list()
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise UsageError(
            f"no model of the zoo is called {pattern!r}{close_matches(pattern, names)}; `fxhash zoo` lists all "
            f"{len(names)}"
        )
    print("\n".join(found))
