"""What is said of figures is what the run did."""

from typing import Any

import pytest

from fmnist_lightning.report.descriptions import describe_measuring


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "with dropout on; so"),
        ({"flip": False, "shift": 0, "erase": 0.0, "mixup": 0.0}, "with dropout on; so"),
        ({"flip": False, "shift": 1, "mixup": 0.0}, "with dropout on and on augmented images; so"),
        ({"mixup": 0.2}, "on augmented images, against the label of the larger part of each mixed image; so"),
    ],
)
def test_training_is_told_as_it_was_measured(options: dict[str, Any], told: str) -> None:
    assert told in describe_measuring(options)
