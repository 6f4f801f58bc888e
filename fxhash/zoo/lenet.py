"""LeNet-5, as in LeCun et al., "Gradient-Based Learning Applied to Document Recognition" (1998),
http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf.

Two 5x5 convolutions, each followed by pooling, and three linear layers. As usual today, the activation is ReLU
instead of tanh, pooling takes the maximum, the second convolution sees all channels, and the classifier is
linear. The second pooling adapts to the image, so that the first linear layer sees 5x5 pixels of any.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxhash.zoo.building import check_sizes


class LeNet(nn.Module):
    """LeNet-5; layers are named as in the paper.

    Shapes: images `(batch, in_channels, height, width)`, of at least 14 pixels a side, to logits
    `(batch, num_classes)`.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(in_channels, 6, 5)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.c5 = nn.Linear(16 * 5 * 5, 120)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of a batch of images."""
        features = F.max_pool2d(F.relu(self.c1(images)), 2)
        features = F.adaptive_max_pool2d(F.relu(self.c3(features)), 5)
        features = F.relu(self.c5(torch.flatten(features, 1)))
        return self.output(F.relu(self.f6(features)))


def lenet(*, num_classes: int = 10, in_channels: int = 3) -> LeNet:
    """Build LeNet-5.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input images.

    Raises:
        ValueError: if an argument is below 1.
        TypeError: if an argument is not an `int`.

    Example:
        >>> model = lenet(in_channels=1)
        >>> sum(parameter.numel() for parameter in model.parameters())
        61706
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    return LeNet(num_classes, in_channels)


MODELS: dict[str, Callable[..., nn.Module]] = {"lenet": lenet}
