"""The nets are what their sources describe, and what makes them faster keeps their function."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, prune

from fmnist_lightning.cli.parser import build_parser
from fmnist_lightning.data.sets.fashion_mnist import load_split
from fmnist_lightning.models.layers import Dropout
from fmnist_lightning.models.nets import MODELS, SeedNet, build_net
from fmnist_lightning.models.residual import PIXEL_MEAN, PIXEL_STD, Block
from fmnist_lightning.runs.options import TrainOptions

NO_DROPOUT = (0.0, 0.0, 0.0)
IMAGES = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class TinyNet(nn.Module):
    """A user's own net, which has no dropout."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(math.prod(image_shape), num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.dense(images.flatten(1) / 255)


def test_help_names_every_net() -> None:
    described = build_parser(TrainOptions).format_help()
    assert all(f"{model}," in described for model in MODELS)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 40)])
def test_net_scales_bytes_as_floats(model: str, image_shape: tuple[int, int, int]) -> None:
    net = build_net(model, image_shape, 7).eval()
    images = torch.randint(0, 256, (5, *image_shape), dtype=torch.uint8)
    assert net(images).shape == (5, 7)
    assert torch.equal(net(images), net(images.float() / 255))


@pytest.mark.parametrize("model", MODELS)
def test_net_refuses_another_size_or_range(model: str) -> None:
    """The seed net used to look at the upper left 26 x 26 of larger images, and every net took floats in 0..255."""
    net = build_net(model, (1, 28, 28), 10).eval()
    for images in (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), IMAGES.float(), IMAGES[:, 0]):
        with pytest.raises(ValueError, match=r"28, 28\]|255"):
            net(images)
    with pytest.raises(TypeError, match="int64"):
        net(IMAGES.long())


@pytest.mark.parametrize("model", MODELS)
def test_net_has_weights_that_others_view_as_vectors(model: str) -> None:
    net = build_net(model, (1, 28, 28), 10)
    net(IMAGES).sum().backward()
    assert len(parameters_to_vector(net.parameters())) == sum(weight.numel() for weight in net.parameters())
    parameters_to_vector(weight.grad for weight in net.parameters())
    pruned = [(layer, "weight") for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    prune.global_unstructured(pruned, prune.L1Unstructured, amount=0.5)  # as Lightning's ModelPruning does
    assert net(IMAGES).isfinite().all()


@pytest.mark.parametrize("model", MODELS)
def test_net_compiles_in_one_graph_with_dropout(model: str) -> None:
    net = build_net(model, (1, 28, 28), 10)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    compiled(IMAGES).sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())
    assert not torch.equal(compiled(IMAGES), compiled(IMAGES))  # drops
    net.eval()
    torch.testing.assert_close(compiled(IMAGES), net(IMAGES))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:FutureWarning", "error::torch.jit.TracerWarning")
@pytest.mark.parametrize("model", MODELS)
def test_net_can_be_scripted_and_traced(model: str) -> None:
    net = build_net(model, (1, 28, 28), 10)
    scripted = torch.jit.script(net)
    assert not torch.equal(scripted(IMAGES), scripted(IMAGES))  # drops
    scripted.eval()
    net.eval()
    torch.testing.assert_close(scripted(IMAGES), net(IMAGES))
    torch.testing.assert_close(scripted(IMAGES / 255), net(IMAGES))
    with pytest.raises(torch.jit.Error, match="255"):
        scripted(IMAGES.float())
    traced = torch.jit.trace(net, IMAGES / 255)  # as TensorBoard's graph; a check of values would warn
    torch.testing.assert_close(traced(IMAGES / 255), net(IMAGES))


def test_build_refuses_what_a_net_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "mine", TinyNet)
    assert build_net("mine", (3, 8, 9), 4)(torch.zeros(2, 3, 8, 9)).shape == (2, 4)
    refused = [
        ("vast", {}, "'vast'.* seed"),
        ("mine", {"dropout": NO_DROPOUT}, "dropout"),
        ("seed", {"pretrained": True}, "pretrained"),
        ("seed", {"image_shape": (1, 9, 28)}, "9 x 28.*10 x 10.*--model compact.*--image_size"),
        ("seed", {"image_shape": (1, 600, 600)}, "600 x 600.*--model compact.*--image_size"),
        ("notebook", {"image_shape": (1, 28, 11)}, "28 x 11.*12 x 12.*--model compact"),
        ("notebook", {"image_shape": (1, 600, 600)}, "600 x 600.*--model compact"),
        ("fine", {"dropout": (2.0, 0.0, 0.0)}, "rate 2.0"),
    ]
    for model, changes, word in refused:
        with pytest.raises(ValueError, match=word):
            build_net(model, **{"image_shape": (1, 28, 28), "num_classes": 4, **changes})


@pytest.mark.parametrize(("model", "smallest"), [("seed", 10), ("notebook", 12), ("fine", 1), ("advanced", 1)])
def test_net_takes_images_of_its_smallest_size(model: str, smallest: int) -> None:
    net = build_net(model, (1, smallest, smallest), 3).eval()
    assert net(torch.zeros(2, 1, smallest, smallest, dtype=torch.uint8)).shape == (2, 3)


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
