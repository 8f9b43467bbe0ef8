"""A trained net for use in Python: pictures in, classes and probabilities out.

from fmnist_lightning.predict.classifier import load_classifier
classify = load_classifier()
print(classify("boot.png"))
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fmnist_lightning.cli import LOG_DIR
from fmnist_lightning.data.fashion_mnist import IMAGE_SIZE
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.layers import NUM_CLASSES, scale_images
from fmnist_lightning.models.pretrained import Pretrained, load_pretrained
from fmnist_lightning.models.tta import MirrorAveraged
from fmnist_lightning.predict.pictures import Grey, Invert, load_picture, prepare, upright

ACCEPTED = (
    "a path, a PIL image, a list of inputs, an array or tensor of data (28, 28), (B, 28, 28) or (B, 1, 28, 28), or one "
    "of a picture (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
)


class Prediction(NamedTuple):
    """What a net makes of B images."""

    probs: Tensor  # (B, 10) float32, on the CPU
    classes: Sequence[str]  # the ten names, by label

    @property
    def labels(self) -> Tensor:
        """The most probable label of each image, (B,) int64."""
        return self.probs.argmax(dim=1)

    @property
    def names(self) -> list[str]:
        """The most probable class of each image."""
        return [self.classes[label] for label in self.labels.tolist()]

    def top(self, k: int = 3) -> list[list[tuple[int, float]]]:
        """The k most probable labels of each image with their probabilities, the highest first."""
        probs, labels = self.probs.topk(min(k, NUM_CLASSES), dim=1)
        return [list(zip(*pair, strict=True)) for pair in zip(labels.tolist(), probs.tolist(), strict=True)]

    def __str__(self) -> str:
        """A line an image, its three most probable classes."""
        lines = ([f"{self.classes[label]} {prob:.1%}" for label, prob in top] for top in self.top())
        return "\n".join(", ".join(line) for line in lines)


class PictureClassifier:
    """A net that takes whatever an image comes as; made by `load_classifier`."""

    def __init__(self, pretrained: Pretrained, device: torch.device, invert: Invert, batch_size: int) -> None:
        self.net = pretrained.net.to(device)
        self.card = pretrained.card
        self.device = device
        self.invert = invert
        self.batch_size = batch_size

    def __call__(self, inputs: Any) -> Prediction:
        """Classes and probabilities of one or more images.

        Data is taken as it is, light garments on dark as in the data set: arrays and tensors of (28, 28), (B, 28, 28)
        or (B, 1, 28, 28). Anything else is a picture and goes through `images.prepare`: paths, PIL images, and arrays
        or tensors of (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). Both are uint8 in 0..255 or floats in 0..1. A list or
        tuple may hold any of these.
        Raises ValueError or TypeError for other shapes, values and types, and `images.PictureError` for a file that
        can't be read or a picture of nothing.
        """
        probs = predict_probs(self.net, to_images(inputs, self.invert), self.batch_size, self.device)
        return Prediction(probs, self.card["classes"])


def load_classifier(
    source: str = "packaged",
    *,
    device: str = "auto",
    invert: Invert = "auto",
    batch_size: int = 256,
    tta: bool = False,
    log_dir: str = LOG_DIR,
) -> PictureClassifier:
    """A classifier with the weights that come with the package, or another net's.

    `source` is `packaged`, `last` for the newest run in `log_dir`, a run folder (the checkpoint it tests), a `.ckpt`
    or a `.safetensors` file. `device` is `auto`, the accelerator if this machine has one, else the CPU; or a name of
    torch's. `invert` says whether pictures are negated: `auto` (those with a bright background), `always`, `never`.
    `batch_size` bounds memory; results don't depend on it. `tta` averages over each image and its mirror image.
    Raises UserError where the weights can't be read or the device isn't there, ValueError for another `invert`.
    """
    if invert not in get_args(Invert):  # else a misspelt one would mean never
        raise ValueError(f"invert is {invert}; expected {', '.join(get_args(Invert))}")
    pretrained = load_pretrained(source, log_dir)
    if tta:
        pretrained = pretrained._replace(net=MirrorAveraged(pretrained.net).eval())
    return PictureClassifier(pretrained, choose_device(device), invert, batch_size)


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `gpu`, or torch's name of one means here. Raises UserError where it is not there."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return found or torch.device("cpu")
    try:
        device = found if name == "gpu" and found else torch.device("cuda" if name == "gpu" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's, by the way it was built
        reason = str(error).partition("\n")[0]
        raise UserError(f"the device {name} can't be used here ({reason}): take auto, or cpu") from error
    return device


def predict_probs(net: nn.Module, images: Tensor, batch_size: int, device: torch.device) -> Tensor:
    """Probabilities (B, 10) float32 on the CPU of images (B, 1, 28, 28), computed in 32 bits."""
    # cuDNN's convolutions would use TF32, 10 bits of 23, by default.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return torch.cat([net(batch.to(device)).float().softmax(dim=1).cpu() for batch in images.split(batch_size)])


def to_images(inputs: Any, invert: Invert) -> Tensor:
    """Images (B, 1, 28, 28), uint8 or float32, of whatever `PictureClassifier` takes."""
    if isinstance(inputs, list | tuple):
        # Floats and bytes in one batch: as the net itself scales them.
        parts = [scale_images(to_images(one, invert), torch.float32) for one in inputs]
        return torch.cat([torch.empty(0, 1, IMAGE_SIZE, IMAGE_SIZE), *parts])
    if isinstance(inputs, str | PathLike):
        return as_batch(load_picture(Path(inputs), invert))
    if isinstance(inputs, Image.Image):
        return as_batch(prepare(upright(inputs), invert))
    if isinstance(inputs, np.ndarray):
        inputs = torch.from_numpy(inputs.copy())  # torch can't take one that is read-only or runs backwards
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs are {type(inputs).__name__}; expected {ACCEPTED}")
    return from_values(inputs.detach().cpu(), invert)


def from_values(values: Tensor, invert: Invert) -> Tensor:
    """Images (B, 1, 28, 28) of a tensor: data as it is, one picture prepared.

    Raises TypeError for other dtypes than uint8 and floats, ValueError for other values and shapes.
    """
    if values.is_floating_point():
        values = values.float()
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"floats are from {values.min():g} to {values.max():g}; expected 0 to 1")
    elif values.dtype != torch.uint8:
        raise TypeError(f"values are {values.dtype}; expected uint8 in 0..255 or floats in 0..1")
    shape = values.shape
    if shape[-2:] == (IMAGE_SIZE, IMAGE_SIZE) and (len(shape) in (2, 3) or (len(shape) == 4 and shape[1] == 1)):
        return values.reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE)
    if not values.numel() or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))):
        raise ValueError(f"the shape is {tuple(shape)}; expected {ACCEPTED}")
    levels = values if values.dtype == torch.uint8 else (values * 255).round().to(torch.uint8)
    pixels = levels.cpu().numpy()
    return as_batch(prepare(Image.fromarray(pixels[..., 0] if shape[2:] == (1,) else pixels), invert))


def as_batch(image: Grey) -> Tensor:
    """(28, 28) to (1, 1, 28, 28)."""
    return torch.tensor(image)[None, None]
