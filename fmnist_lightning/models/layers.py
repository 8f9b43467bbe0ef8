"""What the nets are made of: scaling of images, dropout with cheap masks, Keras's initial weights."""

from collections.abc import Iterable, Sequence
from numbers import Real
from operator import index
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BYTE_VALUES = 256  # one random byte decides about one activation

ImageShape = tuple[int, int, int]  # channels, height, width


def as_shape(image_shape: Sequence[int]) -> ImageShape:
    """The shape as three plain integers. Raises ValueError if it is another shape than channels, height and width."""
    try:
        channels, height, width = map(index, image_shape)
    except (TypeError, ValueError):
        channels = height = width = 0
    if min(channels, height, width) < 1:
        raise ValueError(
            f"cannot use the image_shape {image_shape!r}: expected channels, height and width, such as (1, 28, 28)"
        )
    return channels, height, width


def as_rates(dropout: float | Iterable[float], most: int, *, exactly: bool = True) -> list[float]:
    """Dropout rates, `most` of them or with `exactly=False` up to that; a number stands for three equal ones.

    Raises ValueError for another number of rates.
    """
    rates: list[Any] = list(dropout) if isinstance(dropout, Iterable) else [dropout] * 3
    if not all(isinstance(rate, Real) for rate in rates) or len(rates) > most or (exactly and len(rates) < most):
        count = most if exactly else f"up to {most}"
        raise ValueError(f"cannot use the dropout {dropout!r}: expected {count} rates, or one number for all")
    return [float(rate) for rate in rates]


def check_images(images: Tensor, image_shape: ImageShape) -> None:
    """Raise ValueError if the images are not (B, *image_shape), or are floats outside of 0..1.

    The first step of every net. Compiled and exported nets check the shape alone, traced ones nothing, since a graph
    can't branch on values. On a GPU the check of floats waits for the GPU; uint8 needs none.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return
    channels, height, width = image_shape
    if images.dim() != 4 or images.size(1) != channels or images.size(2) != height or images.size(3) != width:
        raise ValueError(
            f"cannot use images of shape {list(images.shape)}: the model takes [batch, {channels}, {height}, {width}]"
        )
    if images.is_floating_point() and not torch.compiler.is_compiling() and not ((images >= 0) & (images <= 1)).all():
        raise ValueError(
            f"cannot use images from {images.min().item()} to {images.max().item()}: expected floats in 0..1, or uint8"
        )


def scale_images(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Map uint8 images from 0..255 to 0..1; floats must already be in 0..1. Raises TypeError for any other dtype."""
    if images.dtype == torch.uint8:
        return images.to(dtype) / 255
    if images.is_floating_point():
        return images.to(dtype)
    raise TypeError(f"cannot scale images of {images.dtype}: expected uint8 in 0..255 or floats in 0..1")


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` that computes with channels last, the faster layout on CPUs (LOG.md, 2026-11-22) and tensor cores.

    Its weights keep the default layout, because `parameters_to_vector` and Lightning's `ModelPruning` view them as
    vectors. It copies them at each step, and its outputs are channels last.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        return self._conv_forward(input, self.weight.to(memory_format=torch.channels_last), self.bias)


def byte_mask(activations: Tensor, rate: float) -> Tensor:
    """A mask of the shape and memory order of `activations`: False with probability `rate`, a whole number of 256ths.

    Draws eight bytes at a time from torch's global generator, on the CPU.
    """
    words = torch.empty((activations.numel() + 7) // 8, dtype=torch.int64)
    # `to=None` covers the whole range of int64, so all eight bytes of a word are uniform.
    words.random_(torch.iinfo(torch.int64).min, to=None)
    strides = torch.empty_like(activations, device="meta").stride()
    return words.view(torch.uint8).as_strided(activations.size(), strides) >= int(rate * BYTE_VALUES)


class Dropout(nn.Module):
    """`nn.Dropout` with cheaper masks on a CPU, at the nearest rate that a byte can give: 0/256 to 255/256.

    `nn.Dropout` draws a CPU mask with `bernoulli_`, which took 29% of a training step of the seed net on two cores
    (LOG.md, 2026-11-22). Other devices and compiled nets use torch's own kernel at the same rounded rate. What remains
    is scaled by 1 / (1 - the rounded rate), so the expected activation is exact. Raises ValueError for a rate outside
    [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"cannot drop activations at the rate {rate}: expected a number in [0, 1)")
        self.rate = min(round(rate * BYTE_VALUES), BYTE_VALUES - 1) / BYTE_VALUES

    def forward(self, activations: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return activations
        # TorchScript leaves out what comes after this only if its own function stands in the condition.
        if torch.jit.is_scripting() or torch.compiler.is_compiling() or activations.device.type != "cpu":  # type: ignore[attr-defined]
            return F.dropout(activations, self.rate)
        return activations * byte_mask(activations, self.rate).to(activations.dtype).mul_(1 / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def init_as_keras(net: nn.Module) -> None:
    """Initialize weights as Keras's layers do by default: Glorot uniform kernels, zero biases."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
