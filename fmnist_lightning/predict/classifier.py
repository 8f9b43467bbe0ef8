"""A trained model for use in Python: pictures in, classes and probabilities out.

from fmnist_lightning import load_classifier
classify = load_classifier()
print(classify("boot.png"))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fmnist_lightning.cli.types import LOG_DIR
from fmnist_lightning.data.pictures import upright
from fmnist_lightning.data.sets import recorded_info
from fmnist_lightning.data.source import DataInfo
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.layers import scale_images
from fmnist_lightning.models.pretrained import load_pretrained
from fmnist_lightning.models.tta import MirrorAveraged
from fmnist_lightning.predict.pictures import Framed, Invert, frame, load_picture


class Prediction(NamedTuple):
    """What a model predicts for B images. Printed, it shows the three most probable classes of each."""

    probs: Tensor  # (B, classes) float32, on the CPU
    classes: Sequence[str]  # the names, by label
    notes: Sequence[str]  # B: why the prediction of a picture is doubtful, or ""

    @property
    def labels(self) -> Tensor:
        """The most probable label of each image, (B,) int64."""
        return self.probs.argmax(dim=1)

    @property
    def names(self) -> list[str]:
        """The most probable class of each image."""
        return [self.classes[label] for label in self.labels.tolist()]

    def top(self, k: int = 3) -> list[list[tuple[int, float]]]:
        """The k most probable labels of each image, or all, with probabilities, highest first."""
        probs, labels = self.probs.topk(min(k, len(self.classes)), dim=1)
        return [list(zip(*pair, strict=True)) for pair in zip(labels.tolist(), probs.tolist(), strict=True)]

    def __str__(self) -> str:
        lines = (", ".join(f"{self.classes[label]} {prob:.1%}" for label, prob in top) for top in self.top())
        return "\n".join(line + in_brackets(note) for line, note in zip(lines, self.notes, strict=True))


def in_brackets(note: str) -> str:
    """A note as the end of a line."""
    return f" ({note})" if note else ""


@dataclass(eq=False)
class PictureClassifier:
    """A model that takes images in many forms; `load_classifier` makes one."""

    net: nn.Module
    card: dict[str, Any]
    info: DataInfo  # the data set of its training: names of classes, shape of images, how pictures are framed
    device: torch.device
    invert: Invert
    batch_size: int

    def __call__(self, inputs: Any) -> Prediction:
        """Classify one or more images.

        Arrays and tensors in the model's image shape (C, H, W) are data and taken as they are: (C, H, W) or
        (B, C, H, W), and if C is 1 also (H, W) or (B, H, W). Everything else is a picture and goes through
        `pictures.frame`: paths, PIL images, and arrays and tensors of any other shape (height, width),
        (height, width, 1), (height, width, 3) or (height, width, 4). If a shape is both, it is data. Values are uint8
        in 0..255 or floats in 0..1. A list or tuple may mix all of these.
        Raises ValueError or TypeError for anything else, and PictureError for a file that can't be read or a picture
        that shows nothing.
        """
        images, notes = to_images(inputs, self.info, self.invert)
        # By default cuDNN's convolutions use TF32, which keeps 10 of 23 bits.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            batches = [self.net(batch.to(self.device)).float() for batch in images.split(self.batch_size)]
            probs = torch.cat([logits.softmax(dim=1).cpu() for logits in batches])
        return Prediction(probs, self.info.classes, notes)


def load_classifier(
    source: str = "packaged",
    *,
    net: nn.Module | None = None,
    device: str = "auto",
    invert: Invert = "auto",
    batch_size: int = 256,
    tta: bool = False,
    log_dir: str = LOG_DIR,
) -> PictureClassifier:
    """Load a classifier with the packaged weights or another model's.

    classify = load_classifier("lightning_logs/version_0", device="cpu")
    print(classify.info.title, classify.info.classes, classify.info.image_shape)
    found = classify("new.jpg")  # or a PIL image, an array, a tensor, or a list of these
    print(found)  # the three most probable classes
    print(found.names[0], found.probs[0].max().item())
    for label, probability in found.top(2)[0]:
        print(classify.info.classes[label], probability)

    `source` is `packaged`, `last` for the newest run in `log_dir`, a run folder (the checkpoint that it tests), a
    `.ckpt` or a `.safetensors` file. `net` takes its weights if it is no model of this project. `device` is `auto`, for
    this machine's accelerator or else its CPU, or one of torch's names. For garments, an image shows their distance
    from the background if `invert` is `auto`, their own brightness for `never`, and its negative for `always`; only
    `always` negates crops. `batch_size` limits memory; the results don't depend on it. `tta` averages over each image
    and its mirror image. The `notes` of what is found say which pictures have a background that is not plain.
    Raises UserError if the weights can't be read or the device is unavailable, ValueError for another `invert`.
    """
    if invert not in get_args(Invert):  # else a misspelled one would mean never
        raise ValueError(f"cannot use invert {invert}: expected {', '.join(get_args(Invert))}")
    net, card = load_pretrained(source, log_dir, net)
    chosen = choose_device(device)
    model = (MirrorAveraged(net) if tta else net).to(chosen)
    return PictureClassifier(model, card, recorded_info(card), chosen, invert, batch_size)


def choose_device(name: str) -> torch.device:
    """The device of a name, `auto`, or `gpu`. Raises UserError if it is unavailable."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return found or torch.device("cpu")
    try:
        device = found if name == "gpu" and found else torch.device("cuda" if name == "gpu" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # depends on torch's build
        reason = str(error).partition("\n")[0]
        raise UserError(f"cannot use the device {name}: {reason} (take auto or cpu)") from error
    return device


def to_images(inputs: Any, info: DataInfo, invert: Invert) -> tuple[Tensor, list[str]]:
    """Images (B, C, H, W), uint8 in 0..255 or float32 in 0..1, from what `PictureClassifier` takes; B notes."""
    if isinstance(inputs, list | tuple):
        found = [to_images(one, info, invert) for one in inputs]
        parts = [torch.empty(0, *info.image_shape, dtype=torch.uint8), *(images for images, _ in found)]
        in_bytes = all(part.dtype == torch.uint8 for part in parts[1:])
        images = torch.cat(parts if in_bytes else [scale_images(part, torch.float32) for part in parts])
        return images, [note for _, notes in found for note in notes]
    if isinstance(inputs, str | PathLike):
        return as_batch(load_picture(Path(inputs), info, invert))
    if isinstance(inputs, Image.Image):
        return as_batch(frame(upright(inputs), info, invert))
    if isinstance(inputs, np.ndarray):
        inputs = torch.from_numpy(inputs.copy())  # torch takes no read-only array and no negative stride
    if not isinstance(inputs, Tensor):
        raise TypeError(f"cannot classify {type(inputs).__name__}: expected {accepted(info)}")
    values, shape = scale_images(inputs.detach().cpu(), torch.float32), tuple(inputs.shape)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"cannot classify floats from {values.min():g} to {values.max():g}: expected 0 to 1")
    lacks_channels = info.image_shape[0] == 1 and len(shape) < 4 and shape[-2:] == info.image_shape[1:]
    if lacks_channels or (len(shape) < 5 and shape[-3:] == info.image_shape):
        # As training has them: an own net may take uint8 alone.
        images = (inputs.detach().cpu() if inputs.dtype == torch.uint8 else values).reshape(-1, *info.image_shape)
        return images, [""] * len(images)
    if not values.numel() or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))):
        raise ValueError(f"cannot classify an array of shape {shape}: expected {accepted(info)}")
    pixels = (values * 255).round().to(torch.uint8).numpy()
    return as_batch(frame(Image.fromarray(pixels[..., 0] if shape[2:] == (1,) else pixels), info, invert))


def accepted(info: DataInfo) -> str:
    """What `PictureClassifier` takes, for messages."""
    channels, height, width = info.image_shape
    gray = f"({height}, {width}), (B, {height}, {width}), " if channels == 1 else ""
    return (
        f"a path, a PIL image, data {gray}({channels}, {height}, {width}) or (B, {channels}, {height}, {width}), "
        "a picture (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a list of these"
    )


def as_batch(framed: Framed) -> tuple[Tensor, list[str]]:
    """(C, H, W) uint8 to (1, C, H, W) uint8, with one note."""
    return torch.tensor(framed.pixels)[None], [framed.note]
