"""Image data sets held in memory, served as batches."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from bayesprune._describe import html_table, imported
from bayesprune.errors import BayespruneError, DataError


@dataclass
class DataConfig:
    """Which data to load, and how to serve them.

    Parameters
    ----------
    name : str
        The data set: "digits" (8x8) comes with scikit-learn; "mnist", "fashion_mnist" and "cifar10"
        are read from `root`, and downloaded to it if they are not there. Own data are named
        "python.path:function", a function of `root` (`pathlib.Path`) that returns training images
        (N, C, H, W), their labels (N,) from 0, test images, and their labels, as tensors or arrays.
    root : str, optional
        Folder in torchvision's layout. Default: the environment variable BAYESPRUNE_DATA, else
        the folder "data" in the current directory.
    batch_size : int
        Training images per batch and process, >= 1.
    validation : int, optional
        Images to hold out of the training set. Default: 180 for "digits", 5000 for the others, a
        tenth of own data.
    augment : {"none", "shift", "shift_flip", "affine"}
        What happens to a training image each time it is served: "shift" moves it by up to
        `max_shift` whole pixels along each axis, zeros coming in; "shift_flip" also mirrors it left
        to right with probability 1/2. "affine" moves, turns, zooms and shears it, interpolated:
        each of the six coefficients of the map is uniform, and changes where a pixel is read from
        by up to `max_shift` pixels, which may be a fraction.
    max_shift : int or float
        Largest shift in pixels, >= 0.
    eval_batch_size : int
        Images per batch where nothing is trained, >= 1.
    """

    name: str
    root: str | None = None
    batch_size: int = 128
    validation: int | None = None
    augment: Literal["none", "shift", "shift_flip", "affine"] = "none"
    max_shift: int | float = 2
    eval_batch_size: int = 1000


@dataclass(frozen=True, eq=False)
class Data:
    """A data set as loaders of (images (N, C, H, W) float32, labels (N,) int64).

    Pixels are standardized per channel with the mean and standard deviation of the official
    training set.

    Parameters
    ----------
    name : str
        Name of the data set.
    num_train : int
        Training images, without the validation images.
    num_classes : int
        Number of classes.
    train : DataLoader
        Training images, shuffled and augmented anew in every epoch by torch's global random state.
    train_plain : DataLoader
        The same images in order, without augmentation.
    validation, test : DataLoader
        Held-out training images; the official test images. In order, without augmentation.
    example_input : Tensor
        One image, shape (1, C, H, W).
    """

    name: str
    num_train: int
    num_classes: int
    train: DataLoader[tuple[Tensor, Tensor]] = field(repr=False)
    train_plain: DataLoader[tuple[Tensor, Tensor]] = field(repr=False)
    validation: DataLoader[tuple[Tensor, Tensor]] = field(repr=False)
    test: DataLoader[tuple[Tensor, Tensor]] = field(repr=False)
    example_input: Tensor = field(repr=False)

    def _repr_html_(self) -> str:
        shape = " × ".join(map(str, self.example_input.shape[1:]))
        rows = []
        for part in ("train", "validation", "test"):
            loader = getattr(self, part)
            rows.append((part, f"{len(loader.dataset):,}", len(loader)))
        title = f"{self.name}: {self.num_classes} classes, images {shape}"
        return html_table(("part", "images", "batches"), rows, title)


def load(config: DataConfig, seed: int) -> Data:
    """Read a data set into memory and split it.

    Where `torch.distributed` is initialized, each process trains on its own share of the images,
    in an order drawn from the random state of rank 0, and evaluates on all of them.

    Parameters
    ----------
    config : DataConfig
        Which data, and how to serve them.
    seed : int
        Decides which training images are held out for validation.

    Returns
    -------
    Data
        The loaders and the sizes that go with them.

    Raises
    ------
    DataError
        If the name or the augmentation is unknown, a size is out of its range, the validation size
        leaves no training or no validation image, the files can neither be read nor downloaded, or
        own data are not as `DataConfig` says.
    ConfigError
        If the function that own data are named by is not there.
    """
    if config.augment not in _AUGMENTATIONS:
        expected = ", ".join(_AUGMENTATIONS)
        raise DataError(f"data.augment: expected one of {expected}, got {config.augment!r}")
    for name, least in (("batch_size", 1), ("eval_batch_size", 1), ("max_shift", 0)):
        value = getattr(config, name)
        if not least <= value < math.inf:
            raise DataError(f"data.{name}: expected at least {least}, got {value}")
    if config.augment.startswith("shift") and config.max_shift != int(config.max_shift):
        raise DataError(
            f"data.max_shift: {config.augment} moves by whole pixels, got {config.max_shift}"
        )
    read, usual = _SETS.get(config.name) or (_own(config.name), None)
    root = Path(config.root or os.environ.get("BAYESPRUNE_DATA", "data"))
    images, labels, test_images, test_labels = read(root)
    usual = len(images) // 10 if usual is None else usual
    validation = usual if config.validation is None else config.validation
    if not 1 <= validation < len(images):
        raise DataError(f"data.validation: expected 1 to {len(images) - 1}, got {validation}")

    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out, kept = order[:validation], order[validation:]
    mean, sd = _moments(images)
    served = partial(_Images, mean=mean, sd=sd)
    augment = _AUGMENTATIONS[config.augment]
    if augment is not None:
        augment = partial(augment, max_shift=config.max_shift)
    train = served(images[kept], labels[kept], augment=augment)
    train_plain = served(train.images, train.labels)
    in_order = partial(_in_order, batch_size=config.eval_batch_size)
    return Data(
        name=config.name,
        num_train=len(kept),
        num_classes=int(labels.max()) + 1,
        train=_shuffled(train, config.batch_size),
        train_plain=in_order(train_plain),
        validation=in_order(served(images[held_out], labels[held_out])),
        test=in_order(served(test_images, test_labels)),
        example_input=train_plain[[0]][0],
    )


class _Images(Dataset[tuple[Tensor, Tensor]]):
    """Images as bytes; a list of indices gives a batch, augmented and standardized."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Tensor,
        sd: Tensor,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.mean = mean
        self.sd = sd
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: list[int]) -> tuple[Tensor, Tensor]:
        images = self.images[index]
        if self.augment is not None:
            images = self.augment(images)
        return images.float().sub_(self.mean).div_(self.sd), self.labels[index]


