"""The net and the optimiser, against Keras itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fmnist_lightning.data.drawn import load_drawn
from fmnist_lightning.data.fashion_mnist import load_split
from fmnist_lightning.models.nets import NotebookNet, SeedNet
from fmnist_lightning.training.optim import KERAS_EPSILON, KerasAdam

BATCH = 64
STEPS = 10


@pytest.fixture
def in_64_bits() -> Iterator[None]:
    """Both nets in 64 bits. In 32, a last digit moves what Adam makes of a gradient near zero, by the kind of CPU."""
    compute_in("float64")
    yield
    compute_in("float32")


def compute_in(dtype: str) -> None:
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)


def original_net(*, dropout: bool = True) -> Any:
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
    net.compile(loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    return net


def notebook_net() -> Any:
    """The larger net behind the original's figures."""
    layers = keras.layers
    net = keras.Sequential(
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
    net.compile(loss="sparse_categorical_crossentropy", optimizer="adam")
    return net


def from_keras(net: torch.nn.Module, weights: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Keras's weights in our net's order of axes: Keras keeps channels last, also where it flattens."""
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


def seed_net(keras_net: Any) -> SeedNet:
    net = SeedNet().to(getattr(torch, keras.config.floatx()))
    net.load_state_dict(from_keras(net, keras_net.get_weights()))
    return net.eval()


def in_keras(images: torch.Tensor) -> np.ndarray:
    """(B, 1, 28, 28) uint8 to (B, 28, 28, 1) in 0..1, as the original prepares its data."""
    return images.permute(0, 2, 3, 1).numpy().astype(keras.config.floatx()) / 255


def test_the_seed_net_has_keras_parameters() -> None:
    assert keras.backend.backend() == "torch"
    assert original_net().count_params() == 225034


def assert_same_probabilities(images: torch.Tensor) -> None:
    keras.utils.set_random_seed(0)
    theirs = original_net()
    probs = seed_net(theirs)(images).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(probs, theirs.predict(in_keras(images), verbose=0), rtol=0, atol=1e-5)


def test_probabilities_are_keras_on_drawn_images(small_drawn: None) -> None:
    assert_same_probabilities(load_drawn(train=False).images)


@pytest.mark.real_data
def test_probabilities_are_keras_on_256_real_images(real_data_dir: Path) -> None:
    assert_same_probabilities(load_split(real_data_dir, train=False).images[:256])


def test_the_notebook_net_is_keras_too(small_drawn: None) -> None:
    keras.utils.set_random_seed(0)
    theirs, ours = notebook_net(), NotebookNet().eval()
    assert theirs.count_params() == sum(parameter.numel() for parameter in ours.parameters()) == 503690
    ours.load_state_dict(from_keras(ours, theirs.get_weights()))
    images = load_drawn(train=False).images
    probs = ours(images).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(probs, theirs.predict(in_keras(images), verbose=0), rtol=0, atol=1e-5)


def keras_after_ten_steps(images: torch.Tensor, labels: torch.Tensor) -> tuple[SeedNet, dict[str, torch.Tensor]]:
    """A seed net with Keras's first weights, and Keras's weights after ten batches, without dropout."""
    keras.utils.set_random_seed(1)
    theirs = original_net(dropout=False)
    ours = seed_net(theirs)
    for part in torch.arange(STEPS * BATCH).split(BATCH):
        theirs.train_on_batch(in_keras(images[part]), labels[part].numpy())
    return ours, from_keras(ours, theirs.get_weights())


def train_ten_steps(
    net: SeedNet, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    for part in torch.arange(STEPS * BATCH).split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(net(images[part]), labels[part]).backward()
        optimizer.step()
    return net.state_dict()


def mismatch(weights: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> int:
    """How many weights differ by more than 1e-4 of their size and by more than 1e-6."""
    close = [torch.isclose(weights[name], reference[name], rtol=1e-4, atol=1e-6) for name in reference]
    return sum(int((~part).sum()) for part in close)


@pytest.mark.real_data
def test_ten_adam_steps_end_in_keras_weights(real_data_dir: Path, in_64_bits: None) -> None:
    images, labels = load_split(real_data_dir, train=True)
    net, reference = keras_after_ten_steps(images, labels)
    assert mismatch(net.state_dict(), reference) > 150_000  # they do move
    weights = train_ten_steps(net, KerasAdam(net.parameters(), lr=1e-3), images, labels)
    assert mismatch(weights, reference) == 0


@pytest.mark.real_data
def test_ten_steps_of_torchs_own_adam_do_not(real_data_dir: Path, in_64_bits: None) -> None:
    """The negative control: what the place of epsilon is worth."""
    images, labels = load_split(real_data_dir, train=True)
    net, reference = keras_after_ten_steps(images, labels)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, eps=KERAS_EPSILON)
    assert mismatch(train_ten_steps(net, adam, images, labels), reference) > 1000


def test_keras_adam_goes_on_where_its_state_was_saved() -> None:
    """Epsilon depends on the number of steps, which the state carries."""
    torch.manual_seed(0)
    start, gradients = torch.randn(50), torch.randn(6, 50) * 1e-6

    def steps(parameter: torch.Tensor, optimizer: KerasAdam, part: torch.Tensor) -> None:
        for gradient in part:
            parameter.grad = gradient.clone()
            optimizer.step()

    whole = start.clone().requires_grad_()
    steps(whole, KerasAdam([whole], lr=1e-3), gradients)
    halved = start.clone().requires_grad_()
    first = KerasAdam([halved], lr=1e-3)
    steps(halved, first, gradients[:3])
    second = KerasAdam([halved], lr=1e-3)
    second.load_state_dict(first.state_dict())
    steps(halved, second, gradients[3:])
    assert torch.equal(whole, halved)
