"""A plan as JSON, and the values of one that may be hostile."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields, replace
from typing import Any

from fxhash.errors import PlanError
from fxhash.printable import shortened
from fxhash.smh.bounded_json import read_json
from fxhash.smh.factor_bits import FactorBits
from fxhash.smh.layout import Layout
from fxhash.smh.parameter_plan import ParameterPlan

FORMAT_VERSION = 1
# Of a plan whose factors are computed with in fewer bits; what begins with 2 holds several plans.
_WITH_FACTOR_BITS = 3
# What a stored plan may hold, at most: more would take long to read before anybody knew what it is.
MOST_PARAMETERS = 2**14
_MOST_NAMES = 2**15
_LONGEST_STRING = 1000

# Fields of a parameter that are left out where they have these values.
_DEFAULTS = {field.name: field.default for field in fields(ParameterPlan) if field.default is not MISSING}


def plan_to_json(plan: Mapping[str, Any]) -> str:
    """The fields of a `CompressionPlan` as one line of JSON."""
    bits = plan["factor_bits"]
    stored = {
        "format": FORMAT_VERSION if bits is None else _WITH_FACTOR_BITS,
        **({} if bits is None else {"factor_bits": asdict(bits)}),
        "compress": plan["compress"],
        "aspect": plan["aspect"],
        "layout": asdict(plan["layout"]),
        "unused": plan["unused"],
        "parameters": [
            {name: value for name, value in asdict(parameter).items() if value != _DEFAULTS.get(name, ...)}
            for parameter in plan["parameters"]
        ],
    }
    return json.dumps(stored, separators=(",", ":"))


def plan_from_json(text: str) -> dict[str, Any]:
    """The fields of a `CompressionPlan`, which checks what they say.

    Raises:
        PlanError: if the text has not the form of a plan, or is larger than any. Nothing in it is trusted.
    """
    try:
        stored = read_json(text)
        if stored["format"] not in (FORMAT_VERSION, _WITH_FACTOR_BITS):
            raise PlanError(
                f"the plan has format {shortened(repr(stored['format']))}, this fxhash reads format {FORMAT_VERSION}: "
                "use the version of fxhash that wrote it"
            )
        if len(stored["parameters"]) > MOST_PARAMETERS:
            raise PlanError(
                f"the plan has {len(stored['parameters']):,} parameters, more than the {MOST_PARAMETERS:,} that a file "
                "may hold"
            )
        parameters = tuple(_parameter(parameter) for parameter in stored["parameters"])
        unused = tuple(stored["unused"])
        _check_strings(parameters, unused)
        return {
            "parameters": parameters,
            "layout": Layout(**stored["layout"]),
            "compress": stored["compress"],
            "aspect": stored["aspect"],
            "unused": unused,
            "factor_bits": FactorBits(**stored["factor_bits"]) if stored["format"] == _WITH_FACTOR_BITS else None,
        }
    except PlanError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PlanError(f"this is not a plan of fxhash: {type(error).__name__}: {shortened(str(error))}") from error


def _parameter(stored: dict[str, Any]) -> ParameterPlan:
    parameter = ParameterPlan(**stored)
    return replace(parameter, shape=tuple(parameter.shape), aliases=tuple(parameter.aliases))


def _check_strings(parameters: Iterable[ParameterPlan], unused: tuple[str, ...]) -> None:
    """Raise PlanError if there are too many names, or a string is too long. Their types are checked later."""
    names = [name for parameter in parameters for name in (parameter.fqn, *parameter.aliases)] + [*unused]
    if len(names) > _MOST_NAMES:
        raise PlanError(f"the plan has {len(names):,} names, more than the {_MOST_NAMES:,} that a file may hold")
    others = (string for parameter in parameters for string in (parameter.dtype, parameter.dense_because))
    for string in (*names, *others):
        if isinstance(string, str) and len(string) > _LONGEST_STRING:
            raise PlanError(
                f"the plan holds a name or reason of {len(string):,} characters, more than {_LONGEST_STRING:,}: "
                f"{shortened(string, 80)!r}"
            )
