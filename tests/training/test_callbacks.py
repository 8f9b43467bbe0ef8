"""What a training shows and records."""

from typing import Any

import torch

from fmnist_lightning.training.callbacks import moving_average
from fmnist_lightning.training.module import Classifier


def test_average_of_the_weights_is_on_the_training_device() -> None:
    """Lightning sets callbacks up before it moves the module. A device that holds no values plays the GPU."""
    average: Any = moving_average(0.9, torch.device("meta"))
    average.setup(None, Classifier(), "fit")
    assert {parameter.device.type for parameter in average._average_model.parameters()} == {"meta"}
