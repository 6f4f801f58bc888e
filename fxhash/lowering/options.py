"""What a user asks of lowering: a number of bytes, and methods by regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fxhash.errors import PlanError
from fxhash.lowering.method import Method

METHODS = (Method.FACTORED, Method.GENERATE, Method.CACHE)
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def read_bytes(size: int | str) -> int:
    """A number of bytes from a whole number or a string such as `"8MB"` or `"1.5 GiB"`.

    Raises:
        PlanError: for anything else.

    Example:
        >>> read_bytes("8MB"), read_bytes("1.5 KiB"), read_bytes(7)
        (8000000, 1536, 7)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size)) if not isinstance(size, bool) else None
    if match is None or match[2].upper() not in _UNITS:
        raise PlanError(f"memory_budget={size!r} is no size: give bytes, or a string such as '8MB' or '1.5 GiB'")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def read_methods(methods: Mapping[str, str], names: Sequence[str]) -> dict[str, Method]:
    """The method that was asked for each parameter, from regular expressions that are found in its name.

    Args:
        methods: `"factored"`, `"generate"` or `"cache"` for each regular expression; of several that are found, the
            last counts.
        names: fully qualified names of the hashed parameters.

    Raises:
        PlanError: for an unknown method, a malformed expression, or one that no name has.
    """
    chosen: dict[str, Method] = {}
    for pattern, method in methods.items():
        if method not in METHODS:
            known = ", ".join(repr(str(each)) for each in METHODS)
            raise PlanError(f"methods[{pattern!r}]={method!r} is no method: give one of {known}")
        try:
            found = [name for name in names if re.search(pattern, name)]
        except (re.error, TypeError) as error:
            raise PlanError(f"methods: {pattern!r} is not a regular expression: {error}") from error
        if not found:
            raise PlanError(f"methods: no hashed parameter has {pattern!r} in its name; fxhash.summary lists them")
        chosen.update(dict.fromkeys(found, Method(method)))
    return chosen
