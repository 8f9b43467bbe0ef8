"""The data sets by name. Each has a file of its own, and a line in `SOURCES`."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fmnist_lightning.data.sets.download import ensure_files, fashion_mnist_source
from fmnist_lightning.data.sets.drawn import DRAWN, drawn_source
from fmnist_lightning.data.sets.fashion_mnist import FASHION_MNIST
from fmnist_lightning.data.sets.folder import folder_source
from fmnist_lightning.data.sets.idx_files import idx_source
from fmnist_lightning.data.sets.torchvision_sets import (
    EMNIST_LETTERS,
    KMNIST,
    MNIST,
    emnist_letters_source,
    kmnist_source,
    mnist_source,
)
from fmnist_lightning.data.source import DataError, DataInfo, DataSource, Part, Split
from fmnist_lightning.runs.options import SourceOptions

SOURCES: dict[str, Callable[[SourceOptions], DataSource]] = {
    "fashion_mnist": fashion_mnist_source,
    "drawn": drawn_source,
    "folder": folder_source,
    "idx": idx_source,
    "mnist": mnist_source,
    "kmnist": kmnist_source,
    "emnist_letters": emnist_letters_source,
}
# What is known of a data set without its files.
KNOWN: dict[str, DataInfo] = {info.name: info for info in (FASHION_MNIST, DRAWN, MNIST, KMNIST, EMNIST_LETTERS)}
TITLES = {name: info.title for name, info in KNOWN.items()}

DRAWN_NOTICE = """
******************************************************************************
*  NOT FASHION-MNIST: this run uses the drawn stand-in (--dataset drawn).    *
*  Its metrics show that everything works, and say nothing about the data.   *
******************************************************************************"""


def find_source(options: SourceOptions) -> DataSource:
    """The data set that the options name.

    Raises ValueError for an unknown name, DataError if the options don't suit it or its files can't be read.
    """
    if options.dataset not in SOURCES:
        raise ValueError(
            f"cannot use dataset {options.dataset!r}: expected one of {', '.join(SOURCES)} "
            "(resolve_dataset resolves auto)"
        )
    return SOURCES[options.dataset](options)


def recorded_info(record: Mapping[str, Any]) -> DataInfo:
    """The data set of a metrics.json, a checkpoint or a card: its `data`, or in an older one its `dataset`.

    Raises KeyError, TypeError or ValueError if it names none.
    """
    return DataInfo.from_plain(record["data"]) if "data" in record else KNOWN[record["dataset"]]


def load_images(dataset: str, data_dir: Path, part: Part) -> Split:
    return find_source(SourceOptions(dataset=dataset, data_dir=str(data_dir))).load(part)  # type: ignore[arg-type]


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
