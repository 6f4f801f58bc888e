"""Python's operators that change their left side in place, such as `x += 1`, as functions that a graph can call.

As `operator.iadd`, a graph module would write them out as `x += 1` again, and so give a new value to `x` where it can't
be changed, as a number can't.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fxhash.graph.recorded import recorded


@recorded
def add_(left: Tensor, right: Any) -> Tensor:
    """`left += right`."""
    result: Tensor = operator.iadd(left, right)
    return result


@recorded
def sub_(left: Tensor, right: Any) -> Tensor:
    """`left -= right`."""
    result: Tensor = operator.isub(left, right)
    return result


@recorded
def mul_(left: Tensor, right: Any) -> Tensor:
    """`left *= right`."""
    result: Tensor = operator.imul(left, right)
    return result


@recorded
def matmul_(left: Tensor, right: Any) -> Tensor:
    """`left @= right`."""
    result: Tensor = operator.imatmul(left, right)
    return result


@recorded
def truediv_(left: Tensor, right: Any) -> Tensor:
    """`left /= right`."""
    result: Tensor = operator.itruediv(left, right)
    return result


@recorded
def floordiv_(left: Tensor, right: Any) -> Tensor:
    """`left //= right`."""
    result: Tensor = operator.ifloordiv(left, right)
    return result


@recorded
def mod_(left: Tensor, right: Any) -> Tensor:
    """`left %= right`."""
    result: Tensor = operator.imod(left, right)
    return result


@recorded
def pow_(left: Tensor, right: Any) -> Tensor:
    """`left **= right`."""
    result: Tensor = operator.ipow(left, right)
    return result


@recorded
def lshift_(left: Tensor, right: Any) -> Tensor:
    """`left <<= right`."""
    result: Tensor = operator.ilshift(left, right)
    return result


@recorded
def rshift_(left: Tensor, right: Any) -> Tensor:
    """`left >>= right`."""
    result: Tensor = operator.irshift(left, right)
    return result


@recorded
def and_(left: Tensor, right: Any) -> Tensor:
    """`left &= right`."""
    result: Tensor = operator.iand(left, right)
    return result


@recorded
def xor_(left: Tensor, right: Any) -> Tensor:
    """`left ^= right`."""
    result: Tensor = operator.ixor(left, right)
    return result


@recorded
def or_(left: Tensor, right: Any) -> Tensor:
    """`left |= right`."""
    result: Tensor = operator.ior(left, right)
    return result


# By the name of the method that Python calls.
IN_PLACE_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "__iadd__": add_,
    "__isub__": sub_,
    "__imul__": mul_,
    "__imatmul__": matmul_,
    "__itruediv__": truediv_,
    "__ifloordiv__": floordiv_,
    "__imod__": mod_,
    "__ipow__": pow_,
    "__ilshift__": lshift_,
    "__irshift__": rshift_,
    "__iand__": and_,
    "__ixor__": xor_,
    "__ior__": or_,
}
