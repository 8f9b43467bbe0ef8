"""Fashion-MNIST's four files: found, verified by their digests each time, and read as tensors.

Labels: 0 T-shirt/top, 1 Trouser, 2 Pullover, 3 Dress, 4 Coat, 5 Sandal, 6 Shirt, 7 Sneaker, 8 Bag, 9 Ankle boot.
Source and license (MIT): https://github.com/zalandoresearch/fashion-mnist
"""

import gzip
import hashlib
import zlib
from pathlib import Path

from fmnist_lightning.cli.shell import quoted
from fmnist_lightning.data.idx import GZIP_MAGIC, IdxError, absence, check_values, find_spellings, read_tensor
from fmnist_lightning.data.source import DataError, DataInfo, OtherDataError, Part, Split

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IMAGE_SIZE = 28  # pixels, height and width
FASHION_MNIST = DataInfo(
    name="fashion_mnist",
    title="Fashion-MNIST",
    classes=CLASSES,
    image_shape=(1, IMAGE_SIZE, IMAGE_SIZE),
    # Percent on the test set, as Fashion-MNIST-CNN-Dropout reports them.
    published={"accuracy": 91.39, "precision": 91.53, "recall": 91.39, "f1": 91.43, "auroc": 99.48},
    framing="garment",
)

# The SHA-256 of each unpacked file. torchvision only checks that they exist, so it accepts truncated and swapped ones.
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MAX_BYTES = 50_000_000  # read of a file, which may be a gzip bomb; the largest has 47,040,016
RAW_FOLDER = Path("FashionMNIST", "raw")
# Where a folder that people name holds the files: with torchvision's layout, or its folder FashionMNIST; the files
# themselves; Keras's folder datasets; a clone of the authors' repository.
FOLDERS = (RAW_FOLDER, Path(), Path("raw"), Path("fashion-mnist"), Path("data", "fashion"))


def find_copies(data_dir: Path, name: str) -> list[Path]:
    """The copies of a file in one of FOLDERS, by any of its spellings."""
    return [path for folder in FOLDERS for path in find_spellings(data_dir / folder, name)]


def read_verified(path: Path, name: str) -> bytes:
    """The unpacked content of `path`, which must be exactly that of the file `name`. Raises DataError if it is not."""
    try:
        with path.open("rb") as file:
            gzipped = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            file.seek(0)
            content = (gzip.GzipFile(fileobj=file) if gzipped else file).read(MAX_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != FILES[name]:
        raise DataError(
            f"cannot use {path}: it is truncated, damaged or of another data set "
            f"(SHA-256 {digest:.12}..., not {FILES[name]:.12}...)"
        )
    return content


def find_content(data_dir: Path, name: str) -> bytes:
    """The unpacked content of the first good copy of a file. Raises DataError with each copy's problem if none is."""
    problems = []
    for path in find_copies(data_dir, name):
        try:
            return read_verified(path, name)
        except DataError as error:
            problems.append(str(error))
    raise DataError("; ".join(problems) or absence(data_dir, name))


def refuse_other_data(path: Path, name: str) -> None:
    """Raise OtherDataError if `path`, which is not the file `name`, is a valid IDX file all the same."""
    try:
        with path.open("rb") as file:
            shape = check_values(file, axes=3 if "idx3" in name else 1)
    except (OSError, IdxError):
        return
    raise OtherDataError(
        f"cannot use {path} as a file of Fashion-MNIST: it is a valid IDX file of another data set, or a damaged copy; "
        f"it has the shape {' x '.join(map(str, shape))} (train on it with --dataset idx --data_dir "
        f"{quoted(path.parent)}, or delete it)"
    )


def load_split(data_dir: Path, part: Part) -> Split:
    """The training set (60,000 images) or the test set (10,000). Raises DataError if a file is missing or damaged."""
    prefix = "t10k" if part == "test" else "train"
    images = read_tensor(find_content(data_dir, f"{prefix}-images-idx3-ubyte"), axes=3)
    labels = read_tensor(find_content(data_dir, f"{prefix}-labels-idx1-ubyte"), axes=1)
    return Split(images.unsqueeze(1), labels.long())
