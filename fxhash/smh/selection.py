"""Which parameters of a model are hashed, decided on names, shapes and types alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import nn

from fxhash.errors import PlanError, close_matches, shown
from fxhash.smh.parameter_plan import HASHABLE_DTYPES, ParameterPlan
from fxhash.smh.parameters import dtype_name, refuse_lazy, scripted_parameters, tied_groups

Predicate: TypeAlias = Callable[[str, nn.Parameter], bool]
Selector: TypeAlias = str | re.Pattern[str] | Sequence[str | re.Pattern[str]] | Predicate


def describe_parameters(
    model: nn.Module, include: Selector | None = None, exclude: Selector | None = None
) -> list[ParameterPlan]:
    """Describe every parameter of a model and choose which are hashed.

    By default a parameter is hashed if it has two dimensions or more, is trainable, and is real and floating
    point. `include` replaces the rule on dimensions; `exclude` takes away from what is left.

    Args:
        model: any module; its values are not read, so it may be on the meta device.
        include: regular expressions, found anywhere in the fully qualified name, or a predicate
            `(fqn, parameter) -> bool`.
        exclude: the same.

    Returns:
        One entry a parameter, without places in `W`, in the order of `named_parameters()`; tied names share one.

    Raises:
        TransformError: if a parameter is not initialised yet.
        PlanError: for a malformed selector, or an expression that is found in no name.
    """
    included = None if include is None else _as_predicate("include", include)
    excluded = None if exclude is None else _as_predicate("exclude", exclude)
    refuse_lazy(model)
    scripted = scripted_parameters(model)
    groups = tied_groups(model)
    fqns = [name for names, _ in groups for name in names]
    for selector in (included, excluded):
        if isinstance(selector, _Expressions):
            selector.refuse_unfound(fqns)
    described = []
    for names, (parameter, *_) in groups:
        described.append(
            ParameterPlan(
                fqn=names[0],
                shape=tuple(parameter.shape),
                dtype=dtype_name(parameter.dtype),
                trainable=parameter.requires_grad,
                dense_because=(
                    "inside a script module"
                    if id(parameter) in scripted
                    else _dense_because(names, parameter, included, excluded)
                ),
                aliases=tuple(names[1:]),
            )
        )
    return described


def _dense_because(
    names: list[str], parameter: nn.Parameter, included: Predicate | None, excluded: Predicate | None
) -> str:
    """Why a parameter stays dense; an empty string if it is hashed."""
    if dtype_name(parameter.dtype) not in HASHABLE_DTYPES:
        return f"type {dtype_name(parameter.dtype)}"
    if not parameter.requires_grad:
        return "frozen"
    if parameter.numel() == 0:
        return "empty"
    if excluded is not None and any(excluded(name, parameter) for name in names):
        return "excluded"
    if included is not None:
        return "" if any(included(name, parameter) for name in names) else "not included"
    return "" if parameter.dim() >= 2 else "fewer than two dimensions"


def _as_predicate(argument: str, selector: Selector) -> Predicate:
    if callable(selector):
        return _checked(argument, selector)
    patterns: list[str | re.Pattern[str]] | None
    try:
        patterns = [selector] if isinstance(selector, (str, re.Pattern)) else list(selector)
    except TypeError:
        patterns = None
    if patterns is None or not all(map(_is_pattern, patterns)):
        raise PlanError(
            f"{argument}={shown(selector)} must be a regular expression, a list of them, or a function "
            "(fqn, parameter) -> bool"
        )
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except (re.error, OverflowError, RecursionError) as error:
        raise PlanError(f"{argument}={shown(selector)} is not a regular expression: {error}") from error
    return _Expressions(argument, compiled)


class _Expressions:
    """Regular expressions as a predicate, which accepts a name that any of them is found in."""

    def __init__(self, argument: str, patterns: Sequence[re.Pattern[str]]) -> None:
        self.argument = argument
        self.patterns = patterns

    def __call__(self, fqn: str, parameter: nn.Parameter) -> bool:
        return any(pattern.search(fqn) for pattern in self.patterns)

    def refuse_unfound(self, fqns: Sequence[str]) -> None:
        """Raise PlanError if one of the expressions is found in none of the names, as one that is misspelled."""
        for pattern in self.patterns:
            if fqns and not any(pattern.search(fqn) for fqn in fqns):
                raise PlanError(
                    f"{self.argument}={shown(pattern.pattern)} is found in no parameter's name"
                    f"{close_matches(pattern.pattern, _parts(fqns))}: they are named as in model.named_parameters(), "
                    f"such as {shown(fqns[0])}"
                )


def _parts(fqns: Sequence[str]) -> list[str]:
    """Names, and their parts: whatever an expression without special characters may have meant."""
    return list(dict.fromkeys([*fqns, *(part for fqn in fqns for part in fqn.split("."))]))


def _is_pattern(value: object) -> bool:
    return isinstance(value.pattern if isinstance(value, re.Pattern) else value, str)


def _checked(argument: str, predicate: Predicate) -> Predicate:
    """A user's predicate, whose errors say where they come from."""

    def run(fqn: str, parameter: nn.Parameter) -> bool:
        try:
            return bool(predicate(fqn, parameter))
        except Exception as error:
            raise PlanError(
                f"{argument}={shown(predicate)} must be a function (fqn, parameter) -> bool; for {fqn!r} it raised "
                f"{type(error).__name__}: {shown(str(error))}"
            ) from error

    return run
