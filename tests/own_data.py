"""Data sets that nobody here made for this project, and small drawn ones, as files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

SHAPES = ("circle", "cross", "diamond", "frame", "square", "stripes", "triangle")  # sorted, as folders are
DIGITS = tuple("0123456789")


def digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The genuine digits of scikit-learn: images (1797, 8, 8), labels (1797,)."""
    found = load_digits()
    return np.rint(found.images * (255 / 16)).astype(np.uint8), found.target.astype(np.uint8)


def write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(header + values.tobytes())


def write_digits_as_idx(folder: Path, train: int = 1500) -> None:
    """The first `train` digits are the training set, the others the test set."""
    images, labels = digits()
    folder.mkdir(parents=True)
    for prefix, part in (("train", slice(train)), ("t10k", slice(train, None))):
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images[part])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels[part])


def write_digits_as_folder(folder: Path, count: int | None = None) -> None:
    """A PNG file per digit, in a folder per class."""
    images, labels = digits()
    for index, (image, label) in enumerate(zip(images[:count], labels[:count], strict=True)):
        path = folder / DIGITS[label] / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def draw_shape(name: str, rng: np.random.Generator, size: int = 32) -> Image.Image:
    """A colored shape on a ground of another color, RGB."""
    ground, color = (tuple(int(channel) for channel in rng.integers(low, low + 128, 3)) for low in (0, 128))
    image = Image.new("RGB", (size, size), ground)
    draw = ImageDraw.Draw(image)
    edge = int(rng.integers(size // 2, size - 4))
    left, top = (int(rng.integers(0, size - edge)) for _ in range(2))
    right, bottom, middle = left + edge, top + edge, edge // 2
    if name == "circle":
        draw.ellipse((left, top, right, bottom), fill=color)
    elif name == "cross":
        draw.line((left, top, right, bottom), fill=color, width=5)
        draw.line((left, bottom, right, top), fill=color, width=5)
    elif name == "diamond":
        around = [(left + middle, top), (right, top + middle), (left + middle, bottom), (left, top + middle)]
        draw.polygon(around, fill=color)
    elif name == "frame":
        draw.rectangle((left, top, right, bottom), outline=color, width=4)
    elif name == "square":
        draw.rectangle((left, top, right, bottom), fill=color)
    elif name == "stripes":
        for row in range(top, bottom, 6):
            draw.line((left, row, right, row), fill=color, width=3)
    else:
        draw.polygon([(left + middle, top), (right, bottom), (left, bottom)], fill=color)
    return image


def write_shapes(folder: Path, per_class: int, seed: int = 0) -> None:
    """`per_class` pictures of each of SHAPES, in a folder per class."""
    rng = np.random.default_rng(seed)
    for name in SHAPES:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            draw_shape(name, rng).save(folder / name / f"{number:03d}.png")
