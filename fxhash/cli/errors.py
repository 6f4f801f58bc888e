"""A user's mistake in one line on standard error, with a non-zero exit status."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fxhash.errors import FxhashError, TargetError, described
from fxhash.printable import printable


class UsageError(Exception):
    """The command can't run as it was called, or lacks a package; the exit status is 2."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a mistake as one line and exit: with status 2 for a `UsageError` or `TargetError`, otherwise 1.

    Works as a decorator of a command too.
    """
    try:
        yield
    except (UsageError, TargetError) as error:
        _exit(error, status=2)
    except FxhashError as error:
        _exit(error, status=1)


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Wrap the imports of packages that one of the package's extras provides.

    Args:
        extra: its name in `pyproject.toml`.

    Raises:
        UsageError: if a package is missing, which says how to install it, or can't be imported.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise UsageError(f'{package} is not installed; to get it: pip install "fxhash[{extra}]"') from error
    except Exception as error:
        raise UsageError(f"can't import a package of fxhash[{extra}]: {described(error)}") from error


def _exit(error: Exception, status: int) -> None:
    print(f"fxhash: error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    raise SystemExit(status) from None
