"""Options of a command that are the fields of a recipe."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import typer

from fxhash.training.recipe import Recipe

_Command = Callable[..., None]


def with_recipe_options(after: str) -> Callable[[_Command], _Command]:
    """Give a command, in place of its `**changes`, an option for each field of `Recipe` that has a help text.

    Each is None unless it is given on the command line; the command gets all of them as `changes`. Typer reads the
    options of a command from its signature, so that is where they are added.

    Args:
        after: the parameter of the command after which they are listed.
    """

    def decorate(command: _Command) -> _Command:
        parameters = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.kind is not parameter.VAR_KEYWORD:
                parameters.append(parameter)
            if parameter.name == after:
                parameters += _parameters_of_recipe()
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def _parameters_of_recipe() -> Iterator[inspect.Parameter]:
    types = get_type_hints(Recipe)
    for field in fields(Recipe):
        if "help" in field.metadata:
            option = typer.Option(help=field.metadata["help"], metavar=field.metadata.get("metavar"))
            annotation: Any = Annotated[types[field.name] | None, option]
            yield inspect.Parameter(
                field.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation
            )
