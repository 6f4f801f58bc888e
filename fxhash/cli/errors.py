"""A user's mistake in one line on standard error, with a non-zero exit status; warnings in the same form."""

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import ContextDecorator, contextmanager
from typing import Any, TypeVar

from fxhash.errors import FxhashError, OpaqueWarning, TargetError, described
from fxhash.printable import printable

_Command = TypeVar("_Command", bound=Callable[..., Any])


class UsageError(Exception):
    """The command can't run as it was called, or lacks a package; the exit status is 2."""


class OneLineErrors(ContextDecorator):
    """Prints a mistake as one line and exits: with status 2 for a `UsageError` or `TargetError`, otherwise 1.

    As the decorator of a command it speaks of the command's options, where a message names arguments of Python.
    """

    def __init__(self) -> None:
        self.options: tuple[str, ...] | None = None
        self._shown_before: list[Callable[..., Any]] = []

    def __call__(self, command: _Command) -> _Command:
        """The command with its mistakes caught."""
        self.options = tuple(inspect.signature(command).parameters)
        return super().__call__(command)

    def __enter__(self) -> None:
        self._shown_before.append(warnings.showwarning)
        warnings.showwarning = self._show_warning

    def _show_warning(self, message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        """Print a warning of ours as ours; of any other, its place in the code is of use."""
        if not issubclass(category, OpaqueWarning):
            self._shown_before[-1](message, category, *where, **more)
            return
        first, *lines = str(message).splitlines()
        print_warning(first if self.options is None else in_options(first, self.options))
        for line in lines:
            # What Python alone can do is no help here.
            if "fxhash." not in line and "capture=" not in line:
                print(printable(line), file=sys.stderr)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        warnings.showwarning = self._shown_before.pop()
        if isinstance(error, (UsageError, FxhashError)):
            text = " ".join(str(error).split())
            text = text if self.options is None else in_options(text, self.options)
            print(f"fxhash: error: {printable(text)}", file=sys.stderr)
            raise SystemExit(2 if isinstance(error, (UsageError, TargetError)) else 1) from None


def one_line_errors() -> OneLineErrors:
    """Catch mistakes in a block or a command."""
    return OneLineErrors()


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


def print_warning(text: str) -> None:
    """Print one line on standard error, and go on."""
    print(f"fxhash: warning: {printable(' '.join(text.split()))}", file=sys.stderr)


def in_options(text: str, options: Collection[str]) -> str:
    """A message of the package with arguments of Python as options of a command.

    Args:
        text: a message, such as `"epochs=0 must be at least 1"`.
        options: names of the command's options, as parameters; what is no option is not suggested.

    Example:
        >>> in_options("batch_size=0 must be at least 1", ["batch_size"])
        '--batch-size 0 must be at least 1'
        >>> in_options("Use compress=0.2 or more, or hash more of it with include=...", ["compress"])
        'Use --compress 0.2 or more'
    """
    if "include" not in options:
        # The end of what the search for a plan, and the choice of parameters, suggest.
        text = re.sub(r"(, or hash more of it with|\. Choose some with) include=.*$", "", text)
    for name in options:
        option = f"--{name.replace('_', '-')}"
        text = re.sub(rf"(?<![\w.\-(]){name}=\.\.\.", option, text)
        text = re.sub(rf"(?<![\w.\-(]){name}=(?=\S)", f"{option} ", text)
    return text
