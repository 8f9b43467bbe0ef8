"""What the nets are made of: scaling of images, dropout with cheap masks, Keras's start weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CLASSES = 10
# One random byte decides over one activation, so a rate is a whole number of 256ths: .25 and .5 are exact.
BYTE_VALUES = 256


def scale_images(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Map uint8 images from 0..255 to 0..1, as the original does; float images are taken to be there already.

    Raises TypeError for any other dtype, which would train on the wrong range without a word.
    """
    if images.dtype == torch.uint8:
        return images.to(dtype) / 255
    if images.is_floating_point():
        return images.to(dtype)
    raise TypeError(f"images are {images.dtype}; expected uint8 in 0..255 or floats in 0..1")


def byte_mask(activations: Tensor, rate: float) -> Tensor:
    """A mask like `activations`, in their memory order where that is dense: False with probability `rate`.

    Draws eight bytes at a time from torch's global generator.
    """
    count = activations.numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64, device=activations.device)
    # `to=None` covers all of the int64 range, so all eight bytes of a word are uniform.
    words.random_(torch.iinfo(torch.int64).min, to=None)
    strides = torch.empty_like(activations, device="meta").stride()
    in_order = words.view(torch.uint8)[:count].as_strided(activations.size(), strides)
    return in_order >= int(rate * BYTE_VALUES)


class Dropout(nn.Module):
    """Dropout as `nn.Dropout` defines it, with cheaper masks on a CPU.

    `nn.Dropout` draws a CPU mask with `bernoulli_`, which took 29 % of a training step of the seed net on two cores
    (LOG.md, 2026-11-22). On other devices torch's own fused kernel is used.
    Raises ValueError for a rate that is not a whole number of 256ths.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1 or rate * BYTE_VALUES % 1:
            raise ValueError(f"dropout rate is {rate}; expected a whole number of 256ths in [0, 1)")
        self.rate = rate

    def forward(self, activations: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return activations
        if activations.device.type != "cpu":
            return F.dropout(activations, self.rate)
        return activations * byte_mask(activations, self.rate).to(activations.dtype).mul_(1 / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def init_as_keras(net: nn.Module) -> None:
    """Start weights as Keras's layers do by default: Glorot uniform kernels, zero biases."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
