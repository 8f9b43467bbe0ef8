"""Fashion-MNIST's four files: found, verified by their digests each time, and read as tensors.

Labels: 0 T-shirt/top, 1 Trouser, 2 Pullover, 3 Dress, 4 Coat, 5 Sandal, 6 Shirt, 7 Sneaker, 8 Bag, 9 Ankle boot.
Source and license (MIT): https://github.com/zalandoresearch/fashion-mnist
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fmnist_lightning.data.idx import read_tensor
from fmnist_lightning.errors import UserError

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IMAGE_SIZE = 28  # pixels, height and width


class FileSpec(NamedTuple):
    """What an unpacked file must be."""

    size: int  # bytes
    sha256: str


# torchvision only checks that the unpacked files exist, so it accepts truncated and swapped ones.
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
    """The data is missing, damaged, or does not suit the options."""


def candidates(data_dir: Path, name: str) -> Iterator[Path]:
    """Where a file may be: in torchvision's layout or in the folder itself, unpacked or gzipped."""
    for folder in (data_dir / TORCHVISION_FOLDER, data_dir):
        yield folder / name
        yield folder / f"{name}.gz"


def read_verified(path: Path, name: str) -> bytes:
    """The unpacked content of `path`, which must be exactly that of the file `name`.

    Raises DataError if it is not. Unpacks at most one byte more than expected, so a gzip bomb is harmless.
    """
    expected = FILES[name]
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(expected.size + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"cannot unpack {path}: it is damaged or no gzip file ({error})") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if len(content) != expected.size:
        found = f"more than {expected.size:,}" if len(content) > expected.size else f"{len(content):,}"
        raise DataError(f"cannot use {path}: it holds {found} bytes, not {expected.size:,}")
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected.sha256:
        raise DataError(
            f"cannot use {path}: it has the right size but other content, so it is damaged or of another data set "
            f"(SHA-256 {digest[:12]}..., not {expected.sha256[:12]}...)"
        )
    return content


def find_content(data_dir: Path, name: str) -> tuple[bytes | None, list[DataError]]:
    """The content of the first good copy of a file, if any, and the errors of the copies before it."""
    errors: list[DataError] = []
    for path in candidates(data_dir, name):
        try:
            if path.exists():
                return read_verified(path, name), errors
        except DataError as error:
            errors.append(error)
        except PermissionError as error:  # raised by `exists`
            errors.append(DataError(f"cannot read {path}: {error.strerror}"))
    return None, errors


def load_split(data_dir: Path, *, train: bool) -> Split:
    """The training set (60,000 images) or the test set (10,000). Raises DataError if a file is missing or damaged."""
    prefix = "train" if train else "t10k"
    tensors = []
    for name, axes in ((f"{prefix}-images-idx3-ubyte", 3), (f"{prefix}-labels-idx1-ubyte", 1)):
        content, errors = find_content(data_dir, name)
        if content is None:
            raise errors[0] if errors else DataError(f"cannot find {name} in {data_dir}")
        tensors.append(read_tensor(content, axes))
    images, labels = tensors
    return Split(images.unsqueeze(1), labels.long())
