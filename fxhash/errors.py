"""The one family of errors that fxhash raises for a user's mistake, and the suggestion in their messages.

Everything derives from `FxhashError`, so that `except fxhash.FxhashError` catches whatever a bad model, a bad
budget or a bad file can cause. Broken invariants of our own are `AssertionError`s, never these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Comparing takes time that grows with the square of it.
_LONGEST_NAME = 200


class FxhashError(Exception):
    """Base of every error that fxhash raises on purpose."""


class PlanError(FxhashError, ValueError):
    """A plan can't be made from these arguments, or a stored plan contradicts itself."""


class BudgetError(PlanError):
    """The budget is too small for this model.

    Attributes:
        smallest_compress: the smallest `compress` that can be met with the same choice of parameters and layout.
    """

    def __init__(self, message: str, smallest_compress: float) -> None:
        super().__init__(message)
        self.smallest_compress = smallest_compress

    def __reduce__(self) -> tuple[type[BudgetError], tuple[str, float]]:
        return type(self), (str(self), self.smallest_compress)


class MemoryBudgetError(PlanError):
    """The memory budget is too small for the weights of this model.

    Attributes:
        smallest_budget: the least number of bytes that is enough.
    """

    def __init__(self, message: str, smallest_budget: int) -> None:
        super().__init__(message)
        self.smallest_budget = smallest_budget

    def __reduce__(self) -> tuple[type[MemoryBudgetError], tuple[str, int]]:
        return type(self), (str(self), self.smallest_budget)


class TransformError(FxhashError, ValueError):
    """A model can't be transformed, or a pass was given a graph module that it can't work on."""


class InputError(FxhashError, ValueError, RuntimeError):
    """A lowered model was called with an input that doesn't fit one of its layers, or to be trained."""


class CheckpointError(FxhashError, ValueError):
    """A file can't be written or read, is damaged, or doesn't fit the model."""


class TargetError(FxhashError, ValueError):
    """A target such as `torchvision:resnet18` names no model, or none that can be built."""


class TrainingError(FxhashError, ValueError):
    """A run can't be started or go on: an impossible setting, data that can't be read, or a loss that is not finite."""


class OpaqueWarning(UserWarning):
    """Much of a model could not be traced, so that it is called with its own Python code: right, but slower."""


def shown(value: object, longest: int = 80) -> str:
    """A value as it is shown in a message: one line, cut where it is long, whatever its `repr` does.

    Example:
        >>> shown("two\\nlines"), shown(10**9, longest=8)
        ("'two\\\\nlines'", '10000...')
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:
        return f"<a {type(value).__name__}>"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def close_matches(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known names that are spelled like it.

    Args:
        name: what was asked for; what is no string is like none.
        known: every name that there is.

    Returns:
        Such as `" (did you mean linear or bilinear?)"`, the closest first; an empty string if none is close.

    Example:
        >>> close_matches("resnet2O", ["resnet20", "vgg11"])
        ' (did you mean resnet20?)'
    """
    close = difflib.get_close_matches(name, known) if isinstance(name, str) and len(name) < _LONGEST_NAME else []
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def described(error: Exception) -> str:
    """The type of an error, and its message if it has one.

    Example:
        >>> described(ValueError("no number")), described(KeyError())
        ('ValueError: no number', 'KeyError')
    """
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
