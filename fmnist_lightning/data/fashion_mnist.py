"""Fashion-MNIST's four files: found, checked against their digests each time, and read into tensors.

Labels: 0 T-shirt/top, 1 Trouser, 2 Pullover, 3 Dress, 4 Coat, 5 Sandal, 6 Shirt, 7 Sneaker, 8 Bag, 9 Ankle boot.
Source and licence (MIT): https://github.com/zalandoresearch/fashion-mnist
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fmnist_lightning.data.idx import read_tensor
from fmnist_lightning.errors import UserError

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
IMAGE_SIZE = 28  # pixels, height and width


class FileSpec(NamedTuple):
    """What an unpacked file must be."""

    size: int  # bytes
    sha256: str


# torchvision only looks whether the unpacked files exist, so that a truncated or swapped one passes there.
FILES = {
    "train-images-idx3-ubyte": FileSpec(47040016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    "train-labels-idx1-ubyte": FileSpec(60008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    "t10k-images-idx3-ubyte": FileSpec(7840016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    "t10k-labels-idx1-ubyte": FileSpec(10008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}
TORCHVISION_FOLDER = Path("FashionMNIST", "raw")


class Split(NamedTuple):
    """Images with their labels, in file order."""

    images: Tensor  # (n, 1, 28, 28) uint8
    labels: Tensor  # (n,) int64


class DataError(UserError):
    """The data is missing or is not Fashion-MNIST."""


def candidates(data_dir: Path, name: str) -> Iterator[Path]:
    """Where a file may lie: torchvision's layout or the folder itself, unpacked or packed."""
    for folder in (data_dir / TORCHVISION_FOLDER, data_dir):
        yield folder / name
        yield folder / f"{name}.gz"


def read_checked(path: Path, name: str) -> bytes:
    """The unpacked content of the file at `path`, which must be `name`'s to the bit.

    Raises DataError where it is not. At most one byte more than expected is unpacked, so a gzip bomb stays small.
    """
    expected = FILES[name]
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(expected.size + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be unpacked ({error}): it is damaged or no gzip file") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    if len(content) != expected.size:
        found = f"more than {expected.size:,}" if len(content) > expected.size else f"{len(content):,}"
        raise DataError(f"{path} holds {found} bytes; expected {expected.size:,}")
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected.sha256:
        raise DataError(
            f"{path} has the right size but other content: it is damaged or another data set's "
            f"(SHA-256 {digest[:12]}..., expected {expected.sha256[:12]}...)"
        )
    return content


def find_content(data_dir: Path, name: str) -> tuple[bytes | None, list[DataError]]:
    """The content of the first good candidate, if any, and what is wrong with those before it."""
    faults: list[DataError] = []
    for path in candidates(data_dir, name):
        try:
            if path.exists():
                return read_checked(path, name), faults
        except DataError as fault:
            faults.append(fault)
        except PermissionError as error:  # of `exists`, in a folder that may not be searched
            faults.append(DataError(f"{path} can't be reached: {error.strerror}"))
    return None, faults


def load_split(data_dir: Path, *, train: bool) -> Split:
    """The training set (60,000 images) or the test set (10,000) from a folder that `ensure_files` has passed.

    Raises DataError where a file is missing or broken.
    """
    prefix = "train" if train else "t10k"
    tensors = []
    for name, axes in ((f"{prefix}-images-idx3-ubyte", 3), (f"{prefix}-labels-idx1-ubyte", 1)):
        content, faults = find_content(data_dir, name)
        if content is None:
            raise faults[0] if faults else DataError(f"{name} is not in {data_dir}")
        tensors.append(read_tensor(content, axes))
    images, labels = tensors
    return Split(images.unsqueeze(1), labels.long())


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted indices of the larger and of the smaller part, which has `fraction` of each class.

    Raises DataError where a part would be empty.
    """
    generator = torch.Generator().manual_seed(seed)
    cut = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        cut.append(shuffled[: round(len(members) * fraction)])
    smaller = torch.cat(cut).sort().values
    larger = torch.ones(len(labels), dtype=torch.bool).index_fill(0, smaller, False).nonzero().flatten()
    if not len(smaller) or not len(larger):
        raise DataError(f"a fraction of {fraction} of {len(labels):,} images leaves one part empty: choose another one")
    return larger, smaller
