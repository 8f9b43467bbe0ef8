"""A training with more data or another batch size.

Usage: python benchmarks/growth.py COPIES BATCH_SIZE DATASET DATA_DIR LOG_DIR EPOCHS

It is scripts/train.py's own training, with the training set and its validation split repeated COPIES times.
"""

import sys
from typing import Any, cast

from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.source import Part, Split
from fmnist_lightning.runs.options import DataOptions, TrainOptions, values_of
from fmnist_lightning.training.train import train


class Copies(FashionMNISTDataModule):
    """The data set `copies` times over."""

    copies = 1

    def load(self, part: Part) -> Split:
        images, labels = super().load(part)
        return Split(images.repeat(self.copies, 1, 1, 1), labels.repeat(self.copies))


def main(copies: int, batch_size: int, dataset: str, data_dir: str, log_dir: str, epochs: int) -> None:
    options = TrainOptions(
        dataset=cast(Any, dataset),
        data_dir=data_dir,
        log_dir=log_dir,
        batch_size=batch_size,
        max_epochs=epochs,
        test=False,
    )
    datamodule = Copies(**values_of(options, DataOptions))
    datamodule.copies = copies
    train(options, datamodule=datamodule)


if __name__ == "__main__":
    copies, batch_size, dataset, data_dir, log_dir, epochs = sys.argv[1:]
    main(int(copies), int(batch_size), dataset, data_dir, log_dir, int(epochs))