class _SharedOrder(DistributedSampler[int]):
    """The share of this rank in an order that is drawn anew from the random state of rank 0."""

    def __iter__(self) -> Iterator[int]:
        seed = [int(torch.randint(2**31, ()))]
        dist.broadcast_object_list(seed)
        self.set_epoch(seed[0])
        return super().__iter__()


def _shuffled(dataset: _Images, batch_size: int) -> DataLoader[tuple[Tensor, Tensor]]:
    distributed = dist.is_available() and dist.is_initialized()
    order = _SharedOrder(dataset) if distributed else RandomSampler(dataset)
    return DataLoader(
        dataset, sampler=BatchSampler(order, batch_size, drop_last=False), batch_size=None
    )


def _in_order(dataset: _Images, batch_size: int) -> DataLoader[tuple[Tensor, Tensor]]:
    order = SequentialSampler(dataset)
    return DataLoader(
        dataset, sampler=BatchSampler(order, batch_size, drop_last=False), batch_size=None
    )


def _shifted(images: Tensor, max_shift: float) -> Tensor:
    """Move each image by its own number of pixels in [-max_shift, max_shift] along each axis."""
    reach = int(max_shift)
    if not reach:
        return images
    height, width = images.shape[-2:]
    windows = F.pad(images, 4 * (reach,)).unfold(2, height, 1).unfold(3, width, 1)
    rows, columns = torch.randint(2 * reach + 1, (2, len(images)))
    return windows[torch.arange(len(images)), :, rows, columns]


def _shifted_and_mirrored(images: Tensor, max_shift: float) -> Tensor:
    images = _shifted(images, max_shift)
    mirror = torch.rand(len(images), 1, 1, 1) < 0.5
    return torch.where(mirror, images.flip(-1), images)


