"""Small residual nets, plain `nn.Module`s as those of models.py. LOG.md has what each part is worth."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmnist_lightning.layers import NUM_CLASSES, Dropout, scale_images

# Mean and standard deviation of the training set's pixels, in 0..1; tests/test_residual.py computes them.
PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Without a bias, which the batch norm behind it would take away again."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """Two convolutions and a way round them, which lets gradients reach early layers unchanged.

    Source: He et al. (2015), https://arxiv.org/abs/1512.03385. Where the size is halved, the way round averages instead
    of leaving pixels out (ResNet-D, He et al. 2018, https://arxiv.org/abs/1812.01187).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        last_norm = nn.BatchNorm2d(outputs)
        nn.init.zeros_(last_norm.weight)  # a block starts as its way round, so a deep net as a shallow one
        self.body = nn.Sequential(
            convolution(inputs, outputs, 3, stride),
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
    """A convolution, three stages of blocks, the mean over all positions, one dense layer.

    `widths` and `depths` are channels and blocks of the stages, of which the second and third halve the size; the first
    convolution does with a `stem_stride` of 2, for a quarter of the work. `dropout` has the rates behind each stage.
    """

    def __init__(
        self, dropout: Sequence[float], widths: Sequence[int], depths: Sequence[int], stem_stride: int = 1
    ) -> None:
        super().__init__()
        width = widths[0]
        # (B, C, H, H) with H = 28 / stem_stride
        layers: list[nn.Module] = [convolution(1, width, 3, stem_stride), nn.BatchNorm2d(width), nn.ReLU()]
        for outputs, depth, rate, stride in zip(widths, depths, dropout, (1, 2, 2), strict=True):
            for number in range(depth):
                layers.append(Block(width, outputs, 1 if number else stride))
                width = outputs
            layers.append(Dropout(rate))  # (B, C, H, H), then half of that, then a quarter, rounded up
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, NUM_CLASSES)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, 28, 28), uint8 in 0..255 or float in 0..1, to logits (B, 10)."""
        scaled = (scale_images(images, self.classifier.weight.dtype) - PIXEL_MEAN) / PIXEL_STD
        return self.classifier(self.features(scaled).mean(dim=(2, 3)))
