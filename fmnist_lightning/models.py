"""The nets, plain `nn.Module`s that know nothing of Lightning.

Each takes images as they are stored, (B, 1, 28, 28) uint8, scales them itself, and returns logits (B, 10).
"""

from collections.abc import Callable, Sequence

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


class SeedNet(nn.Module):
    """The original's net, 225,034 parameters.

    Source: the Keras listing of Fashion-MNIST-CNN-Dropout; tests/test_keras.py holds the two equal.
    Two changes make it faster and keep its function. ReLU comes after pooling: max(relu(a), relu(b)) = relu(max(a, b)),
    for a quarter of the work. And what no logit depends on is not computed: see USED_SIZE.

    `dropout` has the rates behind the two poolings and the dense layer.
    """

    # The second pooling takes 10 of 11 rows of its input, which need 12 of 13 pooled rows, so 24 of 26 rows of the
    # first convolution, so 26 of the image's 28; columns likewise. 17 % less work, to the same logits and gradients.
    USED_SIZE = 26

    def __init__(self, dropout: Sequence[float] = (0.25, 0.25, 0.5)) -> None:
        super().__init__()
        first, second, dense = dropout
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3),  # (B, 32, 24, 24)
            nn.MaxPool2d(2),  # (B, 32, 12, 12)
            nn.ReLU(),
            Dropout(first),
            nn.Conv2d(32, 64, kernel_size=3),  # (B, 64, 10, 10)
            nn.MaxPool2d(2),  # (B, 64, 5, 5)
            nn.ReLU(),
            Dropout(second),
            nn.Flatten(),  # (B, 1600)
            nn.Linear(64 * 5 * 5, 128),  # (B, 128)
            nn.ReLU(),
            Dropout(dense),
            nn.Linear(128, NUM_CLASSES),  # (B, 10)
        )
        init_as_keras(self)
        # Channels last is the faster layout for CPU convolutions (LOG.md, 2026-11-22) and for tensor cores.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, 28, 28), uint8 in 0..255 or float in 0..1, to logits (B, 10)."""
        used = images[..., : self.USED_SIZE, : self.USED_SIZE]
        return self.layers(scale_images(used, next(self.parameters()).dtype))


MODELS: dict[str, Callable[[Sequence[float]], nn.Module]] = {"seed": SeedNet}
