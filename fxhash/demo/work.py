"""What the demonstration does: data, network, sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxhash import zoo


@dataclass(frozen=True)
class Work:
    """A network on some images, and the forms in which it is trained.

    Attributes:
        title: network and images, in words.
        data: a name of `fxhash.training.load_data`.
        image_size: height and width of the images; as they are if None.
        model: a name of the zoo, of a model with the option `width`.
        width: of the dense network and of those that are compressed.
        recipe: a name of `fxhash.training.load_recipe`.
        compressions: sizes, as of `fxhash.transform`, the largest first.
        rivalled: the one of them that the narrower dense network has at most as many parameters as, and whose factors
            are also stored in 8 bits.
        cached: bytes that weights may take while the compressed model is called (`memory_budget` of
            `fxhash.lower_for_deploy`), over those of the dense network's parameters.
        seed: of all runs.
    """

    title: str = "ResNet-20 on digits of MNIST"
    data: str = "mnist5k"
    image_size: int | None = 14
    model: str = "resnet20"
    width: int = 16
    recipe: str = "mnist5k"
    compressions: tuple[float, ...] = (0.10, 0.05, 0.02)
    rivalled: float = 0.10
    cached: float = 0.5
    seed: int = 0

    def parameters(self, width: int, channels: int, classes: int) -> int:
        """How many parameters the dense network of a width has, for images of so many channels."""
        with torch.device("meta"):
            model = zoo.create(self.model, width=width, in_channels=channels, num_classes=classes)
        return sum(parameter.numel() for parameter in model.parameters())

    def narrower(self, channels: int, classes: int) -> int:
        """The largest width at which the dense network has no more parameters than the rivalled size allows."""
        most = self.rivalled * self.parameters(self.width, channels, classes)
        fitting = [w for w in range(1, self.width) if self.parameters(w, channels, classes) <= most]
        return max(fitting, default=1)
