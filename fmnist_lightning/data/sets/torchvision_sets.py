"""MNIST, KMNIST and EMNIST Letters, in torchvision's own layout: DATA_DIR/MNIST/raw and so on.

torchvision downloads them and checks its digests. Later uses verify that files are whole, but not their values:
torchvision has no digests of unpacked files.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fmnist_lightning.data.sets.download import STAGING_PREFIX, download_fault, exclusive, proxy_notice, socket_timeout
from fmnist_lightning.data.sets.idx_files import AXES, find_file, load_part
from fmnist_lightning.data.source import DataError, DataInfo, DataSource, Part, Split
from fmnist_lightning.errors import WriteError, full_path
from fmnist_lightning.runs.files import fsync_and_rename
from fmnist_lightning.runs.options import SourceOptions

MNIST = DataInfo(name="mnist", title="MNIST", classes=tuple("0123456789"), image_shape=(1, 28, 28))
KMNIST = DataInfo(
    name="kmnist",
    title="KMNIST",
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    image_shape=(1, 28, 28),
)
EMNIST_LETTERS = DataInfo(
    name="emnist_letters",
    title="EMNIST Letters",
    classes=tuple("abcdefghijklmnopqrstuvwxyz"),  # each is both upper and lower case
    image_shape=(1, 28, 28),
)
LETTERS = ("emnist-letters-train", "emnist-letters-test")  # beginnings of the names of its files


def mnist_source(options: SourceOptions) -> DataSource:
    return torchvision_source(options, MNIST, "MNIST")


def kmnist_source(options: SourceOptions) -> DataSource:
    return torchvision_source(options, KMNIST, "KMNIST")


def emnist_letters_source(options: SourceOptions) -> DataSource:
    source = torchvision_source(options, EMNIST_LETTERS, "EMNIST", LETTERS, split="letters")
    return replace(source, load=partial(load_letters, source.load))


def load_letters(load: Callable[[Part], Split], part: Part) -> Split:
    """Letters, which are stored transposed and with the labels 1 to 26."""
    images, labels = load(part)
    return Split(images.transpose(2, 3).contiguous(), labels - 1)


def torchvision_source(
    options: SourceOptions, info: DataInfo, kind: str, prefixes: tuple[str, str] = ("train", "t10k"), **arguments: Any
) -> DataSource:
    """The data set of torchvision's class `kind`, which takes `arguments`; `prefixes` begin the names of its files."""
    options.refuse("image_size", "channels", "classes", "skip_unreadable")
    raw = Path(options.data_dir, kind, "raw")
    return DataSource(
        **vars(info),
        load=partial(load_part, raw, prefixes=prefixes),
        prepare=partial(ensure_downloaded, raw, info.title, kind, prefixes, arguments),
    )


def ensure_downloaded(raw: Path, title: str, kind: str, prefixes: tuple[str, str], arguments: dict[str, Any]) -> None:
    """Let torchvision download the files if one is missing. Raises DataError if it can't, or `raw` can't be written."""
    names = [f"{prefix}-{part}" for prefix in prefixes for part in AXES]
    if not (problem := missing(raw, names)):
        return
    # Not at the top: it takes 2 seconds, and predict and report import this module for the titles of the data sets.
    from torchvision import datasets

    try:
        with exclusive(raw), TemporaryDirectory(prefix=STAGING_PREFIX, dir=raw) as staging, socket_timeout():
            # Checked again: another process may have downloaded them meanwhile.
            if not missing(raw, names):
                return
            print(f"{problem} (downloading {title} by torchvision)", file=sys.stderr)
            try:
                getattr(datasets, kind)(staging, download=True, **arguments)
            except Exception as error:
                reason = download_fault(error)
                raise DataError(
                    f"cannot download {title} into {full_path(raw)}{proxy_notice()}: {reason} (connect to the network, "
                    f"or name a folder that holds {kind}/raw with --data_dir)"
                ) from error
            for name in names:
                if missing(raw, [name]):
                    path, _ = find_file(Path(staging, kind, "raw"), name)
                    fsync_and_rename(path, raw / path.name)
    except OSError as error:
        raise WriteError(raw, error) from error


def missing(raw: Path, names: list[str]) -> str:
    """Which of the files is missing, as a sentence; empty if none is."""
    try:
        for name in names:
            find_file(raw, name)
    except DataError as error:
        return str(error)
    return ""
