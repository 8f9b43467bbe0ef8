"""Augmentations: pure batched functions of images and a generator, on the images' own device.

Images are (B, 1, 28, 28) uint8; but for `mix`, each image is changed on its own. `generator` is one of that device;
without it torch's global one is drawn from, whose state a run's checkpoints keep.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from fmnist_lightning.data.fashion_mnist import CLASSES

# Random erasing: the rectangle's share of the image, and its height by its width.
# Source: Zhong et al. (2017), https://arxiv.org/abs/1708.04896.
ERASED_SHARE = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)


def augment(images: Tensor, flip: bool, shift: int, erase: float, generator: Generator | None = None) -> Tensor:
    """Images of the same shape and dtype, each flipped left to right or not, then moved, then a part of it erased.

    With `flip`, half of them are flipped. `shift` is the largest number of pixels that an image is moved by, on each
    axis to either side; black comes in. `erase` is the share of images that lose a rectangle, which becomes black.
    """
    if flip or shift:
        images = move(images, flip, shift, generator)
    return erase_rectangles(images, erase, generator) if erase else images


def move(images: Tensor, flip: bool, shift: int, generator: Generator | None = None) -> Tensor:
    """Flip and shift by one gather: which pixel of the padded image each pixel becomes."""
    count, _, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device) + offsets(count, shift, generator, device)  # (B, H)
    columns = torch.arange(width, device=device) + offsets(count, shift, generator, device)  # (B, W)
    if flip:
        flipped = torch.rand(count, 1, generator=generator, device=device) < 0.5
        columns = torch.where(flipped, width - 1 + 2 * shift - columns, columns)
    places = rows[:, :, None] * (width + 2 * shift) + columns[:, None, :]  # (B, H, W)
    padded = F.pad(images, (shift, shift, shift, shift)).flatten(1)  # (B, (H + 2 shift) * (W + 2 shift))
    return padded.gather(1, places.flatten(1)).view_as(images)


def offsets(count: int, shift: int, generator: Generator | None, device: torch.device) -> Tensor:
    """Where each image's window begins on an axis of the padded images: (count, 1), 0 to 2 shift."""
    return torch.randint(0, 2 * shift + 1, (count, 1), generator=generator, device=device)


def erase_rectangles(images: Tensor, share: float, generator: Generator | None = None) -> Tensor:
    """Blacken a rectangle, wholly inside, in `share` of the images; of the size of ERASED_SHARE and ERASED_RATIO."""
    count, _, height, width = images.shape
    chance, area, ratio, top, left = torch.rand(5, count, generator=generator, device=images.device)
    least, most = ERASED_SHARE
    area = least + (most - least) * area
    low, high = map(math.log, ERASED_RATIO)
    ratio = (low + (high - low) * ratio).exp()
    rows = inside(height, (area * ratio).sqrt(), top)  # (B, H)
    columns = inside(width, (area / ratio).sqrt(), left)  # (B, W)
    erased = rows[:, :, None] & columns[:, None, :] & (chance < share)[:, None, None]  # (B, H, W)
    return images.masked_fill(erased[:, None], 0)


def inside(size: int, share: Tensor, place: Tensor) -> Tensor:
    """Which of `size` pixels an interval of `share` of them covers; `place`, 0 to 1, says where it lies: (B, size)."""
    length = (size * share).round().clamp(1, size)
    start = (place * (size - length + 1)).floor()
    pixels = torch.arange(size, device=share.device)
    return (pixels >= start[:, None]) & (pixels < (start + length)[:, None])


def mix(images: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Each image blended with another of the batch, and their labels (B,) as probabilities (B, 10) float32.

    One share for the batch, drawn from Beta(alpha, alpha): with an alpha well below 1 most batches stay nearly as they
    are. Pixels are rounded, to images as they are stored. By torch's global generator alone.
    Source: mixup, Zhang et al. (2017), https://arxiv.org/abs/1710.09412, as torchvision has it.
    """
    from torchvision.transforms.v2 import MixUp  # here, since few trainings mix, and the import takes long

    mixed, targets = MixUp(alpha=alpha, num_classes=len(CLASSES))(images.float(), labels)
    return mixed.round().to(images.dtype), targets
