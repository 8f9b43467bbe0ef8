"""The residual nets are what their sources describe, within their sizes."""

from pathlib import Path

import pytest
import torch

from fmnist_lightning.data.fashion_mnist import load_split
from fmnist_lightning.models.nets import MODELS
from fmnist_lightning.models.residual import PIXEL_MEAN, PIXEL_STD, Block, ResidualNet

NO_DROPOUT = (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("model", "most"), [("compact", 250_000), ("fine", 250_000), ("advanced", 1_300_000)])
def test_the_nets_have_at_most_the_parameters_that_their_class_allows(model: str, most: int) -> None:
    assert sum(parameter.numel() for parameter in MODELS[model](NO_DROPOUT).parameters()) <= most


def test_a_block_starts_as_its_way_round() -> None:
    features = torch.randn(2, 8, 14, 14)
    assert torch.equal(Block(8, 8, 1)(features), features.relu())
    halving = Block(8, 16, 2)
    assert torch.equal(halving(features), halving.shortcut(features).relu())
    assert halving(features).shape == (2, 16, 7, 7)


def test_the_last_convolution_of_the_stem_and_each_later_stage_halve_the_size() -> None:
    images = torch.zeros(2, 1, 28, 28)
    three = ResidualNet(NO_DROPOUT, stem=(4,), widths=(4, 8, 16), depths=(1, 2, 1)).eval()
    assert three.features(images).shape == (2, 16, 4, 4)
    four = ResidualNet(NO_DROPOUT, stem=(4, 8), widths=(8, 8, 16, 24), depths=(1, 2, 1, 1)).eval()
    assert four.features(images).shape == (2, 24, 2, 2)
    assert four.features[:3](images).shape == (2, 4, 28, 28)
    assert four(images.byte()).shape == (2, 10)


def test_uint8_images_and_the_same_as_floats_give_the_same_logits() -> None:
    torch.manual_seed(0)
    net = MODELS["compact"](NO_DROPOUT).eval()
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(net(images), net(images.float() / 255))


def test_the_first_block_of_fine_sees_the_whole_size() -> None:
    images = torch.zeros(2, 1, 28, 28)
    net = MODELS["fine"](NO_DROPOUT).eval()
    sizes = [
        tuple(net.features[: end + 1](images).shape[1:])
        for end, layer in enumerate(net.features)
        if isinstance(layer, Block)
    ]
    assert sizes == [(16, 28, 28), (32, 14, 14), (64, 7, 7), (96, 4, 4)]


@pytest.mark.parametrize("model", ["compact", "fine", "advanced"])
def test_each_rate_of_dropout_is_used(model: str) -> None:
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    for place in range(3):
        rates = [0.5 if place == other else 0.0 for other in range(3)]
        net = MODELS[model](rates)
        torch.manual_seed(0)
        first = net(images)
        assert not torch.equal(first, net(images))


@pytest.mark.real_data
def test_pixels_are_normalised_by_the_training_sets_own_figures(real_data_dir: Path) -> None:
    pixels = load_split(real_data_dir, train=True).images.double() / 255
    assert pixels.mean().item() == pytest.approx(PIXEL_MEAN, abs=1e-4)
    assert pixels.std().item() == pytest.approx(PIXEL_STD, abs=1e-4)
