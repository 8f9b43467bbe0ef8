"""Any image model of timm as a net: `--model timm:NAME`. Needs the extra timm."""

from difflib import get_close_matches
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmnist_lightning.cli.shell import require
from fmnist_lightning.models.layers import ImageShape, as_shape, check_images, scale_images

PREFIX = "timm:"
# timm's models halve an image five times, and most fail if nothing is left of it, as of 28 x 28.
UNIT = 32


class TimmNet(nn.Module):
    """A model of timm that takes and returns what the nets of nets.py do.

    A black border pads images to a multiple of 32, or of the model's patches. So 28 x 28 suits nearly every model, and
    no patch leaves pixels out. Then the mean and standard deviation of the model's pretrained weights normalize
    them; for another number of channels, the average of these. Weights are new unless `pretrained`, which downloads
    them. Raises ValueError if timm has no such model, or it can't take such images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, image_shape: ImageShape, num_classes: int, *, pretrained: bool = False) -> None:
        super().__init__()
        require(["timm"], "a model of timm", "timm")
        import timm

        # Also refuses timm's names of models on the internet or on disk, which a stranger's card could have.
        if not timm.is_model(name):
            close = get_close_matches(name.partition(".")[0], timm.list_models()) or ["resnet18"]
            reason = "timm has no such model" if name else "the name of a model is missing"
            raise ValueError(f"cannot build {PREFIX + name!r}: {reason} (such as {PREFIX}{f', {PREFIX}'.join(close)})")
        self.image_shape = channels, height, width = as_shape(image_shape)
        config: Any = timm.get_pretrained_cfg(name)
        arguments: dict[str, Any] = {"in_chans": channels, "num_classes": num_classes}

        def build(unit: int) -> Any:
            self.padding = padding(width, unit) + padding(height, unit)
            size = height + sum(self.padding[2:]), width + sum(self.padding[:2])
            return timm.create_model(name, pretrained, **arguments, img_size=size if config.fixed_input_size else None)

        try:
            self.model = build(UNIT)
            patch = getattr(getattr(self.model, "patch_embed", None), "patch_size", UNIT)
            patch = patch if isinstance(patch, int) else max(patch)
            if config.fixed_input_size and UNIT % patch:
                self.model = build(patch)
            self.register_buffer("mean", per_channel(config.mean, channels), persistent=False)
            self.register_buffer("std", per_channel(config.std, channels), persistent=False)
            with torch.no_grad():
                self.eval()(torch.zeros(1, *image_shape, dtype=torch.uint8))
        except (AssertionError, IndexError, OSError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
            reason = shorten(str(error) or repr(error), 200)
            raise ValueError(
                f"cannot build {PREFIX}{name} for images {channels} x {height} x {width}: {reason} (take another model)"
            ) from error
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), uint8 in 0..255 or float in 0..1, to logits (B, num_classes)."""
        check_images(images, self.image_shape)
        padded = F.pad(scale_images(images, self.mean.dtype), self.padding)
        return self.model((padded - self.mean) / self.std)


def padding(length: int, unit: int) -> tuple[int, int]:
    """How many pixels before and after `length` make it a multiple of `unit`."""
    total = -length % unit
    return total // 2, total - total // 2


def per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    """(1, channels, 1, 1): the values, or their average if their number is another."""
    tensor = torch.tensor(values)
    return (tensor if len(values) == channels else tensor.mean().expand(channels).clone()).view(1, -1, 1, 1)
