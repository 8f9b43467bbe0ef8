"""A data set as one value: what it is called, what its images look like, and how they are loaded."""

import math
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

# A file of weights from a stranger names a shape and classes, too. These limits bound what that takes of memory: an
# image has 50 MB as floats, and features of a few GB. Satellites' images have some 200 channels.
MAX_LENGTH = 4096
MAX_VALUES = 3 * 2048 * 2048  # of one image
MAX_CLASSES = 100_000


class Split(NamedTuple):
    """Images with their labels, in file order."""

    images: Tensor  # (n, C, H, W) uint8
    labels: Tensor  # (n,) int64


class DataError(UserError):
    """The data is missing, damaged, or does not suit the options."""


class OtherDataError(DataError):
    """The files are those of another data set."""


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What a run records about its data set, in plain values. Raises TypeError or ValueError for values of no use."""

    name: str
    """As `--dataset` has it."""
    title: str
    """For people: in tables, plots and reports."""
    classes: tuple[str, ...]
    """The class names, by label."""
    image_shape: tuple[int, int, int]
    """Channels, height, width. At most MAX_LENGTH each, and MAX_VALUES in all."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Results to compare with, in percent by the name of the metric; may be empty."""
    stand_in: bool = False
    """Whether it only stands in for other data; everything made from it says so."""
    framing: Framing = "crop"
    """How a picture of a user becomes an image: garment, as Fashion-MNIST's authors did it, or a centered crop."""

    def __post_init__(self) -> None:
        if isinstance(self.classes, str) or not isinstance(self.published, Mapping):
            raise TypeError(
                f"cannot use the data set {self.name!r}: its classes are {self.classes!r} and its published results "
                f"{self.published!r}, expected a tuple and a dict"
            )
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "image_shape", tuple(self.image_shape))
        for problem in (wrong_text(self), wrong_number(self)):
            if problem:
                raise ValueError(f"cannot use the data set {self.name!r}: {problem}")

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
        """Raises TypeError or ValueError if the values are not those of `as_plain`."""
        return DataInfo(**values)


def wrong_text(info: DataInfo) -> str:
    """Which text of a data set can't be used and why; empty if all can."""
    for text in (info.name, info.title, *info.classes):
        if not isinstance(text, str) or not text.isprintable():  # terminals obey some that is not
            return f"its name, title or class {text!r} is no printable text"
    if info.framing not in get_args(Framing):
        return f"its framing is {info.framing!r}, expected one of {', '.join(get_args(Framing))}"
    return ""


def wrong_number(info: DataInfo) -> str:
    """Which number of a data set can't be used and why; empty if all can."""
    lengths = info.image_shape
    if (
        len(lengths) != 3
        or not all(type(length) is int and 0 < length <= MAX_LENGTH for length in lengths)
        or math.prod(lengths) > MAX_VALUES
    ):
        return (
            f"its image shape is {lengths}, expected channels, height and width of up to {MAX_LENGTH:,} each and "
            f"{MAX_VALUES:,} values in all"
        )
    if not 0 < len(info.classes) <= MAX_CLASSES:
        return f"it has {len(info.classes):,} classes, expected 1 to {MAX_CLASSES:,}"
    if type(info.stand_in) is not bool:
        return f"whether it is a stand-in is {info.stand_in!r}, expected True or False"
    if wrong := [value for value in info.published.values() if not isinstance(value, int | float)]:
        return f"it has the published result {wrong[0]!r}, expected a number"
    return ""


def difference(before: DataInfo, now: DataInfo) -> str:
    """What makes `now` another data set than `before`, for a message; empty if nothing does. Titles may differ."""
    if now.name != before.name:
        return f"the data set {now.name} instead of {before.name}"
    if now.classes != before.classes:
        return f"class names {', '.join(now.classes)} instead of {', '.join(before.classes)}"
    if now.image_shape != before.image_shape:
        return f"image shape {now.image_shape} instead of {before.image_shape}"
    return ""


def no_preparation() -> None:
    """For data sets that need no download."""


@dataclass(frozen=True, kw_only=True)
class DataSource(DataInfo):
    """A data set that can be loaded. To add one: a file in data/sets/ and a line in `SOURCES` of `cli/types.py`."""

    load: Callable[[Part], Split]
    """Load the images of a part. Raises DataError if a file is missing or damaged."""
    prepare: Callable[[], None] = no_preparation
    """Download or decode what is missing; called once per machine, before `load`."""
    parts: tuple[Part, ...] = ("train", "test")
    """The parts that the data set has. Without val, the validation split is taken from train."""
    test_fraction: float | None = None
    """Fraction of the images that became the test set, for a data set that came without one."""
    test_digest: Callable[[], str] | None = None
    """For such a data set: a digest that changes with the images of the test set."""


def check_classes(classes: tuple[str, ...], folder: Path) -> None:
    """Raise DataError unless there are two classes or more, with different names that can be printed."""
    problem = ""
    if unusable := [name for name in classes if not name.strip() or not name.isprintable()]:
        problem = f"the class name {unusable[0]!r} can't be printed"
    elif len(classes) < 2:
        problem = f"it has the class {classes[0]} alone, expected two or more" if classes else "it has no classes"
    elif repeated := sorted({name for name in classes if classes.count(name) > 1}):
        problem = f"several classes have the name {repeated[0]}"
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
