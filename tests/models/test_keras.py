"""The net and the optimizer, against Keras itself."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fmnist_lightning.data.sets.drawn import load_drawn
from fmnist_lightning.data.sets.fashion_mnist import load_split
from fmnist_lightning.models.nets import NotebookNet, SeedNet
from fmnist_lightning.training.optim import KERAS_EPSILON, KerasAdam


@pytest.fixture
def in_64_bits() -> Iterator[None]:
    """Both nets in 64 bits. In 32, rounding decides what Adam does with a gradient near zero, and CPUs differ."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def keras_seed_net(*, dropout: bool = True) -> Any:
    """The original's own listing."""
    layers, rate = keras.layers, 1 if dropout else 0
    net = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=2),
            layers.Dropout(0.25 * rate),
            layers.Conv2D(64, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=2),
            layers.Dropout(0.25 * rate),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5 * rate),
            layers.Dense(10, activation="softmax"),
        ]
    )
    net.compile(loss="sparse_categorical_crossentropy", optimizer="adam")
    return net


def keras_notebook_net() -> Any:
    """The larger net of the original's notebook, which printed the reported metrics."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, kernel_size=(3, 3), activation="relu"),
            layers.Conv2D(64, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=2),
            layers.Dropout(0.5),
            layers.Conv2D(128, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=2),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def from_keras(net: nn.Module, weights: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Keras's weights in our order of axes: Keras has channels last, also when it flattens."""
    arrays = []
    for values in weights:
        if values.ndim == 4:
            values, channels = values.transpose(3, 2, 0, 1), values.shape[3]
        elif values.ndim == 2:
            if values.shape[0] == 25 * channels:
                values = values.reshape(5, 5, channels, 128).transpose(2, 0, 1, 3).reshape(25 * channels, 128)
            values = values.T
        arrays.append(torch.from_numpy(np.ascontiguousarray(values)))
    return dict(zip(net.state_dict(), arrays, strict=True))


def to_keras(images: torch.Tensor) -> np.ndarray:
    """(B, 1, 28, 28) uint8 to (B, 28, 28, 1) in 0..1, as the original prepares its data."""
    return images.permute(0, 2, 3, 1).numpy().astype(keras.config.floatx()) / 255


@pytest.mark.parametrize(
    ("net", "keras_net", "parameters"),
    [(SeedNet, keras_seed_net, 225_034), (NotebookNet, keras_notebook_net, 503_690)],
)
def test_net_gives_keras_probabilities(small_drawn: None, net: Any, keras_net: Any, parameters: int) -> None:
    assert keras.backend.backend() == "torch"
    keras.utils.set_random_seed(0)
    theirs = keras_net()
    assert theirs.count_params() == parameters
    images, ours = load_drawn("test").images, net().eval()
    ours.load_state_dict(from_keras(ours, theirs.get_weights()))
    probs = ours(images).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(probs, theirs.predict(to_keras(images), verbose=0), rtol=0, atol=1e-5)


def mismatch(net: nn.Module, reference: dict[str, torch.Tensor]) -> int:
    """The number of weights that differ by more than 1e-4 of their size and by more than 1e-6."""
    weights = net.state_dict()
    return sum(int((~weights[name].isclose(reference[name], rtol=1e-4, atol=1e-6)).sum()) for name in reference)


@pytest.mark.real_data
def test_ten_adam_steps_end_in_keras_weights(real_data_dir: Path, in_64_bits: None) -> None:
    """Without dropout. The controls: weights do move, and torch's own Adam, with epsilon elsewhere, ends elsewhere."""
    images, labels = load_split(real_data_dir, "train")
    batches = [(images[part], labels[part]) for part in torch.arange(640).split(64)]
    keras.utils.set_random_seed(1)
    theirs = keras_seed_net(dropout=False)
    first = SeedNet().double().eval()
    first.load_state_dict(from_keras(first, theirs.get_weights()))
    for images, labels in batches:
        theirs.train_on_batch(to_keras(images), labels.numpy())
    reference = from_keras(first, theirs.get_weights())
    ours, torchs = deepcopy(first), deepcopy(first)
    for net, adam, epsilon in ((ours, KerasAdam, {}), (torchs, torch.optim.Adam, {"eps": KERAS_EPSILON})):
        optimizer = adam(net.parameters(), lr=1e-3, **epsilon)
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
    assert mismatch(ours, reference) == 0
    assert mismatch(first, reference) > 150_000
    assert mismatch(torchs, reference) > 1000
