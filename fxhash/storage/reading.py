"""What a file says by itself, without the model that it was made of."""

from __future__ import annotations

from fxhash.errors import CheckpointError, PlanError
from fxhash.printable import shortened
from fxhash.smh.plan import CompressionPlan
from fxhash.storage.factory import Factory
from fxhash.storage.model_file import StoredModel, unpack
from fxhash.storage.paths import PathLike, read_path
from fxhash.storage.plans import plans_from_json
from fxhash.storage.values import describe_not_finite


def read_plan(path: PathLike) -> CompressionPlan:
    """The plan of a file that `save` wrote of a transformed model, checked as by `read_plans`.

    Raises:
        CheckpointError: as of `read_plans`, or if the file is of a model that holds transformed ones.
    """
    plans = read_plans(path)
    if "" not in plans:
        raise CheckpointError(f"{path} holds {len(plans)} plans of submodules, not one of a whole model")
    return plans[""]


def read_plans(path: PathLike) -> dict[str, CompressionPlan]:
    """The plans of a file that `save` wrote, by the path of what they are for, which is empty for a whole model.

    The whole file is checked, as far as that is possible without a model.

    Raises:
        CheckpointError: if the file can't be read, is damaged, or holds NaN, or infinity where values are trained.
    """
    stored = unpack(read_path(path))
    plans = plans_of(stored, path)
    refuse_values(describe_not_finite(stored.tensors, plans), path)
    return plans


def read_factory(path: PathLike) -> Factory | None:
    """What builds the model of a file, as the file says; nothing is imported. None if it doesn't say.

    Raises:
        CheckpointError: if the file can't be read or is damaged.
    """
    return factory_of(unpack(read_path(path)), path)


def plans_of(stored: StoredModel, path: PathLike) -> dict[str, CompressionPlan]:
    """The plans of an opened file, by the path of what they are for.

    Raises:
        CheckpointError: if they can't be used.
    """
    try:
        return plans_from_json(stored.plan)
    except PlanError as error:
        raise CheckpointError(f"{path} holds a plan that can't be used: {shortened(str(error))}") from error


def factory_of(stored: StoredModel, path: PathLike) -> Factory | None:
    """What an opened file says that builds its model.

    Raises:
        CheckpointError: if it can't be used.
    """
    try:
        return Factory.from_json(stored.factory) if stored.factory else None
    except PlanError as error:
        raise CheckpointError(f"{path} names a factory that can't be used: {shortened(str(error))}") from error


def refuse_values(wrong: str, path: PathLike) -> None:
    """Raise CheckpointError if something is wrong with the values of a file."""
    if wrong:
        raise CheckpointError(
            f"{path} would give wrong outputs: {wrong}. fxhash.load(..., allow_nan=True) takes it as it is"
        )
