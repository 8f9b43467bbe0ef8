"""The data sets by name: their titles, and how their images are loaded."""

import sys
from pathlib import Path

from fmnist_lightning.data.download import ensure_files
from fmnist_lightning.data.drawn import load_drawn
from fmnist_lightning.data.fashion_mnist import DataError, Split, load_split

TITLES = {"fashion_mnist": "Fashion-MNIST", "drawn": "DRAWN STAND-IN, not Fashion-MNIST"}

DRAWN_NOTICE = """
******************************************************************************
*  NOT FASHION-MNIST: this run uses the drawn stand-in (--dataset drawn).    *
*  Its metrics show that everything works, and say nothing about the data.   *
******************************************************************************"""


def resolve_dataset(dataset: str, data_dir: Path) -> str:
    """Turn `auto` into `fashion_mnist` if its files are here or can be downloaded, else, with a notice, `drawn`."""
    if dataset != "auto":
        return dataset
    try:
        ensure_files(data_dir)
    except DataError as error:
        print(f"{error}\n{DRAWN_NOTICE}", file=sys.stderr)
        return "drawn"
    return "fashion_mnist"


def load_images(dataset: str, data_dir: Path, *, train: bool) -> Split:
    """The training or the test set of a data set. Raises DataError if a file is missing or damaged."""
    return load_drawn(train=train) if dataset == "drawn" else load_split(data_dir, train=train)
