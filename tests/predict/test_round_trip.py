"""The acceptance test of the preprocessing: garments of the test set, made into pictures, keep their classes.

The direct path is the image itself through the net; the round trip is a picture of it, larger, somewhere before a plain
background, in a file. Nothing is chosen by these figures.
"""

import io
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from fmnist_lightning.data.fashion_mnist import load_split
from fmnist_lightning.predict import pictures as images
from fmnist_lightning.predict.classifier import PictureClassifier, load_classifier
from fmnist_lightning.predict.pictures import Grey, Invert, read_picture

pytestmark = pytest.mark.real_data

COUNT = 1000
FEW = 120  # are enough for what falls far below
SIZES = (64, 90, 128, 180, 256, 360, 500, 600)  # of pictures, height and width; 125 images are tried at each
AGREE = 0.97  # at least
VARIANTS = [(colours, kind) for colours in ("dark on white", "light on dark") for kind in ("PNG", "JPEG")]


class Direct(NamedTuple):
    """Test images, as they are, and what the packaged net says of them."""

    images: Grey  # (n, 28, 28)
    labels: torch.Tensor  # (n,)
    classify: PictureClassifier


@cache
def predict_directly(data_dir: Path) -> Direct:
    whole = load_split(data_dir, train=False).images[:, 0]
    chosen = whole[torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))[:COUNT]]
    classify = load_classifier(device="cpu")
    return Direct(chosen.numpy(), classify(chosen).labels, classify)


@pytest.fixture
def direct(real_data_dir: Path) -> Direct:
    return predict_directly(real_data_dir)


def photograph(image: Grey, size: int, colours: str, kind: str, rng: np.random.Generator) -> io.BytesIO:
    """A file: the garment fills 60 to 90 % of a picture, with a margin on each side."""
    edge = round(size * rng.uniform(0.6, 0.9))
    margin = max(1, size // 28)
    left, top = rng.integers(margin, size - edge - margin + 1, 2)
    picture = Image.new("L", (size, size))
    picture.paste(Image.fromarray(image).resize((edge, edge), Image.Resampling.BICUBIC), (int(left), int(top)))
    if colours == "dark on white":
        picture = Image.eval(picture, lambda value: 255 - value)
    file = io.BytesIO()
    picture.save(file, kind, compress_level=1)  # PNG's, for speed; it loses nothing
    return file


def agreement(direct: Direct, colours: str, kind: str, invert: Invert = "auto", count: int = COUNT) -> float:
    """The fraction of round trips that end in the direct path's class."""
    rng = np.random.default_rng(0)
    results = [
        read_picture(photograph(image, SIZES[index % len(SIZES)], colours, kind, rng), invert)
        for index, image in enumerate(direct.images[:count])
    ]
    return (direct.classify(np.stack(results)).labels == direct.labels[:count]).double().mean().item()


@pytest.mark.parametrize(("colours", "kind"), VARIANTS)
def test_a_picture_of_a_garment_is_given_the_garments_class(direct: Direct, colours: str, kind: str) -> None:
    assert agreement(direct, colours, kind) >= AGREE


@pytest.mark.parametrize(("colours", "wrong"), [("dark on white", "never"), ("light on dark", "always")])
def test_the_wrong_inversion_loses_most_classes(direct: Direct, colours: str, wrong: Invert) -> None:
    assert agreement(direct, colours, "PNG", wrong, FEW) < 0.5


def test_without_the_trim_many_classes_are_lost(direct: Direct, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "find_box", lambda colours, _: (0, 0, *colours.size))
    assert agreement(direct, "dark on white", "PNG", count=FEW) < 0.85


def test_each_class_is_in_the_sample(direct: Direct) -> None:
    assert direct.labels.bincount(minlength=10).min() >= COUNT // 20


@pytest.mark.parametrize("polarity", ["as it is", "negated"])
def test_images_of_the_test_set_in_files_of_28_pixels_come_back_byte_for_byte(direct: Direct, polarity: str) -> None:
    for image in direct.images:
        file = io.BytesIO()
        Image.fromarray(image if polarity == "as it is" else 255 - image).save(file, "PNG")
        assert (read_picture(file) == image).all()


@pytest.mark.parametrize("train", [True, False])
def test_no_image_of_the_data_set_has_bright_corners(real_data_dir: Path, train: bool) -> None:
    whole = load_split(real_data_dir, train=train).images[:, 0]
    corners = whole[:, [0, 0, -1, -1], [0, -1, 0, -1]].float()
    assert corners.quantile(0.5, dim=1).max() < images.MIDDLE
