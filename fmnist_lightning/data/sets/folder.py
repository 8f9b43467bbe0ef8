"""A folder of pictures as a data set, by the convention of torchvision's ImageFolder.

    PICTURES/CLASS/FILE        or PICTURES/train/CLASS/FILE, with test and val beside train

The classes are the names of the class folders, sorted. What lies in folders inside a class folder belongs to the class.
Names that begin with a dot are ignored, and so are files without a suffix of a picture.

Without a test folder, a fixed fraction of each class becomes the test set. Nothing looks for near copies: if
pictures of one object are in both sets, the metrics are too good. Pictures that are added later can move others from
training to test. A later test then warns, since runs record a digest of the test pictures' names.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from fmnist_lightning.data.decoded import load_decoded
from fmnist_lightning.data.pictures import SUFFIXES
from fmnist_lightning.data.source import SPLIT_SEED, DataError, DataSource, Part, Split, check_classes
from fmnist_lightning.errors import missing, printable
from fmnist_lightning.runs.options import SourceOptions

IMAGE_SIZE = 28  # pixels, height and width
CHANNELS = 3
# Without a test folder: the fraction of each class's pictures that become the test set.
TEST_FRACTION = 0.2
CACHE = ".fmnist_cache"
LISTED = 50  # unreadable pictures at most
PARTS: tuple[Part, ...] = ("train", "val", "test")


def folder_source(options: SourceOptions) -> DataSource:
    """Raises DataError if the folders are not laid out as above."""
    options.refuse("classes")
    folder = Path(options.data_dir)
    parts = find_parts(folder)
    classes = find_classes(parts)
    size = options.image_size or IMAGE_SIZE
    image_shape = (options.channels or CHANNELS, size, size)
    pictures = PictureFolder(folder, parts, classes, image_shape, options.skip_unreadable)
    return DataSource(
        name="folder",
        title=printable(folder.resolve().name),
        classes=classes,
        image_shape=image_shape,
        load=pictures.load,
        prepare=pictures.prepare,
        parts=PARTS if "val" in parts else ("train", "test"),
        test_fraction=None if "test" in parts else TEST_FRACTION,
        test_digest=None if "test" in parts else pictures.test_digest,
    )


def find_parts(folder: Path) -> dict[Part, Path]:
    """The folder of each part; that of train is `folder` itself if it holds the class folders.

    Raises DataError if it is unclear which of both it is, or `folder` can't be read.
    """
    found = names_in(folder, folders=True)
    in_parts = set(found) <= set(PARTS)
    if found and in_parts and "train" not in found:
        raise DataError(f"cannot use {folder}: beside {' and '.join(found)} it needs the folder train")
    # A class may be named train, too; then its folder holds pictures.
    if not found or not (in_parts or ("train" in found and names_in(folder / "train", folders=True))):
        return {"train": folder}
    if others := [name for name in found if name not in PARTS]:
        raise DataError(
            f"cannot use {folder}: {printable(others[0])} is neither train, val nor test (move that folder away)"
        )
    return {part: folder / part for part in PARTS if part in found}


def find_classes(parts: dict[Part, Path]) -> tuple[str, ...]:
    """The class names, the same in all parts. Raises DataError if they differ, or pictures lie beside their folders."""
    classes = names_in(parts["train"], folders=True)
    for part, path in parts.items():
        if loose := names_in(path, folders=False):
            raise DataError(
                f"cannot use {path}: {printable(loose[0])} lies in no class folder (each class has a folder of its own)"
            )
        if differing := sorted(set(classes) ^ set(names_in(path, folders=True))):
            raise DataError(
                f"cannot use {path.parent}: only one of train and {part} has the class {printable(differing[0])}"
            )
    check_classes(tuple(classes), parts["train"])
    return tuple(classes)


def names_in(folder: Path, *, folders: bool) -> list[str]:
    """Sorted names of the folders in `folder`, or of the pictures. Raises DataError if it can't be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir() == folders and (folders or is_picture(entry.name))
            )
    except OSError as error:
        raise_unreadable(error)


def raise_unreadable(error: OSError) -> NoReturn:
    reason = missing(error.filename) if isinstance(error, FileNotFoundError) else error.strerror
    raise DataError(
        f"cannot read {printable(str(error.filename))}: {reason} (name the folder of the pictures with --data_dir)"
    ) from error


def is_picture(name: str) -> bool:
    return not name.startswith(".") and PurePath(name).suffix.lower() in SUFFIXES


