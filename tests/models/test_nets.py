"""The nets are what their sources describe, and what makes them faster keeps their function."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fmnist_lightning.data.sets.fashion_mnist import load_split
from fmnist_lightning.models.layers import Dropout
from fmnist_lightning.models.nets import MODELS, SeedNet
from fmnist_lightning.models.residual import PIXEL_MEAN, PIXEL_STD, Block
from fmnist_lightning.runs.options import ModuleOptions

NO_DROPOUT = (0.0, 0.0, 0.0)
IMAGES = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_options_name_every_net() -> None:
    assert get_args(get_type_hints(ModuleOptions)["model"]) == tuple(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_net_scales_bytes_as_floats(model: str) -> None:
    net = MODELS[model]((1, 28, 28), 10, NO_DROPOUT).eval()
    assert net(IMAGES).shape == (5, 10)
    assert torch.equal(net(IMAGES), net(IMAGES.float() / 255))


@pytest.mark.parametrize("model", MODELS)
def test_net_uses_each_dropout_rate(model: str) -> None:
    for rates in torch.eye(3).mul(0.125).tolist():
        net = MODELS[model]((1, 28, 28), 10, rates)
        assert [layer.rate for layer in net.modules() if isinstance(layer, Dropout)][-3:] == rates
        assert not torch.equal(net(IMAGES), net(IMAGES))


def test_seed_net_starts_glorot_uniform_with_zero_biases() -> None:
    torch.manual_seed(0)
    layers = SeedNet().layers
    for number, (fan_in, fan_out) in {0: (9, 32 * 9), 4: (32 * 9, 64 * 9), 9: (1600, 128), 12: (128, 10)}.items():
        layer = layers[number]
        limit = (6 / (fan_in + fan_out)) ** 0.5
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
        assert 0.95 * limit < layer.weight.abs().max() <= limit
        # A uniform distribution's standard deviation is its limit over the root of 3; 288 weights know it within 12%.
        assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.12)


def as_listed(net: SeedNet) -> nn.Sequential:
    """The same layers in the order of the original's listing, on whole images, without dropout."""
    convolution, second_convolution, dense, output = (net.layers[number] for number in (0, 4, 9, 12))
    features = (convolution, nn.ReLU(), nn.MaxPool2d(2), second_convolution, nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*features, nn.Flatten(), dense, nn.ReLU(), output)


def test_seed_net_speed_ups_keep_logits_and_gradients() -> None:
    torch.manual_seed(0)
    ours = SeedNet().eval()
    plain = as_listed(ours)
    images, labels = torch.rand(16, 1, 28, 28), torch.randint(0, 10, (16,))
    mine, reference = (
        torch.autograd.grad(F.cross_entropy(net(images), labels), list(ours.parameters())) for net in (ours, plain)
    )
    torch.testing.assert_close(ours(images), plain(images), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)


def test_block_starts_as_its_shortcut() -> None:
    features, halving = torch.randn(2, 8, 14, 14), Block(8, 16, 2)
    assert torch.equal(Block(8, 8, 1)(features), features.relu())
    assert torch.equal(halving(features), halving.shortcut(features).relu())


@pytest.mark.parametrize(
    ("model", "most", "shapes"),
    [
        ("compact", 250_000, [(32, 14, 14), (64, 7, 7), (96, 4, 4)]),
        ("fine", 250_000, [(16, 28, 28), (32, 14, 14), (64, 7, 7), (96, 4, 4)]),
        ("advanced", 1_300_000, [(32, 14, 14), (64, 7, 7), (128, 4, 4), (192, 2, 2)]),
    ],
)
def test_residual_net_has_its_size_and_stages(model: str, most: int, shapes: list[tuple[int, ...]]) -> None:
    net, features, found = MODELS[model]((1, 28, 28), 10, NO_DROPOUT).eval(), torch.zeros(2, 1, 28, 28), []
    for layer in net.features:
        features = layer(features)
        if isinstance(layer, Block):
            found.append(tuple(features.shape[1:]))
    assert found == shapes
    assert sum(parameter.numel() for parameter in net.parameters()) < most


@pytest.mark.real_data
def test_pixels_are_normalized_by_the_training_set(real_data_dir: Path) -> None:
    pixels = load_split(real_data_dir, "train").images.double() / 255
    assert pixels.mean().item() == pytest.approx(PIXEL_MEAN, abs=1e-4)
    assert pixels.std().item() == pytest.approx(PIXEL_STD, abs=1e-4)
