"""Knowledge distillation: a model learns from the outputs of a trained one, besides the labels."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmnist_lightning.data.sets import recorded_info
from fmnist_lightning.data.source import DataInfo, difference
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.pretrained import load_pretrained, weights_digest
from fmnist_lightning.runs.folders import find_run
from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.training.devices import broadcast


class Teacher(NamedTuple):
    """A trained net that stays as it is, and how the student learns from it.

    Not an `nn.Module`: as a submodule of the LightningModule it would be trained, saved, and broadcast.
    """

    net: nn.Module
    model: str  # its name in MODELS
    sha256: str  # of its weights, by `pretrained.weights_digest`
    share: float  # of the teacher in the loss; the labels have the rest
    temperature: float  # softens the probabilities of both, so that unlikely classes count more, if above 1

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values for checkpoints and records: who teaches, and how."""
        return {name: getattr(self, name) for name in self._fields if name != "net"}

    def loss(self, logits: Tensor, images: Tensor, labels_loss: Tensor) -> Tensor:
        """The loss of a batch: `labels_loss` combined with the divergence of the student from the teacher.

        `logits` (B, num_classes) are the student's for `images` (B, C, H, W). The teacher gets the same images,
        augmented in the same way. Temperature squared keeps the size of the gradients.
        Sources: Hinton et al. (2015), https://arxiv.org/abs/1503.02531; for the same images, Beyer et al. (2022),
        https://arxiv.org/abs/2106.05237.
        """
        with torch.no_grad():
            targets = self.net(images).to(logits.dtype)
        student, teacher = ((one / self.temperature).log_softmax(dim=1) for one in (logits, targets))
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - self.share) * labels_loss + self.share * self.temperature**2 * divergence


def validation_notice(source: str, card: Mapping[str, Any], val_fraction: float) -> str:
    """A warning if the teacher `source` was trained on images that validate a training with `val_fraction`, or "".

    A smaller validation split lies within a larger one, so this holds if the teacher's fraction is the smaller one.
    """
    training = card.get("training")
    own = training.get("val_fraction") if isinstance(training, dict) else None
    if not isinstance(own, int | float) or own >= val_fraction:  # anybody may have written the card
        return ""
    return (
        f"the teacher {source} was trained on validation images of this training (val_fraction {own:g}, here "
        f"{val_fraction:g}), so val/accuracy is too high: choose options with a teacher of --val_fraction "
        f"{val_fraction:g} or more"
    )


def check_teacher(source: str, taught: DataInfo, info: DataInfo) -> None:
    """Raise UserError unless the teacher `source` was trained on a data set like that of `info`."""
    if found := difference(info, taught):
        raise UserError(f"cannot learn from {source}: it was trained on {found} (name another teacher)")


def prepare_teacher(options: TrainOptions, fabric: L.Fabric, info: DataInfo) -> tuple[TrainOptions, Teacher | None]:
    """The options with the path of their teacher, and the teacher, which rank 0 reads; None if they name none.

    `info` describes the training's data set. Warns if the teacher was trained on the validation images. Raises
    UserError if it can't be read, or was trained on another data set, other classes or images of another shape.
    """
    if not options.teacher:
        return options, None

    def load() -> tuple[str, Teacher]:
        source, log_dir = str(options.teacher), Path(options.log_dir)
        source = str(find_run(source, log_dir)) if source == "last" else source  # before this run becomes the last one
        pretrained = load_pretrained(source)
        check_teacher(source, recorded_info(pretrained.card), info)
        if notice := validation_notice(source, pretrained.card, options.val_fraction):
            warn_once(notice)
        net, model = pretrained.net.requires_grad_(False), pretrained.card["model"]
        return source, Teacher(net, model, weights_digest(net), options.teacher_share, options.temperature)

    source, teacher = broadcast(fabric, load)
    return replace(options, teacher=source), teacher


@cache
def warn_once(notice: str) -> None:
    """Print a warning once, even in a search of many trainings."""
    print(f"WARNING: {notice}", file=sys.stderr)