def _mapped(images: Tensor, max_shift: float) -> Tensor:
    """Map each image by its own affine map near the identity."""
    height, width = images.shape[-2:]
    # Coordinates run from -1 to 1 across the image: so far a coefficient moves its border.
    moved = (2 * torch.rand(len(images), 2, 3) - 1) * max_shift
    maps = torch.eye(2, 3) + moved * 2 / torch.tensor([[width], [height]])
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False)


_AUGMENTATIONS: dict[str, Callable[..., Tensor] | None] = {
    "none": None,
    "shift": _shifted,
    "shift_flip": _shifted_and_mirrored,
    "affine": _mapped,
}


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, both of shape (C, 1, 1)."""
    # Channel by channel: as floats, a whole data set takes four times its memory.
    pairs = [torch.std_mean(images[:, c].float(), correction=0) for c in range(images.shape[1])]
    sd, mean = (torch.stack(values).view(-1, 1, 1) for values in zip(*pairs, strict=True))
    return mean, sd.where(sd > 0, 1.0)  # a channel that is the same everywhere


# Training images (N, C, H, W) uint8, their labels (N,) int64, test images, their labels.
_Arrays = tuple[Tensor, Tensor, Tensor, Tensor]


def _read_digits(root: Path) -> _Arrays:
    """Split scikit-learn's digits, which come with the package, into 1437 and 360 for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    # One and the same test set for every seed, with equal shares of the ten digits.
    train, test = train_test_split(
        range(len(digits.target)), test_size=360, stratify=digits.target, random_state=0
    )
    images = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target).long()
    return images[train], labels[train], images[test], labels[test]


def _read_torchvision(kind: str, root: Path) -> _Arrays:
    """Read a data set in torchvision's layout, downloading what is missing."""
    import torchvision

    arrays = []
    try:
        for train in (True, False):
            part = getattr(torchvision.datasets, kind)(root, train=train, download=True)
            images = torch.as_tensor(part.data)
            grey = images.ndim == 3
            images = images[:, None] if grey else images.permute(0, 3, 1, 2).contiguous()
            arrays += [images, torch.as_tensor(part.targets)]
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{kind} can neither be read from {root.resolve()} nor downloaded to it ({error}); set "
            "data.root or the environment variable BAYESPRUNE_DATA to the folder that holds it"
        ) from error
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _own(name: str) -> Callable[[Path], _Arrays]:
    """How to read data of the user's own."""
    path, _, function = name.partition(":")
    if not path or not function:
        expected = f"one of {', '.join(_SETS)}, or 'python.path:function'"
        raise DataError(f"data.name: expected {expected}, got {name!r}")
    return partial(_read_own, name, imported("data.name", path, function))


def _read_own(name: str, function: Callable[[Path], Any], root: Path) -> _Arrays:
    try:
        parts = [torch.as_tensor(part) for part in function(root)]
    except BayespruneError:
        raise
    except Exception as error:  # whatever the user's function does
        raise DataError(f"data {name!r}: {type(error).__name__}: {error}") from error
    shapes = [tuple(part.shape) for part in parts]
    if [len(shape) for shape in shapes] != [4, 1, 4, 1] or not (
        shapes[0][1:] == shapes[2][1:]
        and all(shapes[i][0] == shapes[i + 1][0] > 0 for i in (0, 2))
        and not any(parts[i].is_floating_point() or parts[i].min() < 0 for i in (1, 3))
        and parts[3].max() <= parts[1].max()
    ):
        types = ", ".join(str(part.dtype).removeprefix("torch.") for part in parts)
        raise DataError(
            f"data {name!r}: expected images (N, C, H, W), labels (N,), integers from 0, and both "
            "again for testing, with no other label; got shapes "
            f"{', '.join(map(str, shapes))} and types {types}"
        )
    return parts[0], parts[1].long(), parts[2], parts[3].long()


# Name -> how to read it, and how many images to hold out unless told.
_SETS: dict[str, tuple[Callable[[Path], _Arrays], int]] = {
    "digits": (_read_digits, 180),
    "mnist": (partial(_read_torchvision, "MNIST"), 5000),
    "fashion_mnist": (partial(_read_torchvision, "FashionMNIST"), 5000),
    "cifar10": (partial(_read_torchvision, "CIFAR10"), 5000),
}
