"""Augmentations: pure batched functions of images and a generator, on the images' own device.

Images are (B, C, H, W) uint8. All but `mix` change each image independently. `generator` must be on that device; the
default is torch's global one, whose state checkpoints keep.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import MixUp

# Random erasing: the rectangle's fraction of the image's area, and its height divided by its width.
# Source: Zhong et al. (2017), https://arxiv.org/abs/1708.04896.
ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)


def augment(images: Tensor, flip: bool, shift: int, erase: float, generator: Generator | None = None) -> Tensor:
    """Flip, then shift, then erase. Shape and dtype stay.

    `flip` mirrors half of the images left to right. `shift` is the largest number of pixels to move an image by, on
    each axis, in either direction; the margin is black. `erase` is the fraction of images that lose a rectangle.
    """
    if flip or shift:
        images = move(images, flip, shift, generator)
    return erase_rectangles(images, erase, generator) if erase else images


def move(images: Tensor, flip: bool, shift: int, generator: Generator | None = None) -> Tensor:
    """Flip and shift by one gather of pixels from the padded images."""
    count, channels, height, width = images.shape
    device = images.device
    # Where each image's window starts in the padded images, on both axes.
    top, left = (torch.randint(0, 2 * shift + 1, (count, 1), generator=generator, device=device) for _ in range(2))
    rows = torch.arange(height, device=device) + top  # (B, H)
    columns = torch.arange(width, device=device) + left  # (B, W)
    if flip:
        flipped = torch.rand(count, 1, generator=generator, device=device) < 0.5
        columns = torch.where(flipped, width - 1 + 2 * shift - columns, columns)
    sources = rows[:, :, None] * (width + 2 * shift) + columns[:, None, :]  # (B, H, W)
    padded = F.pad(images, (shift, shift, shift, shift)).flatten(2)  # (B, C, (H + 2 shift) * (W + 2 shift))
    return padded.gather(2, sources.flatten(1)[:, None].expand(-1, channels, -1)).view_as(images)


def erase_rectangles(images: Tensor, fraction: float, generator: Generator | None = None) -> Tensor:
    """Blacken a rectangle inside each of a `fraction` of the images, its size within ERASED_AREA and ERASED_RATIO."""
    count, _, height, width = images.shape
    chance, area, ratio, top, left = torch.rand(5, count, generator=generator, device=images.device)
    least, most = ERASED_AREA
    area = least + (most - least) * area
    low, high = map(math.log, ERASED_RATIO)
    ratio = (low + (high - low) * ratio).exp()
    rows = interval(height, (area * ratio).sqrt(), top)  # (B, H)
    columns = interval(width, (area / ratio).sqrt(), left)  # (B, W)
    erased = rows[:, :, None] & columns[:, None, :] & (chance < fraction)[:, None, None]  # (B, H, W)
    return images.masked_fill(erased[:, None], 0)


def interval(size: int, fraction: Tensor, position: Tensor) -> Tensor:
    """Which of `size` pixels an interval of a `fraction` of them covers; `position` is 0 to 1: (B, size) bool."""
    length = (size * fraction).round().clamp(1, size)
    start = (position * (size - length + 1)).floor()
    pixels = torch.arange(size, device=fraction.device)
    return (pixels >= start[:, None]) & (pixels < (start + length)[:, None])


def mix(images: Tensor, labels: Tensor, num_classes: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Blend each image with another of the batch, and their labels (B,) into probabilities (B, num_classes) float32.

    The weight is drawn from Beta(alpha, alpha) by torch's global generator, once per batch. With an alpha well below 1
    most batches stay nearly as they are. Pixels are rounded to the images' dtype.
    Source: mixup, Zhang et al. (2017), https://arxiv.org/abs/1710.09412, as in torchvision.
    """
    mixed, targets = MixUp(alpha=alpha, num_classes=num_classes)(images.float(), labels)
    return mixed.round().to(images.dtype), targets
