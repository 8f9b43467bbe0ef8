"""A data set as one value: what it is called, what its images look like, and how they are loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fmnist_lightning.errors import UserError

Part = Literal["train", "val", "test"]
Framing = Literal["garment", "crop"]

# All runs hold out the same images, whatever their seed, so that their metrics can be compared.
SPLIT_SEED = 20170825  # the day on which Fashion-MNIST was published


class Split(NamedTuple):
    """Images with their labels, in file order."""

    images: Tensor  # (n, C, H, W) uint8
    labels: Tensor  # (n,) int64


class DataError(UserError):
    """The data is missing, damaged, or does not suit the options."""


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What a run records about its data set, in plain values."""

    name: str
    """As `--dataset` has it."""
    title: str
    """For people: in tables, plots and reports."""
    classes: tuple[str, ...]
    """The class names, by label."""
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Results to compare with, in percent by the name of the metric; may be empty."""
    stand_in: bool = False
    """Whether it only stands in for other data; everything made from it says so."""
    framing: Framing = "crop"
    """How a picture of a user becomes an image: garment, as Fashion-MNIST's authors did it, or a centered crop."""

    def as_plain(self) -> dict[str, Any]:
        """Values that JSON and checkpoints hold; `from_plain` reads them."""
        return {
            "name": self.name,
            "title": self.title,
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "published": dict(self.published),
            "stand_in": self.stand_in,
            "framing": self.framing,
        }

    @staticmethod
    def from_plain(values: Mapping[str, Any]) -> "DataInfo":
        """Raises TypeError, KeyError or ValueError if the values are not those of `as_plain`."""
        info = DataInfo(**{**values, "classes": tuple(values["classes"]), "image_shape": tuple(values["image_shape"])})
        for text in (info.name, info.title, *info.classes):
            if not isinstance(text, str) or not text.isprintable():  # terminals obey some that is not
                raise TypeError(f"its name, title or class {text!r} is no printable text")
        if len(info.image_shape) != 3 or not all(type(length) is int and length > 0 for length in info.image_shape):
            raise ValueError(f"its image shape is {info.image_shape}")
        if info.framing not in get_args(Framing) or type(info.stand_in) is not bool:
            raise ValueError(f"its framing is {info.framing!r}, and whether it is a stand-in {info.stand_in!r}")
        for value in info.published.values():
            if not isinstance(value, int | float):
                raise TypeError(f"it has a published result {value!r}")
        return info


def no_preparation() -> None:
    """For data sets that need no download."""


@dataclass(frozen=True, kw_only=True)
class DataSource(DataInfo):
    """A data set that can be loaded. To add one: a file in data/sets/ and a line in `cli.SOURCES`."""

    load: Callable[[Part], Split]
    """Load the images of a part. Raises DataError if a file is missing or damaged."""
    prepare: Callable[[], None] = no_preparation
    """Download or decode what is missing; called once per machine, before `load`."""
    parts: tuple[Part, ...] = ("train", "test")
    """The parts that the data set has. Without val, the validation split is taken from train."""
    test_fraction: float | None = None
    """Fraction of the images that became the test set, for a data set that came without one."""


def check_classes(classes: tuple[str, ...], folder: Path) -> None:
    """Raise DataError unless there are two classes or more, with different names that can be printed."""
    problem = ""
    if len(classes) < 2:
        problem = f"it has the class {classes[0]} alone, expected two or more" if classes else "it has no classes"
    elif repeated := sorted({name for name in classes if classes.count(name) > 1}):
        problem = f"several classes have the name {repeated[0]}"
    elif unusable := [name for name in classes if not name.strip() or not name.isprintable()]:
        problem = f"the class name {unusable[0]!r} can't be printed"
    if problem:
        raise DataError(f"cannot use {folder}: {problem}")


def check_split(split: Split, info: DataInfo) -> None:
    """Raise DataError unless images and labels are as `info` describes them."""
    images, labels = split
    shape, count = tuple(images.shape[1:]), len(info.classes)
    problem = ""
    if shape != info.image_shape or images.dtype != torch.uint8:
        problem = f"images are {shape} {images.dtype}, expected {info.image_shape} torch.uint8"
    elif labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        problem = f"labels are {tuple(labels.shape)} {labels.dtype}, expected ({len(images)},) torch.int64"
    elif not len(labels):
        problem = "there are no images"
    elif not 0 <= labels.min() <= labels.max() < count:
        problem = f"labels are {labels.min()} to {labels.max()}, expected 0 to {count - 1}, one for each class name"
    if problem:
        raise DataError(f"cannot use the data set {info.title}: {problem}")
