"""`fxhash train`: start or resume a run, in one process or several."""

import re
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxhash.cli.errors import UsageError, needs_extra
from fxhash.cli.recipe_options import with_recipe_options
from fxhash.cli.trust import TrustOption
from fxhash.errors import TrainingError, shown
from fxhash.targets import TARGETS, trusting
from fxhash.training.recipe import recipe_names

if TYPE_CHECKING:
    from fxhash.training import RunOptions, RunResult


@with_recipe_options(after="recipe")
def train(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help=f"A model of the zoo, such as resnet20, or one of {TARGETS}.")
    ] = None,
    model_options: Annotated[
        list[str] | None,
        typer.Option(
            "--model-option",
            metavar="NAME=NUMBER",
            help="Of a model of the zoo, such as width=8 of a resnet20; repeatable.",
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help="digits, mnist5k, mnist, fashion-mnist, cifar10, cifar100 or imagefolder:DIR.")
    ] = "digits",
    compress: Annotated[
        float | None,
        typer.Option("--compress", "-c", help="Trainable parameters after over before; the dense model if omitted."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Start from the weights of this run of the dense model.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Learn from this run's model too (distillation).")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.", file_okay=False)] = Path(
        "fxhash-run"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"How to train: {', '.join(recipe_names())}. If omitted, the one named as the data, or small-images."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    processes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Processes on this machine; if omitted, one per GPU, or a single one."),
    ] = None,
    data_folder: Annotated[Path, typer.Option(help="Where torchvision's data sets are.")] = Path("data"),
    image_size: Annotated[int | None, typer.Option(metavar="N", help="Scale a folder's images to N pixels.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the data if it is not there.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves for TensorBoard too (extra: tensorboard).")
    ] = False,
    trust: TrustOption = None,
    **changes: Any,
) -> None:
    """Train an image classifier, dense or compressed.

    Writes its configuration, a checkpoint after each epoch, the curves and the trained model to a folder. A run
    that was interrupted continues with --resume and reaches the same weights; a finished one with --resume and
    more --epochs. It trains on all GPUs of the machine; on several machines, start it with torchrun on each.

    Example: fxhash train --model resnet20 -c 0.25 -o runs/digits
    """
    with needs_extra("train"):
        from fxhash.training import RunOptions, load_recipe
        from fxhash.training import resume as resume_run
        from fxhash.training import train as train_run
        from fxhash.training.folder import read_configuration
        from fxhash.training.lock import FolderError
        from fxhash.training.processes import StoppedError, prints_how_it_ends
    if resume:
        begun = read_configuration(output)[0]
        different = _changes_on_resume(context, begun, output)
        device = different.get("device", begun.device)
        begin = partial(resume_run, output, changes=different, download=download)
    elif model is None:
        raise UsageError("give --model, such as --model resnet20; `fxhash.zoo.list()` has the names")
    else:
        named = load_recipe(recipe or (data if data in ("digits", "mnist5k") else "small-images"))
        options = RunOptions(
            model=model.removeprefix("zoo:"),
            data=data,
            recipe=named.with_changes(changes),
            compress=compress,
            start=None if start is None else str(start),
            teacher=None if teacher is None else str(teacher),
            seed=seed,
            data_folder=str(data_folder),
            image_size=image_size,
            device=device,
            tensorboard=tensorboard,
            model_options=_read_model_options(model_options),
        )
        begin = partial(train_run, options, output, download)
    try:
        with trusting(trust or ()):
            if not _run_in_processes(processes, device):
                _print_result(begin(), output)
    except FolderError as error:
        raise UsageError(str(error)) from error
    except (KeyboardInterrupt, StoppedError):
        if not prints_how_it_ends():
            raise SystemExit(1) from None
        raise TrainingError(_how_to_go_on(output)) from None


def _changes_on_resume(context: typer.Context, begun: "RunOptions", output: Path) -> dict[str, Any]:
    """The options that are given on the command line and are not those that the run was begun with.

    Raises:
        UsageError: if one of them decides what the run is.
    """
    from fxhash.training.folder import MAY_CHANGE

    values = {**begun.to_dict(), **begun.recipe.to_dict(), "recipe": begun.recipe.name}
    changes = {}
    for name, given in context.params.items():
        source = context.get_parameter_source(name)
        if name in values and source is not None and source.name == "COMMANDLINE":
            if name == "model_options":
                given = _read_model_options(given)
            elif isinstance(given, Path):
                given = str(given)
            if given != values[name]:
                changes[name] = given
    wrong = [f"--{name.replace('_', '-')}" for name in changes if name not in (*MAY_CHANGE, "epochs")]
    if wrong:
        raise UsageError(
            f"the run in {str(output)!r} goes on as it was begun, with another {', '.join(wrong)}: omit "
            "this, or start a new run in another --output"
        )
    return changes


def _read_model_options(given: list[str] | None) -> dict[str, float]:
    """The values by their names.

    Raises:
        UsageError: if one of them has no name, or no number.
    """
    values: dict[str, float] = {}
    for text in given or ():
        name, _, value = text.partition("=")
        if not name.isidentifier() or re.fullmatch(r"\d+(\.\d+)?", value, re.ASCII) is None:
            raise UsageError(f"--model-option {shown(text)} is no NAME=NUMBER, such as width=8")
        values[name] = float(value) if "." in value else int(value)
    return values


def _how_to_go_on(output: Path) -> str:
    """What to do after a run was told to end."""
    from fxhash.training.folder import CONFIGURATION

    if not (output / CONFIGURATION).exists():
        return f"the run in {str(output)!r} was stopped before it began: start it again"
    return (
        f"the run in {str(output)!r} was stopped: to go on, fxhash train --resume --output {shlex.quote(str(output))}"
    )


def _run_in_processes(processes: int | None, device: str) -> bool:
    """Run this command in several processes; False if it is to run in this one, maybe one of them already."""
    from fxhash.training.processes import (
        check_process_count,
        end_with_starter,
        is_started_together,
        processes_for,
        refuse_unknown_device,
        run_together,
    )

    if is_started_together():
        end_with_starter()
        return False
    refuse_unknown_device(device)
    count = processes or processes_for(device)
    check_process_count(count, device)
    if count > 1:
        run_together(count, ["-m", "fxhash", *sys.argv[1:]])
    return count > 1


def _print_result(result: "RunResult", output: Path) -> None:
    from fxhash.training.processes import is_first_process

    if not is_first_process():
        return
    print(
        f"{result.test_accuracy:.2%} of the test images, {result.trainable_after:,} trainable parameters "
        f"of {result.trainable_before:,}"
    )
    if result.gradient_bytes:
        share = result.gradient_bytes / result.dense_gradient_bytes
        print(
            f"gradients: {result.gradient_bytes:,} bytes a step and process, {share:.2%} of the dense model's "
            f"{result.dense_gradient_bytes:,}"
        )
    print(f"run: {output}")
