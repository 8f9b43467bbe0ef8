"""Small residual nets, plain `nn.Module`s as those of nets.py. LOG.md says what each part is worth.

Axes: B images, C channels, H rows, W columns.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fmnist_lightning.models.layers import (
    Conv2d,
    Dropout,
    ImageShape,
    as_rates,
    as_shape,
    check_images,
    scale_images,
)

# Mean and standard deviation of the pixels of Fashion-MNIST's training set, in 0..1; tests/models/test_nets.py computes
# them. All data sets and channels use them: they only center inputs roughly, and batch norm follows the first layer.
PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> Conv2d:
    """Without a bias, which the batch norm after it would subtract again."""
    return Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """Two convolutions and a shortcut, through which gradients reach early layers unchanged.

    Source: He et al. (2015), https://arxiv.org/abs/1512.03385. A shortcut that halves the size averages instead of
    leaving pixels out (ResNet-D, He et al. 2018, https://arxiv.org/abs/1812.01187).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        last_norm = nn.BatchNorm2d(outputs)
        nn.init.zeros_(last_norm.weight)  # a block starts as its shortcut, so a deep net trains like a shallow one
        self.body = nn.Sequential(  # (B, inputs, H, W)
            convolution(inputs, outputs, 3, stride),  # (B, outputs, H / stride, W / stride), rounded up
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            convolution(outputs, outputs, 3),
            last_norm,
        )
        shortcut: list[nn.Module] = [nn.AvgPool2d(stride, ceil_mode=True)] if stride > 1 else []
        if inputs != outputs:
            shortcut += [convolution(inputs, outputs, 1), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride), rounded up."""
        return F.relu(self.shortcut(features) + self.body(features))


class ResidualNet(nn.Module):
    """Convolutions, stages of blocks, the mean over all positions, one dense layer.

    `stem` has the channels of the first convolutions. The last of them has `stem_stride`: 2 halves the size, so all
    later layers do a quarter of the work. `widths` has the channels of each stage's block. Every stage except the first
    halves the size. `dropout` has the rates after the last stages; a number is that of the last three.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        dropout: float | Sequence[float] = (0.25, 0.25, 0.5),
        *,
        stem: Sequence[int],
        widths: Sequence[int],
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        self.image_shape = channels, *_ = as_shape(image_shape)
        self.mean, self.std = PIXEL_MEAN, PIXEL_STD
        layers: list[nn.Module] = []  # (B, C, H, W)
        for number, outputs in enumerate(stem, 1):
            stride = stem_stride if number == len(stem) else 1
            layers += [convolution(channels, outputs, 3, stride), nn.BatchNorm2d(outputs), nn.ReLU()]  # (B, C, H, W)
            channels = outputs
        last_rates = as_rates(dropout, len(widths), exactly=False)
        rates = [0.0] * (len(widths) - len(last_rates)) + last_rates
        for stage, (outputs, rate) in enumerate(zip(widths, rates, strict=True)):
            # (B, C, H, W), then (B, C, H / 2, W / 2), rounded up, and so on
            layers += [Block(channels, outputs, 2 if stage else 1), Dropout(rate)]
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), uint8 in 0..255 or float in 0..1, to logits (B, num_classes)."""
        check_images(images, self.image_shape)
        scaled = (scale_images(images, self.classifier.weight.dtype) - self.mean) / self.std  # (B, C, H, W)
        features = self.features(scaled)  # (B, C, H, W)
        return self.classifier(features.mean(dim=(2, 3)))  # (B, C) to (B, num_classes)
