"""How to train: a small declarative file in this package for each recipe, with the figures that it reached."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.resources import files
from typing import Any

from fxhash.errors import TrainingError

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("one-cycle", "cosine")
PRECISIONS = ("32", "bf16", "16")
FACTOR_BITS = (32, 8, 4)
_CHOICES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS, "factor_bits": FACTOR_BITS}


@dataclass(frozen=True)
class Recipe:
    """Everything that training depends on, except the model, the data and the seed.

    A field with a help text in its metadata is an option of `fxhash train`.

    Attributes:
        name: name of the file, without its extension.
        epochs: passes over the training images.
        batch_size: images per step, over all processes together.
        optimizer: `"sgd"` with Nesterov momentum, or `"adamw"`.
        learning_rate: the peak of the schedule.
        factor_rate: learning rate of the factors `left` and `right` over that of all other parameters.
        momentum: of SGD.
        weight_decay: of parameters with two or more dimensions, factors among them; the others have none.
        schedule: `"one-cycle"` (up for 30 % of the steps, then down to almost nothing) or `"cosine"` (up for 5 %).
        label_smoothing: share of the target that is distributed over all classes.
        clip_gradients: maximum norm of all gradients together; 0 for no limit.
        ema_decay: decay of a moving average of the weights, which is evaluated and saved; 0 for no average.
        pad: maximum shift of training images in pixels, in both directions.
        flip: whether training images are mirrored at random, if the data set allows it.
        rotate: largest angle in degrees by which training images are turned, either way.
        mixup: parameter of the beta distribution of `fxhash.training.preprocessing.mixing`; 0 for none.
        cutmix: the same for rectangles; with both, each batch has one of them.
        distillation_weight: weight of the distillation loss if there is a teacher; the loss of the labels has the rest.
        temperature: by which logits are divided in the distillation loss.
        factor_bits: 8 or 4 for factors that are trained to be stored in so many bits, as of `fxhash.quantize_factors`;
            32 for floating point.
        factor_group: how many entries of a row of a factor share a step in 8 or 4 bits; 0 for a whole row.
        precision: `"32"`, or `"bf16"` or `"16"` for mixed precision.

    Raises:
        TrainingError: for a value out of range.
    """

    name: str = "custom"
    epochs: int = field(default=30, metadata={"help": "Passes over the training images.", "metavar": "N"})
    batch_size: int = field(default=128, metadata={"help": "Images per step, over all processes.", "metavar": "N"})
    optimizer: str = field(default="adamw", metadata={"help": "sgd or adamw."})
    learning_rate: float = field(default=1e-2, metadata={"help": "Peak learning rate of the schedule."})
    factor_rate: float = field(default=1.0, metadata={"help": "Learning rate of factors over that of the rest."})
    momentum: float = field(default=0.9, metadata={"help": "Momentum of sgd."})
    weight_decay: float = field(default=0.0, metadata={"help": "Of parameters with two or more dimensions."})
    schedule: str = field(default="one-cycle", metadata={"help": "one-cycle or cosine."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Share of the target distributed over all classes."})
    clip_gradients: float = field(default=0.0, metadata={"help": "Maximum norm of all gradients; 0 for no limit."})
    ema_decay: float = field(default=0.0, metadata={"help": "Decay of the averaged weights; 0 for no average."})
    pad: int = field(default=0, metadata={"help": "Shift images by up to N pixels.", "metavar": "N"})
    flip: bool = field(default=False, metadata={"help": "Mirror images at random."})
    rotate: float = field(default=0.0, metadata={"help": "Turn images by up to so many degrees."})
    mixup: float = field(default=0.0, metadata={"help": "Beta parameter of means of two images; 0 for none."})
    cutmix: float = field(default=0.0, metadata={"help": "Beta parameter of exchanged rectangles; 0 for none."})
    distillation_weight: float = field(default=0.9, metadata={"help": "Share of the teacher in the loss."})
    temperature: float = field(default=4.0, metadata={"help": "Divides logits in the distillation loss."})
    factor_bits: int = field(default=32, metadata={"help": "32, 8 or 4: bits that factors are trained to have."})
    factor_group: int = field(
        default=0, metadata={"help": "Entries that share a step in few bits; 0 for a whole row.", "metavar": "N"}
    )
    precision: str = field(default="32", metadata={"help": "32, bf16 or 16."})

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise TrainingError(
                    f"{name}={getattr(self, name)!r} is unknown: give one of {', '.join(map(str, known))}"
                )
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name}={getattr(self, name)!r} must be at least 1")
        for name in ("learning_rate", "factor_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"{name}={getattr(self, name)!r} must be more than 0")
        if not 0 <= self.distillation_weight <= 1:
            raise TrainingError(f"distillation_weight={self.distillation_weight!r} must be from 0 to 1")
        for name in ("momentum", "label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"{name}={getattr(self, name)!r} must be at least 0 and less than 1")
        for name in ("weight_decay", "clip_gradients", "pad", "rotate", "mixup", "cutmix", "factor_group"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name}={getattr(self, name)!r} must not be negative")

    def with_changes(self, changes: dict[str, Any]) -> Recipe:
        """The same recipe with some values replaced; a value of None changes nothing.

        Raises:
            TrainingError: for a value out of range, or another optimizer without a learning rate for it.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        changed = replace(self, **given)
        if changed.optimizer != self.optimizer and "learning_rate" not in given:
            raise TrainingError(
                f"the learning rate of recipe {self.name!r}, {self.learning_rate:g}, is one for {self.optimizer}: with "
                f"optimizer={changed.optimizer!r} give learning_rate=... too"
            )
        return changed

    def to_dict(self) -> dict[str, Any]:
        """The values by their names."""
        return asdict(self)


def recipe_names() -> tuple[str, ...]:
    """The recipes that come with this package."""
    return tuple(sorted(file.name.removesuffix(".json") for file in _folder().iterdir() if file.name.endswith(".json")))


def load_recipe(name: str) -> Recipe:
    """Read one of the package's recipes.

    Raises:
        TrainingError: if there is none of that name.
    """
    if name not in recipe_names():
        raise TrainingError(f"there is no recipe {name!r}: give one of {', '.join(recipe_names())}")
    values = json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))
    known = {each.name for each in fields(Recipe)}
    return Recipe(name=name, **{key: value for key, value in values.items() if key in known})


def _folder() -> Any:
    return files("fxhash.training") / "recipes"
