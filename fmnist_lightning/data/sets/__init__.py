"""The data sets. Each has a file of its own here, and a line in `SOURCES` of cli/types.py."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmnist_lightning.cli.shell import named
from fmnist_lightning.cli.types import SOURCES
from fmnist_lightning.data.sets.download import ensure_files
from fmnist_lightning.data.sets.drawn import DRAWN
from fmnist_lightning.data.sets.fashion_mnist import FASHION_MNIST
from fmnist_lightning.data.source import DataError, DataInfo, DataSource, OtherDataError
from fmnist_lightning.runs.options import SourceOptions

# Records of older versions name them and describe no data set.
KNOWN: dict[str, DataInfo] = {info.name: info for info in (FASHION_MNIST, DRAWN)}

DRAWN_NOTICE = """
******************************************************************************
*  NOT FASHION-MNIST: this run uses the drawn stand-in (--dataset drawn).    *
*  Its metrics show that everything works, and say nothing about the data.   *
******************************************************************************"""


def find_source(options: SourceOptions) -> DataSource:
    """The data set that the options name.

    Raises ValueError for an unknown name, DataError if the options don't suit it or its files can't be used.
    """
    if options.dataset not in SOURCES:
        raise ValueError(
            f"cannot use dataset {options.dataset!r}: expected one of {', '.join(SOURCES)} "
            "(auto is for the commands; in Python, name one)"
        )
    try:
        return named(SOURCES[options.dataset])(options)
    except ValueError as error:  # of DataInfo, about the shape of images, say
        raise DataError(str(error)) from error


def recorded_info(record: Mapping[str, Any]) -> DataInfo:
    """The data set of a metrics.json, a checkpoint or a card: its `data`, or in an older one its `dataset`.

    Raises KeyError, TypeError or ValueError if it describes none.
    """
    return DataInfo.from_plain(record["data"]) if "data" in record else KNOWN[record["dataset"]]


def resolve_dataset(dataset: str, data_dir: Path) -> str:
    """Turn `auto` into `fashion_mnist` if its files are here or can be downloaded, else, with a notice, `drawn`.

    Raises OtherDataError if the folder holds another data set.
    """
    if dataset != "auto":
        return dataset
    try:
        ensure_files(data_dir)
    except OtherDataError:
        raise
    except DataError as error:
        print(f"{error}\n{DRAWN_NOTICE}", file=sys.stderr)
        return "drawn"
    return "fashion_mnist"
