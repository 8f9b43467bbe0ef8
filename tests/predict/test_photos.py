"""Product photos: the classes of garments on any plain background, and a note where nothing can be known."""

from functools import cache
from pathlib import Path

import pytest

from fmnist_lightning.predict.classifier import load_classifier
from tools.photos import Score, first_of_each_class, measure

pytestmark = pytest.mark.real_data
FEW = 4  # images of each class; `python -m tools.photos` takes ten


@cache
def score(data_dir: Path, ground: str, color: str) -> Score:
    images, labels = first_of_each_class(data_dir, "test", FEW)
    return measure(images, labels, ground, color, load_classifier(device="cpu"))


@pytest.mark.parametrize(
    ("ground", "color"),
    [
        *[("white", "black"), ("gray 60", "black"), ("gray 90", "colored"), ("gray 120", "as it comes")],
        *[("gray 180", "white"), ("pink", "white"), ("blue", "black"), ("vignette", "white"), ("floor", "black")],
        *[("frame of 1 px, black", "black"), ("frame of 6 px, red", "white"), ("letterbox, black", "colored")],
        *[("app bar, dark", "as it comes"), ("app bar, light", "white"), ("cut out, LA", "white")],
    ],
)
def test_garment_is_recognized_on_any_plain_background(real_data_dir: Path, ground: str, color: str) -> None:
    found = score(real_data_dir, ground, color)
    assert (found.noted, found.refused) == (0, 0)
    assert found.correct >= 65


@pytest.mark.parametrize("ground", ["wood", "grass"])
def test_background_with_a_texture_is_noted(real_data_dir: Path, ground: str) -> None:
    assert score(real_data_dir, ground, "black").noted == 100
