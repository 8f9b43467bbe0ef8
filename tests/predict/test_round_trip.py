"""The acceptance test of picture preparation: pictures made from test images keep the images' classes.

The direct path is the image through the model. The round trip is a picture of it: larger, somewhere on a plain
background, in a file. Nothing is chosen by these results.
"""

import io
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmnist_lightning.data.sets.fashion_mnist import FASHION_MNIST, load_split
from fmnist_lightning.predict import pictures
from fmnist_lightning.predict.classifier import load_classifier
from fmnist_lightning.predict.pictures import Gray, Invert, read_picture

pytestmark = pytest.mark.real_data

COUNT = 400
FEW = 120  # enough for what falls far below
SIZES = (64, 90, 128, 180, 256, 360, 500, 600)  # height and width of pictures; 50 images are tried at each


@cache
def images_and_labels(data_dir: Path) -> tuple[Gray, torch.Tensor]:
    """Test images (n, 28, 28), and what the packaged model predicts for them."""
    images = load_split(data_dir, "test").images[:, 0]
    chosen = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:COUNT]]
    labels = load_classifier(device="cpu")(chosen).labels
    assert labels.bincount(minlength=10).min() >= COUNT // 20
    return chosen.numpy(), labels


def photograph(image: Gray, size: int, colors: str, kind: str, rng: np.random.Generator) -> io.BytesIO:
    """A file in which the garment fills 60 to 90% of a picture, with a margin on each side."""
    edge = round(size * rng.uniform(0.6, 0.9))
    margin = max(1, size // 28)
    left, top = rng.integers(margin, size - edge - margin + 1, 2)
    picture = Image.new("L", (size, size))
    picture.paste(Image.fromarray(image).resize((edge, edge), Image.Resampling.BICUBIC), (int(left), int(top)))
    if colors == "dark on white":
        picture = Image.eval(picture, lambda value: 255 - value)
    file = io.BytesIO()
    picture.save(file, kind, compress_level=1)  # PNG's, for speed; it is lossless
    return file


def agreement(data_dir: Path, colors: str, kind: str, invert: Invert = "auto", count: int = COUNT) -> float:
    """The fraction of round trips that end in the direct path's class."""
    images, labels = images_and_labels(data_dir)
    rng = np.random.default_rng(0)
    results = [
        read_picture(photograph(image, SIZES[index % len(SIZES)], colors, kind, rng), FASHION_MNIST, invert).pixels
        for index, image in enumerate(images[:count])
    ]
    return (load_classifier(device="cpu")(np.stack(results)).labels == labels[:count]).double().mean().item()


@pytest.mark.parametrize("colors", ["dark on white", "light on dark"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_round_trip_keeps_the_class(real_data_dir: Path, colors: str, kind: str) -> None:
    assert agreement(real_data_dir, colors, kind) >= 0.97


@pytest.mark.parametrize(("colors", "wrong"), [("dark on white", "never"), ("light on dark", "always")])
def test_wrong_inversion_loses_some_classes(real_data_dir: Path, colors: str, wrong: Invert) -> None:
    assert 0.75 < agreement(real_data_dir, colors, "PNG", wrong, FEW) < 0.9


def test_round_trip_without_trimming_loses_classes(real_data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "find_box", lambda difference, *_: ((0, 0, *difference.shape[::-1]), 0.0))
    assert agreement(real_data_dir, "dark on white", "PNG", count=FEW) < 0.85


@pytest.mark.parametrize("train", [True, False])
def test_no_image_of_the_data_set_has_bright_corners(real_data_dir: Path, train: bool) -> None:
    """So an image that was saved as a picture comes back as it was."""
    images = load_split(real_data_dir, "train" if train else "test").images[:, 0]
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]].float()
    assert corners.quantile(0.5, dim=1).max() < pictures.MIDDLE
