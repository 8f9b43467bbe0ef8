"""A training with more data or another batch size.

Usage: python benchmarks/growth.py COPIES BATCH_SIZE DATASET DATA_DIR LOG_DIR EPOCHS

It is scripts/train.py's own, with the training set and its validation cut COPIES times over.
"""

import sys

from fmnist_lightning.data import datamodule
from fmnist_lightning.data.fashion_mnist import Split
from fmnist_lightning.training.train import train


def main(copies: int, batch_size: int, dataset: str, data_dir: str, log_dir: str, epochs: int) -> None:
    class Copies(datamodule.FashionMNISTDataModule):
        def load(self, *, train: bool) -> Split:
            images, labels = super().load(train=train)
            return Split(images.repeat(copies, 1, 1, 1), labels.repeat(copies))

    datamodule.FashionMNISTDataModule = Copies  # type: ignore[misc]
    options = {"dataset": dataset, "data_dir": data_dir, "log_dir": log_dir, "batch_size": batch_size}
    train(**options, max_epochs=epochs, test=False)  # type: ignore[arg-type]


if __name__ == "__main__":
    copies, batch_size, dataset, data_dir, log_dir, epochs = sys.argv[1:]
    main(int(copies), int(batch_size), dataset, data_dir, log_dir, int(epochs))
