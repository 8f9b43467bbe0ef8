"""The LightningDataModule: which data, which split, which batches."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from textwrap import shorten
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fmnist_lightning.cli.types import default_data_dir
from fmnist_lightning.data.augment import augment, mix
from fmnist_lightning.data.batches import Batch, Batches
from fmnist_lightning.data.sets import find_source
from fmnist_lightning.data.source import SPLIT_SEED, DataError, DataSource, Part, Split, check_split
from fmnist_lightning.runs.options import SourceOptions


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted indices of a larger and a smaller part. The smaller one has `fraction` of each class.

    Raises DataError if a part would be empty.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        chosen.append(shuffled[: round(len(members) * fraction)])
    smaller = torch.cat(chosen).sort().values
    larger = torch.ones(len(labels), dtype=torch.bool).index_fill(0, smaller, False).nonzero().flatten()
    if not len(smaller) or not len(larger):
        raise DataError(
            f"cannot split {len(labels):,} images: a fraction of {fraction} leaves one part empty (choose another)"
        )
    return larger, smaller


class FashionMNISTDataModule(L.LightningDataModule):
    """A data set in `Batches` from one uint8 tensor on the device: Fashion-MNIST, or any other `DataSource`.

    The loaders also work without a Trainer, and without a call of `prepare_data` or `setup`. Those of training
    augment. A Trainer of several devices needs `datamodule=`, so that each device has its own shard of a batch. Only
    the loaders of test and prediction read the test set.

    Args:
        dataset: A name that `--dataset` takes, other than auto, or a `DataSource` of your own.
        data_dir: Folder of the data. Default: the environment variable FMNIST_DATA_DIR, else `data`.
        image_size: Height and width in pixels that the pictures of a folder are scaled to. Default: 28.
        channels: 1 makes the pictures of a folder gray, 3 keeps colors. Default: 3.
        classes: Class names of IDX files, by label. Default: the lines of classes.txt in the folder, else the labels.
        skip_unreadable: List the pictures of a folder that can't be read, and leave them out. With False, they raise
            DataError.
        batch_size: Images per step, over all devices.
        val_fraction: Fraction of the training set, balanced by class, that becomes the validation split; 0 makes
            none. A data set with a validation part of its own keeps that.
        seed: Seed of the order of training images. The validation split doesn't depend on it.
        flip: Flip half of the training images left to right, at random in each epoch.
        shift: Move each training image by up to this many pixels on each axis.
        erase: Fraction of the training images that lose a black rectangle.
        mixup: Alpha of mixup, which blends each training image and its label with another one of the batch. 0 for none.
    """

    def __init__(
        self,
        dataset: str | DataSource = "fashion_mnist",
        data_dir: str | None = None,
        image_size: int | None = None,
        channels: int | None = None,
        classes: Sequence[str] | None = None,
        skip_unreadable: bool = False,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        seed: int = 0,
        flip: bool = False,
        shift: int = 0,
        erase: float = 0.0,
        mixup: float = 0.0,
    ) -> None:
        super().__init__()
        given = dataset if isinstance(dataset, DataSource) else None
        dataset = given.name if given else str(dataset)
        # Plain values, which a checkpoint holds.
        data_dir = str(data_dir or default_data_dir())
        classes = None if classes is None else list(classes)
        self.save_hyperparameters()
        self.source = given or find_source(
            SourceOptions(
                dataset=dataset,
                data_dir=data_dir,
                image_size=image_size,
                channels=channels,  # type: ignore[arg-type]
                classes=classes if classes is None else tuple(classes),
                skip_unreadable=skip_unreadable,
            )
        )
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0), ("shift", shift, 0)):
            check_number(name, value, Integral, f"an integer from {least}", least)
        check_number("val_fraction", val_fraction, Real, "a number from 0 to below 1", below=1)
        check_number("erase", erase, Real, "a number from 0 to 1", most=1)
        check_number("mixup", mixup, Real, "a number from 0")
        _, height, width = self.source.image_shape
        if shift >= min(height, width):
            raise DataError(f"cannot shift images of {height} x {width} by {shift} pixels: nothing of them would stay")
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.seed = seed
        self.augmentation = (flip, shift, erase)
        self.mixup = mixup
        self.prepared = False
        self.splits: dict[str, Split] = {}

    @property
    def validates(self) -> bool:
        """Whether there is a validation split."""
        return "val" in self.source.parts or self.val_fraction > 0

    @property
    def split_record(self) -> dict[str, Any]:
        """How the images were divided, in plain values; `fraction` is that of the validation split.

        `test_sha256` identifies the test images of a data set that came without a test set.
        """
        return {
            "parts": list(self.source.parts),
            "fraction": 0.0 if "val" in self.source.parts else self.val_fraction,
            "test_fraction": self.source.test_fraction,
            "seed": SPLIT_SEED,
            **({"test_sha256": self.source.test_digest()} if self.source.test_digest else {}),
        }

    def prepare_data(self) -> None:
        """Download or decode what is missing, once: Lightning calls this before training and again before the test."""
        if not self.prepared:
            self.source.prepare()
            self.prepared = True

    def setup(self, stage: str | None = None) -> None:
        """Load what `stage` needs: `fit`, `validate`, `test` or `predict`; by default, everything."""
        if stage in ("fit", "validate", None) and "train" not in self.splits:
            self.splits |= self.load_training()
        if stage in ("test", "predict", None):
            self.splits["test"] = self.load_checked("test")

    def load_training(self) -> dict[str, Split]:
        whole = self.load_checked("train")
        if "val" in self.source.parts:
            return {"train": whole, "val": self.load_checked("val")}
        if not self.val_fraction:
            return {"train": whole}
        parts = stratified_split(whole.labels, self.val_fraction, SPLIT_SEED)
        train, val = (Split(whole.images[indices], whole.labels[indices]) for indices in parts)
        counts = [split.labels.bincount(minlength=len(self.source.classes)) for split in (whole, val)]
        if lacking := [self.source.classes[label] for label in ((counts[0] > 0) & (counts[1] == 0)).nonzero()]:
            rank_zero_warn(
                f"The validation split has no image of {shorten(', '.join(lacking), 100)}: too few images for a "
                f"val_fraction of {self.val_fraction}"
            )
        return {"train": train, "val": val}

    def load_checked(self, part: Part) -> Split:
        split = self.load(part)
        check_split(split, self.source)
        return split

    def load(self, part: Part) -> Split:
        """Read a part of the data set. Override it to use other images."""
        return self.source.load(part)

    def train_dataloader(self) -> Batches:
        return self.batches("train", self.seed)

    def val_dataloader(self) -> Batches | list[Batches]:
        return self.batches("val") if self.validates else []

    def test_dataloader(self) -> Batches:
        return self.batches("test")

    def predict_dataloader(self) -> Batches:
        """The test images, in file order."""
        return self.batches("test")

    def batches(self, name: str, seed: int | None = None) -> Batches:
        """This rank's shards of the batches of split `name`, which moves to the trainer's device once."""
        if name not in self.splits:
            self.prepare_data()
            self.setup("test" if name == "test" else "fit")
        augment = None if seed is None else self.augment_batch
        if self.trainer is None:
            return Batches(self.splits[name], self.batch_size, seed=seed, augment=augment)
        device, rank, ranks = self.trainer.strategy.root_device, self.trainer.global_rank, self.trainer.world_size
        self.splits[name] = Split(*(tensor.to(device) for tensor in self.splits[name]))
        return Batches(self.splits[name], self.batch_size, seed=seed, augment=augment, rank=rank, world_size=ranks)

    def check_divisible(self, world_size: int) -> None:
        """Raise DataError if a batch of training or validation has fewer images than there are ranks."""
        for name, split in self.splits.items():
            Batches(split, self.batch_size, seed=self.seed if name == "train" else None, world_size=world_size)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave a `Batch` where it is: it is on the device, and Lightning's recursive move would cost time."""
        return batch if isinstance(batch, Batch) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def augment_batch(self, batch: Batch) -> Batch:
        """Augment a training batch, with torch's global generator."""
        images = augment(batch.images, *self.augmentation)
        if not self.mixup:
            return batch._replace(images=images)
        images, targets = mix(images, batch.labels, len(self.source.classes), self.mixup)
        return batch._replace(images=images, labels=targets.argmax(dim=1), targets=targets)


def check_number(
    name: str, value: Any, kind: Any, expected: str, least: float = 0, below: float = math.inf, most: float = math.inf
) -> None:
    """Raise DataError unless `value` is of a kind and within limits."""
    if not (isinstance(value, kind) and least <= value < below and value <= most):
        raise DataError(f"cannot use {name} {value!r}: expected {expected}")
