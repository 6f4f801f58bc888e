"""Whose code a file may name."""

from __future__ import annotations

from collections.abc import Iterable


def lies_in(module: str, packages: Iterable[str]) -> bool:
    """Whether a module is one of some modules and packages, or lies in one.

    Example:
        >>> lies_in("own.networks", ["own"]), lies_in("owned", ["own"])
        (True, False)
    """
    return any(f"{module}.".startswith(f"{package}.") for package in packages)
