"""What is asked for in a run, and what came of it: the values of `run.json` and `result.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fxhash.errors import TrainingError
from fxhash.training.recipe import Recipe


@dataclass(frozen=True)
class RunOptions:
    """What to train, on what, and how.

    Attributes:
        model: a name of `fxhash.zoo`, or a target as of `fxhash.targets`, such as `torchvision:resnet18`.
        data: a name of `fxhash.training.load_data`.
        recipe: how to train.
        compress: the fraction to compress to; None for the dense model.
        start: folder of a finished run of the dense model, whose weights are the initialization; factors approximate
            them.
        teacher: folder of a finished run whose model is distilled into this one.
        seed: for the initialization of the model, the order of the images, and whatever else is random.
        data_folder: where the files of torchvision's data sets are.
        image_size: height and width to which the images of a folder are scaled.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        tensorboard: whether to write the curves for TensorBoard too.
        model_options: of `fxhash.zoo.create`, beside the numbers of classes and channels; such as `{"width": 32}`.
        test_each_epoch: whether to test after each epoch, which is what curves need, instead of after the last alone.

    Raises:
        TrainingError: for a seed that is no whole number of 64 bits.
    """

    model: str
    data: str
    recipe: Recipe
    compress: float | None = None
    start: str | None = None
    teacher: str | None = None
    seed: int = 0
    data_folder: str = "data"
    image_size: int | None = None
    device: str = "auto"
    tensorboard: bool = False
    model_options: Mapping[str, float] = field(default_factory=dict)
    test_each_epoch: bool = True

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**63:
            raise TrainingError(f"seed {self.seed} is no whole number of 64 bits: give one such as 0")

    @property
    def network(self) -> str:
        """The model with its options, in words.

        Example:
            >>> RunOptions("resnet8", "digits", Recipe(), model_options={"width": 32}).network
            'resnet8, width 32'
        """
        return ", ".join([self.model, *(f"{name} {value}" for name, value in self.model_options.items())])

    def to_dict(self) -> dict[str, Any]:
        """The values by their names, for a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunOptions:
        """What `to_dict` gave; older files lack the last of them."""
        model_options = dict(values.get("model_options", {}))
        return cls(**{**values, "recipe": Recipe(**values["recipe"]), "model_options": model_options})


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        trainable_before: trainable parameters of the dense model.
        trainable_after: those that were trained, everything counted.
        test_accuracy: fraction of the test images that the trained model gets right.
        test_loss: cross entropy on the test images.
        epochs: passes over the training images.
        seconds: time of the last part of the run, if it was interrupted.
        gradient_bytes: bytes of gradients that each process sends in a step; 0 for one process.
        dense_gradient_bytes: what the dense model would send.
    """

    trainable_before: int
    trainable_after: int
    test_accuracy: float
    test_loss: float
    epochs: int
    seconds: float
    gradient_bytes: int
    dense_gradient_bytes: int
