"""Dropout with byte masks, convolutions with channels last, and the checking and scaling of images."""

import pytest
import torch
from torch.nn import functional as F

from fmnist_lightning.models.layers import Conv2d, Dropout, byte_mask, check_images, scale_images

both_formats = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
ONES = torch.ones(64, 32, 13, 13)


def test_scaling_refuses_another_dtype() -> None:
    with pytest.raises(TypeError, match="int64"):
        scale_images(torch.zeros(1, dtype=torch.int64), torch.float32)


@pytest.mark.parametrize(
    ("images", "word"),
    [
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "32, 32"),
        (torch.zeros(2, 3, 28, 28, dtype=torch.uint8), r"2, 3"),
        (torch.zeros(2, 1, 28, 27), "27"),
        (torch.zeros(2, 28, 28), "2, 28, 28"),
        (torch.full((2, 1, 28, 28), 255.0), "255"),
        (torch.full((2, 1, 28, 28), -0.01), "-0.0"),
        (torch.zeros(2, 1, 28, 28).index_fill(3, torch.tensor(27), torch.nan), "nan"),
    ],
)
def test_check_refuses_another_shape_or_range(images: torch.Tensor, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        check_images(images, (1, 28, 28))


def test_check_takes_bytes_and_floats_in_0_to_1() -> None:
    for dtype in (torch.uint8, torch.float16, torch.float64):
        check_images(torch.ones(2, 1, 28, 28, dtype=dtype), (1, 28, 28))
    check_images(torch.empty(0, 1, 28, 28), (1, 28, 28))


@pytest.mark.parametrize(("channels", "size"), [(8, 3), (1, 3), (8, 1)])
def test_convolution_is_torchs_with_channels_last(channels: int, size: int) -> None:
    """Bit for bit that of channels-last weights, forward and back, while its own weights and gradients are plain."""
    torch.manual_seed(0)
    ours, theirs = Conv2d(channels, 16, size), torch.nn.Conv2d(channels, 16, size)
    theirs.load_state_dict(ours.state_dict())
    theirs.to(memory_format=torch.channels_last)
    features = torch.randn(4, channels, 10, 10)
    outputs = [layer(features) for layer in (ours, theirs)]
    for output in outputs:
        output.square().sum().backward()
    assert outputs[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(*outputs)
    assert torch.equal(ours.weight.grad, theirs.weight.grad)
    assert ours.weight.is_contiguous()
    assert ours.weight.grad.is_contiguous()
    assert theirs.weight.stride() != ours.weight.stride()  # the control


@both_formats
@pytest.mark.parametrize("rate", [0.25, 0.3, 0.5])
def test_dropout_drops_at_its_rate_and_scales_the_rest(rate: float, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    activations = ONES.clone(memory_format=memory_format).requires_grad_()
    dropped = Dropout(rate)(activations)
    rate = round(rate * 256) / 256
    assert dropped.is_contiguous(memory_format=memory_format)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
    # 346,112 independent draws: the share lies within five standard errors of the rate.
    error = (rate * (1 - rate) / dropped.numel()) ** 0.5
    assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=5 * error)
    dropped.sum().backward()
    assert torch.equal(activations.grad, dropped.detach())  # the gradient of the sum is the scaled mask
    assert Dropout(rate).eval()(activations) is activations


@both_formats
@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_dropout_draws_are_independent(rate: float, memory_format: torch.memory_format) -> None:
    """Neighbors along each axis, places eight bytes apart, and two masks are uncorrelated."""
    torch.manual_seed(1)
    first, second = (byte_mask(ONES.contiguous(memory_format=memory_format), rate).float() for _ in range(2))
    pairs = [(first, second)]
    pairs += [(first.narrow(axis, 1, 12), first.narrow(axis, 0, 12)) for axis in range(4)]
    flat = first.permute(0, 2, 3, 1).flatten() if memory_format == torch.channels_last else first.flatten()
    pairs += [(flat[gap:], flat[:-gap]) for gap in (1, 8, 64)]
    for left, right in pairs:
        correlation = torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1].item()
        assert abs(correlation) < 5 / left.numel() ** 0.5


def test_dropout_takes_inputs_that_are_not_dense() -> None:
    torch.manual_seed(0)
    for activations in (torch.ones(64, 32, 10, 10)[:, ::2], torch.ones(1, 1, 10, 10).expand(64, 32, 10, 10)):
        mask = byte_mask(activations, 0.5)
        assert mask.shape == activations.shape
        assert mask.float().mean().item() == pytest.approx(0.5, abs=0.02)
        assert not torch.equal(mask[0], mask[1])


def test_dropout_follows_torchs_seed() -> None:
    """Exact values: recipes promise the same masks for ever, and a mask reads the generator in words of 64 bits."""
    torch.manual_seed(3)
    words = torch.empty(3, dtype=torch.int64).random_(torch.iinfo(torch.int64).min, to=None)
    kept = words.view(torch.uint8)[:20] >= 64
    torch.manual_seed(3)
    dropout, activations = Dropout(0.25), torch.rand(20, generator=torch.Generator().manual_seed(0))
    dropped = dropout(activations)
    assert torch.equal(dropped, activations * kept * torch.tensor(1 / 0.75))
    assert not torch.equal(dropped, dropout(activations))


def test_dropout_rounds_its_rate_to_256ths() -> None:
    for rate, rounded in ((0, 0), (0.001, 0), (0.3, 77), (0.5, 128), (0.9999, 255), (255 / 256, 255)):
        assert Dropout(rate).rate == rounded / 256
    for rate in (-0.25, 1.0, float("nan")):
        with pytest.raises(ValueError, match=str(rate)):
            Dropout(rate)


def test_dropout_elsewhere_uses_torchs_kernel_at_the_same_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    monkeypatch.setattr(F, "dropout", lambda activations, rate: (rates.append(rate), activations)[1])
    Dropout(0.3)(torch.ones(4, device="meta"))
    assert rates == [77 / 256]
