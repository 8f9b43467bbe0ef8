"""Any four IDX files as a data set, under the usual names: train-images-idx3-ubyte, t10k-labels.idx1-ubyte.gz, ...

The class names are those of `--classes`, else the lines of classes.txt in the folder, else the labels themselves.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch

from fmnist_lightning.data.idx import IdxError, absence, find_spellings, header_shape, read_values
from fmnist_lightning.data.source import DataError, DataSource, Part, Split, check_classes
from fmnist_lightning.errors import printable
from fmnist_lightning.runs.options import SourceOptions

CLASSES_FILE = "classes.txt"  # one name a line, in UTF-8
AXES = {"images": 3, "labels": 1}
Result = TypeVar("Result")


def idx_source(options: SourceOptions) -> DataSource:
    """Raises DataError if files are missing or damaged, or don't fit the class names."""
    options.refuse("image_size", "channels", "skip_unreadable")
    folder = Path(options.data_dir)
    _, height, width = open_file(folder, "train-images", header_shape)
    classes = options.classes or listed_classes(folder) or numbered_classes(folder)
    check_classes(classes, folder)
    return DataSource(
        name="idx",
        title=printable(folder.resolve().name),
        classes=classes,
        image_shape=(1, height, width),
        load=partial(load_part, folder),
    )


def open_file(folder: Path, name: str, read: Callable[[BinaryIO, int], Result]) -> Result:
    """What `read` makes of a file, such as train-images. Raises DataError if it is missing, unreadable or damaged."""
    try:
        path, axes = find_file(folder, name)
    except DataError as error:
        raise DataError(f"{error} (name the folder of the files with --data_dir)") from error
    try:
        with path.open("rb") as file:
            return read(file, axes)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except IdxError as error:
        raise DataError(f"cannot use {path}: it {error}") from error


def find_file(folder: Path, name: str) -> tuple[Path, int]:
    """A file, whose name is spelled in several ways, and its number of axes. Raises DataError if there is none."""
    axes = AXES[name.rpartition("-")[2]]
    full = f"{name}-idx{axes}-ubyte"
    for path in find_spellings(folder, full):
        return path, axes
    raise DataError(absence(folder, full))


def listed_classes(folder: Path) -> tuple[str, ...]:
    """The names in classes.txt, none if there is no such file. Raises DataError if it can't be read."""
    path = folder / CLASSES_FILE
    if not path.exists():
        return ()
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").strip().splitlines())
    except (OSError, UnicodeError) as error:
        raise DataError(f"cannot read {path}: {error} (write one class name a line, in UTF-8)") from error


def numbered_classes(folder: Path) -> tuple[str, ...]:
    """The labels of the training images as names. Raises DataError if they are not 0, 1 and so on without a gap."""
    found = open_file(folder, "train-labels", read_values).unique().tolist()
    if found != list(range(len(found))):
        raise DataError(
            f"cannot name the classes of {folder}: its labels are {', '.join(map(str, found))}, expected 0 to "
            f"{len(found) - 1} (name each label from 0 with --classes, or in {CLASSES_FILE})"
        )
    return tuple(map(str, found))


def load_part(folder: Path, part: Part, prefixes: Sequence[str] = ("train", "t10k")) -> Split:
    """The training set or the test set. Raises DataError if files are missing, damaged or don't fit each other."""
    prefix = prefixes[part == "test"]
    images, labels = (open_file(folder, f"{prefix}-{kind}", read_values) for kind in AXES)
    if len(images) != len(labels):
        raise DataError(
            f"cannot use {folder}: its {prefix} files hold {len(images):,} images and {len(labels):,} labels"
        )
    return Split(images.unsqueeze(1), labels.to(torch.int64))
