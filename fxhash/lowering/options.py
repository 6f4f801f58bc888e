"""What a user asks of lowering: a number of bytes, and methods by regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fxhash.errors import PlanError, shown
from fxhash.lowering.method import Method

METHODS = (Method.FACTORED, Method.GENERATE, Method.CACHE)
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def read_bytes(size: float | str) -> int:
    """A number of bytes from a whole number or a string such as `"8MB"` or `"1.5 GiB"`.

    Raises:
        PlanError: for anything else.

    Example:
        >>> read_bytes("8MB"), read_bytes("1.5 KiB"), read_bytes(7)
        (8000000, 1536, 7)
    """
    if type(size) is int and size >= 0:
        return size
    text = str(size).removesuffix(".0") if isinstance(size, float) and size.is_integer() else size
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)\s*", text) if isinstance(text, str) else None
    if match is None or match[2].upper() not in _UNITS:
        raise PlanError(f"memory_budget={shown(size)} is no size: give bytes, or a string such as '8MB' or '1.5 GiB'")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def read_methods(methods: Mapping[str, str], names: Sequence[str]) -> dict[str, Method]:
    """The method that was asked for each parameter, from regular expressions that are found in its name.

    Args:
        methods: `"factored"`, `"generate"` or `"cache"` for each regular expression; of several that are found, the
            last counts.
        names: fully qualified names of the hashed parameters.

    Raises:
        PlanError: for what is no dictionary, an unknown method, a malformed expression, or one that no name has.
    """
    if not isinstance(methods, Mapping):
        raise PlanError(
            f"methods={shown(methods)} is no dictionary: give a method for each regular expression, such as "
            '{"head": "cache"}'
        )
    chosen: dict[str, Method] = {}
    for pattern, method in methods.items():
        if not isinstance(method, str) or method not in METHODS:
            known = ", ".join(repr(str(each)) for each in METHODS)
            raise PlanError(f"methods[{shown(pattern)}]={shown(method)} is no method: give one of {known}")
        try:
            found = [name for name in names if re.search(pattern, name)]
        except (re.error, TypeError, OverflowError, RecursionError) as error:
            raise PlanError(f"methods: {shown(pattern)} is not a regular expression: {error}") from error
        if not found:
            raise PlanError(f"methods: no hashed parameter has {shown(pattern)} in its name; fxhash.summary lists them")
        chosen.update(dict.fromkeys(found, Method(method)))
    return chosen