def pictures_in(folder: Path) -> Iterator[Path]:
    """The pictures in a folder and in the folders inside it. Raises DataError if one can't be read."""
    seen = set()
    for parent, folders, names in os.walk(folder, onerror=raise_unreadable, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # a link back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in names if is_picture(name))


class Pictures(NamedTuple):
    """The readable pictures of one folder, in the order of classes and names."""

    images: Tensor  # (n, C, H, W) uint8
    labels: Tensor  # (n,) int64
    names: list[str]  # CLASS/FILE
    faults: list[str]  # of unreadable pictures: the path and why


class PictureFolder:
    """Loads the pictures of a data set by part."""

    def __init__(
        self,
        folder: Path,
        parts: dict[Part, Path],
        classes: tuple[str, ...],
        image_shape: tuple[int, int, int],
        skip_unreadable: bool,
    ) -> None:
        self.folder = folder
        self.parts = parts
        self.classes = classes
        self.image_shape = image_shape
        self.skip_unreadable = skip_unreadable
        self.uncached: dict[Part, Pictures] = {}
        self.digest = ""  # of the test pictures, once they are chosen

    def prepare(self) -> None:
        """Decode what no cache holds. Raises DataError, or only prints, if pictures can't be read."""
        if message := self.explain_faults([self.read(part) for part in self.parts]):
            print(f"left out: {message}", file=sys.stderr)

    def load(self, part: Part) -> Split:
        """The pictures of a part. Raises DataError if some can't be read and --skip_unreadable is false."""
        pictures = self.read(part if part in self.parts else "train")
        self.explain_faults([pictures])
        images, labels, names, _ = pictures
        if part == "val" or "test" in self.parts:
            return Split(images, labels)
        chosen = choose_test(names, labels, self.classes)
        self.digest = digest_of_names([names[index] for index in chosen.nonzero().flatten().tolist()])
        if part != "test":
            chosen = ~chosen
        return Split(images[chosen], labels[chosen])

    def test_digest(self) -> str:
        """The SHA-256 of the names of the test pictures, for a folder without a test folder."""
        if not self.digest:
            self.load("test")
        return self.digest

    def explain_faults(self, parts: Sequence["Pictures"]) -> str:
        """A list of the unreadable pictures, if any. Raises DataError with it unless --skip_unreadable is true."""
        faults = [fault for pictures in parts for fault in pictures.faults]
        if not faults:
            return ""
        total = len(faults) + sum(len(pictures.names) for pictures in parts)
        listed = "".join(f"\n  {printable(fault)}" for fault in faults[:LISTED])
        more = f"\n  and {len(faults) - LISTED:,} more" if len(faults) > LISTED else ""
        message = f"cannot read {len(faults):,} of {total:,} pictures in {self.folder}"
        if not self.skip_unreadable:
            raise DataError(f"{message} (repair them, or use --skip_unreadable true):{listed}{more}")
        return f"{message}:{listed}{more}"

    def read(self, part: Part) -> Pictures:
        """The pictures of a part's folder. Raises DataError if a class has none."""
        if part in self.uncached:
            return self.uncached[part]
        path = self.parts[part]
        names: list[str] = []
        counts = []
        for name in self.classes:
            found = sorted(file.relative_to(path).as_posix() for file in pictures_in(path / name))
            if not found:
                raise DataError(f"cannot use the class folder {path / name}: it holds no pictures")
            names += found
            counts.append(len(found))
        channels, height, width = self.image_shape
        stem = "all" if path == self.folder else part
        cache = self.folder / CACHE / f"{stem}-{height}x{width}x{channels}.safetensors"
        decoded, cached = load_decoded(path, names, self.image_shape, cache)
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[decoded.positions]
        lacking = sorted(set(range(len(counts))) - set(labels.tolist()))
        if lacking and self.skip_unreadable:
            raise DataError(
                f"cannot use the class folder {path / self.classes[lacking[0]]}: no picture in it can be read"
            )
        faults = [f"{path / name} {reason}" for name, reason in decoded.faults.items()]
        pictures = Pictures(decoded.images, labels, [names[index] for index in decoded.positions.tolist()], faults)
        if not cached:
            self.uncached[part] = pictures
        return pictures


def choose_test(names: Sequence[str], labels: Tensor, classes: Sequence[str]) -> Tensor:
    """Which pictures are the test set, (n,) bool: TEST_FRACTION of each class, at least one.

    A digest of each name decides. Then a picture that is added or removed moves at most one other picture of its class
    into the test set or out of it. Raises DataError if a class has one picture alone.
    """
    ranks = torch.tensor([digest_of(name) for name in names])
    chosen = torch.zeros(len(names), dtype=torch.bool)
    for label, name in enumerate(classes):
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            raise DataError(f"cannot divide the class {name} into training and test set: it has one picture")
        count = max(1, round(TEST_FRACTION * len(members)))
        chosen[members[ranks[members].argsort()[:count]]] = True
    return chosen


def digest_of_names(names: Sequence[str]) -> str:
    return hashlib.sha256(b"\0".join(map(os.fsencode, sorted(names)))).hexdigest()


def digest_of(name: str) -> int:
    """63 bits of a digest."""
    digest = hashlib.sha256(f"{SPLIT_SEED}/".encode() + os.fsencode(name)).digest()
    return int.from_bytes(digest[:8], "big") >> 1
