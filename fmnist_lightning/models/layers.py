"""What the nets are made of: scaling of images, dropout with cheap masks, Keras's initial weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BYTE_VALUES = 256  # one random byte decides about one activation


ImageShape = tuple[int, int, int]  # channels, height, width


def scale_images(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Map uint8 images from 0..255 to 0..1; floats must already be in 0..1. Raises TypeError for any other dtype."""
    if images.dtype == torch.uint8:
        return images.to(dtype) / 255
    if images.is_floating_point():
        return images.to(dtype)
    raise TypeError(f"cannot scale images of {images.dtype}: expected uint8 in 0..255 or floats in 0..1")


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
    (LOG.md, 2026-11-22). Other devices use torch's own kernel at the same rounded rate. What remains is scaled by
    1 / (1 - the rounded rate), so the expected activation is exact. Raises ValueError for a rate outside [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"cannot drop activations at the rate {rate}: expected a number in [0, 1)")
        self.rate = min(round(rate * BYTE_VALUES), BYTE_VALUES - 1) / BYTE_VALUES

    def forward(self, activations: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return activations
        if activations.device.type != "cpu":
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
