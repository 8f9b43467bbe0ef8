"""Knowledge distillation: a net learns from what a trained one says of an image, as well as from its label."""

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

from fmnist_lightning.errors import UserError
from fmnist_lightning.models.pretrained import load_pretrained, weights_digest
from fmnist_lightning.runs.folders import find_run
from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.training.devices import broadcast


class Teacher(NamedTuple):
    """A trained net that stays as it is, and how much of it is taken over.

    No `nn.Module`: as a part of the net that learns, its weights would be trained, saved and sent along.
    """

    net: nn.Module
    model: str  # its name in MODELS
    sha256: str  # of its weights, as `pretrained.weights_digest` has it
    share: float  # of the teacher in the loss; the labels have the rest
    temperature: float  # above 1 it softens both nets' probabilities, and what the teacher finds unlikely counts more

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that say who teaches and how, for checkpoints and records."""
        return {name: getattr(self, name) for name in self._fields if name != "net"}

    def loss(self, logits: Tensor, images: Tensor, labels_loss: Tensor) -> Tensor:
        """The loss of a batch: the labels' own, and the divergence from what the teacher says of the same images.

        `logits` (B, 10) are the learner's for `images` (B, 1, 28, 28), as augmented as it saw them. The divergence
        counts times the temperature squared, which keeps its gradients' size.
        Source: Hinton et al. (2015), https://arxiv.org/abs/1503.02531; the same view of an image for both: Beyer et al.
        (2022), https://arxiv.org/abs/2106.05237.
        """
        with torch.no_grad():
            answers = self.net(images).to(logits.dtype)
        ours, theirs = ((one / self.temperature).log_softmax(dim=1) for one in (logits, answers))
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return (1 - self.share) * labels_loss + self.share * self.temperature**2 * divergence


def validation_notice(source: str, card: Mapping[str, Any], val_fraction: float) -> str:
    """A warning where the teacher `source`, of this card, saw images that judge a training with `val_fraction`; or "".

    The validation cuts lie within each other, so that it did where its own was smaller.
    """
    training = card.get("training")
    own = training.get("val_fraction") if isinstance(training, dict) else None
    if not isinstance(own, int | float) or own >= val_fraction:  # a card may be anybody's
        return ""
    return (
        f"the teacher {source} was trained on validation images of this training (val_fraction {own:g}, here "
        f"{val_fraction:g}), so val/accuracy is too good: choose options with a teacher of --val_fraction "
        f"{val_fraction:g} or more"
    )


def prepare_teacher(options: TrainOptions, fabric: L.Fabric) -> tuple[TrainOptions, Teacher | None]:
    """The options with their teacher resolved, and that teacher, read on rank 0, if there is to be one.

    Warns if the teacher was trained on the validation images. Raises UserError if it can't be read, or was trained on
    another data set.
    """
    if not options.teacher:
        return options, None

    def load() -> tuple[str, Teacher]:
        source, log_dir = str(options.teacher), Path(options.log_dir)
        source = str(find_run(source, log_dir)) if source == "last" else source  # this run will be the last
        pretrained = load_pretrained(source)
        found = pretrained.card["dataset"]
        if found != options.dataset:
            raise UserError(
                f"cannot learn from {source}: it was trained on {found}, and this training is on {options.dataset} "
                "(name another teacher)"
            )
        if notice := validation_notice(source, pretrained.card, options.val_fraction):
            warn_once(notice)
        net, model = pretrained.net.requires_grad_(False), pretrained.card["model"]
        return source, Teacher(net, model, weights_digest(net), options.teacher_share, options.temperature)

    source, teacher = broadcast(fabric, load)
    return replace(options, teacher=source), teacher


@cache
def warn_once(notice: str) -> None:
    """Print it in the first of a search's trainings alone."""
    print(f"WARNING: {notice}", file=sys.stderr)
