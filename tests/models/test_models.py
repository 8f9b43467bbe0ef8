"""The seed net is the original's net; its speed-ups keep the function that they speed up."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fmnist_lightning.models.layers import Dropout, byte_mask, scale_images
from fmnist_lightning.models.nets import MODELS, SeedNet


def test_the_seed_net_has_the_originals_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in MODELS["seed"]().parameters()) == 225034


def test_uint8_images_and_the_same_as_floats_give_the_same_logits() -> None:
    net = SeedNet().eval()
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    assert net(images).shape == (5, 10)
    assert torch.equal(net(images), net(images.float() / 255))


def test_images_of_another_dtype_are_refused() -> None:
    with pytest.raises(TypeError, match="expected uint8"):
        scale_images(torch.zeros(1, dtype=torch.int64), torch.float32)


def test_weights_start_glorot_uniform_and_biases_zero() -> None:
    torch.manual_seed(0)
    fans = {"0": (9, 32 * 9), "4": (32 * 9, 64 * 9), "9": (1600, 128), "12": (128, 10)}
    layers = SeedNet().layers
    for number, (fan_in, fan_out) in fans.items():
        layer = layers[int(number)]
        limit = (6 / (fan_in + fan_out)) ** 0.5
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
        assert layer.weight.abs().max() <= limit
        assert layer.weight.abs().max() > 0.95 * limit
        # A uniform distribution's standard deviation is its limit over the root of 3; 288 weights know it within 12 %.
        assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.12)


def as_listed(net: SeedNet) -> nn.Sequential:
    """The same layers in the order of the original's listing, on whole images, without dropout."""
    convolution, second_convolution, dense, output = (net.layers[number] for number in (0, 4, 9, 12))
    features = (convolution, nn.ReLU(), nn.MaxPool2d(2), second_convolution, nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*features, nn.Flatten(), dense, nn.ReLU(), output)


def test_relu_behind_pooling_and_the_unused_border_change_nothing() -> None:
    """Value and gradient, against the order of the original's listing on whole images."""
    torch.manual_seed(0)
    ours = SeedNet().eval()
    plain = as_listed(ours)
    images = torch.rand(16, 1, 28, 28)
    labels = torch.randint(0, 10, (16,))
    gradients = []
    for net in (ours, plain):
        logits = net(images)
        gradients.append(torch.autograd.grad(F.cross_entropy(logits, labels), list(ours.parameters())))
    torch.testing.assert_close(ours(images), plain(images), rtol=1e-5, atol=1e-6)
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)


def test_the_listing_sees_just_the_pixels_that_the_seed_net_uses() -> None:
    torch.manual_seed(0)
    images = torch.rand(64, 1, 28, 28, requires_grad=True)
    as_listed(SeedNet())(images).square().sum().backward()
    seen = images.grad.abs().sum(dim=(0, 1)) > 0
    used = torch.zeros(28, 28, dtype=torch.bool)
    used[: SeedNet.USED_SIZE, : SeedNet.USED_SIZE] = True
    assert torch.equal(seen, used)


def test_bf16_gives_the_logits_of_32_bits_within_its_rounding() -> None:
    torch.manual_seed(0)
    net = SeedNet().eval()
    images = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(images)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), net(images), rtol=0.05, atol=0.02)


def test_dropout_has_the_rates_that_the_net_was_given() -> None:
    layers = SeedNet(dropout=(0.125, 0, 0.5)).layers
    assert [layer.rate for layer in layers if isinstance(layer, Dropout)] == [0.125, 0, 0.5]


@pytest.mark.parametrize("rate", [0.25, 0.5])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
class TestDropout:
    def activations(self, memory_format: torch.memory_format) -> torch.Tensor:
        return torch.ones(64, 32, 13, 13).contiguous(memory_format=memory_format)

    def test_it_drops_at_its_rate_and_scales_the_rest(self, rate: float, memory_format: torch.memory_format) -> None:
        torch.manual_seed(0)
        dropped = Dropout(rate)(self.activations(memory_format))
        assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
        # 346,112 independent draws: the share lies within five standard errors of the rate.
        error = (rate * (1 - rate) / dropped.numel()) ** 0.5
        assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=5 * error)

    def test_its_draws_are_independent(self, rate: float, memory_format: torch.memory_format) -> None:
        """Neighbours along each axis, places eight bytes apart, and two masks are uncorrelated."""
        torch.manual_seed(1)
        first, second = (byte_mask(self.activations(memory_format), rate).float() for _ in range(2))
        pairs = [(first, second)]
        pairs += [(first.narrow(axis, 1, 12), first.narrow(axis, 0, 12)) for axis in range(4)]
        flat = first.permute(0, 2, 3, 1).flatten() if memory_format == torch.channels_last else first.flatten()
        pairs += [(flat[gap:], flat[:-gap]) for gap in (1, 8, 64)]
        for left, right in pairs:
            correlation = torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1].item()
            assert abs(correlation) < 5 / left.numel() ** 0.5

    def test_its_gradient_is_its_mask(self, rate: float, memory_format: torch.memory_format) -> None:
        activations = self.activations(memory_format).requires_grad_()
        dropped = Dropout(rate)(activations)
        dropped.sum().backward()
        assert torch.equal(activations.grad, dropped.detach())

    def test_it_keeps_the_memory_order(self, rate: float, memory_format: torch.memory_format) -> None:
        assert Dropout(rate)(self.activations(memory_format)).is_contiguous(memory_format=memory_format)

    def test_it_does_nothing_in_evaluation(self, rate: float, memory_format: torch.memory_format) -> None:
        activations = self.activations(memory_format)
        assert Dropout(rate).eval()(activations) is activations


def test_dropout_takes_inputs_that_are_not_dense() -> None:
    torch.manual_seed(0)
    whole = torch.ones(64, 32, 10, 10)
    for activations in (whole[:, ::2], whole.narrow(2, 1, 5), torch.ones(1, 1, 10, 10).expand(64, 32, 10, 10)):
        mask = byte_mask(activations, 0.5)
        assert mask.shape == activations.shape
        assert mask.float().mean().item() == pytest.approx(0.5, abs=0.02)
        assert not torch.equal(mask[0], mask[1])


def test_a_mask_follows_torchs_seed() -> None:
    activations = torch.ones(1000)
    torch.manual_seed(3)
    first, second = byte_mask(activations, 0.5), byte_mask(activations, 0.5)
    torch.manual_seed(3)
    assert torch.equal(byte_mask(activations, 0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("rate", [-0.25, 1.0, 0.3])
def test_a_rate_that_bytes_cannot_give_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="256ths"):
        Dropout(rate)
