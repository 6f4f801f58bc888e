"""The plans of a file: that of a transformed model, or those of the transformed submodules of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from fxhash.errors import PlanError
from fxhash.printable import shortened
from fxhash.smh.bounded_json import read_json
from fxhash.smh.plan import CompressionPlan
from fxhash.smh.plan_json import MOST_PARAMETERS

# One of a single plan begins with its own format, which is 1.
_SUBMODULES = '{"format":2,"submodules":'
_LONGEST_PATH = 1000
_MOST_SUBMODULES = 1000


def plans_to_json(plans: Mapping[str, CompressionPlan]) -> str:
    """Plans by the path of what they are for, as one line of JSON; the path of a whole model is empty."""
    if "" in plans:
        return plans[""].to_json()
    return _SUBMODULES + json.dumps({path: json.loads(plan.to_json()) for path, plan in plans.items()}) + "}"


def plans_from_json(text: str) -> dict[str, CompressionPlan]:
    """What `plans_to_json` wrote.

    Raises:
        PlanError: if the text is not that, or larger than any. Nothing in it is trusted.
    """
    if not text.startswith(_SUBMODULES):
        return {"": CompressionPlan.from_json(text)}
    try:
        stored = read_json(text)["submodules"]
        if not isinstance(stored, dict) or not 0 < len(stored) <= _MOST_SUBMODULES:
            raise PlanError(f"it holds no plans of submodules, or more than {_MOST_SUBMODULES:,}")
        paths = set(stored)
        plans: dict[str, CompressionPlan] = {}
        for path in list(stored):
            if not path or len(path) > _LONGEST_PATH or any(parent in paths for parent in _parents(path)):
                raise PlanError(f"{shortened(path, 80)!r} can't be the path of a transformed submodule")
            # What was read of one is let go of before the next.
            plans[path] = CompressionPlan.from_json(json.dumps(stored.pop(path)))
            if sum(len(each.parameters) for each in plans.values()) > MOST_PARAMETERS:
                raise PlanError(f"its plans have more parameters than the {MOST_PARAMETERS:,} that a file may hold")
    except PlanError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PlanError(f"these are no plans of fxhash: {type(error).__name__}: {shortened(str(error))}") from error
    return plans


def _parents(path: str) -> Iterator[str]:
    """The paths of the modules that hold the one at `path`."""
    names = path.split(".")
    return (".".join(names[:length]) for length in range(1, len(names)))
